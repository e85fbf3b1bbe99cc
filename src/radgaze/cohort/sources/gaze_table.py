"""The gaze file of EGD-CXR, 1.5 million rows of 37 columns, cut into the rows of each image.

Only the columns that are needed are decoded, image ids as codes; the table is sorted once (not at all if it is in
order, as the published file is) and an image's rows are then a slice. A filter over the whole table for each image,
as is common, would read it a thousand times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from radgaze.cohort.sources.csv_files import read_columns, read_header

__all__ = ["SCREEN", "GazeTable", "on_image", "read_gaze_table"]

SCREEN = (1920, 1080)  # pixels, width and height, of the monitor of EGD-CXR

_IMAGE = "DICOM_ID"
_TIME = "Time (in secs)"
_ON_IMAGE = ("X_ORIGINAL", "Y_ORIGINAL")
_ON_SCREEN = ("FPOGX", "FPOGY")
_DURATION, _VALID, _BLINK = "FPOGD", "FPOGV", "BKID"
_CALIBRATION_ID_LENGTH = 39  # an image's id has 44 characters

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GazeTable:
    """N gaze rows in order of image, then of time.

    Attributes:
        x, y: (N,) column and row in pixels of the original image, below zero where the gaze is off it; with
            ``screen``, fractions of the screen instead. NaN where the file has none.
        t: (N,) seconds since the image appeared.
        duration: (N,) seconds; for fixations only.
        tracked: (N,) the tracker calls the point of gaze valid (FPOGV).
        blink: (N,) the row belongs to a blink (BKID > 0).
        screen: whether x, y are on the screen (older preparations lack the original coordinates); see :func:`on_image`.
        rows: image id to its slice, for the images that have rows.
        counts: what was read, and what was passed over.
    """

    x: Numbers
    y: Numbers
    t: Numbers
    duration: Numbers | None
    tracked: Flags
    blink: Flags
    screen: bool
    rows: dict[str, slice]
    counts: Counter[str]

    def of(self, image: str) -> GazeTable | None:
        """The rows of one image (views), or None where there are none."""
        rows = self.rows.get(image)
        if rows is None:
            return None
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            t=self.t[rows],
            duration=None if self.duration is None else self.duration[rows],
            tracked=self.tracked[rows],
            blink=self.blink[rows],
        )


def read_gaze_table(path: Path, images: Sequence[str], *, fixations: bool = False) -> GazeTable:
    """Read ``eye_gaze.csv`` or ``fixations.csv``; keep the rows of ``images``.

    Args:
        images: ids of the images wanted.
        fixations: the file holds a row for each fixation, the last of its samples; ``t`` is then the fixation's start,
            Time - FPOGD, as everywhere else in radgaze, and ``duration`` is FPOGD.

    Raises:
        InputError: the file is missing or damaged or lacks a column.
    """
    screen = not set(_ON_IMAGE) <= set(read_header(path))
    x_name, y_name = _ON_SCREEN if screen else _ON_IMAGE
    types: dict[str, pa.DataType] = {
        _IMAGE: pa.dictionary(pa.int32(), pa.string()),
        **dict.fromkeys((x_name, y_name, _TIME), pa.float64()),
        **dict.fromkeys((_VALID, _BLINK), pa.float32()),
    }
    if fixations:
        types[_DURATION] = pa.float64()
    table = read_columns(path, types)

    ids = table[_IMAGE].unique(maintain_order=True)
    names, name_codes = ids.to_list(), ids.to_physical().to_numpy()
    codes = table[_IMAGE].to_physical().to_numpy()
    rows_per_code = np.bincount(codes)
    counts = _count_rows({name: int(rows_per_code[code]) for name, code in zip(names, name_codes, strict=True)}, images)
    # Images are numbered in the order of the file, which then needs no sorting.
    wanted = set(images)
    number = np.full(len(rows_per_code), -1, np.int32)
    for position, (name, code) in enumerate(zip(names, name_codes, strict=True)):
        if name in wanted:
            number[code] = position
    image_of = number[codes]

    t = table[_TIME].to_numpy(writable=True)
    duration = table[_DURATION].to_numpy(writable=True) if fixations else None
    if duration is not None:
        t = t - duration
    chosen = _in_order(image_of, t)
    image_of = image_of[chosen]
    starts = np.flatnonzero(np.diff(image_of, prepend=-1))
    bounds = pairwise([*starts.tolist(), len(image_of)])
    result = GazeTable(
        x=table[x_name].to_numpy(writable=True)[chosen],
        y=table[y_name].to_numpy(writable=True)[chosen],
        t=t[chosen],
        duration=None if duration is None else duration[chosen],
        tracked=(table[_VALID].to_numpy() > 0)[chosen],
        blink=(table[_BLINK].to_numpy() > 0)[chosen],
        screen=screen,
        rows={names[image_of[start]]: slice(start, end) for start, end in bounds},
        counts=counts,
    )
    counts["gaze rows in a blink (BKID > 0)"] = int(result.blink.sum())
    counts["gaze rows the tracker calls invalid (FPOGV = 0)"] = int((~result.tracked).sum())
    return result


def _count_rows(rows_of: Mapping[str, int], images: Sequence[str]) -> Counter[str]:
    calibration = {name for name in rows_of if len(name) == _CALIBRATION_ID_LENGTH}
    strange = rows_of.keys() - set(images) - calibration
    return Counter(
        {
            "gaze rows in the file": sum(rows_of.values()),
            "gaze rows of calibration screens, skipped": sum(rows_of[name] for name in calibration),
            "gaze rows of images that are not in the sheet, skipped": sum(rows_of[name] for name in strange),
            "images with gaze that are not in the sheet": len(strange),
        }
    )


def _in_order(image_of: npt.NDArray[np.int32], t: Numbers) -> npt.NDArray[np.int64] | slice:
    """Which rows to take so that images (-1: not wanted) follow one another and time never runs back within one."""
    image_steps, time_steps = np.diff(image_of), np.diff(t)
    if (image_of >= 0).all() and ((image_steps > 0) | (image_steps == 0) & (time_steps >= 0)).all():
        return slice(None)
    wanted = np.flatnonzero(image_of >= 0)
    return wanted[np.lexsort((t[wanted], image_of[wanted]))]


def on_image(
    x: Numbers, y: Numbers, size: tuple[int, int], pads: tuple[float, float, float, float]
) -> tuple[Numbers, Numbers]:
    """Fractions of the screen to pixels of the image shown on it, as EGD-CXR computed X_ORIGINAL and Y_ORIGINAL.

    X = int(W / (1920 - left - right) * (1920 x - left)), Y alike; a point on a pad becomes (-1, -1). The image was
    shown with an odd height or width padded by one pixel.

    Args:
        size: (H, W) of the image.
        pads: (top, bottom, left, right) screen pixels around the image.
    """
    top, bottom, left, right = pads
    height, width = (length + length % 2 for length in size)
    screen_x, screen_y = x * SCREEN[0], y * SCREEN[1]
    inside = (left < screen_x) & (screen_x < SCREEN[0] - right) & (top < screen_y) & (screen_y < SCREEN[1] - bottom)
    lost = np.isnan(x) | np.isnan(y)

    def place(pixels: Numbers) -> Numbers:
        return np.where(lost, np.nan, np.where(inside, np.floor(pixels), -1.0))

    columns = width / (SCREEN[0] - left - right) * (screen_x - left)
    rows = height / (SCREEN[1] - top - bottom) * (screen_y - top)
    return place(columns), place(rows)
