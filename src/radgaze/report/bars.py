"""The widths of a network by depth, before and after: one bar for each channel group, as inline SVG.

Drawn by hand, so that a pointer over a bar reads what it stands for. Colours are the page's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from radgaze.report.steps import Width, stages
from radgaze.report.values import count

__all__ = ["width_bars"]

WIDE, TALL = 1000.0, 270.0
LEFT, TOP, BOTTOM = 40.0, 8.0, 40.0
LEAST = 0.7  # channels at the foot of the axis, so that one channel still has a bar
LETTER = 6.4  # width of a letter of the stages' names
RECTANGLE = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="--bar:var(--{})"/>'


def width_bars(groups: Sequence[Width], *, alt: str) -> Markup:
    """Bars on a logarithmic axis, in the given order: faint to ``before``, full to ``after``, a dashed outline for 0.

    Groups of one stage stand together over its name, where there is room for it.
    """
    most = max(4.0, *(float(group.before) for group in groups))
    slot = (WIDE - LEFT) / len(groups)
    thick = min(0.68 * slot, 26.0)
    foot = TALL - BOTTOM

    def height(channels: float) -> float:
        return (foot - TOP) * math.log(channels / LEAST) / math.log(most / LEAST)

    parts = []
    for tick in (4**power for power in range(1 + math.floor(math.log(most, 4)))):
        y = foot - height(tick)
        parts.append(Markup('<path class="rule" d="M{:g} {:.1f}H{:g}"/>').format(LEFT, y, WIDE))
        parts.append(Markup('<text x="{:g}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 8, y + 4, tick))
    index = 0
    for stage, members in groupby(zip(stages([group.name for group in groups]), groups, strict=True), lambda m: m[0]):
        inside = [group for _, group in members]
        left, right = LEFT + index * slot, LEFT + (index + len(inside)) * slot
        if index:
            parts.append(Markup('<path class="border" d="M{:.1f} {:g}V{:g}"/>').format(left, TOP, foot + 8))
        if len(stage) * LETTER < right - left:
            middle = (left + right) / 2
            parts.append(
                Markup('<text x="{:.1f}" y="{:g}" text-anchor="middle">{}</text>').format(middle, foot + 20, stage)
            )
        for group in inside:
            x = LEFT + (index + 0.5) * slot - thick / 2
            bars = [
                Markup(RECTANGLE).format(kind, x, foot - height(channels), thick, height(channels), colour)
                for kind, channels, colour in _bars(group)
            ]
            told = f"{count(group.before)} → {count(group.after)}" if group.after else "gone with its block"
            parts.append(Markup("<g><title>{}: {}</title>{}</g>").format(group.name, told, Markup("").join(bars)))
            index += 1
    parts.append(Markup('<path class="foot" d="M{:g} {:g}H{:g}"/>').format(LEFT, foot, WIDE))
    parts.append(
        Markup('<text x="{:g}" y="{:g}" text-anchor="middle">depth: from the image to the classes</text>').format(
            (LEFT + WIDE) / 2, TALL - 3
        )
    )
    return Markup('<svg class="plot bars-by-depth" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        WIDE, TALL, alt, Markup("").join(parts)
    )


def _bars(group: Width) -> list[tuple[str, int, str]]:
    """What is drawn of a group: (kind, channels, colour)."""
    if not group.after:
        return [("gone", group.before, "series-2")]
    colour = "series-3" if (group.layers or 1) > 1 else "series-1"
    return [("before", group.before, colour), ("after", group.after, colour)]
