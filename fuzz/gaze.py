"""Gaze from arrays of anything: NaN, infinite, huge, of wrong lengths; then drawn, moved, and cut into fixations."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzz.choices import Choices, Harness, refusals
from radgaze.gaze import Frame, Gaze, Grid, detect_fixations, fixation_map, render
from radgaze.gaze.fixations import statistics

__all__ = ["HARNESSES"]


def column(choices: Choices, count: int, width: int = 1) -> Any:
    """An array of ``count`` numbers (or rows of ``width``), and now and then something that is none."""
    if choices.one_in(24):
        return choices.pick((None, 3, "text", [[]], [None], [10**400], {"x": 1}, np.zeros((2, 2, 2)), [1, "a"], b"x"))
    if choices.one_in(24):
        count = choices.number(9)
    values = np.array([choices.real() for _ in range(count * width)])
    if choices.one_in(3):
        values = np.sort(values)
    values = values.reshape(count, width) if width > 1 else values
    kind = choices.pick(("f8", "f4", "i8", "u1", "bool", "list")) if choices.one_in(3) else "f8"
    with np.errstate(all="ignore"):
        return values.tolist() if kind == "list" else values.astype(kind)


def gaze_of(choices: Choices) -> Gaze:
    count = choices.number(12)
    x, y = column(choices, count), column(choices, count)
    return Gaze(
        x,
        y,
        t=None if choices.one_in(6) else column(choices, count),
        duration=column(choices, count) if choices.one_in(3) else None,
        reader=column(choices, count) if choices.one_in(3) else None,
        valid=column(choices, count) if choices.one_in(3) else None,
        px_per_degree=column(choices, count, 2) if choices.one_in(2) else None,
        shown=column(choices, count, 4) if choices.one_in(3) else None,
    )


def check_gaze(data: bytes) -> None:
    choices = Choices(data)
    with refusals():
        gaze = gaze_of(choices)
        assert int(gaze.usable.sum()) <= len(gaze)
        size = choices.number(40) + 1, choices.number(40) + 1
        inside = int(gaze.inside(size).sum())
        grid = Frame((8, 6), choices.pick(("letterbox", "stretch"))).grid(size)
        counted = fixation_map(gaze, grid)
        assert counted.shape == (8, 6)
        assert counted.sum() <= int(gaze.usable.sum())
        assert int(fixation_map(gaze, Grid.area(size, size)).sum()) <= inside  # the far edges are inside, of no cell
        turned = gaze.hflip(size[1]).vflip(size[0]).affine([[-1, 0, size[1] - 1], [0, -1, size[0] - 1]])
        assert int(turned.usable.sum()) == int(gaze.usable.sum())
        numbers = statistics(gaze, size)
        assert numbers.inside == inside
        drawn = render(gaze, size, grid=grid) if choices.one_in(4) else None
        assert drawn is None or (drawn.isfinite().all() and bool((drawn >= 0).all()))
        found = detect_fixations(
            gaze,
            method=choices.pick(("i-dt", "i-vt")),
            unit=choices.pick(("pixels", "degrees")),
            threshold=choices.real() if choices.one_in(3) else 30.0,
            px_per_degree=choices.real() if choices.one_in(6) else None,
            min_duration=choices.real() if choices.one_in(6) else 0.1,
            max_gap=choices.real() if choices.one_in(6) else 5.0,
        )
        assert len(found) <= len(gaze)
        assert bool((found.duration >= 0).all())


HARNESSES = {"gaze": Harness(check_gaze)}
