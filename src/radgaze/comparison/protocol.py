"""What a comparison trains: each method with each backbone on each training size (an arm), once for every seed.

The folder remembers what was asked for, in ``comparison-protocol.json``. A later call adds to it; what it leaves out
stays as it was. Everything is resolved and checked here, before the first run starts: what cannot be trained or
measured, and settings that are not those the folder was started with.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from radgaze import __version__
from radgaze.cohort import Cohort
from radgaze.errors import InputError, nearest
from radgaze.files import read_json, write_json
from radgaze.models.build import NETWORKS
from radgaze.training.attention import AttentionTarget
from radgaze.training.config import RunConfig
from radgaze.training.methods import METHODS, find_method, resolve
from radgaze.training.runs import Run
from radgaze.training.trainer import build_network, check_folder, plan_training

__all__ = [
    "Arm",
    "PlannedRun",
    "Protocol",
    "check_evaluable",
    "check_unchanged",
    "make_arms",
    "merge",
    "read_protocol",
    "write_protocol",
]

FILE = "comparison-protocol.json"
DEFAULT_SEEDS = 3
PER_RUN = ("seed",)  # what the runs of one arm do not share
WHERE_IT_RUNS = ("devices", "nodes", "accelerator", "workers")  # may change between two calls


@dataclass(frozen=True)
class PlannedRun:
    """One training of an arm.

    Attributes:
        name: Of its folder, its job and its log.
        seed: Of everything random in it.
        path: Its run folder.
        method, settings: What :func:`radgaze.training.fit` is called with; settings are None if it was trained
            elsewhere.
    """

    name: str
    seed: int
    path: Path
    method: str
    settings: dict[str, Any] | None


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Of the arm, with backbone and size.
        method: The method, or the name of its variant.
        config: The resolved settings that all its runs share.
    """

    name: str
    method: str
    backbone: str | None
    train_studies: int
    attention: str
    parameters: int
    config: dict[str, Any]
    classifies: bool
    foreign: bool
    runs: list[PlannedRun]


@dataclass(frozen=True)
class Protocol:
    """What was asked for, over all calls with one folder. Training sizes are numbers of studies, paths absolute.

    An entry of ``methods`` is a method, or ``"NAME=METHOD"``: a variant, which has settings of its own under NAME, on
    top of the method's.
    """

    methods: list[str] = field(default_factory=list)
    backbones: list[str] = field(default_factory=list)
    train_studies: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    def extended(
        self,
        cohort: Cohort,
        methods: Sequence[str],
        backbones: Sequence[str],
        train_studies: Sequence[int | None],
        seeds: int | Sequence[int] | None,
        settings: Mapping[str, Any],
        settings_of: Mapping[str, Mapping[str, Any]],
        runs: Sequence[Path | str],
    ) -> Protocol:
        """This protocol with more in it. Nothing asked for earlier is dropped.

        Raises:
            InputError: A name or number that is given twice or does not exist; nothing to compare.
        """
        if isinstance(seeds, int):
            if seeds < 1:
                raise InputError(f"seeds is {seeds}; give at least 1, or a list of seeds.")
            seeds = range(seeds)
        elif seeds is None:
            seeds = [] if self.seeds else range(DEFAULT_SEEDS)
        total = len(cohort.indices("train"))
        sizes = [total if size is None else size for size in train_studies]
        folders = [str(Path(run).resolve()) for run in runs]
        named = (
            ("method", methods),
            ("backbone", backbones),
            ("training size", sizes),
            ("seed", seeds),
            ("run", folders),
        )
        for what, given in named:
            check_once(what, given)
        for entry in methods:
            find_method(variant(entry)[1])
        shared = merge(self.settings, settings)
        own = {name: merge(self.settings_of.get(name, {}), given) for name, given in settings_of.items()}
        own = {**self.settings_of, **own}
        for key, option in {"seed": "seeds", "train_studies": "train_studies", "method": "methods"}.items():
            if any(key in group for group in (shared, *own.values())):
                raise InputError(f"A comparison takes no setting {key!r}: it varies {option}; give it there.")
        together, trained = union(self.methods, methods), union(self.runs, folders)
        if not together and not trained:
            raise InputError("There is nothing to compare: give methods to train, or runs that are trained.")
        check_once("method", [variant(entry)[0] for entry in together])
        with_backbone = [entry for entry in together if default_backbone(variant(entry)[1]) is not None]
        if backbones and not with_backbone:
            raise InputError(
                f"None of the methods {', '.join(together) or '(none)'} takes a backbone; "
                f"leave out the backbones {', '.join(backbones)}, or add a method such as gg-cam."
            )
        if with_backbone and not (self.backbones or backbones):
            backbones = list(dict.fromkeys(own_backbone(entry, shared, own) for entry in with_backbone))
        extended = Protocol(
            together,
            union(self.backbones, backbones),
            sorted(union(self.train_studies, sizes)) or ([total] if together else []),
            sorted(union(self.seeds, seeds)) if together else [],
            shared,
            own,
            trained,
        )
        known = [name for entry in extended.methods for name in variant(entry)] + extended.backbones
        for name in own:
            if name not in known:
                raise InputError(
                    f"Settings are given for {name!r}, which is neither a method nor a backbone of this comparison: "
                    f"{nearest(name, known) if known else 'it trains nothing.'}"
                )
        return extended


def check_once(what: str, given: Iterable[Hashable]) -> None:
    twice = [value for value, times in Counter(given).items() if times > 1]
    if twice:
        raise InputError(f"The {what} {twice[0]!r} is given twice; give each {what} once.")


def union(before: Sequence[Any], added: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys([*before, *added]))


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with groups merged key by key; later layers win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def variant(entry: str) -> tuple[str, str]:
    """Name and method of an entry ``"METHOD"`` or ``"NAME=METHOD"``.

    Raises:
        InputError: A name that is no plain word, or that is another method's.
    """
    name, equals, method = entry.partition("=")
    if not equals:
        return entry, entry
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"The variant {entry!r} has the name {name!r}; expected NAME=METHOD with a name of letters, digits, "
            "dots and hyphens, such as decision=gg-cam."
        )
    if name in METHODS and name != method:
        raise InputError(f"The variant {entry!r} has the name of the method {name!r}; give it another name.")
    return name, method


def default_backbone(method: str) -> str | None:
    """The backbone a method's network has unless told otherwise; None for a method without one."""
    arguments = inspect.signature(NETWORKS[find_method(method).network]).parameters
    return arguments["backbone"].default if "backbone" in arguments else None


def own_backbone(entry: str, shared: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> str:
    """The backbone that the settings give a method, when the comparison is not told which."""
    name, method = variant(entry)
    config = resolve(method, merge(shared, own.get(method, {}), own.get(name, {})))
    return str(config.model.get("backbone", default_backbone(method)))


# Arms ----------------------------------------------------------------------------------------------------------------


def make_arms(protocol: Protocol, cohort: Cohort, out: Path) -> list[Arm]:
    """Every arm, resolved and checked.

    Raises:
        InputError: An arm that cannot be trained on the cohort, or a run that cannot be measured on it.
    """
    arms = trained_here(protocol, cohort, out)
    arms += trained_elsewhere([Path(run) for run in protocol.runs], cohort, arms)
    return arms


def trained_here(protocol: Protocol, cohort: Cohort, out: Path) -> list[Arm]:
    total, parameters_of = len(cohort.indices("train")), {}
    arms = []
    for size in protocol.train_studies:
        for name, method in map(variant, protocol.methods):
            for backbone in protocol.backbones if default_backbone(method) is not None else [None]:
                layers = [protocol.settings, protocol.settings_of.get(method, {})]
                if backbone is not None:
                    layers += [protocol.settings_of.get(backbone, {}), {"model": {"backbone": backbone}}]
                layers += [protocol.settings_of.get(name, {})] if name != method else []
                settings = merge(*layers, {"train_studies": None if size == total else size})
                runs = []
                for seed in protocol.seeds:
                    of_run = {**settings, "seed": seed}
                    plan = plan_training(cohort, method, of_run)
                    slug = "-".join(str(part) for part in (name, backbone, size, f"seed{seed}") if part is not None)
                    check_own_folder(out / "runs" / slug, plan.content)
                    runs.append(PlannedRun(slug, seed, out / "runs" / slug, method, of_run))
                # a network is the same for all seeds and sizes: building one finds what its settings have wrong
                network = json.dumps(plan.content["network"], sort_keys=True)
                if network not in parameters_of:
                    build_network(plan, cohort)
                    parameters_of[network] = plan.content["parameters"]
                arms.append(
                    Arm(
                        name=arm_name(name, backbone, size),
                        method=name,
                        backbone=backbone,
                        train_studies=size,
                        attention=plan.content["attention"],
                        parameters=parameters_of[network],
                        config=shared_config(plan.content["run"]),
                        classifies=bool(plan.content["classes"]),
                        foreign=False,
                        runs=runs,
                    )
                )
    return arms


def arm_name(method: str, backbone: str | None, size: int) -> str:
    return f"{method}{f' {backbone}' if backbone else ''} ({size})"


def shared_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in PER_RUN}


def check_own_folder(folder: Path, content: dict[str, Any]) -> None:
    """What `fit` would refuse to resume. A damaged folder is left to its own run, so that the others go on."""
    try:
        Run.open(folder)
    except InputError:
        return
    check_folder(folder, content, resume=True)


def trained_elsewhere(folders: Sequence[Path], cohort: Cohort, arms: Sequence[Arm]) -> list[Arm]:
    """Arms of runs that are only measured; runs that differ in nothing but their seed are one arm."""
    planned = {run.path.resolve() for arm in arms for run in arm.runs}
    groups: dict[str, list[Run]] = {}
    for folder in folders:
        if folder.resolve() in planned:
            raise InputError(f"The run {str(folder)!r} is one of this comparison's own; leave it out of the runs.")
        run = Run.open(folder)
        check_measurable(run, cohort)
        same = {"run": shared_config(run.config.dump()), "cohort": run.content["cohort"]["checksums"]}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    names = Counter(arm.name for arm in arms)
    found, folder_names = [], Counter({run.name: 1 for arm in arms for run in arm.runs})
    for group in groups.values():
        first = group[0]
        seeds: dict[int, Run] = {}
        for run in group:
            if run.config.seed in seeds:
                raise InputError(
                    f"The runs {str(seeds[run.config.seed].path)!r} and {str(run.path)!r} have the same settings and "
                    f"the same seed {run.config.seed}; give one of them."
                )
            seeds[run.config.seed] = run
        size = int(first.config.train_studies or first.content.get("train_studies") or len(cohort.indices("train")))
        backbone = first.content["network"].get("backbone")
        name = arm_name(first.config.method, backbone, size)
        names[name] += 1
        if names[name] > 1:  # the same kind of arm with other settings
            name = f"{name}, {first.path.name}"
        runs = []
        for run in group:
            folder_names[run.path.name] += 1
            times = folder_names[run.path.name]
            own_name = run.path.name if times == 1 else f"{run.path.name}-{times}"
            runs.append(PlannedRun(own_name, run.config.seed, run.path, run.config.method, None))
        found.append(
            Arm(
                name=name,
                method=first.config.method,
                backbone=backbone,
                train_studies=size,
                attention=first.content["attention"],
                parameters=first.content["parameters"],
                config=shared_config(first.config.dump()),
                classifies=bool(first.classes),
                foreign=True,
                runs=runs,
            )
        )
    return found


def check_measurable(run: Run, cohort: Cohort) -> None:
    """A finished run whose classes, size, split and attention fit the cohort."""
    run.cohort(cohort)
    if not (run.path / "weights.safetensors").is_file():
        raise InputError(f"The run {str(run.path)!r} has no weights yet; finish it with --resume, or leave it out.")
    network = NETWORKS.get(run.content["network"]["name"])
    if network is not None and network.predicts_attention and run.content["attention"] != "none":
        AttentionTarget(run.config.attention, run.config.preset, run.config.sigma).check(cohort)


def check_evaluable(cohort: Cohort, split: str, arms: Sequence[Arm]) -> None:
    """The split that is measured, said before days of training rather than after them."""
    if split not in ("test", "val"):
        raise InputError(f"split is {split!r}; compare on test, or on val while a protocol is still being chosen.")
    studies = cohort.indices(split)
    if len(studies) == 0:
        raise InputError(f"Cohort {cohort.name!r} has no study in its {split!r} split; split it again.")
    if cohort.task == "multiclass" and any(arm.classifies for arm in arms):
        present = set(cohort.targets[studies].tolist())
        for index, name in enumerate(cohort.classes):
            if index not in present:
                raise InputError(
                    f"Class {name!r} is absent from the {split!r} split of cohort {cohort.name!r}, so its AUC would "
                    "not exist; split it again (radgaze split) or add studies of that class."
                )


# On disk -------------------------------------------------------------------------------------------------------------


def read_protocol(out: Path, cohort: Cohort) -> tuple[Protocol, dict[str, Any]]:
    """What the folder was asked for so far, and the resolved settings of its arms; nothing for a new folder.

    Raises:
        InputError: The folder compares on another cohort, or its file is damaged.
    """
    path = out / FILE
    if not path.exists():
        return Protocol(), {}
    content = read_json(path, "a comparison")
    try:
        protocol, arms, checksums = Protocol(**content["asked"]), content["arms"], content["cohort"]["checksums"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); restore it or choose another folder.") from None
    if checksums != cohort.meta["checksums"]:
        raise InputError(
            f"The comparison in {str(out)!r} was started on another cohort, or the cohort has changed since; "
            "start a new one in another folder."
        )
    return protocol, arms


def write_protocol(out: Path, protocol: Protocol, cohort: Cohort, arms: Sequence[Arm]) -> None:
    content = {
        "radgaze": __version__,
        "cohort": {"path": str(cohort.path), "name": cohort.name, "checksums": cohort.meta["checksums"]},
        "asked": asdict(protocol),
        "arms": {arm.name: arm.config for arm in arms if not arm.foreign},
    }
    write_json(out / FILE, content)


def check_unchanged(out: Path, before: Mapping[str, Any], arms: Sequence[Arm]) -> None:
    """Refuse other settings than those the folder's arms were started with: their runs would not belong together."""
    for arm in arms:
        if arm.foreign or arm.name not in before:
            continue
        started = RunConfig.parse(before[arm.name]).dump()  # settings that came later have their defaults
        for key, value in arm.config.items():
            old = started[key]
            if old != value and key not in WHERE_IT_RUNS:
                raise InputError(
                    f"The comparison in {str(out)!r} was started with {key} = {old!r} for {arm.name!r}, not "
                    f"{value!r}; go on with the same settings, or choose another folder."
                )
