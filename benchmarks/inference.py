"""Inference by radgaze's exported engines against PyTorch in fp32, eager, as it comes.

    python benchmarks/inference.py [--rounds N]

MT-UNet of width 64 at 640x512, GG-CAM on ResNet50 at 224x224, and a ResNet shrunk to about 125,000 parameters (the
structure that KRM found on real radiographs, see docs/results.md) at 224x224, in batches of one, five in each turn.
The networks are exported by `radgaze.export` from runs trained for a step on synthetic studies: the arithmetic is that
of any weights. Their accuracy means nothing, so it is not asked for here; docs/export.md has what int8 costs a trained
network.

bf16 and int8 are OpenVINO's. The floor is the network's arithmetic at the rate of this machine's convolutions in bf16;
int8 may go below it. The difference is the largest of an output, relative to its scale, that the export measured.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _bench import Floor, Row, Way, alternate, conv_floor, row, run
from radgaze.cohort import Cohort
from radgaze.cohort.phantom import make_phantom
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.inference import export
from radgaze.inference.engine import Engine, open_model, require
from radgaze.models.size import macs
from radgaze.training import Run, fit

# Widths that KRM chose for 128,000 parameters on Kermany's radiographs (seed 0).
SHRUNK: dict[str, Any] = {
    "backbone": "narrow_resnet",
    "options": {
        "stem": 7,
        "stages": [
            {"width": 46, "blocks": [[26, 25], [21, 22], [22, 24]], "projection": True},
            {"width": 49, "blocks": [[22, 31], [27, 36], [24, 32], [29, 32]], "projection": True},
            {
                "width": 64,
                "blocks": [[20, 35], [15, 36], [18, 30], [14, 24], [15, 26], [17, 22]],
                "projection": True,
            },
            {"width": 7, "blocks": [[20, 22], [8, 26], [10, 23]], "projection": True},
        ],
        "output_stride": 16,
    },
}
REPEATS = 5  # images in each turn,
LONG = 0.1  # but one of a network that cannot take less than so many seconds
TARGETS = {"bf16": 11, "int8": 20}


def trained(cohort: Cohort, folder: Path, method: str, model: dict[str, Any]) -> Run:
    """A run of one step."""
    return fit(
        cohort, folder, method, model=model, train_studies=6, epochs=1, augmentation={"views": 1}, progress=False
    )


def exported(run: Run, precision: str) -> tuple[Engine, str]:
    """The engine, and how far its outputs are from PyTorch's."""
    file = run.path.with_name(f"{run.path.name}-{precision}.xml")
    report = export(run, file, format="openvino", precision=precision, tolerance=1.0, progress=False)
    apart = max(output["difference"] / output["scale"] for output in report["parity"].values())
    return open_model(file)[1], f"{apart:.0e}"


def precisions() -> list[str]:
    """Those that this processor computes in."""
    native = require("openvino", "This benchmark").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["fp32", *(precision for precision in TARGETS if precision != "bf16" or "BF16" in native)]


class Case:
    """A network, its exports, and one image."""

    def __init__(self, run: Run, floor: Floor) -> None:
        self.network, self.image = run.network().eval(), torch.rand(1, 1, *run.size)
        self.shape = f"{run.size[0]}x{run.size[1]}"
        self.parameters, self.floor = run.content["parameters"], floor
        self.repeats = REPEATS if floor.seconds < LONG else 1
        exports = {precision: exported(run, precision) for precision in precisions()}
        self.engines = {precision: engine for precision, (engine, _) in exports.items()}
        self.apart = {precision: apart for precision, (_, apart) in exports.items()}

    def ways(self, title: str) -> dict[str, Way]:
        return {
            f"{title}, {name}": partial(self.repeated, call)
            for name, call in {"eager": self.network, **self.engines}.items()
        }

    @torch.no_grad()
    def repeated(self, call: Callable[[Tensor], object]) -> None:
        """As in use, one image after the other: the first of a round finds the caches full of another network."""
        for _ in range(self.repeats):
            call(self.image)


def measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_phantom(folder / "data", studies=24, image_size=(640, 512), progress=False)
        large, small = (
            import_egd_cxr(data / "egd-cxr", data / "mimic-cxr", folder / f"{size}", size=size, progress=False)
            for size in ((640, 512), (224, 224))
        )
        runs = {
            "MT-UNet, width 64": trained(large, folder / "unet", "mt-unet", {"width": 64}),
            "ResNet50": trained(small, folder / "resnet50", "gg-cam", {"backbone": "resnet50"}),
            "shrunk ResNet": trained(small, folder / "shrunk", "gg-cam", SHRUNK),
        }
        # counted before any export: nncf wraps torch's operators, which are then counted several times
        floors = {title: conv_floor(2 * macs(run.network(), run.size)) for title, run in runs.items()}
        cases = {title: Case(run, floors[title]) for title, run in runs.items()}
        ways = {way: call for title, case in cases.items() for way, call in case.ways(title).items()}
        turns = alternate(ways, rounds)
    seconds = {
        way: [value / case.repeats for value in turns[way]] for title, case in cases.items() for way in case.ways(title)
    }
    rows = [
        row(
            f"inference, {title}, {case.parameters:,} parameters, {case.shape}, {precision}",
            "torch fp32 eager",
            seconds[f"{title}, eager"],
            seconds[f"{title}, {precision}"],
            target=TARGETS.get(precision),
            floor=case.floor,
            check=case.apart[precision],
        )
        for title, case in cases.items()
        for precision in case.engines
    ]

    def best(title: str) -> list[float]:
        return min((seconds[f"{title}, {precision}"] for precision in cases[title].engines), key=statistics.median)

    return [
        *rows,
        row("inference, shrunk ResNet", "ResNet50 at its best", best("ResNet50"), best("shrunk ResNet"), target=25),
    ]


if __name__ == "__main__":
    run(measure, 5, __doc__)
