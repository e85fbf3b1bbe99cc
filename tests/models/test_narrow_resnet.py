"""ResNets of any widths: timm's layers and numbers, rebuilt from a dictionary, also outside torch."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.models import GazeCAM, Network, build, load_weights, parameters, save_weights
from radgaze.models.narrow_resnet import NarrowResNet, ResidualBlock, read_resnet
from radgaze.models.projection import Projection
from tests.models.tester import NetworkTester

ODD: dict[str, Any] = {
    "stem": 3,
    "stages": [
        {"width": 5, "blocks": [[3, 7], [1, 2]]},
        {"width": 7, "blocks": [[5, 3]]},
        {"width": 9, "blocks": [[3, 1], [4, 3], [1, 1]]},
        {"width": 11, "blocks": [[3, 5]]},
    ],
}
BASIC: dict[str, Any] = {
    "stem": 3,
    "stages": [
        {"width": 3, "blocks": [[5], [2]], "projection": False},
        {"width": 5, "blocks": [[1]]},
        {"width": 4, "blocks": [[3], [2]]},
    ],
    "output_stride": 8,
}


def config(options: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"name": "gaze-cam", "backbone": "narrow_resnet", "num_classes": 3, "options": options, **others}


def uniform(width: int) -> dict[str, Any]:
    """ResNet50 with ``width`` instead of 64 everywhere."""
    stages = [
        {"width": 4 * width * 2**level, "blocks": [[width * 2**level] * 2] * blocks}
        for level, blocks in enumerate((3, 4, 6, 3))
    ]
    return {"stem": width, "stages": stages}


def trained(network: nn.Module) -> nn.Module:
    """Batch statistics, gains and offsets as after a training: branches that are something, all channels different."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.2)
    return network.eval()


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, 96, 64, generator=torch.Generator().manual_seed(1))


class TestBottlenecks(NetworkTester):
    config: ClassVar[dict[str, Any]] = config(ODD)
    multiple = 32
    smallest = 2
    has_cams = True


class TestBasicBlocksDilated(NetworkTester):
    config: ClassVar[dict[str, Any]] = config(BASIC)
    multiple = 8
    smallest = 2
    has_cams = True


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", [5, 5, 7, 9]),
        ("resnet34", [3, 5, 7, 9]),
        ("resnet50", [3, 5, 5, 3]),
        ("resnet18", [64, 6, 6, 6]),  # shortcuts without projection in the first stage and in dilated ones
    ],
)
def test_is_timms_network(name: str, channels: list[int], stride: int) -> None:
    torch.manual_seed(0)
    theirs = GazeCAM(name, options={"channels": channels, "output_stride": stride})
    options = read_resnet(theirs.backbone)
    assert options is not None
    assert options["output_stride"] == stride
    wider = [channels[0] != 64, *(before != after for before, after in pairwise(channels))]
    projections = [
        other or strides for other, strides in zip(wider, [False, True, stride > 8, stride > 16], strict=True)
    ]
    assert [stage["projection"] for stage in options["stages"]] == projections
    ours = build(config(options))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(trained(theirs).state_dict())
    output, expected = ours.eval()(images()), theirs(images())
    torch.testing.assert_close(output.logits, expected.logits)  # few channels are summed in another order
    torch.testing.assert_close(output.cams, expected.cams)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_170_240), ("resnet50", 23_501_760)])
def test_at_full_width(name: str, count: int) -> None:
    """torchvision's 11,689,512 and 25,557,032, less classifier and two input channels' taps."""
    with torch.device("meta"):
        options = read_resnet(timm.create_model(name, in_chans=1, num_classes=0, global_pool=""))
        assert options is not None
        assert options["stem"] == 64
        assert parameters(NarrowResNet(1, **options)) == count


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet50d", {}),  # another stem, average pooling in shortcuts
        ("seresnet50", {}),
        ("resnext50_32x4d", {}),
        ("resnetaa50", {}),
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),
        ("resnet18", {"act_layer": nn.SiLU}),
        ("resnet18", {"drop_path_rate": 0.1}),
        ("resnet18", {"avg_down": True}),
    ],
)
def test_other_networks_are_none(name: str, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert read_resnet(timm.create_model(name, in_chans=1, num_classes=0, global_pool="", **arguments)) is None


@pytest.mark.parametrize("options", [ODD, BASIC])
def test_its_options_are_read_off_the_network(options: dict[str, Any]) -> None:
    network = build(config(options))
    expected = NarrowResNet.check(options)
    assert network.backbone.options == read_resnet(network.backbone) == expected
    twin = build({**network.config, "options": network.backbone.options})
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


@pytest.mark.parametrize("options", [ODD, BASIC])
def test_parameters_follow_the_formula(options: dict[str, Any]) -> None:
    stem = incoming = options["stem"]
    expected = 49 * stem + 2 * stem
    for stage in options["stages"]:
        for number, inner in enumerate(stage["blocks"]):
            widths = [incoming, *inner, stage["width"]]
            taps = [1, 9, 1] if len(inner) == 2 else [9, 9]
            expected += sum(k * i * o + 2 * o for k, (i, o) in zip(taps, pairwise(widths), strict=True))
            if number == 0 and stage.get("projection", True):
                expected += incoming * stage["width"] + 2 * stage["width"]
            incoming = stage["width"]
    expected += 4 * incoming + 4  # four classes
    assert parameters(build(config(options, num_classes=4))) == expected


@pytest.mark.parametrize(("width", "count"), [(5, 147_978), (4, 95_487)])
def test_parameters_of_narrow_resnet50s(width: int, count: int) -> None:
    assert parameters(build(config(uniform(width)))) == count


@pytest.mark.parametrize("options", [ODD, BASIC])
@pytest.mark.parametrize("training", [True, False])
def test_residual_branches_begin_as_nothing(options: dict[str, Any], training: bool) -> None:
    network = build(config(options)).train(training)
    shown: dict[str, tuple[Tensor, Tensor]] = {}
    blocks = {name: block for name, block in network.named_modules() if isinstance(block, ResidualBlock)}
    for name, block in blocks.items():

        def keep(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            shown[name] = (inputs[0].clone(), output)

        block.register_forward_hook(keep)
    network(torch.randn(4, 1, 96, 64))
    network.eval() if not training else network.train()
    assert len(shown) == sum(len(stage["blocks"]) for stage in options["stages"])
    for name, (before, after) in shown.items():
        downsample = blocks[name].downsample
        with torch.no_grad():
            shortcut = before if downsample is None else downsample(before)
        torch.testing.assert_close(after, F.relu(shortcut), rtol=0, atol=1e-6)
        assert not blocks[name].norms[-1].weight.any()
        assert all((norm.weight == 1).all() for norm in blocks[name].norms[:-1])


def test_which_blocks_are_removable() -> None:
    network = build(config(ODD))
    removable = [name for name, m in network.named_modules() if isinstance(m, ResidualBlock) and m.is_removable]
    assert removable == ["backbone.layer1.1", "backbone.layer3.1", "backbone.layer3.2"]


@pytest.mark.parametrize("options", [ODD, BASIC])
def test_survives_onnx(options: dict[str, Any], tmp_path: Path) -> None:
    """Config and safetensors, then ONNX, run on another number of images than it was exported with."""
    first: Network = trained(build(config(options)))  # type: ignore[assignment]
    save_weights(first, tmp_path / "weights.safetensors")
    network = load_weights(build(first.config), tmp_path / "weights.safetensors").eval()
    file = tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (images(2),),
        file,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    probes = images(3) * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1, 1)
    logits, cams = session.run(None, {"images": probes.numpy()})
    expected = first(probes)
    np.testing.assert_allclose(logits, expected.logits.detach(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(cams, expected.cams.detach(), rtol=0, atol=1e-4)
    assert np.ptp(logits, 0).max() > 1e-2  # the images are told apart, so equality means something


STAGE = {"width": 4, "blocks": [[2, 2]]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": [STAGE]}, "'stem' .* field required; give stem, stages"),
        ({"stem": 2, "stages": [STAGE], "depth": 50}, "'depth' .* not permitted"),
        ({"stem": 0, "stages": [STAGE]}, "'stem' .* greater than or equal to 1"),
        ({"stem": 2, "stages": []}, "'stages' .* at least 1"),
        ({"stem": 2, "stages": [{"width": 4, "blocks": []}]}, "'stages.0.blocks' .* at least 1"),
        ({"stem": 2, "stages": [STAGE, {"width": 4, "blocks": [[1, 1], [3, 3, 3]]}]}, r"'stages\.1\.blocks\.1' "),
        ({"stem": 2, "stages": [{"width": 4, "blocks": [[0]]}]}, r"'stages\.0\.blocks\.0\.0' "),
        ({"stem": 2, "stages": [{"width": 4}]}, "'stages.0.blocks' .* required"),
        ({"stem": 2, "stages": [STAGE], "output_stride": 4}, "output_stride of narrow_resnet is 4, expected 8, 16"),
        ({"stem": 2, "stages": [{**STAGE, "projection": False}]}, "Stage 1 .* the 2 channels .* not width 4 and strid"),
        (
            {"stem": 4, "stages": [STAGE, {**STAGE, "projection": False}]},
            "Stage 2 .* not width 4 and stride 2; set projection to true",
        ),
    ],
)
def test_options_that_make_no_network(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        build(config(options))
    assert re.fullmatch(r"[^\n]+\.", str(error.value))


def test_there_are_no_published_weights() -> None:
    with pytest.raises(InputError, match="weights='hub' cannot be loaded"):
        GazeCAM("narrow_resnet", options=ODD, weights="hub")
    with pytest.raises(InputError, match="'narrow_resnet'"):
        GazeCAM("narow_resnet", options=ODD)


def test_a_projection_is_the_convolution_it_stands_for() -> None:
    """oneDNN's own spoilt memory here: 7 to 11 channels, channels-last, one thread."""
    torch.manual_seed(0)
    ours, theirs = Projection(7, 11, 1, stride=2, bias=False), nn.Conv2d(7, 11, 1, stride=2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    for size in ((12, 8), (13, 9)):
        maps = torch.rand(3, 7, *size)
        mine, other = (maps.clone().requires_grad_() for _ in range(2))
        channels_last = mine.contiguous(memory_format=torch.channels_last)
        result, expected = ours.to(memory_format=torch.channels_last)(channels_last), theirs(other)
        torch.testing.assert_close(result, expected)
        for out in (result, expected):
            out.square().sum().backward()
        torch.testing.assert_close(mine.grad, other.grad)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_no_strided_pointwise_convolution_is_left_to_onednn() -> None:
    network = NarrowResNet(1, stem=5, stages=[{"width": 7, "blocks": [[5, 5]]}, {"width": 11, "blocks": [[7, 7]]}])
    pointwise = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    strided = [module for module in pointwise if module.stride != (1, 1)]
    assert strided
    assert all(isinstance(module, Projection) for module in strided)
