"""Which images are meant: files, folders searched at any depth, and globs; and what the files made of them are called.

A file's name in the output comes from the path that it was found under and from nothing else: never from what is in it.
"""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from radgaze.errors import InputError

__all__ = ["Source", "find_images"]

SUFFIXES = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff"})
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class Source:
    """An image that was asked for.

    Attributes:
        path: Where it is.
        problem: Why it cannot even be tried; None where it can.
    """

    path: Path
    problem: str | None = None

    @property
    def name(self) -> str:
        """What results call it: its path as it was given; bytes that are no text are written as ``\\xNN``."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")

    @property
    def stem(self) -> str:
        """The name, without suffix, of files made of it: its own, in letters and digits, and a digest of its path.

        The digest tells files of one name in several folders apart and stays the same in every call.
        """
        own = unicodedata.normalize("NFC", os.fsencode(self.path.stem).decode("utf-8", "replace"))
        kept = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in own)[:40].strip("-_")
        return f"{kept or 'image'}-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]}"


def find_images(given: Iterable[Path | str], leave_out: Path | None = None) -> list[Source]:
    """The images that ``given`` means, each once, in the order given; those of a folder or glob are sorted.

    Args:
        given: Files, folders and globs (``**`` is any depth). A file is taken as it is. Of folders and globs those
            files count that are PNG, JPEG, TIFF or DICOM by their suffix or their first bytes; hidden files and
            DICOMDIR do not.
        leave_out: A folder that is not searched: the one that is written to.

    Raises:
        InputError: Nothing was given.
    """
    found: dict[str, Source] = {}
    excluded = None if leave_out is None else os.path.realpath(leave_out)
    for one in given:
        for source in _expand(Path(one), excluded):
            found.setdefault(os.path.abspath(source.path), source)
    if not found:
        raise InputError("No image was given; name files, folders or quoted globs.")
    return list(found.values())


def _expand(path: Path, excluded: str | None) -> Iterator[Source]:
    if path.is_dir():
        images = list(_in_folder(path, excluded))
        yield from images or [Source(path, f"Folder {_said(path)} holds no PNG, JPEG, TIFF or DICOM file; check it.")]
    elif os.path.lexists(path) or not glob.has_magic(str(path)):
        yield Source(path, None if path.exists() else f"Image {_said(path)} does not exist; check the path.")
    else:
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        images = [Source(match) for match in matches if match.is_file() and _is_image(match)]
        images += [image for match in matches if match.is_dir() for image in _in_folder(match, excluded)]
        if excluded is not None:
            images = [image for image in images if not _lies_in(os.path.realpath(image.path), excluded)]
        yield from images or [
            Source(path, f"No PNG, JPEG, TIFF or DICOM file matches {_said(path)}; check the pattern.")
        ]


def _in_folder(folder: Path, excluded: str | None) -> Iterator[Source]:
    for root, folders, files in os.walk(folder):
        if os.path.realpath(root) == excluded:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Source(path) for path in (Path(root, name) for name in sorted(files)) if _is_image(path))


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or start.startswith(_SIGNATURES)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _said(path: Path) -> str:
    return repr(Source(path).name)
