from __future__ import annotations

from pathlib import Path

import pytest

from radgaze.errors import InputError
from radgaze.files import atomic_path, folder_lock, read_json, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(file) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError
    assert read_json(file, "a file") == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_absent_and_damaged_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        read_json(tmp_path / "a.json", "a run")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_json(tmp_path / "a.json", "a run")


def test_second_process_is_refused(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "run", "training in"),
        pytest.raises(InputError, match="Another process is training in"),
        folder_lock(tmp_path / "run", "training in"),
    ):
        pass
    with folder_lock(tmp_path / "run", "training in"):
        pass


@pytest.mark.parametrize("below", ["", "deeper/folder"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "taken"
    file.write_text("something")
    with pytest.raises(InputError, match=r"taken.*is a file"), folder_lock(file / below, "training in"):
        pass
    with pytest.raises(InputError, match=r"taken.*is a file"):
        write_json(file / below / "report.json", {})
    assert file.read_text() == "something"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 200_000, "nested too deep"),
        ("9" * 5000, "Exceeds the limit"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("{", "Expecting"),
    ],
    ids=["deep", "long number", "NaN", "torn"],
)
def test_json_that_cannot_be_read_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=f"is damaged .*{says}"):
        read_json(tmp_path / "a.json", "a test")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path, "a test")
