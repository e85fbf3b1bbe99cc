from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from radgaze.cohort.sources.csv_files import read_header, read_numbers, read_rows
from radgaze.errors import InputError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_keeps_line_breaks_and_leading_zeros(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", '\ufeffid,note,code\r\n1," two\n""lines"" ",0389\r\n2,,\r\n3," ",4280\r\n')
    assert read_rows(file, ["id"]) == [
        {"id": "1", "note": 'two\n"lines"', "code": "0389"},
        {"id": "2", "note": None, "code": None},
        {"id": "3", "note": None, "code": "4280"},
    ]


def test_text_survives_a_byte_that_is_not_utf8(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "a.csv", b"id,note\n1,caf\xe9\n\n"), ["id"])
    assert row["id"] == "1"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_numbers(tmp_path: Path, line_end: str) -> None:
    file = write(
        tmp_path / "a.csv", line_end.join(["x,words,y", "1,one,-2.5", ",two,3e2", "4,three,", "NA,four,nan", ""])
    )
    columns = read_numbers(file, ["y", "x"])
    np.testing.assert_array_equal(columns["x"], [1, np.nan, 4, np.nan])
    np.testing.assert_array_equal(columns["y"], [-2.5, 300, np.nan, np.nan])
    assert columns["x"].dtype == np.float64


def test_numbers_of_a_table_without_rows(tmp_path: Path) -> None:
    assert read_numbers(write(tmp_path / "a.csv", "x,y\r\n"), ["x"])["x"].shape == (0,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x\n1\n", "has no column 'y'"),
        ("x,y\n1,two\n", "is damaged .*two"),
        ("x,y\n1,2\n3\n", "is damaged"),
        ("", "is empty"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_numbers(write(tmp_path / "a.csv", content), ["x", "y"])
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv' does not exist"):
        read_header(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path)


def test_a_null_byte_in_a_sheet_is_damage(tmp_path: Path) -> None:
    """Fields become the names of folders, and no file's name has one."""
    with pytest.raises(InputError, match=r"a.csv' is damaged \(line 3 has a null byte\); copy it"):
        read_rows(write(tmp_path / "a.csv", "id,note\n1,one\n2\0,two\n"), ["id"])


@pytest.mark.parametrize("rows", ["1,2\n1,2,3\n", "1,2\n1\n", '1,2\n1,"2\n3,4\n', "1," + 200_000 * "a" + "\n"])
def test_a_ragged_sheet_is_damaged(tmp_path: Path, rows: str) -> None:
    with pytest.raises(InputError, match="is damaged"):
        read_rows(write(tmp_path / "a.csv", f"id,b\n{rows}"), ["id"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,b,b\n1,2,3\n", "has more than one column 'b'"),
        ("id;b\n1;2\n", "has other separators than commas"),
        ("a" * (2 << 20), "its first line has more than 1,048,576 bytes"),
    ],
    ids=["a heading twice", "semicolons", "an endless line"],
)
def test_what_a_spreadsheet_made_of_it_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(write(tmp_path / "a.csv", content), ["id"])
