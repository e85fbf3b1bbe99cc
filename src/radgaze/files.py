"""Files that are whole or absent: atomic writes, finished folders, and a lock on a folder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radgaze.errors import InputError

__all__ = [
    "atomic_path",
    "folder_lock",
    "make_folder",
    "parse_json",
    "publish",
    "read_json",
    "write_json",
    "write_text",
]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place once the block ends without an error.

    Raises:
        InputError: A file is where its folder should be.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} does not exist, so this is not {what}; check the path.") from None
    except ValueError as error:  # of its bytes or its text
        raise InputError(f"{str(path)!r} is damaged ({error}); restore it or make {what} again.") from error
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}); expected {what}.") from error


def parse_json(text: str | bytes) -> Any:
    """JSON as every reader of it takes it.

    Raises:
        ValueError: it is none, holds NaN or infinity, which are not JSON, or is nested deeper than can be read.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


@contextmanager
def folder_lock(folder: Path, doing: str) -> Iterator[None]:
    """Hold ``folder`` for one process; a second one is refused. The system frees the lock when a process dies.

    Raises:
        InputError: Another process holds it, or it is a file.
    """
    make_folder(folder)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process is {doing} {str(folder)!r}; wait until it ends or choose another folder."
            ) from None
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
