"""Whole comparisons, with real processes: everything a user would do to one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
from sklearn.metrics import roc_auc_score

import radgaze
from radgaze import cli
from radgaze.cohort import Cohort
from radgaze.comparison import compare, engine
from radgaze.errors import InputError, RadgazeError
from radgaze.training import Run, fit
from tests.cohorts import multilabel_cohort
from tests.long import LONG

SMALL: dict[str, Any] = {"sigma": 6.0, "precision": "fp32", "epochs": 1}
NARROW: dict[str, Any] = {"mt-unet": {"model": {"width": 2}}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare") / "comparison"


@pytest.fixture(scope="module")
def comparison(large_cohort: Cohort, out: Path) -> dict[str, Any]:
    """Two methods, two seeds, two processes at a time."""
    return radgaze.compare(
        large_cohort,
        out,
        ["gg-cam", "mt-unet"],
        backbones=["resnet10t"],
        seeds=2,
        settings=SMALL,
        settings_of=NARROW,
        jobs=2,
        resamples=100,
        progress=False,
    )


def test_arms_hold_what_the_runs_measured(comparison: dict[str, Any], out: Path) -> None:
    assert comparison["failed"] == []
    assert [arm["name"] for arm in comparison["arms"]] == ["gg-cam resnet10t (12)", "mt-unet (12)"]
    for arm in comparison["arms"]:
        reports = [json.loads((out / run["path"] / "report.json").read_text()) for run in arm["runs"]]
        assert [report["run"]["seed"] for report in reports] == [run["seed"] for run in arm["runs"]] == [0, 1]
        for run, report in zip(arm["runs"], reports, strict=True):
            assert (run["status"], run["epochs"], run["best_epoch"]) == ("finished", 1, 1)
            assert run["values"]["auc_macro"] == report["classification"]["auc_macro"]["value"]
            assert run["values"]["auc:class1"] == report["classification"]["auc"]["class1"]["value"]
        of_seeds = [report["classification"]["auc_macro"]["value"] for report in reports]
        measured = arm["measures"]["auc_macro"]
        assert (measured["n"], measured["mean"]) == (2, pytest.approx(np.mean(of_seeds)))
        assert (measured["min"], measured["max"]) == (min(of_seeds), max(of_seeds))
        assert arm["parameters"] == reports[0]["run"]["parameters"]
    cam, unet = comparison["arms"]
    assert "cam:pointing_game" in cam["measures"]
    assert "saliency:nss" in unet["measures"]
    assert not any(name.startswith("cam:") for name in unet["measures"])
    assert unet["settings"] == {
        "model": {"width": 2}, "preset": "mt-unet", "batch_size": 6, "learning_rate": 1e-4
    }  # fmt: skip
    assert comparison["protocol"]["settings"]["epochs"] == 1
    assert comparison["protocol"]["control"] == "gg-cam"


def test_pair_is_what_the_tables_say(comparison: dict[str, Any], out: Path, large_cohort: Cohort) -> None:
    (pair,) = comparison["pairs"]
    assert (pair["first"], pair["second"], pair["seeds"]) == ("mt-unet (12)", "gg-cam resnet10t (12)", [0, 1])
    truth = large_cohort.targets[large_cohort.indices("test")]
    aucs = []
    for arm in reversed(comparison["arms"]):
        tables = [pl.read_csv(out / run["path"] / "studies-test.csv") for run in arm["runs"]]
        aucs.append([roc_auc_score(truth == 1, table["probability_class1"].to_numpy()) for table in tables])
    entry, delong = pair["measures"]["auc:class1"], pair["delong"]["class1"]
    assert entry["per_seed"] == pytest.approx(np.subtract(*aucs))
    assert entry["value"] == pytest.approx(delong["value"])
    assert entry["value"] == pytest.approx(np.mean(aucs[0]) - np.mean(aucs[1]))
    assert entry["low"] <= entry["high"]
    assert not any(name.startswith(("cam:", "saliency:")) for name in pair["measures"])


def test_files(comparison: dict[str, Any], out: Path) -> None:
    written = json.loads((out / "comparison.json").read_text())
    assert written == {key: value for key, value in comparison.items() if key != "path"}
    assert Path(comparison["path"]) == out / "comparison.html"
    page = (out / "comparison.html").read_text()
    shown = f"{comparison['arms'][0]['measures']['auc_macro']['median']:.3f}"
    assert shown in page
    assert "GG-CAM" in page
    assert "MT-UNet" in page
    with (out / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows][:2] == [
        ("gg-cam resnet10t (12)", "0"),
        ("gg-cam resnet10t (12)", "1"),
    ]
    assert float(rows[3]["auc_macro"]) == comparison["arms"][1]["runs"][1]["values"]["auc_macro"]
    assert rows[3]["cam:iou"] == ""


def test_again_starts_nothing(
    comparison: dict[str, Any], out: Path, large_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_jobs", lambda *_: pytest.fail("a run was started"))
    again = compare(large_cohort, out, resamples=100, progress=False)
    assert {**again, "created": comparison["created"]} == comparison


def test_a_seed_more_a_broken_run_and_a_run_from_elsewhere(
    comparison: dict[str, Any], out: Path, large_cohort: Cohort, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What fails does not stop the rest, and the exit code says that something did."""
    elsewhere = tmp_path / "elsewhere"
    fit(large_cohort, elsewhere, "mt-unet", seed=1, progress=False, model={"width": 4}, **SMALL)
    files = sorted(path.name for path in elsewhere.iterdir())
    broken = out / "runs" / "gg-cam-resnet10t-12-seed2"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*-seed[01]/report.json")}

    monkeypatch.setattr("sys.argv", [
        "radgaze", "compare", str(large_cohort.path), "--out", str(out), "--seeds", "3", "--runs", str(elsewhere),
        "--resamples", "100", "--quiet",
    ])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed, errors = capfd.readouterr()
    assert ended.value.code == 1
    assert "failed: gg-cam resnet10t (12), seed 2" in errors
    assert "2 of 3" in printed

    written = json.loads((out / "comparison.json").read_text())
    cam, unet, foreign = written["arms"]
    assert [run["status"] for run in cam["runs"]] == ["finished", "finished", "failed"]
    assert (cam["measures"]["auc_macro"]["n"], unet["measures"]["auc_macro"]["n"]) == (2, 3)
    (failed,) = written["failed"]
    assert (failed["arm"], failed["seed"], failed["log"]) == (cam["name"], 2, "jobs/gg-cam-resnet10t-12-seed2.log")
    assert "is damaged" in failed["error"]
    assert (out / failed["log"]).read_text().strip().endswith(failed["error"])
    assert [(pair["first"], pair["seeds"]) for pair in written["pairs"]] == [
        ("mt-unet (12)", [0, 1]),
        ("mt-unet (12), elsewhere", [1]),
    ]
    assert foreign["runs"][0]["path"] == str(elsewhere)
    assert (out / "evaluations" / "elsewhere" / "report.json").is_file()
    assert sorted(path.name for path in elsewhere.iterdir()) == files
    assert {path: path.stat().st_mtime_ns for path in before} == before  # measured once


def test_other_weights_are_measured_anew(comparison: dict[str, Any], out: Path, large_cohort: Cohort) -> None:
    run = Run.open(out / "runs" / "mt-unet-12-seed0")
    planned = engine.PlannedRun("mt-unet-12-seed0", 0, run.path, "mt-unet", {})
    assert engine.is_trained(planned)
    assert engine.is_measured(planned, run.path, "test")
    assert not engine.is_measured(planned, run.path, "val")
    report = json.loads((run.path / "report.json").read_text())
    report["run"]["weights"] = "0" * 64
    (run.path / "report.json").write_text(json.dumps(report))
    assert not engine.is_measured(planned, run.path, "test")


def test_diverging_runs_alone_are_no_comparison(cohort: Cohort, tmp_path: Path) -> None:
    settings = {**SMALL, "learning_rate": 1e30, "epochs": 3}
    with pytest.raises(RadgazeError, match=r"No run finished; the first ended with: The (loss|gradient) stopped being"):
        compare(
            cohort, tmp_path, ["mt-unet"], seeds=1, settings=settings, settings_of=NARROW, progress=False
        )  # fmt: skip


def test_multilabel_cohort_on_validation(tmp_path: Path) -> None:
    cohort = multilabel_cohort(tmp_path)
    runs = []
    for scheme in ("uncertainty-class", "class-only"):
        settings = {**SMALL, "model": {"width": 2}, "attention": "mask:blob", "objective": {"scheme": scheme}}
        runs.append(fit(cohort, tmp_path / scheme, "mt-unet", progress=False, **settings).path)
    result = compare(cohort, tmp_path / "out", runs=runs, split="val", resamples=50, jobs=2, progress=False)
    assert result["attention"] == ["blob mask (anatomy, not gaze)"]
    assert any("chose the best epochs" in note for note in result["notes"])
    (pair,) = result["pairs"]
    assert (pair["first"], pair["second"]) == ("mt-unet (12), class-only", "mt-unet (12)")
    labels = cohort.targets[cohort.indices("val")]
    both = {name for name, of in zip(cohort.classes, labels.T, strict=True) if {0, 1} <= set(of.tolist())}
    assert {name for name in pair["measures"] if name.startswith("auc:")} == {f"auc:{name}" for name in both}
    top = labels[:, cohort.classes.index("top")]
    known = ~np.isnan(top)
    for arm, run in zip(result["arms"], runs, strict=True):
        table = pl.read_csv(tmp_path / "out" / "evaluations" / run.name / "tables-val" / "studies-val.csv")
        expected = roc_auc_score(top[known], table["probability_top"].to_numpy()[known])
        assert arm["runs"][0]["values"]["auc:top"] == pytest.approx(expected)


@LONG
def test_a_comparison_survives_being_stopped_and_killed(cohort: Cohort, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL, in the middle: no process is left, no epoch is lost, and the same call finishes."""
    call = (
        "import json, sys; from radgaze.comparison import compare; "
        "compare(sys.argv[1], sys.argv[2], ['mt-unet'], seeds=1, resamples=20, progress=False, "
        "settings=json.loads(sys.argv[3]), settings_of={'mt-unet': {'model': {'width': 2}}})"
    )
    out, settings = tmp_path / "out", {**SMALL, "epochs": 12}
    command = [sys.executable, "-c", call, str(cohort.path), str(out), json.dumps(settings)]
    state = out / "runs" / "mt-unet-12-seed0" / "state.json"

    def epochs() -> int:
        return json.loads(state.read_text())["epoch"] if state.exists() else 0

    kept = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        while process.poll() is None and epochs() < kept + 3:
            time.sleep(0.01)
        assert process.poll() is None, "the comparison ended before it could be stopped"
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) == 1
        process.send_signal(number)
        assert process.wait(timeout=30) != 0
        gone, alive = psutil.wait_procs(workers, timeout=10)
        assert (len(gone), alive) == (1, [])
        kept = epochs()
    call_again = {"seeds": 1, "resamples": 20, "settings": settings, "settings_of": NARROW, "progress": False}
    (run,) = compare(cohort, out, ["mt-unet"], **call_again)["arms"][0]["runs"]
    assert (run["status"], run["epochs"]) == ("finished", 12)
    assert [row["epoch"] for row in Run.open(out / run["path"]).history] == list(range(1, 13))


def test_one_call_at_a_time(comparison: dict[str, Any], out: Path, large_cohort: Cohort) -> None:
    from radgaze.files import folder_lock

    with folder_lock(out, "comparing in"), pytest.raises(InputError, match="Another process is comparing in"):
        compare(large_cohort, out, progress=False)
