"""``comparison.html``: methods compared over seeds and training sizes, in one self-contained file.

:func:`write_comparison` turns the content of ``comparison.json`` into finished text and drawings and has
``templates/comparison.html.j2`` place them. What an entry of it means is read in ``arms``, what a difference shows is
worded in ``verdicts``, and the page shares its frame, look and rules (no script, no network, everything escaped) with
the report of a run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from radgaze.report import figures, summary
from radgaze.report.arms import Arm, Pair, entries, grouped, read_arms, read_pairs
from radgaze.report.data import data_context, flat
from radgaze.report.figures import Curve
from radgaze.report.glossary import GLOSSARY, PREFIXES, Measure, base_key, describe
from radgaze.report.page import write_page
from radgaze.report.strips import Scale, box_scale, box_strip, difference_scale, difference_strip
from radgaze.report.summary import method_name
from radgaze.report.values import (
    count,
    date_and_time,
    finite,
    interval,
    listing,
    number,
    ordered,
    p_value,
    plain,
    section,
    signed,
)
from radgaze.report.verdicts import attention_targets, cautions, paragraph, verdict

__all__ = ["write_comparison"]

HEADINGS = {
    "seeds": "Seed by seed",
    "differences": "Differences",
    "curves": "Training size",
    "delong": "Class by class",
    "arms": "All numbers",
    "runs": "Runs",
    "protocol": "Protocol",
    "intervals": "What the intervals cover",
    "data": "Data",
    "notes": "Notes",
    "glossary": "Measures",
    "commands": "Reproduce",
}
"""The sections in page order: the context's key, which is also the anchor, and the heading."""

HEADLINES = (
    "auc_macro",
    "ece",
    "saliency:cc",
    "decision:energy_inside",
    "cam:energy_inside",
    "cam:pointing_game",
    "grad_cam:energy_inside",
)
"""The measures drawn, as far as they exist; the tables have all of them."""

FAMILIES = {
    "": "Diagnosis",
    "auc": "AUC per class",
    "saliency": "Attention",
    "cam": "Class activation maps",
    "decision": "Decision maps",
    "grad_cam": "Grad-CAM",
}
"""Headings of the full table's parts, by the prefix of their measures."""


def write_comparison(comparison: Mapping[str, Any], out: Path) -> Path:
    """Write the page and return its path.

    ``comparison`` is the content of ``comparison.json``; every part of it may be absent, and a value that is None or
    NaN reads "n/a". ``out`` is the file to write (``.html``), or a folder to write ``comparison.html`` into. The file
    appears complete or not at all.
    """
    return write_page("comparison", HEADINGS, _context(comparison), out)


def _context(comparison: Mapping[str, Any]) -> dict[str, Any]:
    arms = read_arms(comparison)
    pairs = read_pairs(comparison, arms)
    found = [each.measures for each in arms] + [each.measures for each in pairs]
    measures = ordered(dict.fromkeys(str(key) for each in found for key in each))
    drawn = [key for key in HEADLINES if key in measures] or measures[:4]
    told = {key: value for key, value in comparison.items() if key != "attention"}
    return {
        "title": str(comparison.get("title") or "Comparison of methods"),
        "version": comparison.get("radgaze"),
        "created": date_and_time(comparison.get("created")),
        "split": summary.split_name(comparison),
        "summary": paragraph(comparison, arms, pairs),
        "cautions": cautions(comparison, arms),
        "seeds": _seeds_context(arms, drawn),
        "differences": _differences_context(pairs, drawn),
        "curves": _curves_context(arms, drawn),
        "delong": _delong_context(pairs, comparison),
        "arms": _arms_context(arms, measures),
        "runs": _runs_context(comparison, arms),
        "protocol": _protocol_context(comparison, arms),
        "intervals": _intervals(comparison, arms, pairs),
        "data": data_context(told | {"attention": "; ".join(attention_targets(comparison))}),
        "notes": [str(note) for note in comparison.get("notes") or ()],
        "glossary": _measures_used(measures, pairs),
        "commands": _commands(comparison),
    }


# --------------------------------------------------------------------------------------------------------------------
# Drawn: seeds, differences, training size
# --------------------------------------------------------------------------------------------------------------------


def _seeds_context(arms: Sequence[Arm], keys: Sequence[str]) -> list[dict[str, Any]]:
    """A panel for each measure: every arm's seeds over their box, on one axis."""
    panels = []
    for key in keys:
        measured = [arm for arm in arms if key in arm.measures or arm.seeds(key)]
        values = [value for arm in measured for _, value in arm.seeds(key)]
        if not values:
            continue
        measure = describe(key)
        scale = box_scale(values, measure)
        groups = []
        for heading, members in grouped(measured):
            rows = []
            for arm in members:
                seeds = arm.seeds(key)
                told = [(f"seed {seed}: {number(value, 4)}", value) for seed, value in seeds]
                row = _measured_row(arm, key)
                if len(seeds) == 1:
                    row["range"] = "one seed"
                row["spoken"] = ", ".join(text for text, _ in told)
                row["strip"] = box_strip(told, scale, arm.colour)
                rows.append(row)
            groups.append({"heading": heading, "rows": rows})
        panels.append({"measure": measure, "ticks": scale.labels, "groups": groups})
    return panels


def _differences_context(pairs: Sequence[Pair], drawn: Sequence[str]) -> dict[str, Any] | None:
    """A forest of every pair for each measure; those that are not drawn above stand folded."""
    keys = ordered(dict.fromkeys(key for pair in pairs for key in pair.measures))
    if not keys:
        return None
    first = [key for key in drawn if key in keys] or keys[:1]
    return {
        "headline": [_forest(pairs, key) for key in first],
        "rest": [_forest(pairs, key) for key in keys if key not in first],
    }


def _forest(pairs: Sequence[Pair], key: str) -> dict[str, Any]:
    return _forest_of(describe(key), [(pair, pair.measures[key]) for pair in pairs if key in pair.measures])


def _forest_of(
    measure: Measure, found: Sequence[tuple[Pair, Mapping[str, Any]]], *, seeds: bool = True
) -> dict[str, Any]:
    """The rows of a forest plot in groups, with the axis and what its two sides favour."""

    def known(*ends: str) -> list[float]:
        return [value for _, each in found for end in ends if (value := finite(each.get(end))) is not None]

    scale = difference_scale(known("value", "low", "high"), known("seed_low", "seed_high"))
    # A pair carries what was found through the grouping, as its only measure.
    told = [replace(pair, measures={measure.key: each}) for pair, each in found]
    groups = [
        {"heading": heading, "rows": [_difference_row(measure, pair, scale, seeds=seeds) for pair in members]}
        for heading, members in grouped(told)
    ]
    return {
        "measure": measure,
        "ticks": [(place, _signed_tick(text)) for place, text in scale.labels],
        "sides": _sides(measure, told),
        "groups": groups,
    }


def _difference_row(measure: Measure, pair: Pair, scale: Scale, *, seeds: bool) -> dict[str, Any]:
    found = pair.measures[measure.key]
    read = verdict(measure, pair, found, seeds=seeds)
    over_seeds = finite(found.get("seed_low")), finite(found.get("seed_high"))
    return {
        "first": pair.first.label,
        "second": pair.second.label,
        "colour": pair.first.colour,
        "value": signed(found.get("value")),
        "interval": interval(found),
        "seeds": interval({"low": over_seeds[0], "high": over_seeds[1]}) if seeds else None,
        "z": number(found.get("z"), 2),
        "p": p_value(found.get("p_value")),
        "corrected": p_value(found.get("p_adjusted")),
        "verdict": read.text,
        "firm": read.firm,
        "strip": difference_strip(
            finite(found.get("value")),
            (finite(found.get("low")), finite(found.get("high"))),
            over_seeds,
            scale,
            pair.first.colour,
            filled=read.shown,
        ),
    }


def _signed_tick(text: str) -> str:
    return text if text.startswith("−") or not text.strip("0.") else f"+{text}"


def _sides(measure: Measure, pairs: Sequence[Pair]) -> tuple[str, str]:
    """What lies left and right of zero: who is favoured, by method where every pair has the same."""
    firsts, seconds = (
        {arm.method_name for arm in arms} for arms in zip(*((p.first, p.second) for p in pairs), strict=True)
    )
    first = firsts.pop() if len(firsts) == 1 and firsts != seconds else "the first"
    second = seconds.pop() if len(seconds) == 1 and first != next(iter(seconds)) else "the second"
    if measure.better is None:
        return f"{second} higher", f"{first} higher"
    return (
        (f"favours {second}", f"favours {first}")
        if measure.better == "higher"
        else (f"favours {first}", f"favours {second}")
    )


def _curves_context(arms: Sequence[Arm], keys: Sequence[str]) -> dict[str, Any] | None:
    """A panel for each measure against the number of training studies, under one legend; None without two sizes."""
    lines = {arm.label: {"name": arm.label, "colour": arm.colour, "dash": arm.dash} for arm in arms}
    drawn: set[str] = set()
    panels: list[dict[str, Any]] = []
    for key in keys:
        curves: list[Curve] = []
        labels, told = [], []
        for label in lines:
            points = []
            for arm in arms:
                found = section(arm.measures, key)
                median = finite(found.get("median"))
                if arm.label == label and arm.size is not None and arm.size > 0 and median is not None:
                    low, high = (median if (end := finite(found.get(name))) is None else end for name in ("min", "max"))
                    points.append((arm.size, median, low, high, arm))
            if not points:
                continue
            points.sort(key=lambda point: point[0])
            sizes, medians, lows, highs, members = zip(*points, strict=True)
            curves.append(Curve(sizes, medians, members[0].colour, members[0].dash, low=lows, high=highs))
            labels.append(label)
            steps = ", ".join(f"{number(median)} at {count(size)}" for size, median, *_ in points)
            told.append(f"{label} {steps}")
        if len({size for curve in curves for size in curve.x}) < 2:  # type: ignore[union-attr]
            continue
        measure = describe(key)
        plot = figures.size_panel(
            f"size-{len(panels)}", curves, alt=f"{measure.name} by number of training studies: {'; '.join(told)}."
        )
        panels.append({"measure": measure, "plot": plot})
        drawn |= set(labels)
    if not panels:
        return None
    return {"panels": panels, "legend": [line for label, line in lines.items() if label in drawn]}


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


def _delong_context(pairs: Sequence[Pair], comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A forest of every pair for each class, by DeLong's test."""
    named = list(dict.fromkeys(name for pair in pairs for name in pair.delong))
    classes = [str(name) for name in comparison.get("classes") or ()]
    tables = []
    for name in sorted(named, key=lambda name: classes.index(name) if name in classes else len(classes)):
        found = [(pair, pair.delong[name]) for pair in pairs if name in pair.delong]
        tables.append({"class": name, **_forest_of(describe(f"auc:{name}"), found, seeds=False)})
    return tables


def _arms_context(arms: Sequence[Arm], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Every arm's numbers in every measure, in families."""
    families: dict[str, list[dict[str, Any]]] = {}
    for key in keys:
        rows = [_measured_row(arm, key) for arm in arms if key in arm.measures]
        prefix = "" if base_key(key) == key else key.partition(":")[0]
        if rows:
            families.setdefault(prefix, []).append({"measure": describe(key), "rows": rows})
    return [{"heading": FAMILIES[prefix], "groups": families[prefix]} for prefix in FAMILIES if prefix in families]


def _measured_row(arm: Arm, key: str) -> dict[str, Any]:
    found = section(arm.measures, key)
    return {
        "name": arm.name,
        "label": arm.label,
        "colour": arm.colour,
        "median": number(found.get("median")),
        "range": interval({"low": found.get("min"), "high": found.get("max")}),
        "mean": number(found.get("mean")),
        "interval": interval(found),
        "n": count(found.get("n")),
    }


def _runs_context(comparison: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, Any] | None:
    """What failed, with its error, and every run."""
    failures = [dict(entry) for entry in entries(comparison, "failed")]
    known = {(str(entry.get("arm")), plain(entry.get("seed"))) for entry in failures}
    failures += [
        {"arm": arm.name, "seed": run.get("seed"), "error": run.get("error") or run.get("status")}
        for arm in arms
        for run in arm.runs
        if run.get("status") != "finished" and (arm.name, plain(run.get("seed"))) not in known
    ]
    groups = [
        {
            "name": arm.name,
            "colour": arm.colour,
            "rows": [
                {
                    "seed": plain(run.get("seed")),
                    "status": str(run.get("status") or "unknown"),
                    "best": _of(run.get("best_epoch"), run.get("epochs")),
                    "time": _duration(run.get("seconds")),
                    "path": plain(run.get("path")),
                }
                for run in arm.runs
            ],
        }
        for arm in arms
        if arm.runs
    ]
    if not groups and not failures:
        return None
    return {
        "groups": groups,
        "count": sum(len(arm.runs) for arm in arms),
        "failures": [
            {
                "arm": plain(entry.get("arm")),
                "seed": plain(entry.get("seed")),
                "error": str(entry.get("error") or "no error was recorded"),
                "log": str(entry.get("log") or ""),
            }
            for entry in failures
        ],
    }


def _of(part: Any, whole: Any) -> str:
    return count(part) if None in (finite(part), finite(whole)) else f"{count(part)} of {count(whole)}"


def _duration(seconds: Any) -> str:
    known = finite(seconds)
    if known is None:
        return "n/a"
    minutes, rest = divmod(round(known), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# --------------------------------------------------------------------------------------------------------------------
# Back matter
# --------------------------------------------------------------------------------------------------------------------


def _protocol_context(comparison: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, Any] | None:
    protocol = section(comparison, "protocol")
    if not protocol and not arms:
        return None
    facts = []
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            continue
        if key == "methods":
            value = [method_name({"method": name}) for name in value or ()]
        elif key == "control" and value:
            value = method_name({"method": value})
        elif key == "train_studies":
            value = [_size(size) for size in value or ()]
        elif key == "resamples":
            value = count(value)
        facts.append((key.replace("_", " ").capitalize().replace("Train ", "Training "), plain(value)))
    rows = [
        {
            "name": arm.name,
            "colour": arm.colour,
            "method": arm.method_name,
            "backbone": arm.backbone or "own",
            "size": _size(arm.size),
            "attention": plain(arm.source.get("attention")),
            "parameters": count(arm.source.get("parameters")),
            "finished": _of(len(arm.finished), len(arm.runs)),
        }
        for arm in arms
    ]
    own: dict[tuple[tuple[str, str], ...], list[str]] = {}  # arms of several sizes share theirs
    for arm in arms:
        if settings := tuple(flat(section(arm.source, "settings"))):
            own.setdefault(settings, []).append(arm.label)
    return {
        "facts": facts,
        "arms": rows,
        "settings": flat(section(protocol, "settings")),
        "own": [(listing(list(dict.fromkeys(labels))), settings) for settings, labels in own.items()],
    }


def _size(train_studies: Any) -> str:
    return "all" if train_studies is None else count(train_studies)


def _intervals(comparison: Mapping[str, Any], arms: Sequence[Arm], pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """What each kind of interval on the page covers, and what it leaves out."""
    if not arms:
        return []
    resamples = finite(section(comparison, "protocol").get("resamples"))
    drawn = f" {count(resamples)} times" if resamples is not None else ""
    told = {
        "Range and box": (
            "Each seed is a dot. Whiskers run from the lowest to the highest seed, the bar is the median, and the box, "
            "drawn from three seeds on, spans the quartiles. All seeds are evaluated on the same studies: this is the "
            "spread of training, not of patients."
        ),
        "Interval of the mean": (
            "95 % t interval of an arm’s mean over its seeds: where the mean of many more trainings would lie, on "
            "these same studies. It takes seeds to be normally distributed, and with two or three it is wide. Whether "
            "two arms’ intervals overlap is no test; the paired differences are."
        ),
    }
    if pairs:
        told |= {
            "Interval over patients": (
                f"95 % interval of a paired bootstrap: patients are drawn with replacement{drawn}, and both arms are "
                "measured on the same draw. It covers which patients were met, with the trained networks as they are."
            ),
            "Interval over seeds": (
                "95 % t interval of the mean of the differences seed by seed: it covers how trainings vary, on these "
                "same patients. One seed has none. Where it contains 0 and the interval over patients does not, other "
                "seeds might have shown nothing."
            ),
            "p and corrected p": (
                "p is two-sided, for no difference. The corrected one is Holm’s, for the comparisons that were made "
                "together: with many comparisons, some are below 0.05 by chance alone."
            ),
            "No difference shown": (
                "The interval over patients contains 0, or the corrected p is 0.05 or more. It does not say that two "
                "arms are equal: the interval tells how large a difference the data leave possible."
            ),
        }
    if any(pair.delong for pair in pairs):
        told["DeLong’s test"] = (
            "Compares the areas under two ROC curves of one class on the same studies. It takes studies to be "
            "independent; where patients have several, prefer the bootstrap."
        )
    return list(told.items())


def _measures_used(keys: Iterable[str], pairs: Sequence[Pair]) -> list[Measure]:
    """What the measures are taken of, then each measure once, however many maps it is taken of."""
    used = [*keys, *(f"auc:{name}" for pair in pairs for name in pair.delong)]
    prefixes = {key.partition(":")[0] for key in used if base_key(key) != key} - {"auc"}
    bases = {base_key(key) for key in used}
    return [
        *(Measure(key, f"{name}: …", None, "", told) for key, (name, told) in PREFIXES.items() if key in prefixes),
        *(measure for key, measure in GLOSSARY.items() if key in bases),
    ]


def _commands(comparison: Mapping[str, Any]) -> list[str]:
    """The command that runs the comparison again, with every setting that was asked for."""
    protocol = section(comparison, "protocol")
    asked = section(protocol, "asked") or protocol
    if not asked.get("methods"):
        return []
    command = ["radgaze", "compare", "COHORT"]
    for option, key in (("--methods", "methods"), ("--backbones", "backbones"), ("--train-studies", "train_studies")):
        if values := [plain(value) for value in asked.get(key) or () if value is not None]:
            command += [option, ",".join(values)]
    if seeds := list(asked.get("seeds") or ()):
        counted = seeds == list(range(len(seeds)))
        command += ["--seeds", str(len(seeds)) if counted else ",".join(map(str, seeds)) + "," * (len(seeds) == 1)]
    if asked is protocol:  # resolved settings are no command
        return [shlex.join([*command, "--out", "AGAIN"])]
    own = section(asked, "settings_of")
    for prefix, settings in (("", section(asked, "settings")), *((f"{name}:", own[name]) for name in own)):
        for key, value in _flat_settings(settings):
            command += ["--set", f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return [shlex.join([*command, "--out", "AGAIN"])]


def _flat_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Groups of settings as ``a.b``, the way --set takes them."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and key in ("model", "objective", "augmentation"):
            yield from _flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
