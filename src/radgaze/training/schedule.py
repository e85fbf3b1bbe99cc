"""Learning-rate schedules as plain numbers, so that a run resumes exactly where it stopped.

``plateau`` is the MT-UNet paper's: torch's ReduceLROnPlateau on a validation value, and *when the rate drops, the best
weights and optimiser state come back* (the new rate is kept). ``one-cycle`` rises from a twenty-fifth of the rate along
half a cosine and falls to a ten-thousandth of that start (Smith & Topin 2018, with torch's OneCycleLR defaults), for
budgets too short to wait for plateaus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from radgaze.training.config import RunConfig

__all__ = ["Decision", "Plateau", "one_cycle"]

Decision = Literal["wait", "drop", "stop"]


@dataclass
class Plateau:
    """State of the plateau schedule. Values are to be minimised.

    Attributes:
        drops: How often the rate was multiplied by ``factor``.
        best: Lowest value that counted as an improvement (by more than ``threshold``, relatively).
        bad_epochs: Epochs since that improvement or the last drop.
        since_best: Epochs since that improvement, drops or not.
    """

    drops: int = 0
    best: float = math.inf
    bad_epochs: int = 0
    since_best: int = 0
    threshold: float = 1e-4  # torch's default

    def step(self, value: float, config: RunConfig) -> Decision:
        """Take in one epoch's validation value and decide what happens before the next epoch."""
        margin = self.threshold * abs(self.best) if math.isfinite(self.best) else 0.0
        if value < self.best - margin:
            self.best, self.bad_epochs, self.since_best = value, 0, 0
            return "wait"
        self.bad_epochs += 1
        self.since_best += 1
        if self.since_best >= 2 * config.patience + 3:
            return "stop"
        if self.bad_epochs <= config.patience:
            return "wait"
        self.drops += 1
        self.bad_epochs = 0
        return "stop" if self.rate(config) < config.min_learning_rate else "drop"

    def rate(self, config: RunConfig) -> float:
        return config.learning_rate * config.factor**self.drops


def one_cycle(progress: float, config: RunConfig) -> float:
    """Learning rate at ``progress`` in [0, 1] through the run."""
    start = config.learning_rate / 25
    end = start / 1e4
    if progress < config.warmup:
        return cosine_between(start, config.learning_rate, progress / config.warmup)
    return cosine_between(config.learning_rate, end, (progress - config.warmup) / (1 - config.warmup))


def cosine_between(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
