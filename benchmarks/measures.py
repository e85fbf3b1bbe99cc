"""Measures against the formulas, loops and library calls one would write instead.

    python benchmarks/measures.py [--rounds N] [--maps N]

- KLD + CC + SIM of 640x512 maps: each formula written out over the whole batch, every measure scaling the maps it
  needs.
- AUC-Judd of one 640x512 map, for 100 fixations and for the 1,500 gaze samples of a study: the MIT saliency benchmark's
  loop over thresholds, and scikit-learn's `roc_auc_score` (the staircase's area, a little below AUC-Judd's: see the
  docstring).
- Shuffled AUC of one 640x512 map over 100 splits, 10 other studies of as many fixations: `roc_auc_score` per split.
- Bootstrap of the macro AUC, 2,000 resamples of 1,000 studies in 3 classes: `roc_auc_score` per resample, timed for 20
  resamples and multiplied by 100. Drawing the patients is part of the time on both sides.

All ways of one kind of work take turns in every round; a time is the median over rounds, a ratio the median of the
rounds' own ratios, with the extremes. The last column is the largest difference from the reference's value.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from _timing import alternate, machine, ratio
from radgaze.measures import classification, saliency
from radgaze.measures.statistics import bootstrap

SIZE = (640, 512)
TIMED_RESAMPLES, RESAMPLES, STUDIES, CLASSES = 20, 2000, 1000, 3
SPLITS = 100

Way = Callable[[], object]


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


def rows(work: str, ways: dict[str, Way], rounds: int, factors: dict[str, int] | None = None, error: str = "") -> None:
    """One row for each way; the last is radgaze's, the ones before are references."""
    seconds = alternate(ways, rounds)
    for name, factor in (factors or {}).items():
        seconds[name] = [value * factor for value in seconds[name]]
    *references, ours = ways
    for name in references:
        faster = "{:,.1f} ({:,.1f} to {:,.1f})".format(*ratio(seconds[name], seconds[ours]))
        times = f"{1000 * statistics.median(seconds[name]):,.1f} | {1000 * statistics.median(seconds[ours]):,.2f}"
        print(f"| {work} | {name} | {times} | {faster} | {error} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--maps", type=int, default=200)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)

    print(f"{rounds} rounds; {machine()}\n")
    print("| work | reference | reference ms | radgaze ms | times faster (least to most) | difference |")
    print("|---|---|---|---|---|---|")

    def pairs_of_maps() -> None:
        p, q = torch.rand(2, arguments.maps, *SIZE, generator=generator)
        together = torch.stack(list(saliency.all_measures(p, q).values()))
        rows(
            f"KLD + CC + SIM, {arguments.maps} maps 640x512",
            {"formulas": lambda: formulas(p, q), "radgaze": lambda: saliency.all_measures(p, q)},
            rounds,
            error=f"{(together - formulas(p, q)).abs().max():.0e}",
        )

    pairs_of_maps()
    prediction = torch.rand(1, *SIZE, generator=generator)
    flat = prediction.flatten().numpy()
    for number in (100, 1500):
        fixations = count_map(looking(number, rng))
        fixated = fixations.flatten().numpy() > 0
        difference = abs(saliency.auc_judd(prediction.double(), fixations).item() - judd_loop(flat, fixated))
        rows(
            f"AUC-Judd, one map 640x512, {number:,} fixations",
            {
                "loop over thresholds": lambda flat=flat, fixated=fixated: judd_loop(flat, fixated),
                "scikit-learn": lambda flat=flat, fixated=fixated: roc_auc_score(fixated, flat),
                "radgaze": lambda fixations=fixations: saliency.auc_judd(prediction, fixations),
            },
            rounds,
            error=f"{difference:.0e} from the loop",
        )

    own, others = looking(100, rng), looking(1000, rng)
    own_map, others_map = count_map(own), count_map(others)
    exact = saliency.shuffled_auc(prediction, own_map, others_map, splits=None).item()
    for name, splits in ((f"{SPLITS} splits", SPLITS), ("exact", None)):
        rows(
            f"shuffled AUC, {name}",
            {
                f"scikit-learn, {SPLITS} splits": lambda: shuffled_loop(flat, own, others),
                "radgaze": lambda splits=splits: saliency.shuffled_auc(prediction, own_map, others_map, splits),
            },
            rounds,
            error=f"{abs(shuffled_loop(flat, own, others) - exact):.0e} (random splits)",
        )

    probabilities = torch.randn(STUDIES, CLASSES, generator=generator, dtype=torch.float64).softmax(1)
    targets = torch.randint(0, CLASSES, (STUDIES,), generator=generator)
    patients = range(STUDIES)
    value = bootstrap(lambda w: classification.auc_macro(probabilities, targets, w), patients, resamples=1).value.item()
    rows(
        f"bootstrap of macro AUC, {RESAMPLES:,} resamples of {STUDIES:,} studies",
        {
            f"scikit-learn, extrapolated from {TIMED_RESAMPLES}": lambda: bootstrap_loop(
                probabilities.numpy(), targets.numpy()
            ),
            "radgaze": lambda: bootstrap(
                lambda weights: classification.auc_macro(probabilities, targets, weights), patients, resamples=RESAMPLES
            ),
        },
        rounds,
        factors={f"scikit-learn, extrapolated from {TIMED_RESAMPLES}": RESAMPLES // TIMED_RESAMPLES},
        error=f"{abs(value - roc_auc_score(targets, probabilities, multi_class='ovr')):.0e}",
    )


if __name__ == "__main__":
    main()
