"""A run's folder is opened, or it is said what is wrong with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fuzz.runs import CONFIG, STATE
from radgaze.errors import InputError
from radgaze.training.config import RunConfig
from radgaze.training.runs import Run


def write(folder: Path, config: Any = CONFIG, state: Any = STATE) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_what_is_whole_is_opened(tmp_path: Path) -> None:
    run = Run.open(write(tmp_path))
    assert (run.classes, run.size, run.state.best_epoch) == (["a", "b"], (32, 16), 1)
    assert run.frame.size == (32, 16)
    assert run.state.best == {"epoch": 1}


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("run", None, "run: input"),
        ("network", [], "network: input"),
        ("classes", "ab", "classes: input"),
        ("cohort", None, "cohort: input"),
        ("cohort.size", [1 << 20, 1 << 20], "cohort.size: value error, expected at most"),
        ("cohort.checksums", {}, "cohort.checksums: value error, expected those of images.npy"),
    ],
)
def test_settings_that_no_training_writes(tmp_path: Path, place: str, value: Any, says: str) -> None:
    config = copy.deepcopy(CONFIG)
    *outer, key = place.split(".")
    (config[outer[0]] if outer else config)[key] = value
    with pytest.raises(InputError, match=rf"config.json' does not describe a run \({says}"):
        Run.open(write(tmp_path, config))


@pytest.mark.parametrize("config", [[], 3, None, {}])
def test_settings_that_are_none(tmp_path: Path, config: Any) -> None:
    with pytest.raises(InputError, match=r"config\.json' does not describe a run"):
        Run.open(write(tmp_path, config))


@pytest.mark.parametrize(
    "change",
    [{"epoch": -1}, {"epoch": "2"}, {"plateau": {}}, {"plateau": 3}, {"history": [1]}, {"seconds": None}],
    ids=str,
)
def test_a_state_that_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="The state of a run is damaged"):
        Run.open(write(tmp_path, state=STATE | change)).state  # noqa: B018
    with pytest.raises(InputError, match="does not describe a run that can be resumed"):
        Run.open(write(tmp_path, state=[])).state  # noqa: B018


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("setting", ["sigma", "learning_rate", "time_budget"])
def test_a_setting_that_json_cannot_hold_is_refused(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"Training setting {setting} = (inf|nan) cannot be used"):
        RunConfig.parse({setting: value})
