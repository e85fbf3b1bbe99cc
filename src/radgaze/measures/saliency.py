"""How well a predicted attention map agrees with where a reader looked.

P is the predicted map, Q the reader's gaze map, both scaled to sum to 1; x_i are the reader's fixations; z(P) is P with
its mean removed, divided by its (population) standard deviation.

    KLD   Σ Q ln(Q / P)                            nats, 0 is perfect
    CC    cov(P, Q) / (std P · std Q)              Pearson, 1 is perfect
    SIM   Σ min(P, Q)                              1 is perfect; the papers' histogram similarity, HS
    NSS   mean_i z(P)(x_i)                         standard deviations above the mean map value, 0 is chance
    AUC-Judd      ROC area: fixated pixels against all others, thresholds at the fixated values
    shuffled AUC  ROC area: fixations against fixations of other studies, so that centre bias earns 0.5
    IG    mean_i log2 P(x_i) - log2 B(x_i)         bits per fixation gained over a baseline map B

Sources: Bylinskii, Judd, Oliva, Torralba, Durand, *What do different evaluation metrics tell us about saliency
models?*, arXiv 1604.03605, with the MIT saliency benchmark's code; Kümmerer, Wallis, Bethge, PNAS 2015, for
information gain. Where this file differs from the benchmark's code, and why:

- No jitter is added before ranking: results repeat. Tied values share one threshold instead, as a ROC curve asks. (The
  benchmark's loop counts a tied fixation as its twin's false positive, and adds jitter against that.)
- Maps are not min-max scaled first: that would make the lowest pixel impossible, which changes the information gain.
- ``fixations`` are counts. NSS, shuffled AUC and IG are means over fixations, so a pixel looked at twice counts twice;
  the benchmark merges repeats (on 0/1 maps both agree). AUC-Judd asks, as the benchmark does, only whether a pixel was
  fixated.
- The benchmark sweeps the thresholds of shuffled AUC in steps of 0.1; here every value is a threshold: exact ranks.

Every function takes maps of shape (B, h, w) and returns one value per study, shape (B,), in the prediction's floating
type (float32 for integer maps); none is differentiable (the losses are in :mod:`radgaze.objectives`). A measure without
a value for a study, for want of a fixation or because a constant map correlates with nothing, is NaN for that study
alone; :func:`radgaze.measures.statistics.summary` leaves such studies out and counts them. NaN or infinite pixels,
negative densities and shapes that differ raise :class:`radgaze.errors.InputError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from radgaze.errors import InputError

__all__ = [
    "PROBABILITY_FLOOR",
    "all_measures",
    "auc_judd",
    "cc",
    "fixations_of_others",
    "information_gain",
    "kld",
    "nss",
    "shuffled_auc",
    "sim",
]

PROBABILITY_FLOOR = float(np.finfo(np.float64).eps)
"""Least probability inside a logarithm, 2.2e-16: a zero under a reader's gaze costs 36 nats, not infinity."""

# Pixels handled at once: on a CPU a few maps should stay in cache between passes; a GPU wants long kernels instead.
_CPU_CHUNK, _GPU_CHUNK = 1 << 19, 1 << 25
# Pixels from which a CPU counts below a map's thresholds, in cells of so many pixels on average; smaller maps it sorts.
_COUNTED_MAP, _PIXELS_PER_CELL = 1 << 14, 8


# Maps against maps ---------------------------------------------------------------------------------------------------


def kld(prediction: Tensor, target: Tensor, *, logits: bool = False) -> Tensor:
    """Kullback-Leibler divergence KLD(Q‖P) of the prediction P from the gaze map Q, in nats.

    Args:
        prediction: (B, h, w) non-negative map of any scale; with ``logits``, a network's scores or log-probabilities.
        target: (B, h, w) non-negative gaze map of any scale.
        logits: take the softmax of ``prediction`` over its pixels, in logarithms, so that no probability underflows.

    Returns:
        (B,) values in [0, ∞); NaN where either map is zero everywhere. Probabilities below ``PROBABILITY_FLOOR`` count
        as that.

    Raises:
        InputError: for NaN, infinite or negative pixels, or shapes that differ.
    """
    _check_shapes(prediction=prediction, target=target)

    def chunk(scratch: _Scratch, p: Tensor, q: Tensor) -> Tensor:
        return _kld(_predicted(p, scratch, logits), _density("target", q), scratch)

    return _by_chunks(chunk, prediction, target)


def cc(prediction: Tensor, target: Tensor) -> Tensor:
    """Pearson correlation CC of two maps over pixels; neither scale nor offset of a map matters.

    Args:
        prediction: (B, h, w) map, any real values.
        target: (B, h, w) gaze map, any real values.

    Returns:
        (B,) values in [-1, 1]; NaN where a map is constant (a single pixel is).

    Raises:
        InputError: for NaN or infinite pixels, or shapes that differ.
    """
    _check_shapes(prediction=prediction, target=target)

    def chunk(scratch: _Scratch, p: Tensor, q: Tensor) -> Tensor:
        return _cc(p, _finite_total("prediction", p), q, _finite_total("target", q), scratch)

    return _by_chunks(chunk, prediction, target)


def sim(prediction: Tensor, target: Tensor) -> Tensor:
    """Similarity SIM = Σ min(P, Q), the overlap of two maps as histograms (the papers' histogram similarity, HS).

    Args:
        prediction: (B, h, w) non-negative map of any scale.
        target: (B, h, w) non-negative gaze map of any scale.

    Returns:
        (B,) values in [0, 1]; NaN where either map is zero everywhere.

    Raises:
        InputError: for NaN, infinite or negative pixels, or shapes that differ.
    """
    _check_shapes(prediction=prediction, target=target)

    def chunk(scratch: _Scratch, p: Tensor, q: Tensor) -> Tensor:
        return _sim(_density("prediction", p), _density("target", q), scratch)

    return _by_chunks(chunk, prediction, target)


# Maps against fixations ----------------------------------------------------------------------------------------------


def nss(prediction: Tensor, fixations: Tensor) -> Tensor:
    """Normalised scanpath saliency NSS: the z-scored map, averaged over fixations (not over a blurred map).

    Args:
        prediction: (B, h, w) map, any real values; scale and offset do not matter.
        fixations: (B, h, w) number of fixations on each pixel.

    Returns:
        (B,) standard deviations above the map's mean; 0 is chance; NaN without a fixation or for a constant map.

    Raises:
        InputError: for NaN or infinite pixels, counts that are not whole and non-negative, or shapes that differ.
    """
    _check_shapes(prediction=prediction, fixations=fixations)

    def chunk(scratch: _Scratch, p: Tensor, counts: Tensor) -> Tensor:
        return _nss(p, _finite_total("prediction", p), _points("fixations", counts), scratch)

    return _by_chunks(chunk, prediction, fixations)


def auc_judd(prediction: Tensor, fixations: Tensor) -> Tensor:
    """AUC-Judd: how well the map's value separates fixated pixels from all others.

    The curve has one point for each distinct value t among the fixated pixels, (share of the other pixels, share of the
    fixated pixels) with a value of at least t, and runs through them from (0, 0) to (1, 1) in straight lines. Repeated
    fixations of a pixel count once. Where all fixated values differ this is the MIT benchmark's ``AUC_Judd`` without
    jitter, exactly. Fixated pixels that tie share a point, so a constant map scores 0.5.

    Note:
        With thresholds at the n fixated values alone, the curve cuts the corners of the ROC staircase: without ties it
        exceeds the rank-based area (scikit-learn's ``roc_auc_score``) by f / 2n, where f is the share of the other
        pixels above the lowest fixated value. That is the measure's definition, kept so that numbers compare with
        published ones.

    Args:
        prediction: (B, h, w) map, any real values; any increasing transform of it scores the same.
        fixations: (B, h, w) number of fixations on each pixel.

    Returns:
        (B,) values in [0, 1]; NaN without a fixation, or when every pixel is fixated.

    Raises:
        InputError: for NaN or infinite pixels, counts that are not whole and non-negative, or shapes that differ.
    """
    _check_shapes(prediction=prediction, fixations=fixations)

    def chunk(scratch: _Scratch, p: Tensor, counts: Tensor) -> Tensor:
        _finite_total("prediction", p)
        return _auc_judd(p, _points("fixations", counts), scratch)

    return _by_chunks(chunk, prediction, fixations)


def shuffled_auc(
    prediction: Tensor, fixations: Tensor, other_fixations: Tensor, splits: int | None = 100, seed: int = 0
) -> Tensor:
    """Shuffled AUC: the map's value at this study's fixations against its value at other studies' fixations.

    Each split draws as many fixations of other studies as this one has (all, if there are fewer), without replacement;
    the result is the mean over splits of the exact ROC area, ties counting one half. More splits converge to
    ``splits=None``, which uses every other fixation once and no random number: prefer it in new work.

    Args:
        prediction: (B, h, w) map, any real values; any increasing transform of it scores the same.
        fixations: (B, h, w) number of fixations on each pixel.
        other_fixations: (B, h, w), or (h, w) for all studies, number of other studies' fixations on each pixel;
            :func:`fixations_of_others` makes it.
        splits: how many draws to average over, or None for the exact limit.
        seed: of the draws; the same call gives the same numbers on every device.

    Returns:
        (B,) values in [0, 1], 0.5 for a map that knows only where readers look in general; NaN without a fixation here
        or elsewhere.

    Raises:
        InputError: for NaN or infinite pixels, counts that are not whole and non-negative, shapes that differ, or
            splits < 1.
    """
    other_fixations = _expand(other_fixations, prediction)
    _check_shapes(prediction=prediction, fixations=fixations, other_fixations=other_fixations)
    draw = _Draws(splits, seed)

    def chunk(_: _Scratch, p: Tensor, counts: Tensor, others: Tensor) -> Tensor:
        _finite_total("prediction", p)
        return _shuffled_auc(p, _points("fixations", counts), _points("other_fixations", others), draw)

    return _by_chunks(chunk, prediction, fixations, other_fixations)


def information_gain(prediction: Tensor, fixations: Tensor, baseline: Tensor, *, logits: bool = False) -> Tensor:
    """Information gain IG: how many bits per fixation the prediction explains beyond a baseline map.

    Args:
        prediction: (B, h, w) non-negative map of any scale; with ``logits``, a network's scores or log-probabilities.
        fixations: (B, h, w) number of fixations on each pixel.
        baseline: (B, h, w), or (h, w) for all studies, non-negative map of any scale: centre bias, or the mean map of
            the training studies.
        logits: take the softmax of ``prediction`` over its pixels, in logarithms throughout.

    Returns:
        (B,) bits per fixation, 0 for the baseline itself; NaN without a fixation or where a map is zero everywhere.
        Probabilities below ``PROBABILITY_FLOOR`` count as that.

    Raises:
        InputError: for NaN, infinite or negative pixels, counts that are not whole and non-negative, shapes that
        differ.
    """
    baseline = _expand(baseline, prediction)
    _check_shapes(prediction=prediction, fixations=fixations, baseline=baseline)

    def chunk(scratch: _Scratch, p: Tensor, counts: Tensor, b: Tensor) -> Tensor:
        density = _predicted(p, scratch, logits)
        return _information_gain(density, _points("fixations", counts), _density("baseline", b))

    return _by_chunks(chunk, prediction, fixations, baseline)


# All at once ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def all_measures(
    prediction: Tensor,
    target: Tensor | None = None,
    fixations: Tensor | None = None,
    other_fixations: Tensor | None = None,
    baseline: Tensor | None = None,
    *,
    logits: bool = False,
    splits: int | None = 100,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Every measure the given inputs allow, with the passes over the maps shared.

    ``target`` gives kld, cc and sim; ``fixations`` gives nss and auc_judd, with ``other_fixations`` also shuffled_auc,
    with ``baseline`` also information_gain. Values, shapes and errors are those of the single functions. With
    ``logits`` the prediction is its softmax, except that ranks are taken on the logits, where no two pixels underflow
    to a tie.

    Returns:
        Measure name to (B,) values.

    Raises:
        InputError: as the single functions, and when ``other_fixations`` or ``baseline`` comes without ``fixations``.
    """
    if fixations is None and (other_fixations is not None or baseline is not None):
        raise InputError(
            "other_fixations and baseline are only used at fixations, and fixations is None: pass fixations too"
        )
    optional = {
        "target": target,
        "fixations": fixations,
        "other_fixations": None if other_fixations is None else _expand(other_fixations, prediction),
        "baseline": None if baseline is None else _expand(baseline, prediction),
    }
    given = {name: maps for name, maps in optional.items() if maps is not None}
    _check_shapes(prediction=prediction, **given)
    draw = _Draws(splits, seed)
    scratch = _Scratch()
    results: dict[str, list[Tensor]] = {}

    for p, *rest in _chunks(prediction, *given.values()):
        chunk = dict(zip(given, rest, strict=True))
        density = _predicted(p, scratch, logits)
        values: dict[str, Tensor] = {}
        if "target" in chunk:
            q = _density("target", chunk["target"])
            values["kld"] = _kld(density, q, scratch)
            values["cc"] = _cc(density.values, density.total, q.values, q.total, scratch)
            values["sim"] = _sim(density, q, scratch)
        if "fixations" in chunk:
            points = _points("fixations", chunk["fixations"])
            values["nss"] = _nss(density.values, density.total, points, scratch)
            values["auc_judd"] = _auc_judd(p, points, scratch)
            if "other_fixations" in chunk:
                others = _points("other_fixations", chunk["other_fixations"])
                values["shuffled_auc"] = _shuffled_auc(p, points, others, draw)
            if "baseline" in chunk:
                baselines = _density("baseline", chunk["baseline"])
                values["information_gain"] = _information_gain(density, points, baselines)
        for name, value in values.items():
            results.setdefault(name, []).append(value)
    return {name: torch.cat(parts) for name, parts in results.items()}


def fixations_of_others(fixations: Tensor, groups: Sequence[object] | None = None) -> Tensor:
    """The negatives of :func:`shuffled_auc`: for each study, the fixations of all the others.

    Args:
        fixations: (B, h, w) number of fixations on each pixel of each study.
        groups: B labels (patients, images): studies of one group are not each other's negatives. Default: none share.

    Returns:
        (B, h, w) counts, int64.

    Raises:
        InputError: when ``groups`` has another length than ``fixations``.
    """
    counts = fixations.long()
    if groups is None:
        return counts.sum(0) - counts
    if len(groups) != len(fixations):
        raise InputError(f"groups has {len(groups)} labels for {len(fixations)} studies: give one label per study")
    codes = torch.from_numpy(np.unique([str(group) for group in groups], return_inverse=True)[1]).to(counts.device)
    of_group = counts.new_zeros((int(codes.max()) + 1, *counts.shape[1:])).index_add_(0, codes, counts)
    return counts.sum(0) - of_group[codes]


# One chunk of flattened maps, (b, N) -> (b,)
# ---------------------------------------------------------------------------------


class _Density(NamedTuple):
    """Non-negative maps, not yet scaled to sum to 1: that costs a pass each, and a factor at the end does the same."""

    values: Tensor  # (b, N)
    total: Tensor  # (b, 1)
    log_values: Tensor | None = None  # (b, N), known when the maps came as logits


class _Points(NamedTuple):
    """The fixated pixels of a chunk, study by study."""

    study: Tensor  # (K,) row in the chunk, ascending
    pixel: Tensor  # (K,)
    counts: Tensor  # (K,) float64 fixations on that pixel
    studies: int

    def mean(self, values: Tensor) -> Tensor:
        """(K,) values -> (b,) mean over the fixations of each study, NaN without any."""
        sums = torch.stack((values.double() * self.counts, self.counts))
        weighted, count = sums.new_zeros(2, self.studies).index_add_(1, self.study, sums)
        return weighted / count

    def rows(self, values: Tensor, fill: float) -> Tensor:
        """(K,) values -> (b, k + 1), one study per row, filled up; k is the most fixated pixels that a study has."""
        pixels = torch.bincount(self.study, minlength=self.studies)
        place = torch.arange(len(self.study), device=values.device) - (pixels.cumsum(0) - pixels)[self.study]
        rows = values.new_full((self.studies, int(place.max()) + 2 if len(place) else 1), fill)
        rows[self.study, place] = values
        return rows


class _Draws:
    """Which of the other studies' fixations serve as negatives, and how often; None splits means all of them."""

    def __init__(self, splits: int | None, seed: int) -> None:
        if splits is not None and splits < 1:
            raise InputError(f"splits is {splits}: give at least 1, or None for the exact limit of many splits")
        self.splits = splits
        self.random = np.random.default_rng(seed)

    def weights(self, points: _Points, others: _Points) -> Tensor:
        """(K,) times each of the others' fixated pixels is drawn over all splits."""
        if self.splits is None:
            return others.counts
        # All splits of a study have one size, so the mean of their areas is one weighted mean over the drawn fixations.
        own = torch.bincount(points.study, points.counts, minlength=points.studies).long().tolist()
        pools = others.counts.long().cpu().numpy()
        ends = torch.bincount(others.study, minlength=others.studies).cumsum(0).tolist()
        drawn = np.zeros(len(pools))
        for (start, end), size in zip(pairwise([0, *ends]), own, strict=True):
            pool = pools[start:end]
            drawn[start:end] = self.random.multivariate_hypergeometric(
                pool, min(size, int(pool.sum())), size=self.splits, method="count"
            ).sum(0)
        return torch.from_numpy(drawn).to(others.counts.device)


def _kld(p: _Density, q: _Density, scratch: _Scratch) -> Tensor:
    # The same floor on both keeps KLD(Q‖Q) at 0.
    floored = torch.clamp(q.values, min=PROBABILITY_FLOOR * q.total, out=scratch(0, q.values))
    scale = p.total / q.total
    if p.log_values is None:
        p_floored = torch.clamp(p.values, min=PROBABILITY_FLOOR * p.total, out=scratch(1, p.values))
        log_ratio = floored.mul_(scale).div_(p_floored).log_()
    else:
        log_ratio = floored.log_().sub_(p.log_values).add_(scale.log())
    divergence = log_ratio.mul_(q.values).sum(1) / q.total.squeeze(1)
    return divergence.clamp_min(0)  # rounding may leave a hair below zero


def _sim(p: _Density, q: _Density, scratch: _Scratch) -> Tensor:
    scaled = torch.mul(p.values, q.total / p.total, out=scratch(0, p.values))
    overlap = torch.minimum(scaled, q.values, out=scaled).sum(1) / q.total.squeeze(1)
    return overlap.clamp_max(1)  # rounding may lift equal maps a hair above one


def _cc(p: Tensor, p_total: Tensor, q: Tensor, q_total: Tensor, scratch: _Scratch) -> Tensor:
    p, q = _centred(p, p_total, scratch(0, p)), _centred(q, q_total, scratch(1, q))
    covariance = torch.mul(p, q, out=scratch(2, p)).sum(1)
    return (covariance / (p.square_().sum(1) * q.square_().sum(1)).sqrt()).clamp(-1, 1)


def _centred(maps: Tensor, total: Tensor, out: Tensor) -> Tensor:
    """Mean removed, then divided by the range so that squares neither overflow nor vanish; NaN for a constant map."""
    span = maps.amax(1, keepdim=True) - maps.amin(1, keepdim=True)
    return torch.sub(maps, total / maps.shape[1], out=out).mul_(torch.where(span > 0, 1 / span, torch.nan))


def _nss(p: Tensor, total: Tensor, fixations: _Points, scratch: _Scratch) -> Tensor:
    p = _centred(p, total, scratch(0, p))
    at_fixations = fixations.mean(p[fixations.study, fixations.pixel])
    return (at_fixations / p.square_().mean(1).sqrt()).to(p.dtype)


def _auc_judd(p: Tensor, fixations: _Points, scratch: _Scratch) -> Tensor:
    pixels = p.shape[1]
    # Each row ends in at least one +inf, a threshold that nothing reaches: the curve's start (0, 0).
    thresholds = fixations.rows(p[fixations.study, fixations.pixel], fill=torch.inf).sort(dim=1).values
    fixated = torch.bincount(fixations.study, minlength=fixations.studies)[:, None].double()
    # How many of all pixels, and of the fixated ones, lie below each threshold.
    below = _below(p, thresholds, scratch)
    fixated_below = torch.searchsorted(thresholds, thresholds)
    hits = 1 - fixated_below / fixated
    false_alarms = 1 - (below - fixated_below) / (pixels - fixated)
    false_alarms = torch.where(fixated < pixels, false_alarms, torch.nan)
    whole = torch.ones_like(fixated)  # the curve's end (1, 1)
    area = torch.trapezoid(torch.cat((whole, hits), 1), torch.cat((whole, false_alarms), 1), dim=1)
    return (-area).to(p.dtype)  # thresholds ascend, so the curve was walked backwards


def _shuffled_auc(p: Tensor, fixations: _Points, others: _Points, draw: _Draws) -> Tensor:
    values, order = fixations.rows(p[fixations.study, fixations.pixel], fill=torch.inf).sort(dim=1)
    weights = fixations.rows(fixations.counts, fill=0).gather(1, order)
    # Fixations up to each rank; a negative's credit is the share of fixations above it, ties counting one half.
    up_to = torch.nn.functional.pad(weights.cumsum(1), (1, 0))
    negatives = others.rows(p[others.study, others.pixel], fill=0)
    lower = up_to.gather(1, torch.searchsorted(values, negatives))
    upper = up_to.gather(1, torch.searchsorted(values, negatives, right=True))
    credit = 1 - 0.5 * (lower + upper) / up_to[:, -1:]
    drawn = others.rows(draw.weights(fixations, others), fill=0)
    return ((credit * drawn).sum(1) / drawn.sum(1)).to(p.dtype)


def _information_gain(p: _Density, fixations: _Points, baseline: _Density) -> Tensor:
    gain = _log_probability(p, fixations) - _log_probability(baseline, fixations)
    return (fixations.mean(gain) / np.log(2)).to(p.values.dtype)


def _log_probability(density: _Density, points: _Points) -> Tensor:
    """(K,) natural logarithm of the probability at each fixated pixel."""
    total = density.total[points.study, 0]
    if density.log_values is not None:
        return density.log_values[points.study, points.pixel] - total.log()
    return (density.values[points.study, points.pixel] / total).clamp_min(PROBABILITY_FLOOR).log()


def _below(p: Tensor, thresholds: Tensor, scratch: _Scratch) -> Tensor:
    """(b, k) pixels of each row below each of its thresholds; those ascend, with +inf for none."""
    if p.device.type != "cpu":
        return torch.searchsorted(p.sort(dim=1).values, thresholds)
    if p.shape[1] < _COUNTED_MAP:  # NumPy's vectorised sort is some 20 times faster than torch's on a CPU
        ordered = scratch(0, p).copy_(p)
        ordered.numpy().sort(axis=1)
        return torch.searchsorted(ordered, thresholds)
    below = torch.full(thresholds.shape, p.shape[1])
    for row, number in enumerate(thresholds.isfinite().sum(1).tolist()):
        if number:
            below[row, :number] = _count_below(p[row], thresholds[row, :number], scratch)
    return below


def _count_below(pixels: Tensor, thresholds: Tensor, scratch: _Scratch) -> Tensor:
    """(k,) pixels below each of the ascending, finite thresholds: exact, and only a few of the pixels are sorted.

    Pixels and thresholds fall into cells by one function, whose every step is non-decreasing however it rounds: a pixel
    in a lower cell than a threshold is below it, and only those that share a cell with one remain to be compared.
    """
    last = len(pixels) // _PIXELS_PER_CELL
    low, span = thresholds[0], thresholds[-1] - thresholds[0]
    limits = torch.finfo(pixels.dtype)
    scale = ((last - 1) ** 2 / span).clamp(limits.tiny, limits.max)  # never 0 or inf, whose product would be NaN

    # In NumPy, whose root is the rounded one (torch's is not) and whose passes are too short for threads to meet.
    def cells(values: Tensor, out: Tensor) -> Tensor:
        """1 from the lowest threshold, 0 below it, ``last`` above the highest; finer towards the lowest."""
        squares = out.numpy()
        with np.errstate(over="ignore"):  # an infinite distance is clipped
            np.subtract(values.numpy(), low.numpy(), out=squares)
            np.multiply(squares, scale.numpy(), out=squares)
        np.add(squares, 1, out=squares)
        np.clip(squares, 0, last**2, out=squares)
        return torch.from_numpy(np.sqrt(squares, out=squares).astype(np.int32))

    cell, of_threshold = cells(pixels, scratch(0, pixels)), cells(thresholds, torch.empty_like(thresholds)).long()
    shared = torch.zeros(last + 1, dtype=torch.bool)
    shared[of_threshold] = True
    undecided = pixels.numpy()[np.flatnonzero(shared.index_select(0, cell).numpy())]
    undecided.sort()
    decided = torch.bincount(cell, minlength=last + 1)
    decided[of_threshold] = 0
    return decided.cumsum(0)[of_threshold] + torch.searchsorted(torch.from_numpy(undecided), thresholds)


# What goes in --------------------------------------------------------------------------------------------------------


def _predicted(maps: Tensor, scratch: _Scratch, logits: bool) -> _Density:
    if not logits:
        return _density("prediction", maps)
    _finite_total("prediction", maps)
    log_values = torch.sub(maps, maps.amax(1, keepdim=True), out=scratch(3, maps))
    values = torch.exp(log_values, out=scratch(4, maps))
    return _Density(values, values.sum(1, keepdim=True), log_values)


def _density(name: str, maps: Tensor) -> _Density:
    total = _finite_total(name, maps)
    lowest = maps.amin() if maps.numel() else maps.new_zeros(())
    if lowest < 0:
        raise InputError(
            f"{name} has a pixel of {lowest.item():g}, and a density is never negative: "
            "shift or clip the map, or pass logits=True for a network's scores"
        )
    return _Density(maps, total)


def _points(name: str, counts: Tensor) -> _Points:
    study, pixel = _nonzero(counts)
    count = counts[study, pixel].double()
    broken = ~(count.isfinite() & (count > 0) & (count == count.round()))
    if broken.any():
        raise InputError(
            f"{name} has a pixel of {count[broken][0].item():g}, expected the whole number of fixations on it: "
            "pass fixation counts (radgaze.gaze.fixation_map), not a blurred map"
        )
    return _Points(study, pixel, count, len(counts))


def _nonzero(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) rows and columns that are not zero, in order."""
    if maps.device.type == "cpu":  # NumPy finds a few among many some 4 times faster than torch
        places = torch.from_numpy(np.flatnonzero(maps.bool().numpy()))
        return places // maps.shape[1], places % maps.shape[1]
    rows, columns = maps.nonzero(as_tuple=True)
    return rows, columns


def _finite_total(name: str, maps: Tensor) -> Tensor:
    """(b, 1) sum of each map: not finite as soon as one pixel is not, so one cheap pass serves both."""
    total = maps.sum(1, keepdim=True)
    if not total.isfinite().all():
        study = int((~total.isfinite()).nonzero()[0, 0])
        raise InputError(
            f"{name} has a NaN or infinite pixel in map {study} of its batch: mend or leave out that study"
        )
    return total


def _check_shapes(prediction: Tensor, **others: Tensor) -> None:
    if prediction.ndim != 3 or prediction.shape[1] * prediction.shape[2] == 0:
        raise InputError(
            f"prediction has shape {tuple(prediction.shape)}, expected maps (B, h, w): index or add the batch dimension"
        )
    for name, maps in others.items():
        if maps.shape != prediction.shape:
            raise InputError(
                f"{name} has shape {tuple(maps.shape)} and prediction {tuple(prediction.shape)}: "
                "render both on one grid"
            )


def _expand(shared: Tensor, prediction: Tensor) -> Tensor:
    """A single (h, w) map stands for every study."""
    return shared.expand(prediction.shape) if shared.shape == prediction.shape[1:] else shared


class _Scratch:
    """Buffers that serve chunk after chunk: on a CPU, fresh megabytes cost more in page faults than the arithmetic."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}

    def __call__(self, slot: int, like: Tensor) -> Tensor:
        buffer = self.buffers.get(slot)
        if buffer is None or buffer.shape != like.shape:
            buffer = self.buffers[slot] = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return buffer


def _chunks(*maps: Tensor) -> Iterator[list[Tensor]]:
    """Flattened (b, N) pieces of maps of one shape, at least one study each, in the prediction's floating type."""
    studies, pixels = maps[0].shape[0], maps[0].shape[1] * maps[0].shape[2]
    dtype = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
    step = max(1, (_CPU_CHUNK if maps[0].device.type == "cpu" else _GPU_CHUNK) // pixels)
    for start in range(0, max(studies, 1), step):
        yield [piece[start : start + step].flatten(1).to(dtype) for piece in maps]


@torch.no_grad()
def _by_chunks(measure: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    scratch = _Scratch()
    return torch.cat([measure(scratch, *pieces) for pieces in _chunks(*maps)])
