"""Grad-CAM: where in an image a trained network's evidence for a class lies, for any network with a class head.

    alpha_k = mean_ij d logit_c / d F_k(i, j),      L_c(i, j) = max(0, sum_k alpha_k · F_k(i, j))

Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*, ICCV 2017, as
captum's ``LayerGradCam`` computes it. F is the output of the layer that the network names itself,
:attr:`radgaze.models.Network.explained_layer`. The maps stay on that layer's grid; nothing is blown up.

It needs nothing from training, so it measures a network that was never taught where to look by the usual means. Where
the logit is a mean of linear maps of F, as in :class:`radgaze.models.GazeCAM`, it is the positive part of the class
activation map, divided by the number of cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from radgaze.errors import InputError
from radgaze.models import Network

__all__ = ["grad_cam"]


def grad_cam(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """The evidence for one class in each image: one forward and one backward pass in float32.

    Works under ``torch.no_grad()`` too, and leaves the network as it was, without gradients.

    Args:
        network: In evaluation mode, on the images' device.
        images: ``(B, C, H, W)`` in [0, 1]. Repeat an image to have it explained for several classes.
        classes: ``(B,)`` int64, the class to explain in each image.

    Returns:
        ``(B, h, w)`` float32 maps >= 0 on the grid of the network's explained layer; zero everywhere where nothing
        speaks for the class. Without images ``(0, 1, 1)``: only a forward pass tells the grid.

    Raises:
        InputError: A network without a class head or in training mode, or classes that do not fit the images.
    """
    from captum.attr import LayerGradCam  # heavy: only Grad-CAM pays for it

    layer = network.explained_layer
    if layer is None:
        raise InputError(f"The network {network.name!r} has no class head, so Grad-CAM has no class to explain.")
    if network.training:
        raise InputError("Grad-CAM needs the network in evaluation mode; call network.eval() first.")
    if classes.shape != images.shape[:1]:
        raise InputError(
            f"Grad-CAM got images of shape {tuple(images.shape)} and classes of shape {tuple(classes.shape)}; "
            "expected one class for each image."
        )
    if len(images) == 0:
        return torch.zeros(0, 1, 1, device=images.device)
    # A state dict is detached: nothing before the layer is kept for the backward pass, no parameter gets a gradient.
    weights = network.state_dict()

    def logits(batch: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(network, weights, (batch,)).logits
        return output

    with torch.autocast(images.device.type, enabled=False):
        maps: Tensor = LayerGradCam(logits, layer).attribute(
            images.float(), target=classes.to(images.device), relu_attributions=True
        )
    return maps.detach()[:, 0]
