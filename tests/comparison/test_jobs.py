from __future__ import annotations

import os
from pathlib import Path

import pytest

from radgaze.comparison.jobs import outcome, slots


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slots(None, 20, []) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert slots(None, 3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert slots(2, 20, []) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert slots(99, 20, []) == [{"OMP_NUM_THREADS": "1"}] * 20
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert slots(2, 20, []) == [{"OMP_NUM_THREADS": "5"}] * 2


def test_one_run_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def devices(*given: object) -> list[str]:
        return [each["CUDA_VISIBLE_DEVICES"] for each in slots(*given)]  # type: ignore[arg-type]

    assert devices(None, 9, ["0", "2", "5"]) == ["0", "2", "5"]
    assert devices(4, 9, ["0", "1"]) == ["0", "1", "0", "1"]
    assert devices(None, 9, ["0", "1", "2", "3", "4"], 2) == ["0,1", "2,3"]
    assert devices(None, 1, ["0", "1"]) == ["0"]
    assert slots(2, 9, ["0"], 2) == [{"OMP_NUM_THREADS": "1"}] * 2  # fewer GPUs than one run asks for: it will say so


def test_outcome_is_the_last_line_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("warning\nThe loss became nan.\n\n")
    assert (outcome(0, log).status, outcome(0, log).error) == ("finished", None)
    assert (outcome(1, log).status, outcome(1, log).error) == ("failed", "The loss became nan.")
    assert (outcome(-9, log).status, outcome(-9, log).error) == ("interrupted", "killed by SIGKILL")
    log.write_text("")
    assert outcome(3, log).error == "ended with exit code 3 and said nothing"
