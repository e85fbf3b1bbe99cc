from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from radgaze.errors import InputError, StorageError
from radgaze.files import (
    atomic_path,
    folder_lock,
    is_used,
    publish,
    read_json,
    read_sealed,
    storing,
    write_json,
    write_sealed,
)


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


def test_a_lock_clears_what_killed_processes_left(tmp_path: Path) -> None:
    half = (".a.json.1.partial", "state/.b.safetensors.2.partial", "maps/.tmpJdF2f0")
    for name in (*half, "a.json", "state/b.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with folder_lock(tmp_path, "training in"):
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".lock", "a.json", "state/b.partial"}


def test_a_lock_that_is_refused_clears_nothing(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "training in"):
        (tmp_path / ".a.json.1.partial").write_text("being written")
        with pytest.raises(InputError, match="Another process"), folder_lock(tmp_path, "training in"):
            pass
        assert (tmp_path / ".a.json.1.partial").exists()


def test_a_published_folder_leaves_no_work_behind(tmp_path: Path) -> None:
    work, out = tmp_path / "out.partial", tmp_path / "out"
    (work / "finished").mkdir(parents=True)
    for name in ("plan.json", "finished/a"):
        (work / name).write_text("x")
    publish(work / "finished", out, work)
    assert [path.name for path in out.iterdir()] == ["a"]
    assert not work.exists()


# ---- the disk


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "No space left on device); free some space there"),
        (errno.EROFS, "Read-only file system); choose a folder that can be written"),
        (errno.EIO, "Input/output error); check the disk"),
    ],
)
def test_an_error_of_the_disk_is_a_sentence(tmp_path: Path, number: int, told: str) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with pytest.raises(StorageError) as error, atomic_path(file) as partial:  # noqa: PT012
        partial.write_text("half")
        raise OSError(number, "as the system says it")
    assert str(error.value).startswith(f"{str(file)!r} cannot be written ({told}")
    assert isinstance(error.value, OSError)
    assert read_json(file, "a file") == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_known_by_what_a_library_says(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"a.safetensors' cannot be written .No space"),
        storing(tmp_path / "a.safetensors"),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_errors_of_other_files_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as error, storing(tmp_path / "out" / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")
    assert not isinstance(error.value, StorageError)
    with pytest.raises(FileNotFoundError), storing(tmp_path):
        (tmp_path / "missing").read_text()


# ---- seals


def test_every_flipped_bit_of_a_sealed_file_shows_or_does_no_harm(tmp_path: Path) -> None:
    file, content = tmp_path / "a.json", {"rate": 0.1, "size": (48, 32), "names": ["ä", 'b"'], "none": None, "1": True}
    write_sealed(file, content)
    whole, expected = file.read_bytes(), json.loads(json.dumps(content))
    assert read_sealed(file, "a run") == expected
    shown = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            found = read_sealed(file, "a run")
        except InputError:
            shown += 1
            continue
        # the name of the seal itself was hit, or white space
        assert {key: found[key] for key in expected} == expected
    assert shown > 7 * len(whole)


def test_files_without_a_seal_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_sealed(tmp_path / "a.json", "a run") == {"a": 1}
    write_json(tmp_path / "a.json", [1])
    assert read_sealed(tmp_path / "a.json", "a run") == [1]


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


def test_what_killed_processes_leave_is_no_use_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert not is_used(folder)
    folder.mkdir()
    for name in (".lock", ".state.json.0123456789ab.partial", ".tmpAb1_xy"):
        (folder / name).touch()
        assert not is_used(folder)
    (folder / ".hidden").touch()
    assert is_used(folder)
    with pytest.raises(InputError, match=r"hidden' is a file, expected a folder"):
        is_used(folder / ".hidden")
