"""Small cohorts for tests, written as tables and read by the real importer."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from radgaze.cohort import Cohort
from radgaze.cohort.sources.tables import import_tables

SOURCE_SIZE = (96, 64)


def write_tables(folder: Path, studies: int = 24, classes: int = 3, gaze: bool = True) -> Path:
    """Images with a bright blob whose place tells the class, where both readers look. Some patients have two."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    rows, points, boxes = [], [], []
    height, width = SOURCE_SIZE
    y, x = np.mgrid[:height, :width]
    for index in range(studies):
        label = index % classes
        cy, cx = 20 + 25 * label + random.normal(0, 2), 32 + random.normal(0, 4)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 6**2))
        pixels = np.clip(60 + 20 * random.standard_normal((height, width)) + 120 * blob, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        Image.fromarray((255 * (blob > 0.5)).astype(np.uint8)).save(folder / f"{index:03d}-blob.png")
        patient = (
            index - (index % 6 == 5) * classes
        )  # studies 5, 11, ... belong to an earlier patient of the same class
        rows.append([f"s{index:03d}", f"{index:03d}.png", f"p{patient:03d}", f"class{label}", f"{index:03d}-blob.png"])
        boxes.append([f"s{index:03d}", "blob", cx - 8, cy - 8, cx + 8, cy + 8])
        for reader in ("a", "b"):
            looks = zip(random.normal(cx, 4, 6), random.normal(cy, 4, 6), strict=True)
            points.extend([f"s{index:03d}", gx, gy, 0.3 * k, 0.25, reader] for k, (gx, gy) in enumerate(looks))
    tables = {
        "images.csv": (["study_id", "image", "patient_id", "label", "mask_blob"], rows),
        "boxes.csv": (["study_id", "name", "xmin", "ymin", "xmax", "ymax"], boxes),
    }
    if gaze:
        tables["gaze.csv"] = (["study_id", "x", "y", "t", "duration", "reader"], points)
    for name, (header, content) in tables.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *content])
    return folder


def multilabel_cohort(folder: Path, studies: int = 24) -> Cohort:
    """The same images with three labels each: one unknown now and then, one present in the very first study alone."""
    tables = write_tables(folder / "tables", studies)
    with (tables / "images.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    for index, row in enumerate(rows):
        place = int(row[3].removeprefix("class"))
        row[3:4] = ["" if index % 7 == 3 else int(place == 0), int(place != 1), int(index == 0)]
    header[3:4] = ["label_top", "label_not_middle", "label_rare"]
    with (tables / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    fractions = (0.5, 0.25, 0.25)
    return import_tables(
        tables / "images.csv", folder / "cohort", size=(48, 32), workers=1, progress=False, fractions=fractions
    )


def blob_cohort(
    folder: Path, studies: int = 24, classes: int = 3, gaze: bool = True, size: tuple[int, int] = (48, 32)
) -> Cohort:
    tables = write_tables(folder / "tables", studies, classes, gaze)
    return import_tables(
        tables / "images.csv",
        folder / "cohort",
        gaze=tables / "gaze.csv" if gaze else None,
        boxes=tables / "boxes.csv",
        size=size,
        class_structures={f"class{label}": ["blob"] for label in range(classes) if label},
        workers=1,
        progress=False,
        fractions=(0.5, 0.25, 0.25),
    )
