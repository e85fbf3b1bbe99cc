"""Files that are whole or absent: atomic writes, finished folders, and a lock on a folder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from radgaze.errors import InputError

__all__ = ["atomic_path", "folder_lock", "make_folder", "publish", "read_json", "write_json", "write_text"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place once the block ends without an error.

    Raises:
        InputError: A file is where its folder should be.
    """
    make_folder(path.parent)
    # not by the number of this process: on a shared folder, another machine's may have the same one
    partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # the bytes reach the disk before the name does
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those it lies in, where they are not there.

    Raises:
        InputError: It, or one of those, is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (folder, *folder.parents) if path.exists() and not path.is_dir())
        raise InputError(f"{str(file)!r} is a file, expected a folder; choose another folder.") from None


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read JSON; ``what`` names the file in the error ("a run's config")."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} does not exist, so this is not {what}; check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); restore it or make {what} again.") from error


@contextmanager
def folder_lock(folder: Path, doing: str, patience: float = 0) -> Iterator[None]:
    """Hold ``folder`` for one process; a second one is refused. The system frees the lock when a process dies.

    Args:
        folder: Made where it is not there.
        doing: For the error: what the other process is doing.
        patience: Seconds that the other process is given to end.

    Raises:
        InputError: Another process holds it, or it is a file.
    """
    make_folder(folder)
    deadline = time.monotonic() + patience
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"Another process is {doing} {str(folder)!r}; wait until it ends or choose another folder."
                    ) from None
                time.sleep(0.1)
        yield


def publish(finished: Path, out: Path, partial: Path) -> None:
    """Give a finished folder inside ``partial`` its name. Only then does ``out`` exist, or change."""
    for file in finished.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # the bytes reach the disk before the name does
    if out.exists():
        out.rename(partial / "replaced")
    finished.rename(out)
    shutil.rmtree(partial, ignore_errors=True)
