"""Gaze: where a reader looked, as points in the original image's pixels.

Pixel centres are at integers and the origin is the centre of the top-left pixel, so an image of (H, W) pixels covers
-0.5 <= x <= W - 0.5 and -0.5 <= y <= H - 0.5. Nothing here is ever a heat map: maps are rendered from the points when
they are needed, so that flips, crops and affine transforms move the points exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from radgaze.errors import InputError

__all__ = ["Gaze"]

_PER_POINT_COLUMNS = {"px_per_degree": 2, "shown": 4}


@dataclass(frozen=True, eq=False, init=False)
class Gaze:
    """N gaze samples or fixations of one study.

    Every field accepts anything array-like; tensors keep their device and their gradient. A point whose x or y is NaN
    or infinite is marked invalid instead of being refused, because eye trackers write such rows whenever they lose the
    eye.

    Args:
        x, y: (N,) column and row in original image pixels, float64.
        t: (N,) seconds; may be negative (REFLACX counts from the start of the dictation).
        duration: (N,) seconds, >= 0; NaN where unknown.
        reader: (N,) int64 code of the reader; the names live in the cohort.
        valid: (N,) bool; an invalid point is never rendered.
        px_per_degree: (N, 2) image pixels per degree of visual angle along x and y (REFLACX).
        shown: (N, 4) xmin, ymin, xmax, ymax of the part of the image on screen, image pixels, upper ends exclusive
            (REFLACX).

    Raises:
        InputError: lengths differ, a shape is wrong, or a duration is negative.
    """

    x: Tensor
    y: Tensor
    t: Tensor | None = None
    duration: Tensor | None = None
    reader: Tensor | None = None
    valid: Tensor | None = None
    px_per_degree: Tensor | None = None
    shown: Tensor | None = None

    def __init__(
        self,
        x: Any,
        y: Any,
        t: Any = None,
        duration: Any = None,
        reader: Any = None,
        valid: Any = None,
        px_per_degree: Any = None,
        shown: Any = None,
    ) -> None:
        device = next((field.device for field in (x, y) if isinstance(field, Tensor)), torch.device("cpu"))
        given = {
            "x": x,
            "y": y,
            "t": t,
            "duration": duration,
            "reader": reader,
            "valid": valid,
            "px_per_degree": px_per_degree,
            "shown": shown,
        }
        for name, value in given.items():
            missing = value is None and name not in ("x", "y")
            object.__setattr__(self, name, None if missing else _as_column(name, value, device))
        count = len(self.x)
        for name in given:
            column = getattr(self, name)
            if column is not None and len(column) != count:
                raise InputError(f"gaze has {count} x but {len(column)} {name}; give every field one entry per point")
        if self.duration is not None and bool((self.duration < 0).any()):
            raise InputError(
                f"gaze duration of {float(self.duration.min()):g} s is negative; durations are seconds >= 0"
            )
        finite = torch.isfinite(self.x.detach()) & torch.isfinite(self.y.detach())
        if not bool(finite.all()):
            object.__setattr__(self, "valid", finite if self.valid is None else self.valid & finite)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        present = [field.name for field in fields(self)[2:] if getattr(self, field.name) is not None]
        return f"Gaze({len(self)} points" + (f", with {', '.join(present)})" if present else ")")

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def usable(self) -> Tensor:
        """(N,) bool: the point is valid. All true where validity was not recorded."""
        return torch.ones(len(self), dtype=torch.bool, device=self.device) if self.valid is None else self.valid

    def inside(self, source_size: tuple[int, int]) -> Tensor:
        """(N,) bool: the point is valid and lies on the area of an image of ``source_size`` (H, W) pixels."""
        height, width = source_size
        x, y = self.x.detach(), self.y.detach()
        # NaN compares false, so a lost eye is outside whatever `valid` says.
        on_image = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        return on_image if self.valid is None else on_image & self.valid

    def select(self, mask: Any) -> Gaze:
        """The points where ``mask`` (N,) bool is true, or those at integer positions ``mask`` (M,), in that order."""
        chosen = torch.as_tensor(mask, device=self.device)
        if chosen.dtype == torch.bool and len(chosen) != len(self):
            raise InputError(f"mask has {len(chosen)} entries for {len(self)} gaze points; give one per point")
        return self._map(lambda column: column[chosen])

    def to(self, device: torch.device | str) -> Gaze:
        """The same points on ``device``. Devices without float64 (Apple's) get float32."""
        target = torch.device(device)

        def move(column: Tensor) -> Tensor:
            wide = _float_dtype(target) if column.is_floating_point() else column.dtype
            return column.to(dtype=wide, device=target) if wide == torch.float32 else column.to(target)

        return self._map(move)

    @staticmethod
    def concat(parts: Sequence[Gaze]) -> Gaze:
        """All points of ``parts`` in order; where only some carry ``valid``, the others count as all valid.

        Raises:
            InputError: no parts, or a field that only some parts carry.
        """
        if not parts:
            raise InputError("no gaze to concatenate; give at least one Gaze")
        columns: dict[str, Tensor] = {}
        for field in fields(Gaze):
            present = [getattr(part, field.name) for part in parts]
            if all(column is None for column in present):
                continue
            if field.name == "valid":
                present = [part.usable for part in parts]
            if any(column is None for column in present):
                raise InputError(
                    f"only some of the {len(parts)} gazes have {field.name}; give it to all of them or to none"
                )
            columns[field.name] = torch.cat(present)
        return Gaze(**columns)

    def hflip(self, width: int) -> Gaze:
        """Mirror left and right with an image of ``width`` pixels: x becomes W - 1 - x."""
        shown = self.shown
        if shown is not None:
            # The rectangle's upper end is exclusive: columns [a, b) become [W - b, W - a).
            shown = torch.stack([width - shown[:, 2], shown[:, 1], width - shown[:, 0], shown[:, 3]], dim=1)
        return replace(self, x=width - 1 - self.x, shown=shown)

    def vflip(self, height: int) -> Gaze:
        """Mirror top and bottom with an image of ``height`` pixels: y becomes H - 1 - y."""
        shown = self.shown
        if shown is not None:
            shown = torch.stack([shown[:, 0], height - shown[:, 3], shown[:, 2], height - shown[:, 1]], dim=1)
        return replace(self, y=height - 1 - self.y, shown=shown)

    def crop(self, top: float, left: float) -> Gaze:
        """The points seen from a crop whose first pixel was at row ``top``, column ``left``.

        Points beyond the crop are kept, so that time and order stay whole; they are simply outside the new image (see
        :meth:`inside`). A negative ``top`` or ``left`` is padding.
        """
        shown = self.shown
        if shown is not None:
            shown = shown - torch.tensor([left, top, left, top], dtype=shown.dtype, device=shown.device)
        return replace(self, x=self.x - left, y=self.y - top, shown=shown)

    def affine(self, matrix: Any) -> Gaze:
        """Move the points by ``matrix`` M (2, 3) or (3, 3), as ``cv2.warpAffine`` moves pixels: p' = M · (x, y, 1).

        ``px_per_degree`` becomes the spread along the new axes of a Gaussian with the old spreads, which is exact when
        the axes stay axes (scaling, flips, quarter turns) and leaves out the correlation otherwise; ``shown`` becomes
        the bounding box of the moved rectangle.

        Raises:
            InputError: the matrix has another shape, or a last row other than (0, 0, 1).
        """
        m = torch.as_tensor(matrix, dtype=self.x.dtype, device=self.device)
        if m.shape not in {(2, 3), (3, 3)} or (len(m) == 3 and m[2].tolist() != [0.0, 0.0, 1.0]):
            raise InputError(f"affine matrix has shape {tuple(m.shape)}; give 2x3, or 3x3 with a last row of 0, 0, 1")
        x = m[0, 0] * self.x + m[0, 1] * self.y + m[0, 2]
        y = m[1, 0] * self.x + m[1, 1] * self.y + m[1, 2]
        px_per_degree, shown = self.px_per_degree, self.shown
        if px_per_degree is not None:
            px_per_degree = (px_per_degree.square() @ m[:2, :2].square().T).sqrt()
        if shown is not None:
            # Edges of the half-open pixel rectangle lie half a pixel before its ends.
            edges = shown - 0.5
            corners = torch.stack([edges[:, [0, 1]], edges[:, [2, 1]], edges[:, [0, 3]], edges[:, [2, 3]]], dim=1)
            moved = corners @ m[:2, :2].T + m[:2, 2] + 0.5
            shown = torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=1)
        return replace(self, x=x, y=y, px_per_degree=px_per_degree, shown=shown)

    def _map(self, change: Any) -> Gaze:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return Gaze(**{name: change(column) for name, column in columns.items() if column is not None})


def _float_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _as_column(name: str, value: Any, device: torch.device) -> Tensor:
    dtype = {"reader": torch.int64, "valid": torch.bool}.get(name, _float_dtype(device))
    try:
        column = torch.as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"gaze {name} is not an array of numbers ({error}); give one number per point") from error
    width = _PER_POINT_COLUMNS.get(name)
    if column.numel() == 0:
        return column.reshape((0,) if width is None else (0, width))
    expected = "(N,)" if width is None else f"(N, {width})"
    if column.ndim != (1 if width is None else 2) or (width is not None and column.shape[1] != width):
        raise InputError(f"gaze {name} has shape {tuple(column.shape)}; expected {expected}")
    return column
