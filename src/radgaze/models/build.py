"""A network is a plain config: a dictionary rebuilds it, its weights are a safetensors file."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from radgaze.errors import InputError, nearest
from radgaze.files import atomic_path
from radgaze.models.gaze_cam import GazeCAM
from radgaze.models.mt_unet import MTUNet
from radgaze.models.network import Network
from radgaze.models.weights import read_tensors

__all__ = ["NETWORKS", "build", "load_weights", "parameters", "save_weights", "write_tensors"]

NETWORKS: dict[str, type[Network]] = {network.name: network for network in (MTUNet, GazeCAM)}

MOST_PARAMETERS = 1 << 30  # the largest convolutional networks have 0.9 billion

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def build(config: Mapping[str, Any]) -> Network:
    """The network that ``config`` describes, with fresh weights.

    Args:
        config: ``{"name": "mt-unet", "num_classes": 3, ...}``; every other key is an argument of that network, but for
            ``"widths"``: the channels of its groups where they are fewer (:func:`radgaze.models.channels.set_widths`).

    Raises:
        InputError: Missing or unknown name, a key or a value the network does not take, or a network that is too large.
    """
    arguments = dict(config)
    name, widths = arguments.pop("name", None), arguments.pop("widths", None)
    if not isinstance(name, str) or name not in NETWORKS:
        raise InputError(f"There is no network {name!r}: {nearest(str(name), NETWORKS)}")
    known = set(inspect.signature(NETWORKS[name]).parameters)
    for key in arguments:
        if key not in known:
            raise InputError(f"The network {name!r} takes no setting {key!r}: {nearest(key, known)}")
    try:
        with _Limited(name):
            network = NETWORKS[name](**arguments)
        if widths:
            from radgaze.models.channels import set_widths  # heavy: only simplified networks pay for it

            set_widths(network, widths)
            network.config["widths"] = dict(widths)
    except InputError:
        raise
    except Exception as error:  # torch and timm raise many kinds for values of another type
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"The network {name!r} cannot be made with {repr(arguments)[:200]} ({reason}).") from error
    return network


class _Limited(TorchFunctionMode):
    """Refuses a network of more than ``MOST_PARAMETERS`` before the memory for them is asked for."""

    makers = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.numbers = name, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.makers and str(kwargs.get("device")) != "meta":
            size = args[0] if args and isinstance(args[0], list | tuple) else args
            self.numbers += math.prod(extent for extent in size if isinstance(extent, int))
            if self.numbers > MOST_PARAMETERS:
                raise InputError(
                    f"The network {self.name!r} would have more than {MOST_PARAMETERS:,} parameters; give it smaller "
                    "widths."
                )
        return func(*args, **kwargs)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors."""
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of a network, whole or not at all."""
    with atomic_path(path) as partial:
        write_tensors(model.state_dict(), partial)


def load_weights(model: AnyModule, path: Path) -> AnyModule:
    """Fill ``model`` with the weights in ``path`` and return it; names and shapes must match exactly.

    Raises:
        InputError: The file is missing, damaged, or belongs to another network.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {str(path)!r}; train the run first or give another run.")
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise InputError(
            f"The weights in {str(path)!r} do not fit the network they are loaded into; "
            f"keep a run's files together ({str(error).splitlines()[-1].strip()})."
        ) from error
    return model
