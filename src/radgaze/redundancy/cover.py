"""The distinct kernels of a layer: the fewest that stand for all the others.

    K_τ = size of the smallest set such that every live kernel lies within τ of a member,      KRM = 1 - K_τ / K

This definition is this project's own (the full text of arXiv 2212.00272 was not available to it). The smallest set is
NP-hard to find; this is the greedy cover, at most 1 + ln K times larger: again and again the kernel that stands for
most of the kernels not yet stood for.

The result is the same for any order of the kernels: among kernels that gain the same, the one with the least summed
difference from all others is taken, and kernels that look the same (difference below ``SAME``) count as one, so that a
duplicate can change neither choice nor size. The lowest index decides only between kernels that nothing tells apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radgaze.errors import InputError

__all__ = ["SAME", "Cover", "check_threshold", "count_distinct", "distinct_kernels"]

SAME = 1e-4
"""Differences up to here are rounding: two such kernels show the same image."""


@dataclass(frozen=True)
class Cover:
    """Which kernels are kept and which kept kernel stands for each.

    Attributes:
        kernels: (K_τ,) int64 indices of the distinct kernels, ascending.
        stands_for: (K,) int64, for each kernel the distinct kernel nearest to it, itself if distinct; -1 if dead.
    """

    kernels: NDArray[np.int64]
    stands_for: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kernels)


def distinct_kernels(difference: ArrayLike, tau: float, dead: ArrayLike | None = None) -> Cover:
    """The distinct kernels at threshold ``tau``.

    Args:
        difference: (K, K) symmetric, zero diagonal, finite and not negative, all up to ``SAME``.
        tau: in (0, 1); two kernels at most this far apart may stand for each other.
        dead: (K,) bool; kernels perceived as nothing, which nobody stands for. None: all live.

    Raises:
        InputError: for a ``tau`` outside (0, 1), or a matrix that is no such difference.
    """
    check_threshold("tau", tau)
    values, live = _checked(difference, dead)
    candidates, among = _candidates(values, live)
    kept = np.sort(candidates[_greedy_cover(among <= tau)])

    stands_for = np.full(len(values), -1, np.int64)
    if len(kept):
        stands_for[live] = kept[values[np.ix_(live, kept)].argmin(1)]
        stands_for[kept] = kept
    return Cover(kept, stands_for)


def count_distinct(difference: ArrayLike, taus: Sequence[float], dead: ArrayLike | None = None) -> dict[float, int]:
    """{τ: K_τ}, ascending in τ: the sizes of :func:`distinct_kernels` at many thresholds, for little more than one.

    Raises:
        InputError: as :func:`distinct_kernels`.
    """
    for tau in taus:
        check_threshold("a value in taus", tau)
    _, among = _candidates(*_checked(difference, dead))
    return {tau: len(_greedy_cover(among <= tau)) for tau in sorted(taus)}


def check_threshold(name: str, tau: float) -> None:
    if not 0 < tau < 1:
        raise InputError(f"{name} is {tau!r}, expected a difference between 0 and 1, both excluded: try 0.5")


def _checked(difference: ArrayLike, dead: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The difference, symmetric to the last bit, and which kernels are live."""
    values = np.asarray(difference, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise InputError(f"difference has shape {values.shape}, expected (K, K): one row and column per kernel")
    diagonal = values.diagonal()
    if not np.isfinite(values).all() or values.min(initial=0) < -SAME or np.abs(diagonal).max(initial=0) > SAME:
        raise InputError("difference has NaN, infinite or negative values or a diagonal that is not zero: mend it")
    if np.abs(values - values.T).max(initial=0) > SAME:
        raise InputError("difference is not symmetric, expected the same value for (i, j) and (j, i): mend it")
    values = (values + values.T) / 2
    live = np.ones(len(values), bool) if dead is None else ~np.asarray(dead, dtype=bool)
    if live.shape != (len(values),):
        raise InputError(f"dead has shape {live.shape}, expected ({len(values)},): one value per kernel")
    return values, live


def _candidates(values: NDArray[np.float64], live: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The live kernels, one of each look, the most central first, and the differences among them."""
    kernels = np.flatnonzero(live)
    among = values[np.ix_(kernels, kernels)]
    first = ~np.tril(among <= SAME, -1).any(1)
    kernels, among = kernels[first], among[np.ix_(first, first)]
    order = np.argsort(among.sum(1), kind="stable")
    return kernels[order], among[np.ix_(order, order)]


def _greedy_cover(near: NDArray[np.bool_]) -> list[int]:
    """Rows of the symmetric ``near`` that cover all columns; of equal gains the first row."""
    gains = near.sum(1)
    uncovered = np.ones(len(near), bool)
    chosen: list[int] = []
    while uncovered.any():
        best = int(gains.argmax())
        if gains[best] == 1:  # whatever is left is near nothing else that is left: each stands for itself
            chosen.extend(np.flatnonzero(uncovered).tolist())
            break
        chosen.append(best)
        newly = np.flatnonzero(near[best] & uncovered)
        uncovered[newly] = False
        gains -= near[newly].sum(0)
    return chosen
