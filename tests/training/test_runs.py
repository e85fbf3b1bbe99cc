"""A run's files: what is damaged is told, by name, before anything is computed from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.files import folder_lock, read_sealed
from radgaze.inference import evaluate, export, load, measure_redundancy
from radgaze.inference.folder import predict
from radgaze.training import Run, fit
from tests.training.test_trainer import SMALL


@pytest.fixture(scope="module")
def trained(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(cohort, tmp_path_factory.mktemp("runs") / "run", epochs=2, **SMALL).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def flip(file: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def resumed(run: Path, cohort: Cohort) -> Run:
    return fit(cohort, run, epochs=3, resume=True, **SMALL)


USES: dict[str, Callable[[Path], Any]] = {
    "its network": lambda run: Run.open(run).network(),
    "its report": lambda run: evaluate(run, resamples=5, progress=False),
    "its predictions": load,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("place", [-1, 700])
def test_weights_with_a_flipped_bit_are_refused(run: Path, use: str, place: int) -> None:
    flip(run / "weights.safetensors", place)
    with pytest.raises(InputError, match=r"weights.safetensors' has changed since it was written.*--resume"):
        USES[use](run)
    assert not (run / "report.json").exists()


def test_a_resume_writes_damaged_weights_again(run: Path, cohort: Cohort) -> None:
    whole = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="has changed"):
        Run.open(run).network()
    fit(cohort, run, epochs=2, resume=True, **SMALL)
    assert (run / "weights.safetensors").read_bytes() == whole
    Run.open(run).network()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_state_is_not_resumed(run: Path, cohort: Cohort, damage: str) -> None:
    file = run / "state" / f"{json.loads((run / 'state.json').read_text())['last']}.safetensors"
    if damage == "flipped":
        flip(file, -5)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match=r"epoch-0002.safetensors' (has changed|is missing).*train anew"):
        resumed(run, cohort)
    assert (run / "metrics.csv").read_bytes() == before


def test_settings_and_state_with_a_flipped_bit_are_refused(run: Path, cohort: Cohort) -> None:
    for name, use in (("config.json", Run.open), ("state.json", lambda run: Run.open(run).state)):
        file = run / name
        whole, expected, told = file.read_bytes(), use(run), []
        for byte in range(3, len(whole), 23):
            flip(file, byte, byte % 7)
            try:
                found = use(run)
            except InputError as error:
                told.append(str(error))
            else:  # white space, or the name of the checksum
                assert getattr(found, "config", found) == getattr(expected, "config", expected)
            file.write_bytes(whole)
        assert len(told) > 10
        assert all(name in sentence and "\n" not in sentence for sentence in told)


def test_a_run_from_before_checksums_is_used(run: Path, cohort: Cohort) -> None:
    state = read_sealed(run / "state.json", "a run")
    del state["checksums"], state["weights"]
    (run / "state.json").write_text(json.dumps(state))
    (run / "config.json").write_text(json.dumps(read_sealed(run / "config.json", "a run")))
    Run.open(run).network()
    assert resumed(run, cohort).state.epoch == 3
    state = read_sealed(run / "state.json", "a run")
    assert state["weights"] == Run.open(run).digest
    assert set(state["checksums"]) == {state["last"], state["best"]}


def test_a_cohort_with_a_flipped_bit_is_neither_trained_on_nor_measured(
    trained: Path, cohort: Cohort, tmp_path: Path
) -> None:
    copy = shutil.copytree(cohort.path, tmp_path / "cohort")
    for name in ("images.npy", "masks.npy", "gaze.parquet", "boxes.parquet"):
        whole = (copy / name).read_bytes()
        flip(copy / name, -9)
        with pytest.raises(InputError, match=f"{name}' has changed since it was written"):
            fit(copy, tmp_path / "run", epochs=1, **SMALL)
        with pytest.raises(InputError, match=f"{name}' has changed since it was written"):
            evaluate(trained, copy, out=tmp_path / "report", progress=False)
        (copy / name).write_bytes(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort"]


def test_the_description_of_a_cohort_with_a_flipped_bit_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    copy = shutil.copytree(cohort.path, tmp_path / "cohort")
    file = copy / "cohort.json"
    whole, told = file.read_bytes(), []
    for byte in range(3, len(whole), 23):
        flip(file, byte, byte % 7)
        try:
            assert Cohort.open(copy).meta.items() >= cohort.meta.items()
        except InputError as error:
            told.append(str(error))
        file.write_bytes(whole)
    assert len(told) > 10
    assert all("cohort.json" in sentence for sentence in told)


def test_new_weights_that_were_not_written_any_more_are_written_by_a_resume(run: Path, cohort: Cohort) -> None:
    """Killed after the checksum of new weights and before their name: the old ones are refused, and soon replaced."""
    old = (run / "weights.safetensors").read_bytes()
    resumed(run, cohort)
    new = (run / "weights.safetensors").read_bytes()
    assert old != new
    (run / "weights.safetensors").write_bytes(old)
    with pytest.raises(InputError, match="--resume"):
        Run.open(run).network()
    resumed(run, cohort)
    assert (run / "weights.safetensors").read_bytes() == new


# ---- one writer at a time

WRITES: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "a training": ("", lambda run, out: fit(Run.open(run).cohort(), out, epochs=1, **SMALL)),
    "a report": ("", lambda run, out: evaluate(run, out=out, resamples=5, progress=False)),
    "redundancy": ("", lambda run, out: measure_redundancy(run, images=2, out=out, progress=False)),
    "predictions": ("", lambda run, out: predict(run, Path(__file__).parent, out, progress=False)),
    "an export": (".model.pt2.partial", lambda run, out: export(run, out / "model.pt2", format="torch-export")),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_second_writer_is_refused(trained: Path, tmp_path: Path, what: str) -> None:
    held, write = WRITES[what]
    with folder_lock(tmp_path / "out" / held, "writing into"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="Another process is"):
            write(trained, tmp_path / "out")
        assert sorted(tmp_path.rglob("*")) == before
