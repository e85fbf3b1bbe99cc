"""Train a run again from its own folder, and say whether the same came out: ``radgaze reproduce``.

With the same seed, versions, threads and kind of processor a CPU gives the same bits: every figure of every epoch,
every weight, every figure of the report. Where something differs, the two environments are put beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from radgaze.cohort import Cohort
from radgaze.cohort.store import sha256
from radgaze.errors import InputError
from radgaze.files import read_json, write_json
from radgaze.inference.evaluation import evaluate
from radgaze.models.weights import read_tensors
from radgaze.training.environment import differences
from radgaze.training.processes import is_first_process
from radgaze.training.runs import Run
from radgaze.training.trainer import fit

__all__ = ["reproduce"]

OF_THE_CLOCK = {"seconds", "created"}
NOT_FIGURES = {"run.environment", "run.config"}
"""Of a report: what the run was made with, compared on its own."""


def reproduce(
    run: Run | Path | str,
    out: Path | str | None = None,
    *,
    cohort: Cohort | Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Repeat ``run`` and compare, figure by figure and bit by bit.

    Args:
        run: A finished run or its folder.
        out: Folder of the repetition; by default beside the run, with ``-reproduced`` behind its name.
        cohort: Where the run's cohort is now; by default where it was. Its files must have the run's checksums.
        resume: Go on with a repetition that was stopped.
        progress: Show progress bars.

    Returns:
        The content of ``reproduction.json``: ``identical``, ``weights`` and ``epochs`` and ``report`` (what differs, by
        how much), ``environment`` (name to before and now), and ``path``. In other processes than the first of several:
        nothing.

    Raises:
        InputError: An unfinished run, a cohort or initial weights that are not the run's any more, a folder that is
            taken, or a run whose end was decided by the clock in the middle of a one-cycle schedule.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out) if out is not None else run.path.with_name(f"{run.path.resolve().name}-reproduced")
    settings = repeated_settings(run)
    data = own_cohort(run, cohort)
    recorded = read_json(run.path / "environment.json", "a run")
    with threads(recorded.get("threads")):
        again = fit(data, out, run.config.method, resume=resume, progress=progress, **settings)
        if not is_first_process():
            return {}
        result: dict[str, Any] = {
            "epochs": compare_epochs(run.history, again.history),
            "weights": compare_weights(run.path / "weights.safetensors", again.path / "weights.safetensors"),
            "report": None,
        }
        if (run.path / "report.json").is_file():
            before = read_json(run.path / "report.json", "a report")
            options = before.get("options", {})
            result["report"] = compare_reports(before, evaluate(again, data, out=out, progress=progress, **options))
    now = read_json(again.path / "environment.json", "a run")
    result["environment"] = {name: list(pair) for name, pair in differences(recorded, now).items()}
    parts = [result[name] for name in ("epochs", "weights", "report") if result[name] is not None]
    content = {"identical": all(part["identical"] for part in parts), **result}
    write_json(out / "reproduction.json", content)
    return {**content, "path": str(out / "reproduction.json")}


def repeated_settings(run: Run) -> dict[str, Any]:
    """The run's settings, its end fixed where the clock decided it."""
    if not run.is_trained:
        raise InputError(f"The run in {str(run.path)!r} has not finished; continue it first (train … --resume).")
    settings = run.config.dump()
    del settings["method"]
    if run.config.time_budget is not None:
        if run.state.finished == "time budget":
            if run.config.schedule == "one-cycle":
                raise InputError(
                    f"The run in {str(run.path)!r} was ended by its time budget in epoch {run.state.epoch} of a cycle "
                    f"of {run.config.epochs}, which only the same clock could repeat; train with epochs instead."
                )
            settings["epochs"] = run.state.epoch
        settings["time_budget"] = None
    precision = read_json(run.path / "environment.json", "a run").get("precision")
    if precision is not None:  # what "auto" was on the run's machine
        settings["precision"] = precision
    for path, before in run.content.get("inputs", {}).items():
        if not Path(path).is_file() or sha256(Path(path)) != before:
            raise InputError(f"{path!r}, which the run started from, is gone or has changed; restore it.")
    return settings


def own_cohort(run: Run, given: Cohort | Path | str | None) -> Cohort:
    """The run's cohort; that its files are what it says is for :func:`fit` to find."""
    cohort = run.cohort(given)
    for name, before in run.content["cohort"]["checksums"].items():
        if cohort.meta["checksums"].get(name) != before:
            raise InputError(
                f"Cohort {cohort.name!r} in {str(cohort.path)!r} is not the one of the run: its {name} differs; give "
                "the run's cohort with --cohort."
            )
    return cohort


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """As many threads as the run had: with another number sums come out in another order."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare_epochs(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of all epochs: the first that differ, and the largest difference of each."""
    first: dict[str, Any] | None = None
    largest: dict[str, float] = {}
    for ours, theirs in zip(before, now, strict=False):
        for key, (one, other) in figures_that_differ(ours, theirs).items():
            first = first or {"epoch": ours["epoch"], "figure": key, "before": one, "now": other}
            largest[key] = max(largest.get(key, 0.0), distance(one, other))
    return {
        "identical": first is None and len(before) == len(now),
        "before": len(before),
        "now": len(now),
        "first": first,
        "largest": {key: finite(value) for key, value in largest.items()},
    }


def compare_weights(before: Path, now: Path) -> dict[str, Any]:
    ours, theirs = read_tensors(before), read_tensors(now)
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        return {"identical": False, "largest": None}  # not even the same network
    differing = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    apart = [(ours[name].double() - theirs[name].double()).abs().max().item() for name in differing]
    return {"identical": not differing, "largest": finite(max(apart, default=0.0))}


def compare_reports(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    ours, theirs = ({k: v for k, v in report.items() if k != "path"} for report in (before, now))
    apart = {
        name: [*pair]
        for name, pair in figures_that_differ(ours, theirs).items()
        if not name.startswith(tuple(NOT_FIGURES))
    }
    return {"identical": not apart, "differing": apart}


def figures_that_differ(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    found = differences(before, now)
    return {name: pair for name, pair in found.items() if name not in OF_THE_CLOCK}


def distance(one: Any, other: Any) -> float:
    """Of two figures; infinite where one is none, or no number."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    return abs(one - other) if numbers else math.inf


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
