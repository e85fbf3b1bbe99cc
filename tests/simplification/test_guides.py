"""What the guides keep, along the whole of their dials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from radgaze.models import Network, parameters
from radgaze.models.channels import ChannelGraph
from radgaze.redundancy import distinct_kernels
from radgaze.simplification.engine import search
from radgaze.simplification.guides import GUIDES, KRM, Guide, Ranking, Uniform, importance
from radgaze.simplification.structure import apply
from tests.models.test_channels import MOBILE, duplicates
from tests.simplification.networks import BASIC, BOTTLENECKS, MT_UNET, calibrated, images, make, narrow


def backward(network: Network) -> None:
    network(images()).logits.square().sum().backward()


def guide(kind: str, network: Network) -> Guide:
    if kind == "krm":
        return KRM(network, images(), block_tau=0.05)
    if kind == "uniform":
        return Uniform(network)
    return Ranking(importance(network, kind, seed=3, backward=backward))


def sizes(network: Network) -> dict[str, int]:
    return {group.name: group.size for group in ChannelGraph(network).groups}


class TestDials:
    @pytest.mark.parametrize("kind", GUIDES)
    @pytest.mark.parametrize("config", [BOTTLENECKS, MT_UNET], ids=["50", "unet"])
    def test_from_large_to_small(self, kind: str, config: dict[str, Any]) -> None:
        """Parameters fall along the dial, every group keeps a channel, what is kept is there."""
        network = make(config)
        found, whole = guide(kind, network), sizes(network)
        counts = []
        for setting in [*found.settings[:: len(found.settings) // 6], found.settings[-1]]:
            structure = found.structure(setting)
            for name, kept in structure.kept.items():
                assert 1 <= len(kept.channels) <= whole[name]
                assert (np.diff(kept.channels) > 0).all()
                assert 0 <= kept.channels[0] <= kept.channels[-1] < whole[name]
            counts.append(parameters(apply(network, structure)))
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < 0.5 * counts[0]

    @pytest.mark.parametrize("kind", ["krm", "uniform", "l1"])
    def test_any_aim_is_reached_and_not_by_more_than_needed(self, kind: str) -> None:
        network = make(BOTTLENECKS)
        found = guide(kind, network)
        smallest = parameters(apply(network, found.structure(found.settings[-1])))
        for aim in np.linspace(smallest, parameters(network), 3).astype(int).tolist():
            structure, smaller, setting = search(network, found, aim, None)
            assert parameters(smaller) <= aim
            assert found.structure(setting).kept.keys() == structure.kept.keys()
            position = found.settings.index(setting)
            if position:
                before = apply(network, found.structure(found.settings[position - 1]))
                assert parameters(before) > aim
        _, least, _ = search(network, found, 1, None)
        assert parameters(least) == smallest  # out of reach: the smallest there is

    @pytest.mark.parametrize("kind", GUIDES)
    def test_the_same_every_time(self, kind: str) -> None:
        network = make(BASIC)
        ours, theirs = (guide(kind, network).structure(0.5) for _ in range(2))
        assert ours.dropped == theirs.dropped
        assert all(np.array_equal(ours.kept[name].channels, theirs.kept[name].channels) for name in ours.kept)

    def test_a_fixed_setting(self) -> None:
        network = make(BOTTLENECKS)
        found = guide("krm", network)
        structure, smaller, setting = search(network, found, 1, 0.42)
        assert setting == 0.42
        assert parameters(smaller) == parameters(apply(network, found.structure(0.42)))
        assert structure.kept["backbone.conv1"].stands_for is not None


class TestKRM:
    def test_distinct_kernels_stay_and_stand_for_the_others(self) -> None:
        network = make(BOTTLENECKS)
        found = guide("krm", network)
        for name, kept in found.structure(0.5).kept.items():
            group = found.redundancy[name]
            cover = distinct_kernels(group.difference, 0.5, group.dead)
            assert kept.channels.tolist() == cover.kernels.tolist()
            assert kept.stands_for.tolist() == cover.stands_for.tolist()
            near = group.difference[np.arange(len(kept.stands_for)), kept.stands_for]
            assert (near <= 0.5).all()

    def test_duplicates_go_first(self) -> None:
        network = make(BOTTLENECKS)
        made = duplicates(network)
        structure = guide("krm", calibrated(network)).structure(0.01)
        for name, (kept, _) in made.items():
            assert len(structure.kept[name].channels) <= len(kept)

    def test_dead_kernels_go_and_nothing_stands_for_them(self) -> None:
        network = make(BOTTLENECKS)
        with torch.no_grad():
            network.get_submodule("backbone.layer1.0.conv1").weight[1] = 0
            network.get_submodule("backbone.layer1.1.conv1").weight.zero_()
        found = guide("krm", network)
        kept = found.structure(0.01).kept
        assert found.dead("backbone.layer1.0.conv1") == 1
        assert kept["backbone.layer1.0.conv1"].stands_for[1] == -1
        assert 1 not in kept["backbone.layer1.0.conv1"].channels
        assert found.dead("backbone.layer1.1.conv1") == 3  # all: one keeps the network together
        assert kept["backbone.layer1.1.conv1"].channels.tolist() == [0]
        assert kept["backbone.layer1.1.conv1"].stands_for is None

    def test_blocks_that_change_nothing_go_the_least_first(self) -> None:
        stage = {"width": 6, "blocks": [[4, 4]] * 4}
        network = make(narrow([stage, stage]))
        with torch.no_grad():
            for block, gain in (("1.1", 0.0), ("1.2", 1e-3), ("2.2", 0.0)):
                norm = network.get_submodule(f"backbone.layer{block}").norms[-1]
                norm.weight.mul_(gain)
                norm.bias.mul_(gain)
        found = KRM(network, images(), block_tau=0.01)
        assert found.dropped[:2] in {
            ("backbone.layer1.1", "backbone.layer2.2"),
            ("backbone.layer2.2", "backbone.layer1.1"),
        }
        assert found.dropped[2:] == ("backbone.layer1.2",)
        assert found.changes["backbone.layer1.3"] > 0.01
        assert KRM(network, images()).dropped == ()
        assert found.structure(0.3).dropped == found.dropped

    def test_every_stage_keeps_a_block(self) -> None:
        network = make(narrow([{"width": 4, "blocks": [[3], [3]], "projection": False}, {"width": 5, "blocks": [[2]]}]))
        with torch.no_grad():
            for block in ("1.0", "1.1"):
                norm = network.get_submodule(f"backbone.layer{block}").norms[-1]
                norm.weight.zero_()
                norm.bias.zero_()
        assert len(KRM(network, images(), block_tau=0.9).dropped) == 1


class TestUniform:
    def test_the_first_of_every_group(self) -> None:
        network = make(MT_UNET)
        structure = Uniform(network).structure(0.3)
        for name, size in sizes(network).items():
            assert structure.kept[name].channels.tolist() == list(range(max(1, round(0.3 * size))))


def l1_of_inner(network: Network, block: str) -> NDArray[np.float64]:
    """Torch-Pruning's measure for a 1x1 convolution read by a 3x3 one: mean over its layers, relative to its mean.

    The layers are the convolution's kernels, the gains after it, and the reader's kernels for each input.
    """
    conv, norm, reader = (
        network.get_submodule(f"{block}.{name}").weight.detach() for name in ("conv1", "bn1", "conv2")
    )
    parts = [conv.abs().flatten(1).sum(1), norm.abs(), reader.abs().transpose(0, 1).flatten(1).sum(1)]
    total = torch.stack(parts).mean(0).double().numpy()
    return total / total.mean()


class TestImportance:
    def test_l1_equals_its_formula(self) -> None:
        network = make(BOTTLENECKS)
        scores = importance(network, "l1")
        assert scores.keys() == sizes(network).keys()
        for block in ("backbone.layer1.1", "backbone.layer2.2"):
            np.testing.assert_allclose(scores[f"{block}.conv1"], l1_of_inner(network, block), rtol=1e-5)

    def test_taylor_is_that_of_weight_times_gradient(self) -> None:
        network = make(BOTTLENECKS)
        scores = importance(network, "taylor", backward=backward)["backbone.layer2.1.conv1"]
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.parameters())
        backward(network)
        parts = []
        for name in ("conv1", "conv2"):  # Torch-Pruning leaves out the normalisation's gains here
            weight = network.get_submodule(f"backbone.layer2.1.{name}").weight
            product = (weight * weight.grad).detach().abs()
            parts.append((product.transpose(0, 1) if name == "conv2" else product).flatten(1).sum(1))
        total = torch.stack(parts).mean(0).double().numpy()
        np.testing.assert_allclose(scores, total / total.mean(), rtol=1e-4)

    def test_random_follows_its_seed(self) -> None:
        network = make(BASIC)
        one, same, other = (importance(network, "random", seed=seed) for seed in (1, 1, 2))
        assert all(np.array_equal(one[name], same[name]) for name in one)
        assert not any(np.array_equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("kind", ["random", "l1", "fpgm", "taylor"])
    @pytest.mark.parametrize("config", [narrow([{"width": 1, "blocks": [[1, 2]]}], stem=1), MOBILE])
    def test_is_defined_for_single_and_for_silent_channels(self, kind: str, config: dict[str, Any]) -> None:
        network = make(config)
        with torch.no_grad():
            group = ChannelGraph(network).groups[1]
            for layer in (*group.writers, *(reader.layer for reader in group.readers)):
                network.get_submodule(layer).weight.zero_()
        scores = importance(network, kind, backward=backward)
        assert all(np.isfinite(values).all() for values in scores.values())
        assert {name: len(values) for name, values in scores.items()} == sizes(network)


class TestRanking:
    scores = {"a": np.array([0.9, 0.1, 0.5, 0.7]), "b": np.array([0.2, 0.3])}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("share", "a", "b"),
        [(0.999, [0, 1, 2, 3], [0, 1]), (0.5, [0, 2, 3], [1]), (0.7, [0, 2, 3], [1]), (0.001, [0], [1])],
    )
    def test_the_best_over_all_groups_and_the_best_of_each(self, share: float, a: list[int], b: list[int]) -> None:
        kept = Ranking(self.scores, "all").structure(share).kept
        assert kept["a"].channels.tolist() == a
        assert kept["b"].channels.tolist() == b
        assert kept["a"].stands_for is None

    @pytest.mark.parametrize(("share", "a", "b"), [(0.999, [0, 1, 2, 3], [0, 1]), (0.5, [0, 3], [1]), (0.1, [0], [1])])
    def test_the_same_share_of_each_group(self, share: float, a: list[int], b: list[int]) -> None:
        kept = Ranking(self.scores, "group").structure(share).kept
        assert (kept["a"].channels.tolist(), kept["b"].channels.tolist()) == (a, b)
