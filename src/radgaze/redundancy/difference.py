"""How differently the eye sees two kernels' output images.

    perceived a = (a - min a) / (max a - min a), and zero everywhere if a is constant: the eye adapts to brightness and
                  contrast, and an image without contrast is perceived as nothing
    d(a, b)     = 1 - MSSIM(a, b),   MSSIM = mean over windows of
                  (2 μa μb + C1)(2 σab + C2) / ((μa² + μb² + C1)(σa² + σb² + C2))

The structural similarity is that of Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004: Gaussian window of 11 x 11
taps, σ = 1.5 pixels, C1 = 0.01², C2 = 0.03², data range 1, population moments, windows fully inside the map. On maps of
11 x 11 pixels and larger this is scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=1)`` over the interior (5 pixels off each side).

Maps smaller than the window, where scikit-image has no answer: along each axis the window has ``min(11, n)`` taps,
``n`` the map's pixels on that axis; the taps sample the same Gaussian (σ = 1.5) about their own middle, which for an
even number lies between two pixels, and are scaled to sum to 1. A 7 x 7 map is thus seen through one window, a 7 x 20
map through ten.

All pairs of K maps: per map the filtered mean and variance are computed once; per pair only the product is filtered.
The window is separable: along a row, multiplying two maps and filtering the product is one matrix product over the taps
for all pairs; down the column it is a banded matrix. Matrix products alone, on any device.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from radgaze.errors import InputError, nearest

__all__ = ["DIFFERENCES", "Difference", "find_difference", "is_constant", "mssim", "perceived"]

Difference = Callable[[Tensor], Tensor]
"""Perceived images (K, h, w) in [0, 1] to (K, K) differences: symmetric, zero diagonal, 0 for maps seen as equal."""

TAPS = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2

# Pixels of the pairs handled at once: the products of a block and what they are filtered to should stay in a CPU's
# cache; a GPU wants long kernels instead. Kernels lie innermost in memory, so a block is wide enough to vectorise.
_CPU_BLOCK, _GPU_BLOCK = 1 << 17, 1 << 26
_CPU_COLUMNS, _GPU_COLUMNS = 128, 1024
# Up to so many windows a map, the pixels of each are multiplied out; beyond, filtering in two steps costs less.
_FEW_WINDOWS = 16
# Rows of the banded matrix multiplied at once: few skip more of the zeros beside the band, many use the GEMM better.
_BAND_ROWS = 24


def perceived(maps: Tensor) -> Tensor:
    """Each map scaled to [0, 1] by its own minimum and maximum; zero everywhere where :func:`is_constant`.

    Args:
        maps: (..., h, w) kernel outputs, any finite values.

    Returns:
        (..., h, w), float64 for float64 maps, float32 for all others.
    """
    maps = _floating(maps)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(_flat(low, high), 0.0, (maps - low) / (high - low))


def is_constant(maps: Tensor) -> Tensor:
    """(...,) bool: which of the (..., h, w) maps have no range beyond rounding (8 units in the last place)."""
    maps = _floating(maps)
    return _flat(maps.amin((-2, -1)), maps.amax((-2, -1)))


def mssim(maps: Tensor) -> Tensor:
    """Mean structural similarity of every pair of maps, data range 1.

    Symmetric, with ones on the diagonal; memory beyond the maps, their moments and the result is a block of fixed size,
    whatever K (one pair's pixels at the least). Not differentiable.

    Args:
        maps: (K, h, w), or (P, K, h, w) for P images of each kernel; values in [0, 1], any h, w >= 1. Computed in
            float64 for float64 maps, in float32 for all others.

    Returns:
        (K, K), or (P, K, K), values in [-1, 1].

    Raises:
        InputError: for another number of dimensions, empty maps, NaN or infinite pixels.
    """
    if maps.ndim not in (3, 4) or maps.numel() == 0:
        raise InputError(
            f"maps have shape {tuple(maps.shape)}, expected (K, h, w) or (P, K, h, w) with no side of 0: "
            "stack the kernels' maps first"
        )
    if not torch.isfinite(maps).all():
        raise InputError("maps have a NaN or infinite pixel, expected values in [0, 1]: mend or leave out those maps")
    with torch.no_grad(), _exact_products(maps.device):
        if maps.ndim == 4:
            return torch.stack([_mssim(_floating(image)) for image in maps])
        return _mssim(_floating(maps))


def find_difference(difference: str | Difference) -> Difference:
    """The function of that name in :data:`DIFFERENCES`; a function stands for itself.

    Raises:
        InputError: for an unknown name.
    """
    if callable(difference):
        return difference
    if difference not in DIFFERENCES:
        raise InputError(f"There is no difference {difference!r}: {nearest(str(difference), DIFFERENCES)}")
    return DIFFERENCES[difference]


# Differences of perceived images -------------------------------------------------------------------------------------


def structural_difference(maps: Tensor) -> Tensor:
    """1 - MSSIM, in [0, 2]."""
    return _as_difference(1 - mssim(maps))


def pearson_difference(maps: Tensor) -> Tensor:
    """1 - |r| over pixels, in [0, 1]: an image and its negative are the same. Nothing differs by 1 from any image."""
    standardised = _standardised(maps).flatten(1)
    with _exact_products(maps.device):
        correlation = standardised @ standardised.T / standardised.shape[1]
    nothing = is_constant(maps)
    correlation[nothing[:, None] & nothing] = 1  # two kernels perceived as nothing look the same
    return _as_difference(1 - correlation.abs())


def rmse_of_ranges(maps: Tensor) -> Tensor:
    """Root mean square difference of the min-max normalised images, in [0, 1]."""
    return _rmse(maps)


def rmse_of_scores(maps: Tensor) -> Tensor:
    """Root mean square difference of the images standardised to mean 0 and standard deviation 1, in [0, 2]."""
    return _rmse(_standardised(maps))


DIFFERENCES: dict[str, Difference] = {
    "mssim": structural_difference,
    "pearson": pearson_difference,
    "rmse": rmse_of_ranges,
    "rmse-z": rmse_of_scores,
}


def _standardised(maps: Tensor) -> Tensor:
    centred = maps - maps.mean((1, 2), keepdim=True)
    deviation = centred.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(is_constant(maps)[:, None, None], 0.0, centred / deviation)


def _rmse(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    # Through a matrix product the distance of equal maps would be the square root of a rounding error.
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return _as_difference(distance / math.sqrt(flat.shape[1]))


def _as_difference(values: Tensor) -> Tensor:
    values = (values + values.T) / 2  # rounding leaves hairs: here, below zero and on the diagonal
    return values.clamp_min_(0).fill_diagonal_(0)


# All-pairs MSSIM -----------------------------------------------------------------------------------------------------


def _mssim(maps: Tensor) -> Tensor:
    windows = math.prod(max(1, side - TAPS + 1) for side in maps.shape[1:])
    return _window_by_window(maps) if windows <= _FEW_WINDOWS else _column_by_column(maps)


def _window_by_window(maps: Tensor) -> Tensor:
    """Small maps: under one window, the covariances of all pairs are one matrix product of the weighted pixels."""
    kernels, height, width = maps.shape
    taps = [_window(side) for side in (height, width)]
    weights = torch.outer(*taps).to(maps).flatten()
    patches = maps.unfold(1, len(taps[0]), 1).unfold(2, len(taps[1]), 1).reshape(kernels, -1, len(weights))
    patches = patches.transpose(0, 1)  # (windows, K, pixels)
    mean = patches @ weights
    # about each window's own mean: a difference of large products would lose the digits of a small covariance
    contrast = (patches - mean[..., None]) * weights.sqrt()
    moments = _Moments.of(mean, contrast.square().sum(-1))
    # One pixel more, whose products are C2.
    contrast = torch.nn.functional.pad(contrast * math.sqrt(2), (0, 1), value=math.sqrt(C2))

    def similarity(a: slice, b: slice, scratch: _Scratch) -> Tensor:
        ratio = moments.ratio(a, b, scratch)
        products = torch.bmm(contrast[:, a], contrast[:, b].mT, out=scratch("products", *ratio.shape))
        return ratio.mul_(products).mean(0)

    return _all_pairs(similarity, kernels, len(patches), maps)


def _column_by_column(maps: Tensor) -> Tensor:
    """Maps of any size: for a column of windows, the products of all pairs summed along rows, then down the column."""
    kernels, height, width = maps.shape
    down, across = _bands(height, maps), _bands(width, maps)
    taps = 2 * _window(width).to(maps)[:, None]  # 2, for the numerator's

    # A covariance ignores offsets: maps about their own mean lose fewer digits. (h, w, K): kernels innermost.
    offset = maps.mean((1, 2))
    centred = (maps - offset[:, None, None]).permute(1, 2, 0).contiguous()
    mean = _filtered(centred, down, across)
    variance = (_filtered(centred.square(), down, across) - mean.square()).clamp_min_(0)
    whole = _Moments.of(mean + offset, variance)
    windows = mean.shape[:2]

    def similarity(a: slice, b: slice, scratch: _Scratch) -> Tensor:
        pairs = (a.stop - a.start, b.stop - b.start)
        total = scratch("total", windows[0], *pairs).zero_()
        weighted = scratch("weighted", height, len(taps) + 1, pairs[0])
        seen = scratch("seen", height, len(taps) + 1, pairs[1])
        weighted[:, -1], seen[:, -1] = C2, 1  # one pixel more, whose products are C2
        for x in range(windows[1]):
            torch.mul(centred[:, x : x + len(taps), a], taps, out=weighted[:, :-1])
            seen[:, :-1] = centred[:, x : x + len(taps), b]
            half = torch.bmm(weighted.mT, seen, out=scratch("half", height, *pairs))
            products = scratch("products", *total.shape)
            for band in down:
                torch.mm(band.taps, half[band.inputs].flatten(1), out=products[band.outputs].flatten(1))
            products.addcmul_(mean[:, x, a, None], mean[:, x, None, b], value=-2)
            column = _Moments(*(moment[:, x] for moment in whole))
            total.addcmul_(products, column.ratio(a, b, scratch))
        return total.sum(0) / math.prod(windows)

    return _all_pairs(similarity, kernels, height, maps)


class _Moments(NamedTuple):
    """What the similarity needs of each kernel under each window, (..., K)."""

    luminance: Tensor  # √2 μ: a product of two brings the numerator's 2
    luminance_power: Tensor  # μ² + C1/2
    contrast_power: Tensor  # σ² + C2/2

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor) -> _Moments:
        return cls(math.sqrt(2) * mean, mean.square() + C1 / 2, variance + C2 / 2)

    def ratio(self, a: slice, b: slice, scratch: _Scratch) -> Tensor:
        """(windows, |a|, |b|), all of the similarity but its factor 2 σab + C2."""

        def pairs(operation: Callable[..., Tensor], moment: Tensor, slot: str) -> Tensor:
            first, second = moment[:, a, None], moment[:, None, b]
            return operation(first, second, out=scratch(slot, len(moment), first.shape[1], second.shape[2]))

        power = pairs(torch.add, self.luminance_power, "power").mul_(pairs(torch.add, self.contrast_power, "ratio"))
        return pairs(torch.mul, self.luminance, "ratio").add_(C1).div_(power)


def _all_pairs(
    similarity: Callable[[slice, slice, _Scratch], Tensor], kernels: int, cells: int, like: Tensor
) -> Tensor:
    """(K, K), symmetric with ones on the diagonal, from blocks of pairs above it that hold so many ``cells`` a pair."""
    on_cpu = like.device.type == "cpu"
    columns = min(kernels, _CPU_COLUMNS if on_cpu else _GPU_COLUMNS)
    rows = max(1, min(columns, (_CPU_BLOCK if on_cpu else _GPU_BLOCK) // (columns * cells)))
    values = like.new_zeros(kernels, kernels)
    own = threading.local()

    def strip(top: int) -> None:
        if not hasattr(own, "scratch"):
            own.scratch = _Scratch(like)
        a = slice(top, min(top + rows, kernels))
        for left in range(top, kernels, columns):
            b = slice(left, min(left + columns, kernels))
            values[a, b] = similarity(a, b, own.scratch)

    _each(strip, range(0, kernels, rows), on_cpu)
    values = values.triu(1)
    return (values + values.T.contiguous()).fill_diagonal_(1)  # a copy turns in tiles, a sum in single steps


def _each(strip: Callable[[int], None], tops: Sequence[int], on_cpu: bool) -> None:
    """Run the strips, each on one core: threads that meet after every operation wait for the slowest, again and again.

    On two cores with other work on them, that made one torch operation after another some 10 times slower than this.
    """
    threads = torch.get_num_threads() if on_cpu else 1
    if threads == 1 or len(tops) == 1:
        for top in tops:
            strip(top)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(strip, tops))
    finally:
        torch.set_num_threads(threads)  # part of the setting is the process's


def _filtered(maps: Tensor, down: list[_Band], across: list[_Band]) -> Tensor:
    """G_y · maps · G_xᵀ: (h, w, K) to (h', w', K), windows fully inside."""
    rows = torch.cat([torch.einsum("yh,hwk->ywk", band.taps, maps[band.inputs]) for band in down])
    return torch.cat([torch.einsum("xw,ywk->yxk", band.taps, rows[:, band.inputs]) for band in across], 1)


class _Band(NamedTuple):
    """Some rows of the banded filter matrix, without the zeros on either side of their taps."""

    taps: Tensor
    inputs: slice
    outputs: slice


def _window(pixels: int) -> Tensor:
    """(taps,) float64 with sum 1, for an axis of so many pixels."""
    taps = min(TAPS, pixels)
    distance = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    window = torch.exp(-(distance**2) / (2 * SIGMA**2))
    return window / window.sum()


def _bands(pixels: int, like: Tensor) -> list[_Band]:
    window = _window(pixels)
    taps = len(window)
    windows = pixels - taps + 1
    bands = []
    for start in range(0, windows, _BAND_ROWS):
        rows = min(_BAND_ROWS, windows - start)
        matrix = torch.zeros(rows, rows + taps - 1, dtype=torch.float64)
        for row in range(rows):
            matrix[row, row : row + taps] = window
        bands.append(_Band(matrix.to(like), slice(start, start + rows + taps - 1), slice(start, start + rows)))
    return bands


class _Scratch:
    """Buffers that serve block after block: on a CPU, fresh megabytes cost more in page faults than the arithmetic."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, slot: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if slot not in self.buffers or self.buffers[slot].numel() < size:
            self.buffers[slot] = self.like.new_empty(size)
        return self.buffers[slot][:size].view(shape)


def _floating(maps: Tensor) -> Tensor:
    return maps.to(torch.float64 if maps.dtype == torch.float64 else torch.float32)


def _flat(low: Tensor, high: Tensor) -> Tensor:
    return high - low <= 8 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in the tensors' own precision, whatever the caller allows (TF32 and bf16 err by 1e-3)."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)
