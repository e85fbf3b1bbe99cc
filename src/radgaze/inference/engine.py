"""Engines: what runs a network. All take the same images and return the same :class:`~radgaze.models.Output`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from radgaze.models import Network, Output

__all__ = ["Engine", "TorchEngine"]


class Engine(Protocol):
    """Runs a network over images."""

    name: str

    def __call__(self, images: Tensor) -> Output:
        """Images ``(B, 1, h, w)`` float32 in [0, 1] on the CPU to the network's output, float32 on the CPU."""


class TorchEngine:
    """PyTorch itself, on the CPU or a GPU.

    Args:
        network: Any radgaze network.
        device: Where it runs.
        precision: ``"fp32"`` or ``"bf16"``.
    """

    name = "torch"

    def __init__(self, network: Network, device: torch.device | None = None, precision: str = "fp32") -> None:
        self.device, self.precision = device or torch.device("cpu"), precision
        self.network = network.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.network(images)
        return Output(*(None if part is None else part.float().cpu() for part in output))
