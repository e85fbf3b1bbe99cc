"""How arms differ, and what could be chance: seeds within an arm, and two arms on the same patients.

    over seeds          median, range, mean, and mean ± t s / √S, Student's t with S - 1 degrees of freedom
    between two arms    difference of the means over the seeds that both have, with two intervals:
                        over patients (paired bootstrap): the trained networks are held as they are and other patients
                        are drawn. It does not cover that another training would have ended elsewhere.
                        over seeds (t of the per-seed differences): the patients are held as they are and other
                        trainings are drawn. It does not cover that these are few patients.
    per class           DeLong's test of the seed-mean AUC, one class against the rest; over studies, networks held
    Holm                within one measure over all pairs; DeLong's over all classes and pairs

p-values are of the intervals over patients. Nothing here is a joint interval over patients and trainings: a difference
is only as sure as both intervals say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from radgaze.inference.summaries import number
from radgaze.measures import classification, statistics

__all__ = ["Measured", "adjust", "delong_of_classes", "draw", "over_seeds", "paired", "t_interval"]


@dataclass(frozen=True)
class Measured:
    """What one run predicted and scored on the compared studies.

    Attributes:
        scores: ``(N, C)`` float64 probabilities; None without a class head.
        columns: Measure to ``(N,)`` float64 values, NaN where a study has none.
    """

    scores: Tensor | None
    columns: Mapping[str, Tensor]


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None, None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(student_t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """One measure over the runs of an arm; ``low`` and ``high`` are the 95 % t interval of the mean."""
    low, high = t_interval(values)
    return {
        "median": float(np.median(values)),
        "min": min(values),
        "max": max(values),
        "mean": float(np.mean(values)),
        "low": low,
        "high": high,
        "n": len(values),
    }


def draw(
    run: Measured, classes: Sequence[str], targets: Tensor, patients: Sequence[str], resamples: int
) -> dict[str, statistics.Draws]:
    """Every measure of a run on the studies as they are and on each resample of the patients.

    Args:
        run: Of N studies.
        classes: Names of the C classes.
        targets: ``(N,)`` class indices or ``(N, C)`` labels.
        patients: N patients; the draws are the same for every run on the same patients.
        resamples: How many.

    Returns:
        Measure, as named in ``comparison.json``, to its draws.
    """
    drawn: dict[str, statistics.Draws] = {}
    if run.scores is not None:
        scores = run.scores
        names = [*classification.all_measures(scores, targets), *(f"auc:{name}" for name in classes)]

        def of_scores(weights: Tensor) -> Tensor:
            single = torch.stack(list(classification.all_measures(scores, targets, weights).values()), -1)
            return torch.cat((single, classification.auc(scores, targets, weights)), -1)

        drawn |= by_name(names, statistics.draws(of_scores, patients, resamples=resamples))
    if run.columns:
        means = statistics.mean(torch.stack(list(run.columns.values()), 1))
        drawn |= by_name(list(run.columns), statistics.draws(means, patients, resamples=resamples))
    return drawn


def by_name(names: Sequence[str], together: statistics.Draws) -> dict[str, statistics.Draws]:
    return {name: statistics.Draws(together.value[index], together.drawn[:, index]) for index, name in enumerate(names)}


def paired(
    first: Sequence[Mapping[str, statistics.Draws]], second: Sequence[Mapping[str, statistics.Draws]]
) -> dict[str, dict[str, Any]]:
    """First arm minus second, mean over their shared seeds, for every measure that all of these runs have.

    Args:
        first: Draws of the first arm's runs, see :func:`draw`.
        second: Of the second arm's runs, the same seeds in the same order.

    Returns:
        Measure to its entry in ``comparison.json``: ``low``, ``high`` and ``p_value`` over patients, ``seed_low`` and
        ``seed_high`` over seeds. The adjusted p-value is None until :func:`adjust`.
    """
    entries = {}
    for name in first[0]:
        runs = [*first, *second]
        if any(name not in run or run[name].value.isnan() for run in runs):
            continue
        difference = statistics.difference(
            seed_mean([run[name] for run in first]), seed_mean([r[name] for r in second])
        )
        per_seed = [float(one[name].value - other[name].value) for one, other in zip(first, second, strict=True)]
        seed_low, seed_high = t_interval(per_seed)
        entries[name] = {
            "value": float(difference.value),
            "low": number(difference.low),
            "high": number(difference.high),
            "p_value": number(difference.p_value),
            "p_adjusted": None,
            "seed_low": seed_low,
            "seed_high": seed_high,
            "per_seed": per_seed,
        }
    return entries


def seed_mean(runs: Sequence[statistics.Draws]) -> statistics.Draws:
    return statistics.Draws(
        torch.stack([run.value for run in runs]).mean(0), torch.stack([run.drawn for run in runs]).mean(0)
    )


def delong_of_classes(
    first: Sequence[Tensor], second: Sequence[Tensor], classes: Sequence[str], targets: Tensor
) -> dict[str, dict[str, Any]]:
    """DeLong's test of each class's seed-mean AUC, first arm minus second; studies of unknown label are left out.

    Args:
        first: S ``(N, C)`` scores, one for each shared seed.
        second: S scores of the second arm.
        classes: C names.
        targets: ``(N,)`` class indices or ``(N, C)`` labels.

    Returns:
        Class to its entry in ``comparison.json``; a class without two positives and two negatives is left out.
    """
    seeds = len(first)
    weights = torch.tensor([1 / seeds] * seeds + [-1 / seeds] * seeds, dtype=torch.float64)
    entries = {}
    for index, name in enumerate(classes):
        ranked = [classification.one_against_rest(scores, targets, index) for scores in (*first, *second)]
        test = statistics.delong_contrast(torch.stack([scores for scores, _ in ranked]), ranked[0][1], weights)
        if not math.isnan(test.p_value):
            entries[name] = {
                "value": test.value,
                "low": test.low,
                "high": test.high,
                "z": number(test.z),
                "p_value": test.p_value,
                "p_adjusted": None,
            }
    return entries


def adjust(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Fill in ``p_adjusted``, Holm's: each measure over all pairs, DeLong's test over all classes and pairs."""
    families: dict[str | None, list[dict[str, Any]]] = {}
    for pair in pairs:
        for name, entry in pair["measures"].items():
            families.setdefault(name, []).append(entry)
        families.setdefault(None, []).extend(pair["delong"].values())
    for family in families.values():
        raw = [math.nan if entry["p_value"] is None else entry["p_value"] for entry in family]
        for entry, adjusted in zip(family, statistics.holm(torch.tensor(raw, dtype=torch.float64)), strict=True):
            entry["p_adjusted"] = number(adjusted)
