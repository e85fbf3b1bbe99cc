"""The arms of a comparison and their pairs, read leniently, each with the colour and the label it keeps on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

from radgaze.report import figures
from radgaze.report.summary import method_name
from radgaze.report.values import count, finite, plain, section

__all__ = ["Arm", "Pair", "entries", "grouped", "read_arms", "read_pairs"]


@dataclass(frozen=True)
class Arm:
    """One method with one backbone and one number of training studies, trained from several seeds.

    ``label`` is what the arm is called at every size: its name without the number of training studies, and without the
    backbone where all share one. ``colour`` is the method's, ``dash`` tells apart arms of one method at one size.
    """

    name: str
    label: str
    method: str
    colour: str
    dash: str = ""
    backbone: str | None = None
    size: float | None = None
    runs: Sequence[Mapping[str, Any]] = ()
    measures: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method_name(self) -> str:
        return method_name({"method": self.method})

    @property
    def finished(self) -> list[Mapping[str, Any]]:
        """The runs that ended well."""
        return [run for run in self.runs if run.get("status") == "finished"]

    def within(self, backbone: str | None) -> Arm:
        """The same arm under a heading that names its backbone already."""
        return replace(self, label=_without(self.label, backbone, self.method))

    def seeds(self, key: str) -> list[tuple[str, float]]:
        """A measure's value from each seed that has one: (seed, value)."""
        known = [(plain(run.get("seed")), finite(section(run, "values").get(key))) for run in self.finished]
        return [(seed, value) for seed, value in known if value is not None]


@dataclass(frozen=True)
class Pair:
    """Two arms compared on the same patients and seeds: every entry of ``measures`` is first minus second."""

    first: Arm
    second: Arm
    size: float | None
    seeds: Sequence[Any]
    measures: Mapping[str, Mapping[str, Any]]
    delong: Mapping[str, Mapping[str, Any]]

    def within(self, backbone: str | None) -> Pair:
        """The same pair under a heading that names the backbone already."""
        return replace(self, first=self.first.within(backbone), second=self.second.within(backbone))


def entries(parent: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings in the list under ``key``, none where there is no list."""
    found = parent.get(key)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list | tuple) else []


def read_arms(comparison: Mapping[str, Any]) -> list[Arm]:
    """The arms as they come."""
    found = entries(comparison, "arms")
    methods = [str(name) for name in section(comparison, "protocol").get("methods") or ()]
    methods = list(dict.fromkeys([*methods, *(_method(arm) for arm in found)]))
    backbones = list(dict.fromkeys(arm["backbone"] for arm in found if arm.get("backbone") is not None))
    common = str(backbones[0]) if len(backbones) == 1 else None
    sizes = [finite(arm.get("train_studies")) for arm in found]
    full = [_sizeless(str(arm.get("name") or "unnamed"), size) for arm, size in zip(found, sizes, strict=True)]
    short = [_without(name, common, _method(arm)) for name, arm in zip(full, found, strict=True)]
    labels = short if len({*zip(short, sizes, strict=True)}) == len(found) else full
    seen: dict[str, list[str]] = {method: [] for method in methods}
    arms = []
    for arm, label, size in zip(found, labels, sizes, strict=True):
        method = _method(arm)
        if label not in seen[method]:
            seen[method].append(label)
        arms.append(
            Arm(
                name=str(arm.get("name") or "unnamed"),
                label=label,
                method=method,
                colour=figures.series_colour(methods.index(method)),
                dash=figures.series_dash(figures.SERIES_COUNT * seen[method].index(label)),
                backbone=None if arm.get("backbone") is None else str(arm["backbone"]),
                size=size,
                runs=entries(arm, "runs"),
                measures=section(arm, "measures"),
                source=arm,
            )
        )
    return arms


def read_pairs(comparison: Mapping[str, Any], arms: Iterable[Arm]) -> list[Pair]:
    """The pairs as they come; an arm named by a pair alone is grey."""
    known = {arm.name: arm for arm in arms}
    pairs = []
    for pair in entries(comparison, "pairs"):
        size = finite(pair.get("train_studies"))
        first, second = (
            known.get(name) or Arm(name, _sizeless(name, size), name, "series-7")
            for name in (str(pair.get("first")), str(pair.get("second")))
        )
        measures, delong = (
            {str(key): found for key, found in section(pair, part).items() if isinstance(found, Mapping)}
            for part in ("measures", "delong")
        )
        pairs.append(Pair(first, second, size, pair.get("seeds") or (), measures, delong))
    return pairs


Entry = TypeVar("Entry", Arm, Pair)


def grouped(members: Sequence[Entry]) -> list[tuple[str | None, list[Entry]]]:
    """Arms or pairs by size, then by backbone where there are several, under headings that say only what differs.

    A pair's backbone is its second's, the control's. Labels leave out the backbone that the heading names.
    """
    sizes = {member.size for member in members}
    backbones = list(dict.fromkeys(_backbone(member) for member in members))
    several = len(set(backbones) - {None}) > 1

    def rank(member: Entry) -> tuple[bool, float, int]:
        return member.size is None, member.size or 0.0, backbones.index(_backbone(member)) if several else 0

    def heading(member: Entry) -> str | None:
        parts = []
        if len(sizes) > 1:
            parts.append("all studies" if member.size is None else f"{count(member.size)} training studies")
        if several:
            parts.append(_backbone(member) or "own network")
        return ", ".join(parts) or None

    return [
        (name, [member.within(_backbone(member)) if several else member for member in group])
        for name, group in groupby(sorted(members, key=rank), heading)
    ]


def _backbone(member: Arm | Pair) -> str | None:
    return member.backbone if isinstance(member, Arm) else member.second.backbone or member.first.backbone


def _method(arm: Mapping[str, Any]) -> str:
    return str(arm.get("method") or arm.get("name") or "unnamed")


def _sizeless(name: str, size: float | None) -> str:
    if size is None:
        return name
    return name.removesuffix(f" ({size:.0f})").removesuffix(f" ({count(size)})") or name


def _without(label: str, backbone: str | None, method: str) -> str:
    """A label without the backbone; what is left, if it is the method alone, as papers write it."""
    shorter = label.removesuffix(f" {backbone}") if backbone else label
    return method_name({"method": method}) if shorter == method else shorter
