"""Any other data set, described by tables: ``images.csv`` and, where there are any, ``gaze.csv`` and ``boxes.csv``.

``images.csv``  study_id, image [, patient_id, label or label_<class>..., split, mask_<name>..., anything else]
``gaze.csv``    study_id, x, y  or  study_id, x_norm, y_norm  [, t, duration, reader, valid]
``boxes.csv``   study_id, name, xmin, ymin, xmax, ymax [, shape, certainty]

Paths are relative to the table. Gaze is in original pixels (pixel centres at integers, origin at the top left), or in
fractions of the image's width and height, so that x = x_norm · W − 1/2. Times are seconds. Spreadsheets' habits are
read as they come: byte order marks, UTF-16, semicolons or tabs with decimal commas, line ends of Windows and of old
Macs, quoted line breaks, empty trailing rows and columns. What could mean two things (thousands separators, a heading
twice) is refused by name.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from radgaze.cohort.pixels import image_size
from radgaze.cohort.sources.engine import RawStudy, write_cohort
from radgaze.cohort.store import Cohort
from radgaze.cohort.study import Box
from radgaze.errors import InputError, nearest
from radgaze.gaze import Gaze

__all__ = ["import_tables"]

_IMAGE_COLUMNS = ("study_id", "image", "patient_id", "label", "split")
_GAZE_COLUMNS = ("study_id", "x", "y", "x_norm", "y_norm", "t", "duration", "reader", "valid")
_BOX_COLUMNS = ("study_id", "name", "xmin", "ymin", "xmax", "ymax", "shape", "certainty")

_NO_NUMBER = ("na", "n/a", "nan", "null", "none", "-", ".")
_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")

_ROW = " row"  # no heading is called so: spaces around them are taken off
_SEPARATORS = ",;\t|"
_LONGEST_HEADER = 1 << 20  # bytes; a first line of more is that of some other kind of file
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx and .ods start, and .xls

# Fewer points than this may all lie in the top-left pixel; more of them are fractions under the wrong heading.
_ENOUGH_TO_TELL_FRACTIONS = 10


def import_tables(
    images: str | Path,
    out: str | Path,
    *,
    gaze: str | Path | None = None,
    boxes: str | Path | None = None,
    name: str | None = None,
    size: tuple[int, int] = (640, 512),
    fit: str = "letterbox",
    canvas: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    class_structures: Mapping[str, Sequence[str]] | None = None,
    gaze_kind: str | None = None,
    split: str | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Cohort:
    """Import a data set described by tables into the cohort ``out``.

    Args:
        images, gaze, boxes: the tables; see the head of this file.
        name: of the cohort; by default that of the folder ``images`` lies in.
        size: (h, w) of the stored images.
        classes: labels in the order they are to have; by default sorted.
        gaze_kind: ``"fixations"`` or ``"samples"``; by default fixations if the table has durations.
        split: ``"source"``, ``"patient"`` or ``"image"``; by default the table's own if it has one, else by patient.
        fit, canvas, class_structures, fractions, seed, workers, engine, address, strict, overwrite, progress: as in
            :func:`~radgaze.cohort.sources.engine.write_cohort`.

    A study with an unreadable cell, image or mask is left out by name. Without a ``patient_id`` a study is its own
    patient; the cohort's counts say how many are.

    Raises:
        InputError: a table is missing or malformed, a column is missing, a study_id occurs twice, or as
            ``write_cohort``.
    """
    images = Path(images)
    table = _read_table(images, _IMAGE_COLUMNS, ("study_id", "image"))
    importer = _Importer(strict)
    raws, task, found, structures = importer.studies(table)
    kind, readers = None, list[str]()
    if gaze is not None:
        gaze_table = _read_table(Path(gaze), _GAZE_COLUMNS, ("study_id",))
        readers = importer.add_gaze(gaze_table, raws)
        kind = gaze_kind or ("fixations" if "duration" in gaze_table.columns else "samples")
        del gaze_table  # its text takes more memory than all numbers read from it
    if boxes is not None:
        importer.add_boxes(_read_table(Path(boxes), _BOX_COLUMNS, _BOX_COLUMNS[:6]), raws)
    if split is None:
        split = "source" if any(raw.split for raw in raws.values()) else "patient"
    return write_cohort(
        list(raws.values()),
        Path(out),
        name=name or images.resolve().parent.name,
        source=f"tables {images.name}",
        size=size,
        fit=fit,
        canvas=canvas,
        task=task,
        classes=found if classes is None else classes,
        structures=structures,
        class_structures=class_structures,
        gaze_kind=kind,
        readers=readers,
        counts=importer.counts,
        left_out=importer.left_out,
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


@dataclass(frozen=True)
class _Table:
    """A table of text: cells stripped, empty ones null, and ``_ROW``, the number a spreadsheet shows beside each."""

    path: Path
    cells: pl.DataFrame
    decimal_comma: bool

    @property
    def columns(self) -> list[str]:
        return self.cells.columns

    def place(self, index: int) -> str:
        return f"{self.path.name} row {self.cells[_ROW][index]}"

    def numbers(self, column: str, broken: dict[str | None, str] | None = None) -> npt.NDArray[np.float64]:
        """A column as numbers, NaN where empty; studies with a cell that is no number are noted in ``broken``.

        Beside decimal commas a point could separate thousands: 1.234 is then no number.
        """
        text = self.cells[column]
        missing = text.is_null() | text.str.to_lowercase().is_in(_NO_NUMBER).fill_null(False)
        plain, expected = text, "a number"
        if self.decimal_comma and text.str.contains(",", literal=True).any():
            plain = pl.select(pl.when(~text.str.contains(".", literal=True)).then(text)).to_series()
            plain, expected = plain.str.replace(",", ".", literal=True), "a number with a decimal comma, as others have"
        numbers = plain.cast(pl.Float64, strict=False)
        if broken is not None:
            self.note_broken(broken, ~missing & ~numbers.is_finite().fill_null(False), column, expected)
        return pl.select(pl.when(~missing).then(numbers)).to_series().fill_null(float("nan")).to_numpy()

    def note_broken(self, broken: dict[str | None, str], where: pl.Series, column: str, expected: str) -> None:
        """For each study with a cell at ``where`` that cannot be read, keep a sentence on the first."""
        for index in where.arg_true():
            study_id, cell = self.cells["study_id"][index], self.cells[column][index]
            broken.setdefault(study_id, f"{self.place(index)}: {column} is {cell!r}, expected {expected}")

    def rows_by_study(self) -> dict[str | None, npt.NDArray[np.uint32]]:
        """Indices of each study's rows, in table order; studies in order of first appearance."""
        numbered = self.cells.select("study_id").with_row_index()
        groups = numbered.group_by("study_id", maintain_order=True).agg("index")
        pairs = zip(groups["study_id"], groups["index"], strict=True)
        return {study: rows.to_numpy() for study, rows in pairs}


class _Importer:
    """Collects what is read, what is left out, and why."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.left_out: list[tuple[str, str]] = []

    def leave_out(self, study_id: str, reason: str) -> None:
        if self.strict:
            raise InputError(f"Study {study_id!r}: {reason}")
        self.left_out.append((study_id, reason))

    def studies(self, table: _Table) -> tuple[dict[str, RawStudy], str, list[str], list[str]]:
        """The studies by id, the task, its classes, and the names of the masks."""
        structures = _named(table, "mask_")
        label_columns = _named(table, "label_")
        if label_columns and "label" in table.columns:
            raise InputError(
                f"{str(table.path)!r} has both 'label' and 'label_{label_columns[0]}'; expected label (multi-class) or "
                f"label_<class> columns (multi-label): rename the others."
            )
        labels = {name: self._multilabel(table, f"label_{name}") for name in label_columns}
        attributes = {
            name: _typed(table, name)
            for name in table.columns
            if name not in (*_IMAGE_COLUMNS, _ROW) and not name.startswith(("mask_", "label_"))
        }

        raws: dict[str, RawStudy] = {}
        rows: dict[str, int] = {}
        for index, row in enumerate(table.cells.iter_rows(named=True)):
            study_id, image = row["study_id"], row["image"]
            if study_id is None:
                self.leave_out(table.place(index), "its study_id is empty; expected a name")
                continue
            if study_id in rows:
                raise InputError(
                    f"{str(table.path)!r} has study_id {study_id!r} in rows {rows[study_id]} and {row[_ROW]}; "
                    f"expected every study_id once, rename or remove one."
                )
            rows[study_id] = row[_ROW]
            if image is None:
                self.leave_out(study_id, f"{table.place(index)}: its image is empty; expected a path")
                continue
            patient_id = row.get("patient_id")
            if patient_id is None:
                self.counts["studies without patient_id, each taken as a patient of its own"] += 1
                patient_id = f"study {study_id}" if "patient_id" in table.columns else study_id
            raws[study_id] = RawStudy(
                study_id=study_id,
                patient_id=patient_id,
                image=_path(table, image),
                label=row.get("label"),
                labels={name: values[index] for name, values in labels.items()} if labels else None,
                masks={name: _path(table, row[f"mask_{name}"]) for name in structures if row[f"mask_{name}"]},
                split=row.get("split"),
                attributes={name: values[index] for name, values in attributes.items()},
            )
        if labels:
            return raws, "multilabel", label_columns, structures
        classes = sorted({raw.label for raw in raws.values() if raw.label is not None})
        return raws, "multiclass" if classes else "none", classes, structures

    def _multilabel(self, table: _Table, column: str) -> list[float | None]:
        values: list[float | None] = []
        for index, cell in enumerate(table.cells[column]):
            text = (cell or "").lower()
            if text in _TRUE or text in _FALSE:
                values.append(float(text in _TRUE))
            elif not text:
                values.append(None)
            else:
                raise InputError(
                    f"{str(table.path)!r} row {table.cells[_ROW][index]} has {column} {cell!r}; expected 1, 0 or "
                    f"nothing (unknown); if this is no class, rename the column."
                )
        return values

    def add_gaze(self, table: _Table, raws: dict[str, RawStudy]) -> list[str]:
        """Give each study its points, in the order of the table. Returns the readers' names."""
        axes = ("x", "y") if {"x", "y"} <= set(table.columns) else ("x_norm", "y_norm")
        if not set(axes) <= set(table.columns):
            raise InputError(
                f"{str(table.path)!r} has the columns {table.columns[1:]}; expected x and y (pixels of the original "
                f"image), or x_norm and y_norm (fractions of it)."
            )
        columns: dict[str, Any] = {}
        broken: dict[str | None, str] = {}
        for column in (*axes, *(name for name in ("t", "duration") if name in table.columns)):
            columns[column] = table.numbers(column, broken)
        x, y = (columns.pop(axis) for axis in axes)
        if axes == ("x", "y"):
            _refuse_fractions(x, y, table)
        if "valid" in table.columns:
            text = table.cells["valid"].str.to_lowercase()
            columns["valid"] = text.is_in(_TRUE).fill_null(False).to_numpy()
            table.note_broken(broken, ~text.is_in((*_TRUE, *_FALSE)).fill_null(False), "valid", "1 or 0")
        readers: list[str] = []
        if "reader" in table.columns:
            names = table.cells["reader"]
            readers = names.drop_nulls().unique(maintain_order=True).to_list()
            codes = {reader: code for code, reader in enumerate(readers)}
            columns["reader"] = np.array([codes.get(reader, -1) for reader in names], dtype=np.int64)

        for study_id, indices in table.rows_by_study().items():
            if study_id not in raws:
                self.counts["gaze points of unknown or left-out studies"] += len(indices)
                continue
            raw = raws[study_id]
            try:
                if study_id in broken:
                    raise InputError(broken[study_id])
                scale, shift = (1.0, 1.0), 0.0
                if axes == ("x_norm", "y_norm"):
                    height, width = image_size(raw.image)
                    scale, shift = (width, height), -0.5
                raw.gaze = partial(_points, x, y, columns, indices, scale, shift)
                raw.gaze()  # refused now if it is no gaze, and made again when it is written
            except InputError as error:
                self.leave_out(study_id, str(error))
                del raws[study_id]
        return readers

    def add_boxes(self, table: _Table, raws: dict[str, RawStudy]) -> None:
        """Give each study its boxes, in the order of the table."""
        broken: dict[str | None, str] = {}
        numeric = [column for column in ("xmin", "ymin", "xmax", "ymax", "certainty") if column in table.columns]
        numbers: dict[str, npt.NDArray[np.float64]] = {column: table.numbers(column, broken) for column in numeric}
        for study_id, indices in table.rows_by_study().items():
            if study_id not in raws:
                self.counts["boxes of unknown or left-out studies"] += len(indices)
                continue
            try:
                if study_id in broken:
                    raise InputError(broken[study_id])
                raws[study_id].boxes = [_box(table, int(index), numbers) for index in indices]
            except InputError as error:
                self.leave_out(study_id, str(error))
                del raws[study_id]


def _points(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    others: Mapping[str, npt.NDArray[Any]],
    rows: npt.NDArray[np.uint32],
    scale: tuple[float, float],
    shift: float,
) -> Gaze:
    """The gaze in some rows of a table, as ``scale`` · (x, y) + ``shift``."""
    own = {column: values[rows] for column, values in others.items()}
    return Gaze(x[rows] * scale[0] + shift, y[rows] * scale[1] + shift, **own)


def _box(table: _Table, index: int, numbers: Mapping[str, npt.NDArray[np.float64]]) -> Box:
    row = table.cells.row(index, named=True)
    own = {column: float(values[index]) for column, values in numbers.items()}
    certainty = own.pop("certainty", float("nan"))
    try:
        return Box(
            name=row["name"] or "",
            shape=row.get("shape") or "box",
            certainty=None if np.isnan(certainty) else certainty,
            **own,
        )
    except InputError as error:
        raise InputError(f"{table.place(index)}: {error}") from None


def _refuse_fractions(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], table: _Table) -> None:
    points = np.stack([x, y])[:, np.isfinite(x) & np.isfinite(y)]
    if points.shape[1] < _ENOUGH_TO_TELL_FRACTIONS or not ((points >= 0) & (points <= 1)).all():
        return
    raise InputError(
        f"{str(table.path)!r} has x and y between 0 and 1 only; expected pixels of the original image: if these are "
        f"fractions of it, name the columns x_norm and y_norm."
    )


def _named(table: _Table, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in table.columns if name.startswith(prefix) and name != prefix]


def _path(table: _Table, text: str) -> Path:
    """A path relative to the table; one written on Windows is read where its backslashes name nothing here."""
    path = table.path.parent / text
    return path if "\\" not in text or os.path.exists(path) else table.path.parent / text.replace("\\", "/")


def _typed(table: _Table, column: str) -> list[str | float | int | None]:
    """An attribute as whole numbers or numbers if every cell is one; a leading zero makes it an id, so text."""
    text = table.cells[column]
    broken: dict[str | None, str] = {}
    numbers = table.numbers(column, broken)
    filled = text.drop_nulls()
    if broken or filled.str.contains(r"^[+-]?0\d").any() or filled.str.to_lowercase().is_in(_NO_NUMBER).any():
        return text.to_list()
    whole = filled.str.contains(r"^[+-]?\d{1,15}$").all()
    return [None if np.isnan(number) else int(number) if whole else float(number) for number in numbers]


def _read_table(path: Path, known: Sequence[str], required: Sequence[str]) -> _Table:
    """Read a table as text.

    Raises:
        InputError: it is missing, empty, no table, or lacks a required column.
    """
    text = _read_text(path)
    content = text.lstrip(b"\r\n")
    first = text[: len(text) - len(content)].count(b"\n") + 1  # the row of the header
    line = content[: content.find(b"\n") + 1 or None]
    separator = max(_SEPARATORS, key=line.decode().count)
    if line[:4].lower() == b"sep=":  # the line by which Excel is told the separator
        separator = line[4:].decode().rstrip("\r\n")
        if len(separator) != 1 or separator not in _SEPARATORS:
            raise InputError(
                f"{str(path)!r} states the separator {separator!r}; expected a comma, semicolon, tab or bar, save it "
                "again with one of these."
            )
        content, first = content[len(line) :], first + 1
    try:
        header = next(csv.reader((row.decode() for row in io.BytesIO(content)), delimiter=separator), [])
        cells = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema=False, raise_if_empty=False)
        if len(header) != cells.width:
            raise csv.Error("its header ends in the middle")
    except (csv.Error, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{str(path)!r} is no readable table ({_reason(error)}); expected CSV with a header, save it again."
        ) from None
    names = [name.strip() for name in header]
    names = [name.lower() if name.lower() in known else name for name in names]
    cells.columns = [str(place) for place in range(cells.width)]
    cells = cells.with_columns(pl.all().str.strip_chars())
    cells = cells.with_columns(pl.when(pl.all() != "").then(pl.all()))
    used = [place for place, name in enumerate(names) if name or cells[:, place].count()]  # spreadsheets add empty ones
    cells, names = cells[:, used], [names[place] for place in used]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise InputError(f"{str(path)!r} has more than one column {doubled[0]!r}; rename or remove one.")
    missing = [name for name in required if name not in names]
    if missing:
        shown = ", ".join(map(repr, names)) or "none"
        hint = nearest(missing[0], names) if names else "is it empty?"
        raise InputError(f"{str(path)!r} has no column {missing[0]!r} (its columns: {shown}); {hint}")
    cells.columns = names
    cells = cells.with_row_index(_ROW, offset=first + 1)
    cells = cells.filter(~pl.all_horizontal(pl.exclude(_ROW).is_null()))
    return _Table(path, cells, decimal_comma=separator != ",")


def _reason(error: Exception) -> str:
    """What is wrong with a table; Polars tells it in its own terms, with advice on its arguments."""
    said = str(error)
    if "more fields" in said:
        return (
            "a row has more fields than the header: numbers with decimal commas want quotes, or semicolons between the "
            "columns"
        )
    return said if isinstance(error, csv.Error) else "a quotation mark inside a cell, or without its partner"


def _read_text(path: Path) -> bytes:
    """A table's text as UTF-8 without a byte order mark, its lines ended by line feeds.

    Raises:
        InputError: it is missing, or no text.
    """
    workbook = InputError(f"{str(path)!r} is a workbook; expected text: save the sheet as CSV.")
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise workbook
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST_HEADER)
            if len(start) == _LONGEST_HEADER and not {*b"\r\n"} & {*start}:
                raise InputError(
                    f"{str(path)!r} starts with a line of more than {_LONGEST_HEADER:,} bytes; expected a table with a "
                    "header."
                )
            text = start + file.read()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} does not exist; expected a table, check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r} cannot be read ({reason}); expected a table.") from None
    if text.startswith(_WORKBOOKS):
        raise workbook
    try:
        text = _as_utf8(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is damaged text ({error.reason}); save the table again.") from None
    if b"\0" in text:
        raise InputError(f"{str(path)!r} has null bytes in it, so it is no text, or UTF-16; save the table as UTF-8.")
    if b"\n" not in text:
        return text.replace(b"\r", b"\n")  # lines as old Macs ended them
    return text


def _as_utf8(text: bytes) -> bytes:
    """UTF-8 without a byte order mark, from UTF-8, UTF-16 with one, or the Windows code page."""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16").encode()
    text = text.removeprefix(b"\xef\xbb\xbf")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("cp1252", errors="replace").encode()
    return text
