"""Pictures of radgaze: heat maps over images (arrays), and the report's plots (inline SVG).

Heat maps. A map is shown as a **density relative to an even spread**, d = m / mean(m): 1 where attention is as if
spread evenly, 10 where it is ten times that. So maps of any grid and any normalisation share one scale, and a flat
prediction looks flat beside a peaked reader instead of being stretched to the same brightness. The colour map is
perceptually uniform (inferno) and its opacity grows with the value, so that anatomy stays visible where nobody looks.

Plots. matplotlib draws them through its object interface, without pyplot's global state; every colour is then a CSS
variable of the page, so that one SVG serves light, dark and print. Names from the data never enter a drawing, only its
alternative text; the page around it shows and escapes them.
"""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from radgaze.errors import InputError

__all__ = [
    "ATTENTION_MAP",
    "CAM_MAP",
    "PALETTE",
    "SERIES_COUNT",
    "Curve",
    "Tried",
    "colour_bar",
    "data_uri",
    "depth_plot",
    "interval_mark",
    "line_panel",
    "mark_points",
    "overlay",
    "relative_density",
    "reliability_plot",
    "resized",
    "roc_plot",
    "series_colour",
    "series_dash",
    "size_panel",
    "threshold_plot",
    "to_uint8",
    "trade_plot",
]

Pixels = NDArray[np.uint8]
Map = NDArray[np.float64]

ATTENTION_MAP = "inferno"
CAM_MAP = "viridis"

# --------------------------------------------------------------------------------------------------------------------
# Heat maps over images
# --------------------------------------------------------------------------------------------------------------------


def to_uint8(image: ArrayLike) -> Pixels:
    """A grey image (h, w) for the screen: floats are read as [0, 1], integers over their type's range; NaN is black.

    Raises InputError when the array is not two-dimensional or is empty.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 2 or pixels.size == 0:
        raise InputError(f"an image of shape {pixels.shape} cannot be shown: pass one grey image of shape (h, w)")
    if pixels.dtype == np.uint8:
        return pixels
    top = float(np.iinfo(pixels.dtype).max) if np.issubdtype(pixels.dtype, np.integer) else 1.0
    unit = np.nan_to_num(pixels.astype(np.float64) / top, nan=0.0, posinf=1.0, neginf=0.0)
    return np.round(np.clip(unit, 0.0, 1.0) * 255).astype(np.uint8)


def relative_density(attention: ArrayLike) -> Map:
    """A map (h, w) as density relative to an even spread: mean 1. Not-a-number and negative pixels count as 0.

    A map without any attention gives zeros.
    """
    density = np.clip(np.nan_to_num(np.asarray(attention, dtype=np.float64), nan=0.0, posinf=0.0), 0.0, None)
    mean = density.mean()
    return density / mean if mean > 0 else np.zeros_like(density)


def overlay(
    image: ArrayLike,
    heat: ArrayLike,
    *,
    low: float = 0.0,
    high: float | None = None,
    colours: str = ATTENTION_MAP,
    opacity: float = 0.85,
    size: tuple[int, int] | None = None,
) -> Pixels:
    """A heat map laid over a grey image: (h, w, 3) uint8.

    The heat (any grid) is stretched over the image by bilinear interpolation. Values from ``low`` to ``high`` (by
    default the heat's own maximum) run through the colour map; opacity rises from 0 at ``low`` to ``opacity`` at
    ``high`` with the square root of the value, so that low attention is tinted and the anatomy below it still reads.
    ``size`` (h, w) is the size of the result, by default the image's.
    """
    grey = to_uint8(image)
    height, width = size or grey.shape
    base = resized(grey, (height, width)).astype(np.float64)
    values = np.nan_to_num(np.asarray(heat, dtype=np.float32), nan=low, posinf=low, neginf=low)
    high = float(values.max()) if high is None else high
    unit = np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(values)
    unit = np.asarray(Image.fromarray(unit).resize((width, height), Image.Resampling.BILINEAR))
    tint = matplotlib.colormaps[colours](unit)[..., :3] * 255
    alpha = opacity * np.sqrt(unit)[..., None]
    blended: Pixels = np.round((1 - alpha) * base[..., None] + alpha * tint).astype(np.uint8)
    return blended


def resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    """An image at another size (h, w), smoothly."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def colour_bar(
    width: int, height: int, *, colours: str = ATTENTION_MAP, opacity: float = 0.85, grey: int = 96
) -> Pixels:
    """The legend of :func:`overlay`: its colours from low (left) to high (right) as they look over a mid-grey pixel."""
    ramp = np.tile(np.linspace(0.0, 1.0, width), (height, 1))
    return overlay(np.full((height, width), grey, np.uint8), ramp, high=1.0, colours=colours, opacity=opacity)


def mark_points(picture: Pixels, points: ArrayLike, image_size: tuple[int, int]) -> Pixels:
    """Points of gaze on a picture: small light rings for up to 150 of them, faint dots for more (raw samples).

    ``points`` (N, 2) are columns and rows in pixels of an image of ``image_size`` (h, w), pixel centres at integers;
    points outside it and not-a-number points are not drawn. ``picture`` (h', w', 3) is that image at any scale.
    """
    marks = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    extent = np.array([image_size[1], image_size[0]], dtype=np.float64)
    marks = marks[((marks >= -0.5) & (marks < extent - 0.5)).all(axis=1)]  # a comparison with NaN is false
    height, width = picture.shape[:2]
    fine = 4  # drawn at 4 times the size and averaged down: smooth edges
    centres = (marks + 0.5) * (width, height) / extent * fine
    canvas = Image.fromarray(picture).resize((width * fine, height * fine), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas, "RGBA")
    unit = fine * max(height, width) / 480
    for column, row in centres:
        if len(marks) > 150:
            reach = 1.3 * unit
            draw.ellipse((column - reach, row - reach, column + reach, row + reach), fill=(244, 251, 255, 70))
            continue
        for reach, colour, line in ((7.0 * unit, "#101216", 3.0 * unit), (6.3 * unit, "#f4fbff", 1.6 * unit)):
            draw.ellipse((column - reach, row - reach, column + reach, row + reach), outline=colour, width=round(line))
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))


def data_uri(picture: Pixels, quality: int | None = 86) -> str:
    """An image, (h, w) or (h, w, 3) uint8, as a ``data:`` address: JPEG of the given quality, or PNG for ``None``."""
    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    else:
        # Full colour resolution: a heat map's meaning is in its colour.
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True, subsampling=0)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


# --------------------------------------------------------------------------------------------------------------------
# Colours of the page
# --------------------------------------------------------------------------------------------------------------------

PALETTE: dict[str, tuple[str, str]] = {
    # CSS variable: (on light, on dark). The series are Okabe and Ito's colours for colour-blind readers
    # (2008), darkened or lightened where the background asks for contrast.
    "ink": ("#1b1f24", "#e8e6e1"),
    "card": ("#ffffff", "#1c2026"),
    "muted": ("#646b73", "#9da3ab"),
    "grid": ("#e3e1dc", "#33383f"),
    "axis": ("#b9b7b1", "#565c65"),
    "series-1": ("#0b66a8", "#58aee8"),
    "series-2": ("#d15a00", "#f58a45"),
    "series-3": ("#00865f", "#35c79a"),
    "series-4": ("#b35a92", "#e59cc8"),
    "series-5": ("#a97700", "#eec04a"),
    "series-6": ("#3590c2", "#9ad6f7"),
    "series-7": ("#565c65", "#b4bac2"),
}
SERIES_COUNT = 7
MOST_BANDS = 4
CROWDED = 11.0  # pixels: numbers of points that lie closer would cover each other
_LIGHT = {name: light for name, (light, _) in PALETTE.items()}
_DASHES = ("", "6 3", "2 2.5")


def series_colour(index: int) -> str:
    """The CSS variable of the ``index``-th curve; colours repeat, and :func:`series_dash` tells the rounds apart."""
    return f"series-{index % SERIES_COUNT + 1}"


def series_dash(index: int) -> str:
    """The SVG dash pattern of the ``index``-th curve: solid for the first round of colours."""
    return _DASHES[index // SERIES_COUNT % len(_DASHES)]


# --------------------------------------------------------------------------------------------------------------------
# Plots
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One line of a plot: ``x`` and ``y`` of equal length (NaN leaves a gap), a palette colour, an SVG dash pattern.

    ``low`` and ``high`` bound the band around it, where a plot draws one.
    """

    x: ArrayLike
    y: ArrayLike
    colour: str = "series-1"
    dash: str = ""
    emphasis: bool = True
    low: ArrayLike = ()
    high: ArrayLike = ()


def line_panel(
    name: str,
    curves: Sequence[Curve],
    *,
    alt: str,
    log: bool = False,
    steps: bool = False,
    best: float | None = None,
    events: Sequence[float] = (),
) -> Markup:
    """One panel of training curves: epochs on x, the best epoch as a marked line, events as triangles along the top.

    ``name`` must be unique on the page, ``alt`` describes the panel to those who cannot see it. ``log`` and ``steps``
    are for a learning rate: a logarithmic axis, and values that hold from one epoch to the next.
    """
    with _drawing(name, 340, 215) as figure:
        axes = _axes(figure, (0.135, 0.165, 0.845, 0.785))
        if best is not None:
            axes.axvline(best, color=_LIGHT["axis"], linewidth=1.0, dashes=(3, 2), zorder=1)
        for curve in curves:
            x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
            y = np.where(y > 0, y, np.nan) if log else y
            line = axes.plot(
                x,
                y,
                color=_LIGHT[curve.colour],
                linewidth=1.9 if curve.emphasis else 1.5,
                alpha=1.0 if curve.emphasis else 0.75,
                marker="o" if np.isfinite(y).sum() <= 2 else None,
                markersize=4.5,
                drawstyle="steps-post" if steps else None,
                zorder=3 if curve.emphasis else 2,
            )[0]
            _dash(line, curve)
            if best is not None and curve.emphasis:
                axes.plot(x[x == best], y[x == best], "o", color=_LIGHT[curve.colour], markersize=5.5, zorder=4)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(which="minor", length=0)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.margins(x=0.03, y=0.08)
        epochs = np.concatenate([np.asarray(curve.x, dtype=np.float64) for curve in curves])
        if epochs.min() == epochs.max():
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        if events:
            axes.plot(
                events,
                np.full(len(events), 1.03),
                marker="v",
                linestyle="none",
                color=_LIGHT["series-2"],
                markersize=5.5,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
        axes.set_xlabel("epoch", labelpad=2)
        return _inline(figure, name, alt)


def size_panel(name: str, curves: Sequence[Curve], *, alt: str) -> Markup:
    """A measure against the number of training studies, on a logarithmic axis marked at the sizes that were trained.

    Each curve is drawn through its points, over the band from its ``low`` to its ``high``. Bands of more than
    ``MOST_BANDS`` curves would hide each other: these have bars instead, side by side.
    """
    sizes = np.unique(np.concatenate([np.asarray(curve.x, dtype=np.float64) for curve in curves]))
    with _drawing(name, 340, 215) as figure:
        axes = _axes(figure, (0.135, 0.165, 0.845, 0.785))
        for index, curve in enumerate(curves):
            colour, x = _LIGHT[curve.colour], np.asarray(curve.x, dtype=np.float64)
            if len(curves) > MOST_BANDS:
                x = x * (sizes[-1] / sizes[0]) ** (0.014 * (index - (len(curves) - 1) / 2))
                axes.vlines(x, curve.low, curve.high, color=colour, linewidth=1.2, alpha=0.7, zorder=2)
            else:
                axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0, zorder=2)
            line = axes.plot(x, curve.y, color=colour, linewidth=1.9, marker="o", markersize=4.5, zorder=3)[0]
            _dash(line, curve)
        axes.set_xscale("log")
        axes.margins(x=0.07, y=0.08)
        shown = [sizes[0]]  # a label needs room: sizes close above the last one labelled go without
        for size in sizes[1:]:
            if math.log(size / shown[-1]) > 0.13 * math.log(sizes[-1] / sizes[0]):
                shown.append(size)
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("training studies (logarithmic)", labelpad=2)
        return _inline(figure, name, alt)


@dataclass(frozen=True)
class Tried:
    """A network that was tried: its size and how well it does, its number, and the index of the one it came from."""

    parameters: float
    auc: float
    number: int
    accepted: bool
    start: int | None = None


def trade_plot(
    name: str, tried: Sequence[Tried], *, floor: float | None, target: float | None = None, alt: str
) -> Markup:
    """AUC against parameters (logarithmic). The first is what all began with; ``start`` of each points into ``tried``.

    Accepted networks are filled, rejected ones hollow, all but the first carry their number, and a line leads to each
    from the one it was made from. ``floor`` is the least AUC that is accepted, ``target`` the size that was asked for.
    """
    with _drawing(name, 860, 330) as figure:
        axes = _axes(figure, (0.064, 0.115, 0.925, 0.86))
        aucs = np.array([one.auc for one in tried] + ([] if floor is None else [floor]))
        sizes = np.array([one.parameters for one in tried] + ([] if target is None else [target]))
        low, high = float(aucs.min()), float(aucs.max())
        pad = max(0.12 * (high - low), (0.02 - (high - low)) / 2)  # a third decimal must not fill the height
        low, high = low - pad, high + pad
        axes.set_ylim(low, high)
        axes.set_xscale("log")
        axes.set_xlim(sizes.min() / 1.35, sizes.max() * 1.35)
        if floor is not None:
            axes.axhspan(low, floor, color=_LIGHT["series-2"], alpha=0.06, linewidth=0, zorder=0)
            axes.axhline(floor, color=_LIGHT["series-2"], linewidth=1.4, dashes=(5, 3), zorder=1)
        if target is not None:
            axes.axvline(target, color=_LIGHT["axis"], linewidth=1.3, dashes=(2, 2), zorder=1)
        for one in tried:
            colour = _LIGHT["series-1" if one.accepted else "series-2"]
            if one.start is None:
                axes.plot(one.parameters, one.auc, "s", color=_LIGHT["ink"], markersize=8, zorder=4)
                continue
            start = tried[one.start]
            line = axes.plot([start.parameters, one.parameters], [start.auc, one.auc], color=colour, zorder=2)[0]
            line.set(linewidth=1.6 if one.accepted else 1.1, alpha=0.6)
            if not one.accepted:
                line.set_dashes((2, 2.5))
            face = colour if one.accepted else _LIGHT["card"]
            axes.plot(one.parameters, one.auc, "o", color=colour, markerfacecolor=face, markersize=8, mew=2, zorder=4)
        for (x, y), numbers in _together(tried, axes).items():
            axes.annotate(", ".join(numbers), (x, y), (0, 9), textcoords="offset points", ha="center", va="bottom").set(
                color=_LIGHT["ink"], fontweight="bold", zorder=5
            )
        wide = sizes.max() / sizes.min() > 300
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=20))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short(size)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("parameters (logarithmic)", labelpad=3)
        return _inline(figure, name, alt)


def _together(tried: Sequence[Tried], axes: Any) -> dict[tuple[float, float], list[str]]:
    """The numbers to write at each place: networks that lie on one another share one."""
    found: dict[tuple[float, float], list[str]] = {}
    for one in tried:
        if one.start is None:
            continue
        here = axes.transData.transform((one.parameters, one.auc))
        near = (place for place in found if math.dist(axes.transData.transform(place), here) < CROWDED)
        found.setdefault(next(near, (one.parameters, one.auc)), []).append(f"{one.number}")
    return found


def roc_plot(name: str, curves: Sequence[Curve], *, alt: str) -> Markup:
    """Receiver operating characteristics: true against false positive rate, with chance as a dashed diagonal."""
    with _drawing(name, 420, 400) as figure:
        axes = _axes(figure, (0.12, 0.115, 0.865, 0.865))
        axes.plot([0, 1], [0, 1], color=_LIGHT["axis"], linewidth=1.1, dashes=(4, 3))
        for curve in curves:
            _dash(axes.plot(curve.x, curve.y, color=_LIGHT[curve.colour], linewidth=2.0)[0], curve)
        _unit_square(axes)
        axes.set_xlabel("false positive rate (1 − specificity)")
        axes.set_ylabel("true positive rate (sensitivity)")
        return _inline(figure, name, alt)


def reliability_plot(name: str, bins: Sequence[Mapping[str, Any]], *, alt: str) -> Markup:
    """Calibration: how often predictions of a confidence came true, per bin, with the counts beneath and as dot areas.

    ``bins`` have ``low``, ``high``, ``confidence``, ``accuracy`` and ``count``; empty bins are not drawn.
    """
    filled = [entry for entry in bins if entry["count"]]
    confidence = np.array([entry["confidence"] for entry in filled], dtype=np.float64)
    accuracy = np.array([entry["accuracy"] for entry in filled], dtype=np.float64)
    counts = np.array([entry["count"] for entry in filled], dtype=np.float64)
    with _drawing(name, 420, 400) as figure:
        axes = _axes(figure, (0.12, 0.335, 0.865, 0.645))
        axes.plot([0, 1], [0, 1], color=_LIGHT["axis"], linewidth=1.1, dashes=(4, 3))
        axes.vlines(confidence, confidence, accuracy, color=_LIGHT["series-2"], linewidth=1.6, alpha=0.8)
        axes.plot(confidence, accuracy, color=_LIGHT["series-1"], linewidth=1.6)
        area = 28 + 130 * counts / counts.max() if len(counts) else counts
        axes.scatter(confidence, accuracy, s=area, color=_LIGHT["series-1"], linewidths=0, zorder=3)
        _unit_square(axes)
        axes.tick_params(labelbottom=False)
        axes.set_ylabel("observed frequency")
        below = _axes(figure, (0.12, 0.115, 0.865, 0.175), sharex=axes)
        lows = np.array([entry["low"] for entry in filled], dtype=np.float64)
        widths = np.array([entry["high"] for entry in filled], dtype=np.float64) - lows
        below.bar(lows, counts, widths * 0.92, align="edge", color=_LIGHT["series-1"], alpha=0.45, linewidth=0)
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        below.set_xlabel("confidence")
        below.set_ylabel("predictions")
        figure.align_ylabels([axes, below])
        return _inline(figure, name, alt)


def depth_plot(
    name: str,
    krm: Sequence[float],
    kernels: Sequence[int],
    distinct: Sequence[int],
    colours: Sequence[str],
    *,
    alt: str,
) -> Markup:
    """The kernel redundancy of a network's layers in forward order, each layer in its colour.

    Above the KRM; below, on a logarithmic axis, a ring for a layer's kernels and a dot for the distinct ones (none
    where there are none): the longer the line between them, the more redundant the layer.
    """
    places, inks = np.arange(1, len(krm) + 1), [_LIGHT[colour] for colour in colours]
    with _drawing(name, 900, 400) as figure:
        axes = _axes(figure, (0.055, 0.57, 0.94, 0.4))
        axes.bar(places, krm, 0.72, color=inks, linewidth=0)
        axes.set_ylim(0, 1.02)
        axes.tick_params(labelbottom=False)
        axes.set_ylabel("KRM")
        below = _axes(figure, (0.055, 0.115, 0.94, 0.4), sharex=axes)
        low = min(0.7, 0.7 * min(distinct)) if min(distinct) else 0.5
        below.vlines(places, np.maximum(distinct, low), kernels, color=inks, linewidth=1.6, alpha=0.6)
        below.scatter(places, kernels, s=20, facecolors="none", edgecolors=inks, linewidths=1.4)
        shown = np.array(distinct) > 0
        below.scatter(
            places[shown], np.array(distinct)[shown], s=26, color=np.array(inks)[shown], linewidths=0, zorder=3
        )
        below.set_yscale("log", base=10)
        below.set_ylim(low, 1.5 * max(kernels))
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        below.yaxis.set_minor_formatter(NullFormatter())
        below.tick_params(which="minor", length=0)
        below.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
        below.set_xlim(0.2, len(krm) + 0.8)
        below.set_xlabel("layer, in the order of the forward pass", labelpad=2)
        below.set_ylabel("kernels")
        figure.align_ylabels([axes, below])
        return _inline(figure, name, alt)


def threshold_plot(name: str, curves: Sequence[Curve], *, tau: float, alt: str) -> Markup:
    """Curves of KRM over the threshold, those without emphasis faint, ``tau`` as a marked line."""
    with _drawing(name, 420, 400) as figure:
        axes = _axes(figure, (0.12, 0.115, 0.865, 0.865))
        axes.axvline(tau, color=_LIGHT["axis"], linewidth=1.1, dashes=(4, 3), zorder=1)
        for curve in curves:
            axes.plot(
                curve.x,
                curve.y,
                color=_LIGHT[curve.colour],
                linewidth=2.6 if curve.emphasis else 1.1,
                alpha=1.0 if curve.emphasis else 0.45,
                zorder=3 if curve.emphasis else 2,
            )
        _unit_square(axes)
        axes.set_xlabel("threshold τ: perceived difference")
        axes.set_ylabel("KRM")
        return _inline(figure, name, alt)


def interval_mark(
    value: float | None,
    low: float | None,
    high: float | None,
    domain: tuple[float, float],
    *,
    chance: float | None = None,
    colour: str = "series-1",
) -> Markup:
    """One row of a forest plot: a dot with its interval on the common scale ``domain``, chance as a faint line.

    Decoration beside a table cell that states the numbers, and so hidden from screen readers.
    """
    width, height, pad = 150.0, 18.0, 6.0
    span = domain[1] - domain[0]

    def at(number: float) -> str:
        place = (number - domain[0]) / span if span > 0 else 0.5
        return f"{pad + (width - 2 * pad) * min(max(place, 0.0), 1.0):.1f}"

    parts = []
    if chance is not None and domain[0] <= chance <= domain[1]:
        parts.append(f'<path class="chance" d="M{at(chance)} 0V{height:g}"/>')
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        parts.append(f'<path d="M{at(low)} {height / 2:g}H{at(high)}" style="stroke:var(--{colour})"/>')
    if value is not None and math.isfinite(value):
        parts.append(f'<circle cx="{at(value)}" cy="{height / 2:g}" r="4" style="fill:var(--{colour})"/>')
    body = "".join(parts)
    return Markup(f'<svg class="interval" viewBox="0 0 {width:g} {height:g}" aria-hidden="true">{body}</svg>')


def _dash(line: Any, curve: Curve) -> None:
    if curve.dash:  # matplotlib counts dashes in line widths, SVG in units of the drawing
        line.set_dashes([float(part) / line.get_linewidth() for part in curve.dash.split()])


def _unit_square(axes: Any) -> None:
    axes.set_xlim(-0.015, 1.015)
    axes.set_ylim(-0.015, 1.02)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))


def _axes(figure: Figure, place: tuple[float, float, float, float], **options: Any) -> Any:
    axes = figure.add_axes(place, **options)
    axes.patch.set_visible(False)
    axes.grid(True, color=_LIGHT["grid"], linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_LIGHT["muted"], pad=5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_LIGHT["axis"], linewidth=1.0)
    axes.xaxis.label.set_color(_LIGHT["muted"])
    axes.yaxis.label.set_color(_LIGHT["muted"])
    return axes


def _power_of_ten(value: float, _position: int) -> str:
    exponent = round(math.log10(value))
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _short(size: float) -> str:
    power, unit = (
        (1e9, " G") if size >= 1e9 else (1e6, " M") if size >= 1e6 else (1e3, " k") if size >= 1e3 else (1, "")
    )
    return f"{size / power:g}{unit}"


@contextmanager
def _drawing(name: str, width: int, height: int) -> Iterator[Figure]:
    # One unit of the drawing is one CSS pixel (72 dpi), so that 11.5 here is 11.5 px text on the page. Text stays text:
    # it can be selected and takes the page's typeface; "$" in it must not start mathematics.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 11.0,
        "axes.formatter.useoffset": False,
        "axes.unicode_minus": True,
        "path.simplify": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        yield figure


_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_VARIABLES = {light: f"var(--{name})" for name, light in _LIGHT.items()}


def _inline(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as SVG to stand inside HTML: no namespaces or metadata, unique ids, and the colours of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    referenced = set(re.findall(r"#(\w+)", " ".join(text for node in root.iter() for text in _references(node))))
    for node in root.iter():
        for child in list(node):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                node.remove(child)
    for node in root.iter():
        node.tag = node.tag.removeprefix(_SVG)
        node.tail = None
        if node.tag != "text":
            node.text = None
        if node.get("id") in referenced:
            node.set("id", f"{name}-{node.get('id')}")
        else:
            node.attrib.pop("id", None)
        if link := node.attrib.pop(_XLINK, None):
            node.set("href", link.replace("#", f"#{name}-"))
        if clip := node.get("clip-path"):
            node.set("clip-path", clip.replace("#", f"#{name}-"))
        if style := node.get("style"):
            node.set("style", _page_style(style))
        for key in ("d", "x", "y", "transform"):
            if text := node.get(key):
                node.set(key, re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", " ".join(text.split())))
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "plot", "role": "img", "aria-label": alt}
    return Markup(ET.tostring(root, encoding="unicode"))


def _references(node: ET.Element) -> Iterator[str]:
    for key in (_XLINK, "clip-path"):
        if key in node.attrib:
            yield node.attrib[key]


def _page_style(style: str) -> str:
    kept = [
        part for part in (piece.strip() for piece in style.split(";")) if part and not part.startswith("font-family")
    ]
    return re.sub(r"#[0-9a-f]{6}", lambda colour: _VARIABLES.get(colour[0], colour[0]), "; ".join(kept))
