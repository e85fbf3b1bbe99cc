from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radgaze.cohort.sources.gaze_table import GazeTable, on_image, read_gaze_table
from radgaze.errors import InputError
from tests.cohort.sources.egd_rows import CALIBRATION, HEADER, A, B, C, gaze_row, write_rows


def of(table: GazeTable, image: str) -> GazeTable:
    rows = table.of(image)
    assert rows is not None
    return rows


def test_ids_have_the_lengths_of_the_format() -> None:
    assert len(A) == 44
    assert len(CALIBRATION) == 39
    assert len(HEADER) == 37


def test_rows_by_image_whatever_their_order(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "eye_gaze.csv",
        [
            gaze_row(B, 0.5, 5, 6),
            gaze_row(CALIBRATION, 0, 960, 540),
            gaze_row(A, 0.02, 12, 22, FPOGV=0),
            gaze_row(B, 0.25, 7, -8),
            gaze_row(C, 0, 1, 1),
            gaze_row(A, 0.01, 11, 21, BKID=3),
            gaze_row(A, 0.03, "", 23),
            gaze_row(CALIBRATION, 0, 960, 540, BKID=1, FPOGV=0),
        ],
    )
    table = read_gaze_table(file, [A, B])
    a, b = of(table, A), of(table, B)
    np.testing.assert_array_equal(a.x, [11, 12, np.nan])
    np.testing.assert_array_equal(a.y, [21, 22, 23])
    np.testing.assert_array_equal(a.t, [0.01, 0.02, 0.03])
    np.testing.assert_array_equal(a.tracked, [True, False, True])
    np.testing.assert_array_equal(a.blink, [True, False, False])
    np.testing.assert_array_equal(b.x, [7, 5])
    np.testing.assert_array_equal(b.y, [-8, 6])
    assert a.duration is None
    assert table.of(C) is None
    assert table.of("unheard of") is None
    assert table.counts == {
        "gaze rows in the file": 8,
        "gaze rows of calibration screens, skipped": 2,
        "gaze rows of images that are not in the sheet, skipped": 1,
        "images with gaze that are not in the sheet": 1,
        "gaze rows in a blink (BKID > 0)": 1,
        "gaze rows the tracker calls invalid (FPOGV = 0)": 1,
    }


def test_fixations_start_when_they_start(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "fixations.csv", [gaze_row(A, 0.75, 1, 2, FPOGD=0.25), gaze_row(A, 2, 3, 4, FPOGD=1)])
    a = of(read_gaze_table(file, [A], fixations=True), A)
    np.testing.assert_array_equal(a.t, [0.5, 1.0])
    np.testing.assert_array_equal(a.duration, [0.25, 1.0])


@pytest.mark.parametrize("shuffled", [False, True])
def test_agrees_with_pandas_over_several_blocks(tmp_path: Path, shuffled: bool) -> None:
    rng = np.random.default_rng(0)
    ids = ["-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 5)) for _ in range(40)]
    frame = pd.DataFrame(0.0, index=range(40 * 500), columns=HEADER)
    frame["DICOM_ID"] = np.repeat(ids, 500)
    frame["Time (in secs)"] = np.tile(np.arange(500) / 64, 40)
    frame["X_ORIGINAL"] = rng.integers(-50, 3000, len(frame))
    frame["Y_ORIGINAL"] = rng.integers(-50, 3000, len(frame))
    frame["FPOGV"] = rng.integers(0, 2, len(frame))
    frame["BKID"] = rng.integers(0, 3, len(frame))
    if shuffled:
        frame = frame.iloc[rng.permutation(len(frame))]
    file = tmp_path / "eye_gaze.csv"
    frame.to_csv(file, index=False)
    assert file.stat().st_size > 2 << 20

    table = read_gaze_table(file, ids[::-1])
    assert sorted(table.rows) == sorted(ids)
    for name, expected in pd.read_csv(file).sort_values("Time (in secs)", kind="stable").groupby("DICOM_ID"):
        rows = of(table, str(name))
        np.testing.assert_array_equal(rows.x, expected["X_ORIGINAL"])
        np.testing.assert_array_equal(rows.y, expected["Y_ORIGINAL"])
        np.testing.assert_array_equal(rows.t, expected["Time (in secs)"])
        np.testing.assert_array_equal(rows.tracked, expected["FPOGV"] > 0)
        np.testing.assert_array_equal(rows.blink, expected["BKID"] > 0)


def test_a_file_without_rows(tmp_path: Path) -> None:
    table = read_gaze_table(write_rows(tmp_path / "eye_gaze.csv", []), [A])
    assert table.rows == {}
    assert table.counts["gaze rows in the file"] == 0


def test_without_original_columns_positions_are_on_the_screen(tmp_path: Path) -> None:
    header = [name for name in HEADER if name != "Y_ORIGINAL"]
    file = write_rows(tmp_path / "eye_gaze.csv", [gaze_row(A, 0, 7, 8, FPOGX=0.25, FPOGY=0.75)], header)
    table = read_gaze_table(file, [A])
    assert table.screen
    np.testing.assert_array_equal(of(table, A).x, [0.25])
    np.testing.assert_array_equal(of(table, A).y, [0.75])


@pytest.mark.parametrize("size", [(3056, 2544), (2021, 2497)])
def test_screen_to_image_is_the_published_formula(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-0.1, 1.1, (2, 400))
    pads = (4.0, 5.0, 515.0, 516.5)
    columns, rows = on_image(x, y, size, pads)
    top, bottom, left, right = pads
    height, width = size[0] + size[0] % 2, size[1] + size[1] % 2
    for i in range(400):
        eye_x, eye_y = x[i] * 1920, y[i] * 1080
        if left < eye_x < 1920 - right and top < eye_y < 1080 - bottom:
            assert columns[i] == int(width / (1920 - left - right) * (eye_x - left))
            assert rows[i] == int(height / (1080 - top - bottom) * (eye_y - top))
        else:
            assert (columns[i], rows[i]) == (-1, -1)
    assert np.isnan(on_image(np.array([np.nan]), np.array([0.5]), size, pads)[0]).all()


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    header = [name for name in HEADER if name != "FPOGV"]
    file = write_rows(tmp_path / "eye_gaze.csv", [gaze_row(A, 0, 1, 2)], header)
    with pytest.raises(InputError, match="has no column 'FPOGV'"):
        read_gaze_table(file, [A])
