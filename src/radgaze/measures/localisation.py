"""Whether a class activation map (CAM) points at the structure that its class should be read from.

    pointing game   hit if any pixel of the mask lies in the 3×3 cells around the CAM's peak
    energy          Σ_inside CAM⁺ / Σ CAM⁺, CAM⁺ = max(CAM, 0)
    IoU             |region ∩ mask| / |region ∪ mask|, region = {CAM >= threshold · max CAM}

Sources: the pointing game of Zhang et al. (IJCV 2018) as *Gaze-Guided Class Activation Mapping* (arXiv 2202.07107)
plays it, on the CAM's own grid with a tolerance of one cell; energy after Score-CAM (Wang et al., CVPR Workshops 2020).

A CAM is coarse (48×40 cells) and a mask fine (640×512 pixels). The CAM is never blown up and the mask never thrown
away: CAM cells are equal cells over the mask's grid (:meth:`radgaze.Grid.coarsen`), so the mask enters as the exact
**share of each cell that it covers** (:func:`coverage`). Energy and IoU are thereby what one would get by painting each
cell's value on the mask's pixels, for any pair of sizes; the pointing game asks whether that share is above zero.

Masks are uint8 as a cohort stores them, 0 outside, 1 inside, 255 unknown, or bool. Unknown pixels belong to neither
side: they are left out of energy and IoU, and a peak does not hit them. All functions map (B, h, w) CAMs and (B, H, W)
masks to (B,) float64 values, NaN for a study whose mask is empty or unknown throughout: there is nothing to find.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from radgaze.errors import InputError

__all__ = ["coverage", "energy_inside", "iou", "pointing_game"]

UNKNOWN = 255


def pointing_game(cam: Tensor, mask: Tensor, *, tolerance: int = 1) -> Tensor:
    """Whether the CAM's peak points at the mask.

    Where several cells share the peak the value is the share of them that hit: what picking one at random would give on
    average. A constant CAM so scores the chance level.

    Args:
        cam: (B, h, w) activation maps of one class each, any real values.
        mask: (B, H, W) masks, see the module.
        tolerance: cells around the peak that count as hit too; 1 is the 3×3 neighbourhood.

    Returns:
        (B,) values in [0, 1], 0 or 1 where the peak is one cell; NaN without a mask.

    Raises:
        InputError: for NaN or infinite activations, shapes that do not fit, other mask values, or a negative tolerance.
    """
    if tolerance < 0:
        raise InputError(f"tolerance is {tolerance}: give 0 for the peak's cell alone, or more cells around it")
    cam, inside, _ = _on_grid(cam, mask)
    touched = (inside > 0).double()[:, None]
    near = max_pool2d(touched, 2 * tolerance + 1, stride=1, padding=tolerance)[:, 0]
    peak = cam == cam.amax((1, 2), keepdim=True)
    hits = (near * peak).sum((1, 2)) / peak.sum((1, 2))
    return _where_mask(hits, inside)


def energy_inside(cam: Tensor, mask: Tensor) -> Tensor:
    """Share of the CAM's positive activation that lies inside the mask.

    Args:
        cam: (B, h, w) activation maps of one class each; negative values carry no energy.
        mask: (B, H, W) masks, see the module.

    Returns:
        (B,) values in [0, 1], the mask's share of the known area for a constant CAM; NaN without a mask, or where
        nothing is activated.

    Raises:
        InputError: for NaN or infinite activations, shapes that do not fit, or other mask values.
    """
    cam, inside, known = _on_grid(cam, mask)
    energy = cam.clamp_min(0)
    return _where_mask((energy * inside).sum((1, 2)) / (energy * known).sum((1, 2)), inside)


def iou(cam: Tensor, mask: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Intersection over union of the mask and the region where the CAM reaches a share of its maximum.

    Args:
        cam: (B, h, w) activation maps of one class each; a CAM that is nowhere positive activates nothing.
        mask: (B, H, W) masks, see the module.
        threshold: share of the CAM's maximum, in (0, 1].

    Returns:
        (B,) values in [0, 1]; NaN without a mask.

    Raises:
        InputError: for NaN or infinite activations, shapes that do not fit, other mask values, or a threshold outside
        (0, 1].
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold is {threshold:g}: give a share of the CAM's maximum above 0 and at most 1")
    cam, inside, known = _on_grid(cam, mask)
    highest = cam.amax((1, 2), keepdim=True)
    region = ((cam >= threshold * highest) & (highest > 0)).double()
    intersection = (region * inside).sum((1, 2))
    union = (region * known).sum((1, 2)) + inside.sum((1, 2)) - intersection
    return _where_mask(intersection / union, inside)


def coverage(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each of h × w equal cells that a mask covers, exact for any pair of sizes.

    Args:
        mask: (B, H, W) bool or numbers, such as a 0/1 mask.
        size: (h, w) of the cells, which together cover the mask's grid; cells may be smaller than mask pixels.

    Returns:
        (B, h, w) float64 means over the cells, in [0, 1] for a mask.
    """
    rows, columns = (
        _overlap(cells, pixels).to(mask.device) for cells, pixels in zip(size, mask.shape[-2:], strict=True)
    )
    return rows @ mask.double() @ columns.T


def _overlap(cells: int, pixels: int) -> Tensor:
    """(cells, pixels) share of each cell that each pixel makes up, when both divide the same length."""
    cell = torch.arange(cells, dtype=torch.float64)[:, None] * pixels
    pixel = torch.arange(pixels, dtype=torch.float64)[None] * cells
    # In units of 1 / (cells · pixels) of the length all edges are whole numbers: nothing is rounded until the division.
    shared = torch.minimum(cell + pixels, pixel + cells) - torch.maximum(cell, pixel)
    return shared.clamp_min(0) / pixels


def _on_grid(cam: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CAM, and the inside and known shares of its cells, float64 (B, h, w)."""
    if cam.ndim != 3 or mask.ndim != 3 or len(cam) != len(mask) or 0 in cam.shape[1:] or 0 in mask.shape[1:]:
        raise InputError(
            f"cam has shape {tuple(cam.shape)} and mask {tuple(mask.shape)}: "
            "expected (B, h, w) and (B, H, W), the true class's CAM and one structure's mask for each study"
        )
    cam = cam.double()
    if not cam.isfinite().all():
        raise InputError("cam has a NaN or infinite activation: mend or leave out that study")
    inside, known = mask == 1, mask != UNKNOWN
    odd = mask[known & (mask != 0) & ~inside]
    if len(odd):
        raise InputError(f"mask holds {odd[0].item():g}: expected 0 outside, 1 inside and 255 unknown")
    size = (cam.shape[1], cam.shape[2])
    return cam, coverage(inside, size), coverage(known, size)


def _where_mask(values: Tensor, inside: Tensor) -> Tensor:
    return torch.where(inside.sum((1, 2)) > 0, values, torch.nan)
