from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from radgaze.errors import InputError
from radgaze.models import MTUNet, build, parameters
from radgaze.models.mt_unet import UNetBody
from tests.models.tester import NetworkTester


class TestMTUNet(NetworkTester):
    config: ClassVar[dict[str, Any]] = {"name": "mt-unet", "num_classes": 3, "width": 4}
    multiple = 16
    has_saliency = True


class TestMTUNetWithEncoder(NetworkTester):
    config: ClassVar[dict[str, Any]] = {"name": "mt-unet", "num_classes": 2, "encoder": "tu-mobilenetv3_small_050"}
    multiple = 32
    has_saliency = True


def test_parameter_count_of_the_paper() -> None:
    assert parameters(MTUNet(num_classes=3, in_channels=1, width=64)) == 34_632_836


def test_parameter_count_follows_the_formula() -> None:
    def conv(i: int, o: int) -> int:
        return 9 * i * o + o + 2 * o  # taps, bias, BN gain and offset

    w, classes = 6, 5
    widths = [w * 2**level for level in range(5)]
    expected = 0
    for i, o in zip([1, *widths], widths, strict=False):
        expected += conv(i, o) + conv(o, o)
    for deep, shallow in zip(widths[:0:-1], widths[-2::-1], strict=True):
        expected += conv(deep, shallow) + conv(deep, shallow) + conv(shallow, shallow)
    expected += 17 * w * w + w + w * classes + classes  # class head
    expected += conv(w, w) + w + 1  # saliency head
    assert parameters(MTUNet(num_classes=classes, width=w)) == expected


def test_skip_comes_first_in_the_concatenation() -> None:
    body = UNetBody(1, 2)
    seen = {}
    body.encoder[0].register_forward_hook(lambda _, __, out: seen.setdefault("skip", out))
    body.decoder[-1].register_forward_pre_hook(lambda _, args: seen.setdefault("joined", args[0]))
    body.eval()(torch.rand(1, 1, 16, 16))
    assert torch.equal(seen["joined"][:, :2], seen["skip"])


def test_no_class_head_without_classes() -> None:
    output = MTUNet(num_classes=0, width=2)(torch.rand(1, 1, 32, 16))
    assert output.logits is None
    assert output.saliency_logits is not None


def test_attention_sums_to_one_and_matches_its_logarithm() -> None:
    output = MTUNet(width=2).eval()(torch.rand(3, 1, 32, 48))
    saliency, log_saliency = output.saliency(), output.log_saliency()
    assert saliency is not None
    assert log_saliency is not None
    torch.testing.assert_close(saliency.sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(log_saliency.exp(), saliency)


@pytest.mark.parametrize("arguments", [{"num_classes": -1}, {"in_channels": 0}, {"width": 0}])
def test_bad_settings(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        MTUNet(**arguments)


def test_misspelt_encoder_gets_the_nearest_names() -> None:
    with pytest.raises(InputError, match="'resnet50'"):
        MTUNet(encoder="resnet5O")


def test_local_encoder_weights(tmp_path: Path) -> None:
    donor = MTUNet(encoder="resnet18", in_channels=3)
    state = {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in donor.body.encoder.state_dict().items()
    }
    file = tmp_path / "resnet18.safetensors"
    save_file({**state, "fc.weight": torch.zeros(10, 512)}, file)

    grey = MTUNet(encoder="resnet18", in_channels=1, weights=file)
    loaded = grey.body.encoder.state_dict()
    torch.testing.assert_close(loaded["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(loaded["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert "weights" not in grey.config


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="do not fit"):
        MTUNet(encoder="resnet18", weights=file)
    with pytest.raises(InputError, match="pickled weights are never loaded"):
        MTUNet(encoder="resnet18", weights=tmp_path / "weights.pth")
    with pytest.raises(InputError, match="no weights file"):
        MTUNet(encoder="resnet18", weights=tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="need an encoder"):
        MTUNet(weights=file)


def test_unknown_setting_in_a_config() -> None:
    with pytest.raises(InputError, match="'width'"):
        build({"name": "mt-unet", "widht": 4})
    with pytest.raises(InputError, match="'mt-unet'"):
        build({"name": "mtunet"})
