"""What the files of a cohort must hold, checked when they are opened: damage or another program may have changed them.

What reads them afterwards can then trust names, types and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from radgaze.errors import InputError
from radgaze.gaze.grid import FITS

__all__ = ["BOXES", "COPY_AGAIN", "TASKS", "check_meta", "check_row_count", "read_studies", "read_table"]

TASKS = ("multiclass", "multilabel", "none")
COPY_AGAIN = "copy the cohort again, or import it again."

_FILES = {"studies.parquet", "gaze.parquet", "boxes.parquet", "images.npy", "masks.npy"}
_ROWS_PER_BYTE = 1024  # no table of studies, points or boxes compresses as far; one that claims it is a bomb

Types = Mapping[str, type[pl.DataType]]

_STUDIES: Types = {
    **dict.fromkeys(("study_id", "patient_id", "label", "split"), pl.String),
    **dict.fromkeys(("source_height", "source_width"), pl.Int32),
    **dict.fromkeys(("grid_y0", "grid_x0", "grid_dy", "grid_dx"), pl.Float64),
    **dict.fromkeys(("image_row", "gaze_start", "gaze_count"), pl.Int64),
}
BOXES: Types = {
    **dict.fromkeys(("study_id", "name"), pl.String),
    **dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), pl.Float64),
    "shape": pl.String,
    "certainty": pl.Float64,
}
_MAY_BE_NULL = {"label", "certainty"}


def check_meta(meta: Mapping[str, Any], path: Path) -> None:
    """
    Raises:
        InputError: names the first entry of ``cohort.json`` that is missing or of another kind than an import writes.
    """
    for key, fits in _META.items():
        if key not in meta:
            raise InputError(f"{str(path)!r} lacks {key!r}; {COPY_AGAIN}")
        if not fits(meta[key]):
            raise InputError(f"{str(path)!r} has {key} = {repr(meta[key])[:60]}, which no import writes; {COPY_AGAIN}")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def _are_checksums(value: Any) -> bool:
    # copies are made of the files named here: of no others
    return isinstance(value, dict) and {"studies.parquet", "images.npy"} <= value.keys() <= _FILES


_META: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "size": _is_size,
    "fit": lambda value: value in FITS,
    "canvas": lambda value: value is None or _is_size(value),
    "task": lambda value: value in TASKS,
    "classes": _is_names,
    "structures": _is_names,
    "class_structures": lambda value: isinstance(value, dict) and all(map(_is_names, value.values())),
    "gaze_kind": lambda value: value is None or isinstance(value, str),
    "readers": _is_names,
    "counts": lambda value: isinstance(value, dict),
    "left_out": lambda value: isinstance(value, list) and all(
        isinstance(entry, dict) and {"study_id", "reason"} <= entry.keys() for entry in value
    ),
    "split_by": lambda value: isinstance(value, str),
    "checksums": _are_checksums,
}  # fmt: skip


def read_studies(path: Path, meta: Mapping[str, Any]) -> pl.DataFrame:
    """The table of studies of a cohort that ``meta`` describes.

    Raises:
        InputError: it is damaged, lacks a column, or a column is of another type or has no value somewhere.
    """
    labels: Types = dict.fromkeys((f"y_{name}" for name in meta["classes"]), pl.Float32)
    masks: Types = dict.fromkeys((f"has_mask_{name}" for name in meta["structures"]), pl.Boolean)
    types: Types = {**_STUDIES, **(labels if meta["task"] == "multilabel" else {}), **masks}
    studies = read_table(path, types, may_be_null={*_MAY_BE_NULL, *labels})
    if not studies.height:
        raise InputError(f"{str(path)!r} has no rows; {COPY_AGAIN}")
    for name in ("source_height", "source_width", "grid_dy", "grid_dx", "image_row", "gaze_start", "gaze_count"):
        least = 0 if name in ("image_row", "gaze_start", "gaze_count") else 1e-300
        if not studies[name].min() >= least:  # type: ignore[operator]
            raise InputError(f"{str(path)!r} has a {name} below zero; {COPY_AGAIN}")
    return studies


def read_table(path: Path, types: Types, may_be_null: set[str] = _MAY_BE_NULL) -> pl.DataFrame:
    """A Parquet table with at least the columns of ``types``.

    Raises:
        InputError: it is damaged, lacks a column, or a column is of another type or has no value somewhere.
    """
    try:
        check_row_count(path, pa.parquet.read_metadata(path).num_rows)
        table = pl.read_parquet(path)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InputError(f"{str(path)!r} is damaged ({' '.join(str(error).split())[:200]}); {COPY_AGAIN}") from error
    for name, kind in types.items():
        found = table.schema.get(name)
        if found != kind:
            stated = "lacks" if found is None else f"has {found} in"
            raise InputError(f"{str(path)!r} {stated} the column {name!r}, which holds {kind.__name__}; {COPY_AGAIN}")
        if name not in may_be_null and table[name].null_count():
            raise InputError(f"{str(path)!r} has no {name} in some row; {COPY_AGAIN}")
    return table


def check_row_count(path: Path, rows: int) -> None:
    """
    Raises:
        InputError: a Parquet file says that it holds more rows than its bytes can.
    """
    most = _ROWS_PER_BYTE * path.stat().st_size
    if not 0 <= rows <= most:
        raise InputError(f"{str(path)!r} claims {rows:,} rows; expected at most {most:,} for its bytes: {COPY_AGAIN}")
