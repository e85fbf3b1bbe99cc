"""Measured values as entries of ``report.json``."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from radgaze.measures import statistics

__all__ = ["number", "over_studies", "with_interval"]

Key = TypeVar("Key", bound=Hashable)


def number(value: Tensor | float) -> float | None:
    """A JSON number; an undefined measure (NaN) is null."""
    value = float(value)
    return value if math.isfinite(value) else None


def with_interval(interval: statistics.Interval, index: int) -> dict[str, float | None]:
    return {
        "value": number(interval.value[index]),
        "low": number(interval.low[index]),
        "high": number(interval.high[index]),
    }


def over_studies(columns: Mapping[Key, Tensor], patients: Sequence[str], resamples: int) -> dict[Key, dict[str, Any]]:
    """Mean with its interval over patients, median and standard deviation of each ``(N,)`` column of values."""
    if not columns:
        return {}
    interval = statistics.bootstrap(
        statistics.mean(torch.stack(list(columns.values()), 1)), patients, resamples=resamples
    )
    entries = {}
    for index, (key, values) in enumerate(columns.items()):
        overall = statistics.summary(values)
        entries[key] = {
            "mean": number(overall.mean),
            "median": number(overall.median),
            "std": number(overall.std),
            "low": number(interval.low[index]),
            "high": number(interval.high[index]),
            "n": overall.studies,
        }
    return entries
