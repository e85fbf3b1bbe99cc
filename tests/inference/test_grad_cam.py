from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.inference import grad_cam
from radgaze.inference.evaluation import true_class_grad_cams
from radgaze.inference.localisation import cam_measures, per_study
from radgaze.models import GazeCAM, MTUNet, Network, build
from radgaze.training import AttentionTarget
from tests.cohorts import multilabel_cohort

U_NET: dict[str, Any] = {"name": "mt-unet", "num_classes": 4, "width": 4}
ENCODER: dict[str, Any] = {"name": "mt-unet", "num_classes": 4, "encoder": "tu-mobilenetv3_small_050"}
GAZE_CAM: dict[str, Any] = {"name": "gaze-cam", "num_classes": 4, "backbone": "resnet10t"}
CLASSES = torch.tensor([0, 2, 1, 3, 2])


def network_of(config: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    network = build(config)
    network(pictures(8))  # moves the batch statistics away from their start
    return network.eval()


def pictures(count: int = 5) -> Tensor:
    return torch.rand(count, 1, 96, 64, generator=torch.Generator().manual_seed(1))


def by_hand(network: MTUNet, images: Tensor, classes: Tensor) -> Tensor:
    """The paper's two equations, image by image, on the bottleneck as the decoder gets it."""
    decoder = network.body.up[0] if network.config["encoder"] is None else network.body.decoder
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][-1])

    handle, maps = decoder.register_forward_pre_hook(keep), []
    for image, label in zip(images, classes, strict=True):
        logits = network(image[None]).logits
        features = seen.pop()
        (gradient,) = torch.autograd.grad(logits[0, label], features)
        alpha = [gradient[0, k].mean() for k in range(features.shape[1])]
        maps.append(sum(a * f for a, f in zip(alpha, features[0], strict=True)).clamp(min=0).detach())
    handle.remove()
    return torch.stack(maps)


@pytest.mark.parametrize(("config", "grid"), [(U_NET, (6, 4)), (ENCODER, (3, 2))])
def test_equals_the_papers_equations(config: dict[str, Any], grid: tuple[int, int]) -> None:
    network = network_of(config)
    images, classes = pictures(3).repeat_interleave(4, 0), torch.arange(4).repeat(3)
    maps = grad_cam(network, images, classes)
    assert maps.shape == (12, *grid)
    assert (maps.amax((1, 2)) > 0).sum() >= 3  # the comparison below is not one of zeros
    expected = by_hand(network, images, classes)
    torch.testing.assert_close(maps / expected.max(), expected / expected.max(), rtol=1e-4, atol=1e-5)


def test_is_the_positive_part_of_a_class_activation_map() -> None:
    network = network_of(GAZE_CAM)
    cams = network(pictures()).cams[range(5), CLASSES]
    assert 0 < (cams > 0).sum() < cams.numel()
    maps = grad_cam(network, pictures(), CLASSES)
    torch.testing.assert_close(maps * cams[0].numel(), cams.clamp(min=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [U_NET, ENCODER, GAZE_CAM])
def test_leaves_the_network_as_it_was_under_any_mode(config: dict[str, Any]) -> None:
    network = network_of(config)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = grad_cam(network, pictures(), CLASSES)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps = grad_cam(network, pictures(), CLASSES)
        assert not torch.is_grad_enabled()
    assert torch.equal(maps, expected)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    network = network_of(U_NET)
    together = grad_cam(network, pictures(), CLASSES)
    for row in range(5):
        alone = grad_cam(network, pictures()[row, None], CLASSES[row, None])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-3, atol=1e-8)


def test_each_class_of_an_image_has_its_own_map() -> None:
    network = network_of(U_NET)
    maps = grad_cam(network, pictures()[[0, 0]], torch.tensor([0, 1]))
    assert not torch.equal(maps[0], maps[1])


def test_what_nothing_speaks_for_is_measured_as_a_cam_that_is_nowhere_positive(large_cohort: Cohort) -> None:
    network = GazeCAM("resnet10t").eval()
    nn.init.constant_(network.head.weight, -1.0)  # on features that a ReLU left
    rows = [1, 2]  # classes 1 and 2
    maps = true_class_grad_cams(network, large_cohort, rows, pictures(2), 2)
    assert not maps.any()
    measured = cam_measures(large_cohort, rows, network(pictures(2)).cams, AttentionTarget("gaze", sigma=6.0), maps)
    ours, uniform = ({key: per_study(value) for key, value in measured[m].items()} for m in ("grad-cam", "uniform"))
    for key in ("energy_inside", "sim", "cc"):
        assert ours[key].isnan().all()
    assert per_study(measured["model"]["energy_inside"]).isnan().all()
    assert ours["iou"].tolist() == [0, 0]
    assert ours["pointing_game"].tolist() == uniform["pointing_game"].tolist()  # pointing nowhere is chance


def test_a_multi_label_study_has_a_map_for_each_present_class(tmp_path: Any) -> None:
    cohort = multilabel_cohort(tmp_path)
    network = network_of(U_NET | {"num_classes": 3})
    rows = [0, 1, 2, 3]
    present = [(row, c) for row in range(4) for c in range(3) if cohort.targets[row, c] == 1]
    assert len(present) > len({row for row, _ in present})  # a study with several
    maps = true_class_grad_cams(network, cohort, rows, pictures(4), 3)
    assert len(maps) == len(present)
    for (row, c), found in zip(present, maps, strict=True):
        expected = grad_cam(network, pictures(4)[row, None], torch.tensor([c]))
        torch.testing.assert_close(found, expected[0], rtol=1e-3, atol=1e-8)


def test_studies_without_a_true_class_have_no_map(large_cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(large_cohort), "targets", torch.full((len(large_cohort),), -1).numpy())
    maps = true_class_grad_cams(network_of(U_NET), large_cohort, [0, 1], pictures(2), 2)
    assert maps.shape == (0, 1, 1)
    measured = cam_measures(large_cohort, [0, 1], None, AttentionTarget("gaze", sigma=6.0), maps)
    assert set(measured) == {"grad-cam", "uniform"}
    for value in measured["grad-cam"].values():
        assert value.shape == (2, 3)
        assert value.isnan().all()


def test_what_cannot_be_explained() -> None:
    network = network_of(U_NET)
    with pytest.raises(InputError, match="no class head"):
        grad_cam(MTUNet(num_classes=0, width=2).eval(), pictures(), CLASSES)
    with pytest.raises(InputError, match=r"\(5, 1, 96, 64\) and classes of shape \(2,\)"):
        grad_cam(network, pictures(), CLASSES[:2])
    with pytest.raises(InputError, match="evaluation mode"):
        grad_cam(network.train(), pictures(), CLASSES)
