"""What a run was made with: versions, machine, and the state of the code. Nothing that names a person or a host."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

import radgaze

__all__ = ["differences", "environment"]

GIT_SECONDS = 10.0


def environment() -> dict[str, Any]:
    """For the record of a run.

    Returns:
        ``python``, ``platform``, ``processor``, ``gpu``, ``threads`` (sums come out in another order with more),
        ``packages`` (radgaze and all it depends on), and ``code``: ``commit`` and ``changed`` of the checkouts that
        radgaze itself runs from and that the call was made in; None where it is no git checkout.
    """
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "processor": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "packages": packages(),
        "code": {
            "radgaze": git_state(Path(radgaze.__file__).parent, tracked="__init__.py"),
            "working folder": git_state(Path.cwd()),
        },
    }


def packages() -> dict[str, str]:
    """Versions of radgaze and of what it depends on, extras left out."""
    found = {"radgaze": version("radgaze")}
    for requirement in requires("radgaze") or []:
        name, extra = re.match(r"[\w.-]+", requirement), "extra ==" in requirement
        if name and not extra:
            try:
                found[name.group()] = version(name.group())
            except PackageNotFoundError:  # of another platform
                continue
    return found


def git_state(folder: Path, tracked: str | None = None) -> dict[str, Any] | None:
    """Commit of the checkout that ``folder`` lies in, and whether its files differ from it.

    Args:
        folder: Any folder.
        tracked: A file in it that must be the checkout's own: an environment in somebody's checkout is not.
    """
    if shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None or (tracked is not None and git("ls-files", "--error-unmatch", tracked) is None):
        return None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": changes is None or bool(changes)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Entries that are not the same in two records, dotted names to (before, now); None where one has none."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*before, *now]):
        ours, theirs = before.get(key), now.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found |= differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            found[f"{prefix}{key}"] = (ours, theirs)
    return found
