"""Kernel redundancy: all pairs of kernels of every convolution of a ResNet50, against scikit-image and piq.

    python benchmarks/redundancy.py [--rounds N]

One 224 px image, random weights (the arithmetic is the same for any), two forward passes included. scikit-image's loop
would take the better part of an hour: it is timed on a few pairs of each map size, in the same round, and EXTRAPOLATED
by the number of pairs. So is piq, on batches of pairs and all threads. The floor is the filtering alone, by the fewest
operations (a separable window, 11 taps each way), at the rate of matrix products. The difference is the largest from
scikit-image on the sampled pairs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torchvision
from piq import ssim
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from _bench import Floor, Row, alternate, gemm_rate, row, run
from radgaze.redundancy import mssim, perceived
from radgaze.redundancy.capture import read_chains, watch

IMAGE = 224
TAPS = 11
SMALLEST = TAPS  # the references take no map below the window's width; smaller maps are timed at this size
PAIRS = 4  # of each map size, timed with scikit-image
BATCH = 63  # pairs in a call of piq


def pair_by_scikit_image(a: Tensor, b: Tensor) -> float:
    _, full = structural_similarity(
        a.numpy(), b.numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
    )
    return float(full[5:-5, 5:-5].mean())


def pairs_by_piq(a: Tensor, b: Tensor) -> Tensor:
    settings = {"kernel_size": TAPS, "kernel_sigma": 1.5, "data_range": 1.0, "downsample": False}
    values: Tensor = ssim(a[:, None], b[:, None], reduction="none", **settings)
    return values


class Network:
    """ResNet50, one image, and the shapes and a few maps of its convolutions' outputs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torchvision.models.resnet50(weights=None).eval()
        self.image = torch.rand(1, 3, IMAGE, IMAGE)
        self.convs = {name: module for name, module in self.model.named_modules() if isinstance(module, nn.Conv2d)}
        self.pairs_of_size: dict[tuple[int, ...], int] = defaultdict(int)
        self.samples: dict[tuple[int, ...], Tensor] = {}
        self.each_output(self.look)

    def each_output(self, look: Callable[[str, Tensor], None]) -> None:
        with torch.no_grad():
            chains = read_chains(self.model, self.image, self.convs, "activation")
            watch(self.model, self.image, self.convs, chains, look)

    def look(self, name: str, output: Tensor) -> None:
        kernels, *size = output.shape[1:]
        self.pairs_of_size[tuple(size)] += kernels * (kernels - 1) // 2
        self.samples.setdefault(tuple(size), perceived(output[0, : BATCH + 1]))

    def extrapolated(self, way: Callable[[Tensor], None], timed: int) -> float:
        """Seconds for all pairs, from ``timed`` pairs of each map size."""
        total = 0.0
        for size, pairs in self.pairs_of_size.items():
            maps = self.samples[size]
            if min(size) < SMALLEST:
                maps = nn.functional.interpolate(maps[None], (SMALLEST, SMALLEST))[0]
            start = time.perf_counter()
            way(maps)
            total += (time.perf_counter() - start) / timed * pairs
        return total

    def least_operations(self) -> int:
        """Of filtering the products of all pairs along one axis, then along the other."""
        total = 0
        for (height, width), pairs in self.pairs_of_size.items():
            rows, columns = (max(1, side - TAPS + 1) for side in (height, width))
            taps = min(TAPS, height), min(TAPS, width)
            total += pairs * 2 * (rows * width * taps[0] + rows * columns * taps[1])
        return total

    def error(self) -> float:
        """Greatest difference from scikit-image over the sampled pairs of maps that it can measure."""
        worst = 0.0
        for size, maps in self.samples.items():
            if min(size) >= SMALLEST:
                maps = maps[: PAIRS + 1]
                expected = [pair_by_scikit_image(maps[0].double(), other.double()) for other in maps]
                worst = max(worst, float((mssim(maps)[0] - torch.tensor(expected)).abs().max()))
        return worst


def measure(rounds: int) -> list[Row]:
    network = Network()

    def one_by_one(maps: Tensor) -> None:
        for other in maps[1 : PAIRS + 1]:
            pair_by_scikit_image(maps[0], other)

    def batched(maps: Tensor) -> None:
        pairs_by_piq(maps[:1].expand(BATCH, -1, -1), maps[1 : BATCH + 1])

    references: dict[str, list[float]] = {"scikit-image": [], "piq": []}
    seconds = alternate(
        {
            "radgaze": lambda: network.each_output(lambda _, output: mssim(perceived(output[0]))),
            "scikit-image": lambda: references["scikit-image"].append(network.extrapolated(one_by_one, PAIRS)),
            "piq": lambda: references["piq"].append(network.extrapolated(batched, BATCH)),
        },
        rounds,
    )
    pairs = sum(network.pairs_of_size.values())
    floor = Floor(network.least_operations() / gemm_rate(), "filtering alone")
    return [
        row(
            f"MSSIM of {pairs / 1e6:.1f} M pairs of kernels, {len(network.convs)} convolutions of ResNet50",
            f"{name}, extrapolated from {timed} pairs of each size",
            references[name][-rounds:],
            seconds["radgaze"],
            target=target,
            floor=floor,
            check=f"{network.error():.0e}" if name == "scikit-image" else "",
        )
        for name, timed, target in (("scikit-image", PAIRS, 2500), ("piq", BATCH, 1000))
    ]


if __name__ == "__main__":
    run(measure, 3, __doc__)
