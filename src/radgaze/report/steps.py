"""``simplification.json`` as the page reads it: its steps in order, and what each channel group came to over them.

A step names layers as they are called in the network it started from. Where a block went in the step before, those
after it moved up, so one layer has several names over the steps; here every one goes by that in the trained run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radgaze.report.arms import entries
from radgaze.report.values import finite, section

__all__ = ["Group", "Step", "Width", "chain", "read_steps", "stages", "widths"]

BODIES = ("backbone", "body")
"""What radgaze's networks call all of themselves but their heads."""


@dataclass(frozen=True)
class Group:
    """What one step did to one channel group.

    ``name`` is the group's in the trained run; ``layers`` is how many layers write it, and ``dead`` how many of its
    channels showed nothing, where the log says so. A ``gone`` group went with its block, whatever was ``kept`` of it.
    """

    name: str
    channels: int
    kept: int
    dead: int | None = None
    layers: int | None = None
    gone: bool = False


@dataclass(frozen=True)
class Step:
    """One network that was tried; ``number`` counts from 1, ``start`` is the step it was made from, None for the run.

    ``dropped`` are the blocks that went, by their names in the trained run, with their perceived change.
    """

    number: int
    source: Mapping[str, Any]
    start: Step | None
    groups: tuple[Group, ...]
    dropped: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """Its folder's name under ``steps``."""
        return str(self.source.get("step"))

    @property
    def accepted(self) -> bool:
        return self.source.get("accepted") is True

    @property
    def parameters(self) -> float | None:
        return finite(self.source.get("parameters"))

    @property
    def auc(self) -> float | None:
        return finite(self.source.get("auc"))


@dataclass(frozen=True)
class Width:
    """A channel group from the trained run to the end of some steps: ``after`` is 0 if its block went."""

    name: str
    before: int
    after: int
    layers: int | None = None


def read_steps(log: Mapping[str, Any]) -> list[Step]:
    """The steps of a log, in order; one that names an unknown start is taken to come from the run."""
    steps: list[Step] = []
    for number, source in enumerate(entries(log, "steps"), start=1):
        start = next((step for step in steps if step.name == source.get("from")), None)
        dropped = section(source, "dropped")
        groups = [
            Group(
                name=_original(str(name), start),
                channels=round(finite(entry.get("channels")) or 0),
                kept=round(finite(entry.get("kept")) or 0),
                dead=None if (dead := finite(entry.get("dead"))) is None else round(dead),
                layers=None if (layers := finite(entry.get("layers"))) is None else round(layers),
                gone=any(str(name).startswith(f"{block}.") for block in dropped),
            )
            for name, entry in section(source, "groups").items()
            if isinstance(entry, Mapping) and (finite(entry.get("channels")) or 0) >= 1
        ]
        told = {_original(str(name), start): finite(change) for name, change in dropped.items()}
        steps.append(Step(number, source, start, tuple(groups), told))
    return steps


def chain(step: Step | None) -> list[Step]:
    """A step after those that led to it, the first one first."""
    return [] if step is None else [*chain(step.start), step]


def widths(steps: Sequence[Step]) -> list[Width]:
    """Every channel group over some consecutive steps, in the network's order. Groups no step names are left out."""
    found: dict[str, Width] = {}
    for step in steps:
        for group in step.groups:
            known = found.get(group.name)
            found[group.name] = Width(
                group.name,
                known.before if known else group.channels,
                0 if group.gone else group.kept,
                known.layers if known else group.layers,
            )
    return list(found.values())


def stages(names: Sequence[str]) -> list[str]:
    """The part of the network each layer is in: ``layer3`` of ``backbone.layer3.2.conv1``, ``encoder.0`` of
    ``body.encoder.0.3``. Words that all names begin with say nothing and are passed over.
    """
    split = [name.split(".") for name in names]
    while all(len(words) > 1 for words in split) and len({words[0] for words in split}) == 1:
        split = [words[1:] for words in split]
    found = []
    for words in split:
        first, *rest = words[1:] if words[0] in BODIES and len(words) > 1 else words
        numbered = len(rest) > 1 and rest[0].isdigit() and not first[-1:].isdigit()
        found.append(f"{first}.{rest[0]}" if numbered else first)
    return found


def _original(name: str, start: Step | None) -> str:
    """The name in the trained run of a layer that is called ``name`` in the network of step ``start``."""
    while start is not None:
        dropped = section(start.source, "dropped")
        for stage in {block.rpartition(".")[0] for block in dropped}:
            if found := re.fullmatch(rf"{re.escape(stage)}\.(\d+)(.*)", name, re.DOTALL):
                name = f"{stage}.{_before(int(found[1]), stage, dropped)}{found[2]}"
        start = start.start
    return name


def _before(index: int, stage: str, dropped: Mapping[str, Any]) -> int:
    """Where the block that is now the ``index``-th of its stage stood when the dropped ones were still there."""
    place = -1
    for _ in range(index + 1):
        place += 1
        while f"{stage}.{place}" in dropped:
            place += 1
    return place
