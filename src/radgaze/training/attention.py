"""Where a network is told to look: the reader's gaze, or a stand-in (an anatomical mask, boxes), chosen at training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from radgaze.cohort import Cohort
from radgaze.errors import InputError, nearest
from radgaze.gaze import PRESETS, Gaze, Grid, render_batch
from radgaze.training.augment import Motion

__all__ = ["AttentionTarget"]

UNKNOWN = 255  # mask value of pixels nobody annotated


@dataclass(frozen=True)
class AttentionTarget:
    """An attention map for each study, in [0, 1], on any grid.

    Args:
        spec: ``"gaze"``; ``"mask:NAME"``, one of the cohort's structures; ``"boxes"``, the union of a study's boxes;
            ``"boxes:NAME"``, those of one name; ``"none"``.
        preset: How gaze is rendered (:data:`radgaze.gaze.PRESETS`).
        sigma: Standard deviation of the rendered Gaussian in source pixels; ``None`` keeps the preset's.
    """

    spec: str
    preset: str = "mt-unet"
    sigma: float | None = None

    def __post_init__(self) -> None:
        kind, _, name = self.spec.partition(":")
        if kind not in ("gaze", "mask", "boxes", "none") or (kind == "mask" and not name):
            raise InputError(
                f"Attention target {self.spec!r} is not known; use gaze, mask:NAME (e.g. mask:lungs), boxes or none."
            )
        if self.preset not in PRESETS:
            raise InputError(f"There is no rendering preset {self.preset!r}: {nearest(self.preset, PRESETS)}")

    @property
    def kind(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def name(self) -> str:
        return self.spec.partition(":")[2]

    def is_in(self, cohort: Cohort) -> bool:
        """Whether a cohort has anything of the kind."""
        wanted = self.spec if self.kind == "mask" else self.kind
        return self.kind == "none" or wanted in available_targets(cohort)

    def check(self, cohort: Cohort) -> None:
        """Refuse a cohort that has nothing of the kind, naming what it does have."""
        if not self.is_in(cohort):
            available = available_targets(cohort)
            raise InputError(
                f"Cohort {cohort.name!r} has no attention target {self.spec!r}; it has "
                f"{', '.join(available) if available else 'none at all, so import it with gaze, masks or boxes'}."
            )

    def describe(self, cohort: Cohort) -> str:
        """One line for tables and reports: the attention target is always named there."""
        if self.kind == "gaze":
            sigma = f", sigma {self.sigma:.4g} px" if self.sigma else ""
            return f"reader's gaze ({cohort.gaze_kind}, preset {self.preset}{sigma})"
        if self.kind == "mask":
            return f"{self.name} mask (anatomy, not gaze)"
        if self.kind == "boxes":
            return f"{self.name or 'all'} boxes (annotation, not gaze)"
        return "none"

    def maps(
        self, cohort: Cohort, studies: Sequence[int], motion: Motion | None = None, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention maps of some studies.

        Args:
            cohort: Where the studies are.
            studies: ``B`` row numbers in ``cohort.studies``.
            motion: The random motion that the images went through, if any.
            size: ``(h, w)`` of the maps; the cohort's image size by default. Coarser sizes are for CAM grids.

        Returns:
            ``(B, h, w)`` float32 in [0, 1], and ``(B,)`` bool: False where a study has no attention map (then zeros).
        """
        height, width = size or cohort.size
        size = (height, width)
        if self.kind == "gaze":
            return self.gaze_maps(cohort, studies, motion, size)
        if self.kind == "mask":
            maps, present = self.mask_maps(cohort, studies)
        elif self.kind == "boxes":
            maps, present = self.box_maps(cohort, studies)
        else:
            return torch.zeros(len(studies), *size), torch.zeros(len(studies), dtype=torch.bool)
        if motion is not None:
            maps = motion.images(maps[:, None])[:, 0]
        if size != cohort.size:
            maps = F.adaptive_avg_pool2d(maps[:, None], size)[:, 0]
        return maps, present & (maps.flatten(1).amax(1) > 0)

    def gaze_maps(
        self, cohort: Cohort, studies: Sequence[int], motion: Motion | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        gazes: list[Gaze] = []
        grids: list[Grid] = []
        sizes: list[tuple[int, int]] = []
        for position, index in enumerate(studies):
            study = cohort[index]
            gaze = study.gaze or Gaze([], [])
            if motion is not None and len(gaze):
                moved = motion.points(position, *study.grid.to_grid(gaze.x, gaze.y))
                x, y = study.grid.to_source(*moved)
                gaze = replace(gaze, x=x, y=y)
            gazes.append(gaze)
            grids.append(study.grid if size == study.grid.size else study.grid.coarsen(size))
            sizes.append(study.source_size)
        return render_batch(gazes, sizes, grids, preset=self.preset, sigma=self.sigma)

    def mask_maps(self, cohort: Cohort, studies: Sequence[int]) -> tuple[Tensor, Tensor]:
        masks = torch.from_numpy(np.stack([cohort.mask(study, self.name) for study in studies]))
        return (masks == 1).float(), (masks != UNKNOWN).flatten(1).any(1)

    def box_maps(self, cohort: Cohort, studies: Sequence[int]) -> tuple[Tensor, Tensor]:
        height, width = cohort.size
        maps = torch.zeros(len(studies), height, width)
        present = torch.zeros(len(studies), dtype=torch.bool)
        for position, index in enumerate(studies):
            study = cohort[index]
            grid = study.grid
            for box in study.boxes:
                if self.name and box.name != self.name:
                    continue
                present[position] = True
                rows = covered(grid.y0, grid.dy, height, box.ymin, box.ymax)
                columns = covered(grid.x0, grid.dx, width, box.xmin, box.xmax)
                maps[position] = torch.maximum(maps[position], rows[:, None] * columns[None, :])
        return maps, present


def available_targets(cohort: Cohort) -> list[str]:
    masks = [f"mask:{name}" for name in cohort.structures]
    return ["gaze"] * bool(cohort.gaze_kind) + masks + ["boxes"] * cohort.has_boxes


def covered(first: float, step: float, count: int, low: float, high: float) -> Tensor:
    """Share of each of ``count`` cells (centres ``first + i * step``, width ``step``) inside [low, high]."""
    centres = first + step * torch.arange(count, dtype=torch.float64)
    overlap = (centres + step / 2).clamp(max=high) - (centres - step / 2).clamp(min=low)
    return (overlap / step).clamp(0, 1).float()
