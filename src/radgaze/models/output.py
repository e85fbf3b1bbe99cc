"""What every radgaze network returns, so that one trainer, evaluator, exporter and viewer serve them all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Output", "decision_map"]


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


def decision_map(cams: Tensor, exclusive: bool = True) -> Tensor:
    """Where a network decides: by how much its classes' activation maps differ at each cell.

        D(i, j) = sqrt(mean_c (M_c - mean_c M_c)^2)        labels that do not exclude each other: sqrt(mean_c M_c^2)

    This project's own. Softmax is blind to what all classes share, and so is D, while each M_c alone may be moved by
    any map without changing a probability. It needs no label, and is never negative.

    Args:
        cams: ``(B, C, h, w)`` class activation maps.
        exclusive: Whether a study has one class (softmax), or several labels (a sigmoid each).

    Returns:
        ``(B, h, w)`` float32.
    """
    maps = cams.float()
    centred = maps - maps.mean(1, keepdim=True) if exclusive else maps
    # a little under the root, whose slope at 0 is infinite: where the classes do not differ at all D is 1e-6
    return (centred.square().mean(1) + 1e-12).sqrt()
