"""Which value is taken for a convolution, whatever way the network is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.redundancy.capture import After, read_chains, watch

IMAGE = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """One convolution and normalisation, and whatever ``forward`` makes of them."""

    def __init__(self, forward: Callable[[Written, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.silu = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU(inplace=True)
        self.norm.running_mean.uniform_(-1, 1)
        self.drop, self.next = nn.Dropout(), nn.Conv2d(3, 3, 1)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


Taken = dict[str, tuple[tuple[str, ...], Tensor]]


def taken(model: nn.Module, image: Tensor = IMAGE, after: After = "activation") -> Taken:
    model.eval()
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        chains = read_chains(model, image, convs, after)
        watch(model, image, convs, chains, lambda name, output: values.__setitem__(name, output.clone()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return {chain.conv: (chain.operations, values[chain.conv]) for chain in chains}


WAYS = {
    "modules": (lambda m, x: m.next(m.silu(m.norm(m.conv(x)))), ("conv", "norm", "silu"), F.silu),
    "functions": (lambda m, x: m.next(F.relu(m.norm(m.conv(x)))), ("conv", "norm", "relu"), F.relu),
    "a method in place": (lambda m, x: m.next(m.norm(m.conv(x)).relu_()), ("conv", "norm", "relu_"), F.relu),
    "over dropout": (lambda m, x: m.next(m.silu(m.drop(m.norm(m.conv(x))))), ("conv", "norm", "silu"), F.silu),
    "a question on the way": (
        lambda m, x: m.next(F.relu(m.norm(m.conv(x))) if m.conv(x).shape[1] == 3 else x),
        ("conv", "norm", "relu"),
        F.relu,
    ),
    "a residual addition": (lambda m, x: F.relu(m.norm(m.conv(x)) + 1), ("conv", "norm"), lambda y: y),
    "an addition in place": (lambda m, x: F.relu(m.norm(m.conv(x)).add_(1)), ("conv", "norm"), lambda y: y),
    "two readers": (lambda m, x: F.relu(y := m.norm(m.conv(x))) + y, ("conv", "norm"), lambda y: y),
    "a keyword": (lambda m, x: F.relu(input=m.norm(input=m.conv(input=x))), ("conv", "norm", "relu"), F.relu),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_chain_is_found(way: str) -> None:
    forward, operations, activation = WAYS[way]
    model = Written(forward)
    found, value = taken(model)["conv"]
    assert found == operations
    with torch.no_grad():
        torch.testing.assert_close(value, activation(model.norm(model.conv(IMAGE))))


@pytest.mark.parametrize(
    ("after", "operations"), [("conv", ("conv",)), ("norm", ("conv", "norm")), ("activation", ("conv", "norm", "silu"))]
)
def test_before_normalisation_or_activation(after: After, operations: tuple[str, ...]) -> None:
    model = Written(WAYS["modules"][0])
    found, value = taken(model, after=after)["conv"]
    assert found == operations
    expected = IMAGE
    with torch.no_grad():
        for name in operations:
            expected = model.get_submodule(name)(expected)
    torch.testing.assert_close(value, expected)


def test_two_readers_of_the_convolution() -> None:
    assert taken(Written(lambda m, x: m.norm(y := m.conv(x)) + y))["conv"][0] == ("conv",)


def test_a_convolution_called_twice_has_two_chains() -> None:
    model = Written(lambda m, x: F.relu(m.conv(x)) + m.conv(x.flip(-1)))
    with torch.no_grad():
        chains = read_chains(model, IMAGE, {"conv": model.conv}, "activation")
    assert [chain.operations for chain in chains] == [("conv", "relu"), ("conv",)]


def test_changing_control_flow_is_refused() -> None:
    model = Written(lambda m, x: F.relu(m.conv(x)) if x.sum() > 0 else F.silu(m.conv(x))).eval()
    with torch.no_grad():
        chains = read_chains(model, IMAGE.abs(), {"conv": model.conv}, "activation")
        with pytest.raises(InputError, match="other operations after 'conv'"):
            watch(model, -IMAGE.abs(), {"conv": model.conv}, chains, lambda name, output: None)


def test_hooks_go_after_an_error() -> None:
    def fail(model: Written, x: Tensor) -> Tensor:
        model.norm(model.conv(x))
        raise RuntimeError("broken")

    model = Written(fail)
    with pytest.raises(RuntimeError, match="broken"):
        read_chains(model, IMAGE, {"conv": model.conv}, "activation")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.overrides._get_current_function_mode_stack() == []


def test_resnet50_of_torchvision_ends_before_the_addition() -> None:
    chains = taken(torchvision.models.resnet50(weights=None), torch.rand(1, 3, 32, 32))
    assert len(chains) == 53
    assert chains["conv1"][0] == ("conv1", "bn1", "relu")
    assert chains["layer3.1.conv2"][0] == ("layer3.1.conv2", "layer3.1.bn2", "layer3.1.relu")
    assert chains["layer3.1.conv3"][0] == ("layer3.1.conv3", "layer3.1.bn3")
    assert chains["layer4.0.downsample.0"][0] == ("layer4.0.downsample.0", "layer4.0.downsample.1")


def test_resnet_of_timm() -> None:
    chains = taken(timm.create_model("resnet26", pretrained=False), torch.rand(1, 3, 32, 32))
    assert chains["layer2.0.conv1"][0] == ("layer2.0.conv1", "layer2.0.bn1", "layer2.0.act1")
    assert chains["layer2.0.conv2"][0] == ("layer2.0.conv2", "layer2.0.bn2", "layer2.0.act2")
    assert chains["layer2.0.conv3"][0] == ("layer2.0.conv3", "layer2.0.bn3")


def test_normalisation_with_an_activation_inside() -> None:
    chains = taken(timm.create_model("efficientnet_b0", pretrained=False), torch.rand(1, 3, 32, 32))
    assert chains["blocks.1.0.conv_pw"][0] == ("blocks.1.0.conv_pw", "batch_norm", "blocks.1.0.bn1.act")
