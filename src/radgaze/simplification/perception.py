"""What the channels of a network show, group by group, and how much each residual block changes it.

METHODS of the kernel redundancy measure (:mod:`radgaze.redundancy`), applied to channels that can only be removed
together: a group's channels are perceived where they are read, at the input of every layer that computes from them, so
"as the next layer sees it" in the word's own sense. For a convolution inside a residual block that is what
:func:`radgaze.redundancy.measure` takes too; for the channels that all blocks of a stage add to it is their sum after
each block, which no single convolution's output is. A group's difference is the mean over these places and over the
probe images.

A residual block is perceived as its input if the channels that leave it look like those that came in:

    change = mean over channels c and probe images x of d(in_c(x), out_c(x))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.models import Network
from radgaze.models.channels import ChannelGroup
from radgaze.models.network import evaluating
from radgaze.redundancy.difference import Difference, find_difference, perceived
from radgaze.redundancy.krm import MeanDifference, check_images, check_weights
from radgaze.simplification.structure import removable_blocks

__all__ = ["GroupRedundancy", "block_changes", "fit_gains", "group_redundancy"]

AT_ONCE = 16  # channels of a block compared in one call, of whose pairs only those of one channel are wanted


@dataclass(frozen=True)
class GroupRedundancy:
    """How differently a group's channels are perceived.

    Attributes:
        name: The group.
        difference: (K, K) float32 mean perceived difference.
        dead: (K,) bool, constant at every reader on every probe image.
        places: How many inputs of layers showed the group's channels.
    """

    name: str
    difference: NDArray[np.float32]
    dead: NDArray[np.bool_]
    places: int


def group_redundancy(
    network: Network, groups: list[ChannelGroup], images: Tensor, difference: str | Difference = "mssim"
) -> dict[str, GroupRedundancy]:
    """Perceived differences among the channels of each group that shows images.

    Groups that are read as single pixels or vectors alone (squeeze-and-excitation, hidden units of a class head) show
    none and are left out.

    Args:
        network: In the precision to be measured; its mode and hooks are as before afterwards.
        groups: From :attr:`ChannelGraph.groups`.
        images: (N, 1, H, W) probe images in [0, 1], N >= 2.
        difference: As for :func:`radgaze.redundancy.measure`.

    Raises:
        InputError: Constant, NaN or fewer than two images; NaN weights or outputs; no group that shows images.
    """
    check_weights(network)
    check_images(images)
    compare = find_difference(difference)
    sums = {group.name: MeanDifference(compare) for group in groups}
    places = dict.fromkeys(sums, 0)
    for number, image in enumerate(images):

        def take(group: ChannelGroup, maps: Tensor, image: int = number) -> None:
            if min(maps.shape[2:]) > 1:
                sums[group.name].add(maps, group.name, image)
                places[group.name] += 1

        with reading(network, groups, take):
            look(network, image)
    if not any(places.values()):
        raise InputError(
            f"{type(network).__name__} has no convolution whose kernels could be removed and show more than a pixel; "
            "give a convolutional network and images large enough for it."
        )
    return {
        name: GroupRedundancy(name, total.mean, total.dead.cpu().numpy(), places[name] // len(images))
        for name, total in sums.items()
        if places[name]
    }


def fit_gains(
    network: Network, groups: list[ChannelGroup], images: Tensor, stands_for: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]]:
    """By how much stronger each channel is than the one that stands for it: least squares over the probe images.

        g_j = sum a_i a_j / sum a_i^2,     a_j the channel, a_i its stand-in, over all places where they are read

    Exactly 1 for true duplicates, and exact for those that differ by a positive factor. 1 where nothing stands in.
    """
    wanted = [group for group in groups if group.name in stands_for]
    products = {group.name: np.zeros((2, group.size)) for group in wanted}

    def take(group: ChannelGroup, maps: Tensor) -> None:
        flat = maps[0].double().flatten(1)
        stand_in = flat[torch.from_numpy(stands_for[group.name].clip(min=0)).to(flat.device)]
        products[group.name] += torch.stack([(flat * stand_in).sum(1), stand_in.square().sum(1)]).cpu().numpy()

    for image in images:
        with reading(network, wanted, take):
            look(network, image)
    gains = {}
    for name, (both, own) in products.items():
        usable = (own > 0) & (stands_for[name] >= 0)
        gains[name] = np.where(usable, both / np.where(usable, own, 1.0), 1.0)
    return gains


def block_changes(network: Network, images: Tensor, difference: str | Difference = "mssim") -> dict[str, float]:
    """How much each removable residual block changes what is perceived: 0 nothing, 1 everything.

    Args:
        network, images, difference: As for :func:`group_redundancy`.
    """
    compare = find_difference(difference)
    blocks = removable_blocks(network)
    changes: dict[str, list[float]] = {name: [] for name in blocks}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        # the block adds to its input out of place, so the input is still what it was
        return lambda block, inputs, output: changes[name].append(channel_change(inputs[0][0], output[0], compare))

    hooks = [block.register_forward_hook(hook(name)) for name, block in blocks.items()]
    try:
        for image in images:
            look(network, image)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: float(np.mean(values)) for name, values in changes.items()}


def channel_change(before: Tensor, after: Tensor, compare: Difference) -> float:
    """Mean difference between each channel of ``before`` and the same of ``after``, both (K, h, w)."""
    total = 0.0
    for start in range(0, len(before), AT_ONCE):
        pair = torch.cat([before[start : start + AT_ONCE], after[start : start + AT_ONCE]])
        half = len(pair) // 2
        total += float(compare(perceived(pair))[:half, half:].diagonal().sum())
    return total / len(before)


@torch.no_grad()
def look(network: Network, image: Tensor) -> None:
    """One forward pass over an image (1, H, W), for the hooks that see it."""
    with evaluating(network):
        network(image[None].to(next(network.parameters()).device))


@contextmanager
def reading(
    network: nn.Module, groups: list[ChannelGroup], take: Callable[[ChannelGroup, Tensor], None]
) -> Iterator[None]:
    """While the block runs, ``take(group, (1, K, h, w))`` is called for every input that shows a group's channels.

    A tensor that several layers read, such as the input of a block and of its projection, is taken once.
    """
    by_reader: dict[str, list[tuple[ChannelGroup, Tensor]]] = {}
    for group in groups:
        for reader in group.readers:
            first = np.array([reader.inputs[reader.channels == channel][0] for channel in range(group.size)])
            by_reader.setdefault(reader.layer, []).append((group, torch.from_numpy(first)))
    seen: dict[str, list[Tensor]] = {group.name: [] for group in groups}

    def hook(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps = inputs[0]
            if maps.ndim != 4:
                return
            for group, channels in by_reader[layer]:
                if any(maps is other for other in seen[group.name]):
                    continue
                seen[group.name] = [*seen[group.name][-1:], maps]  # readers of one tensor follow each other closely
                take(group, maps[:, channels.to(maps.device)])

        return see

    hooks = [network.get_submodule(layer).register_forward_pre_hook(hook(layer)) for layer in by_reader]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
