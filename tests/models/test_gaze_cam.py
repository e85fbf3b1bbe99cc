from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from radgaze.errors import InputError
from radgaze.models import GazeCAM
from radgaze.models.backbones import feature_map, make_backbone
from radgaze.models.gaze_cam import CAMHead
from tests.models.tester import NetworkTester


class TestGazeCAM(NetworkTester):
    config: ClassVar[dict[str, Any]] = {"name": "gaze-cam", "backbone": "resnet10t", "num_classes": 3}
    multiple = 32
    smallest = 2
    has_cams = True


class TestGazeCAMWithConvolutionAfterThePooling(NetworkTester):
    """timm's MobileNetV3 pools before its last convolution; here it is part of the map."""

    config: ClassVar[dict[str, Any]] = {"name": "gaze-cam", "backbone": "mobilenetv3_small_050", "num_classes": 2}
    multiple = 32
    smallest = 2
    has_cams = True


@pytest.fixture(scope="module")
def network() -> GazeCAM:
    torch.manual_seed(0)
    network = GazeCAM("resnet10t", num_classes=4)
    torch.nn.init.normal_(network.head.bias)
    return network.eval()


def test_equals_pooling_then_a_linear_layer_of_weights_over_k(network: GazeCAM) -> None:
    images = torch.rand(3, 1, 96, 64)
    output = network(images)
    features = network.backbone(images)
    expected = F.linear(features.mean((2, 3)), network.head.weight / features.shape[1], network.head.bias)
    torch.testing.assert_close(output.logits, expected)


def test_logits_are_spatial_means_of_the_cams_plus_bias(network: GazeCAM) -> None:
    output = network(torch.rand(2, 1, 64, 96))
    assert output.cams.shape == (2, 4, 2, 3)
    torch.testing.assert_close(output.logits, output.cams.mean((2, 3)) + network.head.bias)


def test_cam_is_the_mean_of_weighted_channels() -> None:
    head, features = CAMHead(5, 2), torch.randn(1, 5, 3, 4)
    cams, _ = head(features)
    expected = (head.weight[1, :, None, None] * features[0]).mean(0)
    torch.testing.assert_close(cams[0, 1], expected)


def test_head_keeps_float32_under_autocast(network: GazeCAM) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.rand(1, 1, 64, 64))
    assert output.logits.dtype == output.cams.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [("resnet50", 2048, 23_501_760), ("efficientnetv2_s", 1280, 20_177_056)],
)
def test_named_backbones(name: str, channels: int, parameters: int) -> None:
    """torchvision's counts, 25,557,032 and 21,458,488, less classifier and two input channels' taps."""
    backbone = make_backbone(name, 1, None)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert feature_map(backbone, name, 1) == (channels, 32)


def test_grid_of_the_paper() -> None:
    assert GazeCAM("resnet10t").attention_size((1536, 1280)) == (48, 40)


def test_finding_the_stride_leaves_the_batch_statistics_alone() -> None:
    assert GazeCAM("resnet10t").backbone.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_transformers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="use a convolutional network"):
        GazeCAM(name)


def test_misspelt_backbone_gets_the_nearest_names() -> None:
    with pytest.raises(InputError, match="'resnet50'"):
        GazeCAM("resnet5O")
    with pytest.raises(InputError, match="'efficientnetv2_s'"):
        GazeCAM("efficientnetv2-s")


def test_image_too_small_for_a_cam(network: GazeCAM) -> None:
    with pytest.raises(InputError, match=r"2x1 cells .* at least 64x64"):
        network(torch.rand(1, 1, 64, 32))


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"in_channels": 0}])
def test_bad_settings(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected both"):
        GazeCAM("resnet10t", **arguments)


def test_local_weights(tmp_path: Path) -> None:
    colour = make_backbone("resnet10t", 3, None).state_dict()
    state = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in colour.items()}
    file = tmp_path / "resnet10t.safetensors"
    save_file({**state, "fc.weight": torch.zeros(10, 512)}, file)
    grey = GazeCAM("resnet10t", weights=file)
    loaded = grey.backbone.state_dict()
    torch.testing.assert_close(loaded["conv1.0.weight"], state["conv1.0.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(loaded["layer4.0.conv2.weight"], state["layer4.0.conv2.weight"])
    assert "weights" not in grey.config
    with pytest.raises(InputError, match="do not fit"):
        GazeCAM("resnet18", weights=file)


def test_backbone_without_published_weights() -> None:
    with pytest.raises(InputError, match="choose a backbone with published weights"):
        GazeCAM("efficientnetv2_s", weights="hub")


def test_options_reach_the_backbone() -> None:
    options = {"channels": [8, 16, 16, 24], "stem_width": 8, "output_stride": 16}
    network = GazeCAM("resnet18", num_classes=2, options=options)
    assert network.stride == 16
    assert network.head.weight.shape == (2, 24)
    assert network(torch.rand(1, 1, 64, 96)).cams.shape == (1, 2, 4, 6)
    assert network.config["options"] == options


@pytest.mark.parametrize(
    ("options", "words"),
    [({"chanels": [8]}, "cannot be made with the options .*chanels"), ({"in_chans": 3}, "'in_chans' is set by")],
)
def test_options_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        GazeCAM("resnet18", options=options)
