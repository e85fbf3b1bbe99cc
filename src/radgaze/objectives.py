"""What networks are trained to minimise.

MT-UNet (Zhu, Rohling, Salcudean, arXiv 2202.07118) weighs its two losses by learned uncertainties:

    L = L_c / s_c^2 + ln(s_c + 1)  +  L_s / (2 s_s^2) + ln(s_s + 1),        s = exp(log s),  log s starts at 0

    L_c  cross entropy between the class scores and the label
    L_s  KLD(S || S^) = sum of S (ln S - ln S^) over all pixels, S the reader's attention map with sum 1

The paper's Eq. 5 is quoted elsewhere without the factor 1/2 on L_s; the released code has it. ``half`` chooses, and
follows the released code by default.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radgaze.errors import InputError, nearest
from radgaze.models.output import Output

__all__ = ["MTUNetObjective", "Scheme", "Supervision", "Term", "class_loss", "saliency_kld", "uncertainty_weighted"]

Scheme = Literal["equal", "uncertainty", "uncertainty-class", "saliency-only", "class-only"]


class Supervision(Protocol):
    """What an objective may ask of a batch of ``B`` studies."""

    targets: Tensor  # (B,) int64 with -1 unknown, or (B, C) float with NaN unknown (multi-label)
    attention: Tensor | None  # (B, h, w) non-negative
    has_attention: Tensor  # (B,) bool: studies whose attention map exists


class Term(NamedTuple):
    """One loss term, study by study, so that means over unequal batches and several machines stay exact.

    Attributes:
        values: ``(B,)`` loss of each study; 0 where the study lacks what the term needs.
        used: ``(B,)`` bool, the studies that have it.
    """

    values: Tensor
    used: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over the studies that have the term; 0 (with a gradient of 0) when there are none."""
        return self.values.sum() / self.used.sum().clamp(min=1)


def class_loss(logits: Tensor, targets: Tensor) -> Term:
    """Cross entropy over studies with a known label.

    Args:
        logits: ``(B, C)`` class scores.
        targets: ``(B,)`` int64 class indices with -1 for unknown: softmax cross entropy. Or ``(B, C)`` floats in [0, 1]
            with NaN for unknown: binary cross entropy, averaged over a study's known classes.
    """
    logits = logits.float()  # log-sum-exp loses digits in bf16
    if targets.ndim == 1:
        known = targets >= 0
        losses = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    else:
        labelled = ~targets.isnan()
        known = labelled.any(dim=1)
        each = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0).float(), reduction="none")
        losses = (each * labelled).sum(1) / labelled.sum(1).clamp(min=1)
    return Term(losses * known, known)


def saliency_kld(saliency_logits: Tensor, attention: Tensor, has_attention: Tensor) -> Term:
    """KLD(S || S^) in nats for the studies that have an attention map.

    Args:
        saliency_logits: ``(B, h, w)``; S^ is their softmax over all pixels.
        attention: ``(B, h, w)`` non-negative maps; each is divided by its own sum to give S.
        has_attention: ``(B,)`` bool; the other maps are not looked at.
    """
    log_prediction = torch.log_softmax(saliency_logits.float().flatten(1), dim=1)
    target = attention.float().flatten(1)
    mass = target.sum(1, keepdim=True)
    used = has_attention & (mass.squeeze(1) > 0)
    target = target / torch.where(mass > 0, mass, 1.0)
    # xlogy: a pixel nobody looked at contributes 0, not 0 * ln 0
    divergence = (torch.xlogy(target, target) - target * log_prediction).sum(1)
    return Term(divergence * used, used)


def uncertainty_weighted(loss: Tensor, log_sigma: Tensor, factor: float = 1.0) -> Tensor:
    """``factor * loss / s^2 + ln(s + 1)`` with ``s = exp(log_sigma)``."""
    sigma = log_sigma.exp()
    return factor * loss / sigma**2 + torch.log1p(sigma)


class MTUNetObjective(nn.Module):
    """The learning schemes of MT-UNet; ``log_sigma_class`` and ``log_sigma_saliency`` are trained as the scheme says.

    Args:
        scheme: ``"uncertainty-class"`` learns only s_c and keeps s_s = 1 (the paper's further optimised scheme);
            ``"uncertainty"`` learns both; ``"equal"`` is L_c + L_s; ``"saliency-only"`` and ``"class-only"`` are the
            single-task controls.
        half: Keep the released code's factor 1/2 on L_s in the uncertainty schemes.
    """

    def __init__(self, scheme: Scheme = "uncertainty-class", half: bool = True) -> None:
        super().__init__()
        if scheme not in get_args(Scheme):
            raise InputError(f"There is no learning scheme {scheme!r}: {nearest(scheme, get_args(Scheme))}")
        self.scheme = scheme
        self.saliency_factor = 0.5 if half else 1.0
        self.log_sigma_class = nn.Parameter(torch.zeros(()), requires_grad=scheme.startswith("uncertainty"))
        self.log_sigma_saliency = nn.Parameter(torch.zeros(()), requires_grad=scheme == "uncertainty")

    @property
    def needs_attention(self) -> bool:
        return self.scheme != "class-only"

    @property
    def needs_labels(self) -> bool:
        return self.scheme != "saliency-only"

    def terms(self, output: Output, batch: Supervision) -> dict[str, Term]:
        """The raw losses ``{"class": L_c, "saliency": L_s}`` that the scheme uses."""
        terms = {}
        if self.needs_labels:
            if output.logits is None:
                raise InputError(f"Scheme {self.scheme!r} needs class scores, but the network has no class head.")
            terms["class"] = class_loss(output.logits, batch.targets)
        if self.needs_attention:
            if output.saliency_logits is None or batch.attention is None:
                raise InputError(f"Scheme {self.scheme!r} needs a saliency head and attention maps; one is absent.")
            terms["saliency"] = saliency_kld(output.saliency_logits, batch.attention, batch.has_attention)
        return terms

    def combine(self, means: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise, from the mean of each term over a batch or a whole split."""
        if not self.scheme.startswith("uncertainty"):
            return torch.stack(list(means.values())).sum()
        return uncertainty_weighted(means["class"], self.log_sigma_class) + uncertainty_weighted(
            means["saliency"], self.log_sigma_saliency, self.saliency_factor
        )

    def scalars(self) -> dict[str, float]:
        """The state worth logging: ``sigma_class`` and ``sigma_saliency`` where the scheme has them."""
        if not self.scheme.startswith("uncertainty"):
            return {}
        return {
            "sigma_class": self.log_sigma_class.detach().exp().item(),
            "sigma_saliency": self.log_sigma_saliency.detach().exp().item(),
        }
