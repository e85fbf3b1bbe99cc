"""How sure a measured value is: intervals over patients, and tests of one method against another.

    bootstrap           patients drawn with replacement, all studies of a drawn patient kept together (cluster
                        bootstrap); the interval runs between percentiles of the resampled statistic
    paired bootstrap    the same draws for both methods; p = 2 min(share of differences <= 0, share >= 0)
    DeLong              V = S10 / m + S01 / n, S the covariances over positives and over negatives of each one's
                        placement among the others (DeLong, DeLong, Clarke-Pearson, Biometrics 1988)
    Holm                p_(i) times the number of tests not yet rejected, made monotone (Holm 1979)

A resample is a row of whole-number weights, one per study, and a statistic is a function of such rows: (R, N) weights
in, (R, ...) values out, as every measure of :mod:`radgaze.measures.classification` is and as :func:`mean` makes of
per-study values such as those of :mod:`radgaze.measures.saliency`. So a bootstrap is a few batched computations in
place of thousands of calls:

    bootstrap(lambda weights: auc_macro(probabilities, targets, weights), patients)
    bootstrap(mean(kld(prediction, target)), patients)

The percentile interval is used because it needs nothing but the resamples, keeps inside the measure's range and
follows any monotone transform of it. It is a little short for fewer than some 30 patients.

DeLong's midranks follow Sun and Xu (IEEE Signal Processing Letters 2014): sorting, O(n log n), in place of all pairs.
DeLong treats studies as independent; where patients have several, prefer the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from radgaze.errors import InputError

__all__ = [
    "AucTest",
    "DeLong",
    "Difference",
    "Draws",
    "Interval",
    "Statistic",
    "Summary",
    "bootstrap",
    "delong",
    "delong_contrast",
    "delong_interval",
    "delong_test",
    "difference",
    "draws",
    "holm",
    "mean",
    "paired_bootstrap",
    "resample_weights",
    "summary",
]

Statistic = Callable[[Tensor], Tensor]
"""(R, N) weights of the studies, float64, to (R, ...) values; a value that does not exist is NaN."""

# Weights held at once: a few MiB, which stay in cache.
_CHUNK = 1 << 18
# Resamples measured at once however many studies there are: the studies are sorted anew each time.
_LEAST_TOGETHER = 32


# Values over studies -------------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """A measure over studies."""

    mean: float
    median: float
    std: float
    """Sample standard deviation (n - 1); NaN for fewer than two studies."""
    studies: int
    """How many have a value."""
    undefined: int
    """How many have none (NaN) and are left out."""


def summary(values: Tensor) -> Summary:
    """Mean, median and standard deviation of per-study values, studies without a value (NaN) left out and counted.

    Args:
        values: (N,) one value per study.

    Raises:
        InputError: when ``values`` is not one-dimensional.
    """
    if values.ndim != 1:
        raise InputError(f"values have shape {tuple(values.shape)}, expected (studies,): summarise one at a time")
    present = values[~values.isnan()].double()
    nothing = math.nan
    return Summary(
        mean=present.mean().item() if len(present) else nothing,
        median=float(np.median(present.cpu().numpy())) if len(present) else nothing,
        std=present.std().item() if len(present) > 1 else nothing,
        studies=len(present),
        undefined=len(values) - len(present),
    )


def mean(values: Tensor) -> Statistic:
    """The statistic "mean of per-study values", studies without a value (NaN) left out.

    Args:
        values: (N,) or (N, K) one value, or one of each of K measures, per study.

    Returns:
        A function of (R, N) weights to (R,) or (R, K) means, NaN where no study with a value was drawn.
    """
    present = ~values.isnan()
    filled = torch.where(present, values, 0).double()
    counted = present.double()

    def weighted_mean(weights: Tensor) -> Tensor:
        return (weights @ filled.to(weights.device)) / (weights @ counted.to(weights.device))

    return weighted_mean


# Bootstrap -----------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A value with its percentile bootstrap interval; tensors of the statistic's own shape."""

    value: Tensor
    """On the studies as they are."""
    low: Tensor
    high: Tensor
    level: float
    resamples: int
    undefined: Tensor
    """How many resamples had no value (a class was not drawn) and are left out of the interval."""


class Difference(NamedTuple):
    """First method minus second, with the interval and p-value of the paired bootstrap."""

    value: Tensor
    low: Tensor
    high: Tensor
    p_value: Tensor
    """Two-sided, for no difference; never below 2 / (resamples + 1), what this many resamples can tell."""
    level: float
    resamples: int
    undefined: Tensor


class Draws(NamedTuple):
    """A statistic and its resamples."""

    value: Tensor
    """(...) on the studies as they are."""
    drawn: Tensor
    """(R, ...) on each resample; NaN where it does not exist, and throughout for one patient."""


def bootstrap(
    statistic: Statistic, patients: Sequence[object], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of a statistic over patients.

    Args:
        statistic: (R, N) weights to (R, ...) values.
        patients: N patients, one per study; studies of one patient are drawn together.
        resamples: how many times to draw.
        level: probability that the interval is to hold the truth with.
        seed: the same seed gives the same interval.

    Returns:
        Value and bounds, each of the statistic's shape. One patient allows no interval: the bounds are NaN, as they are
        where no resample has a value.

    Raises:
        InputError: without studies, or for resamples < 1 or a level outside (0, 1).
    """
    value, drawn = _resampled(statistic, patients, resamples, level, seed)
    low, high, undefined = _bounds(drawn, level)
    return Interval(value, low, high, level, resamples, undefined)


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    patients: Sequence[object],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Difference of two methods measured on the same studies, both seeing the same draws of patients.

    The p-value is twice the smaller share of resampled differences on either side of zero (those equal to zero on
    both), with one added to each count so that it is never zero, and at most 1.

    Args:
        first: statistic of the first method, (R, N) weights to (R, ...) values.
        second: statistic of the second method, over the same studies in the same order.
        patients: N patients, one per study.
        resamples: how many times to draw.
        level: probability that the interval is to hold the true difference with.
        seed: the same seed gives the same result.

    Returns:
        ``first - second``, bounds and p-value, each of the statistic's shape; bounds and p-value are NaN for one
        patient, and where no resample has a value.

    Raises:
        InputError: without studies, or for resamples < 1 or a level outside (0, 1).
    """
    value, drawn = _resampled(lambda weights: first(weights) - second(weights), patients, resamples, level, seed)
    return _difference(value, drawn, level)


def draws(statistic: Statistic, patients: Sequence[object], *, resamples: int = 2000, seed: int = 0) -> Draws:
    """A statistic on the studies as they are and on each bootstrap resample of the patients.

    Draws depend on the patients and the seed alone. So those of several methods on the same studies are paired:
    ``difference(draws(a, ...), draws(b, ...))`` is :func:`paired_bootstrap`, and each method is measured once however
    many it is compared with.

    Args:
        statistic: (R, N) weights to (R, ...) values.
        patients: N patients, one per study.
        resamples: how many times to draw.
        seed: of the draws.

    Raises:
        InputError: without studies, or for resamples < 1.
    """
    return Draws(*_resampled(statistic, patients, resamples, 0.5, seed))


def difference(first: Draws, second: Draws, *, level: float = 0.95) -> Difference:
    """:func:`paired_bootstrap` of statistics that were drawn before, with the same patients, resamples and seed.

    Raises:
        InputError: for draws of different shapes, or a level outside (0, 1).
    """
    _check_level(level)
    if first.drawn.shape != second.drawn.shape:
        raise InputError(
            f"the draws have shapes {tuple(first.drawn.shape)} and {tuple(second.drawn.shape)}: "
            "draw the same measures with the same number of resamples"
        )
    return _difference(first.value - second.value, first.drawn - second.drawn, level)


def _difference(value: Tensor, drawn: Tensor, level: float) -> Difference:
    low, high, undefined = _bounds(drawn, level)
    defined = len(drawn) - undefined
    one_side = torch.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    p_value = (2 * (one_side + 1).double() / (defined + 1)).clamp_max(1)
    return Difference(value, low, high, torch.where(low.isnan(), torch.nan, p_value), level, len(drawn), undefined)


def resample_weights(patients: Sequence[object], resamples: int, seed: int = 0) -> Tensor:
    """How often each study occurs in each bootstrap resample of the patients.

    Args:
        patients: N patients, one per study.
        resamples: R, how many times to draw.
        seed: of the draws.

    Returns:
        (R, N) float64 whole numbers, equal for the studies of one patient.
    """
    return _draw(_patient_codes(patients), resamples, np.random.default_rng(seed))


def _resampled(
    statistic: Statistic, patients: Sequence[object], resamples: int, level: float, seed: int
) -> tuple[Tensor, Tensor]:
    """The statistic of the studies as they are (...), and of each resample (R, ...), NaN throughout for one patient."""
    if len(patients) == 0:
        raise InputError("there is no study to resample: give at least one")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}: give at least 1, and some 2,000 for a 95 % interval")
    _check_level(level)
    codes = _patient_codes(patients)
    value = statistic(torch.ones(1, len(codes), dtype=torch.float64))[0]
    if codes.max() == 0:
        return value, value.new_full((resamples, *value.shape), torch.nan)
    random = np.random.default_rng(seed)
    step = max(_LEAST_TOGETHER, _CHUNK // len(codes))
    parts = [statistic(_draw(codes, min(step, resamples - start), random)) for start in range(0, resamples, step)]
    return value, torch.cat(parts)


def _patient_codes(patients: Sequence[object]) -> np.ndarray:
    return np.unique([str(patient) for patient in patients], return_inverse=True)[1]


def _draw(codes: np.ndarray, resamples: int, random: np.random.Generator) -> Tensor:
    """(R, N), laid out study by study, which is how the measures read it."""
    patients = int(codes.max()) + 1
    drawn = random.integers(0, patients, (resamples, patients))
    cell = drawn * resamples + np.arange(resamples)[:, None]
    copies = np.bincount(cell.ravel(), minlength=patients * resamples).reshape(patients, resamples)
    return torch.from_numpy(copies[codes].astype(np.float64)).T


def _bounds(drawn: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=drawn.dtype, device=drawn.device)
    low, high = torch.nanquantile(drawn, tails, dim=0)
    return low, high, drawn.isnan().sum(0)


# DeLong --------------------------------------------------------------------------------------------------------------


class DeLong(NamedTuple):
    """AUCs of M scores of the same studies, and how they vary together."""

    auc: Tensor
    """(M,) float64."""
    covariance: Tensor
    """(M, M) float64."""


def delong(scores: Tensor, positive: Tensor) -> DeLong:
    """AUCs and their covariance after DeLong, by midranks.

    Args:
        scores: (M, N) scores of M methods for the same N studies; only their order matters, ties count one half.
        positive: (N,) bool.

    Returns:
        AUCs and covariance; AUCs are NaN without a positive or without a negative, covariances with fewer than two of
        either.

    Raises:
        InputError: for NaN scores or shapes that do not fit.
    """
    if scores.ndim != 2 or positive.shape != scores.shape[1:] or positive.dtype != torch.bool:
        raise InputError(
            f"scores have shape {tuple(scores.shape)} and positive has shape {tuple(positive.shape)} of "
            f"{positive.dtype}: give (methods, studies) scores and one bool per study"
        )
    if scores.isnan().any():
        raise InputError("scores hold NaN: leave out those studies for all methods, since the test pairs them")
    scores = scores.double()
    m, n = int(positive.sum()), int((~positive).sum())
    # Rank among all less rank among one's own kind: how many of the other kind lie below, ties counting one half.
    ranks = _midranks(scores)
    positives_above = (ranks[:, positive] - _midranks(scores[:, positive])) / n
    negatives_above = (ranks[:, ~positive] - _midranks(scores[:, ~positive])) / m
    # Without a class, means and covariances of nothing are 0/0: NaN, as documented.
    return DeLong(positives_above.mean(1), _covariance(positives_above) / m + _covariance(negatives_above) / n)


class AucTest(NamedTuple):
    """First AUC minus second, and whether that could be chance."""

    value: float
    low: float
    high: float
    z: float
    p_value: float
    level: float


def delong_interval(scores: Tensor, positive: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """Normal interval of one AUC after DeLong, cut to [0, 1].

    Args:
        scores: (N,) scores.
        positive: (N,) bool.
        level: probability that the interval is to hold the true AUC with.

    Returns:
        Bounds, NaN with fewer than two positives or negatives.

    Raises:
        InputError: for NaN scores, shapes that do not fit, or a level outside (0, 1).
    """
    _check_level(level)
    result = delong(scores[None], positive)
    auc, half = result.auc.item(), _normal_quantile(level) * result.covariance.sqrt().item()
    return max(auc - half, 0.0), min(auc + half, 1.0)


def delong_test(first: Tensor, second: Tensor, positive: Tensor, *, level: float = 0.95) -> AucTest:
    """DeLong's test of two AUCs on the same studies.

    Args:
        first: (N,) scores of the first method.
        second: (N,) scores of the second method, for the same studies in the same order.
        positive: (N,) bool.
        level: of the interval of the difference.

    Returns:
        Difference, interval, z and two-sided p-value. Two methods that rank all pairs alike differ by exactly zero:
        z = 0 and p = 1. NaN with fewer than two positives or negatives.

    Raises:
        InputError: for NaN scores, shapes that do not fit, or a level outside (0, 1).
    """
    if first.shape != second.shape:
        raise InputError(
            f"the scores have shapes {tuple(first.shape)} and {tuple(second.shape)}: score the same studies with both"
        )
    return delong_contrast(torch.stack((first, second)), positive, torch.tensor([1.0, -1.0]), level=level)


def delong_contrast(scores: Tensor, positive: Tensor, weights: Tensor, *, level: float = 0.95) -> AucTest:
    """DeLong's test of a weighted sum of AUCs on the same studies, w' A with variance w' V w.

    For the mean over S seeds of one method against that of another, weigh the 2S scores by 1 / S and -1 / S. An AUC is
    a mean of placements and a sum is linear in them, so value and variance are DeLong's own, with nothing approximated
    beyond his normal distribution. The variance is that of drawing other studies; the trained networks are held as
    they are.

    Args:
        scores: (M, N) scores of M networks for the same N studies.
        positive: (N,) bool.
        weights: (M,) weight of each AUC; for a difference they sum to 0.
        level: of the interval.

    Returns:
        The weighted sum, its interval, z and two-sided p-value for a sum of 0. A sum without variance and of size 0,
        as of networks that rank all pairs alike, has z = 0 and p = 1. NaN with fewer than two positives or negatives.

    Raises:
        InputError: for NaN scores, shapes that do not fit, or a level outside (0, 1).
    """
    _check_level(level)
    if weights.shape != scores.shape[:1]:
        raise InputError(
            f"weights have shape {tuple(weights.shape)} for scores of shape {tuple(scores.shape)}: give one per row"
        )
    auc, covariance = delong(scores, positive)
    weights = weights.to(auc)
    value = (weights @ auc).item()
    # Rounding must not make a certainty of the difference between two equal methods.
    variance = (weights @ covariance @ weights).item()
    error = 0.0 if variance < 1e-15 else math.sqrt(variance)
    z = value / error if error else 0.0 if abs(value) < 1e-12 else math.copysign(math.inf, value)
    half = _normal_quantile(level) * error
    return AucTest(value, value - half, value + half, z, math.erfc(abs(z) / math.sqrt(2)), level)


def _midranks(scores: Tensor) -> Tensor:
    """(M, K) -> (M, K) ranks from 1 within each row, tied scores sharing their mean rank."""
    scores = scores.contiguous()
    ordered = scores.sort(dim=1).values
    below, up_to = torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)
    return (below + up_to + 1).double() / 2


def _covariance(values: Tensor) -> Tensor:
    """(M, K) -> (M, M) over K samples, with K - 1 in the denominator."""
    centred = values - values.mean(1, keepdim=True)
    return centred @ centred.T / (values.shape[1] - 1)


def _normal_quantile(level: float) -> float:
    """How many standard errors either side hold ``level`` of a normal distribution."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}: give a probability between 0 and 1, such as 0.95")


# Many tests ----------------------------------------------------------------------------------------------------------


def holm(p_values: Tensor) -> Tensor:
    """Holm's correction: p-values that may be held against one level although several tests were made.

    Args:
        p_values: (K,) in [0, 1]; NaN is a test that could not be made: it stays NaN and does not count.

    Returns:
        (K,) adjusted p-values in [0, 1], in the order given.

    Raises:
        InputError: for values outside [0, 1] or another shape.
    """
    if p_values.ndim != 1:
        raise InputError(f"p_values have shape {tuple(p_values.shape)}, expected (tests,): flatten them first")
    outside = p_values[(p_values < 0) | (p_values > 1)]
    if len(outside):
        raise InputError(f"a p-value is {outside[0].item():g}: expected 0 to 1, or NaN for a test that was not made")
    made = (~p_values.isnan()).nonzero()[:, 0]
    ordered, order = p_values[made].sort()
    steps = torch.arange(len(made), 0, -1, device=p_values.device)
    adjusted = p_values.clone()
    adjusted[made[order]] = (ordered * steps).cummax(0).values.clamp_max(1) if len(made) else ordered
    return adjusted
