"""Random changes of training studies, a pure function of (seed, epoch, study): the same on every machine and resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from radgaze.training.config import Augmentation

__all__ = ["Motion", "draw_motion", "shade"]


@dataclass(frozen=True)
class Motion:
    """One affine motion per study, of pixels and of points alike: ``p' = linear (p - centre) + centre + shift``.

    Attributes:
        linear: ``(B, 2, 2)`` acting on (column, row) in grid pixels.
        shift: ``(B, 2)`` columns and rows.
        size: ``(h, w)`` of the grid whose centre stays put.
    """

    linear: Tensor
    shift: Tensor
    size: tuple[int, int]

    def points(self, study: int, column: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Where the points of the ``study``-th image go, in grid pixels."""
        height, width = self.size
        centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
        moved = (torch.stack([column, row], 1).double() - centre) @ self.linear[study].T + centre + self.shift[study]
        return moved[:, 0], moved[:, 1]

    def images(self, images: Tensor) -> Tensor:
        """Move ``(B, C, h, w)`` float images, bilinearly, zeros coming in from outside."""
        half = torch.tensor([self.size[1] / 2, self.size[0] / 2], dtype=torch.float64)
        inverse = torch.linalg.inv(self.linear)
        # affine_grid asks where an output pixel comes from, in units of half the image
        turn = inverse * half[None, None, :] / half[None, :, None]
        shift = -(inverse @ self.shift[:, :, None]) / half[None, :, None]
        theta = torch.cat([turn, shift], dim=2).to(images.dtype)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def draw_motion(
    settings: Augmentation, size: tuple[int, int], generators: Sequence[np.random.Generator]
) -> Motion | None:
    """A random motion for each study, or ``None`` when the settings move nothing."""
    if not settings.moves:
        return None
    linear = torch.empty(len(generators), 2, 2, dtype=torch.float64)
    shift = torch.empty(len(generators), 2, dtype=torch.float64)
    for study, random in enumerate(generators):
        angle, across, down, zoom = random.uniform(-1, 1, 4)
        flip = -1.0 if settings.flip and random.random() < 0.5 else 1.0
        angle = math.radians(settings.rotate) * angle
        scale = (1 + settings.zoom) ** zoom
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear[study] = torch.tensor([[cos * flip, -sin], [sin * flip, cos]], dtype=torch.float64)
        shift[study] = torch.tensor([across * size[1], down * size[0]], dtype=torch.float64) * settings.translate
    return Motion(linear, shift, size)


def shade(images: Tensor, settings: Augmentation, generators: Sequence[np.random.Generator]) -> Tensor:
    """Random gamma and gain on ``(B, 1, h, w)`` images in [0, 1]; the result is clipped to [0, 1]."""
    if not settings.shades:
        return images
    drawn = torch.from_numpy(np.stack([random.uniform(-1, 1, 2) for random in generators])).to(images.dtype)
    gamma = (drawn[:, 0] * settings.gamma).exp().view(-1, 1, 1, 1)
    gain = (1 + drawn[:, 1] * settings.gain).view(-1, 1, 1, 1)
    return (images**gamma * gain).clamp(0, 1)
