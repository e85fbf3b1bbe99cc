"""Pixels of a source image: read as the format says, then averaged onto a grid.

Resampling is the exact area average. A grid pixel at row y covers the source rows [y − dy/2, y + dy/2]; with the
overlaps W_y[i, r] = |cell i ∩ source pixel r| / dy the whole image is two sparse products, W_y · X · W_xᵀ. A grid finer
than the source averages over one source pixel instead, which is linear interpolation.

Axis order is (row, column) throughout. Of a DICOM header only what decodes the pixels is used; nothing of it is kept.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
import scipy.sparse
from PIL import Image, UnidentifiedImageError
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian

from radgaze.errors import InputError

if TYPE_CHECKING:
    from radgaze.gaze import Grid

__all__ = [
    "MAX_PIXELS",
    "UNKNOWN",
    "ImageInfo",
    "TooManyPixels",
    "Upload",
    "area_average",
    "image_size",
    "read_image",
    "read_mask",
    "resample",
    "resample_mask",
    "unite_masks",
]

MAX_PIXELS = 150_000_000  # a large radiograph has 25 million; more than this is a damaged or hostile header
UNKNOWN = 255

_BYTES_PER_PIXEL = 8  # of a DICOM file, inflated: 16 bits in three colours and a generous header
_INFLATED_AT_ONCE = 1 << 20
_CODESTREAM, _JP2_FILE = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "  # how JPEG 2000 starts, bare and in a file

_TIFF_PHOTOMETRIC, _TIFF_MIN_IS_WHITE = 262, 0

# What these say below an error, of a header or a picture's tags, quotes values. The filter is for threads: there
# catch_warnings of one may end while another reads.
for _library in ("pydicom", "PIL"):
    logging.getLogger(_library).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"pydicom\b")

_BAND_CELLS = 32
_BLOCK_ROWS = 64  # indexing through a table is five times faster while its indices stay in the cache

Pixels = npt.NDArray[np.uint16] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageInfo:
    """How an image was stored: file format, stored bits per sample, and the DICOM photometric interpretation."""

    format: str
    bits: int
    photometric: str


class TooManyPixels(InputError):
    """The header claims more pixels than are read."""


class Upload(io.BytesIO):
    """The bytes of an image file that lies in memory alone, under the name that errors call it by."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def read_image(path: Path | Upload) -> tuple[Pixels, ImageInfo]:
    """Read a PNG, JPEG, TIFF or DICOM image as brightness: larger is brighter, black is 0 or above.

    Colour becomes luminance (ITU-R 601, 8 bits), transparency is dropped. DICOM: modality LUT or rescale, then VOI LUT
    or window (the first of each), then MONOCHROME1 is inverted (the maximum minus the value); bits stored, sign and
    compressed transfer syntaxes are honoured. Where values are negative the minimum is subtracted.

    Returns:
        (H, W) array, uint16 where the values are whole numbers that fit, else float32; and how it was stored.

    Raises:
        InputError: the file is missing, damaged, of another kind, has several frames, no pixels, or absurdly many.
    """
    values, info = _read(path)
    return _as_brightness(values, path), info


def _read(path: Path | Upload) -> tuple[npt.NDArray[Any], ImageInfo]:
    with _file_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd header values; what cannot be decoded still raises
        return _read_dicom(path) if _is_dicom(path) else _read_picture(path)


@contextmanager
def _file_errors(path: Path | Upload) -> Iterator[None]:
    """Turn what the file system says of ``path`` into a sentence."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"Image {str(path)!r} does not exist; check the path in the table and the image folder."
        ) from None
    except IsADirectoryError:
        raise InputError(f"Image {str(path)!r} is a folder; expected a PNG, JPEG, TIFF or DICOM file.") from None
    except PermissionError:
        raise InputError(f"Image {str(path)!r} may not be read by this user; change its permissions.") from None
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte in it
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Image {str(path)!r} cannot be opened ({reason}); check the path.") from None


def image_size(path: Path | Upload, most: int | None = None) -> tuple[int, int]:
    """(H, W) of an image from its header, without decoding pixels.

    Raises:
        TooManyPixels: more than ``most``, ``MAX_PIXELS`` by default.
        InputError: as :func:`read_image`, as far as the header tells.
    """
    try:
        with _file_errors(path):
            if _is_dicom(path):
                return _stated_size(_open_dicom(path, most, stop_before_pixels=True), path, most)
            with _open_picture(path) as picture:
                return _checked_size(picture.height, picture.width, path, most)
    finally:
        if isinstance(path, Upload):
            path.seek(0)


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Read a mask image: (H, W) uint8 with 0 outside, 1 inside, 255 unknown.

    A mask whose maximum is 1 is binary. Otherwise values in the upper half of the range (8 or 16 bits) are inside, 0 is
    outside, and what lies between (127 by habit) is unknown. A JPEG is cut at half its range: its compression blurs the
    three values.

    Raises:
        InputError: as :func:`read_image`; or the values are small numbers that look like labels.
    """
    values, info = _read(path)
    if values.dtype != np.uint8:  # a mask of 8 bits is itself, without the passes over the pixels that others need
        values = _as_brightness(values, path)
    largest = int(values.max())
    if largest <= 1:
        return values.astype(np.uint8)
    half = 128 if largest <= 255 else 32768
    if largest < half - 1:
        raise InputError(
            f"Mask {str(path)!r} has values up to {largest}; expected 0 and 1, or 0 (outside), {half - 1} (unknown) "
            f"and {2 * half - 1} (inside): write one such file for each structure."
        )
    inside = (values >= half).view(np.uint8)
    if info.format != "JPEG":
        between = (values > 0) & (values < half)
        if between.any():  # writing through a mask costs several times as much as looking for it
            inside[between] = UNKNOWN
    return inside


def unite_masks(masks: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Union of masks (H, W) of one size: inside where any is, unknown where none is and any is unknown.

    Raises:
        InputError: the sizes differ.
    """
    sizes = {mask.shape for mask in masks}
    if len(sizes) > 1:
        raise InputError(f"Masks to unite have the sizes {sorted(sizes)}; expected one size, that of their image.")
    if len(masks) == 1:
        return masks[0]
    # Times 129 modulo 256, inside (1) exceeds unknown (255) exceeds outside (0); once more, they are themselves again.
    turn = np.uint8(129)
    united = masks[0] * turn
    for mask in masks[1:]:
        np.maximum(united, mask * turn, out=united)
    return np.multiply(united, turn, out=united)


def resample(image: npt.NDArray[Any], grid: Grid) -> npt.NDArray[np.uint16]:
    """Average an image (H, W) onto ``grid``: (h, w) uint16, the brightest pixel 65535, zero outside the image.

    Dividing by the maximum therefore gives [0, 1] whatever the source's range was.
    """
    averaged = area_average(image, grid)
    largest = averaged.max()
    if largest <= 0:
        return np.zeros(averaged.shape, np.uint16)
    return np.rint(averaged * (np.float32(65535) / largest)).astype(np.uint16)


def resample_mask(mask: npt.NDArray[np.uint8], grid: Grid) -> npt.NDArray[np.uint8]:
    """A mask (H, W) of 0, 1 and 255 onto ``grid``: 1 where at least half the cell is inside.

    A cell is unknown (255) where that depends on its unknown part. Outside the image is outside the mask.
    """
    tolerance = 1e-5  # the averages are float32: a cell that is half inside must count as such
    inside = area_average(mask == 1, grid)
    sampled = (inside >= 0.5 - tolerance).astype(np.uint8)
    if mask.max() == UNKNOWN:
        possible = inside + area_average(mask == UNKNOWN, grid) >= 0.5 - tolerance
        sampled[possible & (sampled == 0)] = UNKNOWN
    return sampled


def area_average(image: npt.NDArray[Any], grid: Grid) -> npt.NDArray[np.float32]:
    """An image (H, W) averaged onto ``grid``: (h, w) in the image's own units, zero outside it."""
    shrunk = np.zeros((grid.height, image.shape[1]), np.float32)
    for cells, pixels, weights in _bands(image.shape[0], grid.height, grid.y0, grid.dy):
        band = image[pixels]
        if band.any():  # most of a mask is empty
            shrunk[cells] = weights @ band.astype(np.float32)
    columns = _overlaps(image.shape[1], grid.width, grid.x0, grid.dx)
    return np.asarray((columns @ np.ascontiguousarray(shrunk.T)).T)


@lru_cache(maxsize=64)  # a data set has few image sizes
def _bands(source: int, count: int, start: float, step: float) -> list[tuple[slice, slice, scipy.sparse.csr_array]]:
    """:func:`_overlaps` cut into bands: some cells, the source pixels that reach them, and the weights between.

    A band of the image fits the cache as float32, the whole does not.
    """
    weights, bands = _overlaps(source, count, start, step), []
    for top in range(0, count, _BAND_CELLS):
        cells = slice(top, min(top + _BAND_CELLS, count))
        own = weights[cells]
        if own.nnz:
            pixels = slice(int(own.indices.min()), int(own.indices.max()) + 1)
            bands.append((cells, pixels, own[:, pixels]))
    return bands


@lru_cache(maxsize=64)  # a data set has few image sizes
def _overlaps(source: int, count: int, start: float, step: float) -> scipy.sparse.csr_array:
    """(count, source) weights: which share of each cell every source pixel covers, along one axis."""
    centres = start + step * np.arange(count, dtype=np.float64)
    half = max(step, 1.0) / 2
    if step < 1:  # interpolation: the window of a cell at the rim is kept inside the image
        inside = (centres >= -0.5) & (centres <= source - 0.5)
        centres = np.where(inside, np.clip(centres, 0, source - 1), -2 - half)
    lower, upper = centres - half, centres + half
    first = np.floor(lower + 0.5).astype(np.int64)
    pixels = first[:, None] + np.arange(int(np.ceil(2 * half)) + 1)
    shared = np.minimum(upper[:, None], pixels + 0.5) - np.maximum(lower[:, None], pixels - 0.5)
    kept = (shared > 1e-9) & (pixels >= 0) & (pixels < source)
    cells = np.broadcast_to(np.arange(count)[:, None], pixels.shape)
    weights = (shared[kept] / (2 * half)).astype(np.float32)
    return scipy.sparse.csr_array((weights, (cells[kept], pixels[kept])), shape=(count, source))


def _as_brightness(values: npt.NDArray[Any], path: Path | Upload) -> Pixels:
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(np.uint16, copy=False)
    if not np.issubdtype(values.dtype, np.integer):
        if not np.isfinite(values).all():
            raise InputError(f"Image {str(path)!r} has pixels that are not finite; expected numbers, export it again.")
        values = values.astype(np.float32)
    lowest = values.min()
    if lowest < 0:
        values = (values if values.dtype == np.float32 else values.astype(np.int64)) - lowest
    if np.issubdtype(values.dtype, np.integer) and values.max() <= 65535:
        return values.astype(np.uint16)
    return values.astype(np.float32)


def _checked_size(height: int, width: int, path: Path | Upload, most: int | None = None) -> tuple[int, int]:
    most = MAX_PIXELS if most is None else most
    if height < 1 or width < 1:
        raise InputError(f"Image {str(path)!r} has no rows or columns; expected an image, check what the file is.")
    if height * width > most:
        raise TooManyPixels(
            f"Image {str(path)!r} claims {height}x{width} pixels (height x width); expected at most {most:,} in "
            f"all, so the file is damaged or is no radiograph: leave it out."
        )
    return height, width


# ---- PNG, JPEG, TIFF


def _open_picture(path: Path | Upload) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here
        try:
            return Image.open(path, formats=("PNG", "JPEG", "TIFF"))
        except UnidentifiedImageError:
            raise InputError(
                f"Image {str(path)!r} is no PNG, JPEG, TIFF or DICOM file; convert it to one of these."
            ) from None
        except Image.DecompressionBombError:
            raise TooManyPixels(
                f"Image {str(path)!r} claims more than {MAX_PIXELS:,} pixels, so the file is damaged or is no "
                f"radiograph: leave it out."
            ) from None
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:  # Pillow's readers raise many kinds for damaged headers
            raise InputError(f"Image {str(path)!r} is damaged ({error}); fetch or export it again.") from error


def _read_picture(path: Path | Upload) -> tuple[npt.NDArray[Any], ImageInfo]:
    with _open_picture(path) as picture:
        _checked_size(picture.height, picture.width, path)
        name = picture.format or ""
        try:
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                raise InputError(
                    f"Image {str(path)!r} has {frames} frames; expected one radiograph, export the frame to use."
                )
            if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
                values = np.asarray(picture)
                bits = 32 if picture.mode in ("I", "F") else 16
                if name == "TIFF" and picture.getexif().get(_TIFF_PHOTOMETRIC) == _TIFF_MIN_IS_WHITE:
                    values = values.max() - values  # Pillow does this for 8 bits only
            else:
                # By way of RGB, so that palettes and transparency are resolved first.
                values = np.asarray(picture if picture.mode == "L" else picture.convert("RGB").convert("L"))
                bits = 8
        except InputError:
            raise
        except Exception as error:  # Pillow's readers raise many kinds for damaged data
            raise InputError(f"Image {str(path)!r} is damaged ({error}); fetch or export it again.") from error
    return values, ImageInfo(name, bits, "")


# ---- DICOM


def _is_dicom(path: Path | Upload) -> bool:
    if isinstance(path, Upload):
        start, suffix = bytes(path.getbuffer()[:132]), Path(path.name).suffix
    else:
        with path.open("rb") as file:
            start, suffix = file.read(132), path.suffix
    return start[128:] == b"DICM" or suffix.lower() in (".dcm", ".dicom")


def _open_dicom(path: Path | Upload, most: int | None = None, **options: Any) -> pydicom.Dataset:
    _refuse_swelling(path, _BYTES_PER_PIXEL * (MAX_PIXELS if most is None else most))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom remarks on every odd header value
            return pydicom.dcmread(path, **options)
    except pydicom.errors.InvalidDicomError:
        raise InputError(f"Image {str(path)!r} lacks the header of a DICOM file; fetch or export it again.") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # pydicom raises many kinds for damaged headers
        raise InputError(
            f"Image {str(path)!r} is no readable DICOM file ({type(error).__name__}); fetch or export it again."
        ) from None  # its message may quote the header, and a traceback would show it


def _stated_size(header: pydicom.Dataset, path: Path | Upload, most: int | None = None) -> tuple[int, int]:
    """(H, W) that a DICOM header states; pydicom reads an element's value only now, and it may be anything."""
    try:
        height, width = (int(header.get(name) or 0) for name in ("Rows", "Columns"))
    except Exception as error:  # whatever pydicom and int() make of an element of another type
        raise InputError(
            f"DICOM {str(path)!r} states no number of rows and columns ({type(error).__name__}); fetch or export it "
            "again."
        ) from None  # its message may quote the header, and a traceback would show it
    return _checked_size(height, width, path, most)


def _refuse_swelling(path: Path | Upload, most: int) -> None:
    """Refuse a deflated DICOM file that would inflate to more than ``most`` bytes; pydicom inflates all of it to read
    its header."""
    if isinstance(path, Upload):
        try:
            size = _inflated_size(path, most)
        finally:
            path.seek(0)
    else:
        with path.open("rb") as file:
            size = _inflated_size(file, most)
    if size > most:
        raise TooManyPixels(
            f"Image {str(path)!r} is a deflated DICOM file of more than {most:,} bytes once inflated; save it "
            "without deflating it."
        )


def _inflated_size(file: BinaryIO, most: int) -> int:
    """Bytes of the deflated part of a DICOM file, counted no further than just above ``most``; 0 if it has none.

    A file that cannot be read so far is left to pydicom, whose errors say why.
    """
    file.seek(128)
    if file.read(4) != b"DICM":
        return 0
    try:
        meta = _read_file_meta_info(file)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return 0
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        size, rest = 0, file.read()
        while rest and not inflating.eof and size <= most:
            size += len(inflating.decompress(rest, _INFLATED_AT_ONCE))
            rest = inflating.unconsumed_tail
        return size
    except Exception:  # as many kinds as pydicom raises for damaged headers
        return 0


def _refuse_other_size(dataset: pydicom.Dataset, path: Path | Upload) -> None:
    """Refuse a compressed image whose stream has another size than the header: the decoder would follow the stream."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    size = _stream_size(get_frame(dataset.PixelData, 0, number_of_frames=1))
    header = int(dataset.Rows), int(dataset.Columns)
    if size is not None and size != header:
        raise InputError(
            f"DICOM {str(path)!r} is {header[0]}x{header[1]} (height x width) by its header and {size[0]}x{size[1]} by "
            "its compressed image; fetch or export it again."
        )


def _stream_size(stream: bytes) -> tuple[int, int] | None:
    """(H, W) that a JPEG, JPEG-LS or JPEG 2000 stream says it has; None for other streams."""
    if stream.startswith((_CODESTREAM, _JP2_FILE)):
        right, bottom, left, top = struct.unpack_from(">4I", stream, stream.index(_CODESTREAM) + 8)
        return bottom - top, right - left
    if not stream.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, place)
        if marker == 0xFFFF:  # fill
            place += 1
            continue
        # start of frame: C0 to CF but Huffman tables (C4), extensions (C8), arithmetic conditioning (CC); F7 in JPEG-LS
        if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)):
            height, width = struct.unpack_from(">HH", stream, place + 5)
            return height, width
        place += 2 + length
    return None


def _read_dicom(path: Path | Upload) -> tuple[npt.NDArray[Any], ImageInfo]:
    dataset = _open_dicom(path)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise InputError(
            f"DICOM {str(path)!r} has no pixel data, only a header; expected a radiograph: fetch the whole object."
        )
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames > 1:
            raise InputError(
                f"DICOM {str(path)!r} has {frames} frames; expected one radiograph, export the frame to use."
            )
        size = _stated_size(dataset, path)
        samples = dataset.get("SamplesPerPixel", 1)
        if samples not in (1, 3):  # before a decoder makes room for them
            raise InputError(f"DICOM {str(path)!r} has {samples} samples per pixel; expected 1 (grey) or 3 (colour).")
        photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        info = ImageInfo("DICOM", int(dataset.get("BitsStored") or 0), photometric)
        _refuse_other_size(dataset, path)
        stored = dataset.pixel_array  # pydicom masks unused bits, extends the sign, and turns YBR into RGB
        if photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
        if stored.shape[:2] != size or stored.ndim > 3:  # pydicom takes data that are too long for further frames
            raise InputError(
                f"DICOM {str(path)!r} has pixel data for more than its {size[0]}x{size[1]} pixels (height x width); "
                "expected one radiograph, fetch or export it again."
            )
        if stored.ndim == 3:
            return _luminance(stored), info
        for empty in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"):
            if empty in dataset and dataset[empty].VM == 0:  # some devices write the element without a value
                del dataset[empty]
        shown = _through_luts(stored, dataset)
    except InputError:
        raise
    except Exception as error:  # the decoders raise many kinds for damaged data; all mean this file cannot be used
        raise InputError(
            f"DICOM {str(path)!r} cannot be decoded ({_reason(error)}); "
            f"fetch it again, or convert it to uncompressed DICOM or PNG."
        ) from None  # its message may quote the header, and a traceback would show it
    return (shown.max() - shown if photometric == "MONOCHROME1" else shown), info


def _reason(error: Exception) -> str:
    """What went wrong, without what the header says: only of missing or failing decoders is the message kept."""
    name, lines = type(error).__name__, str(error).strip().splitlines()
    return f"{name}: {lines[0]}" if lines and isinstance(error, RuntimeError) else name


def _through_luts(stored: npt.NDArray[Any], dataset: pydicom.Dataset) -> npt.NDArray[Any]:
    """Modality LUT or rescale, then VOI LUT or window.

    Both act on single values, so they are worked out once for every value in the image's range, not for every pixel.
    """
    if not np.issubdtype(stored.dtype, np.integer) or stored.dtype.itemsize > 2:
        return np.asarray(apply_voi_lut(apply_modality_lut(stored, dataset), dataset))
    lowest, highest = int(stored.min()), int(stored.max())
    values = np.arange(lowest, highest + 1).astype(stored.dtype)
    table = np.asarray(apply_voi_lut(apply_modality_lut(values, dataset), dataset))
    if np.issubdtype(table.dtype, np.floating):
        whole = np.rint(table)
        table = whole.astype(np.int64) if np.array_equal(whole, table) else table.astype(np.float32)
    if np.issubdtype(table.dtype, np.integer) and table.min() >= 0 and table.max() <= 65535:
        table = table.astype(np.uint16)  # a quarter of the bytes for every pixel that is looked up
    shown = np.empty(stored.shape, table.dtype)
    for rows in range(0, len(stored), _BLOCK_ROWS):
        block = slice(rows, rows + _BLOCK_ROWS)
        np.take(table, stored[block].astype(np.int32) - lowest, out=shown[block], mode="clip")
    return shown


def _luminance(colour: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """ITU-R 601 luminance of (H, W, 3); a grey image in colour stays bit-exact."""
    red, green, blue = (colour[..., channel].astype(np.int64) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
