"""What a network costs to run."""

from __future__ import annotations

import copy

import torch

from radgaze.models.network import Network

__all__ = ["macs"]


def macs(network: Network, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one forward pass over one image.

    Those of convolutions and matrix products; what is done once for each value (normalisation, activation, pooling)
    is left out, as is usual.

    Args:
        network: Stays as it is.
        size: The image's (height, width) in pixels.

    Returns:
        A count; floating-point operations are twice as many.

    Raises:
        InputError: The network cannot take images of that size.
    """
    from torch.utils.flop_counter import FlopCounterMode  # heavy: only those who count pay for it

    counted = copy.deepcopy(network).eval()  # batch statistics and modes stay the network's own
    image = torch.zeros(1, 1, *size, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted(image)
    return counter.get_total_flops() // 2
