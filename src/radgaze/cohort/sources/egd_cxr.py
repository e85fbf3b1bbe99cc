"""EGD-CXR: chest X-rays with a radiologist's gaze, dictation, anatomy masks and three classes.

Karargyris et al., *Creation and validation of a chest X-ray dataset with eye-tracking and report dictation for AI
development*, Scientific Data 8:92 (2021); PhysioNet ``egd-cxr`` 1.0.0. The images are those of MIMIC-CXR and lie
elsewhere.

Points: the MT-UNet and GG-CAM papers use every raw sample inside the image and ask for neither the tracker's validity
flag nor blinks; so does this importer. ``drop_invalid`` and ``drop_blinks`` mark such points invalid, which keeps
them from ever being rendered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from radgaze.cohort.pixels import image_size
from radgaze.cohort.sources.csv_files import read_rows
from radgaze.cohort.sources.engine import RawStudy, write_cohort
from radgaze.cohort.sources.gaze_table import SCREEN, GazeTable, on_image, read_gaze_table
from radgaze.cohort.sources.mimic import BrokenStudies, MimicImages, find_folder
from radgaze.cohort.store import Cohort
from radgaze.cohort.study import Box
from radgaze.errors import InputError, nearest
from radgaze.gaze import Gaze

__all__ = ["CLASSES", "STRUCTURES", "import_egd_cxr"]

CLASSES = ("Normal", "CHF", "pneumonia")
STRUCTURES = ("left_lung", "right_lung", "lungs", "mediastinum", "aortic_knob")

GAZE_FILES = {"samples": "eye_gaze.csv", "fixations": "fixations.csv"}

# Where a class shows itself, for measuring localisation.
_CLASS_STRUCTURES = {"CHF": ["mediastinum"], "pneumonia": ["lungs"]}

_MASK_FOLDER = "audio_segmentation_transcripts"
_MASK_FILES = {
    "left_lung": ("left_lung.png",),
    "right_lung": ("right_lung.png",),
    "mediastinum": ("mediastanum.png", "mediastinum.png"),  # the first is how the data set spells it
    "aortic_knob": ("aortic_knob.png",),
}
_CORNERS = ("x1", "y1", "x2", "y2")
_SIDES = ("top", "bottom", "left", "right")
_NAMED_ELSEWHERE = ("dicom_id", "path", "patient_id", *CLASSES)


def import_egd_cxr(
    root: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    name: str = "EGD-CXR",
    gaze: str = "samples",
    drop_invalid: bool = False,
    drop_blinks: bool = False,
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
    """Import EGD-CXR into the cohort ``out``.

    A study is an image, named by its ``dicom_id``; its label is the one-hot class. Masks: left and right lung, their
    union ``lungs`` where both are there, mediastinum, aortic knob. Boxes: the anatomies of ``bounding_boxes.csv``.
    The other columns of the master sheet become attributes (the sheet's ``study_id`` is ``mimic_study_id``).

    Args:
        root: folder with ``master_sheet.csv``, or one up to three levels above it.
        images: any folder of MIMIC-CXR's or MIMIC-CXR-JPG's tree (or a flat one) that holds the images as .dcm, .png
            or .jpg.
        out: folder to make.
        gaze: ``"samples"`` (``eye_gaze.csv``, about 60 Hz, ``t`` since the image appeared) or ``"fixations"``
            (``fixations.csv``, ``t`` the start and ``duration`` of each).
        name: of the cohort, as reports will call it.
        drop_invalid: mark points invalid where the tracker does (FPOGV = 0).
        drop_blinks: mark points of a blink (BKID > 0) invalid.
        size, fit, canvas, split, fractions, seed, workers, engine, address, strict, overwrite, progress: see
            :func:`~radgaze.cohort.sources.engine.write_cohort`.

    A study is left out, by name and with the reason, whose row is not one-hot, occurs twice or names no patient, or
    whose image or a mask is missing, unreadable or of another size. A study without gaze, masks or boxes stays. The
    cohort's counts hold what was passed over.

    Raises:
        InputError: a table is missing or damaged or lacks a column, an argument is none of its choices, or, with
            ``strict``, a study is broken.
    """
    if gaze not in GAZE_FILES:
        raise InputError(f"gaze is {gaze!r}; {nearest(gaze, GAZE_FILES)}.")
    if split == "source":
        raise InputError("split is 'source' but EGD-CXR states none; choose 'patient', or 'image' to mimic the papers.")
    folder = find_folder(Path(root), "master_sheet.csv", "EGD-CXR")
    files = MimicImages(Path(images))
    sheet = read_rows(folder / "master_sheet.csv", ["dicom_id", "patient_id", *CLASSES])
    attributes = _attributes(sheet)
    names = [row["dicom_id"] for row in sheet if row["dicom_id"] is not None]
    table = read_gaze_table(folder / GAZE_FILES[gaze], names, fixations=gaze == "fixations")
    counts = Counter({**table.counts, "images missing": 0})
    boxes, damaged_boxes = _boxes(folder / "bounding_boxes.csv", set(names), counts)
    repeated = {name for name, count in Counter(names).items() if count > 1}

    broken = BrokenStudies(strict)
    raws: list[RawStudy] = []
    for number, row in enumerate(sheet):
        study = row["dicom_id"] or f"row {number + 1} of master_sheet.csv"
        try:
            if study in repeated:
                raise InputError(f"{study!r} has {names.count(study)} rows in master_sheet.csv; expected one")
            label = _label(row)
            image = _find_image(files, row, counts)
            if study in damaged_boxes:
                raise damaged_boxes[study]
            points = table.of(study)
            raws.append(
                RawStudy(
                    study_id=study,
                    patient_id=_patient(row),
                    image=image,
                    label=label,
                    masks=_masks(folder / _MASK_FOLDER / study, counts),
                    gaze=None if points is None else partial(_gaze, points, row, image, drop_invalid, drop_blinks),
                    boxes=boxes.get(study, ()),
                    attributes=attributes[number],
                )
            )
        except InputError as error:
            broken.leave_out(study, error)
    counts["studies without gaze"] = sum(raw.gaze is None for raw in raws)
    return write_cohort(
        raws,
        Path(out),
        name=name,
        source=f"egd-cxr, {gaze} of {GAZE_FILES[gaze]}",
        size=size,
        fit=fit,
        canvas=canvas,
        task="multiclass",
        classes=CLASSES,
        structures=STRUCTURES,
        class_structures=_CLASS_STRUCTURES,
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


def _label(row: Mapping[str, str | None]) -> str:
    stated = {name: row[name] for name in CLASSES}
    try:
        present = [float(value or "nan") for value in stated.values()]
    except ValueError:
        present = []
    if sorted(present) != [0, 0, 1]:
        shown = ", ".join(f"{name}={value or 'empty'}" for name, value in stated.items())
        raise InputError(f"its row is not one-hot ({shown}); expected one 1 and two 0")
    return CLASSES[present.index(1)]


def _patient(row: Mapping[str, str | None]) -> str:
    patient = row["patient_id"]
    if patient is None:
        raise InputError("its row has no patient_id; splits are by patient")
    return patient


def _find_image(files: MimicImages, row: Mapping[str, str | None], counts: Counter[str]) -> Path:
    name = row["dicom_id"]
    if name is None:
        raise InputError("its row has no dicom_id")
    path = row.get("path") or name
    if Path(path.replace("\\", "/")).stem != name:
        raise InputError(f"its row has the path {path!r}; expected a file named {name}")
    try:
        return files.find(path)
    except InputError:
        counts["images missing"] += 1
        raise


def _masks(folder: Path, counts: Counter[str]) -> dict[str, Path | tuple[Path, ...]]:
    masks: dict[str, Path | tuple[Path, ...]] = {}
    for structure, spellings in _MASK_FILES.items():
        file = next((folder / spelling for spelling in spellings if (folder / spelling).is_file()), None)
        if file is None:
            counts[f"masks of {structure} missing"] += 1
        else:
            masks[structure] = file
    left, right = masks.get("left_lung"), masks.get("right_lung")
    if isinstance(left, Path) and isinstance(right, Path):  # one lung alone would call the other one background
        masks["lungs"] = (left, right)
    return masks


def _gaze(points: GazeTable, row: Mapping[str, str | None], image: Path, drop_invalid: bool, drop_blinks: bool) -> Gaze:
    x, y = points.x, points.y
    if points.screen:
        x, y = on_image(x, y, image_size(image), _pads(row))
    valid = np.isfinite(x) & np.isfinite(y)
    if drop_invalid:
        valid &= points.tracked
    if drop_blinks:
        valid &= ~points.blink
    return Gaze(x, y, t=points.t, duration=points.duration, valid=valid)


def _pads(row: Mapping[str, str | None]) -> tuple[float, float, float, float]:
    """Screen pixels around the image: ``image_top_pad`` and so on, ``image_top`` in older preparations."""
    pads = []
    for side in _SIDES:
        stated = row.get(f"image_{side}_pad") or row.get(f"image_{side}")
        try:
            pads.append(float(stated or ""))
        except ValueError:
            raise InputError(
                f"its image_{side}_pad is {stated!r}; expected screen pixels, which gaze on the screen needs"
            ) from None
    top, bottom, left, right = pads
    if min(pads) < 0 or not (left + right < SCREEN[0] and top + bottom < SCREEN[1]):
        raise InputError(
            f"its pads are {pads} (top, bottom, left, right); expected some of the screen left between them"
        )
    return top, bottom, left, right


def _boxes(
    path: Path, images: Collection[str], counts: Counter[str]
) -> tuple[dict[str, list[Box]], dict[str, InputError]]:
    """Boxes of each image, and why those of an image cannot be read. The file's order is x1, x2, y1, y2."""
    if not path.exists():
        counts["files missing: bounding_boxes.csv"] += 1
        return {}, {}
    boxes: dict[str, list[Box]] = {}
    damaged: dict[str, InputError] = {}
    for row in read_rows(path, ["dicom_id", "bbox_name", *_CORNERS]):
        image, name = row["dicom_id"], row["bbox_name"] or ""
        if image is None or image not in images:
            counts["boxes of images that are not in the sheet, skipped"] += 1
            continue
        try:
            xmin, ymin, xmax, ymax = (float(row[column] or "") for column in _CORNERS)
        except ValueError:
            shown = ", ".join(f"{column}={row[column] or 'empty'}" for column in _CORNERS)
            damaged[image] = InputError(f"its box {name!r} has {shown}; expected four numbers")
            continue
        if xmin == xmax or ymin == ymax:
            counts["boxes without an area, skipped"] += 1
            continue
        try:
            boxes.setdefault(image, []).append(Box(name, xmin, ymin, xmax, ymax))
        except InputError as error:
            damaged[image] = error
    return boxes, damaged


def _attributes(sheet: Sequence[Mapping[str, str | None]]) -> list[dict[str, str | float | int | None]]:
    """What else the sheet says, a dict for each row. A column of numbers only is of that type; codes stay text."""
    attributes: list[dict[str, str | float | int | None]] = [{} for _ in sheet]
    for column in sheet[0] if sheet else ():
        if column in _NAMED_ELSEWHERE:
            continue
        kind = _kind(column, [value for row in sheet if (value := row[column]) is not None])
        for row, own in zip(sheet, attributes, strict=True):
            value = row[column]
            own["mimic_study_id" if column == "study_id" else column] = None if value is None else kind(value)
    return attributes


def _kind(column: str, values: Sequence[str]) -> type[str] | type[int] | type[float]:
    if column.endswith("_icd") or any(re.match(r"[+-]?0\d", value) for value in values):  # 0389 is a code, not 389
        return str
    if all(re.fullmatch(r"[+-]?\d{1,15}", value) for value in values):
        return int
    return float if all(re.fullmatch(r"[+-]?\d+(\.\d*)?", value) for value in values) else str
