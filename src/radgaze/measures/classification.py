"""How well predicted probabilities tell the classes apart, and how far they can be believed.

    AUC      P(score of a positive > score of a negative) + ½ P(equal)            exact midranks (Mann, Whitney 1947)
    macro    mean AUC of each class against the rest (ovr), or mean over pairs i < j of ½ [A(i|j) + A(j|i)] (ovo;
             Hand, Till, Machine Learning 2001, eq. 7), A(i|j) ranking the studies of i and j by the score of i
    micro    AUC of all (study, class) pairs pooled
    AP       Σ_n (R_n - R_{n-1}) P_n over thresholds, recall R and precision P, without interpolation
    ECE      Σ_b (n_b / n) |outcome_b - confidence_b| over bins b of confidence  (Guo et al., ICML 2017)
    Brier    multiclass mean_i Σ_c (p_ic - y_ic)², as Brier (1950) had it, 0 to 2; multilabel mean (p - y)², 0 to 1
    NLL      mean -ln p of what was true, probabilities taken as at least 2.2e-16

Two kinds of target share every function:

- **multiclass**: ``targets`` (N,) integers, the class of each study, -1 where it is unknown;
- **multilabel**: ``targets`` (N, C) of 0 and 1, NaN where a label is unknown. Unknown labels are left out, label by
  label.

Every measure takes ``weights``: None, (N,), or (R, N) to have R weightings at once, when the result gains a leading
dimension of R. A whole number is a number of copies, so the R resamples of a bootstrap are one batched computation
(:mod:`radgaze.measures.statistics`) in place of R calls. Sums are float64.

A measure that does not exist is NaN: the AUC of a class without positives or without negatives, hence any mean over
classes that needs it (a mean over fewer classes would be another measure), the recall of an absent class, anything of
no study.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from radgaze.errors import InputError
from radgaze.measures.saliency import PROBABILITY_FLOOR

__all__ = [
    "PrecisionRecallCurve",
    "Reliability",
    "RocCurve",
    "accuracy",
    "all_measures",
    "auc",
    "auc_macro",
    "auc_micro",
    "average_precision",
    "balanced_accuracy",
    "brier",
    "confusion_matrix",
    "ece",
    "nll",
    "one_against_rest",
    "pooled",
    "precision_recall_curve",
    "rank_auc",
    "reliability",
    "roc_curve",
]


# Ranking -------------------------------------------------------------------------------------------------------------


def rank_auc(scores: Tensor, positive: Tensor, weights: Tensor | None = None) -> Tensor:
    """AUC of one score for one yes-or-no question, ties counting one half.

    Args:
        scores: (N,) any real values; only their order matters.
        positive: (N,) bool.
        weights: None, (N,) or (R, N).

    Returns:
        () or (R,) values in [0, 1]; NaN without a positive or without a negative of non-zero weight.

    Raises:
        InputError: for NaN scores or shapes that do not fit.
    """
    _check_question(scores, positive)
    columns = _columns(weights, len(scores), scores.device)
    return _like_weights(_rank_auc(scores, positive, columns), weights)


def auc(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """AUC of each class against the rest.

    Args:
        probabilities: (N, C) scores; only their order within a class matters.
        targets: (N,) class indices or (N, C) labels, see the module.
        weights: None, (N,) or (R, N).

    Returns:
        (C,) or (R, C) values in [0, 1]; NaN for a class without positives or without negatives.

    Raises:
        InputError: for NaN scores, targets outside their range, or shapes that do not fit.
    """
    case = _case(probabilities, targets)
    columns = _columns(weights, len(targets), probabilities.device)
    areas = [
        _rank_auc(scores[known], positive[known], columns[known])
        for scores, positive, known in zip(case.scores.T, case.positive.T, case.known.T, strict=True)
    ]
    return _like_weights(torch.stack(areas, dim=1), weights)


def auc_macro(
    probabilities: Tensor, targets: Tensor, weights: Tensor | None = None, *, scheme: Literal["ovr", "ovo"] = "ovr"
) -> Tensor:
    """Mean AUC over classes: each against the rest (``ovr``), or each pair of classes both ways (``ovo``, Hand and
    Till).

    Args:
        probabilities: (N, C) scores; only their order within a class matters.
        targets: (N,) class indices or (N, C) labels, see the module; ``ovo`` needs class indices.
        weights: None, (N,) or (R, N).
        scheme: "ovr" or "ovo"; ``ovo`` does not depend on how common the classes are.

    Returns:
        () or (R,) values in [0, 1]; NaN if any class is absent.

    Raises:
        InputError: for NaN scores, targets outside their range, shapes that do not fit, ``ovo`` of multilabel targets
            or of a single class, or an unknown scheme.
    """
    if scheme == "ovr":
        return auc(probabilities, targets, weights).mean(-1)
    if scheme != "ovo":
        raise InputError(f"scheme is {scheme!r}: choose ovr (class against rest) or ovo (pairs of classes)")
    case = _exclusive(_case(probabilities, targets), "AUC by pairs of classes", "scheme='ovr'")
    columns = _columns(weights, len(targets), probabilities.device)
    classes = range(case.scores.shape[1])
    areas = []
    for one in classes:
        for other in classes:
            if one != other:
                pair = case.positive[:, one] | case.positive[:, other]
                areas.append(_rank_auc(case.scores[pair, one], case.positive[pair, one], columns[pair]))
    if not areas:
        raise InputError("AUC by pairs needs at least 2 classes and probabilities have 1 column: use scheme='ovr'")
    return _like_weights(torch.stack(areas, dim=1).mean(1), weights)


def auc_micro(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """AUC of all (study, class) pairs pooled, so scores are compared across classes.

    Args:
        probabilities: (N, C) probabilities, on one scale for all classes.
        targets: (N,) class indices or (N, C) labels, see the module.
        weights: None, (N,) or (R, N).

    Returns:
        () or (R,) values in [0, 1]; NaN without a positive or without a negative.

    Raises:
        InputError: for NaN scores, targets outside their range, or shapes that do not fit.
    """
    case = _case(probabilities, targets)
    columns = _columns(weights, len(targets), probabilities.device)
    study = case.known.nonzero()[:, 0]
    area = _rank_auc(case.scores[case.known], case.positive[case.known], columns[study])
    return _like_weights(area, weights)


def average_precision(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average precision of each class: the area under its precision-recall steps, tied scores sharing a threshold.

    Args:
        probabilities: (N, C) scores; only their order within a class matters.
        targets: (N,) class indices or (N, C) labels, see the module.
        weights: None, (N,) or (R, N).

    Returns:
        (C,) or (R, C) values in [0, 1], the class's prevalence for scores that know nothing; NaN without positives.

    Raises:
        InputError: for NaN scores, targets outside their range, or shapes that do not fit.
    """
    case = _case(probabilities, targets)
    columns = _columns(weights, len(targets), probabilities.device)
    precisions = [
        _average_precision(scores[known], positive[known], columns[known])
        for scores, positive, known in zip(case.scores.T, case.positive.T, case.known.T, strict=True)
    ]
    return _like_weights(torch.stack(precisions, dim=1), weights)


def _rank_auc(scores: Tensor, positive: Tensor, columns: Tensor) -> Tensor:
    """(n,), (n,) bool, (n, R) -> (R,)."""
    negatives, order = scores[~positive].sort()
    up_to = pad(columns[~positive][order].cumsum(0), (0, 0, 1, 0))  # weight of the negatives below each rank
    below = up_to[torch.searchsorted(negatives, scores[positive])]
    below += up_to[torch.searchsorted(negatives, scores[positive], right=True)]
    positives = columns[positive]
    return below.mul_(positives).sum(0) / (2 * positives.sum(0) * up_to[-1])


def _average_precision(scores: Tensor, positive: Tensor, columns: Tensor) -> Tensor:
    """(n,), (n,) bool, (n, R) -> (R,)."""
    order = scores.argsort(descending=True)
    scores, positive, columns = scores[order], positive[order], columns[order]
    # A positive is found together with all that tie with it: its precision is read at the end of its tie.
    found = len(scores) - torch.searchsorted(scores.flip(0), scores[positive])
    hits = (columns * positive[:, None]).cumsum(0)[found - 1]
    precision = hits / columns.cumsum(0)[found - 1].clamp_min(torch.finfo(columns.dtype).tiny)
    positives = columns[positive]
    return (positives * precision).sum(0) / positives.sum(0)


# Decisions -----------------------------------------------------------------------------------------------------------


def accuracy(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Share of right decisions.

    Multiclass: the likeliest class is the true one (the first of several equally likely). Multilabel: over all known
    (study, label) pairs, a probability of at least 0.5 means yes.

    Args:
        probabilities: (N, C) probabilities.
        targets: (N,) class indices or (N, C) labels, see the module.
        weights: None, (N,) or (R, N).

    Returns:
        () or (R,) values in [0, 1]; NaN without a known target.

    Raises:
        InputError: for NaN probabilities, targets outside their range, or shapes that do not fit.
    """
    case = _case(probabilities, targets)
    if case.exclusive:
        right = case.positive.gather(1, case.scores.argmax(1, keepdim=True))
        return _mean(right, case.known[:, :1], weights)
    return _mean((case.scores >= 0.5) == case.positive, case.known, weights)


def balanced_accuracy(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over classes of the share of their studies that are recognised (recall).

    Args:
        probabilities: (N, C) probabilities.
        targets: (N,) class indices.
        weights: None, (N,) or (R, N).

    Returns:
        () or (R,) values in [0, 1]; NaN if a class is absent.

    Raises:
        InputError: for NaN probabilities, targets outside their range, multilabel targets, or shapes that do not fit.
    """
    matrix = confusion_matrix(probabilities, targets, weights)
    return (matrix.diagonal(dim1=-2, dim2=-1) / matrix.sum(-1)).mean(-1)


def confusion_matrix(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """How many studies of each class (row) were taken for each class (column).

    Args:
        probabilities: (N, C) probabilities; the likeliest class is the decision, the first of several equally likely.
        targets: (N,) class indices.
        weights: None, (N,) or (R, N).

    Returns:
        (C, C) or (R, C, C) float64 counts.

    Raises:
        InputError: for NaN probabilities, targets outside their range, multilabel targets, or shapes that do not fit.
    """
    case = _exclusive(_case(probabilities, targets), "A confusion matrix", "accuracy or auc")
    columns = _columns(weights, len(targets), probabilities.device)
    classes = case.scores.shape[1]
    taken_for = one_hot(case.scores.argmax(1), classes).double()
    matrix = torch.einsum("nt,nd,nr->rtd", case.positive.double(), taken_for, columns)
    return _like_weights(matrix, weights)


# Probabilities -------------------------------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """Bins of a reliability diagram; an empty bin has NaN confidence and outcome."""

    edges: Tensor
    """(bins + 1,) confidences; bin b holds those in (edges[b], edges[b+1]], the first one also its lower edge."""
    confidence: Tensor
    """(..., bins) mean confidence."""
    outcome: Tensor
    """(..., bins) share that came true: the accuracy (multiclass) or the frequency of the label (multilabel)."""
    number: Tensor
    """(..., bins) predictions, weighted where weights were given."""


def reliability(
    probabilities: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    bins: int = 15,
    scheme: Literal["width", "mass"] = "width",
) -> Reliability:
    """What the confidences say against what came true, in bins of confidence.

    A prediction is, multiclass, the probability of the likeliest class and whether it was right; multilabel, each known
    label's probability and whether it was present.

    Args:
        probabilities: (N, C) in [0, 1]; multiclass rows sum to 1.
        targets: (N,) class indices or (N, C) labels, see the module.
        weights: None, (N,) or (R, N).
        bins: how many.
        scheme: "width": equal widths from 0 to 1; "mass": edges at quantiles, so that bins hold equally many
            predictions (adaptive), predictions of equal confidence staying together. Quantiles are of the unweighted
            predictions.

    Raises:
        InputError: for values that are no probabilities, targets outside their range, shapes that do not fit, or bins <
        1.
    """
    if bins < 1:
        raise InputError(f"bins is {bins}: give at least 1")
    case = _case(probabilities, targets)
    _check_probabilities(case)
    if case.exclusive:
        study = case.known[:, 0].nonzero()[:, 0]
        confidence, decision = case.scores[study].max(1)
        outcome = case.positive[study, decision]
    else:
        study = case.known.nonzero()[:, 0]
        confidence, outcome = case.scores[case.known], case.positive[case.known]
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    if scheme == "mass":
        edges = torch.quantile(confidence, edges) if len(confidence) else edges
    elif scheme != "width":
        raise InputError(f"scheme is {scheme!r}: choose width (equal widths) or mass (equally many predictions)")

    columns = _columns(weights, len(targets), probabilities.device)[study]
    member = one_hot(torch.bucketize(confidence, edges[1:-1]), bins).double()
    number = columns.T @ member
    return Reliability(
        edges,
        _like_weights(columns.T @ (member * confidence[:, None]) / number, weights),
        _like_weights(columns.T @ (member * outcome[:, None]) / number, weights),
        _like_weights(number, weights),
    )


def ece(
    probabilities: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    bins: int = 15,
    scheme: Literal["width", "mass"] = "width",
) -> Tensor:
    """Expected calibration error: the gap between confidence and outcome, averaged over the bins of
    :func:`reliability`.

    Arguments and errors are those of :func:`reliability`.

    Returns:
        () or (R,) values in [0, 1]; NaN without a known target.
    """
    table = reliability(probabilities, targets, weights, bins=bins, scheme=scheme)
    gaps = (table.outcome - table.confidence).abs()
    return (gaps.nan_to_num() * table.number).sum(-1) / table.number.sum(-1)


def brier(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Brier score: the mean squared distance of the probabilities from what was true.

    Args:
        probabilities: (N, C) in [0, 1]; multiclass rows sum to 1.
        targets: (N,) class indices or (N, C) labels, see the module.
        weights: None, (N,) or (R, N).

    Returns:
        () or (R,) values; multiclass in [0, 2], squares summed over classes; multilabel in [0, 1], a mean over known
        labels.

    Raises:
        InputError: for values that are no probabilities, targets outside their range, or shapes that do not fit.
    """
    case = _case(probabilities, targets)
    _check_probabilities(case)
    squares = (case.scores - case.positive.double()).square()
    if case.exclusive:
        return _mean(squares.sum(1, keepdim=True), case.known[:, :1], weights)
    return _mean(squares, case.known, weights)


def nll(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of what was true, in nats: cross entropy (multiclass) or its mean over known labels.

    Args:
        probabilities: (N, C) in [0, 1]; multiclass rows sum to 1.
        targets: (N,) class indices or (N, C) labels, see the module.
        weights: None, (N,) or (R, N).

    Returns:
        () or (R,) values in [0, 36.04]: probabilities count as at least 2.2e-16, so one sure mistake is not infinite.

    Raises:
        InputError: for values that are no probabilities, targets outside their range, or shapes that do not fit.
    """
    case = _case(probabilities, targets)
    _check_probabilities(case)
    of_truth = torch.where(case.positive, case.scores, 1 - case.scores).clamp_min(PROBABILITY_FLOOR)
    if case.exclusive:
        return _mean(-(of_truth.log() * case.positive).sum(1, keepdim=True), case.known[:, :1], weights)
    return _mean(-of_truth.log(), case.known, weights)


def all_measures(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """The measures that are one number each, by name; multiclass adds balanced_accuracy and auc_macro_ovo.

    Arguments and errors are those of the single functions.

    Returns:
        Name to () or (R,) values.
    """
    values = {
        "auc_macro": auc_macro(probabilities, targets, weights),
        "auc_micro": auc_micro(probabilities, targets, weights),
        "accuracy": accuracy(probabilities, targets, weights),
        "ece": ece(probabilities, targets, weights),
        "brier": brier(probabilities, targets, weights),
        "nll": nll(probabilities, targets, weights),
    }
    if targets.ndim == 1:
        values["balanced_accuracy"] = balanced_accuracy(probabilities, targets, weights)
        values["auc_macro_ovo"] = auc_macro(probabilities, targets, weights, scheme="ovo")
    return values


# Curves --------------------------------------------------------------------------------------------------------------


class RocCurve(NamedTuple):
    """From (0, 0), at an infinite threshold, to (1, 1); ``torch.trapezoid(tpr, fpr)`` is the AUC."""

    fpr: Tensor
    """(K,) share of the negatives with a score of at least the threshold."""
    tpr: Tensor
    """(K,) share of the positives with a score of at least the threshold."""
    thresholds: Tensor
    """(K,) infinity, then the distinct scores, falling."""


class PrecisionRecallCurve(NamedTuple):
    """One point per threshold, recall rising."""

    precision: Tensor
    """(K,) share of positives among the scores of at least the threshold."""
    recall: Tensor
    """(K,) share of the positives with a score of at least the threshold."""
    thresholds: Tensor
    """(K,) the distinct scores, falling."""


def one_against_rest(probabilities: Tensor, targets: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Scores (n,) and truth (n,) of class ``index`` where it is known, for :func:`roc_curve` and DeLong's test."""
    case = _case(probabilities, targets)
    known = case.known[:, index]
    return case.scores[known, index], case.positive[known, index]


def pooled(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (n,) and truth (n,) of all known (study, class) pairs, whose ROC curve is the micro-average."""
    case = _case(probabilities, targets)
    return case.scores[case.known], case.positive[case.known]


def roc_curve(scores: Tensor, positive: Tensor) -> RocCurve:
    """ROC curve of one score for one yes-or-no question, tied scores sharing a point.

    Args:
        scores: (N,) any real values.
        positive: (N,) bool.

    Returns:
        The curve; rates are NaN without a positive (tpr) or without a negative (fpr).

    Raises:
        InputError: for NaN scores or shapes that do not fit.
    """
    hits, false_alarms, thresholds = _counts_above(scores, positive)
    start = thresholds.new_full((1,), torch.inf)
    return RocCurve(
        pad(false_alarms, (1, 0)) / (~positive).sum(),
        pad(hits, (1, 0)) / positive.sum(),
        torch.cat((start, thresholds)),
    )


def precision_recall_curve(scores: Tensor, positive: Tensor) -> PrecisionRecallCurve:
    """Precision against recall of one score for one yes-or-no question, tied scores sharing a point.

    Args:
        scores: (N,) any real values.
        positive: (N,) bool.

    Returns:
        The curve; recall is NaN without a positive.

    Raises:
        InputError: for NaN scores or shapes that do not fit.
    """
    hits, false_alarms, thresholds = _counts_above(scores, positive)
    return PrecisionRecallCurve(hits / (hits + false_alarms), hits / positive.sum(), thresholds)


def _counts_above(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positives and negatives with a score of at least each distinct score, and those scores, falling."""
    _check_question(scores, positive)
    thresholds, place = torch.unique(scores, return_inverse=True)
    hits = torch.bincount(place, positive.double(), minlength=len(thresholds)).flip(0).cumsum(0)
    false_alarms = torch.bincount(place, (~positive).double(), minlength=len(thresholds)).flip(0).cumsum(0)
    return hits, false_alarms, thresholds.flip(0)


# What goes in --------------------------------------------------------------------------------------------------------


class _Case(NamedTuple):
    scores: Tensor  # (N, C) float64
    positive: Tensor  # (N, C) bool, False where unknown
    known: Tensor  # (N, C) bool
    exclusive: bool  # multiclass: exactly one class of a known study is positive


def _case(probabilities: Tensor, targets: Tensor) -> _Case:
    if probabilities.ndim != 2:
        raise InputError(f"probabilities have shape {tuple(probabilities.shape)}, expected (studies, classes)")
    scores = probabilities.double()
    if scores.isnan().any():
        study = int(scores.isnan().any(1).nonzero()[0, 0])
        raise InputError(f"probabilities of study {study} are NaN: mend or leave out that study")
    studies, classes = scores.shape
    targets = targets.to(scores.device)
    if targets.shape == (studies,) and not targets.is_floating_point():
        low, high = (int(targets.min()), int(targets.max())) if studies else (0, 0)
        if low < -1 or high >= classes:
            raise InputError(
                f"targets run from {low} to {high} with {classes} columns of probabilities: "
                f"expected classes 0 to {classes - 1}, and -1 for unknown"
            )
        known = (targets >= 0)[:, None].expand(studies, classes)
        positive = targets[:, None] == torch.arange(classes, device=scores.device)
        return _Case(scores, positive, known, exclusive=True)
    if targets.shape == (studies, classes):
        known = ~targets.isnan()
        odd = targets[known & (targets != 0) & (targets != 1)]
        if len(odd):
            raise InputError(f"multilabel targets hold {odd[0].item():g}: expected 0, 1, or NaN for unknown")
        return _Case(scores, targets == 1, known, exclusive=False)
    raise InputError(
        f"targets have shape {tuple(targets.shape)} and type {targets.dtype} for probabilities of shape "
        f"{tuple(scores.shape)}: give {studies} class indices (integers), or labels of shape {tuple(scores.shape)}"
    )


def _exclusive(case: _Case, what: str, instead: str) -> _Case:
    if not case.exclusive:
        raise InputError(f"{what} needs one class per study and the targets are multilabel: use {instead}")
    return case


def _check_probabilities(case: _Case) -> None:
    scores = case.scores
    outside = scores[(scores < 0) | (scores > 1)]
    if len(outside):
        raise InputError(
            f"probabilities hold {outside[0].item():g}, expected 0 to 1: "
            "apply softmax (multiclass) or sigmoid (multilabel)"
        )
    sums = scores.sum(1)
    if case.exclusive and ((sums - 1).abs() > 1e-2).any():
        worst = sums[(sums - 1).abs().argmax()].item()
        raise InputError(f"probabilities of a study sum to {worst:g}, expected 1: apply softmax over the classes")


def _check_question(scores: Tensor, positive: Tensor) -> None:
    if scores.ndim != 1 or positive.shape != scores.shape or positive.dtype != torch.bool:
        raise InputError(
            f"scores have shape {tuple(scores.shape)} and positive has shape {tuple(positive.shape)} of "
            f"{positive.dtype}: give one score and one bool per study"
        )
    if scores.isnan().any():
        study = int(scores.isnan().nonzero()[0, 0])
        raise InputError(f"the score of study {study} is NaN: mend or leave out that study")


def _columns(weights: Tensor | None, studies: int, device: torch.device) -> Tensor:
    """(N, R) float64 weights, resamples innermost: the sums over studies then run over contiguous rows."""
    if weights is None:
        return torch.ones(studies, 1, dtype=torch.float64, device=device)
    if weights.ndim not in (1, 2) or weights.shape[-1] != studies:
        raise InputError(f"weights have shape {tuple(weights.shape)}, expected (..., {studies}), one per study")
    if weights.numel() and not weights.amin() >= 0:
        raise InputError(f"weights hold {weights.amin().item():g}: expected numbers of at least 0")
    return weights.to(device, torch.float64).reshape(-1, studies).T.contiguous()


def _like_weights(values: Tensor, weights: Tensor | None) -> Tensor:
    """Drop the leading dimension of resamples where the caller gave none."""
    return values if weights is not None and weights.ndim == 2 else values[0]


def _mean(values: Tensor, known: Tensor, weights: Tensor | None) -> Tensor:
    """(N, K) values where known (N, K) -> () or (R,) weighted mean."""
    columns = _columns(weights, len(values), values.device)
    values = torch.where(known, values.double(), 0)
    return _like_weights((values.sum(1) @ columns) / (known.double().sum(1) @ columns), weights)
