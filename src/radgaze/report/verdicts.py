"""The words of a comparison: what a paired difference shows, the paragraph at the top, and the cautions.

A difference is *shown* when its 95 % interval over patients leaves out 0 and its p-value, corrected by Holm's method,
is below 0.05. Anything else reads "no difference shown", whichever method that disappoints; equality is never claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from radgaze.report import summary
from radgaze.report.arms import Arm, Pair, entries
from radgaze.report.glossary import Measure, describe
from radgaze.report.values import count, finite, interval, listing, number, ordered, p_value, section, signed

__all__ = ["Verdict", "attention_targets", "cautions", "paragraph", "verdict"]

LEVEL = 0.05
LOCATED = ("cam:energy_inside", "cam:pointing_game", "grad_cam:energy_inside", "grad_cam:pointing_game", "saliency:cc")
"""Where attention goes, best first: the paragraph tells the first of these that was compared."""
MOST_TOLD = 2  # differences told one by one in the paragraph, for each measure


@dataclass(frozen=True)
class Verdict:
    """What a paired difference shows: ``sign`` of first minus second, 0 where no difference is shown.

    It is ``firm`` where the interval over seeds, if it is asked for, agrees.
    """

    sign: int
    text: str
    firm: bool = False

    @property
    def shown(self) -> bool:
        return self.sign != 0


def attention_targets(comparison: Mapping[str, Any]) -> list[str]:
    """What the arms were taught to attend to."""
    told = comparison.get("attention") or ()
    return [str(name) for name in ([told] if isinstance(told, str) else told) if name and str(name) != "none"]


def verdict(measure: Measure, pair: Pair, found: Mapping[str, Any], *, seeds: bool = True) -> Verdict:
    """Read one entry of a pair. ``seeds`` asks for the interval over seeds as well, where one can be had."""
    low, high = finite(found.get("low")), finite(found.get("high"))
    if finite(found.get("value")) is None:
        return Verdict(0, "not measured")
    if low is None or high is None:
        return Verdict(0, "no interval: no difference shown")
    if low <= 0 <= high:
        return Verdict(0, "no difference shown")
    corrected = finite(found.get("p_adjusted"))
    if corrected is not None and corrected >= LEVEL:
        return Verdict(0, "no difference shown after correction")
    sign = 1 if low > 0 else -1
    favoured = _favoured(measure, pair, sign).label
    text = f"{favoured} higher" if measure.better is None else f"favours {favoured}"
    if seeds:
        across = _over_seeds(found, sign)
        text += {None: "; one seed, spread unknown", True: "", False: "; not shown across seeds"}[across]
        return Verdict(sign, text, firm=across is True)
    return Verdict(sign, text, firm=True)


def _over_seeds(found: Mapping[str, Any], sign: int) -> bool | None:
    """Whether the interval over seeds agrees with the sign; None without such an interval."""
    low, high = finite(found.get("seed_low")), finite(found.get("seed_high"))
    return None if low is None or high is None else low > 0 if sign > 0 else high < 0


# --------------------------------------------------------------------------------------------------------------------
# The paragraph
# --------------------------------------------------------------------------------------------------------------------


def paragraph(comparison: Mapping[str, Any], arms: Sequence[Arm], pairs: Sequence[Pair]) -> Markup:
    """What was compared on what, how many trainings, and what came out: a few sentences, escaped."""
    sentences = [_setting(comparison, arms)]
    if told := attention_targets(comparison):
        kind = "target is" if len(told) == 1 else "targets are"
        sentences.append(Markup("The attention {} <em>{}</em>.").format(kind, listing(told)))
    measured = ordered(dict.fromkeys(key for pair in pairs for key in pair.measures))
    headline = [
        key for key in ("auc_macro", next((key for key in LOCATED if key in measured), None)) if key in measured
    ]
    for key in headline or measured[:1]:
        sentences += _outcome(describe(key), [pair for pair in pairs if key in pair.measures])
    if not measured:
        sentences += _levels(arms)
    return Markup(" ").join(sentences)


def _setting(comparison: Mapping[str, Any], arms: Sequence[Arm]) -> Markup:
    cohort = section(comparison, "cohort")
    methods = list(dict.fromkeys(arm.method_name for arm in arms))
    backbones = list(dict.fromkeys(arm.backbone for arm in arms if arm.backbone))
    sizes = sorted({arm.size for arm in arms if arm.size is not None})
    finished = sorted({len(arm.finished) for arm in arms})
    if not arms:
        return Markup("Nothing was trained.")
    sentence = Markup("<strong>{}</strong> {}").format(
        listing(methods), "were compared" if len(arms) > 1 else "was trained"
    )
    if len(methods) == 1 < len(arms):
        sentence = Markup("{} settings of <strong>{}</strong> were compared").format(len(arms), methods[0])
    if cohort.get("name"):
        sentence += Markup(" on <strong>{}</strong>").format(str(cohort["name"]))
        facts = [summary.studies_and_patients(cohort), summary.SPLIT_BY.get(str(cohort.get("split_by")), "")]
        if any(facts):
            sentence += f" ({', '.join(filter(None, facts))})"
    details = []
    if backbones:
        details.append(f"with {listing(backbones)}")
    if sizes:
        details.append(f"on {listing([count(size) for size in sizes])} training studies")
    several = f"{count(finished[0])} to " if finished[0] != finished[-1] else ""
    each = " each" if len(arms) > 1 else ""
    details.append(f"from {several}{count(finished[-1])} seed{'' if finished[-1] == 1 else 's'}{each}")
    sentence += f", {'trained ' if len(arms) > 1 else ''}{', '.join(details)}"
    evaluated = summary.studies_and_patients(comparison)
    return sentence + f", and measured on the {summary.split_name(comparison)}{f' ({evaluated})' if evaluated else ''}."


def _outcome(measure: Measure, pairs: Sequence[Pair]) -> list[Markup]:
    """What the differences in one measure show, said plainly in either direction."""
    several = len({pair.size for pair in pairs}) > 1
    read = [(pair, pair.measures[measure.key]) for pair in pairs]
    read = [(pair, found) for pair, found in read if finite(found.get("value")) is not None]
    shown = [(pair, found) for pair, found in read if verdict(measure, pair, found).shown]
    if not read:
        return [Markup("No difference in {} could be measured.").format(measure.phrase)]
    if len(read) <= 2:
        return [_difference(measure, pair, found, several) for pair, found in read]
    if not shown:
        return [Markup("None of the {} paired comparisons shows a difference in {}.").format(len(read), measure.phrase)]
    everything = len(shown) == len(read)
    sentence = Markup("{} {} paired comparisons show{} a difference in {}{}: ").format(
        "All" if everything else f"{len(shown)} of",
        len(read),
        "s" if len(shown) == 1 else "",
        measure.phrase,
        " (lower is better)" if measure.better == "lower" else "",
    )
    if len(shown) <= MOST_TOLD:
        sentence += Markup("; ").join(_brief(measure, pair, found, several) for pair, found in shown)
    else:
        sentence += _votes(measure, shown)
    return [sentence + ("." if everything else f". For the other {len(read) - len(shown)}, none is shown.")]


def _votes(measure: Measure, shown: Sequence[tuple[Pair, Mapping[str, Any]]]) -> Markup:
    """Many differences that are shown: how many speak for each method, by how much, and within which bounds."""
    sides: dict[str, list[Mapping[str, Any]]] = {}
    for pair, found in shown:
        side = _favoured(measure, pair, verdict(measure, pair, found).sign).method_name
        sides.setdefault(side, []).append(found)
    told = []
    for side, won in sorted(sides.items(), key=lambda entry: -len(entry[1])):
        sizes = [abs(each["value"]) for each in won]
        bounds = [abs(each[end]) for each in won for end in ("low", "high")]
        told.append(
            Markup("{} {} <strong>{}</strong>, by {} (intervals over patients within {})").format(
                len(won),
                "higher with" if measure.better is None else "in favour of",
                side,
                number(sizes[0]) if len(sizes) == 1 else interval({"low": min(sizes), "high": max(sizes)}),
                interval({"low": min(bounds), "high": max(bounds)}),
            )
        )
    alone = sum(not _over_seeds(found, verdict(measure, pair, found).sign) for pair, found in shown)
    text = Markup("; ").join(told)
    if alone:
        text += f"; {'all' if alone == len(shown) else alone} of these are not shown across seeds"
    return text


def _brief(measure: Measure, pair: Pair, found: Mapping[str, Any], several: bool) -> Markup:
    """One difference that is shown, among others."""
    sign = verdict(measure, pair, found).sign
    text = Markup("<strong>{}</strong> {} <strong>{}</strong>").format(
        pair.first.label, "above" if sign > 0 else "below", pair.second.label
    )
    if several and pair.size is not None:
        text += f" with {count(pair.size)} training studies"
    across = "" if _over_seeds(found, sign) else ", not shown across seeds"
    return text + f" by {number(abs(found['value']))} (95 % interval over patients {_size(found)}{across})"


def _size(found: Mapping[str, Any]) -> str:
    """The interval of a difference that is shown, without its sign."""
    low, high = sorted((abs(found["low"]), abs(found["high"])))
    return interval({"low": low, "high": high})


def _favoured(measure: Measure, pair: Pair, sign: int) -> Arm:
    """The arm that a difference speaks for; where no direction is better, the higher one."""
    return pair.first if (sign > 0) == (measure.better != "lower") else pair.second


def _difference(measure: Measure, pair: Pair, found: Mapping[str, Any], several: bool) -> Markup:
    """One paired difference as a sentence; ``several`` sizes of training set need naming."""
    read = verdict(measure, pair, found)
    start = Markup("With {} training studies, ").format(count(pair.size)) if several and pair.size is not None else ""
    bounds = interval(found)
    numbers = f"{signed(found.get('value'))}, " + (
        "without an interval" if bounds == "n/a" else f"95 % interval over patients {bounds}"
    )
    corrected = finite(found.get("p_adjusted"))
    if not read.shown:
        if "correction" in read.text:
            numbers += f"; corrected for all comparisons p = {p_value(corrected)}"
        text = Markup(
            "{}no difference in {} is shown between <strong>{}</strong> and <strong>{}</strong> ({})."
        ).format(start, measure.phrase, pair.first.label, pair.second.label, numbers)
        return text if start else Markup(text[0].upper() + text[1:])
    higher = read.sign > 0
    merit = (
        ""
        if measure.better is None
        else ", which is " + ("better" if higher == (measure.better == "higher") else "worse")
    )
    if corrected is not None:
        numbers += (
            f"; corrected p {p_value(corrected)}" if corrected < 0.001 else f"; corrected p = {p_value(corrected)}"
        )
    across = _over_seeds(found, read.sign)
    if across is False:
        merit += f"; across seeds it is not shown (interval {interval(_seed_bounds(found))})"
    elif across is None:
        merit += "; it does not cover how trainings vary"
    return Markup("{}<strong>{}</strong> has a {} {} than <strong>{}</strong> ({}){}.").format(
        start, pair.first.label, "higher" if higher else "lower", measure.phrase, pair.second.label, numbers, merit
    )


def _seed_bounds(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"low": found.get("seed_low"), "high": found.get("seed_high")}


def _levels(arms: Sequence[Arm]) -> list[Markup]:
    """Medians where nothing was paired: no difference is claimed."""
    known = [(arm, section(arm.measures, "auc_macro")) for arm in arms]
    known = [(arm, found) for arm, found in known if finite(found.get("median")) is not None]
    sentences = [
        Markup("The macro AUC of <strong>{}</strong> is {}{}.").format(
            arm.name,
            number(found["median"]),
            f" (median; {number(found.get('min'))} to {number(found.get('max'))})" if len(arm.finished) > 1 else "",
        )
        for arm, found in known[:2]
    ]
    if len(arms) > 1:
        sentences.append(Markup("No two arms share a seed that finished, so no difference was tested."))
    return sentences


# --------------------------------------------------------------------------------------------------------------------
# Cautions
# --------------------------------------------------------------------------------------------------------------------


def cautions(comparison: Mapping[str, Any], arms: Sequence[Arm]) -> list[str]:
    """What a reader must know before believing a number."""
    found = summary.cautions(comparison)
    apart = [name for name in attention_targets(comparison) if "not gaze" in name or "gaze" not in name]
    if apart:
        found.append(
            f"No reader’s gaze is behind the attention target{'s' if len(apart) > 1 else ''} {listing(apart)}: what "
            "helps or fails to help here says little about gaze."
        )
    runs = [run for arm in arms for run in arm.runs]
    unfinished = [run for run in runs if run.get("status") != "finished"]
    if unfinished or entries(comparison, "failed"):
        missing = max(len(unfinished), len(entries(comparison, "failed")))
        hit = [arm.name for arm in arms if len(arm.finished) < len(arm.runs)]
        found.append(
            f"{count(missing)} of {count(max(len(runs), missing))} runs did not finish"
            + (f" and {'is' if missing == 1 else 'are'} missing from {listing(hit)}." if hit else ".")
        )
    empty = [arm.name for arm in arms if not arm.finished]
    once = [arm.name for arm in arms if len(arm.finished) == 1]
    if empty:
        found.append(f"{listing(empty)} {'has' if len(empty) == 1 else 'have'} no finished run and so no numbers.")
    if once:
        who = ("The only arm" if len(arms) == 1 else "Every arm") if len(once) == len(arms) else listing(once)
        found.append(
            f"{who} {'was' if len(once) in (1, len(arms)) else 'were'} trained from a single seed: how much results "
            "vary from training to training is unknown"
            + (", and a difference may be one lucky seed." if len(arms) > 1 else ".")
        )
    return found
