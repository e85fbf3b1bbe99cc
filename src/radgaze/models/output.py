"""What every radgaze network returns, so that one trainer, evaluator, exporter and viewer serve them all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Output"]


class Output(NamedTuple):
    """Raw outputs of a network for ``B`` images and ``C`` classes; parts a network does not have are ``None``.

    Attributes:
        logits: ``(B, C)`` class scores before softmax (or sigmoid, for multi-label cohorts).
        saliency_logits: ``(B, h, w)`` unnormalised log attention; its softmax over all pixels is the attention map.
        cams: ``(B, C, h, w)`` class activation maps at the backbone's stride.
    """

    logits: Tensor | None = None
    saliency_logits: Tensor | None = None
    cams: Tensor | None = None

    def saliency(self) -> Tensor | None:
        """Predicted attention ``(B, h, w)``, each map non-negative and summing to 1, in float32."""
        if self.saliency_logits is None:
            return None
        flat = self.saliency_logits.float().flatten(1)
        return torch.softmax(flat, dim=1).view(self.saliency_logits.shape)

    def log_saliency(self) -> Tensor | None:
        """Logarithm of :meth:`saliency`, computed without leaving log space."""
        if self.saliency_logits is None:
            return None
        flat = self.saliency_logits.float().flatten(1)
        return torch.log_softmax(flat, dim=1).view(self.saliency_logits.shape)
