"""GG-CAM's network: any CNN classifier whose class activation maps are its head's output.

    M_c(i, j) = mean_k(W_ck · F_k(i, j)),      logit_c = mean_ij M_c(i, j) + b_c

Zhu, Salcudean, Rohling, *Gaze-Guided Class Activation Mapping*, arXiv 2202.07107 (2022). Averaging over positions and
weighing the channels commute, so this is the usual classifier (global average pooling, then a linear layer of weights
W / K); only the order differs, and with it the maps come out differentiable, with no hook and no second pass.

Deviations: the backbone is any convolutional network of timm by name. The papers' two are ``"resnet50"`` and
``"efficientnetv2_s"``, of the same size as torchvision's (``"tf_efficientnetv2_s"`` is the variant with published
ImageNet weights). W starts at unit variance: the usual start of a layer that sums, 1 / sqrt(K), would make the maps
of one that averages sqrt(K) times fainter, and Adam's first hundreds of steps would go into making up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.models.backbones import feature_map, make_backbone
from radgaze.models.network import Network, as_input, check_multiple
from radgaze.models.output import Output

__all__ = ["CAMHead", "GazeCAM"]

SMALLEST_GRID = 2  # cells a side: below that a map has no inside and outside


class CAMHead(nn.Module):
    """Feature maps ``(B, K, h, w)`` to class activation maps ``(B, C, h, w)`` and logits ``(B, C)``, in float32."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, features))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        # bf16 sums over thousands of channels and cells would lose the differences between classes
        with torch.autocast(features.device.type, enabled=False):
            cams = F.conv2d(features.float(), self.weight[:, :, None, None] / self.weight.shape[1])
            return cams, cams.mean((-2, -1)) + self.bias


class GazeCAM(Network):
    """A classifier with class activation maps as output; gaze guides them in training only.

    Args:
        backbone: Name of a convolutional network of timm.
        num_classes: Classes ``C``, at least 1.
        in_channels: Image channels: 1 for radiographs; 3 repeats grey images, for weights that want colour.
        options: Further arguments that timm makes the backbone with: ``{"output_stride": 16}`` for a finer grid,
            ``{"channels": (16, 32, 64, 128), "stem_width": 16}`` for a ResNet of a quarter of the width,
            ``{"channel_multiplier": 0.25}`` for such an EfficientNet.
        weights: ``"hub"`` downloads the backbone's ImageNet weights, a path loads a safetensors file, ``None`` starts
            from scratch. Not part of :attr:`config`: a rebuilt network gets its own trained weights.

    Raises:
        InputError: Unknown backbone, one without a spatial feature map, no class, weights that do not fit.
    """

    name = "gaze-cam"

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 3,
        in_channels: int = 1,
        options: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1:
            raise InputError(
                f"GazeCAM got num_classes={num_classes}, in_channels={in_channels}; expected both to be at least 1."
            )
        self.config = {
            "name": self.name,
            "backbone": backbone,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "options": dict(options or {}),
        }
        self.backbone = make_backbone(backbone, in_channels, weights, options)
        features, self.stride = feature_map(self.backbone, backbone, in_channels)
        self.head = CAMHead(features, num_classes)

    def attention_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The CAMs' grid for images of ``size`` (height, width): one cell for each stride.

        Raises:
            InputError: Sides that the stride does not divide, or fewer than 2x2 cells.
        """
        check_multiple(size, self.stride)
        height, width = size[0] // self.stride, size[1] // self.stride
        if min(height, width) < SMALLEST_GRID:
            least = SMALLEST_GRID * self.stride
            raise InputError(
                f"Images of {size[0]}x{size[1]} give a CAM of {height}x{width} cells with backbone "
                f"{self.config['backbone']!r} of stride {self.stride}; use images of at least {least}x{least}."
            )
        return height, width

    @property
    def explained_layer(self) -> nn.Module:
        """The backbone, which ends in the last feature map: there Grad-CAM is the positive part of :attr:`cams`."""
        return self.backbone

    def forward(self, images: Tensor) -> Output:
        """Images ``(B, in_channels or 1, H, W)`` in [0, 1] to logits and ``cams`` (B, C, H / s, W / s)."""
        images = as_input(images, self.config["in_channels"], self.stride)
        self.attention_size((images.shape[-2], images.shape[-1]))
        cams, logits = self.head(self.backbone(images))
        return Output(logits=logits, cams=cams)
