"""The distinct kernels: covers, their order-freeness, duplicates, dead kernels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from radgaze.errors import InputError
from radgaze.redundancy.cover import Cover, count_distinct, distinct_kernels


def distances(kernels: int, seed: int = 0, dimensions: int = 3) -> NDArray[np.float64]:
    points = np.random.default_rng(seed).random((kernels, dimensions))
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def smallest(values: NDArray[np.float64], tau: float) -> int:
    near = values <= tau
    return next(
        size
        for size in range(1, len(values) + 1)
        if any(near[list(chosen)].any(0).all() for chosen in combinations(range(len(values)), size))
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tau", [0.2, 0.4, 0.7])
def test_every_kernel_lies_within_tau_of_its_representative(seed: int, tau: float) -> None:
    values = distances(30, seed)
    cover = distinct_kernels(values, tau)
    assert (values[np.arange(30), cover.stands_for] <= tau).all()
    assert set(cover.stands_for) == set(cover.kernels)
    assert (cover.stands_for[cover.kernels] == cover.kernels).all()


def test_close_to_the_smallest_cover() -> None:
    found = [len(distinct_kernels(distances(9, seed), 0.45)) for seed in range(30)]
    best = [smallest(distances(9, seed), 0.45) for seed in range(30)]
    assert all(a >= b for a, b in zip(found, best, strict=True))
    assert np.mean(found) < 1.1 * np.mean(best)


@pytest.mark.parametrize("seed", range(20))
def test_order_does_not_matter(seed: int) -> None:
    values = distances(25, seed)
    order = np.random.default_rng(seed + 100).permutation(25)
    shuffled = distinct_kernels(values[np.ix_(order, order)], 0.4)
    assert sorted(order[shuffled.kernels]) == distinct_kernels(values, 0.4).kernels.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_duplicate_is_never_distinct(seed: int) -> None:
    values = distances(20, seed)
    twice = np.append(np.arange(20), seed % 20)
    assert len(distinct_kernels(values[np.ix_(twice, twice)], 0.4)) == len(distinct_kernels(values, 0.4))


def test_all_different_and_all_the_same() -> None:
    assert distinct_kernels(0.8 * (1 - np.eye(6)), 0.79).kernels.tolist() == list(range(6))
    assert distinct_kernels(np.zeros((6, 6)), 0.1).kernels.tolist() == [0]


def test_tau_itself_is_near_enough() -> None:
    assert len(distinct_kernels([[0, 0.5], [0.5, 0]], 0.5)) == 1


def test_dead_kernels_are_left_out() -> None:
    values = 0.9 * (1 - np.eye(4))
    cover = distinct_kernels(values, 0.5, dead=[False, True, False, True])
    assert cover.kernels.tolist() == [0, 2]
    assert cover.stands_for.tolist() == [0, -1, 2, -1]
    nothing = distinct_kernels(values, 0.5, dead=np.ones(4, bool))
    assert len(nothing) == 0
    assert nothing.stands_for.tolist() == [-1] * 4


def test_the_kernel_that_stands_for_most_comes_first() -> None:
    # 2 is near 0, 1 and 3; the chain 3-4 is left with 4 alone
    values = np.full((5, 5), 0.9)
    np.fill_diagonal(values, 0)
    for a, b in ((0, 2), (1, 2), (2, 3), (3, 4)):
        values[a, b] = values[b, a] = 0.1
    cover: Cover = distinct_kernels(values, 0.2)
    assert cover.kernels.tolist() == [2, 4]
    assert cover.stands_for.tolist() == [2, 2, 2, 2, 4]


@pytest.mark.parametrize("tau", [0, 1, -0.1, 1.5, float("nan")])
def test_tau_outside_is_refused(tau: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        distinct_kernels(np.zeros((2, 2)), tau)


@pytest.mark.parametrize(
    "values", [np.zeros((2, 3)), [[0, np.nan], [np.nan, 0]], [[0, -1], [-1, 0]], [[1, 0], [0, 0]], [[0, 0.1], [0.2, 0]]]
)
def test_what_is_no_difference_is_refused(values: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="difference"):
        distinct_kernels(values, 0.5)


def test_dead_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="one value per kernel"):
        distinct_kernels(np.zeros((2, 2)), 0.5, dead=[True])


def test_counts_at_many_thresholds() -> None:
    values, dead = distances(30), np.arange(30) % 7 == 0
    counts = count_distinct(values, [0.6, 0.2, 0.4], dead)
    assert list(counts.items()) == [(tau, len(distinct_kernels(values, tau, dead))) for tau in (0.2, 0.4, 0.6)]
    with pytest.raises(InputError, match="between 0 and 1"):
        count_distinct(values, [0.5, 1.0])
