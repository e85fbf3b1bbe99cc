"""Backbones: convolutional networks that end in their last feature map, ``(B, K, h, w)``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from radgaze.errors import InputError, nearest
from radgaze.models.narrow_resnet import NarrowResNet
from radgaze.models.projection import use_projections
from radgaze.models.weights import load_encoder_weights

__all__ = ["feature_map", "make_backbone"]

# Options by which timm would fetch or unpickle weights of its own; weights have one door, the setting of that name.
FETCHING = ("cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def make_backbone(
    name: str, in_channels: int, weights: str | Path | None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """``"narrow_resnet"``, whose widths and depths are its options, or a network of timm by name.

    Raises:
        InputError: Unknown name, options it does not take, weights that do not fit.
    """
    if name != NarrowResNet.name:
        return timm_backbone(name, in_channels, weights, options)
    if weights is not None:
        raise InputError(
            f"Backbone {name!r} has no published weights, so weights={str(weights)!r} cannot be loaded into it; "
            "start it from a run's weights (initial_weights) or from scratch."
        )
    return NarrowResNet(in_channels, **NarrowResNet.check(dict(options or {})))


def timm_backbone(
    name: str, in_channels: int, weights: str | Path | None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A timm network that ends in its last feature map, ``(B, K, h, w)`` if it is convolutional."""
    import timm  # heavy: only networks with a backbone of timm pay for it

    if not timm.is_model(name):
        raise InputError(f"There is no backbone {name!r}: {nearest(name, [*timm.list_models(), NarrowResNet.name])}")
    from_hub, options = str(weights) == "hub", dict(options or {})
    ours: dict[str, Any] = {"pretrained": from_hub, "in_chans": in_channels, "num_classes": 0, "global_pool": ""}
    if taken := sorted((ours.keys() | set(FETCHING)) & options.keys()):
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
    use_projections(backbone)
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
