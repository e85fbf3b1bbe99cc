"""DICOM files written element by element, so that tags, values, lengths and streams can each be wrong on their own."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from fuzz.choices import Choices, Harness, edited
from fuzz.pictures import check_reading

__all__ = ["HARNESSES"]

SIZE = (10, 12)

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, RLE = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
)
JPEG, JPEG_12_BITS, JPEG_LOSSLESS, JPEG_LS, JPEG_2000, HTJ2K = (
    f"1.2.840.10008.1.2.4.{number}" for number in ("50", "51", "70", "80", "90", "201")
)
NATIVE = (EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN)
COMPRESSED = (RLE, JPEG, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, JPEG_12_BITS, HTJ2K)
LONG = ("OB", "OW", "OF", "OD", "SQ", "UN", "UT")

# What decides how pixels are decoded and shown: (group, element), representation, usual values.
ELEMENTS: tuple[tuple[int, int, str, tuple[object, ...]], ...] = (
    (0x28, 0x02, "US", (1, 3, 4, 65535)),  # samples per pixel
    (0x28, 0x04, "CS", ("MONOCHROME2", "MONOCHROME1", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "YBR_ICT")),
    (0x28, 0x06, "US", (0, 1)),  # planar configuration
    (0x28, 0x08, "IS", ("1", "2", "0", "-1", "1e9", "")),  # frames
    (0x28, 0x10, "US", (SIZE[0], 1, 0, 65535, 300)),
    (0x28, 0x11, "US", (SIZE[1], 1, 0, 65535, 300)),
    (0x28, 0x100, "US", (16, 8, 1, 12, 32, 64)),  # bits allocated
    (0x28, 0x101, "US", (16, 8, 1, 12, 32, 0)),
    (0x28, 0x102, "US", (15, 7, 0, 11, 31)),
    (0x28, 0x103, "US", (0, 1)),  # signed
    (0x28, 0x1050, "DS", ("", "100", "2000\\50", "nan", "1e308", "-1e308", "x")),  # window centre
    (0x28, 0x1051, "DS", ("", "400", "100\\10", "0", "-5", "1e-300", "inf")),
    (0x28, 0x1052, "DS", ("", "0", "-1024", "1e300", "nan")),  # rescale
    (0x28, 0x1053, "DS", ("", "1", "0", "-1", "1e300", "0.5")),
    (0x28, 0x1056, "CS", ("", "LINEAR", "SIGMOID", "LINEAR_EXACT", "CUBIC")),
    (0x28, 0x1101, "US", ((256, 0, 8), (256, 0, 16), (0, 0, 16), (1, 300, 8), (2, 0))),  # palette: entries, first, bits
    (0x28, 0x1102, "US", ((256, 0, 8), (256, 0, 16), (0, 0, 16))),
    (0x28, 0x1103, "US", ((256, 0, 8), (256, 0, 16), (0, 0, 16))),
    (0x28, 0x1201, "OW", (bytes(range(256)), bytes(512), b"")),
    (0x28, 0x1202, "OW", (bytes(range(256)), bytes(512), b"")),
    (0x28, 0x1203, "OW", (bytes(range(256)), bytes(512), b"")),
    (0x28, 0x3000, "SQ", (b"", "lut")),  # modality LUT
    (0x28, 0x3010, "SQ", (b"", "lut")),  # VOI LUT
)
ALWAYS = 10  # of these every file has the first ones; each other one is a choice


@cache
def streams() -> dict[str, list[bytes]]:
    """Compressed images of ``SIZE``: grey, and in colour."""
    ramp = np.arange(120, dtype=np.uint8).reshape(SIZE) * 2
    grey, deep = Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16) * 250)
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.ROTATE_180), grey])
    rle = struct.pack("<16I", 1, 64, *[0] * 14) + b"".join(b"\x0b" + bytes(row) for row in ramp)
    jpeg = [encoded(picture, "JPEG") for picture in (grey, colour)]
    jpeg_2000 = [encoded(picture, "JPEG2000", no_jp2=True) for picture in (grey, deep, colour)]
    found = {RLE: [rle], JPEG: jpeg, JPEG_2000: [*jpeg_2000, encoded(grey, "JPEG2000")]}
    # The other JPEG kinds share its markers: a start of frame of another number makes one of them.
    lossless = [stream.replace(b"\xff\xc0", b"\xff\xc3") for stream in jpeg]
    return found | {JPEG_LOSSLESS: lossless, JPEG_12_BITS: jpeg, JPEG_LS: [JPEG_LS_GREY], HTJ2K: jpeg_2000}


# 10x12, 8 bits, no loss, no interleaving; then runs, which decode to something
JPEG_LS_GREY = (
    bytes.fromhex("ffd8fff7000b08000a000c01011100ffda0008010100000000") + bytes(range(7, 127, 3)) + b"\xff\xd9"
)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def dicom(choices: Choices) -> bytes:
    """A whole file: preamble, meta header, elements in their order, pixels."""
    compressed = choices.one_in(2)
    syntax = choices.pick(COMPRESSED if compressed else NATIVE)
    explicit, order = syntax != IMPLICIT, ">" if syntax == BIG_ENDIAN else "<"
    elements = []
    for number, (group, tag, kind, usual) in enumerate(ELEMENTS):
        if number >= ALWAYS and not choices.one_in(4):
            continue
        value: object = usual[0] if choices.one_in(2) or not choices else choices.pick(usual)
        if number < ALWAYS and choices.one_in(40):
            continue
        if choices.one_in(24):
            value = choices.bytes(choices.number(40))
        elif choices.one_in(24):
            kind = choices.pick(("US", "DS", "CS", "OB", "SQ", "FD", "UN", "LO", "zz"))
        elements.append(element(group, tag, kind, value, explicit, order))
    elements.append(pixel_data(choices, syntax, explicit, order))
    body = b"".join(elements)
    if choices.one_in(4):
        body = edited(body, choices)
    if syntax == DEFLATED:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflate.compress(body) + deflate.flush()
    stated = choices.pick((*NATIVE, *COMPRESSED, "1.2.3", "")) if choices.one_in(16) else syntax
    meta = element(2, 0x10, "UI", stated, True, "<")
    length = element(2, 0, "UL", len(meta) if not choices.one_in(32) else choices.number(2**32 - 1), True, "<")
    file = bytes(128) + b"DICM" + length + meta + body
    return edited(file, choices, 2) if choices.one_in(6) else file


def element(group: int, tag: int, kind: str, value: object, explicit: bool, order: str) -> bytes:
    if value == "lut":
        value = item(lut(explicit, order), explicit, order)
    raw = packed(value, kind, order)
    raw += b" " * (len(raw) % 2)
    head = struct.pack(f"{order}HH", group, tag)
    if not explicit:
        return head + struct.pack(f"{order}I", len(raw)) + raw
    if kind in LONG:
        return head + kind.encode() + struct.pack(f"{order}HI", 0, len(raw)) + raw
    return head + kind.encode() + struct.pack(f"{order}H", len(raw) % 65536) + raw


def packed(value: object, kind: str, order: str) -> bytes:
    if isinstance(value, bytes):
        return value
    numbers = value if isinstance(value, tuple) else (value,)
    if all(isinstance(number, int) for number in numbers):
        code = {"UL": "I", "FD": "d"}.get(kind, "H")
        return struct.pack(f"{order}{len(numbers)}{code}", *numbers)
    return str(value).encode()


def lut(explicit: bool, order: str) -> bytes:
    parts: list[tuple[int, str, object]] = [
        (0x3002, "US", (256, 0, 16)),
        (0x3003, "LO", "made up"),
        (0x3006, "OW", bytes(range(256)) * 2),
    ]
    return b"".join(element(0x28, tag, kind, value, explicit, order) for tag, kind, value in parts)


def item(body: bytes, explicit: bool, order: str) -> bytes:
    return struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(body)) + body


def pixel_data(choices: Choices, syntax: str, explicit: bool, order: str) -> bytes:
    tag = choices.pick((0x10, 0x08, 0x09)) if choices.one_in(16) else 0x10  # whole numbers, float, double
    if syntax not in COMPRESSED:
        count = choices.number(4000) if choices.one_in(8) else choices.pick((240, 120, 360, 480, 960, 30))
        pattern = choices.bytes(8) or b"\1\2"
        return element(0x7FE0, tag, choices.pick(("OW", "OB")), (pattern * count)[:count], explicit, order)
    stream = choices.pick(streams()[syntax if not choices.one_in(8) else choices.pick(COMPRESSED)])
    if choices.one_in(2):
        stream = edited(stream, choices)
    stream += b"\0" * (len(stream) % 2)
    fragments = [stream[:20], stream[20:]] if choices.one_in(8) else [stream]
    table = choices.bytes(choices.number(8)) if choices.one_in(8) else b""
    head = struct.pack("<HH2sHI", 0x7FE0, tag, b"OB", 0, 0xFFFFFFFF)
    items = b"".join(item(part, True, "<") for part in (table, *fragments))
    return head + items + (struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if not choices.one_in(16) else b"")


def check_dicom(data: bytes) -> None:
    check_reading(dicom(Choices(data)), "image.dcm")


def seeds() -> list[bytes]:
    native = [bytes([0, which]) for which in range(len(NATIVE))]
    return native + [bytes([1, which]) + bytes(60) for which in range(len(COMPRESSED))]


HARNESSES = {"dicom": Harness(check_dicom, seeds)}
