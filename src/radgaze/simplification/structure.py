"""A smaller structure for a network: which channels of which groups stay, and which residual blocks go."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from radgaze.models import GazeCAM, Network, build
from radgaze.models.channels import ChannelGraph
from radgaze.models.narrow_resnet import NarrowResNet, ResidualBlock, read_resnet

__all__ = ["Kept", "Structure", "apply", "as_narrow", "is_narrow", "removable_blocks"]


@dataclass(frozen=True)
class Kept:
    """What stays of one channel group.

    Attributes:
        channels: Channels that stay, at least one, ascending.
        stands_for: (K,) for each channel the kept one that takes its place, -1 for none; None: none for any.
    """

    channels: NDArray[np.int64]
    stands_for: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Structure:
    """What stays of a network.

    Attributes:
        kept: By group; groups that are not named stay as they are.
        dropped: Names of the residual blocks that go.
    """

    kept: Mapping[str, Kept]
    dropped: tuple[str, ...] = ()


def as_narrow(network: Network) -> Network:
    """The same network with its plain ResNet as a :class:`NarrowResNet`; any other network as it is."""
    if not isinstance(network, GazeCAM) or is_narrow(network) or network.config.get("widths"):
        return network
    options = read_resnet(network.backbone)
    if options is None:
        return network
    narrow = build({**network.config, "backbone": NarrowResNet.name, "options": options})
    narrow.load_state_dict(network.state_dict())
    return narrow.train(network.training)


def is_narrow(network: Network) -> bool:
    """Whether the network is a ResNet of any widths, which a plain config rebuilds."""
    return isinstance(network, GazeCAM) and isinstance(network.backbone, NarrowResNet)


def removable_blocks(network: nn.Module) -> dict[str, ResidualBlock]:
    """Residual blocks whose shortcut is their input itself, so that the network fits together without them."""
    blocks = {name: block for name, block in network.named_modules() if isinstance(block, ResidualBlock)}
    return {name: block for name, block in blocks.items() if block.is_removable}


def apply(network: Network, structure: Structure, gains: Mapping[str, NDArray[np.float64]] | None = None) -> Network:
    """A smaller copy of ``network`` with what it keeps of its weights; the copy's config rebuilds it.

    Args:
        network: Stays as it is.
        structure: What stays.
        gains: By group, see :meth:`ChannelGraph.keep`.
    """
    smaller = copy.deepcopy(network)
    graph = ChannelGraph(smaller)
    sizes = {group.name: group.size for group in graph.groups}
    for name, kept in structure.kept.items():
        graph.keep(name, kept.channels, kept.stands_for, None if gains is None else gains.get(name))
    drop_blocks(smaller, structure.dropped)
    if isinstance(backbone := getattr(smaller, "backbone", None), NarrowResNet):
        smaller.config = {**smaller.config, "options": backbone.options}
    else:
        # only what shrank: a depthwise convolution that is left with one channel looks like a group of its own
        widths = {name: graph[name].size for name in structure.kept if graph[name].size < sizes[name]}
        smaller.config = {**smaller.config, "widths": {**smaller.config.get("widths", {}), **widths}}
    return smaller


def drop_blocks(network: nn.Module, names: tuple[str, ...]) -> None:
    """Take residual blocks out of their stages, in place; those that follow move up."""
    blocks = removable_blocks(network)
    gone = {blocks[name] for name in names}
    for stage in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        kept = [block for block in stage if block not in gone]
        if len(kept) < len(stage):
            while len(stage):
                del stage[0]
            stage.extend(kept)
