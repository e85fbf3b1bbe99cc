"""What decides which kernels a smaller network keeps. Each guide has one dial, turned until the size is right.

krm      the distinct kernels of each group at threshold τ, and no block that is perceived as its input
uniform  the same share of every group, the first ones: the usual way to a narrower network
random   kernels drawn at random
l1       kernels of small weights go (Li et al. 2017), over all layers of a group
fpgm     kernels near the geometric median of their layer go (He et al. 2019)
taylor   kernels whose loss would change least go, to first order (Molchanov et al. 2019)

The last three are Torch-Pruning's measures of importance, of a whole group and divided by their mean in it. They are
ranked within each group, of which the same share stays, or over all groups, which it calls global pruning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor

from radgaze.models import Network
from radgaze.models.channels import ChannelGraph
from radgaze.redundancy.cover import distinct_kernels
from radgaze.redundancy.difference import Difference
from radgaze.simplification.perception import block_changes, group_redundancy
from radgaze.simplification.structure import Kept, Structure

__all__ = ["GUIDES", "KRM", "RANKINGS", "Guide", "Ranking", "Uniform", "importance"]

GUIDES = ("krm", "uniform", "random", "l1", "fpgm", "taylor")
RANKINGS = ("group", "all")


class Guide(ABC):
    """Structures for one network, from the largest to the smallest.

    Attributes:
        dial: What ``settings`` are, for the decision log.
        settings: Positions of the dial, the larger networks first.
        changes: How much each removable block changes what is perceived, if the guide asks.
    """

    dial: str
    settings: Sequence[float]
    changes: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def structure(self, setting: float) -> Structure:
        """What stays at one position of the dial."""

    def dead(self, group: str) -> int | None:
        """How many of a group's channels are dead, if the guide asks."""
        return None


class KRM(Guide):
    """Kernel redundancy: distinct kernels at τ stay and stand for the others.

    Args:
        network: What is made smaller.
        images: (N, 1, H, W) probe images in [0, 1].
        difference: As for :func:`radgaze.redundancy.measure`.
        block_tau: Blocks that change less than this go, but for the last one of a stage; 0 keeps all.
    """

    dial = "tau"
    settings = tuple(round(0.005 * step, 3) for step in range(2, 200))

    def __init__(
        self, network: Network, images: Tensor, difference: str | Difference = "mssim", block_tau: float = 0.0
    ) -> None:
        self.redundancy = group_redundancy(network, ChannelGraph(network).groups, images, difference)
        self.changes = block_changes(network, images, difference)
        self.dropped = self.unperceived(network, block_tau)

    def unperceived(self, network: Network, block_tau: float) -> tuple[str, ...]:
        """Blocks that change less than ``block_tau``, the least first; every stage keeps one block."""
        stages = {name.rpartition(".")[0] for name in self.changes}
        left = {stage: len(list(network.get_submodule(stage).children())) for stage in stages}
        gone = []
        for name, change in sorted(self.changes.items(), key=lambda item: item[1]):
            stage = name.rpartition(".")[0]
            if change < block_tau and left[stage] > 1:
                gone.append(name)
                left[stage] -= 1
        return tuple(gone)

    def dead(self, group: str) -> int | None:
        return int(self.redundancy[group].dead.sum())

    def structure(self, setting: float) -> Structure:
        kept = {}
        for name, group in self.redundancy.items():
            cover = distinct_kernels(group.difference, setting, group.dead)
            if len(cover):
                kept[name] = Kept(cover.kernels, cover.stands_for)
            else:  # a group of dead kernels alone: one of them keeps the network together
                kept[name] = Kept(np.zeros(1, np.int64))
        return Structure(kept, self.dropped)


class Uniform(Guide):
    """The same share of every group."""

    dial = "share"
    settings = tuple(round(1 - 0.001 * step, 3) for step in range(1, 1000))

    def __init__(self, network: Network) -> None:
        self.sizes = {group.name: group.size for group in ChannelGraph(network).groups}

    def structure(self, setting: float) -> Structure:
        return Structure({name: Kept(np.arange(max(1, round(setting * size)))) for name, size in self.sizes.items()})


class Ranking(Guide):
    """The most important channels; every group keeps its best one.

    Args:
        scores: By group, (K,) the more important the larger.
        ranking: "group" keeps the same share of each group, "all" the best over all groups.
    """

    dial = "share"
    settings = Uniform.settings

    def __init__(self, scores: dict[str, NDArray[np.float64]], ranking: str = "group") -> None:
        self.scores, self.ranking = scores, ranking
        self.sorted = np.sort(np.concatenate(list(scores.values())))[::-1]

    def structure(self, setting: float) -> Structure:
        least = self.sorted[max(1, round(setting * len(self.sorted))) - 1]
        kept = {}
        for name, scores in self.scores.items():
            count = round(setting * len(scores)) if self.ranking == "group" else int((scores >= least).sum())
            kept[name] = Kept(np.sort(np.argsort(-scores, kind="stable")[: max(1, count)]))
        return Structure(kept)


def importance(
    network: Network, kind: str, *, seed: int = 0, backward: Callable[[Network], None] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Importance of every channel of every group, by one of Torch-Pruning's measures.

    Args:
        network: Stays as it is.
        kind: "random", "l1", "fpgm" or "taylor".
        seed: Of the random measure.
        backward: For "taylor": leaves the loss's gradients in the network's parameters.
    """
    graph = ChannelGraph(network)
    if kind == "random":
        draw = np.random.default_rng(seed)
        return {group.name: draw.random(group.size) for group in graph.groups}
    measures = {
        "l1": tp.importance.GroupMagnitudeImportance(p=1),
        "fpgm": tp.importance.FPGMImportance(),
        "taylor": tp.importance.GroupTaylorImportance(),
    }
    if kind == "taylor":
        assert backward is not None
        network.zero_grad()
        backward(network)
        for parameter in network.parameters():  # a head that the loss does not see has none
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    try:
        scores = {}
        for group in graph.groups:
            root = graph.root[group.name]
            with torch.no_grad():
                score = measures[kind](graph.pruning(root, range(group.size))).double().cpu().numpy()
            scores[group.name] = np.nan_to_num(score)  # all zero, and so is their mean: equally unimportant
        return scores
    finally:
        network.zero_grad()
