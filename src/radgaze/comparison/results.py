"""From evaluated runs to ``comparison.json`` and ``comparison.csv``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from radgaze import __version__
from radgaze.cohort import Cohort
from radgaze.comparison.jobs import Outcome
from radgaze.comparison.protocol import Arm, PlannedRun, Protocol
from radgaze.comparison.statistics import Measured, adjust, delong_of_classes, draw, over_seeds, paired
from radgaze.errors import InputError, nearest
from radgaze.files import read_json, write_text
from radgaze.inference.localisation import MAPS
from radgaze.measures.statistics import Draws
from radgaze.training.runs import Run

__all__ = ["choose_control", "gather", "make_pairs", "read_measured", "read_values", "write_csv"]

WHO = ("study_id", "patient_id", "split", "label")
COLUMNS = {f"{prefix}_": f"{prefix}:" for prefix in MAPS.values()}  # of the table of studies, that belong to a map
FEW_PATIENTS = 30
IDENTITY = ("method", "seed", "train_studies")  # of an arm or a run; not among its settings
OWN_TO_METHODS = ("recipe", "model", "objective", "attention", "preset", "sigma")  # may differ under one protocol


def read_values(report: Mapping[str, Any]) -> dict[str, float]:
    """The measures of ``report.json`` that are one number each, flat; those that do not exist are left out."""
    found: dict[str, Any] = {}
    section = report.get("classification") or {}
    found |= {name: entry["value"] for name, entry in section.items() if isinstance(entry, dict) and "value" in entry}
    found |= {f"auc:{name}": entry["value"] for name, entry in section.get("auc", {}).items()}
    saliency = (report.get("saliency") or {}).get("model", {})
    found |= {f"saliency:{name}": entry["mean"] for name, entry in saliency.items()}
    for key, prefix in MAPS.items():
        located = (report.get("localisation") or {}).get(key, {}).get("overall", {})
        found |= {f"{prefix}:{name}": entry["mean"] for name, entry in located.items()}
    return {name: value for name, value in found.items() if value is not None}


def read_measured(folder: Path, split: str, cohort: Cohort, classes: Sequence[str]) -> Measured:
    """The table of studies that an evaluation left in ``folder``.

    Raises:
        InputError: The table is not of the cohort's studies.
    """
    path = folder / f"studies-{split}.csv"
    names = pl.read_csv(path, n_rows=0).columns
    scores = [f"probability_{name}" for name in classes]
    kinds: dict[str, Any] = {name: pl.Float64 for name in names if name not in WHO}
    # single precision, as they were: ties and the digits of each probability stay what the network said
    kinds |= dict.fromkeys(scores, pl.Float32) | dict.fromkeys(WHO, pl.String)
    table = pl.read_csv(path, schema_overrides={name: kind for name, kind in kinds.items() if name in names})
    if table["study_id"].to_list() != cohort.studies["study_id"][cohort.indices(split)].to_list():
        raise InputError(f"{str(path)!r} is not of the {split} studies of {cohort.name!r}; remove it to measure anew.")
    columns: dict[str, Tensor] = {}
    for name in names:
        if name not in WHO and not name.startswith("probability_"):
            values = table[name].fill_null(float("nan")).to_numpy()
            prefix = next((start for start in sorted(COLUMNS, key=len, reverse=True) if name.startswith(start)), None)
            flat = f"saliency:{name}" if prefix is None else COLUMNS[prefix] + name.removeprefix(prefix)
            columns[flat] = torch.from_numpy(values.copy())
    has_scores = bool(scores) and set(scores) <= set(names)
    return Measured(torch.from_numpy(table.select(scores).to_numpy()).double() if has_scores else None, columns)


# Pairs ---------------------------------------------------------------------------------------------------------------


def choose_control(control: str | None, arms: Sequence[Arm]) -> str:
    """The method that the others are compared with: the one named, else ``classifier``, else the first.

    Raises:
        InputError: No arm is of that method.
    """
    methods = list(dict.fromkeys(arm.method for arm in arms))
    if control is None:
        return "classifier" if "classifier" in methods else methods[0]
    if control not in methods:
        raise InputError(f"The control {control!r} is no method of this comparison: {nearest(control, methods)}")
    return control


def make_pairs(arms: Sequence[Arm], control: str) -> list[tuple[Arm, Arm]]:
    """Each arm with the control of its size and backbone; an arm without a backbone with the control of each.

    A run trained elsewhere for which there is no such control is paired with a control of its size, else with the
    first arm. Where the control itself was trained elsewhere, its first arm of each size and backbone is the control.
    """
    controls = [arm for arm in arms if arm.method == control and not arm.foreign]
    if not controls:
        kinds: dict[tuple[str | None, int], Arm] = {}
        for arm in arms:
            if arm.method == control:
                kinds.setdefault((arm.backbone, arm.train_studies), arm)
        controls = list(kinds.values())
    pairs = []
    for arm in arms:
        if arm in controls:
            continue
        of_size = [other for other in controls if other.train_studies == arm.train_studies]
        found = [other for other in of_size if None in (arm.backbone, other.backbone) or other.backbone == arm.backbone]
        if not found and arm.foreign:
            found = of_size or [other for other in arms[:1] if other is not arm]
        pairs += [(arm, other) for other in found]
    return pairs


# The comparison ------------------------------------------------------------------------------------------------------


def gather(
    cohort: Cohort,
    protocol: Protocol,
    arms: Sequence[Arm],
    reports_of: Mapping[str, Path],
    outcomes: Mapping[str, Outcome],
    out: Path,
    *,
    control: str,
    split: str,
    resamples: int,
) -> dict[str, Any]:
    """The content of ``comparison.json``.

    Args:
        cohort: What was compared on.
        protocol: What was asked for.
        arms: The same, resolved.
        reports_of: Folder of the report of each finished run, by the run's name.
        outcomes: How the runs of this call ended, by name.
        out: The comparison's folder; paths below it are told relative to it.
        control: Method of the controls.
        split, resamples: As in :func:`radgaze.compare`.
    """
    reports = {name: read_json(folder / "report.json", "a report") for name, folder in reports_of.items()}
    report = next(iter(reports.values()))
    studies = cohort.indices(split)
    patients = cohort.studies["patient_id"][studies].to_list()
    targets = torch.from_numpy(cohort.targets[studies])
    classes = next((list(each["classes"]) for each in reports.values() if each["classes"]), [])
    shared = shared_settings(arms)
    values = {name: read_values(each) for name, each in reports.items()}
    wanted = make_pairs(arms, control)
    measured: dict[str, Measured] = {}
    drawn: dict[str, dict[str, Draws]] = {}
    for arm in {arm.name: arm for pair in wanted for arm in pair}.values():
        for run in arm.runs:
            if run.name in reports_of:
                measured[run.name] = read_measured(reports_of[run.name], split, cohort, classes)
                drawn[run.name] = draw(measured[run.name], classes, targets, patients, resamples)
    pairs = [
        pair
        for first, second in wanted
        if (pair := compare_pair(first, second, measured, drawn, classes, targets)) is not None
    ]
    adjust(pairs)
    compared = {(pair["first"], pair["second"]) for pair in pairs}
    apart = [(first, second) for first, second in wanted if (first.name, second.name) not in compared]
    return {
        "radgaze": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": f"Comparison on {cohort.name}",
        "split": split,
        "studies": len(studies),
        "patients": len(set(patients)),
        "cohort": report["cohort"],
        "classes": classes,
        "attention": list(dict.fromkeys(arm.attention for arm in arms if arm.attention != "none")),
        "protocol": {
            "methods": list(dict.fromkeys(arm.method for arm in arms)),
            "backbones": list(dict.fromkeys(arm.backbone for arm in arms if arm.backbone is not None)),
            "train_studies": sorted({arm.train_studies for arm in arms}),
            "seeds": sorted({run.seed for arm in arms for run in arm.runs}),
            "settings": shared,
            "resamples": resamples,
            "control": control,
            "asked": asdict(protocol),
        },
        "arms": [describe_arm(arm, shared, values, outcomes, out) for arm in arms],
        "pairs": pairs,
        "failed": [
            {
                "arm": arm.name,
                "seed": run.seed,
                "error": outcomes[run.name].error,
                "log": relative(outcomes[run.name].log, out),
            }
            for arm in arms
            for run in arm.runs
            if run.name not in reports_of
        ],
        "notes": notes(arms, apart, split, len(set(patients)), list(reports.values())),
    }


def describe_arm(
    arm: Arm,
    shared: Mapping[str, Any],
    values: Mapping[str, Mapping[str, float]],
    outcomes: Mapping[str, Outcome],
    out: Path,
) -> dict[str, Any]:
    finished = [values[run.name] for run in arm.runs if run.name in values]
    names = list(dict.fromkeys(name for each in finished for name in each))
    return {
        "name": arm.name,
        "method": arm.method,
        "backbone": arm.backbone,
        "train_studies": arm.train_studies,
        "attention": arm.attention,
        "parameters": arm.parameters,
        "settings": {
            key: value for key, value in settings_of(arm).items() if shared.get(key, ...) != value and value != {}
        },
        "runs": [describe_run(run, values.get(run.name), outcomes.get(run.name), out) for run in arm.runs],
        "measures": {name: over_seeds([each[name] for each in finished if name in each]) for name in names},
    }


def describe_run(
    run: PlannedRun, values: Mapping[str, float] | None, outcome: Outcome | None, out: Path
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "path": relative(run.path, out),
        "seed": run.seed,
        "status": "finished",
        "error": None,
        "best_epoch": None,
        "epochs": None,
        "seconds": None,
        "values": dict(values or {}),
    }
    if values is None and outcome is not None:
        told |= {"status": outcome.status, "error": outcome.error}
    try:
        state = Run.open(run.path).state
    except (InputError, KeyError, TypeError):  # a run that failed may have left anything
        return told
    return told | {"best_epoch": state.best_epoch, "epochs": state.epoch, "seconds": round(state.seconds, 1)}


def relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def settings_of(arm: Arm) -> dict[str, Any]:
    """The arm's resolved settings, without what its name says."""
    model = {key: value for key, value in arm.config["model"].items() if key != "backbone"}
    return {key: value for key, value in {**arm.config, "model": model}.items() if key not in IDENTITY}


def shared_settings(arms: Sequence[Arm]) -> dict[str, Any]:
    """What all arms trained here have in common (all arms, if none was trained here)."""
    first, *others = [settings_of(arm) for arm in arms if not arm.foreign] or [settings_of(arm) for arm in arms]
    return {key: value for key, value in first.items() if all(other.get(key, ...) == value for other in others)}


def compare_pair(
    first: Arm,
    second: Arm,
    measured: Mapping[str, Measured],
    drawn: Mapping[str, Mapping[str, Draws]],
    classes: Sequence[str],
    targets: Tensor,
) -> dict[str, Any] | None:
    """First minus second over the seeds that both have finished; None if they share none."""
    ours, theirs = ({run.seed: run.name for run in arm.runs if run.name in measured} for arm in (first, second))
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    scores = [[measured[arm[seed]].scores for seed in seeds] for arm in (ours, theirs)]
    known = [[each for each in arm if each is not None] for arm in scores]
    both = all(len(arm) == len(seeds) for arm in known)
    return {
        "first": first.name,
        "second": second.name,
        "train_studies": first.train_studies,
        "seeds": seeds,
        "measures": {
            name: entry
            for name, entry in paired(*([drawn[arm[seed]] for seed in seeds] for arm in (ours, theirs))).items()
            if same_target(name, first, second)
        },
        "delong": delong_of_classes(known[0], known[1], classes, targets) if both else {},
    }


def same_target(measure: str, first: Arm, second: Arm) -> bool:
    """Whether two arms' values were measured against one thing: an arm's attention is measured against its own target,
    and the CC and SIM of its maps against the gaze as its own settings render it.
    """
    if measure.startswith("saliency:"):
        return first.attention == second.attention
    if measure.endswith((":cc", ":sim")):
        return all(first.config[key] == second.config[key] for key in ("preset", "sigma"))
    return True


def notes(
    arms: Sequence[Arm],
    apart: Sequence[tuple[Arm, Arm]],
    split: str,
    patients: int,
    reports: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What to know of the figures, and what all reports say of theirs."""
    said = [
        "Differences have two intervals: over patients with the trained networks as they are, and over seeds with the "
        "patients as they are. Neither covers the other's chance.",
        "p-values are of the paired bootstrap over patients, corrected after Holm over all pairs of each measure.",
    ]
    if split == "val":
        said.append("Measured on the validation split, which chose the best epochs: these values are too good.")
    own = [arm for arm in arms if not arm.foreign]
    differing = [
        key
        for key in (settings_of(own[0]) if own else {})
        if key not in OWN_TO_METHODS and any(settings_of(arm).get(key) != settings_of(own[0])[key] for arm in own)
    ]
    if differing:
        said.append(f"The arms differ in {', '.join(differing)}; each arm's settings are with it.")
    subsets = any(arm.config["train_studies"] is not None and arm.config["subset_seed"] is None for arm in own)
    if subsets:
        said.append(
            "Each seed also draws the studies of a smaller training size anew, the same for all methods; the intervals "
            "over seeds cover that."
        )
    said += [
        f"{arm.name} was trained elsewhere, so its settings may differ in more than the method."
        for arm in arms
        if arm.foreign
    ]
    if len({arm.backbone for arm in arms}) > 1:
        said.append(
            "Pointing game, CC and SIM depend on the grid of a map; between networks with different grids, look at "
            "the uniform map in each run's report beside them."
        )
    said += [
        f"{first.name} and {second.name} share no finished seed, so they are not compared." for first, second in apart
    ]
    if patients < FEW_PATIENTS:
        said.append(
            f"{patients} patients are few for a percentile bootstrap: its intervals and p-values are too small."
        )
    if patients < reports[0]["studies"]:
        said.append(
            "Some patients have several studies; DeLong's test takes studies as independent, so prefer the bootstrap."
        )
    said += [note for note in reports[0]["notes"] if all(note in report["notes"] for report in reports)]
    return said


def write_csv(comparison: Mapping[str, Any], path: Path) -> None:
    """One row for each run: its arm and every measure; empty where it has none."""
    rows = [
        {
            **{key: arm[key] for key in ("name", "method", "backbone", "train_studies")},
            **{key: run[key] for key in ("seed", "status", "best_epoch", "epochs", "seconds")},
            **run["values"],
        }
        for arm in comparison["arms"]
        for run in arm["runs"]
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pl.DataFrame({key: [row.get(key) for row in rows] for key in columns}, strict=False)
    text = io.StringIO()
    table.rename({"name": "arm"}).write_csv(text)
    write_text(path, text.getvalue())
