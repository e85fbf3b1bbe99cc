from __future__ import annotations

import threading
import time
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


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    held = threading.Event()

    def hold() -> None:
        with folder_lock(tmp_path, "training in"):
            held.set()
            time.sleep(0.2)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with folder_lock(tmp_path, "training in", patience=10):
        holder.join()


@pytest.mark.parametrize("below", ["", "deeper/folder"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "taken"
    file.write_text("something")
    with pytest.raises(InputError, match=r"taken.*is a file"), folder_lock(file / below, "training in"):
        pass
    with pytest.raises(InputError, match=r"taken.*is a file"):
        write_json(file / below / "report.json", {})
    assert file.read_text() == "something"
