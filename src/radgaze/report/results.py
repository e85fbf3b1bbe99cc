"""Tables and plots of the results: diagnosis, attention and localisation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from radgaze.errors import InputError
from radgaze.report import figures
from radgaze.report.data import matrix_table
from radgaze.report.figures import Curve
from radgaze.report.glossary import BASELINES, LOCATED, describe
from radgaze.report.summary import method_name
from radgaze.report.values import count, estimate, finite, interval, listing, number, ordered, section

__all__ = ["classification_context", "localisation_context", "saliency_context"]


def classification_context(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measures, AUC per class, ROC, calibration and confusion of ``report["classification"]``; None if it is empty."""
    part = section(report, "classification")
    if not part:
        return None
    classes = [str(name) for name in report.get("classes") or ()]
    named = [*section(part, "auc"), *section(part, "roc")]
    order = [name for name in dict.fromkeys([*classes, *named]) if name in named]
    per_class, domain = _per_class(part, order)
    return {
        "rows": [_measure_row(key, part[key]) for key in ordered(part) if _is_estimate(part[key])],
        "classes": per_class,
        "domain": [f"{bound:.2g}" for bound in domain],
        "roc": _roc(part, order),
        "reliability": _reliability(part),
        "confusion": _confusion(part, classes),
        "operating": matrix_table(section(part, "operating")),
    }


def saliency_context(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each measure of ``report["saliency"]``, the model above the baselines; None if it is empty."""
    part = {name: maps for name, maps in section(report, "saliency").items() if isinstance(maps, Mapping) and maps}
    if not part:
        return None
    names = sorted(part, key=lambda name: name != "model")
    method = method_name(section(report, "run"))
    groups = []
    for key in ordered(dict.fromkeys(key for name in names for key in part[name])):
        measure = describe(key)
        measured = {name: estimate(part[name][key]) for name in names if key in part[name]}
        means = {name: mean for name, each in measured.items() if (mean := finite(each["value"])) is not None}
        best = None
        if len(means) > 1 and measure.better:
            best = (max if measure.better == "higher" else min)(means, key=lambda name: means[name])
        domain = _domain(measured.values())
        rows = [
            {
                "name": method if name == "model" else name,
                "model": name == "model",
                "best": name == best,
                "value": number(each["value"]),
                "interval": interval(each),
                "median": number(each.get("median")),
                "std": number(each.get("std")),
                "n": count(each.get("n")),
                "mark": _mark(each, domain, measure.chance, "series-1" if name == "model" else "series-7")
                if domain[0] < domain[1]
                else "",
            }
            for name, each in measured.items()
        ]
        groups.append({"measure": measure, "rows": rows})
    return {"groups": groups, "baselines": [(name, BASELINES[name]) for name in names if name in BASELINES]}


def localisation_context(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each measure of ``report["localisation"]`` over all classes and class by class, beside a uniform map's mean.

    A row for the network's own map (CAM) and one for its Grad-CAM, where it has them.
    """
    part = section(report, "localisation")
    maps = [name for name in LOCATED if section(section(part, name), "overall")]
    if not maps:
        return None
    named = [str(name) for name in report.get("classes") or section(section(part, maps[0]), "classes")]
    groups = []
    for key in ordered(dict.fromkeys(key for name in maps for key in section(section(part, name), "overall"))):
        measure = describe(key)
        rows = []
        for place in (None, *named):
            chance = finite(estimate(_at(part, "uniform", place).get(key))["value"])
            domain = (-1.0, 1.0) if measure.span == "−1 to 1" else (0.0, 1.0)
            for index, name in enumerate(maps):
                if key not in (ours := _at(part, name, place)):
                    continue
                measured, colour = estimate(ours[key]), figures.series_colour(index)
                rows.append(
                    {
                        "name": "All classes" if place is None else place,
                        "map": LOCATED[name],
                        "overall": place is None,
                        "value": number(measured["value"]),
                        "interval": interval(measured),
                        "uniform": "" if chance is None else number(chance),
                        "n": count(measured.get("n")),
                        "mark": _mark(measured, domain, measure.chance if chance is None else chance, colour),
                    }
                )
        groups.append({"measure": measure, "rows": rows})
    structures = {str(name): list(found) for name, found in section(part, "structures").items() if found}
    return {
        "groups": groups,
        "maps": [LOCATED[name] for name in maps],
        "listed": listing([LOCATED[name] for name in maps]).replace(" Decision", " decision"),
        "structures": [(name, listing(found)) for name, found in structures.items()],
        "gaze": part.get("gaze"),
    }


def _at(part: Mapping[str, Any], name: str, place: str | None) -> Mapping[str, Any]:
    """A map's measures in a class, or over all classes."""
    measured = section(part, name)
    return section(measured, "overall") if place is None else section(section(measured, "classes"), place)


def _is_estimate(value: Any) -> bool:
    """Whether an entry is one measured value, and not a table or a list of its own (AUC per class, ROC, confusion)."""
    return "value" in value if isinstance(value, Mapping) else not isinstance(value, list | str)


def _measure_row(key: str, value: Any) -> dict[str, Any]:
    measured, measure = estimate(value), describe(key)
    share = measure.span == "0 to 1"
    return {
        "measure": measure,
        "value": number(measured["value"]),
        "interval": interval(measured),
        "mark": _mark(measured, (0.0, 1.0), measure.chance, "series-1") if share else "",
    }


def _per_class(part: Mapping[str, Any], order: Sequence[str]) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """The rows of the AUC table and its scale: from chance, or from the lowest bound below chance, to 1."""
    measured = [estimate(section(part, "auc").get(name)) for name in order]
    domain = (min(0.5, math.floor(_domain(measured)[0] * 10) / 10), 1.0)
    rows = [
        {
            "name": name,
            "colour": figures.series_colour(index) if name in section(part, "roc") else None,
            "dash": figures.series_dash(index),
            "positive": count(each.get("n_positive")),
            "value": number(each["value"]),
            "interval": interval(each),
            "mark": _mark(each, domain, 0.5, figures.series_colour(index)),
        }
        for index, (name, each) in enumerate(zip(order, measured, strict=True))
    ]
    return rows, domain


def _roc(part: Mapping[str, Any], order: Sequence[str]) -> Markup | None:
    curves, told = [], []
    for index, name in enumerate(order):
        points = section(section(part, "roc"), name)
        rates = np.array([points.get("fpr") or [], points.get("tpr") or []], dtype=np.float64)
        if rates.size and np.isfinite(rates).all():  # a class without studies on either side has no curve
            curves.append(Curve(rates[0], rates[1], figures.series_colour(index), figures.series_dash(index)))
            told.append(f"{name} {number(estimate(section(part, 'auc').get(name))['value'])}")
    if not curves:
        return None
    return figures.roc_plot("roc", curves, alt=f"ROC curves, one class against the rest; areas: {', '.join(told)}.")


def _reliability(part: Mapping[str, Any]) -> Markup | None:
    bins = [
        entry
        for entry in part.get("reliability") or ()
        if entry["count"] and finite(entry["confidence"]) is not None and finite(entry["accuracy"]) is not None
    ]
    if not bins:
        return None
    told = "; ".join(
        f"{count(entry['count'])} at {number(entry['confidence'], 2)}, {number(entry['accuracy'], 2)} came true"
        for entry in bins
    )
    return figures.reliability_plot("reliability", bins, alt=f"Calibration, predictions per confidence: {told}.")


def _confusion(part: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any] | None:
    if not part.get("confusion"):
        return None
    matrix = np.asarray(part["confusion"], dtype=np.float64)
    if matrix.shape != (len(classes), len(classes)):
        raise InputError(
            f"a confusion matrix of shape {matrix.shape} does not fit {len(classes)} classes: "
            f"pass {len(classes)} rows (true) of {len(classes)} counts (predicted)"
        )
    rows = []
    for index, (name, studies) in enumerate(zip(classes, matrix, strict=True)):
        total = studies.sum()
        cells = [
            {
                "count": count(float(cell)),
                "share": f"{100 * cell / total:.0f} %" if total else "n/a",
                "tint": round(100 * cell / total) if total else 0,
                "right": column == index,
            }
            for column, cell in enumerate(studies)
        ]
        rows.append({"name": name, "cells": cells, "total": count(float(total))})
    return {"classes": list(classes), "rows": rows}


def _domain(measured: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """The common scale of several estimates: from the lowest to the highest bound."""
    bounds = [
        known for each in measured for key in ("value", "low", "high") if (known := finite(each.get(key))) is not None
    ]
    return (min(bounds), max(bounds)) if bounds else (0.0, 1.0)


def _mark(measured: Mapping[str, Any], domain: tuple[float, float], chance: float | None, colour: str) -> Markup:
    value, low, high = (finite(measured.get(key)) for key in ("value", "low", "high"))
    return figures.interval_mark(value, low, high, domain, chance=chance, colour=colour)
