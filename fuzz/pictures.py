"""PNG, JPEG and TIFF files with bytes changed (and a PNG's checksums set right again), as images and as masks."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from fuzz.choices import Choices, Harness, edited, refusals
from fuzz.scratch import scratch
from radgaze.cohort import pixels
from radgaze.cohort.pixels import Upload, image_size, read_image, read_mask

__all__ = ["HARNESSES"]

MOST_PIXELS = 1 << 20  # far fewer than usual, so that memory shows what slipped past the check


@cache
def pictures() -> list[bytes]:
    """A small file of every kind and mode that is read."""
    ramp = np.arange(120, dtype=np.uint8).reshape(10, 12) * 2
    grey, deep = Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16) * 250)
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.ROTATE_180), grey])
    modes = (grey, deep, colour, grey.convert("1"), grey.convert("LA"), colour.convert("RGBA"), colour.convert("P"))
    files = [saved(picture, "PNG") for picture in modes]
    files += [saved(picture, "JPEG") for picture in (grey, colour, colour.convert("CMYK"))]
    files.append(saved(grey, "JPEG", progressive=True))
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits"):
        files.append(saved(deep, "TIFF", compression=compression))
    files += [saved(colour, "TIFF", compression="jpeg"), saved(grey.convert("1"), "TIFF", compression="group4")]
    files.append(saved(Image.fromarray(ramp.astype(np.float32)), "TIFF"))
    files.append(saved(grey, "TIFF", save_all=True, append_images=[grey, grey]))
    return files


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_checksums(png: bytes) -> bytes:
    """The chunks of a PNG, each with the checksum it should have; a reader would refuse all others at once."""
    chunks, place = [png[:8]], 8
    while place + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        body = png[place + 4 : place + 8 + length]
        chunks.append(png[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(chunks)


def picture_of(choices: Choices) -> bytes:
    files = pictures()
    which = choices.number(len(files))
    if which == len(files):
        return choices.rest()
    content = edited(files[which], choices)
    return with_checksums(content) if content.startswith(b"\x89PNG") and not choices.one_in(4) else content


def check_picture(data: bytes) -> None:
    choices = Choices(data)
    check_reading(picture_of(choices), choices.pick(("image.png", "image", "image.dcm")))


def check_reading(content: bytes, name: str) -> None:
    """An image is read as its header says, or refused."""
    pixels.MAX_PIXELS = MOST_PIXELS
    upload = Upload(content, name)
    size = None
    with refusals():
        size = image_size(upload)
    with refusals():
        values, _ = read_image(upload)
        assert values.ndim == 2
        assert values.size
        assert values.dtype in (np.uint16, np.float32)
        assert values.min() >= 0
        assert np.isfinite(values).all()
        assert size == values.shape, f"{size} by the header, {values.shape} when read"


def check_mask(data: bytes) -> None:
    pixels.MAX_PIXELS = MOST_PIXELS
    file = scratch("mask") / "mask.png"
    file.write_bytes(picture_of(Choices(data)))
    with refusals():
        mask = read_mask(file)
        assert mask.ndim == 2
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1, 255}


def seeds() -> list[bytes]:
    return [bytes([which]) for which in range(len(pictures()))] + [
        bytes([len(pictures())]) + file for file in pictures()[::3]
    ]


HARNESSES = {"picture": Harness(check_picture, seeds), "mask": Harness(check_mask, seeds)}
