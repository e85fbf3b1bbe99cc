"""The sheets of EGD-CXR and REFLACX, trees of small files, through their importers (writing left out)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.choices import Choices, Harness, edited, refusals
from fuzz.scratch import scratch
from fuzz.tables import ODD, written
from radgaze.cohort.sources import egd_cxr, reflacx
from radgaze.cohort.sources.csv_files import read_numbers, read_rows
from radgaze.cohort.sources.engine import RawStudy

__all__ = ["HARNESSES"]

A, B = (f"{digit * 8}-" * 4 + digit * 8 for digit in "ab")  # ids as long as the real ones

MASTER = ("dicom_id", "path", "patient_id", "Normal", "CHF", "pneumonia", "study_id", "image_top_pad",
          "image_bottom_pad", "image_left_pad", "image_right_pad", "age", "dx1_icd")  # fmt: skip
EYE_GAZE = ("DICOM_ID", "Time (in secs)", "FPOGX", "FPOGY", "FPOGD", "FPOGV", "BKID", "X_ORIGINAL", "Y_ORIGINAL")
BOUNDING = ("dicom_id", "bbox_name", "x1", "x2", "y1", "y2")
METADATA = ("id", "split", "eye_tracking_data_discarded", "image", "dicom_id", "subject_id", "image_size_x",
            "image_size_y", "Atelectasis", "Support devices", "Other")  # fmt: skip
SHARED = ("angular_resolution_x_pixels_per_degree", "angular_resolution_y_pixels_per_degree", "xmin_shown_from_image",
          "ymin_shown_from_image", "xmax_shown_from_image", "ymax_shown_from_image")  # fmt: skip
FIXATIONS = ("timestamp_start_fixation", "timestamp_end_fixation", "x_position", "y_position", *SHARED)
SAMPLES = ("timestamp_sample", "x_position", "y_position", *SHARED)
ELLIPSES = ("xmin", "ymin", "xmax", "ymax", "certainty", "Atelectasis", "Support devices")
CHEST = ("xmin", "ymin", "xmax", "ymax")

USUAL: dict[str, tuple[str, ...]] = {
    "dicom_id": (A, B), "DICOM_ID": (A, A, B, "calibration-screen-0000000000000000-001", "elsewhere"),
    "path": (f"files/p1/p11/s1/{A}.dcm", f"files/p1/p12/s2/{B}.dcm"), "patient_id": ("11", "12"),
    "Normal": ("1", "0"), "CHF": ("0", "1"), "pneumonia": ("0", "0.0"), "dx1_icd": ("0389", "4280"),
    "id": ("P101R000001", "P102R000002"), "split": ("train", "test", "validate"), "subject_id": ("11", "12"),
    "eye_tracking_data_discarded": ("False", "False", "True"), "image": (f"files/{A}.dcm", f"{B}.dcm"),
    "image_size_x": ("4",), "image_size_y": ("6",), "Other": ("", "x|y"), "bbox_name": ("heart", "lung"),
}  # fmt: skip
FLAGS = ("True", "False", "3", "0", "5.0", "")


@cache
def images() -> Path:
    folder = scratch("mimic") / "p11"
    folder.mkdir(parents=True)
    for name in (A, B):
        Image.fromarray(np.full((6, 4), 40, np.uint8)).save(folder / f"{name}.png")
    return folder


def sheet(choices: Choices, known: tuple[str, ...], rows: int) -> bytes:
    header = list(known)
    if choices.one_in(12):
        del header[choices.number(len(header) - 1)]
    if choices.one_in(12):
        header.append(choices.pick((*known, choices.text())))
    table = [header]
    for number in range(rows):
        table.append([cell(choices, name, number) for name in header])
        if choices.one_in(24):
            table[-1] = table[-1][:-1] if choices.one_in(2) else [*table[-1], ""]
    content = written(
        table,
        separator=";" if choices.one_in(24) else ",",
        end=choices.pick(("\n", "\r\n")),
        quote=choices.one_in(4),
        encoding=choices.pick(("utf-8", "utf-8-sig", "utf-16")) if choices.one_in(12) else "utf-8",
    )
    return edited(content, choices) if choices.one_in(6) else content


def cell(choices: Choices, column: str, row: int) -> str:
    if choices.one_in(16):
        return choices.pick(ODD) if not choices.one_in(4) else choices.text()
    if column in USUAL:
        return USUAL[column][row % len(USUAL[column])]
    if column in ("Atelectasis", "Support devices"):
        return choices.pick(FLAGS)
    return repr(choices.real()) if choices.one_in(4) else str(choices.number(30) / 4 + row)


def read(module: Any, importer: str, *given: Path, **options: str) -> None:
    kept: list[RawStudy] = []
    own, module.write_cohort = module.write_cohort, lambda raws, *_, **__: kept.extend(raws)
    try:
        getattr(module, importer)(*given, given[0] / "out", progress=False, **options)
        for raw in kept:
            if callable(raw.gaze):
                raw.gaze()
    finally:
        module.write_cohort = own


def check_egd(data: bytes) -> None:
    choices = Choices(data)
    root = scratch("egd")
    kind = choices.pick(("samples", "fixations"))
    gaze = EYE_GAZE[:7] if choices.one_in(4) else EYE_GAZE
    (root / "master_sheet.csv").write_bytes(sheet(choices, MASTER, 2 + choices.number(1)))
    (root / egd_cxr.GAZE_FILES[kind]).write_bytes(sheet(choices, gaze, choices.number(7)))
    (root / "bounding_boxes.csv").write_bytes(sheet(choices, BOUNDING, choices.number(3)))
    with refusals():
        read(egd_cxr, "import_egd_cxr", root, images(), gaze=kind)


def check_reflacx(data: bytes) -> None:
    choices = Choices(data)
    root = scratch("reflacx")
    kind = choices.pick(("fixations", "samples"))
    main, gaze = root / "main_data", root / "gaze_data"
    for reading in USUAL["id"]:
        for folder in (main, gaze):
            (folder / reading).mkdir(parents=True, exist_ok=True)
        (main / reading / "fixations.csv").write_bytes(sheet(choices, FIXATIONS, choices.number(3)))
        (main / reading / "anomaly_location_ellipses.csv").write_bytes(sheet(choices, ELLIPSES, choices.number(2)))
        (main / reading / "chest_bounding_box.csv").write_bytes(sheet(choices, CHEST, 1))
        if kind == "samples":
            (gaze / reading / "gaze.csv").write_bytes(sheet(choices, SAMPLES, choices.number(4)))
    for phase in (1, 2, 3):
        (main / f"metadata_phase_{phase}.csv").write_bytes(sheet(choices, METADATA, 2))
    with refusals():
        read(reflacx, "import_reflacx", root, images(), gaze=kind)


def check_bytes(data: bytes) -> None:
    """Any bytes as a sheet, as a table of numbers, and as the gaze table."""
    file = scratch("sheet") / "sheet.csv"
    file.write_bytes(data)
    with refusals():
        read_rows(file, ["id"])
    with refusals():
        read_numbers(file, ["x"])


def seeds() -> list[bytes]:
    table = [["id", "x", "note"], ["1", "2.5", "a, b"], ["2", "NA", 'a "b"\nc'], ["3", "", ""]]
    return [written(table), written(table, end="\r\n", quote=True), written(table, encoding="utf-8-sig")]


HARNESSES = {
    "sheet-bytes": Harness(check_bytes, seeds),
    "egd-cxr": Harness(check_egd),
    "reflacx": Harness(check_reflacx),
}
