"""``gaze.parquet``: every gaze point of a cohort in study order, written and read a row group at a time.

A cohort may have more points than memory holds (100,000 studies of 1,500 samples are 150 million), so neither side ever
has them all: the writer holds one row group and a study, the reader what fits into :data:`DECODED_BYTES`.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from radgaze.cohort.layout import COPY_AGAIN, check_row_count
from radgaze.errors import InputError
from radgaze.gaze import Gaze

__all__ = ["PER_POINT", "GazeFile", "GazeWriter"]

# Points: some 10 studies of 1,500 samples, 1.5 MB decoded with every column. A study drawn at random from a cohort that
# does not stay decoded costs a whole row group; smaller ones would make the file's index large.
ROW_GROUP = 16_384
DECODED_BYTES = 256 << 20  # all of EGD-CXR (1.5 million samples) takes 40 MB and stays decoded

PER_POINT = {"px_per_degree": ("ppd_x", "ppd_y"), "shown": ("shown_xmin", "shown_ymin", "shown_xmax", "shown_ymax")}

_ROW = "study_row"
_SCHEMA = pa.schema(
    {
        _ROW: pa.int32(),
        **dict.fromkeys(("x", "y", "t", "duration"), pa.float64()),
        "reader": pa.int64(),
        "valid": pa.bool_(),
        **dict.fromkeys((part for parts in PER_POINT.values() for part in parts), pa.float64()),
    }
)

Columns = dict[str, npt.NDArray[Any]]


class GazeWriter:
    """Gaze into ``path``, study by study, with every column there is; :meth:`finish` keeps those that are used.

    Which columns a cohort has is known only when its last study has been read, and Parquet wants to know it first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points = 0
        self._used = {_ROW}
        self._pending: list[pa.Table] = []
        self._pending_points = 0
        self._writer = _writer(path, _SCHEMA)

    def __enter__(self) -> GazeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def add(self, study_row: int, gaze: Gaze) -> None:
        """The next study's points. Where it lacks a column its points are null in it."""
        count = len(gaze)
        given: Columns = {_ROW: np.full(count, study_row, np.int32)}
        for name in ("x", "y", "t", "duration", "reader", "valid", *PER_POINT):
            values = getattr(gaze, name)
            if values is None:
                continue
            values = values.cpu().numpy()
            parts = PER_POINT.get(name)
            given |= {name: values} if parts is None else dict(zip(parts, values.T, strict=True))
        self._used |= given.keys()
        columns = [
            pa.array(given[one.name], one.type) if one.name in given else pa.nulls(count, one.type) for one in _SCHEMA
        ]
        self._pending.append(pa.table(columns, schema=_SCHEMA))
        self.points += count
        self._pending_points += count
        if self._pending_points >= ROW_GROUP:
            self._flush(self._pending_points // ROW_GROUP * ROW_GROUP)

    def finish(self, target: Path) -> None:
        """Close the file, and write to ``target`` those of its columns that any study has."""
        if self._pending_points:
            self._flush(self._pending_points)
        self._writer.close()
        used = [one for one in _SCHEMA if one.name in self._used]
        with pa.parquet.ParquetFile(self.path) as whole, _writer(target, pa.schema(used)) as kept:
            for group in range(whole.num_row_groups):
                kept.write_table(whole.read_row_group(group, [one.name for one in used]), row_group_size=ROW_GROUP)
        self.path.unlink()

    def _flush(self, points: int) -> None:
        """Write the first ``points`` of those that wait."""
        waiting = pa.concat_tables(self._pending)
        self._writer.write_table(waiting.slice(0, points), row_group_size=ROW_GROUP)
        self._pending_points -= points
        # What is left is of the last study, so no other's memory stays with it.
        self._pending = [waiting.slice(points)] if self._pending_points else []


class GazeFile:
    """The gaze points of a cohort, decoded a row group at a time; threads may share it.

    The row groups used last stay decoded, up to :data:`DECODED_BYTES`; the one in use does whatever its size (older
    cohorts have all points in one).

    Args:
        path: ``gaze.parquet``.
        expected: points that the cohort's studies have.

    Raises:
        InputError: the file is damaged, or has another number of points.
    """

    def __init__(self, path: Path, expected: int) -> None:
        self.path = path
        try:
            self._file = pa.parquet.ParquetFile(path, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from error
        check_row_count(path, self._file.metadata.num_rows)
        found = {one.name: one.type for one in self._file.schema_arrow}
        for name in ("x", "y", *found):
            whole = next((parts for parts in PER_POINT.values() if name in parts), (name,))
            if not set(whole) <= found.keys() or name not in _SCHEMA.names or found[name] != _SCHEMA.field(name).type:
                raise InputError(f"{str(path)!r} has another column {name!r} than an import writes; {COPY_AGAIN}")
        meta = self._file.metadata
        if meta.num_rows != expected:
            raise InputError(f"{str(path)!r} has {meta.num_rows} points; expected {expected}: {COPY_AGAIN}")
        self._columns = [name for name in self._file.schema_arrow.names if name != _ROW]
        sizes = (meta.row_group(group).num_rows for group in range(meta.num_row_groups))
        self._starts = list(accumulate(sizes, initial=0))  # of each row group, and the end of the last
        self._decoded: OrderedDict[int, Columns] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def points(self, start: int, count: int) -> Columns:
        """Copies of ``count`` > 0 points from ``start`` on, by column: unknown is NaN, −1 for a reader; ``valid`` is
        int8 with −1 for unknown.

        Raises:
            InputError: the file is damaged.
        """
        pieces: list[Columns] = []
        end = start + count
        group = bisect_right(self._starts, start) - 1
        while start < end:
            first, last = self._starts[group : group + 2]
            own = slice(start - first, min(end, last) - first)
            pieces.append({name: values[own] for name, values in self._group(group).items()})
            start, group = last, group + 1
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self._columns}

    def _group(self, group: int) -> Columns:
        with self._lock:
            if group in self._decoded:
                self._decoded.move_to_end(group)
                return self._decoded[group]
            try:
                # A row group is too small to be shared out over threads.
                table = self._file.read_row_group(group, self._columns, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(error) from error
            columns = self._decoded[group] = {name: _as_array(table[name]) for name in self._columns}
            self._bytes += _size(columns)
            while self._bytes > DECODED_BYTES and len(self._decoded) > 1:
                self._bytes -= _size(self._decoded.popitem(last=False)[1])
            return columns

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{str(self.path)!r} is damaged ({error}); {COPY_AGAIN}")


def _writer(path: Path, schema: pa.Schema) -> Any:
    return pa.parquet.ParquetWriter(path, schema, compression="zstd")


def _as_array(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    unknown = float("nan") if pa.types.is_floating(column.type) else -1
    array: npt.NDArray[Any] = pa.compute.fill_null(column, unknown).to_numpy()
    return array


def _size(columns: Columns) -> int:
    return sum(values.nbytes for values in columns.values())
