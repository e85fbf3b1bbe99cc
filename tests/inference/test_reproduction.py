from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from radgaze import cli
from radgaze.cohort import Cohort
from radgaze.cohort.store import sha256
from radgaze.errors import InputError
from radgaze.files import read_json, read_sealed, write_json, write_sealed
from radgaze.inference import evaluate, reproduce
from radgaze.training import Run, fit
from radgaze.training.environment import environment, git_state
from tests.cohorts import blob_cohort

SETTINGS: dict[str, Any] = {"model": {"width": 2}, "sigma": 6.0, "batch_size": 5, "learning_rate": 3e-3, "epochs": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Run]:
    folder = tmp_path_factory.mktemp("reproduction")
    cohort = blob_cohort(folder / "data")
    run = fit(cohort, folder / "run", progress=False, seed=3, **SETTINGS)
    evaluate(run, resamples=30, grad_cam=False, progress=False)
    return cohort, run


@pytest.fixture
def run(home: tuple[Cohort, Run], tmp_path: Path) -> Run:
    """A copy that a test may change."""
    return Run.open(shutil.copytree(home[1].path, tmp_path / "run"))


def change(file: Path, **values: Any) -> None:
    sealed = file.name in ("config.json", "state.json")
    write = write_sealed if sealed else write_json
    write(file, read_sealed(file, "a file") | values)


def test_the_same_to_the_bit(run: Run) -> None:
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    result = reproduce(run, progress=False)
    assert result["identical"]
    assert result["epochs"] == {"identical": True, "before": 2, "now": 2, "first": None, "largest": {}}
    assert result["weights"] == {"identical": True, "largest": 0.0}
    assert result["report"] == {"identical": True, "differing": {}}
    assert result["environment"] == {}
    again = Run.open(run.path.with_name("run-reproduced"))
    assert again.digest == run.digest
    assert read_json(again.path / "reproduction.json", "a file") | {"path": result["path"]} == result
    assert before == {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}


def test_what_differs_is_named(run: Run, tmp_path: Path) -> None:
    history = run.history
    history[1]["val_loss"] += 0.25
    weights = load_file(run.path / "weights.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name].view(-1)[0] += 0.5
    save_file(weights, run.path / "weights.safetensors")
    change(run.path / "state.json", history=history, weights=sha256(run.path / "weights.safetensors"))
    report = read_json(run.path / "report.json", "a report")
    report["classification"]["accuracy"]["value"] = -1.0
    report["classification"].pop("ece")
    write_json(run.path / "report.json", report)
    change(run.path / "environment.json", python="2.7.18")
    result = reproduce(run, tmp_path / "again", progress=False)
    assert not result["identical"]
    assert result["epochs"]["first"]["epoch"] == 2
    assert result["epochs"]["first"]["figure"] == "val_loss"
    assert result["epochs"]["largest"] == {"val_loss": pytest.approx(0.25)}
    assert result["weights"] == {"identical": False, "largest": pytest.approx(0.5)}
    # the report also names the weights it is about
    assert set(result["report"]["differing"]) == {"classification.accuracy.value", "classification.ece"}
    assert result["environment"]["python"][0] == "2.7.18"


def test_another_seed_is_another_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(run.path / "config.json", run=run.config.dump() | {"seed": 4})
    result = reproduce(run.path, tmp_path / "again", progress=False)
    assert not result["identical"]
    assert not result["weights"]["identical"]
    assert result["epochs"]["first"]["epoch"] == 1


def test_a_run_without_report_and_threads(home: tuple[Cohort, Run], run: Run, tmp_path: Path) -> None:
    (run.path / "report.json").unlink()
    threads = torch.get_num_threads()
    change(run.path / "environment.json", threads=threads + 1)
    result = reproduce(run, tmp_path / "again", cohort=home[0].path, progress=False)
    assert result["report"] is None
    assert "threads" not in result["environment"]  # it trained with as many
    assert torch.get_num_threads() == threads


def test_what_the_clock_ended(run: Run, tmp_path: Path) -> None:
    config = run.config.dump()
    change(run.path / "config.json", run=config | {"time_budget": 5.0, "epochs": 50})
    change(run.path / "state.json", finished="time budget")
    result = reproduce(run.path, tmp_path / "again", progress=False)
    assert result["identical"]
    assert result["epochs"]["now"] == 2
    change(run.path / "config.json", run=config | {"time_budget": 5.0, "epochs": 50, "schedule": "one-cycle"})
    with pytest.raises(InputError, match="ended by its time budget in epoch 2 of a cycle of 50"):
        reproduce(run.path, tmp_path / "other", progress=False)


def test_what_cannot_be_repeated(home: tuple[Cohort, Run], run: Run, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(run.path / "weights.safetensors", start)
    started = fit(home[0], tmp_path / "started", progress=False, initial_weights=str(start), **SETTINGS)
    start.write_bytes(start.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"start\.safetensors', which the run started from, is gone or has changed"):
        reproduce(started, progress=False)
    other = blob_cohort(tmp_path / "other", studies=30)
    with pytest.raises(InputError, match="is not the one of the run"):
        reproduce(run, tmp_path / "again", cohort=other, progress=False)
    change(run.path / "state.json", finished=None)
    with pytest.raises(InputError, match="has not finished"):
        reproduce(run, tmp_path / "again", progress=False)
    assert not (tmp_path / "again").exists()


def test_a_changed_file_of_the_cohort_is_found(run: Run, home: tuple[Cohort, Run], tmp_path: Path) -> None:
    copy = shutil.copytree(home[0].path, tmp_path / "cohort")
    pixels = bytearray((copy / "images.npy").read_bytes())
    pixels[-1] ^= 1
    (copy / "images.npy").write_bytes(pixels)
    with pytest.raises(InputError, match=r"images\.npy.* has changed"):
        reproduce(run, tmp_path / "again", cohort=copy, progress=False)


def test_on_the_command_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> tuple[int, str]:
        code = cli.guarded(lambda: cli.app(["reproduce", str(run.path), *arguments, "-q"], standalone_mode=False))
        return code, capsys.readouterr().out

    code, out = call("--out", str(tmp_path / "again"), "--json")
    assert code == 0
    assert json.loads(out)["identical"] is True
    change(run.path / "environment.json", python="2.7.18")
    history = run.history
    history[0]["train_loss"] = 1.5
    change(run.path / "state.json", history=history)
    code, out = call("--out", str(tmp_path / "once more"))
    assert code == 1
    assert "train_loss in epoch 1, 1.5 before" in " ".join(out.replace("│", " ").split())
    assert "2.7.18" in out


def test_environment_names_versions_and_code(tmp_path: Path) -> None:
    found = environment()
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert {"radgaze", "timm", "lightning", "polars", "safetensors", "pydicom"} <= set(found["packages"])
    assert not {"onnx", "ray", "pytest"} & set(found["packages"])  # extras
    assert set(found["code"]) == {"radgaze", "working folder"}
    assert git_state(tmp_path) is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        name = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *name, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    (tmp_path / "installed.py").write_text("")
    commit = git("rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "code.py").write_text("a = 2\n")
    assert git_state(tmp_path, tracked="code.py") == {"commit": commit, "changed": True}
    assert git_state(tmp_path, tracked="installed.py") is None  # lies in a checkout, is not of it
