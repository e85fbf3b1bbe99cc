"""Rendering: gaze points to an attention map on any grid, by one matrix product.

    S(v, u) = Σ_n w_n · N(u; x_n, σ_x) · N(v; y_n, σ_y)   =   K_y · diag(w) · K_xᵀ

The Gaussian is separable, so a map of (h, w) pixels is the product of K_y (h, N) and K_x (N, w), each a table of
one-dimensional Gaussians: exact at every resolution, on any device, differentiable in the points and the weights, and
no full-resolution image is ever made.

Sources: the `mt-unet` map of Zhu et al., arXiv 2202.07118 (a 501-tap OpenCV blur of the count image, border
reflect-101, then padded and strided); the `gg-cam` maps of Zhu et al., arXiv 2202.07107 (201, 501 and 801 taps); the
fixation heat maps of the EGD-CXR data set (σ = 150 px); and those of REFLACX (Bigolin Lanfredi et al., Scientific Data
2022: 1° of visual angle, duration-weighted, clipped to what was on screen).

Deviations and choices:
- A point may lie between pixels, where OpenCV has no answer. The Gaussian is then evaluated at the exact distance, to
  the point and to its mirror images at ±p + 2(L-1)m. OpenCV's reflect-101 does not repeat the border pixel, so the
  mirrored family fades out over the last pixel: its weight is clip(min(p, L-1-p), 0, 1). At whole pixels this is
  OpenCV's result.
- Taps beyond the kernel's radius are zero, and a truncated kernel is divided by the sum of its whole-pixel taps, as
  OpenCV divides.
- The blurred map is padded with zeros: grid pixels outside the image are zero.
- `reflacx` keeps fixations just outside the image, whose Gaussians reach into it, as that data set's own code does. The
  other presets drop points outside the image, because EGD-CXR marks lost gaze with negative coordinates that are no
  position.
- A map without range (empty, all outside, constant) is zero everywhere, whatever the scale.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from radgaze.errors import InputError, nearest
from radgaze.gaze.grid import Grid, check_size
from radgaze.gaze.points import Gaze

__all__ = ["PRESETS", "Edge", "Preset", "Scale", "Weights", "render", "render_batch"]

Edge = Literal["reflect", "none", "shown"]
Weights = Literal["ones", "duration"]
Scale = Literal["min-max", "max", "sum", "none"]


@dataclass(frozen=True)
class Preset:
    """How one paper or data set draws its attention map.

    Attributes:
        sigma: (σ_x, σ_y) in source pixels, or None for 1° of visual angle per point and axis (``Gaze.px_per_degree``).
        truncate: (x, y) radius in pixels beyond which a tap is zero; ``math.inf`` for none.
        edge: "reflect" folds the Gaussian back at the image's edge (OpenCV's reflect-101), "none" lets it run out,
            "shown" also clips it to the rectangle that was on screen.
        weights: "ones", or "duration" in seconds.
        scale: "min-max" to [0, 1], "max" divides by the maximum, "sum" makes the map sum to 1, "none" leaves the sum of
            densities.
        outside: points outside the image are drawn too.
    """

    sigma: tuple[float, float] | None
    truncate: tuple[float, float]
    edge: Edge
    weights: Weights
    scale: Scale
    outside: bool = False


def _opencv_blur(ksize: int, scale: Scale) -> Preset:
    radius = (ksize - 1) / 2
    sigma = 0.3 * (radius - 1) + 0.8
    return Preset((sigma, sigma), (radius, radius), "reflect", "ones", scale)


_UNBOUNDED = (math.inf, math.inf)

PRESETS: dict[str, Preset] = {
    "mt-unet": _opencv_blur(501, "min-max"),
    "gg-cam": _opencv_blur(501, "max"),
    "gg-cam-201": _opencv_blur(201, "max"),
    "gg-cam-501": _opencv_blur(501, "max"),
    "gg-cam-801": _opencv_blur(801, "max"),
    "egd-official": Preset((150.0, 150.0), _UNBOUNDED, "none", "ones", "min-max"),
    "reflacx": Preset(None, _UNBOUNDED, "shown", "duration", "sum", outside=True),
}


def render(
    gaze: Gaze,
    source_size: tuple[int, int],
    *,
    preset: str = "mt-unet",
    stride: int | None = None,
    size: tuple[int, int] | None = None,
    grid: Grid | None = None,
    canvas: tuple[int, int] | None = None,
    sigma: float | tuple[float, float] | None = None,
    truncate: float | None = None,
    edge: Edge | None = None,
    weights: Weights | Tensor | None = None,
    scale: Scale | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The attention map of one study, (h, w), on the gaze's device.

    Gradients flow to ``gaze.x``, ``gaze.y`` and ``weights``. Whole-pixel points without gradients are looked up in
    tables cached per image shape.

    Args:
        gaze: points in source pixels; invalid points, and with most presets points outside the image, are left out.
        source_size: (H, W) of the source image in pixels.
        preset: a name in :data:`PRESETS`; each argument from ``sigma`` to ``scale`` replaces that part of it.
        stride: every ``stride``-th pixel of the image or of ``canvas`` (the default: every pixel).
        size: (h, w) equal cells covering the image or ``canvas``.
        grid: the map's pixels, exactly; excludes ``stride``, ``size`` and ``canvas``.
        canvas: (H, W) the image is centred on before sampling.
        sigma: standard deviation in source pixels, one or (σ_x, σ_y). A truncating preset keeps OpenCV's relation of
            radius to σ.
        truncate: radius in source pixels beyond which the Gaussian is zero; ``math.inf`` for none.
        edge, weights, scale: see :class:`Preset`; ``weights`` may be a tensor (N,) of numbers >= 0, one per point of
            ``gaze``.
        dtype: float32, or float64 to compute in double precision.

    Returns:
        (h, w) tensor: in [0, 1] for "min-max" and "max", summing to 1 for "sum". All zero when no valid point lies on
        the image or the map is constant; never NaN.

    Raises:
        InputError: unknown preset or option, more than one of ``stride``, ``size`` and ``grid``, or fields the preset
            needs are missing.
    """
    if sum(choice is not None for choice in (stride, size, grid)) > 1 or (grid is not None and canvas is not None):
        raise InputError("more than one of stride, size and grid (or grid and canvas) was given; give one of them")
    if grid is None:
        if size is None:
            grid = Grid.strided(source_size, 1 if stride is None else stride, canvas)
        else:
            grid = Grid.area(source_size, size) if canvas is None else Grid.canvas(source_size, canvas, size)
    named, given = (weights, None) if weights is None or isinstance(weights, str) else (None, weights)
    settings = _settings(preset, sigma, truncate, edge, named, scale)
    density, any_inside = _density(gaze, source_size, grid, settings, given, dtype)
    return _scaled(density[None], any_inside[None], settings.scale)[0][0]


def render_batch(
    gazes: Sequence[Gaze],
    source_sizes: Sequence[tuple[int, int]],
    grids: Sequence[Grid],
    *,
    preset: str = "mt-unet",
    sigma: float | tuple[float, float] | None = None,
    truncate: float | None = None,
    edge: Edge | None = None,
    weights: Weights | Sequence[Tensor] | None = None,
    scale: Scale | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The attention maps of B studies of any lengths, image sizes and grids of one shape.

    Args: as :func:`render`, one entry per study; ``weights`` may be one tensor per study.

    Returns:
        maps: (B, h, w), as :func:`render` gives each.
        has_map: (B,) bool, false where no valid point lies on the image or the map is constant; that map is zero.

    Raises:
        InputError: as :func:`render`; also sequences of different lengths, an empty batch, or grids of different
            shapes.
    """
    if not (len(gazes) == len(source_sizes) == len(grids)) or len(gazes) == 0:
        raise InputError(
            f"batch of {len(gazes)} gazes, {len(source_sizes)} source sizes and {len(grids)} grids; "
            "give one of each per study, at least one"
        )
    if len({grid.size for grid in grids}) > 1:
        raise InputError(
            f"grids of shapes {sorted({grid.size for grid in grids})} cannot be stacked; give grids of one (h, w)"
        )
    named, given = (weights, None) if weights is None or isinstance(weights, str) else (None, list(weights))
    if given is not None and len(given) != len(gazes):
        raise InputError(f"{len(given)} weight tensors for {len(gazes)} gazes; give one per study")
    settings = _settings(preset, sigma, truncate, edge, named, scale)
    drawn = [
        _density(gaze, source_size, grid, settings, None if given is None else given[i], dtype)
        for i, (gaze, source_size, grid) in enumerate(zip(gazes, source_sizes, grids, strict=True))
    ]
    densities, any_inside = zip(*drawn, strict=True)
    return _scaled(torch.stack(densities), torch.stack(any_inside), settings.scale)


def _settings(
    preset: str,
    sigma: float | tuple[float, float] | None,
    truncate: float | None,
    edge: Edge | None,
    weights: Weights | None,
    scale: Scale | None,
) -> Preset:
    """The preset with the caller's changes."""
    if preset not in PRESETS:
        raise InputError(f"unknown gaze preset {preset!r}: {nearest(preset, PRESETS)}")
    for name, value, known in (("edge", edge, Edge), ("weights", weights, Weights), ("scale", scale, Scale)):
        if value is not None and value not in get_args(known):
            raise InputError(f"unknown gaze {name} {value!r}: {nearest(value, get_args(known))}")
    settings = PRESETS[preset]
    settings = replace(
        settings,
        edge=edge or settings.edge,
        weights=weights or settings.weights,
        scale=scale or settings.scale,
    )
    if sigma is not None:
        pair = (float(sigma[0]), float(sigma[1])) if isinstance(sigma, (tuple, list)) else (float(sigma), float(sigma))
        if not all(0 < value < math.inf for value in pair):
            raise InputError(
                f"sigma {sigma} px is not positive; give one number, or (sigma_x, sigma_y), in source pixels"
            )
        radius = settings.truncate if settings.truncate == _UNBOUNDED else (_radius(pair[0]), _radius(pair[1]))
        settings = replace(settings, sigma=pair, truncate=radius)
    if truncate is not None:
        if not truncate >= 0:
            raise InputError(f"truncate {truncate} px is not a radius; give a number >= 0, or math.inf for none")
        settings = replace(settings, truncate=(float(truncate), float(truncate)))
    if settings.sigma is None and settings.edge == "reflect":
        raise InputError("edge 'reflect' needs one spread for all points; give sigma in pixels, or another edge")
    return settings


def _radius(sigma: float) -> float:
    """OpenCV's rule backwards: σ = 0.3·(radius - 1) + 0.8."""
    return float(max(round((sigma - 0.5) / 0.3), 1))


def _density(
    gaze: Gaze,
    source_size: tuple[int, int],
    grid: Grid,
    settings: Preset,
    given: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Unscaled map (h, w), and whether any valid point lies on the image (a bool tensor)."""
    check_size(source_size, "a source image")
    if len(gaze) == 0:
        # A study without gaze has no durations or degrees to draw with either.
        nothing = torch.zeros(grid.size, dtype=dtype, device=gaze.device)
        return nothing, nothing.any()
    weights = _weights(gaze, settings, given)
    inside = gaze.inside(source_size)
    drawn = (gaze.usable if settings.outside and settings.edge != "reflect" else inside).nonzero().squeeze(1)
    reflect = settings.edge == "reflect"
    sigma_x, sigma_y = settings.sigma or (None, None)
    radius_x, radius_y = settings.truncate
    axis_x = _Axis(source_size[1], grid.width, grid.x0, grid.dx, sigma_x, radius_x, reflect)
    axis_y = _Axis(source_size[0], grid.height, grid.y0, grid.dy, sigma_y, radius_y, reflect)
    banded = axis_y.radius < math.inf and axis_y.count > _BAND and gaze.device.type == "cpu"
    if banded:
        drawn = drawn[gaze.y.detach()[drawn].argsort()]
    k_x, k_y = _kernel(axis_x, 0, gaze, drawn, settings, dtype), _kernel(axis_y, 1, gaze, drawn, settings, dtype)
    if weights is not None:
        k_x = k_x * weights[drawn].to(dtype)[:, None]
    density = _banded_product(k_y, k_x, gaze.y.detach()[drawn], axis_y) if banded else k_y.T @ k_x
    return density, inside.any()


def _weights(gaze: Gaze, settings: Preset, given: Tensor | None) -> Tensor | None:
    """(N,) weight of every point, or None for ones."""
    if given is not None:
        weights = torch.as_tensor(given, device=gaze.device)
        if weights.shape != (len(gaze),):
            raise InputError(f"weights of shape {tuple(weights.shape)} for {len(gaze)} points; give one per point")
    elif settings.weights == "ones":
        return None
    elif gaze.duration is None:
        raise InputError("gaze has no duration but the map is weighted by it; give durations, or weights='ones'")
    else:
        weights = gaze.duration
    valid = weights.detach()[gaze.usable]
    if not bool((torch.isfinite(valid) & (valid >= 0)).all()):
        raise InputError(
            "gaze weights contain NaN, infinite or negative numbers; give finite weights (or durations) >= 0"
        )
    return weights


def _kernel(axis: _Axis, i: int, gaze: Gaze, drawn: Tensor, settings: Preset, dtype: torch.dtype) -> Tensor:
    """K (N, count) of the points ``drawn`` along the image's axis ``i`` (0 for x, 1 for y)."""
    points = (gaze.x, gaze.y)[i][drawn]
    if axis.sigma is not None:
        kernel = _rows(axis, points, dtype)
    elif gaze.px_per_degree is None:
        raise InputError("gaze has no px_per_degree but sigma is 1 degree; give px_per_degree, or sigma in pixels")
    else:
        spread = gaze.px_per_degree[drawn, i]
        if not bool((torch.isfinite(spread) & (spread > 0)).all()):
            raise InputError(
                "gaze px_per_degree has NaN or numbers <= 0; give pixels per degree, or mark the point invalid"
            )
        kernel = axis.evaluate(points, dtype, spread)
    if settings.edge == "shown" and gaze.shown is not None:
        # The area of the half-open pixel rectangle starts half a pixel before its first pixel and ends half a pixel
        # after its last.
        low, high = gaze.shown[drawn, i, None] - 0.5, gaze.shown[drawn, i + 2, None] - 0.5
        positions = axis.positions(points)
        kernel = kernel.masked_fill((positions < low) | (positions >= high), 0.0)
    return kernel


def _banded_product(k_y: Tensor, k_x: Tensor, y: Tensor, axis: _Axis) -> Tensor:
    """K_yᵀ · K_x (h, w) of points sorted by ``y``, each band of rows multiplied with only the points that reach it.

    That is a third of the work for a 640x512 map with 501 taps. Reflection does not lengthen a point's reach: its
    mirror image lies beyond the edge. A GPU is faster with the one large product.
    """
    tops = range(0, axis.count, _BAND)
    rows = axis.positions(y)
    # A pixel to spare, for points and map pixels on the outer half of the image's border pixels.
    reach = axis.radius + 1
    start = torch.searchsorted(y, rows[::_BAND] - reach).tolist()
    stop = torch.searchsorted(y, rows[[min(top + _BAND, axis.count) - 1 for top in tops]] + reach).tolist()
    return torch.cat([k_y[a:b, top : top + _BAND].T @ k_x[a:b] for top, a, b in zip(tops, start, stop, strict=True)])


# Rows: narrower bands waste fewer points, wider ones multiply faster; 64 was best or near it at 1 and 2 threads.
_BAND = 64


def _scaled(density: Tensor, any_inside: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Maps (B, h, w) scaled, zero where there is no map, and (B,) whether there is one."""
    low, high = density.amin(dim=(1, 2), keepdim=True), density.amax(dim=(1, 2), keepdim=True)
    # A constant map differs from itself by rounding alone, which min-max scaling would blow up to full contrast.
    spread = high - low
    has_map = any_inside[:, None, None] & (spread > 16 * torch.finfo(density.dtype).eps * high)
    if scale == "min-max":
        divisor = spread
        density = density - low
    elif scale == "max":
        divisor = high
    elif scale == "sum":
        divisor = density.sum(dim=(1, 2), keepdim=True)
    else:
        divisor = torch.ones_like(high)
    factor = torch.where(has_map, 1.0, 0.0) / torch.where(has_map, divisor, 1.0)
    return density * factor, has_map[:, 0, 0]


@dataclass(frozen=True)
class _Axis:
    """One axis of a rendering: where its map pixels sit in the image, and the Gaussian drawn along it.

    ``sigma`` None means that every point brings its own. Hashable, so that it keys the table cache.
    """

    length: int
    count: int
    start: float
    step: float
    sigma: float | None
    radius: float
    reflect: bool

    def positions(self, like: Tensor) -> Tensor:
        """(count,) source coordinate of every map pixel, in ``like``'s dtype and device."""
        return torch.arange(self.count, dtype=like.dtype, device=like.device) * self.step + self.start

    def evaluate(self, points: Tensor, dtype: torch.dtype, spread: Tensor | None = None) -> Tensor:
        """(N, count): the Gaussian of every point at every map pixel, zero at map pixels outside the image.

        ``spread`` (N,) is every point's own σ, where the axis has none.
        """
        if spread is not None:
            sigma = spread.to(dtype)[:, None]
            return self._taps(points, sigma, 1 / (sigma * math.sqrt(2 * math.pi)), dtype)
        assert self.sigma is not None
        if self.reflect and (self.length == 1 or self._turns() > _FLAT_TURNS):
            return self._flat(points, dtype)
        peak = self._peak()
        kernel = self._taps(points, self.sigma, peak, dtype)
        if not self.reflect:
            return kernel
        reach = self._reach()
        for sign, shift in self._mirror_images():
            images = sign * points + shift
            near = ((images >= -0.5 - reach) & (images <= self.length - 0.5 + reach)).nonzero().squeeze(1)
            if len(near) == 0:
                continue
            height = peak if sign > 0 else peak * self._mirror_weight(points[near]).to(dtype)[:, None]
            kernel.index_add_(0, near, self._taps(images[near], self.sigma, height, dtype))
        return kernel

    def _taps(self, points: Tensor, sigma: float | Tensor, height: float | Tensor, dtype: torch.dtype) -> Tensor:
        """(N, count): one Gaussian per point, evaluated only at the map pixels its radius may reach."""
        first, width = torch.zeros_like(points), self.count
        if 2 * self.radius / self.step + 2 < self.count:
            width = int(2 * self.radius / self.step) + 2
            first = ((points.detach() - self.radius - self.start) / self.step).floor().clamp(-width, self.count)
        columns = first[:, None] + torch.arange(width, dtype=points.dtype, device=points.device)
        # Distances in the points' own precision: at 3,000 px float32 would cost 1e-4 of a pixel.
        distance = (columns * self.step + (self.start - points)[:, None]).to(dtype)
        begin, end = self._on_image()
        zero = (columns < begin) | (columns >= end) | (distance.detach().abs() > self.radius)
        taps = (height * torch.exp(-0.5 * (distance / sigma).square())).masked_fill(zero, 0.0)
        if width == self.count:
            return taps
        # A window may hang over either end of the axis, so it is written into a longer one.
        padded = torch.zeros(len(points), width + self.count + width, dtype=dtype, device=points.device)
        return padded.scatter_(1, (columns + width).to(torch.int64), taps)[:, width : width + self.count]

    def _on_image(self) -> tuple[int, int]:
        """First map pixel on the image's area, and the first one after it."""
        begin = math.ceil((-0.5 - self.start) / self.step)
        end = math.floor((self.length - 0.5 - self.start) / self.step) + 1
        return max(begin, 0), min(end, self.count)

    def _mirror_images(self) -> list[tuple[int, float]]:
        """(sign, shift) of the images sign·p + shift that reflect-101 makes of a point, the point itself left out."""
        period, turns = 2.0 * (self.length - 1), self._turns()
        return [(sign, period * m) for m in range(-turns, turns + 1) for sign in (1, -1) if (sign, m) != (1, 0)]

    def _mirror_weight(self, points: Tensor) -> Tensor:
        """(N,): 1, falling to 0 over the border pixel, which reflect-101 does not repeat."""
        return torch.minimum(points, self.length - 1 - points).clamp(0, 1)

    def _flat(self, points: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, count): the limit of a kernel that covers the image many times over: it adds the same everywhere."""
        density = (1 + self._mirror_weight(points)) / (2 * (self.length - 1)) if self.length > 1 else points.new_ones(1)
        begin, end = self._on_image()
        column = torch.arange(self.count, device=points.device)
        on_image = ((column >= begin) & (column < end)).to(dtype)
        return on_image * density.to(dtype).expand(len(points))[:, None]

    def _turns(self) -> int:
        """How many periods of the mirrored image the kernel reaches to either side."""
        return math.ceil((self.length + self._reach()) / (2 * (self.length - 1)))

    def _reach(self) -> float:
        """Distance where a tap is zero: by truncation, or beside its neighbours in double precision, exp(-9²/2) =
        3e-18."""
        assert self.sigma is not None
        return min(self.radius, 9 * self.sigma)

    def _peak(self) -> float:
        """The kernel's height: OpenCV divides whole-pixel taps by their sum; an untruncated Gaussian is a density."""
        assert self.sigma is not None
        if self.radius == math.inf:
            return 1 / (self.sigma * math.sqrt(2 * math.pi))
        reach = math.floor(self._reach())
        return 1 / (1 + 2 * math.fsum(math.exp(-0.5 * (k / self.sigma) ** 2) for k in range(1, reach + 1)))


# A kernel this many image periods wide leaves a map flat to about 1e-4; folding it exactly would take ever longer.
_FLAT_TURNS = 32


def _rows(axis: _Axis, points: Tensor, dtype: torch.dtype) -> Tensor:
    """K (N, count) of points along an axis: rows of a cached table at whole pixels, evaluated anew for anything
    finer."""
    if (points.requires_grad and torch.is_grad_enabled()) or not _TABLES.worth(axis, dtype):
        return axis.evaluate(points, dtype)
    index = points.detach().to(torch.int64)
    if bool(((index != points) | (index < 0) | (index >= axis.length)).any()):
        return axis.evaluate(points, dtype)
    return _TABLES.get(axis, dtype, points.device).index_select(0, index)


class _TableCache:
    """The Gaussians of every whole pixel of an axis, (length, count), least recently used thrown away beyond ``budget``
    bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._tables: OrderedDict[tuple[_Axis, torch.dtype, torch.device], Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def worth(self, axis: _Axis, dtype: torch.dtype) -> bool:
        """Whether the table leaves room for others."""
        return axis.length * axis.count * dtype.itemsize <= self.budget // 4

    def get(self, axis: _Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (axis, dtype, device)
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        wide = torch.float32 if device.type == "mps" else torch.float64
        table = axis.evaluate(torch.arange(axis.length, dtype=wide, device=device), dtype).contiguous()
        with self._lock:
            if key not in self._tables:
                self._tables[key] = table
                self._bytes += table.nbytes
            while self._bytes > self.budget:
                self._bytes -= self._tables.popitem(last=False)[1].nbytes
        return table


# A 640x512 map of a 3056x2544 image takes 13 MB of tables, a 48x40 one 1 MB.
_TABLES = _TableCache(budget=256 * 2**20)
