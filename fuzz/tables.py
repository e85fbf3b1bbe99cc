"""The user's tables in the habits that spreadsheets have, right and wrong, through the importer (writing left out)."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from fuzz.choices import Choices, Harness, edited, refusals
from fuzz.scratch import scratch
from radgaze.cohort.sources import tables
from radgaze.cohort.sources.engine import RawStudy

__all__ = ["HARNESSES", "habit", "imported", "written"]

IMAGES = ("study_id", "image", "patient_id", "label", "split", "mask_lungs", "label_mass", "age", "row", "")
GAZE = ("study_id", "x", "y", "x_norm", "y_norm", "t", "duration", "reader", "valid", "index")
BOXES = ("study_id", "name", "xmin", "ymin", "xmax", "ymax", "shape", "certainty", "row")
REQUIRED = {"images": 2, "gaze": 3, "boxes": 6}
USUAL = {"study_id": ("a", "b", "007", "c"), "image": ("0.png", "1.png", "2.png"), "mask_lungs": ("0.png", ""),
         "split": ("train", "val", "test"), "shape": ("box", "ellipse"), "valid": ("1", "0", "true"),
         "label_mass": ("1", "0", "")}  # fmt: skip
ODD = ("", " ", "NA", "nan", "inf", "-1e400", "1,5", "1.234,5", "1'000", "1 000", "٣", "\x00", "../0.png", "a" * 300,
       "é", '"', "\n", ";", "\t", "0x10", "1e5", "TRUE", "\u2028", "\ufeff", "=1+1", "-", "0.png\x00", "/", ".",
       "\\")  # fmt: skip
SEPARATORS = (",", ";", "\t", "|")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1")


@cache
def folder() -> None:
    for index in range(3):
        Image.fromarray(np.full((6, 4), 40 + index, np.uint8)).save(scratch("tables") / f"{index}.png")


def grid(choices: Choices, known: tuple[str, ...], required: int) -> list[list[str]]:
    """A header and rows of cells."""
    header = [name for place, name in enumerate(known) if place < required or choices.one_in(3)]
    if choices.one_in(8):
        header.insert(choices.number(len(header)), choices.pick((*known, choices.text(), header[0].upper())))
    if choices.one_in(12):
        del header[choices.number(len(header) - 1)]
    rows = [header]
    for number in range(choices.number(5)):
        rows.append([cell(choices, name, number) for name in header])
        if choices.one_in(16):
            rows[-1] = rows[-1][: choices.number(len(header))] if choices.one_in(2) else [*rows[-1], "more"]
    return rows


def cell(choices: Choices, column: str, row: int) -> str:
    if choices.one_in(10):
        return choices.pick(ODD) if not choices.one_in(4) else choices.text()
    if column in USUAL:
        return USUAL[column][row % len(USUAL[column])]
    return repr(choices.real()) if choices.one_in(3) else str(choices.number(20) + row)


def written(rows: list[list[str]], *, separator: str = ",", end: str = "\n", quote: bool = False, comma: bool = False,
            sep_line: bool = False, encoding: str = "utf-8", blank_lines: int = 0, last_end: bool = True,
            spaces: str = "") -> bytes:  # fmt: skip
    """Rows as a spreadsheet writes them."""

    def told(text: str) -> str:
        if comma and text.replace(".", "", 1).lstrip("-").isdigit():
            text = text.replace(".", ",")
        if quote or any(mark in text for mark in (separator, '"', "\n", "\r")):
            return '"' + text.replace('"', '""') + '"'
        return spaces + text + spaces

    lines = [separator.join(map(told, row)) for row in rows]
    text = (f"sep={separator}{end}" if sep_line else "") + end.join(lines + [""] * blank_lines) + end * last_end
    return text.encode(encoding, "replace")


def habit(choices: Choices) -> dict[str, object]:
    return {
        "separator": choices.pick(SEPARATORS),
        "end": choices.pick(("\n", "\r\n", "\r")),
        "quote": choices.one_in(3),
        "comma": choices.one_in(3),
        "sep_line": choices.one_in(5),
        "encoding": choices.pick(ENCODINGS),
        "blank_lines": choices.number(2),
        "last_end": not choices.one_in(3),
        "spaces": choices.pick(("", "", " ")),
    }


def imported(files: dict[str, bytes]) -> list[RawStudy]:
    """What the importer makes of the tables, gaze read as well; only the cohort is not written."""
    folder()
    place = scratch("tables")
    for name, content in files.items():
        (place / f"{name}.csv").write_bytes(content)
    given = {name: place / f"{name}.csv" for name in files}
    kept: list[RawStudy] = []
    own, tables.write_cohort = tables.write_cohort, lambda raws, *_, **__: kept.extend(raws)  # type: ignore[assignment]
    try:
        tables.import_tables(given.pop("images"), place / "out", **given, progress=False)
    finally:
        tables.write_cohort = own
    for raw in kept:
        if callable(raw.gaze):
            raw.gaze()
    return kept


def check_tables(data: bytes) -> None:
    choices = Choices(data)
    files = {}
    for name, known in (("images", IMAGES), ("gaze", GAZE), ("boxes", BOXES)):
        if name != "images" and choices.one_in(3):
            continue
        content = written(grid(choices, known, REQUIRED[name]), **habit(choices))  # type: ignore[arg-type]
        files[name] = edited(content, choices) if choices.one_in(4) else content
    with refusals():
        imported(files)


def check_bytes(data: bytes) -> None:
    with refusals():
        imported({"images": data})


def seeds() -> list[bytes]:
    usual = [["study_id", "image", "label"], ["a", "0.png", "x, y"], ["b", "1.png", "1.5"]]
    return [
        written(usual, **habit(Choices(bytes([first, second, first, second] * 3))))  # type: ignore[arg-type]
        for first in range(6)
        for second in range(2)
    ]


HARNESSES = {"tables": Harness(check_tables), "table-bytes": Harness(check_bytes, seeds)}
