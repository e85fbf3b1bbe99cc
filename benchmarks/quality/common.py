"""What the quality benchmarks share: train and evaluate once, then summarise over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radgaze.cohort import Cohort
from radgaze.files import read_json
from radgaze.inference import evaluate
from radgaze.training import fit

__all__ = ["interval", "markdown", "over_seeds", "train_and_evaluate"]


def train_and_evaluate(cohort: Cohort, run: Path, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train (or finish, or find) a run and return its test report."""
    fit(cohort, run, method, resume=True, **settings)
    if not (run / "report.json").exists():
        evaluate(run)
    report: dict[str, Any] = read_json(run / "report.json", "a report")
    return report


def lookup(report: dict[str, Any], path: Sequence[str]) -> Any:
    value: Any = report
    for key in path:
        if not isinstance(value, dict) or value.get(key) is None:
            return None
        value = value[key]
    return value


def over_seeds(reports: Sequence[dict[str, Any]], *path: str) -> str:
    """Median over seeds with the range, ``"0.905 (0.901 to 0.909)"``; a dash where the scheme has no such figure."""
    values = [value for report in reports if (value := lookup(report, path)) is not None]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def interval(report: dict[str, Any], *path: str) -> str:
    """One run's figure with its 95 % bootstrap interval over patients."""
    entry = lookup(report, path)
    if entry is None:
        return "–"
    return f"{entry.get('value', entry.get('mean')):.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
