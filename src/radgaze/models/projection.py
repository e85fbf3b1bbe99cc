"""1x1 convolutions with a stride, as at the shortcuts of residual networks, kept away from a fault of oneDNN.

Its backward pass for them (seen in PyTorch 2.14, one thread, channels-last) writes beyond its buffers where channels
are fewer than a vector of its processor holds: from 7 to 11 of them ended the process.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Projection", "use_projections"]

VECTOR = 16  # float32 in 512 bits


class Projection(nn.Conv2d):
    """A 1x1 convolution with a stride; where channels are few, one without, of every stride-th pixel: the same sums."""

    def forward(self, maps: Tensor) -> Tensor:
        if min(self.in_channels, self.out_channels) >= VECTOR:
            return super().forward(maps)
        down, across = self.stride
        return F.conv2d(maps[..., ::down, ::across], self.weight, self.bias)


def use_projections(network: nn.Module) -> None:
    """Make every plain 1x1 convolution with a stride a :class:`Projection`, in place: names and weights stay."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.groups == 1:
            layer.__class__ = Projection
