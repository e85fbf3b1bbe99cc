from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from radgaze.cohort import Cohort
from radgaze.cohort.sources.tables import import_tables
from radgaze.errors import InputError
from radgaze.inference import evaluate
from radgaze.training import Run, RunConfig, fit
from radgaze.training.processes import check_launcher, is_first_process, synchronise_norms
from tests.cohorts import blob_cohort, write_tables
from tests.long import LONG

SETTINGS: dict[str, Any] = {
    "model": {"backbone": "test_efficientnet"},  # without dropout, which each process would draw for itself
    "sigma": 6.0,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "accelerator": "cpu",
    "epochs": 3,
}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Neither its training nor its validation split can be shared out evenly, and some studies have no gaze."""
    tables = write_tables(tmp_path_factory.mktemp("uneven") / "tables", studies=45)
    lines = (tables / "gaze.csv").read_text().splitlines(keepends=True)
    (tables / "gaze.csv").write_text("".join(line for line in lines if not line.startswith(("s002", "s011", "s024"))))
    cohort = import_tables(
        tables / "images.csv",
        tables.parent / "cohort",
        gaze=tables / "gaze.csv",
        size=(96, 64),
        fractions=(0.5, 0.25, 0.25),
        progress=False,
    )
    assert len(cohort.indices("train")) % 2 == 1
    assert len(cohort.indices("val")) % 2 == 1
    return cohort


@pytest.fixture(scope="module")
def alone(uneven: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of one process, in a precision."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def train(precision: str) -> Run:
        settings = SETTINGS | {"precision": precision}
        return fit(uneven, folder / precision, "gg-cam", batch_size=8, progress=False, **settings)

    return train


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def train(launcher: str, precision: str, cohort: Cohort, out: Path) -> list[subprocess.CompletedProcess[str]]:
    """Two processes that train together, each with half the batch."""
    arguments = ["train", "gg-cam", str(cohort.path), "--out", str(out), "--batch-size", "4", "--quiet"]
    arguments += f"--backbone test_efficientnet --sigma 6 --lr 3e-3 --precision {precision} --epochs 3".split()
    arguments += ["--set", "accelerator=cpu"]
    ours, port = {**os.environ, "OMP_NUM_THREADS": "1"}, free_port()
    python = [sys.executable, "-m"]
    if launcher == "torchrun, two nodes":
        arguments += ["--nodes", "2"]
        meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
        return finished(
            (
                [*python, "torch.distributed.run", *meeting, "--node-rank", str(rank), "-m", "radgaze.cli", *arguments],
                ours,
            )
            for rank in range(2)
        )
    arguments += ["--devices", "2"]
    if launcher == "lightning":
        return finished([([*python, "radgaze.cli", *arguments], ours)])
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "1"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return finished(
        ([*python, "radgaze.cli", *arguments], ours | job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    )


def finished(commands: Any) -> list[subprocess.CompletedProcess[str]]:
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command, environment in commands
    ]
    try:
        told = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [subprocess.CompletedProcess(p.args, p.returncode, *out) for p, out in zip(started, told, strict=True)]


@pytest.mark.parametrize(
    ("launcher", "precision"),
    [("lightning", "fp32"), pytest.param("torchrun, two nodes", "fp32", marks=LONG), ("slurm", "bf16")],
)
def test_two_processes_equal_one_with_twice_the_batch(
    launcher: str, precision: str, uneven: Cohort, alone: Callable[[str], Run], tmp_path: Path
) -> None:
    done = train(launcher, precision, uneven, tmp_path / "run")
    assert [process.returncode for process in done] == [0] * len(done), done[0].stderr + done[-1].stderr
    assert sum(process.stdout.count("Ended: epochs") for process in done) == 1  # one of the two speaks
    together, single = Run.open(tmp_path / "run"), alone(precision)
    for ours, theirs in zip(together.history, single.history, strict=True):
        for key, value in theirs.items():
            if not isinstance(value, float) or key == "seconds":
                continue
            tolerance = 1e-5
            if precision == "bf16":  # three digits; what depends on an order of scores or on nearly flat maps has fewer
                if key.startswith("val_") and "loss" not in key:
                    continue
                tolerance = 1e-2
            elif key == "val_cc":
                tolerance = 2e-3  # maps of six pixels may be nearly flat
            assert ours[key] == pytest.approx(value, rel=tolerance), key
    if precision == "fp32":
        assert together.state.best_epoch == single.state.best_epoch
    report = evaluate(together, split="val", resamples=20, grad_cam=False, progress=False)
    best = together.history[together.state.best_epoch - 1]
    assert report["classification"]["auc_macro"]["value"] == pytest.approx(best["val_auc_macro"], abs=1e-6)


def test_more_processes_than_validation_studies(uneven: Cohort, tmp_path: Path) -> None:
    few = blob_cohort(tmp_path / "few", studies=4, classes=1)
    assert len(few.indices("val")) == 1
    command = [sys.executable, "-m", "radgaze.cli", "train", "mt-unet", str(few.path), "--out", str(tmp_path / "run")]
    command += ["--devices", "2", "--set", "accelerator=cpu", "--width", "2", "--scheme", "saliency-only", "--quiet"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "1 studies to share among 2 processes; train with fewer devices or nodes" in done.stderr.replace("\n", " ")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone: sums over it are the process's own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_synchronised_norm_is_batch_norm(kind: type[nn.BatchNorm2d], options: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    plain, synced = kind(3, **options), kind(3, **options)
    if plain.affine:
        nn.init.normal_(plain.weight)
        synced.load_state_dict(plain.state_dict())
    names = list(plain.state_dict())
    synchronise_norms(nn.Sequential(synced), torch.device("cpu"))
    assert list(synced.state_dict()) == names
    for _ in range(2):
        given = 100 + 5 * torch.randn(4, 3, 5, 7)
        ours, theirs = given.clone().requires_grad_(), given.clone().requires_grad_()
        upstream = torch.randn(4, 3, 5, 7)
        (synced(ours) * upstream).sum().backward()
        (plain(theirs) * upstream).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        for mine, other in zip(synced.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(synced.state_dict()[name], value)
    torch.testing.assert_close(synced.eval()(given), plain.eval()(given))


def test_a_norm_that_cannot_be_synchronised_is_named() -> None:
    network = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2))
    with pytest.raises(InputError, match="network's 1 is a BatchNorm1d"):
        synchronise_norms(network, torch.device("cpu"))


@pytest.mark.parametrize(
    ("devices", "nodes", "fine"), [(2, 3, True), ("auto", 3, True), (1, 3, False), (2, 1, False), ("auto", 1, False)]
)
def test_what_torchrun_started_must_be_what_was_asked_for(
    devices: Any, nodes: int, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    config = RunConfig(devices=devices, nodes=nodes)
    if fine:
        check_launcher(config)
    else:
        with pytest.raises(InputError, match=r"2 processes on each of 3 nodes.*give --devices 2 --nodes 3"):
            check_launcher(config)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"LOCAL_RANK": "1"}, False),
    ],
)
def test_which_process_speaks(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first
