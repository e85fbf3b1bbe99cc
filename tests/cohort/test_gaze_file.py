"""Gaze comes back as it was given, however its points lie in row groups, and no more than the budget stays decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radgaze.cohort import Cohort, gaze_file
from radgaze.cohort.gaze_file import GazeFile, GazeWriter
from radgaze.cohort.sources.engine import write_cohort
from radgaze.errors import InputError
from radgaze.gaze import Gaze
from tests.cohort.pictures import make_raws, options

FIELDS = ("x", "y", "t", "duration", "reader", "valid", "px_per_degree", "shown")
GROUP = 16
POINTS = [5, 0, 30, 16, 1, 70, 3]  # across one boundary and several, none, one group exactly


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaze_file, "ROW_GROUP", GROUP)


def random_gaze(count: int, seed: int, known: tuple[str, ...] = FIELDS) -> Gaze:
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "x": random.uniform(-5, 30, count),
        "y": random.uniform(-5, 40, count),
        "t": random.uniform(-1, 9, count),
        "duration": np.where(random.random(count) < 0.3, np.nan, random.random(count)),
        "reader": random.integers(0, 3, count),
        "valid": random.random(count) < 0.7,
        "px_per_degree": random.uniform(20, 40, (count, 2)),
        "shown": random.uniform(0, 30, (count, 4)),
    }
    columns["t"][:1] = 0.5  # a column of nothing but NaN comes back as none
    columns["duration"][:1] = 0.5
    return Gaze(**{name: values for name, values in columns.items() if name in ("x", "y", *known)})


def write(tmp_path: Path, gazes: list[Gaze]) -> Path:
    path = tmp_path / "gaze.parquet"
    with GazeWriter(tmp_path / "work.parquet") as writer:
        for row, gaze in enumerate(gazes):
            writer.add(row, gaze)
        writer.finish(path)
    assert not (tmp_path / "work.parquet").exists()
    return path


def row_groups(path: Path) -> list[int]:
    meta = pyarrow.parquet.read_metadata(path)
    return [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]


def columns_of(counts: list[int], seed: int = 0) -> tuple[list[Gaze], dict[str, np.ndarray]]:
    gazes = [random_gaze(count, seed + index, ("t", "valid")) for index, count in enumerate(counts)]
    names = ("x", "y", "t", "valid")
    return gazes, {name: np.concatenate([getattr(gaze, name).numpy() for gaze in gazes]) for name in names}


def same(gaze: Gaze | None, expected: Gaze) -> None:
    if not len(expected):
        assert gaze is None
        return
    assert gaze is not None
    for name in FIELDS:
        ours, theirs = getattr(gaze, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


# ---- written and read


def test_row_groups_are_full_but_the_last(tmp_path: Path) -> None:
    gazes, columns = columns_of(POINTS)
    path = write(tmp_path, gazes)
    assert row_groups(path) == [GROUP] * 7 + [13]
    table = pl.read_parquet(path)
    assert table["study_row"].to_list() == np.repeat(np.arange(len(POINTS)), POINTS).tolist()
    assert table.schema == {"study_row": pl.Int32, **dict.fromkeys("xyt", pl.Float64), "valid": pl.Boolean}
    file, start = GazeFile(path, sum(POINTS)), 0
    for count in POINTS:
        if count:
            own = file.points(start, count)
            for name, values in columns.items():
                np.testing.assert_array_equal(own[name], values[start : start + count])
        start += count


def test_columns_and_their_types_are_those_that_some_study_has(tmp_path: Path) -> None:
    none = Gaze([1.0] * 20, [2.0] * 20)
    assert pl.read_parquet(write(tmp_path, [none])).columns == ["study_row", "x", "y"]
    last = Gaze([3], [4], reader=[2], shown=[[0, 1, 2, 3]], duration=[np.nan])
    table = pl.read_parquet(write(tmp_path, [none, last]))
    assert table.schema == {
        "study_row": pl.Int32,
        **dict.fromkeys(("x", "y", "duration"), pl.Float64),
        "reader": pl.Int64,
        **dict.fromkeys(("shown_xmin", "shown_ymin", "shown_xmax", "shown_ymax"), pl.Float64),
    }
    assert table["reader"].to_list() == [None] * 20 + [2]
    assert table["duration"].null_count() == 20
    assert table["duration"].is_nan().sum() == 1  # the study had the column, and knew nothing
    assert table["shown_ymax"].to_list() == [None] * 20 + [3]


def test_the_writer_holds_less_than_a_row_group_and_a_study(tmp_path: Path) -> None:
    with GazeWriter(tmp_path / "work.parquet") as writer:
        for row, count in enumerate(POINTS * 20):
            writer.add(row, random_gaze(count, row))
            assert writer._pending_points < GROUP
            held = sum(table.get_total_buffer_size() for table in writer._pending)
            assert held <= (GROUP + max(POINTS)) * (11 * 8 + 4 + 4)


@settings(deadline=None, max_examples=25)
@given(
    studies=st.lists(
        st.tuples(st.integers(0, 40), st.sets(st.sampled_from(FIELDS[2:]))), min_size=1, max_size=8
    ).filter(lambda studies: any(count for count, _ in studies)),
    budget=st.sampled_from([0, 5_000, 1 << 30]),
)
def test_any_gaze_comes_back(
    tmp_path_factory: pytest.TempPathFactory, studies: list[tuple[int, set[str]]], budget: int
) -> None:
    folder = tmp_path_factory.mktemp("random")
    gazes = [random_gaze(count, index, tuple(known)) for index, (count, known) in enumerate(studies)]
    raws = make_raws(folder, len(studies), gaze=False, masks=False)
    for raw, gaze in zip(raws, gazes, strict=True):
        raw.gaze = gaze
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaze_file, "ROW_GROUP", GROUP)
        patch.setattr(gaze_file, "DECODED_BYTES", budget)
        cohort = write_cohort(raws, folder / "out", **options())
        for index in [*range(len(raws)), *reversed(range(len(raws)))]:
            same(cohort.gaze(index), gazes[index])


def test_points_are_copies_that_may_be_changed(tmp_path: Path) -> None:
    raws = make_raws(tmp_path, 2)
    cohort = write_cohort(raws, tmp_path / "out", **options())
    first = cohort.gaze(1)
    assert first is not None
    x = first.x.clone()
    first.x.zero_()
    again = cohort.gaze(1)
    assert again is not None
    assert torch.equal(again.x, x)


# ---- what stays decoded


def decoded_groups(file: GazeFile) -> list[int]:
    return list(file._decoded)


def test_the_groups_used_last_stay_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gazes, columns = columns_of([GROUP] * 6)
    path = write(tmp_path, gazes)
    one = GROUP * (3 * 8 + 1)
    monkeypatch.setattr(gaze_file, "DECODED_BYTES", 3 * one)
    file = GazeFile(path, 6 * GROUP)
    assert decoded_groups(file) == []
    for group in (0, 1, 2, 0, 3):
        np.testing.assert_array_equal(file.points(group * GROUP, 1)["x"], columns["x"][group * GROUP :][:1])
    assert decoded_groups(file) == [2, 0, 3]  # 1 was used longest ago
    np.testing.assert_array_equal(file.points(0, 6 * GROUP)["t"], columns["t"])  # more than stays
    assert decoded_groups(file) == [3, 4, 5]
    assert file._bytes == 3 * one
    monkeypatch.setattr(gaze_file, "DECODED_BYTES", 1)
    file.points(0, 1)
    assert decoded_groups(file) == [0]  # the one in use


def test_within_the_budget_each_group_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gazes, columns = columns_of([GROUP] * 4)
    file = GazeFile(write(tmp_path, gazes), 4 * GROUP)
    decoded: list[int] = []
    read = pyarrow.parquet.ParquetFile.read_row_group

    def spy(self: Any, group: int, *given: Any, **options: Any) -> Any:
        decoded.append(group)
        return read(self, group, *given, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", spy)
    file.points(GROUP, 2)
    assert decoded == [1]  # and no other was touched
    for start in range(0, 4 * GROUP - 5, 5):
        np.testing.assert_array_equal(file.points(start, 5)["y"], columns["y"][start : start + 5])
    assert sorted(decoded) == [0, 1, 2, 3]


def test_threads_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gazes, columns = columns_of([7] * 60)
    monkeypatch.setattr(gaze_file, "DECODED_BYTES", 2 * GROUP * 25)
    file = GazeFile(write(tmp_path, gazes), 420)
    starts = np.random.default_rng(0).integers(0, 413, 600).tolist()
    with ThreadPoolExecutor(8) as pool:
        for start, own in zip(starts, pool.map(lambda start: file.points(start, 7), starts), strict=True):
            np.testing.assert_array_equal(own["x"], columns["x"][start : start + 7])
    assert file._bytes == sum(gaze_file._size(columns) for columns in file._decoded.values()) <= 2 * GROUP * 25


# ---- older and damaged files


def test_an_older_cohort_has_all_points_in_one_group(tmp_path: Path) -> None:
    raws = make_raws(tmp_path, 8)
    for index, raw in enumerate(raws):
        raw.gaze = random_gaze(POINTS[index % 7], index, FIELDS[2 + index % 5 :])
    path = write_cohort(raws, tmp_path / "out", **options()).path
    assert len(row_groups(path / "gaze.parquet")) > 1
    pl.read_parquet(path / "gaze.parquet").write_parquet(path / "gaze.parquet")  # as radgaze 0.1.0 wrote it
    assert len(row_groups(path / "gaze.parquet")) == 1
    for study, raw in zip(Cohort.open(path), raws, strict=True):
        assert isinstance(raw.gaze, Gaze)
        same(study.gaze, raw.gaze)


def test_damage(tmp_path: Path) -> None:
    gazes, _ = columns_of([40] * 3)
    path = write(tmp_path, gazes)
    with pytest.raises(
        InputError, match=r"gaze.parquet' has 120 points; expected 121: copy the cohort again, or import"
    ):
        GazeFile(path, 121)
    data = bytearray(path.read_bytes())
    place = pyarrow.parquet.read_metadata(path).row_group(1).column(1).data_page_offset
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    file = GazeFile(path, 120)  # its footer is whole
    file.points(0, GROUP)
    with pytest.raises(InputError, match=r"gaze.parquet' is damaged \(.*\); copy the cohort again"):
        file.points(0, GROUP + 1)
    for content in (b"", b"PAR1", bytes(data[:-20])):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"gaze.parquet' is damaged \(.*\); copy the cohort again"):
            GazeFile(path, 120)
    path.unlink()
    with pytest.raises(InputError, match="is damaged"):
        GazeFile(path, 120)
