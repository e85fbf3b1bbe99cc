"""From raw gaze samples to fixations, counts and statistics.

Fixation detection after Salvucci and Goldberg, *Identifying fixations and saccades in eye-tracking protocols*,
ETRA 2000:

- I-DT, dispersion threshold: with D = (max x - min x) + (max y - min y), a window of at least the minimum duration
  whose D stays within the threshold grows sample by sample until it exceeds it; a window that cannot reach the minimum
  drops its first sample.
- I-VT, velocity threshold: neighbouring samples whose point-to-point velocity is below the threshold belong to one
  fixation.

A fixation is its samples' centroid, the first one's time, and the time from the first to the last.

Deviations: samples lost for up to ``max_gap`` are bridged, longer gaps and a change of reader always end a fixation
(the paper's data have neither). In I-VT the paper labels samples, each by one of its two velocities; here the *step*
between two samples is labelled, so that a saccade between two samples costs neither fixation a sample, and runs shorter
than the minimum duration are dropped, as in Olsen, *The Tobii I-VT fixation filter*, 2012, whose 30 degrees per second
and 75 ms gap are the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radgaze.errors import InputError, nearest
from radgaze.gaze.grid import Grid
from radgaze.gaze.points import Gaze

__all__ = ["GazeStatistics", "detect_fixations", "fixation_map", "statistics"]

_DEFAULT_THRESHOLD = {"i-dt": 1.0, "i-vt": 30.0}
# Sample times are decimal fractions: seven samples at 60 Hz span 0.1 s only to rounding.
_TIME_TOLERANCE = 1e-6


def fixation_map(gaze: Gaze, grid: Grid) -> Tensor:
    """Valid points counted in the grid's nearest cell: (h, w) float32, points beyond the grid dropped.

    NSS and AUC are taken at these counts, never at the blurred map.
    """
    column, row = grid.to_grid(gaze.x.detach(), gaze.y.detach())
    column, row = torch.floor(column + 0.5), torch.floor(row + 0.5)
    # NaN compares false, so lost samples drop out here too.
    kept = gaze.usable & (column >= 0) & (column < grid.width) & (row >= 0) & (row < grid.height)
    cell = (row[kept] * grid.width + column[kept]).to(torch.int64)
    return torch.bincount(cell, minlength=grid.height * grid.width).reshape(grid.size).to(torch.float32)


def detect_fixations(
    gaze: Gaze,
    *,
    method: Literal["i-dt", "i-vt"] = "i-dt",
    threshold: float | None = None,
    unit: Literal["degrees", "pixels"] = "degrees",
    px_per_degree: float | tuple[float, float] | None = None,
    min_duration: float = 0.1,
    max_gap: float = 0.075,
) -> Gaze:
    """Fixations of raw samples; a reader's samples are taken in order of time.

    Args:
        gaze: samples with ``t``; invalid and untimed ones are skipped.
        method: "i-dt" or "i-vt" (see the top of this file).
        threshold: I-DT: largest dispersion; I-VT: velocity per second at which a saccade begins. Defaults in degrees: 1
            and 30; in pixels there is none, because it depends on the image.
        unit: of the threshold. Degrees need ``px_per_degree``, here or in the gaze.
        px_per_degree: image pixels per degree of visual angle, one number or (x, y); overrides the gaze's own.
        min_duration: seconds; shorter runs are no fixation.
        max_gap: seconds without a valid sample that a fixation may bridge.

    Returns:
        Gaze of the fixations in time order per reader: centroid, ``t`` (start), ``duration``; ``reader`` and mean
        ``px_per_degree`` and the first sample's ``shown`` where the samples have them.

    Raises:
        InputError: no times, a missing threshold or scale, an unknown method or unit.
    """
    if method not in _DEFAULT_THRESHOLD:
        raise InputError(f"unknown fixation method {method!r}: {nearest(method, _DEFAULT_THRESHOLD)}")
    if unit not in ("degrees", "pixels"):
        raise InputError(f"unknown threshold unit {unit!r}: {nearest(unit, ('degrees', 'pixels'))}")
    if gaze.t is None:
        raise InputError("gaze has no times, which fixation detection needs; give t in seconds")
    if threshold is None:
        if unit == "pixels":
            raise InputError("no threshold given in pixels, which has no default; give one, or use unit='degrees'")
        threshold = _DEFAULT_THRESHOLD[method]
    if not threshold > 0 or min_duration < 0 or max_gap < 0:
        raise InputError(
            f"threshold {threshold:g}, min_duration {min_duration:g} s, max_gap {max_gap:g} s: "
            "give a threshold above zero and times of at least zero"
        )
    samples = _Samples.of(gaze, unit, px_per_degree)
    find = _dispersion_runs if method == "i-dt" else _velocity_runs
    return samples.fixations(gaze, find(samples, threshold, min_duration, max_gap))


@dataclass(frozen=True)
class _Samples:
    """Valid samples sorted by reader, then time, as float64 arrays (n,).

    ``order`` is their places in the original gaze.
    """

    order: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    t: NDArray[np.float64]
    reader: NDArray[np.int64]
    scale: NDArray[np.float64]  # (n, 2) pixels per unit of the threshold

    @classmethod
    def of(cls, gaze: Gaze, unit: str, px_per_degree: float | tuple[float, float] | None) -> _Samples:
        assert gaze.t is not None
        x, y, t = (column.detach().cpu().numpy().astype(np.float64) for column in (gaze.x, gaze.y, gaze.t))
        reader = np.zeros(len(gaze), np.int64) if gaze.reader is None else gaze.reader.cpu().numpy()
        if unit == "pixels":
            scale = np.ones((len(gaze), 2))
        elif px_per_degree is not None:
            scale = np.broadcast_to(np.asarray(px_per_degree, np.float64), (len(gaze), 2))
        elif gaze.px_per_degree is not None:
            scale = gaze.px_per_degree.detach().cpu().numpy()
        else:
            raise InputError(
                "threshold is in degrees but px_per_degree is unknown; give px_per_degree, or unit='pixels'"
            )
        kept = np.flatnonzero(gaze.usable.cpu().numpy() & np.isfinite(t))
        if not (scale[kept] > 0).all():
            raise InputError("px_per_degree contains NaN or numbers <= 0; give positive pixels per degree")
        order = kept[np.lexsort((t[kept], reader[kept]))]
        return cls(order, x[order], y[order], t[order], reader[order], scale[order])

    def unbroken(self, max_gap: float) -> list[tuple[int, int]]:
        """(start, stop) of stretches of one reader without a longer gap."""
        if len(self.t) == 0:
            return []
        broken = (np.diff(self.t) > max_gap + _TIME_TOLERANCE) | (np.diff(self.reader) != 0)
        ends = np.concatenate([[0], np.flatnonzero(broken) + 1, [len(self.t)]])
        return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))

    def fixations(self, gaze: Gaze, runs: list[tuple[int, int]]) -> Gaze:
        """One point per (start, stop) run of samples."""
        start, stop = (np.array([run[end] for run in runs], np.int64) for end in (0, 1))

        def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.array([values[a:b].mean(axis=0) for a, b in runs], np.float64).reshape(
                len(runs), *values.shape[1:]
            )

        def column(values: Tensor | None) -> NDArray[np.float64] | None:
            return None if values is None else values.detach().cpu().numpy()[self.order]

        px_per_degree, shown = column(gaze.px_per_degree), column(gaze.shown)
        found = Gaze(
            mean(self.x),
            mean(self.y),
            t=self.t[start],
            duration=self.t[stop - 1] - self.t[start],
            reader=None if gaze.reader is None else self.reader[start],
            px_per_degree=None if px_per_degree is None else mean(px_per_degree),
            shown=None if shown is None else shown[start],
        )
        return found.to(gaze.device)


def _dispersion_runs(samples: _Samples, threshold: float, min_duration: float, max_gap: float) -> list[tuple[int, int]]:
    runs = []
    for first, last in samples.unbroken(max_gap):
        x, y, t = (values[first:last].tolist() for values in (samples.x, samples.y, samples.t))
        scale = samples.scale[first:last].tolist()
        start = 0
        while start < len(t):
            per_x, per_y = scale[start]
            low_x = high_x = x[start]
            low_y = high_y = y[start]
            stop = start + 1
            while stop < len(t):
                new_low_x, new_high_x = min(low_x, x[stop]), max(high_x, x[stop])
                new_low_y, new_high_y = min(low_y, y[stop]), max(high_y, y[stop])
                if (new_high_x - new_low_x) / per_x + (new_high_y - new_low_y) / per_y > threshold:
                    break
                low_x, high_x, low_y, high_y = new_low_x, new_high_x, new_low_y, new_high_y
                stop += 1
            if t[stop - 1] - t[start] >= min_duration - _TIME_TOLERANCE:
                runs.append((first + start, first + stop))
                start = stop
            else:
                start += 1
    return runs


def _velocity_runs(samples: _Samples, threshold: float, min_duration: float, max_gap: float) -> list[tuple[int, int]]:
    runs = []
    for first, last in samples.unbroken(max_gap):
        scale = (samples.scale[first : last - 1] + samples.scale[first + 1 : last]) / 2
        step = np.hypot(np.diff(samples.x[first:last]) / scale[:, 0], np.diff(samples.y[first:last]) / scale[:, 1])
        # Compared as distances, so that two samples with one time stamp need no division by zero.
        saccade = step >= threshold * np.diff(samples.t[first:last])
        ends = np.concatenate([[first], np.flatnonzero(saccade) + first + 1, [last]])
        for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            if samples.t[stop - 1] - samples.t[start] >= min_duration - _TIME_TOLERANCE:
                runs.append((start, stop))
    return runs


@dataclass(frozen=True)
class GazeStatistics:
    """What a recording holds; None where it cannot be known (no points, or no times).

    Attributes:
        points: all points. valid: those the tracker trusted. inside: valid points on the image.
        span: seconds from the first to the last valid point, summed over readers. rate: Hz, from the median step.
        longest_gap: seconds between consecutive valid points.
        path: source pixels travelled between consecutive valid points, in order of time.
        centre: (x, y) mean of the points inside. spread: (x, y) their standard deviation.
    """

    points: int
    valid: int
    inside: int
    span: float | None
    rate: float | None
    longest_gap: float | None
    path: float
    centre: tuple[float, float] | None
    spread: tuple[float, float] | None


def statistics(gaze: Gaze, source_size: tuple[int, int]) -> GazeStatistics:
    """Statistics of samples or fixations on an image of ``source_size`` (H, W); see :class:`GazeStatistics`."""
    timed = (
        gaze if gaze.t is not None else Gaze(gaze.x, gaze.y, np.arange(len(gaze)), reader=gaze.reader, valid=gaze.valid)
    )
    samples = _Samples.of(timed, "pixels", None)
    same_reader = np.diff(samples.reader) == 0
    steps = np.diff(samples.t)[same_reader]
    path = np.hypot(np.diff(samples.x), np.diff(samples.y))[same_reader].sum()
    known = gaze.t is not None and len(steps) > 0
    step = float(np.median(steps)) if known else 0.0
    inside = gaze.inside(source_size)
    on_image = torch.stack([gaze.x, gaze.y], dim=1).detach()[inside].cpu().numpy()
    return GazeStatistics(
        points=len(gaze),
        valid=int(gaze.usable.sum()),
        inside=len(on_image),
        span=float(steps.sum()) if known else None,
        rate=1 / step if step > 0 and 1 / step < np.inf else None,
        longest_gap=float(steps.max()) if known else None,
        path=float(path),
        centre=(float(on_image[:, 0].mean()), float(on_image[:, 1].mean())) if len(on_image) else None,
        spread=(float(on_image[:, 0].std()), float(on_image[:, 1].std())) if len(on_image) else None,
    )
