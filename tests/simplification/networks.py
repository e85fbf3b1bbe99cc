"""Small networks with weights as after a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from radgaze.models import Network, build


def narrow(stages: list[dict[str, Any]], stem: int = 4, **others: Any) -> dict[str, Any]:
    """Config of a classifier on a ResNet of these stages."""
    options = {"stem": stem, "stages": stages, **others}
    return {"name": "gaze-cam", "backbone": "narrow_resnet", "num_classes": 3, "in_channels": 1, "options": options}


BOTTLENECKS = narrow(
    [
        {"width": 6, "blocks": [[4, 3], [3, 4]]},
        {"width": 8, "blocks": [[4, 5], [3, 3], [5, 4]]},
    ],
    stem=5,
    output_stride=8,
)
BASIC = narrow([{"width": 4, "blocks": [[6], [5]], "projection": False}, {"width": 6, "blocks": [[5], [3]]}])
MT_UNET: dict[str, Any] = {"name": "mt-unet", "num_classes": 3, "in_channels": 1, "width": 2}


def make(config: dict[str, Any], seed: int = 0) -> Network:
    """The network of a config with gains and offsets drawn anew and batch statistics to match: all channels live."""
    torch.manual_seed(seed)
    network = build(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
        elif isinstance(module, nn.Conv2d):  # responses of order 1: a norm that divides by less magnifies rounding
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    return calibrated(network)


def calibrated(network: Network) -> Network:
    """With batch statistics that match the weights, as after a training."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images(4))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def images(number: int = 3, height: int = 64, width: int = 96) -> Tensor:
    """Shades of several scales: in noise of single pixels all deep channels would be nearly constant."""
    generator = torch.Generator().manual_seed(5)
    seen = torch.zeros(number, 1, height, width)
    for cells in (2, 6, 20, 60):
        coarse = torch.rand(number, 1, cells, cells, generator=generator)
        seen += nn.functional.interpolate(coarse, (height, width), mode="bilinear") / 4
    return seen


def outputs(network: Network, seen: Tensor | None = None) -> list[Tensor]:
    with torch.no_grad():
        return [part for part in network(images() if seen is None else seen) if part is not None]
