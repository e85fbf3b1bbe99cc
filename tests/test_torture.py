"""The torture suite in short: a few kills of two commands, and the tools that compare what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from radgaze.files import write_json, write_sealed
from tests.test_benchmarks import load

FOLDER = Path(__file__).parents[1] / "torture"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return load(FOLDER / "_commands.py", monkeypatch)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.syspath_prepend(str(FOLDER))
    return load(FOLDER / "suite.py", monkeypatch)


def test_killed_commands_end_as_if_undisturbed(tmp_path: Path) -> None:
    """An import and a training, two kills each."""
    options = ["--kills", "4", "--only", "import,train", "--seed", "1", "--jobs", "2", "--no-disks"]
    page = tmp_path / "page.md"
    page.write_text("<!-- figures -->\n<!-- end of figures -->\n")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "suite.py"), *options, "--work", str(tmp_path / "work"), "--page", str(page)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    all_of_them = page.read_text().splitlines()[-3]
    assert all_of_them.startswith("| all |"), page.read_text()
    kills, chains, equal = (int(all_of_them.split("|")[column]) for column in (3, 7, 8))
    assert kills >= 4
    assert chains == equal >= 2
    assert not list((tmp_path / "work").rglob("*-0-*"))  # folders of chains that came out equal are gone


def test_what_differs_is_seen_and_what_may_differ_is_not(tmp_path: Path, commands: Any) -> None:
    """Two folders as one command writes them at two times, then one damage after the other."""

    def folder(name: str, seconds: float) -> Path:
        out = tmp_path / name / "out"
        (out / "jobs").mkdir(parents=True)
        write_sealed(out / "state.json", {"seconds": seconds, "history": [{"loss": 0.5, "seconds": seconds}]})
        write_json(out / "comparison.json", {"path": str(out), "created": f"2026-01-01T00:00:0{seconds:.0f}+00:00"})
        (out / "metrics.csv").write_text(f"epoch,loss,seconds\n1,0.5,{seconds}\n")
        (out / "weights.safetensors").write_bytes(b"weights")
        (out / "jobs" / "a.log").write_text(f"{seconds}")
        (out / ".lock").touch()
        return tmp_path / name

    one, other = folder("one", 1.0), folder("other", 2.0)
    assert commands.contents(one) == commands.contents(other)
    assert set(commands.contents(one)) == {
        f"out/{name}" for name in ("state.json", "comparison.json", "metrics.csv", "weights.safetensors")
    }
    for name, content in {
        "metrics.csv": "epoch,loss,seconds\n1,0.6,2.0\n",
        "weights.safetensors": "weightz",
        "comparison.json": '{"path": "elsewhere"}',
        "more.csv": "",
    }.items():
        changed = folder(f"with {name}", 2.0)
        (changed / "out" / name).write_text(content)
        before, after = commands.contents(one), commands.contents(changed)
        assert {key for key in before | after if before.get(key) != after.get(key)} == {f"out/{name}"}
    (one / "out" / ".a.json.7.partial").touch()
    assert commands.left_over(one) == ["out/.a.json.7.partial"]


def test_curves_are_compared_over_sittings(tmp_path: Path, commands: Any) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for name, sittings in {
        "whole": [[1.0, 2.0, 3.0]],
        "twice": [[1.0, 9.0], [2.0, 3.0]],
        "lost": [[1.0], [3.0]],
    }.items():
        step = 0
        for number, losses in enumerate(sittings):
            step = step - 1 if name == "twice" and number else step  # killed: its last epoch is done again
            with SummaryWriter(str(tmp_path / name), filename_suffix=f".{number}", purge_step=step + 1) as board:
                for loss in losses:
                    step += 1
                    board.add_scalar("val/loss", loss, step)
    assert commands.scalars(tmp_path / "whole") == {"val/loss": {1: 1.0, 2: 2.0, 3: 3.0}}
    assert commands.scalars(tmp_path / "twice") == commands.scalars(tmp_path / "whole")
    assert commands.scalars(tmp_path / "lost") != commands.scalars(tmp_path / "whole")


def test_tables_count_what_happened(suite: Any) -> None:
    found = {
        "import": {"kills": {"before": 1, "during": 4}, "chains": 2, "equal": 2, "seconds": 1.25},
        "train": {"kills": {"during": 2, "after": 1}, "chains": 2, "equal": 1, "seconds": 3.0},
    }
    lines = suite.kills_table(found).splitlines()
    assert lines[2] == "| import | 1.2 s | 5 | 1 | 4 | 0 | 2 | 2 |"
    assert lines[4] == "| all |  | 8 | 1 | 6 | 1 | 4 | 3 |"
    outcome = suite.disks.Outcome
    outcomes = [outcome("train", "full", True, True, True), outcome("train", "full", False, True, True, "a traceback")]
    assert suite.disks_table(outcomes).splitlines()[2] == "| train | full | 2 | 1 | 2 | 2 |"
