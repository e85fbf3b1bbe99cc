"""REFLACX: dictated chest X-ray readings with gaze, ellipses around findings, and certainty of each label.

Bigolin Lanfredi et al., *REFLACX, a dataset of reports and eye-tracking data for localization of abnormalities in
chest x-rays*, Scientific Data 9:350 (2022); PhysioNet ``reflacx-xray-localization`` 1.0.0. The images are those of
MIMIC-CXR and lie elsewhere.

A study is one reading; several readings of one image share its pixels. The labels of phase 1 differ from those of
phases 2 and 3: the cohort has the labels of all phases asked for, and a label that a reading's phase did not ask
about is unknown (None), not absent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

from radgaze.cohort.sources.csv_files import read_numbers, read_rows
from radgaze.cohort.sources.engine import RawStudy, write_cohort
from radgaze.cohort.sources.mimic import BrokenStudies, MimicImages, find_folder
from radgaze.cohort.store import Cohort
from radgaze.cohort.study import Box
from radgaze.errors import InputError, nearest
from radgaze.gaze import Gaze

__all__ = ["PRESENT", "import_reflacx"]

PRESENT = 3  # certainty, 0 to 5, from which a label counts as present ("possibly" and above)

_KINDS = ("fixations", "samples")
_PHASES = (1, 2, 3)
_SHEET_COLUMNS = (
    "id",
    "split",
    "eye_tracking_data_discarded",
    "image",
    "dicom_id",
    "subject_id",
    "image_size_x",
    "image_size_y",
)
_FREE_TEXT = "Other"  # findings without a column of their own, joined by |
_LONGEST_NAME = 255  # bytes of a folder's, on the file systems there are
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_POSITION = ("x_position", "y_position")
_PX_PER_DEGREE = ("angular_resolution_x_pixels_per_degree", "angular_resolution_y_pixels_per_degree")
_SHOWN = tuple(f"{corner}_shown_from_image" for corner in _CORNERS)


def import_reflacx(
    root: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    name: str = "REFLACX",
    gaze: str = "fixations",
    phases: Sequence[int] = _PHASES,
    size: tuple[int, int] = (640, 512),
    fit: str = "letterbox",
    canvas: tuple[int, int] | None = None,
    split: str = "patient",
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Cohort:
    """Import REFLACX into the cohort ``out``, a study for each reading.

    Labels are 1 at a certainty of 3 or more (of 5), or where the sheet says True; the text of ``Other`` is the
    attribute ``other``. Boxes: an ellipse for each label of each row of ``anomaly_location_ellipses.csv``, with its
    certainty, and the box ``chest``. Gaze is in image pixels and keeps, for each point, the pixels per degree of
    visual angle and the rectangle of the image that was on screen; times count from the start of the dictation and
    may be negative.

    Args:
        root: folder with ``main_data``, or one up to two levels above it; ``gaze_data`` lies beside it.
        images: any folder of MIMIC-CXR's or MIMIC-CXR-JPG's tree (or a flat one) that holds the images as .dcm, .png
            or .jpg.
        out: folder to make.
        gaze: ``"fixations"``, or ``"samples"`` at 1,000 Hz (points without the eye are invalid).
        name: of the cohort, as reports will call it.
        phases: of the data set's three, those to import.
        split: ``"patient"``, ``"image"``, or ``"source"``: the data set's own train, validate and test, refused where
            a patient is on two sides.
        size, fit, canvas, fractions, seed, workers, engine, address, strict, overwrite, progress: see
            :func:`~radgaze.cohort.sources.engine.write_cohort`.

    A reading whose eye tracking was discarded stays, without gaze. A reading is left out, by name and with the
    reason, whose image or gaze is missing or unreadable, whose image has another size than the sheet says, or whose
    labels are no certainties. The cohort's counts hold what was passed over.

    Raises:
        InputError: a sheet is missing or damaged or lacks a column, an argument is none of its choices, the source's
            split leaks patients, or, with ``strict``, a reading is broken.
    """
    if gaze not in _KINDS:
        raise InputError(f"gaze is {gaze!r}; {nearest(gaze, _KINDS)}.")
    phases = sorted(set(phases))
    if not phases or not set(phases) <= set(_PHASES):
        raise InputError(f"phases are {phases}; expected some of {list(_PHASES)}.")
    main = find_folder(Path(root), "metadata_phase_*.csv", "REFLACX")
    gaze_folder = main.parent / "gaze_data"
    if gaze == "samples" and not gaze_folder.is_dir():
        raise InputError(f"{str(gaze_folder)!r} does not exist; download gaze_data, or import the fixations.")
    files = MimicImages(Path(images))
    sheets = {phase: _sheet(main / f"metadata_phase_{phase}.csv") for phase in phases}
    labels_of = {
        phase: [name for name in sheet[0] if name not in (*_SHEET_COLUMNS, _FREE_TEXT)]
        for phase, sheet in sheets.items()
    }
    classes = sorted({name for names in labels_of.values() for name in names})
    rows = [(phase, row) for phase, sheet in sheets.items() for row in sheet]

    counts: Counter[str] = Counter({"readings discarded by the source, kept without gaze": 0, "images missing": 0})
    broken = BrokenStudies(strict)
    raws: list[RawStudy] = []
    console = rich.console.Console(stderr=True)
    for phase, row in rich.progress.track(rows, "Reading boxes", console=console, disable=not progress):
        reading = _Reading(phase, row, labels_of[phase])
        try:
            raws.append(reading.study(main, gaze_folder, gaze, files, counts))
        except InputError as error:
            broken.leave_out(reading.name, error)
    return write_cohort(
        raws,
        Path(out),
        name=name,
        source=f"reflacx, {gaze}, phases {', '.join(map(str, phases))}",
        size=size,
        fit=fit,
        canvas=canvas,
        task="multilabel",
        classes=classes,
        gaze_kind=gaze,
        counts=counts,
        left_out=broken.left_out,
        split=split,
        fractions=fractions,
        seed=seed,
        workers=workers,
        engine=engine,
        address=address,
        strict=strict,
        overwrite=overwrite,
        progress=progress,
    )


def _sheet(path: Path) -> list[dict[str, str | None]]:
    rows = read_rows(path, _SHEET_COLUMNS)
    if not rows:
        raise InputError(f"{str(path)!r} has no rows; copy it from the data set again, or import the other phases.")
    return rows


@dataclass(frozen=True)
class _Reading:
    """A row of ``metadata_phase_N.csv``."""

    phase: int
    row: Mapping[str, str | None]
    labels: Sequence[str]

    @property
    def name(self) -> str:
        return self.row["id"] or f"a row without id in metadata_phase_{self.phase}.csv"

    def study(self, main: Path, gaze_folder: Path, kind: str, files: MimicImages, counts: Counter[str]) -> RawStudy:
        name = self._text("id")
        if "/" in name or name in (".", "..") or len(name.encode()) > _LONGEST_NAME:
            raise InputError(f"its id is {name[:40]!r}; expected the name of a folder, for example 'P102R558314'")
        discarded = _required_flag(self.row["eye_tracking_data_discarded"], "eye_tracking_data_discarded")
        trial = re.fullmatch(r"P[12](\d\d)R\d+", name)
        raw = RawStudy(
            study_id=name,
            patient_id=self._text("subject_id"),
            image=self._image(files, counts),
            labels={label: _presence(label, self.row[label]) for label in self.labels},
            boxes=_boxes(main / name, counts),
            split=self._text("split"),
            attributes={
                "phase": self.phase,
                "trial": int(trial[1]) if trial else None,
                "dicom_id": self._text("dicom_id"),
                "other": self.row.get(_FREE_TEXT),
                "source_split": self._text("split"),
                "eye_tracking_discarded": discarded,
            },
            source_size=(self._pixels("image_size_y"), self._pixels("image_size_x")),
        )
        if discarded:
            counts["readings discarded by the source, kept without gaze"] += 1
        elif kind == "fixations":
            raw.gaze = partial(_fixations, main / name / "fixations.csv")
        else:
            raw.gaze = partial(_samples, gaze_folder / name / "gaze.csv")
        return raw

    def _image(self, files: MimicImages, counts: Counter[str]) -> Path:
        path = self._text("image")
        try:
            return files.find(path)
        except InputError:
            counts["images missing"] += 1
            raise

    def _text(self, column: str) -> str:
        value = self.row[column]
        if value is None:
            raise InputError(f"its {column} is empty in metadata_phase_{self.phase}.csv")
        return value

    def _pixels(self, column: str) -> int:
        text = self._text(column)
        number = _number(text)
        if number is None or number != int(number) or number < 1:
            raise InputError(f"its {column} is {text!r}; expected a whole number of pixels")
        return int(number)


def _presence(label: str, text: str | None) -> float | None:
    """1, 0 or None (unknown) from a certainty of 0 to 5 or from True or False."""
    if text is None:
        return None
    flag, certainty = _flag(text), _number(text)
    if flag is not None:
        return float(flag)
    if certainty is None or not 0 <= certainty <= 5:
        raise InputError(f"its {label!r} is {text!r}; expected a certainty from 0 to 5, or True or False")
    return float(certainty >= PRESENT)


def _flag(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text.lower())


def _required_flag(text: str | None, what: str) -> bool:
    flag = _flag(text or "")
    if flag is None:
        raise InputError(f"its {what} is {text!r}; expected True or False")
    return flag


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _fixations(path: Path) -> Gaze:
    start, end = "timestamp_start_fixation", "timestamp_end_fixation"
    columns = read_numbers(path, [start, end, *_POSITION, *_PX_PER_DEGREE, *_SHOWN])
    return _points(columns, columns[start], columns[end] - columns[start])


def _samples(path: Path) -> Gaze:
    time = "timestamp_sample"
    columns = read_numbers(path, [time, *_POSITION, *_PX_PER_DEGREE, *_SHOWN])
    return _points(columns, columns[time], None)


def _points(columns: Mapping[str, np.ndarray], t: np.ndarray, duration: np.ndarray | None) -> Gaze:
    x, y = (columns[name] for name in _POSITION)
    return Gaze(
        x,
        y,
        t=t,
        duration=duration,
        valid=np.isfinite(x) & np.isfinite(y),
        px_per_degree=np.stack([columns[name] for name in _PX_PER_DEGREE], axis=1),
        shown=np.stack([columns[name] for name in _SHOWN], axis=1),
    )


def _boxes(folder: Path, counts: Counter[str]) -> list[Box]:
    """The chest's box and an ellipse for each label of each finding. A file that is not there counts as missing."""
    boxes: list[Box] = []
    chest = folder / "chest_bounding_box.csv"
    if chest.is_file():
        boxes += [Box("chest", *_corners(row, "chest box")) for row in read_rows(chest, _CORNERS)]
    else:
        counts["files missing: chest_bounding_box.csv"] += 1

    ellipses = folder / "anomaly_location_ellipses.csv"
    if not ellipses.is_file():
        counts["files missing: anomaly_location_ellipses.csv"] += 1
        return boxes
    for row in read_rows(ellipses, [*_CORNERS, "certainty"]):
        labels = [name for name in row if name not in (*_CORNERS, "certainty")]
        stated = [label for label in labels if _required_flag(row[label], f"ellipse's {label!r}")]
        certainty = None if row["certainty"] is None else _number(row["certainty"])
        corners = _corners(row, "ellipse")
        boxes += [Box(label, *corners, shape="ellipse", certainty=certainty) for label in stated]
        counts["ellipses without a label, skipped"] += not stated
    return boxes


def _corners(row: Mapping[str, str | None], what: str) -> tuple[float, float, float, float]:
    corners = [_number(row[name] or "") for name in _CORNERS]
    xmin, ymin, xmax, ymax = corners
    if xmin is None or ymin is None or xmax is None or ymax is None:
        shown = ", ".join(f"{name}={row[name] or 'empty'}" for name in _CORNERS)
        raise InputError(f"its {what} has {shown}; expected four numbers")
    return xmin, ymin, xmax, ymax
