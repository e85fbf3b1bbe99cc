"""Smaller structures: what they leave of a network, and that plain configs rebuild them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radgaze.models import GazeCAM, Network, build, load_weights, parameters, save_weights
from radgaze.models.channels import ChannelGraph
from radgaze.simplification.engine import merged
from radgaze.simplification.guides import KRM, Uniform
from radgaze.simplification.structure import Kept, Structure, apply, as_narrow, is_narrow, removable_blocks
from tests.models.test_channels import MOBILE, duplicates
from tests.simplification.networks import BASIC, BOTTLENECKS, MT_UNET, calibrated, images, make, narrow, outputs

ALL = pytest.mark.parametrize("config", [BOTTLENECKS, BASIC, MT_UNET, MOBILE], ids=["50", "18", "unet", "efficient"])


def halves(network: Network) -> Structure:
    return Uniform(network).structure(0.5)


def assert_rebuilt(network: Network, folder: Path) -> None:
    """From its config and its safetensors, to the bit."""
    save_weights(network, folder / "weights.safetensors")
    twin = load_weights(build(network.config), folder / "weights.safetensors").eval()
    assert twin.config == network.config
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs(network), outputs(twin), strict=True))


def assert_same(ours: Network, theirs: Network) -> None:
    """All outputs to 1e-5, of their range where that is more than 1: so far rounding alone takes them."""
    for found, expected in zip(outputs(ours), outputs(theirs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


class TestApply:
    @ALL
    def test_a_plain_config_rebuilds_it(self, config: dict[str, Any], tmp_path: Path) -> None:
        network = make(config)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        smaller = apply(network, halves(network))
        assert parameters(smaller) < 0.6 * parameters(network)
        assert_rebuilt(smaller, tmp_path)
        assert ("widths" in smaller.config) == (not is_narrow(network))
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert network.config == {**build(config).config, "options": network.config.get("options")} or not is_narrow(
            network
        )

    @ALL
    def test_again_and_again(self, config: dict[str, Any], tmp_path: Path) -> None:
        """Down to single channels, where a depthwise convolution is like any other."""
        network = make(config)
        for _ in range(3):
            network = apply(network, Uniform(network).structure(0.1))
            assert_rebuilt(network, tmp_path)
        assert {group.size for group in ChannelGraph(network).groups} == {1}
        assert all(part.isfinite().all() for part in outputs(network))

    def test_mode_is_kept(self) -> None:
        network = make(BASIC).train()
        assert apply(network, halves(network)).training
        assert network.training

    def test_groups_that_are_not_named_stay(self) -> None:
        network = make(MT_UNET)
        smaller = apply(network, Structure({"body.encoder.4.0": Kept(np.array([3, 30]))}))
        assert smaller.config["widths"] == {"body.encoder.4.0": 2}
        before, after = ({group.name: group.size for group in ChannelGraph(n).groups} for n in (network, smaller))
        assert {name for name in before if before[name] != after[name]} == {"body.encoder.4.0"}


class TestBlocks:
    def test_which_can_go(self) -> None:
        assert list(removable_blocks(make(BOTTLENECKS))) == [f"backbone.layer{n}" for n in ("1.1", "2.1", "2.2")]
        assert list(removable_blocks(make(BASIC))) == [f"backbone.layer{n}" for n in ("1.0", "1.1", "2.1")]
        assert removable_blocks(make(MT_UNET)) == {}

    @pytest.mark.parametrize("dropped", [("1.1",), ("2.1",), ("2.2", "1.1"), ("2.1", "2.2")])
    def test_branches_that_are_nothing_go_without_a_trace(self, dropped: tuple[str, ...], tmp_path: Path) -> None:
        network = make(BOTTLENECKS)
        names = tuple(f"backbone.layer{block}" for block in dropped)
        before = outputs(network)
        with_them = apply(network, Structure({}, names))
        changed = max((a - b).abs().max() for a, b in zip(before, outputs(with_them), strict=True))
        assert changed > 1e-4  # branches that are something leave one
        with torch.no_grad():
            for name in names:
                norm = network.get_submodule(name).norms[-1]
                norm.weight.zero_()
                norm.bias.zero_()
        smaller = apply(network, Structure({}, names))
        for ours, theirs in zip(outputs(smaller), outputs(network), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        blocks = sum(len(stage["blocks"]) for stage in smaller.config["options"]["stages"])
        assert blocks == 5 - len(names)
        assert_rebuilt(smaller, tmp_path)

    def test_the_first_of_a_stage_without_projection(self, tmp_path: Path) -> None:
        network = make(BASIC)
        smaller = apply(network, Structure({"backbone.conv1": Kept(np.array([0, 2]))}, ("backbone.layer1.0",)))
        assert smaller.config["options"]["stages"][0] == {"width": 2, "blocks": [[5]], "projection": False}
        assert_rebuilt(smaller, tmp_path)

    @pytest.mark.parametrize("inner", [[3], [3, 3]])
    def test_dilated_stages(self, inner: list[int], tmp_path: Path) -> None:
        """The first block of a stage that dilates reads with the dilation of the stage before: none can replace it."""
        stage = {"width": 4, "blocks": [inner, inner, inner]}
        network = make(narrow([stage, stage, stage, {**stage, "projection": False}], output_stride=16))
        removable = tuple(removable_blocks(network))
        assert "backbone.layer4.0" not in removable
        assert {"backbone.layer4.1", "backbone.layer4.2", "backbone.layer3.1"} < set(removable)
        assert_rebuilt(apply(network, Structure({}, removable)), tmp_path)


class TestAsNarrow:
    @pytest.mark.parametrize("name", ["resnet18", "resnet26"])
    def test_timms_resnet_becomes_a_narrow_one(self, name: str) -> None:
        config = {"name": "gaze-cam", "backbone": name, "num_classes": 3}
        network = make({**config, "options": {"channels": [2, 3, 4, 5], "output_stride": 16}})
        assert not is_narrow(network)
        narrowed = as_narrow(network)
        assert is_narrow(narrowed)
        assert parameters(narrowed) == parameters(network)
        assert all(torch.equal(a, b) for a, b in zip(outputs(network), outputs(narrowed), strict=True))
        assert not narrowed.training
        assert as_narrow(network.train()).training
        assert as_narrow(narrowed) is narrowed

    @pytest.mark.parametrize("config", [MT_UNET, MOBILE])
    def test_others_stay_as_they_are(self, config: dict[str, Any]) -> None:
        network = build(config)
        assert as_narrow(network) is network
        assert not is_narrow(network)

    def test_a_resnet_with_widths_of_its_own_stays_too(self) -> None:
        network = build(
            {
                "name": "gaze-cam",
                "backbone": "resnet18",
                "num_classes": 2,
                "options": {"channels": [2, 3, 4, 5]},
                "widths": {"backbone.conv1": 3},
            }
        )
        assert as_narrow(network) is network


class TestMerged:
    @ALL
    def test_true_duplicates_are_found_and_go_without_a_trace(self, config: dict[str, Any]) -> None:
        """What the issue asks for, from measuring to the smaller network, on images that were not measured."""
        network = make(config)
        made = duplicates(network)
        calibrated(network)
        structure = KRM(network, images(3, 128, 96)).structure(1e-4)
        smaller = merged(network, structure, images(3, 128, 96))
        assert parameters(smaller) < parameters(network)
        for name, kept in structure.kept.items():
            assert -1 not in (kept.stands_for if kept.stands_for is not None else [-1]), "a dead kernel"
            expected, _ = made[name]
            assert len(kept.channels) == len(expected)
        assert_same(smaller, network)

    def test_stronger_ones_too(self) -> None:
        network = make(BOTTLENECKS)
        duplicates(network, gain=2.0)
        calibrated(network)
        structure = KRM(network, images()).structure(1e-4)
        smaller = merged(network, structure, images())
        assert sum(len(kept.channels) for kept in structure.kept.values()) < sum(
            group.size for group in ChannelGraph(network).groups
        )
        assert_same(smaller, network)

    def test_cam_head_stays(self) -> None:
        network = make(BOTTLENECKS)
        smaller = apply(network, halves(network))
        assert isinstance(smaller, GazeCAM)
        output = smaller(images())
        torch.testing.assert_close(output.logits, output.cams.mean((2, 3)) + smaller.head.bias)
        features = smaller.backbone(images())
        expected = torch.einsum("bkhw,ck->bchw", features, smaller.head.weight) / features.shape[1]
        torch.testing.assert_close(output.cams, expected)
