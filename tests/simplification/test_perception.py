"""What groups show and blocks change, against hooks, scikit-image and the measure of single layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.models import Network, Output, build
from radgaze.models.channels import ChannelGraph
from radgaze.redundancy import measure
from radgaze.simplification.perception import block_changes, fit_gains, group_redundancy
from tests.simplification.networks import BASIC, BOTTLENECKS, MT_UNET, images, make, narrow


def perceived(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.where(high > low, (maps - low) / np.where(high > low, high - low, 1), 0)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """1 - MSSIM of two perceived maps over windows that lie fully inside, by scikit-image."""
    _, values = structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return 1 - values[5:-5, 5:-5].mean()


def differences(maps: np.ndarray) -> np.ndarray:
    seen = perceived(maps.astype(np.float64))
    values = np.zeros((len(seen), len(seen)))
    for i in range(len(seen)):
        for j in range(i):
            values[i, j] = values[j, i] = difference(seen[i], seen[j])
    return values


def inputs_of(network: Network, layers: list[str], seen: Tensor) -> dict[str, list[np.ndarray]]:
    """What each layer reads, image by image."""
    read: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    hooks = []
    for layer in layers:

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], layer: str = layer) -> None:
            read[layer].append(inputs[0][0].numpy().copy())

        hooks.append(network.get_submodule(layer).register_forward_pre_hook(hook))
    with torch.no_grad():
        for image in seen:
            network(image[None])
    for handle in hooks:
        handle.remove()
    return read


def redundancy(network: Network, seen: Tensor, **settings: Any) -> dict[str, Any]:
    return group_redundancy(network, ChannelGraph(network).groups, seen, **settings)


class TestGroups:
    def test_equals_brute_force(self) -> None:
        """A stage's stream is seen after each of its blocks, and once where two layers read the same map."""
        network, seen = make(BOTTLENECKS), images(2, 128, 96)
        found = redundancy(network, seen)
        places = {
            "backbone.conv1": ["backbone.layer1.0.conv1"],  # after the pooling; the projection reads the same
            "backbone.layer1.0.conv2": ["backbone.layer1.0.conv3"],
            "backbone.layer1.0.conv3": ["backbone.layer1.1.conv1", "backbone.layer2.0.conv1"],
            "backbone.layer2.0.conv3": ["backbone.layer2.1.conv1", "backbone.layer2.2.conv1", "head"],
        }
        read = inputs_of(network, [layer for layers in places.values() for layer in layers], seen)
        for name, layers in places.items():
            expected = np.mean([differences(maps) for layer in layers for maps in read[layer]], axis=0)
            np.testing.assert_allclose(found[name].difference, expected, rtol=0, atol=2e-5)
            assert found[name].places == len(layers)
            assert not found[name].dead.any()
            assert expected[~np.eye(len(expected), dtype=bool)].min() > 0.01

    def test_channels_of_a_concatenation_are_told_apart(self) -> None:
        network, seen = make(MT_UNET), images(2, 64, 48)
        found = redundancy(network, seen)
        read = inputs_of(network, ["body.encoder.1.0", "body.decoder.3.0"], seen)
        skip, raised = read["body.decoder.3.0"], found["body.up.3.1"]
        expected = np.mean([differences(maps[2:]) for maps in skip], axis=0)
        np.testing.assert_allclose(raised.difference, expected, rtol=0, atol=2e-5)
        both = [*read["body.encoder.1.0"], *(maps[:2] for maps in skip)]
        expected = np.mean([differences(maps) for maps in both], axis=0)
        np.testing.assert_allclose(found["body.encoder.0.3"].difference, expected, rtol=0, atol=2e-5)
        assert found["body.encoder.0.3"].places == 2

    def test_is_the_layers_measure_where_one_convolution_is_read_once(self) -> None:
        network, seen = make(BOTTLENECKS), images()
        found = redundancy(network, seen)
        layers = ["backbone.layer1.0.conv1", "backbone.layer1.1.conv2", "backbone.layer2.2.conv1"]
        report = measure(network, seen, layers=layers, keep_difference=True)
        for name in layers:
            np.testing.assert_allclose(found[name].difference, report.layers[name].difference, rtol=0, atol=1e-6)
            assert found[name].dead.tolist() == report.layers[name].dead.tolist()

    def test_vectors_show_nothing_and_are_left_out(self) -> None:
        network = make(MT_UNET)
        found = redundancy(network, images())
        assert set(ChannelGraph(network).order) - set(found) == {"class_head.0"}
        gated = build({"name": "gaze-cam", "backbone": "mobilenetv3_small_050", "num_classes": 2}).eval()
        names = {group.name for group in ChannelGraph(gated).groups}
        assert names - set(redundancy(gated, images(2, 96, 96))) == {name for name in names if ".se." in name}

    def test_dead_channels(self) -> None:
        """Constant everywhere: no kernel, or one that a ReLU silences; a bias makes it no more alive."""
        network = make(BOTTLENECKS)
        norm = network.get_submodule("backbone.layer1.0.bn1")
        with torch.no_grad():
            network.get_submodule("backbone.layer1.0.conv1").weight[1] = 0
            norm.bias[2] = -100.0
        found = redundancy(network, images())
        assert found["backbone.layer1.0.conv1"].dead.tolist() == [False, True, True, False]
        assert not found["backbone.conv1"].dead.any()

    def test_a_stream_lives_if_one_block_writes_it(self) -> None:
        network = make(BASIC)
        with torch.no_grad():
            for name in ("backbone.bn1", "backbone.layer1.0.bn2"):
                norm = network.get_submodule(name)
                norm.weight[3], norm.bias[3] = 0.0, 0.0
        assert not redundancy(network, images())["backbone.conv1"].dead.any()
        with torch.no_grad():
            norm = network.get_submodule("backbone.layer1.1.bn2")
            norm.weight[3], norm.bias[3] = 0.0, 0.0
        assert redundancy(network, images())["backbone.conv1"].dead.tolist() == [False, False, False, True]

    def test_another_difference(self) -> None:
        network = make(BASIC)
        found = redundancy(network, images(), difference=lambda maps: torch.full((len(maps),) * 2, 0.25))
        assert all((group.difference == 0.25).all() for group in found.values())

    def test_network_is_left_as_it_was(self) -> None:
        network = make(BOTTLENECKS).train()
        network.head.eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        redundancy(network, images())
        block_changes(network, images())
        fit_gains(network, ChannelGraph(network).groups, images(), {"backbone.conv1": np.arange(5)})
        assert network.training
        assert network.backbone.bn1.training
        assert not network.head.training
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Flat(Network):
    name = "flat"

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, images: Tensor) -> Output:
        return Output(logits=self.layers(images))


class TestRefused:
    def refused(self, match: str, seen: Tensor | None = None, network: Network | None = None, **settings: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            redundancy(network or make(BASIC), images() if seen is None else seen, **settings)
        assert "\n" not in str(error.value)

    def test_no_convolution(self) -> None:
        self.refused("Flat has no convolution .* give a convolutional network", network=Flat())

    def test_images(self) -> None:
        self.refused("holds 1 image, expected at least 2", images(1))
        constant = images()
        constant[2] = 0.5
        self.refused("Image 2 is constant", constant)
        constant[2, 0, 0, 0] = math.nan
        self.refused("NaN or infinite pixel", constant)

    def test_weights(self) -> None:
        network = make(BASIC)
        with torch.no_grad():
            network.backbone.conv1.weight[0, 0, 0, 0] = math.nan
        self.refused(r"'backbone\.conv1\.weight' has NaN", network=network)

    def test_difference(self) -> None:
        self.refused("did you mean 'pearson'", difference="pearsn")


class TestGains:
    def test_exact_for_stronger_duplicates(self) -> None:
        network = make(BOTTLENECKS)
        conv, norm = (network.get_submodule(f"backbone.layer2.1.{name}") for name in ("conv2", "bn2"))
        with torch.no_grad():
            for kernel, gain in ((1, 3.0), (2, 0.25)):
                conv.weight[kernel] = conv.weight[0]
                norm.running_mean[kernel], norm.running_var[kernel] = norm.running_mean[0], norm.running_var[0]
                norm.weight[kernel], norm.bias[kernel] = gain * norm.weight[0], gain * norm.bias[0]
        stands_for = {"backbone.layer2.1.conv2": np.array([0, 0, 0])}
        gains = fit_gains(network, ChannelGraph(network).groups, images(), stands_for)
        assert list(gains) == ["backbone.layer2.1.conv2"]
        np.testing.assert_allclose(gains["backbone.layer2.1.conv2"], [1.0, 3.0, 0.25], rtol=1e-6)

    def test_least_squares_over_all_places_and_images(self) -> None:
        network, seen = make(BOTTLENECKS), images()
        name, stands_for = "backbone.layer1.0.conv3", np.array([2, 1, 2, 1, -1, 5])
        gains = fit_gains(network, ChannelGraph(network).groups, seen, {name: stands_for})[name]
        read = inputs_of(network, ["backbone.layer1.1.conv1", "backbone.layer2.0.conv1"], seen)
        channels = np.concatenate([maps.reshape(6, -1) for part in read.values() for maps in part], 1).astype(float)
        for channel, stand_in in ((0, 2), (3, 1)):
            expected = np.linalg.lstsq(channels[stand_in][:, None], channels[channel], rcond=None)[0][0]
            assert gains[channel] == pytest.approx(expected, rel=1e-5)
        assert gains[[1, 2, 4, 5]].tolist() == [1.0, 1.0, 1.0, 1.0]

    def test_a_silent_stand_in(self) -> None:
        network = make(BOTTLENECKS)
        with torch.no_grad():
            network.get_submodule("backbone.layer1.0.bn1").weight[0] = 0
            network.get_submodule("backbone.layer1.0.bn1").bias[0] = 0
        name = "backbone.layer1.0.conv1"
        gains = fit_gains(network, ChannelGraph(network).groups, images(), {name: np.zeros(4, np.int64)})
        assert gains[name].tolist() == [1.0] * 4


class TestBlocks:
    def test_fresh_branches_change_nothing(self) -> None:
        """Whatever comes out of a ReLU is its own ReLU."""
        network = build(BOTTLENECKS).eval()
        changes = block_changes(network, images())
        assert list(changes) == ["backbone.layer1.1", "backbone.layer2.1", "backbone.layer2.2"]
        assert max(changes.values()) < 1e-6

    def test_equals_brute_force(self) -> None:
        network, seen = make(BASIC), images(2, 128, 96)
        found = block_changes(network, seen)
        assert list(found) == ["backbone.layer1.0", "backbone.layer1.1", "backbone.layer2.1"]
        ins = inputs_of(network, ["backbone.layer1.0.conv1", "backbone.layer1.1.conv1"], seen)
        outs = inputs_of(network, ["backbone.layer1.1.conv1", "backbone.layer2.0.conv1"], seen)
        for number, name in enumerate(found):
            if name == "backbone.layer2.1":
                continue
            before, after = list(ins.values())[number], list(outs.values())[number]
            expected = np.mean(
                [
                    difference(x, y)
                    for i, o in zip(before, after, strict=True)
                    for x, y in zip(perceived(i.astype(float)), perceived(o.astype(float)), strict=True)
                ]
            )
            assert found[name] == pytest.approx(expected, abs=2e-5)
            assert expected > 0.01

    def test_many_channels_are_compared_one_by_one(self) -> None:
        """More channels than are taken at once; one of them changes."""
        network = build(narrow([{"width": 37, "blocks": [[2, 2], [2, 2]]}])).eval()
        with torch.no_grad():
            network.get_submodule("backbone.layer1.1.bn3").weight[35] = 50.0
        change = block_changes(network, images())["backbone.layer1.1"]
        with torch.no_grad():
            network.get_submodule("backbone.layer1.1.bn3").weight[3] = -50.0
        assert 0 < change < 1 / 30
        assert block_changes(network, images())["backbone.layer1.1"] > change

    def test_no_blocks(self) -> None:
        assert block_changes(make(MT_UNET), images()) == {}
