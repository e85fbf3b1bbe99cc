"""The report's back matter: the cohort, the settings, the measures used, and the commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from radgaze.report.glossary import GLOSSARY, LOCATED, Measure
from radgaze.report.values import count, estimate, finite, interval, number, plain, section

__all__ = ["commands", "data_context", "matrix_table", "measures_used", "settings_context"]

FACTS = {"name": "Cohort", "gaze_kind": "Gaze", "size": "Working size"}


def data_context(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cohort's facts, and a table for each mapping in it (counts, quirks met on import, splits)."""
    cohort = section(report, "cohort")
    if not cohort:
        return None
    facts: list[tuple[str, str]] = []
    tables: list[dict[str, Any]] = []
    for key, value in cohort.items():
        heading = FACTS.get(key, key.replace("_", " ").capitalize())
        if isinstance(value, Mapping):
            if value and all(isinstance(entry, Mapping) for entry in value.values()):
                tables.append({"heading": heading, "matrix": matrix_table(value), "rows": None})
            elif value:
                rows = [(name.replace("_", " "), text) for name, text in _flat(value, whole=count)]
                tables.append({"heading": heading, "matrix": None, "rows": rows})
        elif key == "size" and isinstance(value, list | tuple):
            facts.append((heading, f"{' × '.join(plain(side) for side in value)} pixels (height × width)"))
        else:
            facts.append((heading, count(value) if key in ("studies", "patients") else plain(value)))
    if report.get("classes"):
        facts.append(("Classes", plain(list(report["classes"]))))
    if report.get("attention"):
        facts.append(("Attention target", str(report["attention"])))
    return {"facts": facts, "tables": tables}


def matrix_table(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """A mapping of mappings as a table: outer keys are rows, inner keys columns; a bare value has one column."""
    if not table:
        return None
    rows = {str(name): entry if isinstance(entry, Mapping) else {"value": entry} for name, entry in table.items()}
    columns = list(dict.fromkeys(str(key) for entry in rows.values() for key in entry))
    return {
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [(name, [_matrix_cell(entry.get(column, "")) for column in columns]) for name, entry in rows.items()],
    }


def _matrix_cell(value: Any) -> str:
    if isinstance(value, Mapping):
        measured = estimate(value)
        return f"{number(measured['value'])} ({interval(measured)})"
    if isinstance(value, float | np.floating):
        return number(value)
    return plain(value) if finite(value) is None else count(value)


def settings_context(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run's own facts, its full configuration and its environment."""
    if not run:
        return None
    facts = {key: plain(value) for key, value in run.items() if not isinstance(value, Mapping)}
    if "parameters" in facts:
        facts["parameters"] = count(run["parameters"])
    return {
        "run": [(key.replace("_", " ").capitalize(), text) for key, text in facts.items()],
        "config": _flat(section(run, "config")),
        "environment": _flat(section(run, "environment")),
    }


def _flat(tree: Mapping[str, Any], prefix: str = "", whole: Any = plain) -> list[tuple[str, str]]:
    """A nested mapping as rows of (dotted key, text); ``whole`` writes whole numbers."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{name}.", whole)
        elif isinstance(value, Mapping):
            rows.append((name, "none"))
        else:
            rows.append((name, (whole if isinstance(value, int) and not isinstance(value, bool) else plain)(value)))
    return rows


def measures_used(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], scores: Iterable[Mapping[str, float]]
) -> list[Measure]:
    """The glossary's entries for the measures this report shows, and no others."""
    used = set(section(report, "classification"))
    used |= {key for maps in section(report, "saliency").values() if isinstance(maps, Mapping) for key in maps}
    located = section(report, "localisation")
    used |= {key for name in LOCATED for key in section(section(located, name), "overall")}
    used |= {key.removeprefix("val_") for row in history for key in row}
    used |= {key for shown in scores for key in shown}
    return [measure for key, measure in GLOSSARY.items() if key in used]


def commands(report: Mapping[str, Any]) -> list[str]:
    """The commands that train and evaluate the run again from its stored configuration."""
    run = section(report, "run")
    if not run.get("method"):
        return []
    train = ["radgaze", "train", str(run["method"]), "COHORT", "--config", "RUN/config.json"]
    if run.get("seed") is not None:
        train += ["--seed", str(run["seed"])]
    evaluate = ["radgaze", "evaluate", "AGAIN", "--split", str(report.get("split") or "test")]
    return [shlex.join([*train, "--out", "AGAIN"]), shlex.join(evaluate)]
