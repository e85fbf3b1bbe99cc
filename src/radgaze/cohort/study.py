"""One reading of one image: a light view into an open cohort that loads each part when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from radgaze.errors import InputError

if TYPE_CHECKING:
    from radgaze.cohort.store import Cohort
    from radgaze.gaze import Gaze, Grid

__all__ = ["Box", "Study"]


@dataclass(frozen=True)
class Box:
    """A named rectangle, or the axis-aligned ellipse it encloses, in original image pixels.

    ``xmin, xmax`` are columns and ``ymin, ymax`` rows; ``certainty`` is the reader's own scale (REFLACX: 0 to 5).

    Raises:
        InputError: a corner is not finite, the box has no area, or ``shape`` is not one of the two.
    """

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    shape: str = "box"
    certainty: float | None = None

    def __post_init__(self) -> None:
        corners = (self.xmin, self.ymin, self.xmax, self.ymax)
        if not np.isfinite(corners).all() or self.xmin >= self.xmax or self.ymin >= self.ymax:
            raise InputError(
                f"Box {self.name!r} is (xmin, ymin, xmax, ymax) = {corners}; expected finite numbers with "
                f"xmin < xmax and ymin < ymax."
            )
        if self.shape not in ("box", "ellipse"):
            raise InputError(f"Box {self.name!r} has shape {self.shape!r}; expected 'box' or 'ellipse'.")


@dataclass(frozen=True)
class Study:
    """A study of a :class:`~radgaze.cohort.store.Cohort`. Gaze, boxes and pixels are read on access.

    Attributes:
        index: row in the cohort's studies table.
        study_id, patient_id: as the source names them.
        label: class name, or None (unlabelled, or a multi-label cohort).
        labels: multi-label cohorts: class name to 0, 1, a probability, or None (unknown).
        split: ``"train"``, ``"val"`` or ``"test"``.
        source_size: (H, W) of the original image.
        grid: where the pixels of ``image`` sit in the original image.
        image_row: row in the cohort's ``images`` and ``masks``; readings of one image share it.
        attributes: whatever else the source states about the study.
    """

    index: int
    study_id: str
    patient_id: str
    label: str | None
    labels: dict[str, float | None]
    split: str
    source_size: tuple[int, int]
    grid: Grid
    image_row: int
    gaze_count: int
    attributes: dict[str, str | float | int | None]
    cohort: Cohort = field(repr=False, compare=False)

    @property
    def has_gaze(self) -> bool:
        """Whether any gaze point is stored (the points may still all lie outside the image)."""
        return self.gaze_count > 0

    @property
    def gaze(self) -> Gaze | None:
        """The reader's gaze in original image pixels, None where there is none."""
        return self.cohort.gaze(self.index)

    @property
    def boxes(self) -> list[Box]:
        """Boxes and ellipses in original image pixels."""
        return self.cohort.boxes(self.index)

    @property
    def image(self) -> npt.NDArray[np.uint16]:
        """(h, w) uint16 view of the memory map; the brightest pixel is 65535."""
        return self.cohort.images[self.image_row]

    def has_mask(self, name: str) -> bool:
        """Whether the source has the mask ``name`` for this image (no pixels are read)."""
        return self.cohort.has_mask(self.index, name)

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """(h, w) uint8 view: 0 outside, 1 inside, 255 unknown (all 255 where the study has no such mask).

        Raises:
            InputError: the cohort has no structure of that name.
        """
        return self.cohort.mask(self.index, name)
