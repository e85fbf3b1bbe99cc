"""Images are read as their format says and averaged exactly, whatever wrote them."""

from __future__ import annotations

import io
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from radgaze.cohort import pixels as module
from radgaze.cohort.pixels import (
    UNKNOWN,
    TooManyPixels,
    Upload,
    image_size,
    read_image,
    read_mask,
    resample,
    resample_mask,
    unite_masks,
)
from radgaze.errors import InputError
from radgaze.gaze import Grid
from tests.cohort.pictures import write_dicom, write_image

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
BYTES = (RAMP >> 8).astype(np.uint8)


# ---- PNG, JPEG, TIFF


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("values", [RAMP, BYTES], ids=["16 bits", "8 bits"])
def test_lossless_pictures_come_back_exactly(tmp_path: Path, suffix: str, values: np.ndarray) -> None:
    path = write_image(tmp_path / f"image{suffix}", values)
    read, info = read_image(path)
    assert read.dtype == np.uint16
    assert info.bits == 8 * values.dtype.itemsize
    np.testing.assert_array_equal(read, values)
    assert image_size(path) == (3, 4)


def test_jpeg_is_read(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    path = tmp_path / "image.jpg"
    Image.fromarray(smooth).save(path, quality=95)
    assert np.abs(read_image(path)[0].astype(int) - smooth).max() <= 4


def test_grey_in_colour_stays_exact_and_colour_becomes_luminance(tmp_path: Path) -> None:
    grey = np.stack([BYTES] * 3, axis=-1)
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "grey.png", grey))[0], BYTES)
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert read_image(write_image(tmp_path / "red.png", red))[0].max() == 76  # 0.299 of 255


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_dropped(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(BYTES).convert(mode)
    picture.putalpha(0)
    picture.save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png")[0], BYTES)


@pytest.mark.parametrize("values", [RAMP, BYTES], ids=["16 bits", "8 bits"])
def test_tiff_where_white_is_zero_is_inverted(tmp_path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "image.tif", values, photometric="miniswhite")
    read = read_image(tmp_path / "image.tif")[0].astype(int)
    assert read[0, 0] > read[2, 3]
    np.testing.assert_array_equal(read - read.min(), values.max() - values.astype(int))


def test_big_endian_signed_and_float_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "big.tif", RAMP, byteorder=">")
    np.testing.assert_array_equal(read_image(tmp_path / "big.tif")[0], RAMP)
    tifffile.imwrite(tmp_path / "signed.tif", (RAMP.astype(np.int32) - 30000).astype(np.int16))
    np.testing.assert_array_equal(read_image(tmp_path / "signed.tif")[0], RAMP)  # the minimum is subtracted
    tifffile.imwrite(tmp_path / "float.tif", RAMP.astype(np.float32) / 7)
    read = read_image(tmp_path / "float.tif")[0]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, RAMP.astype(np.float32) / 7)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is no PNG, JPEG, TIFF or DICOM"),
        (lambda path: path.write_bytes(b"GIF89a" + bytes(64)), "is no PNG, JPEG, TIFF or DICOM"),
        (lambda path: Image.fromarray(RAMP).save(path) or path.write_bytes(path.read_bytes()[:-30]), "is damaged"),
        (
            lambda path: tifffile.imwrite(path, np.stack([RAMP, RAMP]), photometric="minisblack"),
            "has 2 frames",
        ),
        (lambda path: tifffile.imwrite(path, np.full((2, 2), np.nan, np.float32)), "not finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(InputError, match=says) as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_absurd_sizes_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, "PNG")
    data = bytearray(header.getvalue())
    data[16:24] = (30000).to_bytes(4, "big") * 2  # width and height of the header chunk
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged or is no radiograph"):
        read_image(path)
    monkeypatch.setattr(module, "MAX_PIXELS", 10)
    with pytest.raises(InputError, match="3x4 pixels"):
        read_image(write_image(tmp_path / "large.png", BYTES))
    with pytest.raises(InputError, match="3x4 pixels"):
        read_image(write_dicom(tmp_path / "large.dcm", RAMP))


# ---- DICOM


def test_plain_dicom_comes_back_exactly(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "image", RAMP)  # known by its content, not by its name
    read, info = read_image(path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, RAMP)
    assert (info.format, info.bits, info.photometric) == ("DICOM", 16, "MONOCHROME2")
    assert image_size(path) == (3, 4)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "image.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(path)[0], RAMP.max() - RAMP)


def test_signed_and_rescaled(tmp_path: Path) -> None:
    signed = (RAMP.astype(np.int32) - 30000).astype(np.int16)
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "a.dcm", signed))[0], RAMP)
    path = write_dicom(tmp_path / "b.dcm", signed // 1000, RescaleSlope=2, RescaleIntercept=100, RescaleType="US")
    np.testing.assert_array_equal(read_image(path)[0], signed // 1000 * 2 + 100)


def test_bits_beyond_those_stored_are_ignored(tmp_path: Path) -> None:
    twelve = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    path = write_dicom(tmp_path / "image.dcm", twelve | 0xF000, bits=12)
    np.testing.assert_array_equal(read_image(path)[0], twelve)
    negative = np.array([[-5, 7], [0, 2047]], np.int16)
    path = write_dicom(tmp_path / "signed.dcm", negative & 0x0FFF, bits=12)  # the sign is the twelfth bit
    np.testing.assert_array_equal(read_image(path)[0], negative + 5)


def test_window_follows_the_standard(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1: linear between c − 0.5 ± (w − 1)/2, clipped beyond; of several windows the first."""
    values = np.arange(0, 4096, 37, dtype=np.uint16).reshape(3, -1)
    path = write_dicom(tmp_path / "image.dcm", values, bits=12, WindowCenter=[2000, 100], WindowWidth=[1000, 50])
    expected = np.clip(((values - 1999.5) / 999 + 0.5) * 4095, 0, 4095)
    np.testing.assert_allclose(read_image(path)[0], expected, rtol=1e-6)
    empty = write_dicom(tmp_path / "empty.dcm", values, bits=12, WindowCenter=None, WindowWidth=None)
    np.testing.assert_array_equal(read_image(empty)[0], values)


def test_voi_lut_wins_over_the_window(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.uint16).reshape(2, 4)
    table = pydicom.Dataset()
    table.LUTDescriptor = [8, 0, 16]
    table.LUTData = np.array([0, 10, 40, 90, 160, 250, 360, 490], "<u2").tobytes()
    path = write_dicom(
        tmp_path / "image.dcm", values, VOILUTSequence=pydicom.Sequence([table]), WindowCenter=4, WindowWidth=4
    )
    np.testing.assert_array_equal(read_image(path)[0], 10 * values.astype(int) ** 2)


def test_colour_dicom_becomes_luminance(tmp_path: Path) -> None:
    colour = np.stack([BYTES, BYTES, BYTES], axis=-1)
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "image.dcm", colour))[0], BYTES)


def test_several_frames_are_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "image.dcm", RAMP, NumberOfFrames=3, PixelData=RAMP.tobytes() * 3)
    with pytest.raises(InputError, match="3 frames"):
        read_image(path)


def test_damaged_dicom_is_named(tmp_path: Path) -> None:
    short = write_dicom(tmp_path / "short.dcm", RAMP, PixelData=RAMP.tobytes()[:-6])
    with pytest.raises(InputError, match="cannot be decoded"):
        read_image(short)
    (tmp_path / "junk.dcm").write_bytes(b"not a dicom file")
    with pytest.raises(InputError, match="lacks the header"):
        read_image(tmp_path / "junk.dcm")


def deflated(path: Path, extra: int) -> Path:
    """A small deflated DICOM file with so many zeros in a private element."""
    plain = pydicom.dcmread(write_dicom(path, np.arange(64, dtype=np.uint8).reshape(8, 8)))
    plain.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    plain.add_new(0x00091010, "OB", bytes(extra))
    plain.save_as(path, enforce_file_format=True)
    return path


def test_a_deflated_dicom_that_swells_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, bomb = deflated(tmp_path / "honest.dcm", 64), deflated(tmp_path / "bomb.dcm", 10_000_000)
    assert bomb.stat().st_size < 50_000
    monkeypatch.setattr(module, "MAX_PIXELS", 10_000)
    for source in (honest, Upload(honest.read_bytes(), "honest")):
        assert read_image(source)[0].tolist() == np.arange(64).reshape(8, 8).tolist()
        assert image_size(source) == (8, 8)
    monkeypatch.setattr(pydicom, "dcmread", None)  # it would inflate the file
    for source in (bomb, Upload(bomb.read_bytes(), "bomb")):
        for look in (read_image, image_size):
            with pytest.raises(TooManyPixels, match=r"bomb.* is a deflated DICOM file of more than 80,000 bytes"):
                look(source)


@pytest.mark.parametrize(
    ("syntax", "settings"),
    [
        (pydicom.uid.JPEGBaseline8Bit, {"format": "JPEG", "quality": 100}),
        (pydicom.uid.JPEG2000Lossless, {"format": "JPEG2000", "no_jp2": True}),
    ],
)
def test_a_compressed_image_of_another_size_than_its_header_is_refused(
    tmp_path: Path, syntax: str, settings: dict[str, Any]
) -> None:
    pixels = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, **settings)
    honest = pydicom.dcmread(write_dicom(tmp_path / "honest.dcm", pixels))
    honest.file_meta.TransferSyntaxUID = syntax
    honest.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
    honest.save_as(tmp_path / "honest.dcm", enforce_file_format=True)
    assert np.abs(read_image(tmp_path / "honest.dcm")[0].astype(int) - pixels).max() <= 2
    honest.Rows, honest.Columns = 10, 15
    honest.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=r"is 10x15 .* by its header and 20x30 by its compressed image"):
        read_image(tmp_path / "other.dcm")


def test_real_radiograph_reads_alike_in_three_encodings(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("dicom")
    plain, rle, jpeg2000 = (
        read_image(folder / name)[0]
        for name in (
            "derived_cr_chest_mono1_15bit_explicit_le.dcm",
            "derived_cr_chest_mono1_15bit_rle.dcm",
            "cr_chest_mono1_15bit_j2k_lossy.dcm",
        )
    )
    assert plain.shape == (1955, 1841)
    np.testing.assert_array_equal(plain, rle)
    np.testing.assert_array_equal(plain, jpeg2000)
    # The standard's formula on the stored values: window 15000 / 30000 in 15 bits, then inverted.
    stored = pydicom.dcmread(folder / "derived_cr_chest_mono1_15bit_explicit_le.dcm").pixel_array
    shown = np.clip(((stored - 14999.5) / 29999 + 0.5) * 32767, 0, 32767)
    np.testing.assert_allclose(plain, shown.max() - shown, atol=0.01)
    assert plain[:, :20].mean() < plain[900:1100, 900:1000].mean()  # air beside the chest is dark, the spine bright


def test_real_extremity_reads(shared_data: Callable[[str], Path]) -> None:
    values, info = read_image(shared_data("dicom") / "cr_extremity_mono1_10bit_j2k_lossy.dcm")
    assert values.shape == (1760, 1760)
    assert info.bits == 10
    assert values.max() > 500


def test_real_header_without_pixels_says_what_to_do(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("dicom") / "cr_chest_mono1_12bit_explicit_le_32px_tiny.dcm"
    with pytest.raises(InputError, match="has no pixel data, only a header; expected a radiograph: fetch the whole"):
        read_image(path)


# ---- masks


def test_masks_of_every_habit(tmp_path: Path) -> None:
    inside = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    for name, values in {"binary": inside, "255": inside * 255, "deep": inside.astype(np.uint16) * 65535}.items():
        np.testing.assert_array_equal(read_mask(write_image(tmp_path / f"{name}.png", values)), inside)
    np.testing.assert_array_equal(read_mask(write_image(tmp_path / "bool.png", inside.astype(bool))), inside)
    ignore = write_image(tmp_path / "ignore.png", np.array([[0, 127, 255]], np.uint8))
    np.testing.assert_array_equal(read_mask(ignore), [[0, UNKNOWN, 1]])
    with pytest.raises(InputError, match="values up to 3"):
        read_mask(write_image(tmp_path / "labels.png", np.array([[0, 1, 3]], np.uint8)))
    square = np.zeros((32, 32), np.uint8)
    square[8:20, 8:20] = 255
    Image.fromarray(square).save(tmp_path / "lossy.jpg", quality=60)
    np.testing.assert_array_equal(read_mask(tmp_path / "lossy.jpg"), square // 255)


def test_union_of_masks() -> None:
    left, right = np.array([[1, 0, UNKNOWN, UNKNOWN]], np.uint8), np.array([[0, 0, 0, 1]], np.uint8)
    np.testing.assert_array_equal(unite_masks([left, right]), [[1, 0, UNKNOWN, 1]])
    with pytest.raises(InputError, match="one size"):
        unite_masks([left, right.T])


# ---- resampling


def _averaged(image: np.ndarray, grid: Grid) -> np.ndarray:
    """The definition, pixel by pixel."""
    out = np.zeros(grid.size)
    for i in range(grid.height):
        for j in range(grid.width):
            y, x = grid.y0 + i * grid.dy, grid.x0 + j * grid.dx
            rows = [max(0, min(y + grid.dy / 2, r + 0.5) - max(y - grid.dy / 2, r - 0.5)) for r in range(len(image))]
            columns = [
                max(0, min(x + grid.dx / 2, c + 0.5) - max(x - grid.dx / 2, c - 0.5)) for c in range(image.shape[1])
            ]
            out[i, j] = np.array(rows) @ image @ np.array(columns) / (grid.dy * grid.dx)
    return out


@pytest.mark.parametrize(
    "grid",
    [
        Grid.area((23, 31), (7, 5)),
        Grid.letterbox((23, 31), (12, 12)),
        Grid.letterbox((31, 23), (9, 20)),
        Grid.canvas((23, 31), (40, 60), (8, 10)),
        Grid.strided((23, 31), 5, (40, 40)),
        Grid.area((23, 31), (23, 31)),
    ],
    ids=["area", "letterbox wide", "letterbox tall", "canvas", "strided", "same"],
)
def test_resampling_is_the_exact_area_average(grid: Grid) -> None:
    size = (31, 23) if grid == Grid.letterbox((31, 23), (9, 20)) else (23, 31)
    image = np.random.default_rng(0).integers(0, 60000, size).astype(np.uint16)
    expected = _averaged(image, grid)
    sampled = resample(image, grid)
    assert sampled.dtype == np.uint16
    assert sampled.max() == 65535
    np.testing.assert_allclose(sampled, expected * 65535 / expected.max(), atol=0.51)


def test_resampling_agrees_with_opencv() -> None:
    image = np.random.default_rng(1).random((300, 260)).astype(np.float32)
    expected = cv2.resize(image, (52, 60), interpolation=cv2.INTER_AREA)
    sampled = resample(image, Grid.area((300, 260), (60, 52)))
    np.testing.assert_allclose(sampled, expected / expected.max() * 65535, atol=0.6)


def test_a_finer_grid_interpolates_linearly() -> None:
    image = np.random.default_rng(2).random((10, 8)).astype(np.float32)
    expected = cv2.resize(image, (24, 40), interpolation=cv2.INTER_LINEAR)
    sampled = resample(image, Grid.area((10, 8), (40, 24)))
    np.testing.assert_allclose(sampled, expected / expected.max() * 65535, atol=1)


def test_letterbox_pads_with_zero_and_nothing_else() -> None:
    sampled = resample(np.full((40, 20), 7, np.uint16), Grid.letterbox((40, 20), (16, 16)))
    assert (sampled[:, 4:12] == 65535).all()
    assert (sampled[:, :4] == 0).all()
    assert (sampled[:, 12:] == 0).all()


def test_black_image_and_tiny_images() -> None:
    assert (resample(np.zeros((9, 7), np.uint16), Grid.letterbox((9, 7), (4, 4))) == 0).all()
    assert resample(np.full((1, 1), 3, np.uint16), Grid.letterbox((1, 1), (4, 4))).min() == 65535


def test_mask_cells_are_inside_from_half_on() -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[:, 1:2] = 1  # half of the first 4x2 cell
    mask[:3, 2:4] = UNKNOWN  # three quarters of the second may be inside
    mask[0, 4:6] = UNKNOWN  # a quarter of the third cannot matter
    mask[:, 6:] = 1
    np.testing.assert_array_equal(resample_mask(mask, Grid.area((4, 8), (1, 4))), [[1, UNKNOWN, 0, 1]])


def test_mask_and_image_lie_on_the_same_pixels() -> None:
    mask = np.zeros((50, 40), np.uint8)
    mask[10:30, 5:21] = 1
    grid = Grid.letterbox((50, 40), (20, 20))
    expected = _averaged(mask, grid) >= 0.5
    np.testing.assert_array_equal(resample_mask(mask, grid), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "dcm"])
def test_any_damage_is_one_sentence(tmp_path: Path, kind: str) -> None:
    pixels, file = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8), tmp_path / f"whole.{kind}"
    whole = (write_dicom if kind == "dcm" else write_image)(file, pixels).read_bytes()
    random, refused = np.random.default_rng(1), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 6):
            damaged[place] = random.integers(0, 256)
        try:
            read_image(Upload(bytes(damaged[: random.integers(1, 2 * len(whole))]), file.name))
        except InputError:
            refused += 1
    assert refused > 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("element", [{"PhotometricInterpretation": "SECRET"}, {"VOILUTFunction": "SECRET"}])
def test_no_error_quotes_a_header(tmp_path: Path, element: dict[str, str]) -> None:
    window = {"WindowCenter": "2", "WindowWidth": "2"}
    file = write_dicom(tmp_path / "a.dcm", np.arange(16, dtype=np.uint16).reshape(4, 4), **element, **window)
    with pytest.raises(InputError, match="cannot be decoded") as refused:
        read_image(file)
    assert "SECRET" not in "".join(traceback.format_exception(refused.value))  # which --debug shows


# ---- headers that lie


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ({"Rows": [3, 4]}, "states no number of rows and columns"),
        ({"SamplesPerPixel": 65535}, "has 65535 samples per pixel; expected 1 .grey. or 3 .colour."),
        ({"Rows": 65535, "Columns": 65535}, "claims 65535x65535 pixels"),
        ({"PixelData": RAMP.tobytes() * 3}, "has pixel data for more than its 3x4 pixels"),
        ({"PixelData": RAMP.tobytes()[:10]}, "cannot be decoded"),
    ],
)
def test_a_dicom_header_that_lies_is_refused(tmp_path: Path, elements: dict[str, Any], says: str) -> None:
    path = write_dicom(tmp_path / "image.dcm", RAMP, **elements)
    with pytest.raises(InputError, match=says):
        read_image(path)


def test_a_size_that_is_none_is_named_by_the_header_alone(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "image.dcm", RAMP, Rows=[3, 4])
    with pytest.raises(InputError, match="states no number of rows"):
        image_size(path)
    path.write_bytes(path.read_bytes()[:400] + b"\x28\0\x10")
    with pytest.raises(InputError, match=r"is no readable DICOM file|states no number|has no rows"):
        image_size(path)


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a\0.png"], ids=["long", "null byte"])
@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_name_that_the_file_system_refuses(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match=r"cannot be opened \(.*\); check the path"):
        read(tmp_path / name)
