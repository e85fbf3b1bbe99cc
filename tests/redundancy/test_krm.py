"""The kernel redundancy measure: its properties, layers, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.models import MTUNet
from radgaze.redundancy import LayerRedundancy, RedundancyReport, measure, output_images
from radgaze.redundancy.difference import perceived, structural_difference


def images(number: int = 3, channels: int = 1, size: int = 24) -> Tensor:
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(5))


def layer(kernels: Tensor, *, norm: bool = False) -> nn.Sequential:
    """One convolution with these (K, C, k, k) kernels, named "0"."""
    conv = nn.Conv2d(kernels.shape[1], len(kernels), kernels.shape[2], bias=True)
    with torch.no_grad():
        conv.weight.copy_(kernels)
        conv.bias.zero_()
    return nn.Sequential(conv, *([nn.BatchNorm2d(len(kernels))] if norm else []))


def random_kernels(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, 1, 3, 3, generator=torch.Generator().manual_seed(seed))


class TestProperties:
    def test_identical_kernels_leave_one(self) -> None:
        report = measure(layer(random_kernels(1).repeat(8, 1, 1, 1)), images(), keep_difference=True)
        assert report.layers["0"].krm == report.krm == 1 - 1 / 8
        assert report.layers["0"].difference.max() < 1e-5

    def test_mutually_different_kernels_are_not_redundant(self) -> None:
        model = layer(random_kernels(6))
        values = measure(model, images(), keep_difference=True).layers["0"].difference
        below = values[~np.eye(6, dtype=bool)].min()
        assert measure(model, images(), tau=float(below) - 1e-3).krm == 0
        assert measure(model, images(), tau=float(below) + 1e-3).krm > 0

    @pytest.mark.parametrize("tau", [0.3, 0.6, 0.8])
    def test_order_does_not_matter(self, tau: float) -> None:
        kernels = random_kernels(30)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
        assert measure(layer(kernels), images(), tau=tau).krm == measure(layer(kernels[order]), images(), tau=tau).krm

    def test_positive_gain_and_offset_do_not_matter(self) -> None:
        plain, changed = layer(random_kernels(10)), layer(random_kernels(10))
        with torch.no_grad():
            gain = torch.logspace(-2, 2, 10)
            changed[0].weight *= gain[:, None, None, None]
            changed[0].bias += gain * torch.linspace(-3, 3, 10)
        values = [measure(model, images(), keep_difference=True).layers["0"].difference for model in (plain, changed)]
        np.testing.assert_allclose(*values, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("tau", [0.2, 0.5, 0.8])
    @pytest.mark.parametrize("twin", [0, 7, 19])
    def test_a_duplicate_raises_it(self, tau: float, twin: int) -> None:
        kernels = random_kernels(20)
        doubled = torch.cat([kernels, 2.5 * kernels[twin : twin + 1]])
        before, after = (measure(layer(k), images(), tau=tau) for k in (kernels, doubled))
        assert after.krm > before.krm
        assert after.distinct == before.distinct

    def test_difference_is_the_mean_over_images(self) -> None:
        model, probes = layer(random_kernels(5)), images(4)
        found = measure(model, probes, keep_difference=True, after="conv").layers["0"].difference
        with torch.no_grad():
            maps = model(probes)
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        expected = torch.stack([structural_difference(seen) for seen in (maps - low) / (high - low)]).mean(0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert (found == found.T).all()
        assert not found.diagonal().any()


class TestDead:
    def test_constant_everywhere_is_dead(self) -> None:
        kernels = random_kernels(4)
        kernels[1] = 0
        found = measure(layer(kernels), images(), tau=0.01).layers["0"]
        assert found.dead.tolist() == [False, True, False, False]
        assert (found.distinct, found.krm, found.stands_for.tolist()) == (3, 0.25, [0, -1, 2, 3])

    def test_constant_on_some_images_is_live(self) -> None:
        probes = images(2, channels=2)
        probes[0, 1] = probes[1, 0] = 0  # each image shows one channel alone
        kernels = torch.tensor([[[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]]])
        found = measure(layer(kernels), probes, keep_difference=True).layers["0"]
        assert not found.dead.any()
        assert found.difference[0, 1] > 0.9

    def test_all_dead(self) -> None:
        found = measure(layer(torch.zeros(3, 1, 3, 3)), images()).layers["0"]
        assert (found.distinct, found.krm, int(found.dead.sum())) == (0, 1.0, 3)


class TestLayers:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.ConvTranspose2d(6, 2, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(2, 5, 1),
    )

    def test_network_weights_layers_by_parameters(self) -> None:
        report = measure(self.model, images())
        assert {name: found.parameters for name, found in report.layers.items()} == {"0": 40, "2": 216, "3": 50}
        expected = sum(found.parameters * found.krm for found in report.layers.values()) / 306
        assert report.krm == pytest.approx(expected)
        assert report.krm_at[0.5] == pytest.approx(expected)
        assert (report.parameters, report.kernels, report.images, report.tau) == (306, 12, 3, 0.5)

    def test_single_pixel_and_uncalled_layers_are_left_out_with_the_reason(self) -> None:
        class Idle(nn.Sequential):
            def __init__(self, model: nn.Module) -> None:
                super().__init__(model)
                self.idle = nn.Conv2d(1, 1, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self[0](x)

        report = measure(Idle(self.model), images())
        assert report.left_out == {"idle": "the model never calls it", "0.5": "its output has a single pixel"}

    @pytest.mark.parametrize(
        ("layers", "names"),
        [
            ("2", ["2"]),
            ("[02]", ["0", "2"]),
            (nn.ConvTranspose2d, ["3"]),
            ([nn.ConvTranspose2d, "0"], ["0", "3"]),
            (nn.Module, ["0", "2", "3"]),
        ],
    )
    def test_chosen_by_name_glob_and_type(self, layers: object, names: list[str]) -> None:
        assert list(measure(self.model, images(), layers=layers).layers) == names

    def test_the_curve(self) -> None:
        found = measure(self.model, images(), layers="2", taus=[0.9, 0.1], tau=0.1).layers["2"]
        assert list(found.distinct_at) == [0.1, 0.9]
        assert found.distinct_at[0.1] == found.distinct
        assert found.krm_at[0.9] == 1 - found.distinct_at[0.9] / 6

    def test_a_difference_of_ones_own(self) -> None:
        found = measure(self.model, images(), layers="2", difference=lambda maps: torch.zeros(len(maps), len(maps)))
        assert found.distinct == 1

    @pytest.mark.parametrize("difference", ["pearson", "rmse", "rmse-z"])
    def test_other_differences(self, difference: str) -> None:
        assert 0 <= measure(self.model, images(), difference=difference, tau=0.2).krm < 1

    def test_a_module_called_twice_is_averaged_over_its_calls(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = layer(random_kernels(3))

            def forward(self, x: Tensor) -> Tensor:
                return self.conv(x).relu() + self.conv(x)

        model, shared = Twice(), {"layers": "conv.0", "keep_difference": True}
        relu = nn.Sequential(model.conv[0], nn.ReLU())
        twice = measure(model, images(), **shared).layers["conv.0"]
        alone = [measure(m, images(), keep_difference=True).layers["0"].difference for m in (relu, model.conv)]
        np.testing.assert_allclose(twice.difference, (alone[0] + alone[1]) / 2, atol=1e-6)
        assert twice.taken == (("conv.0", "relu"), ("conv.0",))


class TestClusters:
    def found(self, keep_difference: bool = True) -> LayerRedundancy:
        """Three looks: three kernels of one, one alone, five of another; two dead."""
        looks = random_kernels(3)
        chosen = torch.tensor([0, 0, 0, -1, 2, 1, 1, -1, 1, 1, 1])
        kernels = torch.where((chosen < 0)[:, None, None, None], torch.zeros(1, 1, 3, 3), looks[chosen])
        kernels += 0.05 * random_kernels(11, seed=2) * (chosen >= 0)[:, None, None, None]
        return measure(layer(kernels), images(), tau=0.2, keep_difference=keep_difference).layers["0"]

    def test_every_live_kernel_stands_once_and_no_dead_one(self) -> None:
        found = self.found()
        assert np.flatnonzero(found.dead).tolist() == [3, 7]
        assert [sorted(cluster.tolist()) for cluster in found.clusters] == [[5, 6, 8, 9, 10], [0, 1, 2], [4]]
        assert len(found.clusters) == found.distinct

    def test_the_distinct_kernel_leads(self) -> None:
        found = self.found()
        assert {int(cluster[0]) for cluster in found.clusters} == set(found.stands_for[~found.dead].tolist())
        for cluster in found.clusters:
            assert (found.stands_for[cluster] == cluster[0]).all()

    def test_the_most_alike_come_first(self) -> None:
        found = self.found()
        steps = [found.difference[cluster[0], cluster] for cluster in found.clusters]
        assert all((np.diff(step) >= 0).all() for step in steps)
        assert steps[0][0] == 0
        assert any(cluster[1:].tolist() != sorted(cluster[1:]) for cluster in found.clusters)  # not by number

    def test_by_number_where_no_difference_was_kept(self) -> None:
        clusters = self.found(keep_difference=False).clusters
        assert all(cluster[1:].tolist() == sorted(cluster[1:]) for cluster in clusters)
        assert [set(c.tolist()) for c in clusters] == [set(c.tolist()) for c in self.found().clusters]

    def test_all_dead(self) -> None:
        assert measure(layer(torch.zeros(3, 1, 3, 3)), images()).layers["0"].clusters == []


class TestJson:
    def report(self) -> RedundancyReport:
        kernels = random_kernels(6)
        kernels[1] = 0
        kernels[4] = 2 * kernels[2]
        return measure(nn.Sequential(layer(kernels, norm=True), nn.Conv2d(6, 3, 3)), images(), taus=[0.9, 0.1])

    def test_layers(self) -> None:
        report = self.report()
        told = report.to_json()["layers"]
        assert list(told) == list(report.layers) == ["0.0", "1"]
        first, found = told["0.0"], report.layers["0.0"]
        assert first == {
            "kernels": 6,
            "distinct": found.distinct,
            "dead": [1],
            "krm": 1 - found.distinct / 6,
            "parameters": 60,
            "size": [22, 22],
            "taken": [["0.0", "0.1"]],
            "distinct_at": [found.distinct_at[0.1], found.distinct_at[0.9]],
            "stands_for": found.stands_for.tolist(),
        }
        assert first["stands_for"][1] == -1
        assert first["stands_for"][2] == first["stands_for"][4]
        assert first["distinct_at"][0] > first["distinct_at"][1]

    def test_network(self) -> None:
        report = self.report()
        told = report.to_json()
        layers = told["layers"].values()
        weights = [60, 6 * 3 * 9 + 3]
        assert told["network"] == {
            "krm": pytest.approx(np.average([each["krm"] for each in layers], weights=weights)),
            "kernels": 9,
            "distinct": sum(each["distinct"] for each in layers),
            "dead": 1,
            "parameters": sum(weights),
            "krm_at": [
                pytest.approx(
                    np.average([1 - each["distinct_at"][i] / each["kernels"] for each in layers], weights=weights)
                )
                for i in range(2)
            ],
        }
        assert (told["taus"], told["tau"], told["images"], told["left_out"]) == ([0.1, 0.9], 0.5, 3, {})

    def test_it_survives_being_written(self) -> None:
        told = self.report().to_json()
        assert json.loads(json.dumps(told, allow_nan=False)) == told


class TestOutputImages:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))

    @pytest.mark.parametrize(("after", "module"), [("conv", 0), ("norm", 1), ("activation", 2)])
    def test_they_are_what_a_hook_sees(self, after: str, module: int) -> None:
        seen: list[Tensor] = []
        hook = self.model[module].register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
        self.model.eval()
        self.model(images(1))
        hook.remove()
        found = output_images(self.model, images(1)[0], layers="0", after=after)
        assert list(found) == ["0"]
        assert torch.equal(found["0"], perceived(seen[0][0]))
        assert (found["0"].min(), found["0"].max()) == (0, 1)

    def test_all_layers_in_the_order_of_calls(self) -> None:
        found = output_images(self.model, images(1)[0])
        assert {name: tuple(maps.shape) for name, maps in found.items()} == {"0": (4, 22, 22), "3": (2, 20, 20)}

    def test_a_kernel_that_shows_nothing_is_black(self) -> None:
        kernels = random_kernels(2)
        kernels[1] = 0
        found = output_images(layer(kernels), images(1)[0])["0"]
        assert found[0].any()
        assert not found[1].any()

    def test_the_model_is_left_as_it_was(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        model.train()
        model[1].eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        output_images(model, images(1)[0])
        assert [module.training for module in model] == [True, False, True]
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)

    def test_misspelt_names(self) -> None:
        with pytest.raises(InputError, match="No convolution is named '9': choose one of 0, 3"):
            output_images(self.model, images(1)[0], layers="9")
        with pytest.raises(InputError, match="did you mean 'norm'"):
            output_images(self.model, images(1)[0], after="nrm")


def test_progress_is_shown_when_asked_for_and_never_among_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    measure(layer(random_kernels(2)), images())
    assert capsys.readouterr() == ("", "")
    measure(layer(random_kernels(2)), images(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""  # where --json goes
    assert "looking at kernels" in err


def test_mt_unet() -> None:
    report = measure(MTUNet(width=2), images(2, size=32))
    assert len(report.layers) == 24
    assert report.layers["body.up.0.1"].taken == (("body.up.0.1", "body.up.0.2", "body.up.0.3"),)
    assert 0 <= report.krm <= 1


def test_resnet50() -> None:
    report = measure(
        torchvision.models.resnet50(weights=None), images(2, channels=3, size=64), layers=["conv1", "layer1.*"]
    )
    assert len(report.layers) == 11
    assert report.layers["layer1.0.conv3"].size == (16, 16)


def test_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout())
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probes = images()
    kept = probes.clone()
    measure(model, probes)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(probes, kept)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_measures_the_same() -> None:
    model = layer(random_kernels(12), norm=True)
    on_cpu = measure(model, images(), keep_difference=True).layers["0"].difference
    on_gpu = measure(model.cuda(), images(), keep_difference=True).layers["0"].difference
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)


class TestRefused:
    model = layer(random_kernels(3))

    def refused(
        self, match: str, model: nn.Module | None = None, probes: Tensor | None = None, **settings: object
    ) -> None:
        with pytest.raises(InputError, match=match) as error:
            measure(model or self.model, images() if probes is None else probes, **settings)
        assert "\n" not in str(error.value)

    def test_no_convolution(self) -> None:
        self.refused("Linear has no convolution", model=nn.Linear(3, 3))

    def test_one_image(self) -> None:
        self.refused("holds 1 image, expected at least 2", probes=images(1))

    def test_constant_image(self) -> None:
        probes = images()
        probes[1] = 0.3
        self.refused("Image 1 is constant", probes=probes)

    @pytest.mark.parametrize("shape", [(3, 24, 24), (0, 1, 24, 24)])
    def test_image_shape(self, shape: tuple[int, ...]) -> None:
        self.refused(r"expected \(N, C, H, W\)", probes=torch.zeros(shape))

    def test_nan_image(self) -> None:
        probes = images()
        probes[0, 0, 3, 3] = math.nan
        self.refused("NaN or infinite pixel", probes=probes)

    def test_nan_weights(self) -> None:
        kernels = random_kernels(3)
        kernels[1, 0, 0, 0] = math.nan
        self.refused("'0.weight' has NaN", model=layer(kernels))

    def test_outputs_that_overflow(self) -> None:
        model = layer(torch.full((3, 1, 3, 3), 1e38))
        self.refused("'0' gives NaN or infinite values on image 0", model=model, probes=images() * 9)

    @pytest.mark.parametrize("tau", [0, 1, -0.5, 7, math.nan])
    def test_threshold(self, tau: float) -> None:
        self.refused("between 0 and 1", tau=tau)
        self.refused("between 0 and 1", taus=[0.5, tau])

    def test_misspelt_names(self) -> None:
        self.refused("No convolution is named 'layer9'", layers="layer9")
        self.refused("no convolution of type Linear", layers=nn.Linear)
        self.refused("layers is empty", layers=[])
        self.refused("did you mean 'activation'", after="activaton")
        self.refused("did you mean 'pearson'", difference="pearsn")

    def test_only_single_pixels(self) -> None:
        self.refused("single pixel.*larger images", probes=images(size=3))

    def test_a_difference_of_the_wrong_shape(self) -> None:
        self.refused("expected .3, 3.", difference=lambda maps: torch.zeros(2))
