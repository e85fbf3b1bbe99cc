"""A ResNet50 of 23.5 million parameters against what is left of it: kernel redundancy and its rivals, over seeds.

    python benchmarks/quality/simplification.py --data FOLDER --work FOLDER [--arms krm,...] [--params 128000,...]
        [--finished] [--figure FILE]

--data holds the images.csv, images.zip and lung_masks.zip of Kermany et al. For each seed a ResNet50 is trained from
scratch; then every arm makes it smaller with `radgaze simplify`, in one pass to the same number of parameters, and
trains it with the same budget, without distillation. Uniform widths start from fresh weights, kernels drawn at random
or chosen by importance from their own; krm does both. The control "tapered" learns nothing from the large network but
krm's cost: its widths change by one ratio from stage to stage, so that it has krm's parameters and its
multiply-accumulates. Finished steps are kept in the work folder, so an interrupted benchmark goes on where it stopped.
Prints the tables of docs/results.md.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from common import RECIPE, lookup, markdown, train_and_evaluate
from kermany import paired_difference, prepare
from radgaze.cohort import Cohort
from radgaze.files import atomic_path, read_json
from radgaze.inference import evaluate
from radgaze.models import Network, build, macs, parameters
from radgaze.models.narrow_resnet import NarrowResNet
from radgaze.simplification import simplify
from radgaze.training import Run

SIZE = 112
# stride 16, so that the CAM has 7x7 cells at 112 px
LARGE = {
    **RECIPE,
    "precision": "bf16",
    "monitor": "val_auc_macro",
    "model": {"backbone": "resnet50", "options": {"output_stride": 16}},
    "epochs": 12,
}
SMALL = {"epochs": 24}
ANY = 1.0  # every size is measured, whether it would be accepted or not


@dataclass(frozen=True)
class Arm:
    guide: str
    start: str
    ranking: str = "group"


ARMS = {
    "krm": Arm("krm", "fresh"),
    "krm-inherited": Arm("krm", "inherited"),
    "uniform": Arm("uniform", "fresh"),
    "random": Arm("random", "inherited"),
    "l1": Arm("l1", "inherited"),
    "fpgm": Arm("fpgm", "inherited"),
    "taylor": Arm("taylor", "inherited"),
    "taylor-global": Arm("taylor", "inherited", ranking="all"),
}
TAPERED = "tapered"
BLOCKS, EXPANSION = (3, 4, 6, 3), 4  # of ResNet50


@dataclass(frozen=True)
class Task:
    """One simplification, or the large network itself (``arm`` None)."""

    cohort: Path
    work: Path
    seed: int
    arm: str | None = None
    params: int | None = None

    @property
    def large(self) -> Path:
        return self.work / "large" / f"seed{self.seed}"

    @property
    def run(self) -> Path:
        return self.large if self.arm is None else self.work / "small" / f"{self.arm}-{self.params}-seed{self.seed}"


def work_on(task: Task) -> Task:
    """Train and measure one network, or find it finished."""
    torch.set_num_threads(1)
    if task.arm is None:
        train_and_evaluate(Cohort.open(task.cohort), task.run, "classifier", {**LARGE, "seed": task.seed})
    elif task.arm == TAPERED:
        krm = Run.open(replace(task, arm="krm").run)
        model = tapered(krm.network(), krm.size)
        train_and_evaluate(
            Cohort.open(task.cohort), task.run, "classifier", {**LARGE, **SMALL, "seed": task.seed, "model": model}
        )
    elif not (task.run / "report.json").exists():
        arm = ARMS[task.arm]
        simplify(
            task.large,
            task.run,
            guide=arm.guide,
            start=arm.start,
            ranking=arm.ranking,
            ratio=1e6,  # one pass
            target_params=task.params,
            max_auc_drop=ANY,
            distill=False,
            settings=SMALL,
            resume=True,
            progress=False,
        )
        evaluate(task.run, progress=False)
    return task


def tapered(like: Network, size: tuple[int, int]) -> dict[str, Any]:
    """The model settings of a ResNet50 whose widths change by one ratio from stage to stage.

    Of all first widths and ratios: the one nearest to the parameters and multiply-accumulates of ``like``, neither of
    which may be off by more than a twentieth.
    """
    wanted = (parameters(like), macs(like, size))
    best: tuple[float, dict[str, Any]] = (math.inf, {})
    for first in range(4, 65):
        # parameters grow with the ratio, so the right one for them lies between two halvings
        low, high = 0.25, 2.5
        for _ in range(12):
            ratio = (low + high) / 2
            model = stages_of(first, ratio, like.config["options"]["output_stride"])
            with torch.device("meta"):  # shapes without weights
                backbone = NarrowResNet(in_channels=1, **model["options"])
            head = (backbone.num_features + 1) * like.config["num_classes"]
            low, high = (ratio, high) if parameters(backbone) + head < wanted[0] else (low, ratio)
        network = build({**like.config, **model})
        found = (parameters(network), macs(network, size))
        off = max(abs(have / want - 1) for have, want in zip(found, wanted, strict=True))
        best = min(best, (off, model), key=lambda entry: entry[0])
    if best[0] > 0.05:
        raise SystemExit(f"No tapered ResNet50 comes nearer than {best[0]:.0%} to {wanted} parameters and MACs.")
    return best[1]


def stages_of(first: int, ratio: float, output_stride: int) -> dict[str, Any]:
    widths = [max(1, round(first * ratio**stage)) for stage in range(len(BLOCKS))]
    stages = [
        {"width": EXPANSION * width, "blocks": [[width, width]] * blocks, "projection": True}
        for width, blocks in zip(widths, BLOCKS, strict=True)
    ]
    options = {"stem": first, "stages": stages, "output_stride": output_stride}
    return {"backbone": NarrowResNet.name, "options": options}


def do(tasks: Iterable[Task], jobs: int) -> list[Task]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(work_on, tasks))


def latency(run: Run) -> float:
    """Milliseconds for one image on one thread, median of 30, in PyTorch without any export."""
    network = run.network()
    image = torch.rand(1, 1, *run.size)
    times = []
    with torch.inference_mode():
        for _ in range(35):
            started = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - started)
    return 1000 * median(times[5:])


def report_of(task: Task) -> dict[str, Any]:
    report: dict[str, Any] = read_json(task.run / "report.json", "a report")
    return report


def weights_of(task: Task) -> Path:
    return task.run / "weights.safetensors"


def spread(values: Sequence[float], form: str = ".3f") -> str:
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def row(cohort: Cohort, name: str, tasks: Sequence[Task], large: Sequence[Task]) -> list[str]:
    reports, runs = [report_of(task) for task in tasks], [Run.open(task.run) for task in tasks]
    own = tasks[0].arm is None
    return [
        name,
        str(len(tasks)),
        spread([run.content["parameters"] for run in runs], ",.0f"),
        spread([macs(run.network(), run.size) / 1e6 for run in runs], ",.1f"),
        spread([run.state.best["val_auc_macro"] for run in runs]),
        spread([test_auc(task) for task in tasks]),
        "" if own else difference(cohort, tasks, large),
        spread([lookup(report, ("localisation", "model", "overall", "energy_inside"))["mean"] for report in reports]),
    ]


def test_auc(task: Task) -> float:
    return float(lookup(report_of(task), ("classification", "auc_macro"))["value"])


def difference(cohort: Cohort, first: Sequence[Task], second: Sequence[Task]) -> str:
    """Mean test AUC of some seeds, minus that of the same seeds of another network, with its paired interval."""
    other = {task.seed: task.run for task in second}
    pairs = [(task.run, other[task.seed]) for task in first if task.seed in other]
    found = paired_difference(cohort, [one for one, _ in pairs], [two for _, two in pairs], "auc_macro")
    return f"{float(found.value):+.4f} [{float(found.low):+.4f}, {float(found.high):+.4f}]"


def against_krm(cohort: Cohort, arm: str, tasks: Sequence[Task], krm: Sequence[Task]) -> list[str]:
    rival = {task.seed: task for task in tasks}
    pairs = [(task, rival[task.seed]) for task in krm if task.seed in rival]
    ahead = [
        Run.open(one.run).state.best["val_auc_macro"] - Run.open(two.run).state.best["val_auc_macro"]
        for one, two in pairs
    ]
    return [
        arm,
        difference(cohort, [one for one, _ in pairs], [two for _, two in pairs]),
        f"{sum(test_auc(one) > test_auc(two) for one, two in pairs)} of {len(pairs)}",
        f"{median(ahead):+.4f}",
        f"{sum(gain > 0 for gain in ahead)} of {len(pairs)}",
    ]


def draw(groups: Mapping[tuple[str, int], Sequence[Task]], large: Sequence[Task], file: Path) -> None:
    """AUC against parameters for each arm: medians over seeds, and their range as a bar."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    arms = list(dict.fromkeys(arm for arm, _ in groups))
    for place, (title, value) in enumerate(
        (
            ("validation", lambda task: float(Run.open(task.run).state.best["val_auc_macro"])),
            ("test", test_auc),
        )
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        of_large = [value(task) for task in large]
        axes.axhspan(min(of_large), max(of_large), color="0.88")
        axes.axhline(median(of_large), color="0.5", linewidth=1, label="ResNet50, 23.5 M")
        for number, arm in enumerate(arms):
            sizes = sorted(size for name, size in groups if name == arm)
            values = [[value(task) for task in groups[arm, size]] for size in sizes]
            counts = [median(Run.open(task.run).content["parameters"] for task in groups[arm, size]) for size in sizes]
            x = [count * 1.012 ** (number - len(arms) / 2) for count in counts]
            style = {"color": f"C{number}", "zorder": 5 if arm == "krm" else 3}
            axes.plot(
                x,
                [median(some) for some in values],
                marker="o",
                linewidth=2.4 if arm == "krm" else 1.2,
                label=arm,
                **style,
            )
            axes.vlines(x, [min(some) for some in values], [max(some) for some in values], **style)
        axes.set_xscale("log")
        ticks = sorted({size for _, size in groups})
        axes.set_xticks(ticks, [f"{size // 1000} k" for size in ticks], minor=False)
        axes.minorticks_off()
        axes.set(title=title, xlabel="parameters, at most", ylabel="macro AUC")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    with atomic_path(file) as partial:
        figure.savefig(partial, dpi=130, format=file.suffix[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="krm,uniform,random,l1,fpgm,taylor")
    parser.add_argument("--params", default="128000,64000,32000")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--finished", action="store_true", help="train nothing: the tables of what is there")
    parser.add_argument("--figure", type=Path, help="also draw AUC against parameters, as .png or .svg")
    arguments = parser.parse_args()
    cohort = prepare(arguments.data, arguments.work / "kermany", SIZE)
    seeds, arms = range(arguments.seeds), arguments.arms.split(",")
    sizes = [int(text) for text in arguments.params.split(",")]

    large = [Task(cohort.path, arguments.work, seed) for seed in seeds]
    small = [Task(cohort.path, arguments.work, seed, arm, size) for size in sizes for seed in seeds for arm in arms]
    if arguments.finished:
        large, small = ([task for task in some if (task.run / "report.json").exists()] for some in (large, small))
    else:
        large, small = do(large, arguments.jobs), do(small, arguments.jobs)
    groups = {
        (arm, size): [task for task in small if (task.arm, task.params) == (arm, size)]
        for size in sizes
        for arm in arms
    }
    groups = {key: tasks for key, tasks in groups.items() if tasks}

    header = ["network", "seeds", "parameters", "MACs, millions", "AUC, validation", "AUC, test", "test AUC − large"]
    rows = [row(cohort, "ResNet50", large, large)]
    rows += [row(cohort, f"{arm}, {size // 1000} k", tasks, large) for (arm, size), tasks in groups.items()]
    print(markdown([*header, "CAM, energy in the lungs"], rows))
    rows = [
        against_krm(cohort, f"{arm}, {size // 1000} k", tasks, groups["krm", size])
        for (arm, size), tasks in groups.items()
        if arm != "krm" and ("krm", size) in groups
    ]
    if rows:
        print()
        print(markdown(["krm minus", "test AUC", "seeds ahead", "validation AUC, median", "seeds ahead"], rows))
    print()
    timed = [("ResNet50", large[0]), *((f"{arm}, {size // 1000} k", tasks[0]) for (arm, size), tasks in groups.items())]
    print(
        markdown(
            ["network, first seed", "weights, kB", "ms an image, one thread"],
            [
                [name, f"{weights_of(task).stat().st_size / 1e3:,.0f}", f"{latency(Run.open(task.run)):.1f}"]
                for name, task in timed
            ],
        )
    )
    if arguments.figure:
        draw(groups, large, arguments.figure)


if __name__ == "__main__":
    main()
