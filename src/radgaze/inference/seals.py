"""Checksums at the end of exported files, in a place where each format lets a reader pass over them.

A flipped bit in a network's weights gives other numbers, not an error: engines read it without a word. So a file ends
with the SHA-256 of all that comes before it (an OpenVINO .xml with that of its .bin, too): as one more entry of an
ONNX model's metadata, as a comment in XML, as the comment of a .pt2, which is a ZIP archive.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from radgaze.errors import InputError

__all__ = ["is_sealed", "seal"]

DIGITS = 64
# what stands before and after the digits
WRAPPING = {
    ".onnx": (b"\x72\x4a\x0a\x06sha256\x12\x40", b""),  # ModelProto's field 14: key and value, each with its length
    ".xml": (b"<!-- sha256 ", b" -->\n"),
    ".pt2": (b"\x40\x00", b""),  # the length of the archive's comment, which is the last field before it
}
CHUNK = 1 << 20


def seal(file: Path) -> None:
    """Append its checksum to a .onnx, .xml or .pt2 that has none."""
    before, after = WRAPPING[file.suffix]
    length = file.stat().st_size
    if file.suffix == ".pt2":
        length -= len(before)  # the length of an empty comment is in its place
    digits = _digest(file, length)
    with file.open("rb+") as content:
        content.seek(length)
        content.write(before + digits + after)


def is_sealed(file: Path) -> bool:
    """Whether a file has a checksum at its end.

    Raises:
        InputError: It has, and it is another file's: something in the file, or in an OpenVINO model's .bin, is changed.
    """
    if file.suffix not in WRAPPING:
        return False
    before, after = WRAPPING[file.suffix]
    length = file.stat().st_size - len(before) - DIGITS - len(after)
    if length < 0:
        return False
    with file.open("rb") as content:
        content.seek(length)
        end = content.read()
    if not (end.startswith(before) and end.endswith(after)):
        return False
    if end[len(before) :][:DIGITS] != _digest(file, length):
        beside = f", or {file.with_suffix('.bin').name!r} beside it," if file.suffix == ".xml" else ""
        raise InputError(
            f"{str(file)!r}{beside} has changed since it was written (its checksum differs); copy it again, or export "
            "the run again."
        )
    return True


def _digest(file: Path, length: int) -> bytes:
    """Digits of the SHA-256 of a file's first bytes, and of the .bin beside an .xml."""
    digest = hashlib.sha256()
    parts = [(file, length)]
    if file.suffix == ".xml" and (weights := file.with_suffix(".bin")).is_file():
        parts.append((weights, weights.stat().st_size))
    for part, left in parts:
        with part.open("rb") as content:
            while left and (chunk := content.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest().encode()
