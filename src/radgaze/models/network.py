"""What every radgaze network has beside its forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from radgaze.errors import InputError

__all__ = ["Network", "as_input", "check_multiple", "evaluating"]


class Network(nn.Module):
    """A network that :func:`radgaze.models.build` can rebuild from its :attr:`config`; it returns an ``Output``."""

    name: ClassVar[str]
    config: dict[str, Any]
    predicts_attention: ClassVar[bool] = False  # whether its output has saliency_logits

    def attention_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size (h, w) of the attention maps the network is taught with, for images of ``size``: the images' own.

        Raises:
            InputError: The network cannot take images of that size.
        """
        return size

    @property
    def explained_layer(self) -> nn.Module | None:
        """The layer whose output, feature maps ``(B, K, h, w)``, Grad-CAM explains a class by; None without classes."""
        return None


def as_input(images: Tensor, in_channels: int, multiple: int) -> Tensor:
    """Images as a network takes them: grey ones repeated where it has colour channels.

    Raises:
        InputError: Another number of channels, or sides that the network cannot halve often enough; the padded size
            that it can is named.
    """
    if images.ndim == 4 and images.shape[1] == 1:
        images = images.expand(-1, in_channels, -1, -1)
    if images.ndim != 4 or images.shape[1] != in_channels:
        raise InputError(
            f"The network got images of shape {tuple(images.shape)}; expected (batch, {in_channels}, height, width)."
        )
    check_multiple((images.shape[-2], images.shape[-1]), multiple)
    return images


def check_multiple(size: tuple[int, int], multiple: int) -> None:
    height, width = size
    padded = [-(-side // multiple) * multiple for side in (height, width)]
    if [height, width] != padded:
        raise InputError(
            f"Images of {height}x{width} do not divide by {multiple}; pad or resize them to {padded[0]}x{padded[1]}."
        )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
