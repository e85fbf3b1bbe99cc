"""``simplification.html``: how a network was made smaller, step by step, in one self-contained file.

:func:`write_simplification` turns the content of ``simplification.json`` into finished text and drawings and has
``templates/simplification.html.j2`` place them. What an entry of it means is read in ``steps``; the page shares its
frame, look and rules (no script, no network, everything escaped) with the report of a run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from radgaze.report import figures, summary
from radgaze.report.bars import width_bars
from radgaze.report.data import data_context, flat
from radgaze.report.figures import Tried
from radgaze.report.page import write_page
from radgaze.report.steps import Group, Step, Width, chain, read_steps, stages, widths
from radgaze.report.values import count, finite, large, number, plain, section, signed, storage

__all__ = ["write_simplification"]

HEADINGS = {
    "networks": "Size and AUC",
    "widths": "Widths by depth",
    "steps": "Step by step",
    "method": "Method",
    "data": "Data",
    "settings": "Settings",
    "commands": "Reproduce",
}
"""The sections in page order: the context's key, which is also the anchor, and the heading."""

CHANCE = 0.5  # macro AUC of a network that knows nothing

GUIDES = {
    "krm": ("kernel redundancy", "Kernels that show the eye what another one shows already go."),
    "uniform": ("uniform width", "The same share of every group’s channels stays, whatever they show."),
    "random": ("chance", "Channels are drawn at random."),
    "l1": ("small weights", "Channels whose weights are small go (Li et al. 2017)."),
    "fpgm": (
        "the geometric median",
        "Channels near the geometric median of their layer go (He et al. 2019).",
    ),
    "taylor": (
        "the loss’s gradients",
        "Channels whose loss would change least without them go, to first order (Molchanov et al. 2019).",
    ),
}
"""What decides which kernels stay, by name: in a sentence, and told."""

RANKED = {
    "group": " The same share of every group stays.",
    "all": " They are ranked over all groups, and every group keeps its best one.",
}

DIFFERENCES = {
    "mssim": "1 − MSSIM, what their structural similarity (windows of 11 × 11 pixels) leaves to 1",
    "pearson": "1 − |r|, r being Pearson’s correlation over the pixels",
    "rmse": "the root of the mean squared difference",
    "rmse-z": "the root of the mean squared difference of the maps at mean 0 and standard deviation 1",
}


def write_simplification(log: Mapping[str, Any], out: Path) -> Path:
    """Write the page and return its path.

    ``log`` is the content of ``simplification.json``; every part of it may be absent, and a value that is None or NaN
    reads "n/a". ``out`` is the file to write (``.html``), or a folder to write ``simplification.html`` into. The file
    appears complete or not at all.
    """
    return write_page("simplification", HEADINGS, _context(log), out)


def _context(log: Mapping[str, Any]) -> dict[str, Any]:
    steps = read_steps(log)
    accepted = next((step for step in steps if step.accepted and step.name == log.get("accepted")), None)
    return {
        "title": f"Simplification of {_run_name(log)}",
        "version": log.get("radgaze"),
        "created": None,
        "split": "validation split",
        "summary": _paragraph(log, steps, accepted),
        "cautions": _cautions(log, accepted),
        "cards": _cards(log, accepted),
        "networks": _networks_context(log, steps, accepted),
        "widths": _widths_context(steps, accepted),
        "steps": [_step_context(log, step, steps) for step in steps],
        "method": _method(log),
        "data": data_context({"cohort": _cohort(log), "classes": _list(log.get("classes"))}),
        "settings": flat(section(log, "arguments")),
        "commands": _commands(log),
    }


def _cohort(log: Mapping[str, Any]) -> dict[str, Any]:
    """The cohort's facts, with the validation split told in words."""
    facts = dict(section(log, "cohort"))
    validation = facts.pop("validation", None)
    return facts | ({"validation": summary.studies_and_patients(validation)} if isinstance(validation, Mapping) else {})


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


# --------------------------------------------------------------------------------------------------------------------
# The top of the page
# --------------------------------------------------------------------------------------------------------------------


def _run_name(log: Mapping[str, Any]) -> str:
    return Path(str(section(log, "arguments").get("run") or "a run")).name


def _paragraph(log: Mapping[str, Any], steps: Sequence[Step], accepted: Step | None) -> Markup:
    """What was made of what, and how well it does: a few sentences, escaped."""
    base, arguments = section(log, "base"), section(log, "arguments")
    cohort = section(log, "cohort")
    trained = Markup("<strong>{}</strong> ({} parameters)").format(
        summary.method_name({"method": base.get("method") or "The network"}), large(base.get("parameters"))
    )
    if cohort.get("name"):
        trained += Markup(", trained on <strong>{}</strong>,").format(str(cohort["name"]))
    guide = GUIDES.get(str(arguments.get("guide")), (plain(arguments.get("guide")), ""))[0]
    sentences = [Markup("{} was made smaller step by step, guided by <em>{}</em>.").format(trained, guide)]
    evaluated = summary.studies_and_patients(section(cohort, "validation"))
    where = f"on the validation split{f' ({evaluated})' if evaluated else ''}"
    allowed = plain(arguments.get("max_auc_drop"))
    if accepted is not None:
        sentences.append(
            Markup("The accepted network has <strong>{}</strong> parameters: <strong>{}</strong>{}.").format(
                large(accepted.parameters),
                _change(base.get("parameters"), accepted.parameters),
                _times(base.get("parameters"), accepted.parameters),
            )
        )
        sentences.append(
            Markup(
                "Its macro AUC {} is <strong>{}</strong>, {}; it was allowed to fall by up to <strong>{}</strong>."
            ).format(where, number(accepted.auc, 4), _compared(base.get("auc"), accepted.auc), allowed)
        )
    else:
        sentences.append(Markup("<strong>No smaller network was accepted</strong>, so the run stays as it is."))
        if steps:
            best = max(steps, key=lambda step: -1.0 if step.auc is None else step.auc)
            sentences.append(
                Markup(
                    "The best one that was tried, step {} with {} parameters, has a macro AUC of {} {}, {}; it was "
                    "allowed to fall by up to {}."
                ).format(
                    best.number,
                    large(best.parameters),
                    number(best.auc, 4),
                    where,
                    _compared(base.get("auc"), best.auc),
                    allowed,
                )
            )
    tried = f"{len(steps) or 'no'} network{'s' if len(steps) != 1 else ''}"
    sentences.append(Markup("The loop tried {} and ended: {}.").format(tried, plain(log.get("ended"))))
    return Markup(" ").join(sentences)


def _compared(before: Any, after: Any) -> str:
    """``0.0012 below the run’s 0.9512``."""
    first, second = finite(before), finite(after)
    if first is None or second is None:
        return f"the run’s is {number(before, 4)}"
    if round(first, 4) == round(second, 4):
        return "like the run’s"
    return f"{number(abs(second - first), 4)} {'below' if second < first else 'above'} the run’s {number(first, 4)}"


def _change(before: Any, after: Any) -> str:
    """``−98.7 %``; what is almost everything is not rounded up to it."""
    first, second = finite(before), finite(after)
    if not first or second is None:
        return "n/a"
    share = 100 * (second - first) / first
    return f"{signed(share, 2 if abs(share) >= 99.9 else 1)} %"


def _times(before: Any, after: Any) -> str:
    first, second = finite(before), finite(after)
    return "" if not first or not second or first < second else f", {first / second:.3g} times fewer"


def _cautions(log: Mapping[str, Any], accepted: Step | None) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    arguments, auc = section(log, "arguments"), finite(section(log, "base").get("auc"))
    if accepted is not None:
        found.append(
            "Every AUC here is on the validation split, which chose each network’s best epoch and which networks were "
            "accepted: they are optimistic. Only the test split, which nothing here has looked at, can tell how good "
            "the accepted network is."
        )
        allowed = finite(arguments.get("max_auc_drop"))
        if auc is not None and allowed is not None and auc - allowed <= CHANCE:
            found.append(
                f"An AUC {plain(allowed)} below the run’s {number(auc, 4)} was allowed: even a network that knows "
                "nothing is accepted, so that it was accepted says nothing."
            )
    if section(log, "cohort").get("split_by") == "image":
        found.append("The cohort is split by image: a patient may be on both sides, and the AUCs are optimistic.")
    return found


def _cards(log: Mapping[str, Any], accepted: Step | None) -> list[dict[str, str]]:
    """What the accepted network costs and how well it does, beside the run."""
    if accepted is None:
        return []
    base = section(log, "base")
    told = {"Parameters": ("parameters", large), "Multiply-accumulates": ("macs", large), "Weights": ("bytes", storage)}
    cards = [
        {
            "name": name,
            "value": say(accepted.source.get(key)),
            "change": _change(base.get(key), accepted.source.get(key)),
            "before": f"the run: {say(base.get(key))}",
        }
        for name, (key, say) in told.items()
        if finite(accepted.source.get(key)) is not None
    ]
    cards.append(
        {
            "name": "Validation AUC",
            "value": number(accepted.auc, 4),
            "change": _signed_difference(base.get("auc"), accepted.auc),
            "before": f"the run: {number(base.get('auc'), 4)}",
        }
    )
    return cards


def _signed_difference(before: Any, after: Any) -> str:
    first, second = finite(before), finite(after)
    return "n/a" if first is None or second is None else signed(round(second - first, 4) + 0.0, 4)


# --------------------------------------------------------------------------------------------------------------------
# Networks: AUC against size, and the table
# --------------------------------------------------------------------------------------------------------------------


def _networks_context(log: Mapping[str, Any], steps: Sequence[Step], accepted: Step | None) -> dict[str, Any] | None:
    """The plot and the table of every network, the run first."""
    base, arguments = section(log, "base"), section(log, "arguments")
    if not steps and finite(base.get("parameters")) is None:
        return None
    floor = _floor(log)
    rows = [_network_row(base, base) | {"name": "The run", "start": "", "setting": "", "verdict": "", "kind": ""}]
    for step in steps:
        kind = "accepted" if step.accepted else "rejected"
        rows.append(
            _network_row(step.source, base)
            | {
                "name": f"Step {step.number}",
                "start": "the run" if step.start is None else f"step {step.start.number}",
                "setting": _dial(step),
                "verdict": f"{kind}, kept" if step is accepted else kind,
                "kind": kind,
            }
        )
    target = finite(arguments.get("target_params"))
    aucs = [auc for auc in (finite(base.get("auc")), *(step.auc for step in steps)) if auc is not None]
    # A floor far below every network would press them into a line at the top.
    far = bool(aucs) and floor is not None and floor < min(aucs) - max(max(aucs) - min(aucs), 0.02)
    return {
        "plot": _plot(log, steps, None if far else floor, target),
        "floor": number(floor, 4),
        "far": far,
        "target": None if target is None else count(target),
        "dial": "τ" if arguments.get("guide") == "krm" else "Share",
        "size": " × ".join(plain(side) for side in _list(section(log, "cohort").get("size"))),
        "rows": rows,
        "some": {kind for row in rows if (kind := row["kind"])},
    }


def _floor(log: Mapping[str, Any]) -> float | None:
    """The least validation AUC that is accepted."""
    auc, allowed = (
        finite(section(log, part).get(key)) for part, key in (("base", "auc"), ("arguments", "max_auc_drop"))
    )
    return None if auc is None or allowed is None else auc - allowed


def _dial(step: Step) -> str:
    return plain(step.source.get("tau", step.source.get("share")))


def _network_row(network: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, str]:
    return {
        "parameters": count(network.get("parameters")),
        "change": "" if network is base else _change(base.get("parameters"), network.get("parameters")),
        "macs": large(network.get("macs")),
        "bytes": storage(network.get("bytes")),
        "auc": number(network.get("auc"), 4),
        "difference": "" if network is base else _signed_difference(base.get("auc"), network.get("auc")),
    }


def _plot(log: Mapping[str, Any], steps: Sequence[Step], floor: float | None, target: float | None) -> Markup | None:
    """The drawing, None where nothing was tried."""
    base = section(log, "base")
    parameters, auc = finite(base.get("parameters")), finite(base.get("auc"))
    drawn = [step for step in steps if step.parameters and step.auc is not None]
    if not parameters or auc is None or not drawn:
        return None
    place = {step.number: index for index, step in enumerate(drawn, start=1)}
    tried = [Tried(parameters, auc, 0, accepted=True)]
    for step in drawn:
        start = place.get(step.start.number, 0) if step.start else 0
        tried.append(Tried(step.parameters or 0, step.auc or 0, step.number, step.accepted, start))
    told = "; ".join(
        f"step {one.number} {number(one.auc, 4)} at {count(one.parameters)}, "
        + ("accepted" if one.accepted else "rejected")
        for one in tried[1:]
    )
    alt = f"Validation AUC by parameters: the run {number(auc, 4)} at {count(parameters)}; {told}."
    return figures.trade_plot("trade", tried, floor=floor, target=target, alt=alt)


# --------------------------------------------------------------------------------------------------------------------
# Widths and steps
# --------------------------------------------------------------------------------------------------------------------


def _widths_context(steps: Sequence[Step], accepted: Step | None) -> dict[str, Any] | None:
    """The accepted network's widths beside the run's, or those of the last one that was tried."""
    shown = accepted or (steps[-1] if steps else None)
    groups = widths(chain(shown))
    if shown is None or not groups:
        return None
    left = [group for group in groups if group.after]
    before, after = (sum(getattr(group, when) for group in groups) for when in ("before", "after"))
    gone = len(groups) - len(left)
    alt = (
        f"Channels of {len(groups)} groups by depth: {count(before)} in the run, {count(after)} in step {shown.number}"
        f"{f', {gone} gone with their blocks' if gone else ''}. The table below has the numbers."
    )
    return {
        "of": "the accepted network" if accepted else f"step {shown.number}, which was rejected,",
        "plot": width_bars(groups, alt=alt),
        "shared": any((group.layers or 1) > 1 for group in groups),
        "gone": gone,
        "before": count(before),
        "after": count(after),
        "groups": len(groups),
        "stages": [(stage, [_width_row(group) for group in members]) for stage, members in _by_stage(groups)],
    }


def _by_stage(groups: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    found = zip(stages([group.name for group in groups]), groups, strict=True)
    for stage, members in groupby(found, key=lambda member: member[0]):
        yield stage, [group for _, group in members]


def _width_row(group: Width) -> dict[str, Any]:
    return {
        "name": group.name,
        "layers": count(group.layers),
        "channels": count(group.before),
        "kept": count(group.after) if group.after else "gone",
        "gone": not group.after,
        "share": f"{100 * group.after / group.before:.1f}",
    }


def _step_context(log: Mapping[str, Any], step: Step, steps: Sequence[Step]) -> dict[str, Any]:
    """One step: what it aimed at, what went and why, what came of it."""
    groups = [
        (
            stage,
            [
                _width_row(Width(group.name, group.channels, 0 if group.gone else group.kept, group.layers))
                | {"dead": "" if group.dead is None else count(group.dead)}
                for group in members
            ],
        )
        for stage, members in _by_stage(step.groups)
    ]
    return {
        "number": step.number,
        "folder": f"steps/{step.name}",
        "accepted": step.accepted,
        "parameters": large(step.parameters),
        "story": [_aim(log, step), _outcome(log, step, steps)],
        "channels": _channels(step.groups),
        "blocks": _blocks(log, step),
        "dropped": [(name, number(change, 4)) for name, change in step.dropped.items()],
        "groups": groups,
        "count": len(step.groups),
        "dead": any(group.dead is not None for group in step.groups),
        "shared": any(group.layers is not None for group in step.groups),
    }


def _aim(log: Mapping[str, Any], step: Step) -> str:
    """From what to what, and how the dial was turned."""
    arguments, base = section(log, "arguments"), section(log, "base")
    before = step.start.parameters if step.start else base.get("parameters")
    start = f"step {step.start.number}" if step.start else "the run"
    aim = finite(step.source.get("aim"))
    reached = aim is None or step.parameters is None or step.parameters <= aim
    setting = _dial(step)
    if arguments.get("guide") == "krm":
        if arguments.get("tau") is not None:
            told = f"The threshold was fixed at τ = {setting}"
        else:
            told = f"τ = {setting} is " + ("the least threshold that gets there" if reached else "as far as it goes")
    else:
        whose = "all" if _over_all(arguments) else "each group’s"
        told = f"{setting} of {whose} channels is " + (
            "the largest share that gets there" if reached else "as far as it goes"
        )
    return (
        f"Made from {start} ({large(before)} parameters), aiming at {count(aim)} or fewer. {told}; "
        f"{count(step.parameters)} are left{_times(before, step.parameters)}."
    )


def _outcome(log: Mapping[str, Any], step: Step, steps: Sequence[Step]) -> str:
    base, allowed = section(log, "base"), plain(section(log, "arguments").get("max_auc_drop"))
    told = f"Trained, its validation AUC is {number(step.auc, 4)}, {_compared(base.get('auc'), step.auc)}. "
    if step.accepted:
        return told + f"A drop of up to {allowed} was allowed: it was accepted."
    told += f"That is more than the allowed drop of {allowed}: it was put aside"
    again = any(other.number > step.number and other.start is step.start for other in steps)
    return told + (", and a more careful step was tried from the same network." if again else ".")


def _channels(groups: Sequence[Group]) -> str | None:
    """How many channels went over all groups, and how many of them were dead."""
    left = [group for group in groups if not group.gone]
    if not left:
        return None
    before, kept = sum(group.channels for group in left), sum(group.kept for group in left)
    narrower = sum(group.kept < group.channels for group in left)
    told = f"{count(kept)} of {count(before)} channels stay; {narrower} of {len(left)} groups became narrower"
    if dead := sum(group.dead or 0 for group in left):
        told += f"; {count(dead)} were dead: they showed nothing on any probe image"
    return told + "."


def _blocks(log: Mapping[str, Any], step: Step) -> str | None:
    arguments = section(log, "arguments")
    if step.dropped:
        many = len(step.dropped) != 1
        went = f"{len(step.dropped)} residual blocks" if many else "One residual block"
        same = "they pass on what they get" if many else "it passes on what it gets"
        below = plain(arguments.get("block_tau"))
        return f"{went} went, because {same}: the change that is perceived is below {below}."
    if arguments.get("guide") == "krm" and finite(arguments.get("block_tau")):
        return "No residual block went."
    return None


# --------------------------------------------------------------------------------------------------------------------
# Back matter
# --------------------------------------------------------------------------------------------------------------------


def _method(log: Mapping[str, Any]) -> dict[str, Any] | None:
    """The loop in the reader's words, with the numbers of this one."""
    arguments = section(log, "arguments")
    if not arguments:
        return None
    guide, images = str(arguments.get("guide")), count(arguments.get("images"))
    told = {
        "Group": (
            "Channels that can only be removed together: a convolution’s kernels, whatever normalises them, and every "
            "layer that reads or adds to them. All blocks of a ResNet’s stage add to the same channels, which are one "
            "group."
        )
    }
    if guide == "krm":
        difference = str(arguments.get("difference"))
        told |= {
            "What a channel shows": (
                f"Its output on each of {images} probe images of the training split, as the next layer reads it, "
                "scaled to the range 0 to 1 as the eye adapts to brightness and contrast."
            ),
            "Perceived difference": (
                f"Of two channels: {DIFFERENCES.get(difference, difference)}; the mean over probe images and over the "
                "places where the group is read."
            ),
            "Distinct kernels": (
                "The fewest channels such that every other one that shows anything is within τ of one of them. They "
                "stay. Dead channels, the same everywhere on every probe image, go."
            ),
            "Blocks": (
                f"A residual block whose output looks like its input (a mean perceived difference below "
                f"{plain(arguments.get('block_tau'))}) goes; each stage keeps one block."
            ),
        }
    else:
        told["What stays"] = GUIDES.get(guide, ("", guide))[1]
        if guide != "uniform":
            told["What stays"] += RANKED["all" if _over_all(arguments) else "group"]
    if arguments.get("start") == "inherited":
        merged = ", with those that go merged into the most similar that stay" if guide == "krm" else ""
        training = f"It starts from the weights of the kernels that stay{merged}"
    else:
        training = "Only the structure is kept: it starts from new weights"
    if arguments.get("distill"):
        training += (
            f", and learns from the labels and from the run’s scores, on {count(arguments.get('views'))} augmented "
            "views of each study"
        )
    allowed = plain(arguments.get("max_auc_drop"))
    told |= {
        "Training": f"{training}. Everything else is trained as the run was, but for the settings below.",
        "Steps": (
            f"Each aims at 1 / {plain(arguments.get('ratio'))} of the parameters. It is accepted if the macro AUC on "
            f"the validation split is at most {allowed} below the run’s, and the next step starts from it. If not, "
            "that ratio becomes its square root, and less is taken from the same network."
        ),
    }
    return {"terms": list(told.items()), "redundancy": guide == "krm"}


def _commands(log: Mapping[str, Any]) -> list[str]:
    """The command that does it again, with everything it was asked for, and the one that measures the result."""
    arguments = section(log, "arguments")
    if not arguments:
        return []
    command = ["radgaze", "simplify", "RUN", "--out", "AGAIN"]
    others = {"tau", "block_tau", "difference"} if arguments.get("guide") != "krm" else {"ranking"}
    for key in OPTIONS:
        value = arguments.get(key)
        if value is not None and key not in others:
            command += [f"--{key.replace('_', '-')}", _said(value)]
    if arguments.get("distill"):
        command += ["--distill", "--views", _said(arguments["views"])]
    for key, value in _settings(section(arguments, "settings")):
        command += ["--epochs", _said(value)] if key == "epochs" else ["--set", f"{key}={_said(value)}"]
    return [shlex.join(command), shlex.join(["radgaze", "evaluate", "AGAIN"])]


OPTIONS = (
    *("max_auc_drop", "target_params", "guide", "ranking", "start", "ratio"),
    *("tau", "block_tau", "images", "difference"),
)


def _over_all(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("ranking") == "all" and arguments.get("guide") not in ("krm", "uniform")


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Groups of settings as ``a.b``, the way --set takes them."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not any("." in str(name) for name in value):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
