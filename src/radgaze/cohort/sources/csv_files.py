"""CSV files as the sources write them, read column by column; whatever is wrong with one is a sentence that names the
file.

Sheets with free text are read as text (:func:`read_rows`), tables of measurements as numbers (:func:`read_numbers`).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.csv

from radgaze.errors import InputError, nearest

__all__ = ["read_columns", "read_header", "read_numbers", "read_rows", "require_columns"]

_BLOCK_BYTES = 2 << 20  # measured on a 400 MB file: larger blocks take more memory and are no faster
_LONGEST_HEADER = 1 << 20  # bytes
_NULLS = ["", "NA"]  # "nan" is a number to the reader; its long default list costs a tenth of the time


def read_header(path: Path) -> list[str]:
    """The column names of a CSV file.

    Raises:
        InputError: the file is missing, empty or no text.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_HEADER)
        if len(line) == _LONGEST_HEADER:
            raise csv.Error(f"its first line has more than {_LONGEST_HEADER:,} bytes")
        header = next(csv.reader([line.decode("utf-8-sig")]), [])
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} does not exist; copy it from the data set, or check the folder.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); copy it from the data set again.") from error
    if not header:
        raise InputError(f"{str(path)!r} is empty; copy it from the data set again.")
    return header


def read_rows(path: Path, required: Sequence[str]) -> list[dict[str, str | None]]:
    """Each row as a dict of stripped text, None where empty. Quoted line breaks and CRLF are fine.

    For sheets, and for the small files of which a data set has thousands: a data frame costs more to set up than such a
    file takes to read.

    Raises:
        InputError: the file is missing or no CSV, lacks a ``required`` column, or a row has too few or too many fields.
    """
    header = read_header(path)
    require_columns(path, header, [*required, *header])
    rows: list[dict[str, str | None]] = []
    try:
        # Stray bytes in free text harm nothing; ids and numbers with one match nothing and are refused by name.
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file, strict=True)
            next(reader)
            for fields in reader:
                if not fields:  # a blank line
                    continue
                if len(fields) != len(header):
                    raise csv.Error(f"line {reader.line_num} ends a row of {len(fields)} fields, not {len(header)}")
                if "\0" in "".join(fields):  # of which no file can be named
                    raise csv.Error(f"line {reader.line_num} has a null byte")
                rows.append({name: field.strip() or None for name, field in zip(header, fields, strict=True)})
    except (OSError, csv.Error) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); copy it from the data set again.") from error
    return rows


def read_columns(path: Path, types: Mapping[str, pa.DataType]) -> pl.DataFrame:
    """Only the columns of ``types``, as those types; an empty number, or NA, is null.

    The file goes by in blocks and fields of other columns are never decoded, so a file of 400 MB costs little more
    memory than the columns asked for (Arrow's reader; Polars' own takes half as much again).

    Raises:
        InputError: the file cannot be read, lacks one of the columns, or a field is not of its type.
    """
    require_columns(path, read_header(path), list(types))
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(types), column_types=dict(types), null_values=_NULLS
            ),
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{str(path)!r} is damaged ({_first_line(error)}); copy it from the data set again."
        ) from error
    frame = pl.from_arrow(table, rechunk=False)
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_numbers(path: Path, columns: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """The ``columns`` as float64, NaN where a field is empty.

    Raises:
        InputError: as :func:`read_columns`.
    """
    table = read_columns(path, dict.fromkeys(columns, pa.float64()))
    return {name: table[name].to_numpy(writable=True) for name in columns}


def require_columns(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    """
    Raises:
        InputError: names the first of the ``required`` columns that the ``header`` of ``path`` lacks or has twice.
    """
    for column in required:
        if header.count(column) > 1:
            raise InputError(f"{str(path)!r} has more than one column {column!r}; copy it from the data set again.")
        if column not in header and any(mark in name for name in header for mark in ";\t"):
            raise InputError(
                f"{str(path)!r} has other separators than commas, as spreadsheets write them; copy it from the data "
                "set again."
            )
        if column not in header:
            raise InputError(f"{str(path)!r} has no column {column!r}; {nearest(column, header)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
