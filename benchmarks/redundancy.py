"""Kernel redundancy: all pairs of kernels of every convolution of a ResNet50, against scikit-image and piq.

    OMP_NUM_THREADS=2 python benchmarks/redundancy.py [--rounds 3] [--pairs 4]

One 224 px image, random weights (the arithmetic is the same for any). scikit-image's loop would take the better part of
an hour: it is timed on a few pairs of each map size, in the same round, and EXTRAPOLATED by the number of pairs. So is
piq, on batches of pairs and all threads, where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torchvision
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from _timing import alternate, machine, ratio
from radgaze.redundancy import mssim, perceived
from radgaze.redundancy.capture import read_chains, watch
from radgaze.redundancy.cover import count_distinct
from radgaze.redundancy.krm import TAUS

IMAGE = 224
SMALLEST = 11  # the references take no map below the window's width; smaller maps are timed at this size
BATCH = 63  # pairs in a call of piq


def pair_by_scikit_image(a: Tensor, b: Tensor) -> float:
    _, full = structural_similarity(
        a.numpy(), b.numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
    )
    return float(full[5:-5, 5:-5].mean())


def pairs_by_piq(a: Tensor, b: Tensor) -> Tensor:
    from piq import ssim

    settings = {"kernel_size": 11, "kernel_sigma": 1.5, "data_range": 1.0, "downsample": False}
    return ssim(a[:, None], b[:, None], reduction="none", **settings)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--pairs", type=int, default=4, help="pairs of each map size timed with scikit-image")
    given = arguments.parse_args()

    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    image = torch.rand(1, 3, IMAGE, IMAGE)
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    shapes: dict[str, tuple[int, ...]] = {}
    samples: dict[tuple[int, ...], Tensor] = {}
    similarities: dict[str, Tensor] = {}

    def look(name: str, output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])
        samples.setdefault(tuple(output.shape[2:]), perceived(output[0, : max(given.pairs, BATCH) + 1]))

    with torch.no_grad():
        chains = read_chains(model, image, convs, "activation")
        watch(model, image, convs, chains, look)

    def compare(name: str, output: Tensor) -> None:
        similarities[name] = mssim(perceived(output[0]))

    processor: list[float] = []

    def ours() -> None:
        start = time.process_time()
        with torch.no_grad():
            chains = read_chains(model, image, convs, "activation")
            watch(model, image, convs, chains, compare)
        processor.append(time.process_time() - start)

    pairs_of_size: dict[tuple[int, ...], int] = defaultdict(int)
    for kernels, height, width in shapes.values():
        pairs_of_size[height, width] += kernels * (kernels - 1) // 2

    def one_by_one(maps: Tensor) -> None:
        for other in maps[1 : given.pairs + 1]:
            pair_by_scikit_image(maps[0], other)

    def batched(maps: Tensor) -> None:
        pairs_by_piq(maps[:1].expand(BATCH, -1, -1), maps[1 : BATCH + 1])

    extrapolated: dict[str, list[float]] = defaultdict(list)

    def reference(name: str, way: Callable[[Tensor], None], timed: int) -> None:
        total = 0.0
        for size, pairs in pairs_of_size.items():
            maps = samples[size]
            if min(size) < SMALLEST:
                maps = nn.functional.interpolate(maps[None], (SMALLEST, SMALLEST))[0]
            start = time.perf_counter()
            way(maps)
            total += (time.perf_counter() - start) / timed * pairs
        extrapolated[name].append(total)

    print(machine())
    before = peak_memory()
    ours()
    memory = peak_memory() - before
    ways = {"radgaze": ours, "scikit-image": lambda: reference("scikit-image", one_by_one, given.pairs)}
    if importlib.util.find_spec("piq"):
        ways["piq"] = lambda: reference("piq", batched, BATCH)
    else:
        print("no piq: pip install piq to time it too")
    seconds = alternate(ways, given.rounds)
    fast = seconds["radgaze"]
    pairs = sum(pairs_of_size.values())
    print(f"all-pairs MSSIM of {len(convs)} convolutions of ResNet50, one {IMAGE} px image, {pairs:,} pairs of kernels")
    for name, times in extrapolated.items():
        times = times[-given.rounds :]
        middle, least, most = ratio(times, fast)
        print(
            f"  {name:13} {min(times):8.0f} to {max(times):.0f} s  EXTRAPOLATED from "
            f"{BATCH if name == 'piq' else given.pairs} pairs each, {middle:.0f}x ({least:.0f} to {most:.0f})"
        )
    print(f"  radgaze       {min(fast):8.2f} to {max(fast):.2f} s  two forward passes included")
    print(f"                {min(processor):8.2f} s of processor time, over all threads")
    print(f"  memory        {memory:8.0f} MiB more at peak, {results(similarities):.0f} of them results")

    start = time.perf_counter()
    for values in similarities.values():
        count_distinct(1 - values.clamp_max(1).numpy(), TAUS)
    print(f"  covers        {time.perf_counter() - start:8.2f} s  distinct kernels, all layers, {len(TAUS)} thresholds")
    print(f"  error         {error(samples):8.0e} from scikit-image, on the sampled pairs")


def results(similarities: dict[str, Tensor]) -> float:
    return sum(values.numel() * values.element_size() for values in similarities.values()) / 2**20


def error(samples: dict[tuple[int, ...], Tensor]) -> float:
    """Greatest difference from scikit-image over the sampled pairs of maps that it can measure."""
    worst = 0.0
    for size, maps in samples.items():
        if min(size) >= SMALLEST:
            maps = maps[:5]
            found = mssim(maps)
            expected = [pair_by_scikit_image(maps[0].double(), other.double()) for other in maps]
            worst = max(worst, float((found[0] - torch.tensor(expected)).abs().max()))
    return worst


def peak_memory() -> float:
    """MiB of resident memory at the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
