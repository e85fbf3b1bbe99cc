"""Measures against the formulas, loops and library calls one would write instead.

    python benchmarks/measures.py [--rounds N]

- KLD + CC + SIM of 640x512 maps: each formula written out over the whole batch, every measure scaling the maps it
  needs.
- AUC-Judd of one 640x512 map, for 100 fixations and for the 1,500 gaze samples of a study: the MIT saliency benchmark's
  loop over thresholds, and scikit-learn's `roc_auc_score` (the staircase's area, a little below AUC-Judd's: see the
  docstring).
- Shuffled AUC of one 640x512 map over 100 splits, 10 other studies of as many fixations: `roc_auc_score` per split.
- Bootstrap of the macro AUC, 2,000 resamples of 1,000 studies in 3 classes: `roc_auc_score` per resample, timed for 20
  resamples and multiplied by 100. Drawing the patients is part of the time on both sides.

All ways of one kind of work take turns in every round. The difference is the largest from the reference's value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from _bench import Floor, Row, Way, alternate, bandwidth, bytes_floor, row, run
from radgaze.measures import classification, saliency
from radgaze.measures.statistics import Interval, bootstrap

SIZE = (640, 512)
TIMED_RESAMPLES, RESAMPLES, STUDIES, CLASSES = 20, 2000, 1000, 3
SPLITS = 100
MAPS = 200


def formulas(p: Tensor, q: Tensor) -> Tensor:
    """KLD, CC and SIM as their definitions read, one after the other."""

    def scaled(maps: Tensor) -> Tensor:
        return maps / maps.sum((1, 2), keepdim=True)

    def kld() -> Tensor:
        prediction, target = scaled(p), scaled(q)
        return (target * torch.log(target / (prediction + 1e-16) + 1e-16)).sum((1, 2))

    def cc() -> Tensor:
        a, b = p - p.mean((1, 2), keepdim=True), q - q.mean((1, 2), keepdim=True)
        return (a * b).sum((1, 2)) / ((a * a).sum((1, 2)) * (b * b).sum((1, 2))).sqrt()

    def sim() -> Tensor:
        return torch.minimum(scaled(p), scaled(q)).sum((1, 2))

    return torch.stack((kld(), cc(), sim()))


def judd_loop(prediction: NDArray[np.float32], fixated: NDArray[np.bool_]) -> float:
    """The MIT saliency benchmark's AUC_Judd without jitter."""
    thresholds = np.sort(prediction[fixated])[::-1]
    tp, fp = np.zeros(len(thresholds) + 2), np.zeros(len(thresholds) + 2)
    tp[-1] = fp[-1] = 1
    for index, threshold in enumerate(thresholds, start=1):
        above = np.sum(prediction >= threshold)
        tp[index] = index / len(thresholds)
        fp[index] = (above - index) / (prediction.size - len(thresholds))
    return float(np.trapezoid(tp, fp))


def shuffled_loop(prediction: NDArray[np.float32], fixations: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Mean over splits of scikit-learn's AUC; fixations as pixel numbers."""
    rng = np.random.default_rng(0)
    truth = np.repeat([True, False], len(fixations))
    areas = []
    for _ in range(SPLITS):
        drawn = rng.choice(others, len(fixations), replace=False)
        areas.append(roc_auc_score(truth, np.concatenate((prediction[fixations], prediction[drawn]))))
    return float(np.mean(areas))


def bootstrap_loop(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(TIMED_RESAMPLES):
        drawn = rng.integers(0, len(targets), len(targets))
        areas.append(roc_auc_score(targets[drawn], probabilities[drawn], multi_class="ovr"))
    return np.array(areas)


def looking(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Pixel numbers of fixations around the two lungs."""
    centres = np.array([[320, 150], [320, 360]])[rng.integers(0, 2, number)]
    rows, columns = np.clip(rng.normal(centres, [110, 60]), 0, np.array(SIZE) - 1).astype(np.int64).T
    return rows * SIZE[1] + columns


def count_map(pixels: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.bincount(pixels, minlength=SIZE[0] * SIZE[1])).reshape(1, *SIZE)


def compare(
    work: str,
    ways: dict[str, Way],
    rounds: int,
    *,
    targets: dict[str, float],
    floor: Floor | None = None,
    check: str = "",
    factor: int = 1,
) -> Iterator[Row]:
    """A row for each reference; the last of the ways is radgaze's. References did one ``factor``-th of the work."""
    seconds = alternate(ways, rounds)
    *references, ours = ways
    for name in references:
        whole = [value * factor for value in seconds[name]]
        yield row(work, name, whole, seconds[ours], target=targets.get(name), floor=floor, check=check)


def densities(rounds: int, generator: torch.Generator) -> Iterator[Row]:
    p, q = torch.rand(2, MAPS, *SIZE, generator=generator)
    together = torch.stack(list(saliency.all_measures(p, q).values()))
    yield from compare(
        f"KLD + CC + SIM, {MAPS} maps 640x512",
        {"formulas": lambda: formulas(p, q), "radgaze": lambda: saliency.all_measures(p, q)},
        rounds,
        targets={"formulas": 6},
        floor=bytes_floor(p, q),
        check=f"{(together - formulas(p, q)).abs().max():.0e}",
    )


def auc_judd(rounds: int, prediction: Tensor, rng: np.random.Generator) -> Iterator[Row]:
    flat = prediction.flatten().numpy()
    for number in (100, 1500):
        fixations = count_map(looking(number, rng))
        fixated = fixations.flatten().numpy() > 0
        difference = abs(saliency.auc_judd(prediction.double(), fixations).item() - judd_loop(flat, fixated))
        yield from compare(
            f"AUC-Judd, one map 640x512, {number:,} fixations",
            {
                "loop over thresholds": lambda fixated=fixated: judd_loop(flat, fixated),
                "scikit-learn": lambda fixated=fixated: roc_auc_score(fixated, flat),
                "radgaze": lambda fixations=fixations: saliency.auc_judd(prediction, fixations),
            },
            rounds,
            targets={"scikit-learn": 40},
            floor=bytes_floor(prediction, fixations),
            check=f"{difference:.0e} from the loop",
        )


def shuffled_auc(rounds: int, prediction: Tensor, rng: np.random.Generator) -> Iterator[Row]:
    flat = prediction.flatten().numpy()
    own, others = looking(100, rng), looking(1000, rng)
    own_map, others_map = count_map(own), count_map(others)
    exact = saliency.shuffled_auc(prediction, own_map, others_map, splits=None).item()
    reference = f"scikit-learn, {SPLITS} splits"
    for name, splits in ((f"{SPLITS} splits", SPLITS), ("exact", None)):
        yield from compare(
            f"shuffled AUC, {name}",
            {
                reference: lambda: shuffled_loop(flat, own, others),
                "radgaze": lambda splits=splits: saliency.shuffled_auc(prediction, own_map, others_map, splits),
            },
            rounds,
            targets={reference: 60},
            floor=bytes_floor(own_map, others_map),
            check=f"{abs(shuffled_loop(flat, own, others) - exact):.0e} (random splits)",
        )


def bootstrapped(rounds: int, generator: torch.Generator) -> Iterator[Row]:
    probabilities = torch.randn(STUDIES, CLASSES, generator=generator, dtype=torch.float64).softmax(1)
    targets = torch.randint(0, CLASSES, (STUDIES,), generator=generator)
    patients = range(STUDIES)

    def ours(resamples: int) -> Interval:
        return bootstrap(
            lambda weights: classification.auc_macro(probabilities, targets, weights), patients, resamples=resamples
        )

    by_scikit_learn = roc_auc_score(targets, probabilities, multi_class="ovr")
    reference = f"scikit-learn, extrapolated from {TIMED_RESAMPLES}"
    weights = RESAMPLES * STUDIES * 8  # bytes of the studies' weights, drawn and read once
    yield from compare(
        f"bootstrap of macro AUC, {RESAMPLES:,} resamples of {STUDIES:,} studies",
        {reference: lambda: bootstrap_loop(probabilities.numpy(), targets.numpy()), "radgaze": lambda: ours(RESAMPLES)},
        rounds,
        targets={reference: 100},
        floor=Floor(2 * weights / bandwidth(), "memory"),
        check=f"{abs(ours(1).value.item() - by_scikit_learn):.0e}",
        factor=RESAMPLES // TIMED_RESAMPLES,
    )


def measure(rounds: int) -> list[Row]:
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(1, *SIZE, generator=generator)
    return [
        *densities(rounds, generator),
        *auc_judd(rounds, prediction, rng),
        *shuffled_auc(rounds, prediction, rng),
        *bootstrapped(rounds, generator),
    ]


if __name__ == "__main__":
    run(measure, 7, __doc__)
