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
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radgaze.errors import InputError, nearest
from radgaze.models.network import Network, as_input, check_multiple
from radgaze.models.output import Output
from radgaze.models.weights import load_encoder_weights

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
        self.backbone = timm_backbone(backbone, in_channels, weights, options)
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


def timm_backbone(
    name: str, in_channels: int, weights: str | Path | None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A timm network that ends in its last feature map, ``(B, K, h, w)`` if it is convolutional."""
    import timm  # heavy: only networks with a backbone of timm pay for it

    if not timm.is_model(name):
        raise InputError(f"There is no backbone {name!r}: {nearest(name, timm.list_models())}")
    from_hub, options = str(weights) == "hub", dict(options or {})
    ours: dict[str, Any] = {"pretrained": from_hub, "in_chans": in_channels, "num_classes": 0, "global_pool": ""}
    if taken := sorted(ours.keys() & options.keys()):
        raise InputError(f"The backbone option {taken[0]!r} is set by the network itself; leave it out of options.")
    try:
        backbone = timm.create_model(name, **ours, **options)
    except (AssertionError, TypeError, ValueError) as error:
        if options:
            raise InputError(
                f"Backbone {name!r} cannot be made with the options {options} ({error}); give arguments that timm's "
                f"{name} takes."
            ) from error
        raise InputError(no_map(name)) from error
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"The weights of backbone {name!r} could not be had from the hub ({error}); "
            "go online, choose a backbone with published weights, or pass a local safetensors file as weights."
        ) from error
    if weights is not None and not from_hub:
        load_encoder_weights(backbone, Path(weights))
    return backbone


def feature_map(backbone: nn.Module, name: str, in_channels: int) -> tuple[int, int]:
    """Channels ``K`` and stride of a backbone's last feature map, from shapes alone (nothing is computed).

    Raises:
        InputError: No map ``(B, K, h, w)`` with cells of one size at every image size: a transformer, or a network
            that takes one image size only.
    """
    tensors = chain(backbone.named_parameters(), backbone.named_buffers())
    shapes = {key: tensor.to("meta") for key, tensor in tensors}
    channels = {getattr(backbone, "num_features", None), getattr(backbone, "head_hidden_size", None)}
    strides = set()
    for side in (256, 512):
        images = torch.empty(2, in_channels, side, side, device="meta")
        try:
            with torch.no_grad():
                features = torch.func.functional_call(backbone, shapes, (images,))
        except (AssertionError, RuntimeError) as error:  # timm asserts the one size that a transformer takes
            raise InputError(no_map(name)) from error
        if features.ndim != 4 or features.shape[1] not in channels or side % features.shape[2]:
            raise InputError(no_map(name))
        strides.add(side // features.shape[2])
    if len(strides) != 1:
        raise InputError(no_map(name))
    return features.shape[1], strides.pop()


def no_map(name: str) -> str:
    return (
        f"Backbone {name!r} has no feature map of (batch, channels, height, width) that follows the image's size, "
        "so it has no class activation maps; use a convolutional network, e.g. resnet50 or efficientnetv2_s."
    )
