"""What every network must do; each network's test class inherits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from radgaze.errors import InputError
from radgaze.inference import grad_cam
from radgaze.models import Output, build, load_weights, save_weights


def outputs(output: Output) -> list[Tensor]:
    return [part for part in output if part is not None]


class NetworkTester:
    config: ClassVar[dict[str, Any]]
    multiple: ClassVar[int]  # sides must divide by this
    smallest: ClassVar[int] = 1  # and be at least so many times that
    has_saliency: ClassVar[bool] = False
    has_cams: ClassVar[bool] = False

    @property
    def size(self) -> tuple[int, int]:
        return (self.smallest + 1) * self.multiple, self.smallest * self.multiple

    def images(self, batch: int = 2) -> Tensor:
        return torch.rand(batch, 1, *self.size, generator=torch.Generator().manual_seed(1))

    def test_shapes(self) -> None:
        output = build(self.config)(self.images())
        classes = self.config["num_classes"]
        assert output.logits.shape == (2, classes)
        assert (output.saliency_logits is not None) == self.has_saliency
        assert (output.cams is not None) == self.has_cams
        if self.has_saliency:
            assert output.saliency_logits.shape == (2, *self.size)
        if self.has_cams:
            assert output.cams.shape == (2, classes, *build(self.config).attention_size(self.size))

    def test_grad_cam_finds_the_last_feature_map(self) -> None:
        maps = grad_cam(build(self.config).eval(), self.images(), torch.tensor([0, 1]))
        assert maps.shape == (2, *(side // self.multiple for side in self.size))
        assert (maps >= 0).all()

    def test_every_parameter_gets_a_gradient(self) -> None:
        model = build(self.config)
        sum(part.float().square().sum() for part in outputs(model(self.images()))).backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert without == []

    def test_config_and_weights_rebuild_the_network(self, tmp_path: Path) -> None:
        model = build(self.config)
        model(self.images())  # moves the batch statistics away from their start
        model.eval()
        save_weights(model, tmp_path / "weights.safetensors")
        twin = load_weights(build(model.config), tmp_path / "weights.safetensors").eval()
        for ours, theirs in zip(outputs(model(self.images())), outputs(twin(self.images())), strict=True):
            assert torch.equal(ours, theirs)

    def test_images_of_a_batch_do_not_touch_each_other(self) -> None:
        model, images = build(self.config).eval(), self.images()
        for together, alone in zip(outputs(model(images)), outputs(model(images[:1])), strict=True):
            torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)

    def test_channels_last_changes_nothing(self) -> None:
        model, images = build(self.config).eval(), self.images()
        before = outputs(model(images))
        after = outputs(model.to(memory_format=torch.channels_last)(images))
        for ours, theirs in zip(before, after, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    def test_odd_size_names_the_padded_one(self) -> None:
        height, width = self.size
        odd = torch.rand(1, 1, height - 1, width + 1)
        with pytest.raises(InputError, match=f"{height}x{height}"):
            build(self.config)(odd)

    def test_wrong_channels(self) -> None:
        with pytest.raises(InputError, match=r"expected \(batch, 1, height, width\)"):
            build(self.config)(torch.rand(1, 3, *self.size))

    def test_colour_network_repeats_grey_images(self) -> None:
        model = build({**self.config, "in_channels": 3}).eval()
        grey = outputs(model(self.images()))
        colour = outputs(model(self.images().repeat(1, 3, 1, 1)))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(grey, colour, strict=True))
