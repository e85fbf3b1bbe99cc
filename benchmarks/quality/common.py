"""What the quality benchmarks share: train and evaluate once, then summarise over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radgaze.cohort import Cohort
from radgaze.files import read_json
from radgaze.inference import evaluate
from radgaze.training import fit

__all__ = ["RECIPE", "markdown", "over_seeds", "train_and_evaluate"]

RECIPE = {
    "batch_size": 16,
    "learning_rate": 2e-3,
    "schedule": "one-cycle",
    "optimizer": "adamw",
    "weight_decay": 0.01,
}


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
    """Median over seeds (range over seeds) [95 % interval over patients in the median run]; a dash where absent."""
    entries = [entry for report in reports if (entry := lookup(report, path)) is not None]
    if not entries:
        return "–"
    key = "value" if "value" in entries[0] else "mean"
    middle = sorted(entries, key=lambda entry: entry[key])[(len(entries) - 1) // 2]
    text = f"{middle[key]:.3f}"
    if len(entries) > 1:
        values = [entry[key] for entry in entries]
        text += f" ({min(values):.3f}–{max(values):.3f})"
    return f"{text} [{middle['low']:.3f}, {middle['high']:.3f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
