"""Channel groups: who writes and reads them, what is left of a network without some, and exact merging."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.models import Network, Output, build, parameters
from radgaze.models.channels import ChannelGraph, ChannelGroup, set_widths

BOTTLENECKS: dict[str, Any] = {
    "name": "gaze-cam",
    "backbone": "narrow_resnet",
    "num_classes": 3,
    "options": {
        "stem": 5,
        "stages": [
            {"width": 7, "blocks": [[4, 3], [3, 4]]},
            {"width": 9, "blocks": [[4, 4], [3, 3], [2, 5]]},
            {"width": 6, "blocks": [[3, 3]]},
        ],
    },
}
BASIC: dict[str, Any] = {
    "name": "gaze-cam",
    "backbone": "narrow_resnet",
    "num_classes": 2,
    "options": {
        "stem": 6,
        "stages": [
            {"width": 6, "blocks": [[4], [5]], "projection": False},
            {"width": 8, "blocks": [[3], [4]]},
        ],
        "output_stride": 8,
    },
}
MT_UNET: dict[str, Any] = {"name": "mt-unet", "num_classes": 3, "width": 3}
MOBILE: dict[str, Any] = {
    "name": "gaze-cam",
    "backbone": "efficientnetv2_s",
    "num_classes": 2,
    "options": {"channel_multiplier": 0.1, "depth_multiplier": 0.1},
}
ALL = pytest.mark.parametrize("config", [BOTTLENECKS, BASIC, MT_UNET, MOBILE], ids=["50", "18", "unet", "efficient"])


class Forked(Network):
    """Channels read twice by one layer, by a transposed convolution, and cell by cell by a linear layer."""

    name = "forked"

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.conv = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.twice = nn.Sequential(nn.Conv2d(12, 4, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.linear = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Output:
        maps = self.conv(images)
        sharp, smooth = maps, nn.functional.avg_pool2d(maps, 3, stride=1, padding=1)
        decoded = self.twice(torch.cat([smooth, sharp], 1))
        logits = self.linear(self.pool(decoded).flatten(1))
        return Output(logits=logits, saliency_logits=self.up(maps).mean(1))


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, 64, 96, generator=torch.Generator().manual_seed(1))


def outputs(network: Network) -> list[Tensor]:
    with torch.no_grad():
        return [part for part in network(images()) if part is not None]


def trained(network: Network, seed: int = 0) -> Network:
    """All parameters and statistics drawn anew, so that nothing is zero or alike by its start."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.data.normal_(0, 0.3)
    return network.eval()


def norm_after(network: Network, layer: str) -> nn.BatchNorm2d | None:
    modules = dict(network.named_modules())
    names = list(modules)
    following = names[names.index(layer) + 1] if layer != names[-1] else layer
    norm = modules[following]
    return norm if isinstance(norm, nn.BatchNorm2d) else None


@torch.no_grad()
def make_duplicate(network: Network, writers: tuple[str, ...], kernel: int, of: int, gain: float = 1.0) -> None:
    """Every writer's kernel becomes another one, times ``gain`` after the normalisation; readers stay as they are."""
    for name in writers:
        layer, norm = network.get_submodule(name), norm_after(network, name)
        axis_of_outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        rows = layer.weight.movedim(axis_of_outputs, 0)
        rows[kernel] = rows[of]
        if layer.bias is not None:
            layer.bias[kernel] = layer.bias[of]
        if norm is not None:
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                values[kernel] = values[of]
            norm.weight[kernel] *= gain
            norm.bias[kernel] *= gain
        elif gain != 1.0:
            rows[kernel] *= gain
            if layer.bias is not None:
                layer.bias[kernel] *= gain


def duplicates(network: Network, gain: float = 1.0) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The last kernel of every group made a duplicate of the first, and a fourth, if any, of the second."""
    made = {}
    for group in ChannelGraph(network).groups:
        if group.size < 2:
            continue
        stands_for = np.arange(group.size)
        stands_for[-1] = 0
        if group.size > 4:
            stands_for[3] = 1
        for kernel in np.flatnonzero(stands_for != np.arange(group.size)):
            make_duplicate(network, group.writers, kernel, stands_for[kernel], gain)
        made[group.name] = (np.unique(stands_for), stands_for)
    return made


def by_name(network: Network) -> dict[str, ChannelGroup]:
    return {group.name: group for group in ChannelGraph(network).groups}


class TestGroups:
    def test_a_stages_blocks_add_to_one_group(self) -> None:
        groups = by_name(build(BOTTLENECKS))
        streams = {name: group for name, group in groups.items() if len(group.writers) > 1}
        assert set(streams) == {f"backbone.layer{stage}.0.conv3" for stage in (1, 2, 3)}
        stream = streams["backbone.layer1.0.conv3"]
        assert stream.size == 7
        assert set(stream.writers) == {
            "backbone.layer1.0.conv3",
            "backbone.layer1.0.downsample.0",
            "backbone.layer1.1.conv3",
        }
        assert {reader.layer for reader in stream.readers} == {
            "backbone.layer1.1.conv1",
            "backbone.layer2.0.conv1",
            "backbone.layer2.0.downsample.0",
        }
        assert [reader.layer for reader in groups["backbone.layer3.0.conv3"].readers] == ["head"]

    def test_channels_inside_a_block_are_alone(self) -> None:
        groups = by_name(build(BOTTLENECKS))
        inner = {name: group for name, group in groups.items() if name.endswith(("conv1", "conv2")) and "layer" in name}
        assert [group.size for group in inner.values()] == [4, 3, 3, 4, 4, 4, 3, 3, 2, 5, 3, 3]
        for name, group in inner.items():
            assert group.writers == (name,)
            following = name[:-1] + str(int(name[-1]) + 1)
            assert [reader.layer for reader in group.readers] == [following]

    def test_without_projection_the_stem_is_part_of_the_stream(self) -> None:
        groups = by_name(build(BASIC))
        assert set(groups["backbone.conv1"].writers) == {
            "backbone.conv1",
            "backbone.layer1.0.conv2",
            "backbone.layer1.1.conv2",
        }

    def test_order_and_sizes(self) -> None:
        network = build(BOTTLENECKS)
        names = [group.name for group in ChannelGraph(network).groups]
        order = list(dict(network.named_modules()))
        assert names == sorted(names, key=order.index)
        assert names[0] == "backbone.conv1"
        for group in ChannelGraph(network).groups:
            assert {network.get_submodule(writer).out_channels for writer in group.writers} == {group.size}

    def test_skips_are_the_first_channels_of_a_concatenation(self) -> None:
        groups = by_name(build(MT_UNET))
        skip, raised = groups["body.encoder.0.3"], groups["body.up.3.1"]
        read = {reader.layer: reader for reader in skip.readers}
        assert set(read) == {"body.encoder.1.0", "body.decoder.3.0"}
        assert read["body.decoder.3.0"].inputs.tolist() == read["body.decoder.3.0"].channels.tolist() == [0, 1, 2]
        (reader,) = raised.readers
        assert (reader.layer, reader.inputs.tolist(), reader.channels.tolist()) == (
            "body.decoder.3.0",
            [3, 4, 5],
            [0, 1, 2],
        )
        pooled = {reader.layer: reader for reader in groups["body.decoder.3.3"].readers}["class_head.0"]
        assert pooled.inputs.tolist() == [48, 49, 50]  # after the bottleneck's

    def test_indices_hold_after_others_are_removed(self) -> None:
        network = build(MT_UNET)
        graph = ChannelGraph(network)
        graph.keep("body.encoder.0.3", np.array([1]))
        (reader,) = graph["body.up.3.1"].readers
        assert reader.inputs.tolist() == [1, 2, 3]
        assert graph["body.encoder.0.3"].size == 1

    def test_depthwise_convolutions_and_gates_are_writers(self) -> None:
        group = by_name(build(MOBILE))["backbone.blocks.3.0.conv_pw"]
        block = "backbone.blocks.3.0"
        assert set(group.writers) == {f"{block}.conv_pw", f"{block}.conv_dw", f"{block}.se.conv_expand"}
        assert {reader.layer for reader in group.readers} == {f"{block}.se.conv_reduce", f"{block}.conv_pwl"}

    def test_a_channel_read_several_times(self) -> None:
        groups = by_name(Forked())
        assert set(groups) == {"conv.0", "twice.0"}  # not the two that reach the output
        reader = {reader.layer: reader for reader in groups["conv.0"].readers}["twice.0"]
        assert sorted(zip(reader.channels.tolist(), reader.inputs.tolist(), strict=True)) == sorted(
            (channel, channel + offset) for channel in range(6) for offset in (0, 6)
        )
        (cells,) = groups["twice.0"].readers
        assert sorted(cells.inputs[cells.channels == 2].tolist()) == [8, 9, 10, 11]

    def test_grouped_convolutions_are_left_alone(self) -> None:
        network = build({"name": "gaze-cam", "backbone": "resnext50_32x4d", "num_classes": 2})
        for name, group in by_name(network).items():
            assert all(network.get_submodule(writer).groups == 1 for writer in group.writers), name

    @ALL
    def test_looking_changes_nothing(self, config: dict[str, Any]) -> None:
        network = build(config).train()
        frozen = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        ChannelGraph(network)
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert not frozen.training
        assert sum(not module.training for module in network.modules() if module is not frozen) == sum(
            1 for module in frozen.modules() if module is not frozen and not module.training
        )
        assert all(parameter.grad is None for parameter in network.parameters())
        assert not any(module._forward_hooks for module in network.modules())


class TestKeep:
    def test_equals_slicing_by_hand(self) -> None:
        """Stream and inner channels of a two-block stage, and the CAM head, cut by plain indexing."""
        network = trained(build(BOTTLENECKS))
        smaller = copy.deepcopy(network)
        graph = ChannelGraph(smaller)
        stream, inner, last = np.array([0, 2, 3, 6]), np.array([1, 2]), np.array([5, 1])
        graph.keep("backbone.layer1.0.conv3", stream)
        graph.keep("backbone.layer1.1.conv1", inner)
        graph.keep("backbone.layer3.0.conv3", last)

        expected = dict(network.state_dict())

        def cut(layer: str, kept: NDArray[np.int64], axis: int) -> None:
            for key in [key for key in expected if key.startswith(layer + ".") and expected[key].ndim > axis]:
                expected[key] = expected[key].index_select(axis, torch.from_numpy(np.sort(kept)))

        for writer in ("0.conv3", "0.bn3", "0.downsample.0", "0.downsample.1", "1.conv3", "1.bn3"):
            cut(f"backbone.layer1.{writer}", stream, 0)
        for reader in ("layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"):
            cut(f"backbone.{reader}", stream, 1)
        for writer in ("conv1", "bn1"):
            cut(f"backbone.layer1.1.{writer}", inner, 0)
        cut("backbone.layer1.1.conv2", inner, 1)
        for writer in ("conv3", "bn3", "downsample.0", "downsample.1"):
            cut(f"backbone.layer3.0.{writer}", last, 0)
        cut("head", last, 1)
        expected["head.weight"] = expected["head.weight"] * (2 / 6)  # each keeps its share of the mean over channels

        found = smaller.state_dict()
        assert list(found) == list(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=0)
        assert not smaller.training
        outputs(smaller)

    def test_removing_a_channel_is_silencing_it(self) -> None:
        network = trained(build(MT_UNET))
        silenced, smaller = copy.deepcopy(network), copy.deepcopy(network)
        graph = ChannelGraph(smaller)
        for name in ("body.encoder.1.3", "body.up.2.1", "class_head.0"):
            size = graph[name].size
            graph.keep(name, np.delete(np.arange(size), 1))
            layer, norm = silenced.get_submodule(name), norm_after(silenced, name)
            for values in (norm.weight, norm.bias) if norm is not None else (layer.weight, layer.bias):
                values.data[1] = 0
        for ours, theirs in zip(outputs(smaller), outputs(silenced), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    def test_all_kept_changes_nothing(self) -> None:
        network = trained(build(BASIC))
        before = outputs(network)
        ChannelGraph(network).keep("backbone.conv1", np.arange(6), np.arange(6))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs(network), before, strict=True))

    @pytest.mark.parametrize("kept", [[], [-1, 2], [0, 6]])
    def test_channels_that_are_not_there(self, kept: list[int]) -> None:
        graph = ChannelGraph(build(BASIC))
        with pytest.raises(InputError, match=r"'backbone.conv1' cannot keep channels .* 0 to 5"):
            graph.keep("backbone.conv1", np.array(kept, np.int64))

    def test_unknown_group(self) -> None:
        with pytest.raises(InputError, match=r"'backbone\.layer2\.1\.conv1'"):
            ChannelGraph(build(BASIC))["backbone.layer2.1.conv3"]

    def test_still_trains(self) -> None:
        network = build(MOBILE).train()
        graph = ChannelGraph(network)
        for group in graph.groups:
            graph.keep(group.name, np.arange(max(2, group.size // 2)))
        assert network.training
        network(images()).logits.square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


class TestMerging:
    @ALL
    def test_true_duplicates_go_without_a_trace(self, config: dict[str, Any]) -> None:
        network = trained(build(config))
        made = duplicates(network)
        before, size = outputs(network), parameters(network)
        assert min(part.std() for part in before) > 1e-3
        graph = ChannelGraph(network)
        for name, (kept, stands_for) in made.items():
            graph.keep(name, kept, stands_for)
            assert graph[name].size == len(kept)
        assert parameters(network) < size
        for ours, theirs in zip(outputs(network), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    @ALL
    def test_without_the_merging_outputs_do_change(self, config: dict[str, Any]) -> None:
        network = trained(build(config))
        made = duplicates(network)
        before = outputs(network)
        graph = ChannelGraph(network)
        for name, (kept, _) in made.items():
            graph.keep(name, kept)
        assert max((ours - theirs).abs().max() for ours, theirs in zip(outputs(network), before, strict=True)) > 1e-3

    @pytest.mark.parametrize("config", [BOTTLENECKS, BASIC, MT_UNET], ids=["50", "18", "unet"])
    def test_stronger_duplicates(self, config: dict[str, Any]) -> None:
        """Twice as strong through ReLUs, of all writers alike."""
        network = trained(build(config))
        made = duplicates(network, gain=2.0)
        before = outputs(network)
        graph = ChannelGraph(network)
        for name, (kept, stands_for) in made.items():
            gain = np.where(stands_for == np.arange(len(stands_for)), 1.0, 2.0)
            graph.keep(name, kept, stands_for, gain)
        for ours, theirs in zip(outputs(network), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    def test_every_kind_of_reader(self) -> None:
        network = trained(Forked())
        made = duplicates(network)
        before = outputs(network)
        graph = ChannelGraph(network)
        for name, (kept, stands_for) in made.items():
            graph.keep(name, kept, stands_for)
        for ours, theirs in zip(outputs(network), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert (network.up.in_channels, network.twice[0].in_channels, network.linear.in_features) == (4, 8, 12)

    def test_channels_that_nothing_stands_for_just_go(self) -> None:
        network = trained(build(BASIC))
        plain, merged = copy.deepcopy(network), copy.deepcopy(network)
        name, kept = "backbone.layer1.0.conv1", np.array([0, 2])
        ChannelGraph(plain).keep(name, kept)
        ChannelGraph(merged).keep(name, kept, np.array([0, -1, 2, -1]))
        assert all(torch.equal(a, b) for a, b in zip(outputs(plain), outputs(merged), strict=True))

    def test_weights_of_a_reader_are_summed(self) -> None:
        network = trained(build(BASIC))
        reader = network.get_submodule("backbone.layer1.0.conv2")
        before = reader.weight.detach().clone()
        ChannelGraph(network).keep(
            "backbone.layer1.0.conv1", np.array([1, 3]), np.array([1, 1, 3, 3]), np.array([0.5, 1.0, 2.0, 1.0])
        )
        expected = torch.stack([before[:, 1] + 0.5 * before[:, 0], before[:, 3] + 2 * before[:, 2]], 1)
        torch.testing.assert_close(reader.weight, expected)


class TestWidths:
    widths: ClassVar[dict[str, int]] = {"body.encoder.0.3": 2, "body.up.0.1": 5, "class_head.0": 1}

    def test_a_dictionary_rebuilds_a_narrower_network(self) -> None:
        network = build({**MT_UNET, "widths": self.widths})
        assert network.config["widths"] == self.widths
        groups = by_name(network)
        assert {name: groups[name].size for name in self.widths} == self.widths
        whole = by_name(build(MT_UNET))
        assert all(groups[name].size == whole[name].size for name in whole if name not in self.widths)
        twin = build(network.config)
        twin.load_state_dict(network.state_dict())
        for ours, theirs in zip(outputs(network.eval()), outputs(twin.eval()), strict=True):
            assert torch.equal(ours, theirs)
        assert network.train().training

    def test_in_place_and_in_its_mode(self) -> None:
        network = build(MOBILE)
        assert network.training
        set_widths(network, {"backbone.conv_stem": 3})
        assert network.training
        assert network.get_submodule("backbone.conv_stem").out_channels == 3

    @pytest.mark.parametrize("width", [0, 4, -1])
    def test_widths_it_cannot_have(self, width: int) -> None:
        with pytest.raises(InputError, match=rf"'body.encoder.0.3' cannot have {width} channels: give 1 to 3"):
            build({**MT_UNET, "widths": {"body.encoder.0.3": width}})

    def test_a_group_that_is_not_there(self) -> None:
        with pytest.raises(InputError, match=r"No channel group is named 'body\.encoder\.0\.1': did you mean"):
            build({**MT_UNET, "widths": {"body.encoder.0.1": 2}})
