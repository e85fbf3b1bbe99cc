"""Channels that several layers share, and networks with fewer of them.

A convolution's kernels cannot be removed alone: the normalisation after it, every layer that reads its channels and
every other layer that adds to them change too. Such channels form a *group*; in a ResNet the channels that all blocks
of a stage add to are one. Torch-Pruning's dependency graph (Fang et al., *DepGraph*, CVPR 2023) finds the groups of any
network by tracing it; this module says which layers write and read them, removes channels, and merges them.

A network with other widths than its class would give it is a plain config too: ``{"widths": {GROUP: n, ...}}``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from radgaze.errors import InputError, nearest
from radgaze.models.gaze_cam import CAMHead
from radgaze.models.network import Network, evaluating
from radgaze.models.projection import use_projections

__all__ = ["ChannelGraph", "ChannelGroup", "Reader", "set_widths"]

EXAMPLE_SIDE = 64  # pixels; any image that the network takes shows its layers
Convolution = nn.Conv2d | nn.ConvTranspose2d


@dataclass(frozen=True)
class Reader:
    """A layer that computes from a group's channels.

    Attributes:
        layer: Its name.
        inputs: (n,) int64, which of its input channels are the group's.
        channels: (n,) int64, which channel of the group each of them is.
    """

    layer: str
    inputs: NDArray[np.int64]
    channels: NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, in all layers at once.

    Attributes:
        name: The first layer, in the network's order, that writes them.
        size: Number of channels.
        writers: Layers whose outputs they are.
        readers: Layers whose inputs they are.
    """

    name: str
    size: int
    writers: tuple[str, ...]
    readers: tuple[Reader, ...]


class ChannelGraph:
    """The channel groups of a network, which :meth:`keep` makes smaller, in place.

    Groups that reach the network's output (its classes), or that grouped convolutions tie in another way, are no
    groups here: their sizes are not free.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        images = torch.rand(1, 1, EXAMPLE_SIDE, EXAMPLE_SIDE, device=next(network.parameters()).device)
        self.names = {module: name for name, module in network.named_modules()}
        with evaluating(network), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # of parameters outside layers: their last axis is their channels
            self.graph = tp.DependencyGraph().build_dependency(
                network,
                images,
                output_transform=lambda output: [part for part in output if part is not None],
                customized_pruners={CAMHead: CAMHeadPruner()},
                verbose=False,
            )
            roots = [group[0].dep.target.module for group in self.graph.get_all_groups(root_module_types=ROOTS)]
        groups = [group for root in roots if (group := self.describe(root)) is not None]
        order = list(self.names.values())
        self.root = {group.name: network.get_submodule(group.name) for group in groups}
        self.order = sorted(self.root, key=order.index)

    @property
    def groups(self) -> list[ChannelGroup]:
        """All groups as they are now, in the network's order."""
        return [self[name] for name in self.order]

    def __getitem__(self, name: str) -> ChannelGroup:
        if name not in self.root:
            raise InputError(f"No channel group is named {name!r}: {nearest(name, self.order)}")
        group = self.describe(self.root[name])
        assert group is not None  # it had readers when the graph was made
        return group

    def describe(self, root: nn.Module) -> ChannelGroup | None:
        writers, readers = [], []
        for item in self.pruning(root, range(out_channels(root))).items:
            layer, handler = item.dep.target.module, item.dep.handler
            if layer not in self.names:  # an addition, a concatenation, a lone parameter
                continue
            if isinstance(layer, Convolution) and 1 < layer.groups < layer.in_channels:
                return None
            writes, reads = self.graph.is_out_channel_pruning_fn(handler), self.graph.is_in_channel_pruning_fn(handler)
            if writes and isinstance(layer, ROOTS):
                writers.append(self.names[layer])
            elif reads and not writes:
                readers.append(Reader(self.names[layer], np.array(item.idxs), np.array(item.root_idxs)))
        if not readers:
            return None
        order = list(self.names.values())
        return ChannelGroup(min(writers, key=order.index), out_channels(root), tuple(writers), tuple(readers))

    def pruning(self, root: nn.Module, channels: Sequence[int]) -> Any:
        function = self.graph.get_pruner_of_module(root).prune_out_channels
        return self.graph.get_pruning_group(root, function, list(channels))

    @torch.no_grad()
    def keep(
        self,
        name: str,
        kept: NDArray[np.int64],
        stands_for: NDArray[np.int64] | None = None,
        gain: NDArray[np.float64] | None = None,
    ) -> None:
        """Remove all channels of a group but ``kept``.

        Args:
            name: The group.
            kept: Channels that stay, at least one.
            stands_for: (size,) for each removed channel the kept one that takes its place: the readers' weights of
                the removed one are added to those of the kept one. -1, or None for all: it goes without replacement.
            gain: (size,) by how much stronger each channel is than the one that stands for it, 1 by default.

        If the removed channels equal ``gain`` times those that stand for them at every reader, no output changes.
        """
        group = self[name]
        kept = np.unique(kept)
        if len(kept) == 0 or kept[0] < 0 or kept[-1] >= group.size:
            raise InputError(
                f"Group {name!r} cannot keep channels {kept.tolist()}: give one or more of 0 to {group.size - 1}."
            )
        removed = np.setdiff1d(np.arange(group.size), kept)
        if len(removed) == 0:
            return
        if stands_for is not None:
            gain = np.ones(group.size) if gain is None else gain
            for reader in group.readers:
                merge_inputs(self.network.get_submodule(reader.layer), reader, removed, stands_for, gain)
        self.pruning(self.root[name], removed.tolist()).prune()


ROOTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def set_widths(network: Network, widths: Mapping[str, int]) -> None:
    """Give groups of a fresh network fewer channels, in place; which ones are kept means nothing yet.

    Raises:
        InputError: An unknown group, or more channels than it has.
    """
    graph = ChannelGraph(network)
    for name, width in widths.items():
        size = graph[name].size
        if not 1 <= width <= size:
            raise InputError(f"Group {name!r} cannot have {width} channels: give 1 to {size}.")
        graph.keep(name, np.arange(width))
    use_projections(network)


class CAMHeadPruner(tp.BasePruningFunc):
    """Channels of the CAM head, which averages over them: the others keep their share of the average."""

    def prune_in_channels(self, layer: CAMHead, idxs: Sequence[int]) -> CAMHead:
        kept = np.setdiff1d(np.arange(layer.weight.shape[1]), idxs)
        weight = layer.weight.data[:, kept] * (len(kept) / layer.weight.shape[1])
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        return layer

    def prune_out_channels(self, layer: CAMHead, idxs: Sequence[int]) -> CAMHead:
        raise InputError("The classes of a network cannot be removed: leave its CAM head's outputs as they are.")

    def get_in_channels(self, layer: CAMHead) -> int:
        return layer.weight.shape[1]

    def get_out_channels(self, layer: CAMHead) -> int:
        return layer.weight.shape[0]


def out_channels(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


def merge_inputs(
    layer: nn.Module,
    reader: Reader,
    removed: NDArray[np.int64],
    stands_for: NDArray[np.int64],
    gain: NDArray[np.float64],
) -> None:
    weight: Tensor = layer.weight.data  # type: ignore[assignment]
    axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    inputs_of = [reader.inputs[reader.channels == channel] for channel in range(len(stands_for))]
    for channel in removed:
        if stands_for[channel] >= 0:
            source = torch.from_numpy(inputs_of[channel]).to(weight.device)
            target = torch.from_numpy(inputs_of[stands_for[channel]]).to(weight.device)
            weight.index_add_(axis, target, weight.index_select(axis, source), alpha=float(gain[channel]))
