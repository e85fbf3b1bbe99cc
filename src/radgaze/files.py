"""Files that are whole or absent: atomic writes, finished folders, a lock on a folder, and seals that show damage."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from radgaze.errors import InputError, StorageError

__all__ = [
    "PLAN",
    "atomic_path",
    "check_fields",
    "clear_half_written",
    "folder_lock",
    "is_used",
    "make_folder",
    "parse_json",
    "publish",
    "read_json",
    "read_sealed",
    "storing",
    "write_json",
    "write_sealed",
    "write_text",
]

PLAN = "plan.json"
"""In a folder of work: what it is for. One without is of no use to a later attempt."""

HALF_WRITTEN = re.compile(r"\..*\.partial|\.tmp.{6}")
"""Names of files that are being written: ours, and those that safetensors gives the file it is about to rename."""

FIXES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.EIO: "check the disk",
}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Tell an error of the disk under ``path``, a file or a folder, as one sentence.

    Raises:
        StorageError: The disk is full, read-only or broken.
    """
    try:
        yield
    except StorageError:
        raise  # told already, closer to where it happened
    except Exception as error:
        code, file = _disk_error(error)
        folder, file = (path if path.is_dir() else path.parent), file or path
        # a file elsewhere is one that was read; one above is a folder that was to be made
        if code not in FIXES or not (file.is_relative_to(folder) or folder.is_relative_to(file)):
            raise
        raise StorageError(
            f"{str(file)!r} cannot be written ({os.strerror(code)}); {FIXES[code]}, then run the same command again."
        ) from error


def _disk_error(error: Exception) -> tuple[int | None, Path | None]:
    """The number of the system's error, and the file it is about, where they are known."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, Path(error.filename) if isinstance(error.filename, str) else None
    told = re.search(r"os error (\d+)", str(error))  # as libraries written in Rust say it
    return int(told[1]) if told else None, None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place once the block ends without an error.

    Raises:
        InputError: A file is where its folder should be.
        StorageError: The disk is full, read-only or broken.
    """
    make_folder(path.parent)
    # not by the number of this process: on a shared folder, another machine's may have the same one
    partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}.partial")
    with storing(path):
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())  # the bytes reach the disk before the name does
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those it lies in, where they are not there.

    Raises:
        InputError: It, or one of those, is a file.
        StorageError: The disk is full, read-only or broken.
    """
    try:
        with storing(folder):
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


def check_fields(content: Any, fields: Any, path: Path, what: str) -> None:
    """Refuse the content of a JSON file that lacks one of ``fields``, a TypedDict, or has another type there.

    It may have more.

    Raises:
        InputError: Names the field.
    """
    from pydantic import TypeAdapter, ValidationError  # heavy: only what opens cohorts and runs pays for it

    try:
        TypeAdapter(fields).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "all of it"
        raise InputError(
            f"{str(path)!r} does not describe {what} ({where}: {problem['msg'].lower()}); restore it or make {what} "
            "again."
        ) from None


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a checksum of its content as the last entry."""
    write_json(path, {**content, "checksum": _seal(content)})


def read_sealed(path: Path, what: str) -> Any:
    """Read what :func:`write_sealed` wrote, without the checksum; files older than seals have none.

    Raises:
        InputError: It does not exist, or has been damaged or edited.
    """
    content = read_json(path, what)
    if isinstance(content, dict):
        seal = content.pop("checksum", None)
        if seal is not None and seal != _seal(content):
            raise InputError(
                f"{str(path)!r} has changed since it was written (its checksum differs); restore it or make {what} "
                "again."
            )
    return content


def _seal(content: Mapping[str, Any]) -> str:
    # as it will be read: text keys, lists for tuples, in any order
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def folder_lock(folder: Path, doing: str, patience: float = 0) -> Iterator[None]:
    """Hold ``folder`` for one process; a second one is refused. The system frees the lock when a process dies.

    What processes that were killed have left half-written in it is cleared away first.

    Args:
        folder: Made where it is not there.
        doing: For the error: what the other process is doing.
        patience: Seconds that the other process is given to end.

    Raises:
        InputError: Another process holds it, or it is a file.
        StorageError: The disk is full, read-only or broken, now or while the folder is held.
    """
    make_folder(folder)
    deadline = time.monotonic() + patience
    with storing(folder), (folder / ".lock").open("w") as file:
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
        clear_half_written(folder)
        yield


def is_used(folder: Path) -> bool:
    """Whether a folder is there and holds more than a lock and what killed processes have left half-written.

    Raises:
        InputError: It is a file.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file, expected a folder; choose another folder.")
    return any(file.name != ".lock" and not HALF_WRITTEN.fullmatch(file.name) for file in folder.iterdir())


def clear_half_written(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in ``folder``, at any depth."""
    for place, _, names in os.walk(folder):
        for name in filter(HALF_WRITTEN.fullmatch, names):
            Path(place, name).unlink(missing_ok=True)


def publish(finished: Path, out: Path, partial: Path) -> None:
    """Give a finished folder inside ``partial`` its name. Only then does ``out`` exist, or change."""
    for file in finished.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # the bytes reach the disk before the name does
    if out.exists():
        out.rename(partial / "replaced")
    finished.rename(out)
    (partial / PLAN).unlink(missing_ok=True)  # nothing is left to go on with
    shutil.rmtree(partial, ignore_errors=True)
