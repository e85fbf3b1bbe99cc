from __future__ import annotations

import numpy as np
import pytest
import torch

from radgaze.training.config import RunConfig
from radgaze.training.schedule import Plateau, one_cycle


def test_rate_follows_torch_reduce_on_plateau() -> None:
    config = RunConfig(patience=3, learning_rate=1e-2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
    plateau = Plateau()
    random = np.random.default_rng(0)
    for epoch in range(60):
        value = float(1 / (1 + epoch % 9) + 0.1 * random.random())
        if plateau.step(value, config) == "stop":
            break
        reference.step(value)
        assert plateau.rate(config) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert plateau.drops >= 1


def test_stops_after_two_patiences_and_three_epochs() -> None:
    config = RunConfig(patience=2)
    plateau = Plateau()
    decisions = [plateau.step(1.0, config) for _ in range(1 + 2 * 2 + 3)]
    assert decisions == ["wait", "wait", "wait", "drop", "wait", "wait", "drop", "stop"]


def test_stops_below_the_least_rate() -> None:
    config = RunConfig(patience=0, learning_rate=1e-7, min_learning_rate=5e-8)
    plateau = Plateau()
    assert plateau.step(1.0, config) == "wait"
    assert plateau.step(1.0, config) == "stop"


def test_tiny_improvements_do_not_count_also_for_negative_values() -> None:
    config = RunConfig(patience=10)
    plateau = Plateau()
    for value in (-0.9, -0.90001):
        plateau.step(value, config)
    assert plateau.bad_epochs == 1
    plateau.step(-0.91, config)
    assert plateau.bad_epochs == 0


def test_one_cycle_follows_torch() -> None:
    config = RunConfig(learning_rate=2e-3, warmup=0.3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1)
    steps = 101
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.3)
    for step in range(steps):
        # torch's warm-up ends at step pct * total - 1 of total - 1; ours at the share itself
        if step <= 0.3 * steps - 1:
            progress = step / (0.3 * steps - 1) * 0.3
        else:
            progress = 0.3 + 0.7 * (step - (0.3 * steps - 1)) / (steps - 1 - (0.3 * steps - 1))
        assert one_cycle(progress, config) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        if step < steps - 1:
            optimizer.step()
            reference.step()
