"""Train, measure and compare: one call from the protocol to the page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from radgaze import __version__
from radgaze.cluster import Cluster, check_engine, cluster_for
from radgaze.cohort import Cohort
from radgaze.cohort.store import sha256
from radgaze.comparison.jobs import Job, Outcome, run_jobs, run_jobs_on, slots
from radgaze.comparison.protocol import (
    Arm,
    PlannedRun,
    check_evaluable,
    check_unchanged,
    make_arms,
    read_protocol,
    write_protocol,
)
from radgaze.comparison.results import choose_control, gather, write_csv
from radgaze.errors import InputError, RadgazeError
from radgaze.files import folder_lock, read_json, write_json
from radgaze.report import write_comparison
from radgaze.training.runs import Run

__all__ = ["compare"]


def compare(
    cohort: Cohort | Path | str,
    out: Path | str,
    methods: Sequence[str] = (),
    *,
    backbones: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    train_studies: Sequence[int | None] = (),
    settings: Mapping[str, Any] | None = None,
    settings_of: Mapping[str, Mapping[str, Any]] | None = None,
    runs: Sequence[Path | str] = (),
    control: str | None = None,
    jobs: int | None = None,
    engine: str = "local",
    address: str | None = None,
    split: str = "test",
    resamples: int = 2000,
    progress: bool = True,
) -> dict[str, Any]:
    """Train several methods with several seeds on one cohort, measure all runs alike, and compare them.

    Everything is checked before the first run starts. Each run is a process and a folder ``out/runs/NAME``; a run that
    fails does not stop the others. The same call goes on where it was stopped, and keeps what is finished. A call with
    more methods, backbones, sizes, seeds or runs extends the comparison; what a call leaves out stays as it was.

    Args:
        cohort: Open cohort or its folder.
        out: Folder of the comparison.
        methods: Methods to train, see :data:`radgaze.training.methods.METHODS`; ``"NAME=METHOD"`` is a variant with
            settings of its own under NAME.
        backbones: Backbones for the methods that take one; by default the methods' own.
        seeds: How many (0, 1, ...), or which; 3 by default. All arms have the same ones.
        train_studies: Sizes of the training set in studies, None for all; by default all.
        settings: Fields of :class:`radgaze.training.RunConfig` for all runs.
        settings_of: Method, variant or backbone to settings for its runs alone, in this order.
        runs: Finished runs that were trained elsewhere; they are measured into ``out/evaluations`` and not written to.
        control: Method that the others are compared with; by default ``classifier``, else the first.
        jobs: Runs at once; by default one for each GPU, else one for each core.
        engine: ``"local"``, or ``"ray"``: the runs are spread over a Ray cluster.
        address: Of that cluster; see :func:`radgaze.cluster.open_cluster`.
        split: ``"test"``, or ``"val"`` while a protocol is still being chosen.
        resamples: Bootstrap resamples over patients.
        progress: Show the runs and the epoch each is at.

    Returns:
        The content of ``comparison.json``, with the page's path under ``"path"``. Runs that failed are under
        ``"failed"``.

    Raises:
        InputError: Anything asked for that cannot be trained, measured or compared; other settings than those the
            folder was started with.
        RadgazeError: No run finished.
    """
    cohort = cohort if isinstance(cohort, Cohort) else Cohort.open(cohort)
    out = Path(out).resolve()
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}; give at least 1, or none for as many as the machine allows.")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; give at least 1, and some 2,000 for a 95 % interval.")
    check_engine(engine, address)
    before, started = read_protocol(out, cohort)
    plain, plain_of = (json.loads(json.dumps(given or {}, default=str)) for given in (settings, settings_of))
    protocol = before.extended(cohort, methods, backbones, train_studies, seeds, plain, plain_of, runs)
    arms = make_arms(protocol, cohort, out)
    check_unchanged(out, started, arms)
    check_evaluable(cohort, split, arms)
    control = choose_control(control, arms)
    with folder_lock(out, "comparing in"):
        write_protocol(out, protocol, cohort, arms)
        left = left_to_do(arms, cohort, out, split, resamples)
        outcomes: dict[str, Outcome] = {}
        if left:
            with cluster_for(engine, address, out) as cluster:
                outcomes = run_all(left, arms, out, jobs, cluster, progress)
        reports_of = {
            run.name: report_folder(run, cohort, out, split)
            for arm in arms
            for run in arm.runs
            if run.name not in outcomes or outcomes[run.name].status == "finished"
        }
        if not reports_of:
            first = next(iter(outcomes.values()))
            raise RadgazeError(f"No run finished; the first ended with: {first.error} (see {str(first.log)!r}).")
        comparison = gather(
            cohort, protocol, arms, reports_of, outcomes, out, control=control, split=split, resamples=resamples
        )
        write_json(out / "comparison.json", comparison)
        write_csv(comparison, out / "comparison.csv")
        page = write_comparison(comparison, out)
    return {**comparison, "path": str(page)}


def left_to_do(arms: Sequence[Arm], cohort: Cohort, out: Path, split: str, resamples: int) -> list[Job]:
    """What is left to do, seed by seed, so that a comparison that is stopped has something of every arm."""
    left = []
    for arm, run in sorted(((a, run) for a in arms for run in a.runs), key=lambda planned: planned[1].seed):
        trained = run.settings is None or is_trained(run)
        report = report_folder(run, cohort, out, split)
        if trained and is_measured(run, report, split):
            continue
        content = {
            "cohort": str(cohort.path.resolve()),
            "run": str(run.path),
            "method": run.method,
            "settings": None if trained else run.settings,
            "report": str(report),
            "split": split,
            "resamples": resamples,
        }
        left.append(Job(run.name, f"{arm.name}, seed {run.seed}", run.path, arm.config["epochs"], content))
    return left


def run_all(
    left: Sequence[Job], arms: Sequence[Arm], out: Path, jobs: int | None, cluster: Cluster | None, progress: bool
) -> dict[str, Outcome]:
    """Do what is left, on GPUs where there are any and every arm may use them."""
    use_gpus = all(arm.config["accelerator"] != "cpu" for arm in arms)
    folder = out / "jobs"
    if cluster is not None:
        most = max(node.gpus for node in cluster.nodes) if use_gpus else 0
        return run_jobs_on(cluster, left, folder, jobs, gpus_of_a_run(arms, most) if most else 0, progress)
    gpus = visible_gpus() if use_gpus else []
    return run_jobs(left, folder, slots(jobs, len(left), gpus, gpus_of_a_run(arms, len(gpus))), progress)


def gpus_of_a_run(arms: Sequence[Arm], of_machine: int) -> int:
    """As many as the arm with the most asks for; ``"auto"`` is all of a machine."""
    devices = [arm.config["devices"] for arm in arms]
    return max(1, *(of_machine if given == "auto" else int(given) for given in devices))


def visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def report_folder(run: PlannedRun, cohort: Cohort, out: Path, split: str) -> Path:
    """Where `radgaze evaluate` would write the report; nothing is written into runs that were trained elsewhere."""
    folder = run.path if run.settings is not None else out / "evaluations" / run.name
    return folder if split == "test" else folder / f"{cohort.name}-{split}"


def is_trained(run: PlannedRun) -> bool:
    try:
        return Run.open(run.path).is_trained
    except (InputError, KeyError, TypeError):  # not begun, or damaged: its own process will say
        return False


def is_measured(run: PlannedRun, folder: Path, split: str) -> bool:
    """Whether these very weights were measured by this version, on this split."""
    if not ((folder / "report.json").is_file() and (folder / f"studies-{split}.csv").is_file()):
        return False
    try:
        report = read_json(folder / "report.json", "a report")
        same = report["radgaze"] == __version__ and report["split"] == split
        return same and report["run"]["weights"] == sha256(run.path / "weights.safetensors")
    except (InputError, KeyError, TypeError):
        return False
