"""Make a trained network smaller step by step, as long as it diagnoses as well: ``radgaze simplify``.

    measure -> keep the distinct kernels -> rebuild -> train -> accept while validation AUC holds -> again

Each step aims at a share of the parameters. If the smaller network loses more AUC than allowed, it is put aside and a
more careful step is tried from the same network: a ratio r becomes the square root of r. The loop ends at the size that
was asked for, or when no step worth its training is left. The test split is never looked at.

OUT                      the accepted network as a run of its own
OUT/simplification.html  a page about it
OUT/simplification.json  settings, every decision and why
OUT/steps/01, ...        a run folder for each network that was tried; decision.json says how it came about
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from radgaze import __version__
from radgaze.cohort import Cohort
from radgaze.errors import InputError, nearest
from radgaze.files import folder_lock, is_used, read_json, write_json
from radgaze.models import Network, macs, parameters, save_weights
from radgaze.models.channels import ChannelGraph
from radgaze.redundancy.cover import check_threshold
from radgaze.redundancy.difference import find_difference
from radgaze.redundancy.krm import check_weights
from radgaze.redundancy.probe import probe_studies
from radgaze.report import write_simplification
from radgaze.simplification.guides import GUIDES, KRM, RANKINGS, Guide, Ranking, Uniform, importance
from radgaze.simplification.perception import fit_gains
from radgaze.simplification.structure import Structure, apply, as_narrow, is_narrow
from radgaze.training.attention import AttentionTarget
from radgaze.training.data import CohortDataset, load_images
from radgaze.training.runs import Run
from radgaze.training.trainer import fit, make_objective, plan_training

__all__ = ["STARTS", "simplify"]

STARTS = ("fresh", "inherited")
LEAST_RATIO = 1.2
"""A step that leaves more than 1 / 1.2 of the parameters is not worth a training."""
PUBLISHED = ("config.json", "environment.json", "metrics.csv", "state.json", "weights.safetensors")


def simplify(
    run: Run | Path | str,
    out: Path | str,
    *,
    max_auc_drop: float = 0.005,
    target_params: int | None = None,
    guide: str = "krm",
    ranking: str = "group",
    start: str = "fresh",
    ratio: float = 8.0,
    tau: float | None = None,
    block_tau: float = 0.05,
    images: int = 16,
    difference: str = "mssim",
    distill: bool = False,
    views: int = 8,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Find a smaller network that diagnoses as well as a trained one.

    Args:
        run: The trained run, or its folder.
        out: Folder to write; it becomes a run that holds the smallest accepted network.
        max_auc_drop: By how much the macro AUC on the validation split may fall below the run's, in [0, 1].
        target_params: Stop at this many parameters or fewer; None goes on until nothing shrinks.
        guide: What decides which kernels stay: a name in :data:`radgaze.simplification.guides.GUIDES`.
        ranking: With a guide by importance: ``"group"`` keeps the same share of every group of tied channels, ``"all"``
            the most important over all groups.
        start: ``"fresh"`` trains the smaller structure from new weights (ResNets only), ``"inherited"`` from those of
            the kernels that stay, the others' merged into them.
        ratio: Each step aims at 1 / ratio of the parameters, above 1.2.
        tau: With guide "krm": a fixed threshold in (0, 1) for all steps, instead of the least that reaches the aim.
        block_tau: With guide "krm": residual blocks that change less than this go, in [0, 1].
        images: Probe images, at least 2, of the training split.
        difference: As for :func:`radgaze.redundancy.measure`.
        distill: Also learn from the large network's class scores.
        views: When distilling: augmented views of each study that the large network scores.
        settings: Fields of :class:`radgaze.training.RunConfig` that differ from the run's, e.g. ``{"epochs": 40}``.
        resume: Go on where an earlier call with the same arguments was stopped.
        progress: Show progress bars.

    Returns:
        The content of ``simplification.json``, with the page's path under ``"path"``.

    Raises:
        InputError: Arguments out of range; a run without classes or unfinished; a folder that is taken.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    check_run(run)
    cohort, out = run.cohort(), Path(out)
    arguments = {
        "run": str(run.path.resolve()),
        "weights": run.digest,
        "max_auc_drop": max_auc_drop,
        "target_params": target_params,
        "guide": guide,
        "ranking": ranking,
        "start": start,
        "ratio": ratio,
        "tau": tau,
        "block_tau": block_tau,
        "images": images,
        "difference": difference,
        "distill": distill,
        "views": views,
        "settings": json.loads(json.dumps(dict(settings or {}), default=str)),
    }
    check_arguments(run, arguments)
    check_folder(out, arguments, resume)
    cohort.check()
    loop = Loop(run, cohort, out, arguments, progress)
    loop.check()
    with folder_lock(out, "simplifying in"):
        loop.run_all()
        page = write_simplification(loop.log, out)
    return {**loop.log, "path": str(page)}


class Loop:
    """The steps of one simplification. Everything it decides is in ``out``, so a repeated call goes the same way."""

    def __init__(self, run: Run, cohort: Cohort, out: Path, arguments: dict[str, Any], progress: bool) -> None:
        self.base, self.cohort, self.out, self.arguments, self.progress = run, cohort, out, arguments, progress
        self.auc = validation_auc(run)
        self.probes = probe_studies(cohort, run.training_studies(cohort), arguments["images"], run.config.seed)
        self.log: dict[str, Any] = {
            "radgaze": __version__,
            "arguments": arguments,
            "cohort": describe_cohort(cohort),
            "classes": run.classes,
            "base": {"method": run.config.method, **self.measured(run), "auc": self.auc},
            "steps": [],
            "ended": None,
            "accepted": None,
        }

    def check(self) -> None:
        """Refuse what the first step would fail at, before anything is written."""
        network = self.base.network()
        check_weights(network)
        method, settings = self.settings(network.config, None)
        plan_training(self.cohort, method, settings)

    def run_all(self) -> None:
        arguments = self.arguments
        self.save()
        current, ratio, guide = self.base, arguments["ratio"], None
        while self.log["ended"] is None:
            network = as_narrow(current.network())
            before = parameters(network)
            aim = max(arguments["target_params"] or 1, math.floor(before / ratio))
            folder = self.out / "steps" / f"{len(self.log['steps']) + 1:02d}"
            if not (folder / "decision.json").exists():
                guide = guide or self.guide(network)
                self.decide(folder, current, network, guide, aim)
            step = read_json(folder / "decision.json", "a step of a simplification")
            if step["parameters"] > before / LEAST_RATIO and step["parameters"] > (arguments["target_params"] or 0):
                shutil.rmtree(folder)
                self.log["ended"] = f"nothing shrinks: the next step would leave {step['parameters']:,} of {before:,}"
                break
            if self.was_rejected(step):
                shutil.rmtree(folder)
                ratio = self.more_careful(ratio)
                continue
            trained = self.train(folder, step)
            step |= self.measured(trained)
            step["auc"] = validation_auc(trained)
            step["accepted"] = step["auc"] >= self.auc - arguments["max_auc_drop"]
            self.log["steps"].append(step)
            if step["accepted"]:
                current, guide = trained, None
                self.log["accepted"] = step["step"]
                if arguments["target_params"] is not None and step["parameters"] <= arguments["target_params"]:
                    self.log["ended"] = f"reached {arguments['target_params']:,} parameters"
            else:
                ratio = self.more_careful(ratio)
            self.save()
        self.publish(current)

    def was_rejected(self, step: Mapping[str, Any]) -> bool:
        """Whether this very network was trained before, from the same weights: it would come out the same."""
        fresh = self.arguments["start"] == "fresh"
        return any(
            tried["network"] == step["network"] and (fresh or tried["from"] == step["from"])
            for tried in self.log["steps"]
        )

    def more_careful(self, ratio: float) -> float:
        """The next ratio after one that went too far; where none is left, the loop ends."""
        smaller = math.sqrt(ratio)
        if self.arguments["tau"] is not None or smaller < LEAST_RATIO:
            allowed = self.arguments["max_auc_drop"]
            self.log["ended"] = f"smaller networks lose more than {allowed} of the validation AUC"
        return smaller

    def measured(self, run: Run) -> dict[str, Any]:
        """What a run's network costs: parameters, multiply-accumulates for one image, bytes of its weights' file."""
        network = run.network()
        return {
            "parameters": parameters(network),
            "macs": macs(network, self.cohort.size),
            "bytes": (run.path / "weights.safetensors").stat().st_size,
        }

    def save(self) -> None:
        write_json(self.out / "simplification.json", self.log)

    def publish(self, accepted: Run) -> None:
        """Make the folder a run: that of the accepted network."""
        if self.log["accepted"] is not None:
            for name in PUBLISHED[::-1]:  # the config last: until then the folder is no run
                shutil.copyfile(accepted.path / name, self.out / name)
        self.save()

    @cached_property
    def probe_images(self) -> Tensor:
        return load_images(self.cohort, self.probes.tolist())

    def guide(self, network: Network) -> Guide:
        kind = self.arguments["guide"]
        if kind == "krm":
            return KRM(network, self.probe_images, self.arguments["difference"], self.arguments["block_tau"])
        if kind == "uniform":
            return Uniform(network)
        scores = importance(network, kind, seed=self.base.config.seed, backward=self.backward)
        return Ranking(scores, self.arguments["ranking"])

    def backward(self, network: Network) -> None:
        """Gradients of the run's own loss on the probe studies, for importance by Taylor expansion."""
        config = self.base.config
        objective = make_objective(config)
        attention = AttentionTarget(config.attention, config.preset, config.sigma)
        dataset = CohortDataset(
            self.cohort,
            self.probes,
            attention if objective.needs_attention else None,
            network.attention_size(self.cohort.size),
        )
        batch = dataset.batch([(0, position) for position in range(len(self.probes))])
        terms = objective.terms(network(batch.images), batch)
        objective.combine({name: term.mean for name, term in terms.items()}).backward()

    def decide(self, folder: Path, current: Run, network: Network, guide: Guide, aim: int) -> None:
        """Write down a smaller structure, and the weights it starts from if it inherits any."""
        structure, smaller, setting = search(network, guide, aim, self.arguments["tau"])
        if self.arguments["start"] == "inherited":
            save_weights(merged(network, structure, self.probe_images), folder / "start.safetensors")
        write_json(
            folder / "decision.json",
            {
                "step": folder.name,
                "from": current.path.name if current is not self.base else None,
                "aim": aim,
                guide.dial: setting,
                "parameters": parameters(smaller),
                "network": smaller.config,
                "groups": {
                    group.name: {
                        "layers": len(group.writers),
                        "channels": group.size,
                        "kept": len(structure.kept[group.name].channels),
                        "dead": guide.dead(group.name),
                    }
                    for group in ChannelGraph(network).groups
                    if group.name in structure.kept
                },
                "dropped": {name: guide.changes[name] for name in structure.dropped},
            },
        )

    def train(self, folder: Path, step: dict[str, Any]) -> Run:
        """Train the step's network, or finish doing so."""
        inherits = self.arguments["start"] == "inherited"
        method, settings = self.settings(step["network"], folder / "start.safetensors" if inherits else None)
        return fit(self.cohort, folder, method, resume=True, progress=self.progress, **settings)

    def settings(self, network: Mapping[str, Any], start: Path | None) -> tuple[str, dict[str, Any]]:
        """Method and settings that train ``network`` as the base run was trained, with the changes that were given."""
        settings = self.base.config.dump()
        method = settings.pop("method")
        given = json.loads(json.dumps(self.arguments["settings"]))  # a copy
        settings["distill"] = None
        if self.arguments["distill"]:
            settings["augmentation"]["views"] = self.arguments["views"]
            teacher = {
                "teacher": str(self.base.path.resolve()),
                "scores": str((self.out / "teacher.safetensors").resolve()),
            }
            settings["distill"] = {**teacher, **given.pop("distill", {})}
        for key, value in given.items():
            together = isinstance(value, dict) and isinstance(settings.get(key), dict)
            settings[key] = {**settings[key], **value} if together else value
        settings["model"] = dict(network)
        settings["initial_weights"] = None if start is None else str(start.resolve())
        return method, settings


def search(network: Network, guide: Guide, aim: int, fixed: float | None) -> tuple[Structure, Network, float]:
    """The largest structure of at most ``aim`` parameters, or the smallest there is; with ``fixed``, the one there."""
    if fixed is not None:
        structure = guide.structure(fixed)
        return structure, apply(network, structure), fixed
    low, high = 0, len(guide.settings) - 1
    while low < high:
        middle = (low + high) // 2
        if parameters(apply(network, guide.structure(guide.settings[middle]))) <= aim:
            high = middle
        else:
            low = middle + 1
    structure = guide.structure(guide.settings[low])
    return structure, apply(network, structure), guide.settings[low]


def merged(network: Network, structure: Structure, images: Tensor) -> Network:
    """The smaller network with the weights that stay, and those that go merged into their stand-ins."""
    stands_for = {name: kept.stands_for for name, kept in structure.kept.items() if kept.stands_for is not None}
    gains = fit_gains(network, ChannelGraph(network).groups, images, stands_for) if stands_for else None
    return apply(network, structure, gains)


def validation_auc(run: Run) -> float:
    """Macro AUC on the validation split, of the epoch whose weights were kept."""
    return float(run.state.best["val_auc_macro"])


def describe_cohort(cohort: Cohort) -> dict[str, Any]:
    """Where the AUCs come from."""
    validation = cohort.indices("val")
    patients = cohort.studies["patient_id"]
    return {
        "name": cohort.name,
        "studies": len(cohort),
        "patients": patients.n_unique(),
        "size": list(cohort.size),
        "split_by": cohort.meta["split_by"],
        "validation": {"studies": len(validation), "patients": patients[validation].n_unique()},
    }


def check_run(run: Run) -> None:
    if not run.classes or not run.is_trained or "val_auc_macro" not in run.history[-1]:
        raise InputError(
            f"The run in {str(run.path)!r} has no validation AUC (no classes, or training has not finished), and that "
            "decides what is accepted; give a finished run that was trained with labels."
        )


def check_arguments(run: Run, arguments: Mapping[str, Any]) -> None:
    """Everything that would fail or mean nothing later, said now."""
    for name in ("max_auc_drop", "block_tau"):
        if not 0 <= arguments[name] <= 1:
            raise InputError(f"{name} is {arguments[name]}, expected 0 to 1; try 0.005 or 0.05.")
    if arguments["guide"] not in GUIDES:
        raise InputError(f"There is no guide {arguments['guide']!r}: {nearest(arguments['guide'], GUIDES)}")
    if arguments["ranking"] not in RANKINGS:
        raise InputError(f"There is no ranking {arguments['ranking']!r}: {nearest(arguments['ranking'], RANKINGS)}")
    if arguments["start"] not in STARTS:
        raise InputError(f"There is no start {arguments['start']!r}: {nearest(arguments['start'], STARTS)}")
    if not LEAST_RATIO < arguments["ratio"] < math.inf:
        raise InputError(f"ratio is {arguments['ratio']}, expected more than {LEAST_RATIO}; try 8.")
    find_difference(arguments["difference"])
    if arguments["tau"] is not None:
        check_threshold("tau", arguments["tau"])
        if arguments["guide"] != "krm":
            raise InputError(
                f"tau is krm's threshold and means nothing to the guide {arguments['guide']!r}; leave it out."
            )
    for name, least in (("target_params", 1), ("images", 2), ("views", 1)):
        if arguments[name] is not None and arguments[name] < least:
            raise InputError(f"{name} is {arguments[name]}, expected at least {least}.")
    if arguments["target_params"] is not None and arguments["target_params"] >= run.content["parameters"]:
        raise InputError(
            f"target_params is {arguments['target_params']:,}, but the run has {run.content['parameters']:,} "
            "parameters already; give fewer."
        )
    for key in ("method", "model", "initial_weights"):
        if key in arguments["settings"]:
            raise InputError(f"The setting {key!r} is what a simplification decides itself; leave it out.")
    if arguments["start"] == "fresh" and not is_narrow(as_narrow(run.network())):
        raise InputError(
            f"The network of {str(run.path)!r} is no plain ResNet, and only those are rebuilt from fresh weights; "
            "use start='inherited' (--start inherited)."
        )


def check_folder(out: Path, arguments: Mapping[str, Any], resume: bool) -> None:
    """Refuse to write over anything, and to go on with other arguments."""
    log = out / "simplification.json"
    if not log.exists():
        if is_used(out):
            raise InputError(f"{str(out)!r} is not empty and holds no simplification; choose another folder.")
        return
    if not resume:
        raise InputError(f"{str(out)!r} holds a simplification already; add --resume, or choose another folder.")
    for key, before in read_json(log, "a simplification")["arguments"].items():
        if arguments.get(key) != before:
            raise InputError(
                f"The simplification in {str(out)!r} was started with {key} = {before!r}, not {arguments.get(key)!r}; "
                "resume with the same arguments, or choose another folder."
            )
