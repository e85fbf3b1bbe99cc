"""Plots of one row each, to stand in the cells of a table: the box of an arm's seeds, a paired difference.

All rows of a column share one :class:`Scale`. Places along it are percentages and everything else is in pixels, so
that a strip fills its cell at any width while dots stay round. Strips are decoration beside cells that state the
numbers, and so hidden from screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from radgaze.report.glossary import Measure
from radgaze.report.values import number

__all__ = ["Box", "Scale", "box_of", "box_scale", "box_strip", "difference_scale", "difference_strip"]

LEAST_SPAN = 0.02
"""A narrower range is shown on this much: an axis must not blow a third decimal up to the width of the page."""


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high`` with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """A value's place in percent of the width; outside 0 to 100 off the axis."""
        return 100 * (value - self.low) / (self.high - self.low)

    @property
    def labels(self) -> list[tuple[str, str]]:
        """Each tick's place in percent and its text, with as many digits as the step between ticks needs."""
        step = min(np.diff(self.ticks), default=1.0)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(f"{self.at(tick):.1f}", number(tick + 0.0, digits)) for tick in self.ticks]


@dataclass(frozen=True)
class Box:
    """Five numbers of a sample: its range, its quartiles (linear between values) and its median."""

    low: float
    lower: float
    median: float
    upper: float
    high: float


def box_of(values: Sequence[float]) -> Box:
    """The box of at least one value."""
    return Box(*(float(bound) for bound in np.percentile(values, [0, 25, 50, 75, 100])))


def box_scale(values: Iterable[float], measure: Measure) -> Scale:
    """The axis of some values of a measure: a little wider than their range, within the measure's own bounds."""
    known = list(values)
    low, high = min(known), max(known)
    pad = max(0.06 * (high - low), (LEAST_SPAN * max(1.0, abs(low)) - (high - low)) / 2)
    low, high = low - pad, high + pad
    if measure.span.startswith("0 to") and min(known) >= 0:
        low = max(low, 0.0)
    if measure.span.endswith("to 1") and max(known) <= 1:
        high = min(high, 1.0)
    return _scale(low, high)


def difference_scale(values: Iterable[float], wide: Iterable[float]) -> Scale:
    """The axis of paired differences, with 0 in the middle. ``wide`` bounds may be cut off, ``values`` may not.

    An interval over two or three seeds can be many times as wide as that over patients, which must stay legible.
    """
    reach = max((abs(value) for value in values), default=0.0)
    reach = max(reach, min(max((abs(value) for value in wide), default=0.0), 2.5 * reach)) * 1.08
    reach = max(reach, LEAST_SPAN / 2)
    power = 10.0 ** math.floor(math.log10(reach))
    tick = power * max(step for step in (1, 2, 3, 4, 5, 6, 8) if step * power <= reach * (1 + 1e-9))
    return Scale(-reach, reach, (-tick, 0.0, tick))  # three labels have room where a tablet leaves little


def box_strip(seeds: Sequence[tuple[str, float]], scale: Scale, colour: str) -> Markup:
    """The values of an arm's seeds, (what a pointer over the dot reads, value) each, over their box.

    From two values on the whiskers span their range and a bar marks the median; from three on a box spans the
    quartiles. Dots stand one below the other in the order of the seeds, so that equal values stay apart.
    """
    parts = _rules(scale)
    ink = f"var(--{colour})"
    if len(seeds) > 1:
        box = box_of([value for _, value in seeds])
        parts.append(_line(scale, box.low, box.high, f"stroke:{ink}", 1.3))
        if len(seeds) > 2:
            left, right = scale.at(box.lower), scale.at(box.upper)
            parts.append(
                f'<rect class="box" x="{left:.2f}%" width="{right - left:.2f}%" y="50%" height="18" '
                f'transform="translate(0 -9)" style="fill:{ink};stroke:{ink}"/>'
            )
        parts.append(
            f'<rect class="median" x="{scale.at(box.median):.2f}%" width="2.4" y="50%" height="18" '
            f'transform="translate(-1.2 -9)" style="fill:{ink}"/>'
        )
    for index, (told, value) in enumerate(seeds):
        drop = 11 * (index / (len(seeds) - 1) - 0.5) if len(seeds) > 1 else 0.0
        parts.append(
            Markup(
                '<circle class="seed" cx="{}%" cy="50%" r="3.4" transform="translate(0 {})" style="fill:{}">'
                "<title>{}</title></circle>"
            ).format(f"{scale.at(value):.2f}", f"{drop:.1f}", ink, told)
        )
    return _svg(parts)


def difference_strip(
    value: float | None,
    patients: tuple[float | None, float | None],
    seeds: tuple[float | None, float | None],
    scale: Scale,
    colour: str,
    *,
    filled: bool,
) -> Markup:
    """A paired difference: its interval over patients as a thick bar, over seeds as a thin line, a dot for the value.

    The dot is ``filled`` where a difference is shown and hollow where none is. A thin line that leaves the axis ends in
    an arrowhead.
    """
    parts = [*_rules(scale), '<line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/>']
    ink = f"var(--{colour})"
    if (thick := _known(patients)) is not None:
        parts.append(_line(scale, *thick, f"stroke:{ink};stroke-opacity:0.45", 7))
    if (thin := _known(seeds)) is not None:
        low, high = (min(max(bound, scale.low), scale.high) for bound in thin)
        parts.append(_line(scale, low, high, f"stroke:{ink}", 1.5))
        for cut, end, head in (
            (thin[0] < scale.low, 0, "M5 -4L0 0L5 4"),
            (thin[1] > scale.high, 100, "M-5 -4L0 0L-5 4"),
        ):
            if cut:
                parts.append(f'<svg class="cut" x="{end}%" y="50%"><path d="{head}" style="stroke:{ink}"/></svg>')
    if value is not None:
        fill = ink if filled else "var(--card)"
        parts.append(
            f'<circle class="point" cx="{scale.at(value):.2f}%" cy="50%" r="4.6" style="fill:{fill};stroke:{ink}"/>'
        )
    return _svg(parts)


def _scale(low: float, high: float) -> Scale:
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return Scale(low, high, tuple(float(tick) for tick in ticks if low - slack <= tick <= high + slack))


def _rules(scale: Scale) -> list[str]:
    places = [f"{scale.at(tick):.2f}%" for tick in scale.ticks]
    return [f'<line class="rule" x1="{place}" x2="{place}" y1="0" y2="100%"/>' for place in places]


def _line(scale: Scale, low: float, high: float, style: str, width: float) -> str:
    ends = f'x1="{scale.at(low):.2f}%" x2="{scale.at(high):.2f}%"'
    return f'<line class="span" {ends} y1="50%" y2="50%" style="{style};stroke-width:{width:g}"/>'


def _known(bounds: tuple[float | None, float | None]) -> tuple[float, float] | None:
    low, high = bounds
    return None if low is None or high is None else (low, high)


def _svg(parts: Sequence[str]) -> Markup:
    return Markup(f'<svg class="strip" aria-hidden="true">{"".join(parts)}</svg>')
