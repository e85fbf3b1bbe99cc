from __future__ import annotations

from typing import Any

import pytest
import torch

from radgaze.errors import InputError
from radgaze.models import build, macs


def conv(ins: int, outs: int, kernel: int, side: int) -> int:
    """Multiply-accumulates of a convolution whose output has ``side`` x ``side`` pixels."""
    return ins * outs * kernel**2 * side**2


BASIC = {"width": 8, "blocks": [[5]], "projection": True}
BOTTLENECK = {"width": 6, "blocks": [[3, 4], [2, 7]], "projection": True}
NARROW = {"name": "gaze-cam", "backbone": "narrow_resnet", "num_classes": 2}


def test_a_narrow_resnet_is_what_a_hand_counts() -> None:
    network = build({**NARROW, "options": {"stem": 3, "stages": [BASIC, BOTTLENECK], "output_stride": 8}})
    by_hand = [
        conv(1, 3, 7, 32),  # the stem halves 64 pixels, the pooling after it halves again
        conv(3, 5, 3, 16) + conv(5, 8, 3, 16) + conv(3, 8, 1, 16),  # the basic block and its projection
        conv(8, 3, 1, 16) + conv(3, 4, 3, 8) + conv(4, 6, 1, 8) + conv(8, 6, 1, 8),  # the 3x3 strides
        conv(6, 2, 1, 8) + conv(2, 7, 3, 8) + conv(7, 6, 1, 8),
        conv(6, 2, 1, 8),  # the head: a map for each class
    ]
    assert macs(network, (64, 64)) == sum(by_hand)


def test_mt_unet_with_its_class_head() -> None:
    network = build({"name": "mt-unet", "num_classes": 3, "width": 2})
    down = [conv(i, o, 3, s) + conv(o, o, 3, s) for i, o, s in [(1, 2, 32), (2, 4, 16), (4, 8, 8), (8, 16, 4)]]
    deepest = conv(16, 32, 3, 2) + conv(32, 32, 3, 2)
    up = [conv(i, i // 2, 3, s) * 2 + conv(i // 2, i // 2, 3, s) for i, s in [(32, 4), (16, 8), (8, 16), (4, 32)]]
    heads = (32 + 2) * 2 + 2 * 3 + conv(2, 2, 3, 32) + conv(2, 1, 1, 32)
    assert macs(network, (32, 32)) == sum(down) + deepest + sum(up) + heads


def test_height_and_width_are_not_confused_and_cells_are_what_counts() -> None:
    network = build({**NARROW, "options": {"stem": 3, "stages": [BASIC], "output_stride": 8}})
    assert macs(network, (128, 64)) == macs(network, (64, 128)) == 2 * macs(network, (64, 64))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_was(training: bool) -> None:
    network = build({"name": "mt-unet", "num_classes": 3, "width": 2}).train(training)
    network.body.encoder[0].eval()  # type: ignore[union-attr, index, operator]
    modes = [module.training for module in network.modules()]
    state: dict[str, Any] = {key: value.clone() for key, value in network.state_dict().items()}
    macs(network, (32, 32))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_widths_of_a_simplified_network_count() -> None:
    config = {"name": "mt-unet", "num_classes": 3, "width": 4}
    narrow = build({**config, "widths": {"saliency_head.0": 1}})
    assert macs(build(config), (32, 32)) - macs(narrow, (32, 32)) == 3 * (conv(4, 1, 3, 32) + conv(1, 1, 1, 32))


def test_an_image_the_network_cannot_take() -> None:
    with pytest.raises(InputError, match="divide by 16"):
        macs(build({"name": "mt-unet", "num_classes": 3, "width": 2}), (33, 32))
