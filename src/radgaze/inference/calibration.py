"""Calibration: what a network's class scores are worth on studies that it has not learned from.

    p = softmax(a · z + b),      a > 0

of class scores z (labels that do not exclude each other: p_c = sigmoid(a_c · z_c + b_c) each). Slope and offsets are
fitted on the validation split by maximum likelihood: temperature scaling (Guo et al., *On Calibration of Modern Neural
Networks*, ICML 2017) with the offsets of Alexandari et al., *Maximum Likelihood with Bias-Corrected Calibration is
Hard-To-Beat at Label Shift Adaptation*, ICML 2020. The fit is repeated on bootstrap resamples of the validation
patients, and the spread of a probability over these fits is its interval: how well the validation split pins down what
such scores mean. It does not tell of images unlike those of the split.

Deviation: a weak prior (log a and b normal about 0, of unit variance) keeps the fit finite where the validation split
is told apart without an error. With a study more or less in a class it matters as much as that study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radgaze.errors import InputError
from radgaze.inference.predict import probabilities
from radgaze.measures.statistics import resample_weights

__all__ = ["Calibration", "calibrate"]

RESAMPLES = 200
LEAST = 2  # patients with a class, and without it, below which nothing can be said of it
STEPS = 100
_AT_ONCE = 1 << 22  # probabilities held at once


@dataclass(frozen=True, eq=False)
class Calibration:
    """Slopes and offsets of the fit, and of the fits to resamples.

    Attributes:
        slopes: ``(1 + R, C)`` float64, the fit to all studies first.
        offsets: ``(1 + R, C)`` float64.
        task: ``"multiclass"`` (all slopes of a row are one) or ``"multilabel"``.
        studies: How many validation studies with a label it was fitted to.
        patients: Of how many patients.
        log_loss: On those studies, (before, after). The latter is of the studies fitted to.
    """

    slopes: Tensor
    offsets: Tensor
    task: str
    studies: int
    patients: int
    log_loss: tuple[float, float]

    def __call__(self, logits: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
        """Class scores ``(B, C)`` to probabilities and the bounds of their intervals, ``(B, C)`` float32 each.

        The interval runs between percentiles over the resamples and always holds the probability.
        """
        scores = logits.double().cpu()[:, None] * self.slopes + self.offsets  # (B, 1 + R, C)
        drawn = scores.sigmoid() if self.task == "multilabel" else scores.softmax(-1)
        value, tail = drawn[:, 0], (1 - level) / 2
        low, high = torch.quantile(drawn[:, 1:], torch.tensor([tail, 1 - tail], dtype=drawn.dtype), dim=1)
        return value.float(), torch.minimum(low, value).float(), torch.maximum(high, value).float()

    def to_json(self) -> dict[str, Any]:
        return {
            "method": "temperature scaling with offsets, 95 % intervals over validation patients",
            "task": self.task,
            "studies": self.studies,
            "patients": self.patients,
            "log_loss": list(self.log_loss),
            "slopes": _rounded(self.slopes),
            "offsets": _rounded(self.offsets),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """What :meth:`to_json` wrote.

        Raises:
            InputError: Something is missing, of another kind, or of another size.
        """
        try:
            return cls._parsed(content)
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(
                f"The calibration is damaged ({error!r}); remove calibration.json, or export the run again."
            ) from None

    @classmethod
    def _parsed(cls, content: Mapping[str, Any]) -> Calibration:
        before, after = content["log_loss"]
        slopes, offsets = (torch.tensor(content[name], dtype=torch.float64) for name in ("slopes", "offsets"))
        if slopes.ndim != 2 or len(slopes) < 2 or slopes.shape != offsets.shape:
            raise ValueError(f"slopes {tuple(slopes.shape)} and offsets {tuple(offsets.shape)} of a calibration")
        return cls(
            slopes,
            offsets,
            content["task"],
            content["studies"],
            content["patients"],
            (before, after),
        )


def calibrate(
    logits: Tensor, targets: Tensor, patients: Sequence[object], task: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> Calibration | None:
    """Fit class scores to what the studies turned out to be.

    Args:
        logits: ``(N, C)`` class scores of studies the network has not learned from.
        targets: ``(N,)`` int64 with −1 unknown; multi-label: ``(N, C)`` with NaN unknown.
        patients: N patients, drawn together.
        task: ``"multiclass"`` or ``"multilabel"``.
        resamples: Fits to resamples of the patients.
        seed: Of the resamples.

    Returns:
        The calibration, rounded as :meth:`Calibration.to_json` writes it; None where a class is present in, or absent
        from, fewer than two patients with a known label.

    Raises:
        InputError: Scores that are not finite.
    """
    if not logits.isfinite().all():
        raise InputError("Class scores of the validation split are not finite; train the run again.")
    scores = logits.double().cpu()
    if task == "multilabel":
        parts = []
        for column, target in zip(scores.T, targets.T, strict=True):
            # a sigmoid of z is the second of two classes with the scores -z / 2 and z / 2
            parts.append(_fit(torch.stack([-column / 2, column / 2], 1), target, patients, resamples, seed))
        if any(part is None for part in parts):
            return None
        fits = [part for part in parts if part is not None]
        slopes = torch.cat([slope for slope, _ in fits], 1)
        offsets = torch.stack([offset[:, 1] - offset[:, 0] for _, offset in fits], 1)
        known = (~targets.isnan()).any(1)
    else:
        fit = _fit(scores, torch.where(targets < 0, torch.nan, targets.double()), patients, resamples, seed)
        if fit is None:
            return None
        slopes, offsets = fit[0].expand(-1, scores.shape[1]), fit[1]
        known = targets >= 0
    fitted = Calibration(
        torch.tensor(_rounded(slopes), dtype=torch.float64),
        torch.tensor(_rounded(offsets), dtype=torch.float64),
        task,
        int(known.sum()),
        len({str(patient) for patient, is_known in zip(patients, known.tolist(), strict=True) if is_known}),
        (0.0, 0.0),
    )
    before = _log_loss(probabilities(scores, task), targets, task)
    after = _log_loss(fitted(scores)[0], targets, task)
    return Calibration(fitted.slopes, fitted.offsets, task, fitted.studies, fitted.patients, (before, after))


def _fit(
    scores: Tensor, targets: Tensor, patients: Sequence[object], resamples: int, seed: int
) -> tuple[Tensor, Tensor] | None:
    """(1 + R, 1) slopes and (1 + R, C) offsets for ``targets`` (N,), NaN unknown; None where that is too little."""
    known = ~targets.isnan()
    scores, codes = scores[known], targets[known].long()
    owners = [str(patient) for patient, is_known in zip(patients, known.tolist(), strict=True) if is_known]
    for code in range(scores.shape[1]):
        having = {owner for owner, own in zip(owners, codes.tolist(), strict=True) if own == code}
        lacking = {owner for owner, own in zip(owners, codes.tolist(), strict=True) if own != code}
        if min(len(having), len(lacking)) < LEAST:
            return None
    weights = torch.cat([torch.ones(1, len(codes), dtype=torch.float64), resample_weights(owners, resamples, seed)])
    step = max(1, _AT_ONCE // scores.numel())
    parts = [_newton(scores, codes, some) for some in weights.split(step)]
    return torch.cat([slope for slope, _ in parts]), torch.cat([offset for _, offset in parts])


def _newton(scores: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on (log a, b) for each row of ``weights`` (R, N) at once."""
    rows, classes = len(weights), scores.shape[1]
    truth = torch.nn.functional.one_hot(codes, classes).double()
    parameters, damping = scores.new_zeros(rows, 1 + classes), scores.new_ones(rows)
    cost, gradient, curvature = _surface(parameters, scores, truth, weights)
    for _ in range(STEPS):
        damped = curvature + torch.diag_embed(damping[:, None] * curvature.diagonal(dim1=1, dim2=2))
        tried = parameters - torch.linalg.solve(damped, gradient)
        new_cost, new_gradient, new_curvature = _surface(tried, scores, truth, weights)
        better = new_cost <= cost
        moved = (tried - parameters).abs().amax(1)
        parameters = torch.where(better[:, None], tried, parameters)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        curvature = torch.where(better[:, None, None], new_curvature, curvature)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping / 10, damping * 10)
        if (moved < 1e-9).all():
            break
    return parameters[:, :1].exp(), parameters[:, 1:]


def _surface(parameters: Tensor, scores: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cost (R,), its gradient (R, P) and its Gauss-Newton curvature (R, P, P): likelihood and prior."""
    slope = parameters[:, :1].exp()
    log_p = (slope[:, :, None] * scores + parameters[:, None, 1:]).log_softmax(-1)  # (R, N, C)
    p = log_p.exp()
    cost = -(weights[:, :, None] * truth * log_p).sum((1, 2)) + parameters.square().sum(1) / 2
    residual = weights[:, :, None] * (p - truth)
    own = slope[:, :, None] * scores  # d u / d log a
    gradient = torch.cat([(residual * own).sum((1, 2))[:, None], residual.sum(1)], 1) + parameters
    weighted = weights[:, :, None] * p
    mean = (p * own).sum(-1, keepdim=True)
    first = (weighted * (own - mean) * own).sum((1, 2))
    mixed = (weighted * (own - mean)).sum(1)
    offsets = torch.diag_embed(weighted.sum(1)) - weighted.mT @ p
    top = torch.cat([first[:, None], mixed], 1)[:, None]
    curvature = torch.cat([top, torch.cat([mixed[:, :, None], offsets], 2)], 1)
    return cost, gradient, curvature + torch.eye(curvature.shape[-1], dtype=curvature.dtype)


def _log_loss(p: Tensor, targets: Tensor, task: str) -> float:
    if task == "multilabel":
        known = ~targets.isnan()
        return float(torch.nn.functional.binary_cross_entropy(p[known].float(), targets[known].float()))
    known = targets >= 0
    return float(torch.nn.functional.nll_loss(p[known].float().clamp_min(1e-12).log(), targets[known]))


def _rounded(values: Tensor) -> list[list[float]]:
    """Six digits: what is written is what is used."""
    return [[float(f"{value:.6g}") for value in row] for row in values.tolist()]
