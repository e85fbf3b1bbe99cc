"""Grid: where the pixels of a map sit in the source image. Frame: how an image of any size gets its grid."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from radgaze.errors import InputError, nearest

__all__ = ["FITS", "Frame", "Grid", "check_size"]

FITS = ("letterbox", "stretch", "canvas")


@dataclass(frozen=True)
class Grid:
    """A map of ``height`` x ``width`` pixels over a source image.

    Row i is sampled at y = y0 + i·dy, column j at x = x0 + j·dx, in source pixels with pixel centres at integers. A
    grid knows nothing of the image's size; pixels that fall outside it are padding, where a rendered map is zero.
    """

    height: int
    width: int
    y0: float
    x0: float
    dy: float
    dx: float

    def __post_init__(self) -> None:
        check_size((self.height, self.width), "a grid")
        if not (self.dy > 0 and self.dx > 0 and all(map(math.isfinite, (self.y0, self.x0, self.dy, self.dx)))):
            raise InputError(
                f"grid origin ({self.y0}, {self.x0}), step ({self.dy}, {self.dx}): give finite numbers, steps > 0"
            )

    @classmethod
    def strided(cls, source_size: tuple[int, int], stride: int, canvas: tuple[int, int] | None = None) -> Grid:
        """Every ``stride``-th pixel, as the papers sample, of the image or of a larger ``canvas`` (H, W) around it.

        The padding before the image is int((canvas - size) / 2) pixels, the papers' rounding.
        """
        if stride < 1:
            raise InputError(f"stride {stride} is below 1; give a whole number of pixels")
        (height, top), (width, left) = _centred(source_size, canvas)
        rows, columns = -(-height // stride), -(-width // stride)
        return cls(rows, columns, float(-top), float(-left), float(stride), float(stride))

    @classmethod
    def area(cls, source_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """``size`` (h, w) equal cells that cover the image exactly, sampled at their centres."""
        check_size(source_size, "a source image")
        check_size(size, "a map")
        dy, dx = source_size[0] / size[0], source_size[1] / size[1]
        return cls(size[0], size[1], (dy - 1) / 2, (dx - 1) / 2, dy, dx)

    @classmethod
    def letterbox(cls, source_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """The whole image inside ``size`` (h, w), aspect kept, centred, padding around it.

        The inner image is rounded to whole grid pixels, so that a resized image and a rendered map cover the same
        pixels; dy and dx then differ by that rounding.
        """
        check_size(source_size, "a source image")
        check_size(size, "a map")
        shrink = min(size[0] / source_size[0], size[1] / source_size[1])
        inner = [min(max(round(source * shrink), 1), target) for source, target in zip(source_size, size, strict=True)]
        dy, dx = source_size[0] / inner[0], source_size[1] / inner[1]
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        return cls(size[0], size[1], (dy - 1) / 2 - top * dy, (dx - 1) / 2 - left * dx, dy, dx)

    @classmethod
    def canvas(cls, source_size: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]) -> Grid:
        """``size`` (h, w) equal cells of a ``canvas`` (H, W) the image is centred on, at its original scale."""
        (height, top), (width, left) = _centred(source_size, canvas)
        check_size(size, "a map")
        dy, dx = height / size[0], width / size[1]
        return cls(size[0], size[1], (dy - 1) / 2 - top, (dx - 1) / 2 - left, dy, dx)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.height, self.width

    def coarsen(self, size: tuple[int, int]) -> Grid:
        """``size`` (h, w) equal cells covering this grid's pixels, sampled at their centres: a CAM's grid."""
        check_size(size, "a map")
        rows, columns = self.height / size[0], self.width / size[1]
        y0, x0 = self.y0 + (rows - 1) / 2 * self.dy, self.x0 + (columns - 1) / 2 * self.dx
        return Grid(size[0], size[1], y0, x0, self.dy * rows, self.dx * columns)

    def to_grid(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Source pixels to (column, row) of this grid, fractional; scalars, arrays or tensors."""
        return (x - self.x0) / self.dx, (y - self.y0) / self.dy

    def to_source(self, column: Any, row: Any) -> tuple[Any, Any]:
        """(column, row) of this grid to source pixels (x, y); the inverse of :meth:`to_grid`."""
        return self.x0 + column * self.dx, self.y0 + row * self.dy


@dataclass(frozen=True)
class Frame:
    """How an image of any size becomes one of ``size`` (h, w).

    Attributes:
        size: (h, w) of the images that come out.
        fit: ``"letterbox"`` keeps the aspect and pads; ``"stretch"`` fills the size; ``"canvas"`` keeps one scale.
        canvas: (H, W) in source pixels that images are centred on, with ``"canvas"`` alone.
    """

    size: tuple[int, int]
    fit: str = "letterbox"
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_size(self.size, "an image")
        if self.fit not in FITS:
            raise InputError(f"fit is {self.fit!r}; {nearest(str(self.fit), FITS)}.")
        if (self.fit == "canvas") != (self.canvas is not None):
            raise InputError(
                f"fit is {self.fit!r} and canvas is {self.canvas}; a canvas (height, width) goes with fit='canvas' "
                "only."
            )
        if self.canvas is not None:
            check_size(self.canvas, "a canvas")

    def grid(self, source_size: tuple[int, int]) -> Grid:
        """The grid of an image of ``source_size`` (H, W)."""
        if self.fit == "letterbox":
            return Grid.letterbox(source_size, self.size)
        if self.fit == "stretch":
            return Grid.area(source_size, self.size)
        assert self.canvas is not None
        return Grid.canvas(source_size, self.canvas, self.size)


def check_size(size: tuple[int, int], what: str) -> None:
    """Refuse anything but (height, width) in whole pixels above zero; ``what`` names it in the error."""
    whole = (isinstance(one, numbers.Real) and 1 <= one < math.inf and int(one) == one for one in size)
    if len(size) != 2 or not all(whole):
        raise InputError(f"{what} cannot be {size} pixels; give (height, width), whole numbers above zero")


def _centred(source_size: tuple[int, int], canvas: tuple[int, int] | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """(extent, padding before the image) along y and x."""
    check_size(source_size, "a source image")
    outer = source_size if canvas is None else canvas
    check_size(outer, "a canvas")
    if outer[0] < source_size[0] or outer[1] < source_size[1]:
        raise InputError(
            f"canvas {tuple(outer)} is smaller than the image {tuple(source_size)}; give one that holds it"
        )
    return (outer[0], (outer[0] - source_size[0]) // 2), (outer[1], (outer[1] - source_size[1]) // 2)
