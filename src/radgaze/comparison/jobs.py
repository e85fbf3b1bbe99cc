"""Runs as processes, as many at once as the machine allows; a run that fails does not stop the others.

Each run is a process group of its own with a log of its own. Ctrl-C and SIGTERM end all of them; should this process
be killed outright, they end by themselves (:mod:`radgaze.comparison.worker`). On a Ray cluster the processes are
children of its workers; where a node dies, its runs go on elsewhere from their last epoch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from radgaze.cluster import Cluster, Node, import_environment
from radgaze.files import folder_lock, write_json

__all__ = ["Job", "Outcome", "run_jobs", "run_jobs_on", "slots", "threads_of"]

POLL = 0.1  # seconds
GRACE = 5.0  # seconds a process has to end before it is killed
LAST_BREATH = 60.0  # seconds within which a run on a node that is given up for dead is no more


@dataclass(frozen=True, eq=False)
class Job:
    """One process. ``content`` is what :func:`radgaze.comparison.worker.work` takes."""

    name: str
    label: str
    run: Path
    epochs: int
    content: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a job ended; a run that was killed can go on where it stopped."""

    status: Literal["finished", "failed", "interrupted"]
    error: str | None
    log: Path


def slots(jobs: int | None, runs: int, gpus: Sequence[str], gpus_per_run: int = 1) -> list[dict[str, str]]:
    """The environment of each process that may run at the same time.

    Args:
        jobs: How many at once; by default one for each GPU (or each group of GPUs that a run needs), else one a core.
        runs: How many there are to do.
        gpus: Names of the GPUs, as CUDA_VISIBLE_DEVICES has them.
        gpus_per_run: GPUs of one run.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = [",".join(gpus[at : at + gpus_per_run]) for at in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)]
    count = max(1, min(jobs or len(groups) or cores, runs))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    environments = [{"OMP_NUM_THREADS": threads} for _ in range(count)]
    if groups:
        for place, environment in enumerate(environments):
            environment["CUDA_VISIBLE_DEVICES"] = groups[place % len(groups)]
    return environments


def run_jobs(
    jobs: Sequence[Job], folder: Path, environments: Sequence[Mapping[str, str]], progress: bool
) -> dict[str, Outcome]:
    """Do all jobs, at most one per environment at a time.

    Args:
        jobs: In the order in which they start.
        folder: For ``NAME.json``, the job, and ``NAME.log``, what it printed.
        environments: Variables of each place for a process.
        progress: Show the running jobs and the epoch each is at.

    Returns:
        Outcome of each job, by its name.
    """
    waiting, free = list(jobs), list(environments)
    running: list[tuple[Job, subprocess.Popen[bytes], Mapping[str, str]]] = []
    outcomes: dict[str, Outcome] = {}
    with ended_by_signals(), Display(len(jobs), progress) as display:
        try:
            while waiting or running:
                while waiting and free:
                    job, environment = waiting.pop(0), free.pop(0)
                    running.append((job, start(job, folder, environment), environment))
                    display.started(job)
                display.look()
                for entry in list(running):
                    job, process, environment = entry
                    if process.poll() is not None:
                        running.remove(entry)
                        free.append(environment)
                        close(process)
                        outcomes[job.name] = outcome(process.returncode, folder / f"{job.name}.log")
                        display.ended(job, outcomes[job.name])
                time.sleep(POLL)
        finally:
            end([process for _, process, _ in running])
    return outcomes


def run_jobs_on(
    cluster: Cluster, jobs: Sequence[Job], folder: Path, at_once: int | None, gpus: int, progress: bool
) -> dict[str, Outcome]:
    """Do all jobs on a cluster.

    Args:
        cluster: Open for ``folder``.
        jobs: In the order in which they start.
        folder: As in :func:`run_jobs`.
        at_once: How many at a time; by default as many as there is room for.
        gpus: Of one run; without, all cores are shared out.
        progress: Show the running jobs and the epoch each is at.

    Returns:
        Outcome of each job, by its name.
    """
    threads = 1 if gpus else threads_of(cluster.nodes, min(at_once or len(jobs), len(jobs)))
    outcomes: dict[str, Outcome] = {}
    with ended_by_signals(), Display(len(jobs), progress) as display:

        def watch(running: Sequence[int]) -> None:
            for position in running:
                display.started(jobs[position])
            display.look()

        for position, code in cluster.map(
            run_job,
            ({"job": job, "folder": folder} for job in jobs),
            files=lambda piece: [piece["job"].content["cohort"]],
            cpus=threads,
            gpus=gpus,
            at_once=at_once or max(1, cluster.slots(threads, gpus)),
            watch=watch,
        ):
            job = jobs[position]
            outcomes[job.name] = outcome(code, folder / f"{job.name}.log")
            display.ended(job, outcomes[job.name])
    return outcomes


def threads_of(nodes: Sequence[Node], runs: int) -> int:
    """Threads of each run: the most with which all of them find a place at once, else 1; or as the user has set."""
    if given := os.environ.get("OMP_NUM_THREADS"):
        return int(given)
    most = max((node.cpus for node in nodes), default=1)
    return next((each for each in range(most, 1, -1) if sum(node.cpus // each for node in nodes) >= runs), 1)


def run_job(job: Job, folder: Path) -> int:
    """On a node: the run's process, from where an earlier one has left it; returns its exit code."""
    if job.content["settings"] is not None:
        with folder_lock(job.run, "training in", LAST_BREATH):
            pass  # what trained in it, on a node that was given up for dead, has ended
    process = start(job, folder, {})
    try:
        return process.wait()
    finally:
        end([process])


def start(job: Job, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    path = folder / f"{job.name}.json"
    write_json(path, job.content)
    with (folder / f"{job.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "radgaze.comparison.worker", str(path)],
            env={**os.environ, **import_environment(), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.PIPE,  # never written to: its end tells the worker that we are gone
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def outcome(code: int, log: Path) -> Outcome:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if code == 0:
        return Outcome("finished", None, log)
    if code < 0:
        return Outcome("interrupted", f"killed by {signal.Signals(-code).name}", log)
    return Outcome("failed", last or f"ended with exit code {code} and said nothing", log)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End process groups, first by asking."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(0.02)
    for process in processes:
        close(process)


def close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the runs as Ctrl-C does. Only the main thread of a program can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Display:
    """A bar over all runs, and a line for each that is running, with the epoch it is at."""

    def __init__(self, total: int, shown: bool) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
            console=Console(stderr=True),  # standard output is for results
            disable=not shown,
        )
        self.overall = self.progress.add_task("[bold]runs", total=total, status="")
        self.tasks: dict[Job, TaskID] = {}
        self.shown, self.looked = shown, 0.0

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def started(self, job: Job) -> None:
        if job not in self.tasks:
            self.tasks[job] = self.progress.add_task(job.label, total=job.epochs, status="")

    def look(self) -> None:
        """Read the states of the running jobs, once a second at most."""
        if self.shown and time.monotonic() - self.looked >= 1:
            self.looked = time.monotonic()
            for job, task in self.tasks.items():
                self.progress.update(task, **position(job.run))

    def ended(self, job: Job, how: Outcome) -> None:
        self.progress.remove_task(self.tasks.pop(job))
        self.progress.advance(self.overall)
        if how.error is not None and self.shown:
            self.progress.console.print(f"{job.label}: {how.error}", style="red", markup=False, highlight=False)


def position(run: Path) -> dict[str, Any]:
    """Where a run stands, as fields of its line."""
    try:
        state = json.loads((run / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"status": "starting"}
    best = f"best epoch {state['best_epoch']}"
    return {"completed": state["epoch"], "status": "measuring" if state["finished"] else best}
