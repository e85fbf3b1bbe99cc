"""Training steps as `radgaze.fit` takes them, against the same steps in fp32, eager, NCHW, with Adam's plain loop.

    python benchmarks/training.py [--rounds N]

A step is forward, loss, backward and Adam, on random images and maps of the papers' sizes: MT-UNet of width 64 at
640x512 (batch 2), of width 16 at 256x256 (batch 4), GG-CAM on ResNet50 at 512x512 (batch 4). Both ways train the same
network with the same objective. The floor is the step's arithmetic at the rate of this machine's convolutions in bf16.

The difference is that of the loss over 50 steps from the same weights on the same synthetic studies (160x128 pixels):
root mean square over steps of bf16 against fp32, relative to the mean loss, and beside it fp32 with another order of
the batches: the noise that a run has anyway.

Where there is a GPU the same is measured there, with fewer ways: fp32 eager NCHW, radgaze's, and radgaze's compiled.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from _bench import Row, alternate, conv_floor, row, run
from radgaze.cohort import Cohort
from radgaze.cohort.phantom import make_phantom
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.models import GazeCAM, MTUNet, Network
from radgaze.training.attention import AttentionTarget
from radgaze.training.config import Augmentation, RunConfig
from radgaze.training.data import Batch, Batches, CohortDataset, Loader
from radgaze.training.methods import METHODS
from radgaze.training.trainer import Learner, auto_precision, make_optimizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = 50
CONFIG = RunConfig()
Step = Callable[[Batch], Tensor]


def plain_step(network: Network, method: str) -> Step:
    """fp32, NCHW, eager, one parameter after the other in Adam: PyTorch as it comes."""
    learner = Learner(network, METHODS[method].objective()).to(DEVICE).train()
    optimizer = torch.optim.Adam(learner.parameters(), CONFIG.learning_rate)
    return stepping(learner, optimizer, channels_last=False)


def radgaze_step(network: Network, method: str, *, compiled: bool = False) -> Step:
    """As the trainer sets it up."""
    learner = Learner(network, METHODS[method].objective(), auto_precision(CONFIG)).to(DEVICE).train()
    learner = learner.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(CONFIG, learner)
    return stepping(torch.compile(learner) if compiled else learner, optimizer, channels_last=True)


def stepping(learner: Any, optimizer: torch.optim.Optimizer, *, channels_last: bool) -> Step:
    def step(batch: Batch) -> Tensor:
        loss, _, _ = learner(batch.to(DEVICE, channels_last))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value: Tensor = loss.detach()
        return value if DEVICE.type == "cpu" else value.cpu()  # a clock must wait for the GPU

    return step


def random_batch(count: int, size: tuple[int, int], map_size: tuple[int, int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.rand(count, 1, *size, generator=generator),
        targets=torch.arange(count) % 3,
        attention=torch.rand(count, *map_size, generator=generator),
        has_attention=torch.ones(count, dtype=torch.bool),
        studies=torch.arange(count),
        positions=torch.arange(count),
    )


def operations(network: Network, batch: Batch) -> int:
    """Floating-point operations of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        output = network(batch.images)
        sum(part.sum() for part in output if part is not None).backward()
    network.zero_grad()
    return int(counter.get_total_flops())


def losses(step: Step, cohort: Cohort, network: Network, order: int) -> Tensor:
    """The first ``STEPS`` losses on the cohort's training split."""
    dataset = CohortDataset(
        cohort,
        cohort.indices("train"),
        AttentionTarget("gaze"),
        network.attention_size(cohort.size),
        augmentation=Augmentation.none(),
    )
    batches = Batches(len(dataset), 4, shuffle=True, seed=order)

    def endless() -> Iterator[Batch]:
        while True:
            yield from Loader(dataset, batches, workers=0, pin=False)
            batches.epoch += 1

    torch.manual_seed(0)  # of dropout
    return torch.stack([step(batch) for _, batch in zip(range(STEPS), endless(), strict=False)])


def loss_check(network: Network, method: str, cohort: Cohort) -> str:
    plain = losses(plain_step(copy.deepcopy(network), method), cohort, network, 0)
    ours = losses(radgaze_step(copy.deepcopy(network), method), cohort, network, 0)
    other = losses(plain_step(copy.deepcopy(network), method), cohort, network, 1)

    def apart(values: Tensor) -> float:
        return float((values - plain).square().mean().sqrt() / plain.mean())

    return f"loss {apart(ours):.1%}, noise {apart(other):.1%}"


def measure(rounds: int) -> list[Row]:
    networks: dict[str, tuple[Network, str, tuple[int, int], int, float]] = {
        "MT-UNet, width 64": (MTUNet(3, 1, width=64), "mt-unet", (640, 512), 2, 6),
        "MT-UNet, width 16": (MTUNet(3, 1, width=16), "mt-unet", (256, 256), 4, 3),
        "GG-CAM, ResNet50": (GazeCAM("resnet50", 3, in_channels=1), "gg-cam", (512, 512), 4, 6),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_phantom(Path(folder) / "data", studies=60, progress=False)
        cohort = import_egd_cxr(
            data / "egd-cxr", data / "mimic-cxr", Path(folder) / "cohort", size=(160, 128), progress=False
        )
        for name, (network, method, size, count, target) in networks.items():
            torch.manual_seed(0)
            batch = random_batch(count, size, network.attention_size(size))
            needed = conv_floor(operations(network, batch))
            small = MTUNet(3, 1, width=16) if method == "mt-unet" else network
            check = loss_check(small, method, cohort)
            ways = {
                "fp32 eager NCHW": plain_step(copy.deepcopy(network), method),
                "radgaze": radgaze_step(copy.deepcopy(network), method),
            }
            if DEVICE.type == "cuda":
                ways["compiled"] = radgaze_step(copy.deepcopy(network), method, compiled=True)
            seconds = alternate({way: partial(step, batch) for way, step in ways.items()}, rounds)
            reference = seconds.pop("fp32 eager NCHW")
            for way, ours in seconds.items():
                work = f"training step, {name}, {size[0]}x{size[1]}, batch {count}"
                if DEVICE.type == "cuda":
                    work += ", GPU, compiled" if way == "compiled" else ", GPU"
                rows.append(row(work, "fp32 eager NCHW", reference, ours, target=target, floor=needed, check=check))
    return rows


if __name__ == "__main__":
    run(measure, 3, __doc__)
