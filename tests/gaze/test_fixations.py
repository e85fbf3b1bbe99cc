"""Fixations, counts and statistics against recordings small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radgaze.errors import InputError
from radgaze.gaze import Gaze, Grid, detect_fixations, fixation_map, statistics

METHODS = [("i-dt", 20.0), ("i-vt", 1000.0)]


def recording(*holds: tuple[float, float, int], rate: float = 60.0, jitter: float = 0.0, seed: int = 0) -> Gaze:
    """Samples that rest at each (x, y) for a number of samples and jump to the next between two samples."""
    rng = np.random.default_rng(seed)
    centres = np.concatenate([np.tile([x, y], (count, 1)) for x, y, count in holds])
    xy = centres + rng.uniform(-jitter, jitter, centres.shape)
    return Gaze(xy[:, 0], xy[:, 1], t=np.arange(len(xy)) / rate)


def found(gaze: Gaze) -> list[tuple[float, float, float, float]]:
    columns = [gaze.x, gaze.y, gaze.t, gaze.duration]
    return [tuple(row) for row in torch.stack(columns, dim=1).tolist()]


@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_two_rests_and_a_jump(method: str, threshold: float) -> None:
    gaze = recording((100, 200, 13), (400, 250, 31))
    fixations = detect_fixations(gaze, method=method, threshold=threshold, unit="pixels")
    expected = [(100, 200, 0, 12 / 60), (400, 250, 13 / 60, 30 / 60)]
    np.testing.assert_allclose(found(fixations), expected, atol=1e-12)


@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_samples_of_a_slow_saccade_belong_to_no_fixation(method: str, threshold: float) -> None:
    """A saccade seen at 60 Hz in steps of 60 px: 3,600 px/s, and too wide for the dispersion threshold."""
    flight = [(160, 200, 1), (220, 200, 1), (280, 200, 1)]
    gaze = recording((100, 200, 12), *flight, (340, 200, 12))
    fixations = detect_fixations(gaze, method=method, threshold=threshold, unit="pixels")
    expected = [(100, 200, 0, 11 / 60), (340, 200, 15 / 60, 11 / 60)]
    np.testing.assert_allclose(found(fixations), expected, atol=1e-12)


@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_centroids_of_noisy_rests(method: str, threshold: float) -> None:
    gaze = recording((100, 200, 40), (500, 300, 25), (300, 900, 33), jitter=3)
    fixations = detect_fixations(gaze, method=method, threshold=threshold, unit="pixels")
    groups = [slice(0, 40), slice(40, 65), slice(65, 98)]
    np.testing.assert_allclose(fixations.x, [gaze.x[g].mean() for g in groups])
    np.testing.assert_allclose(fixations.y, [gaze.y[g].mean() for g in groups])
    np.testing.assert_allclose(fixations.duration, [39 / 60, 24 / 60, 32 / 60])


def test_dispersion_is_the_sum_of_both_ranges() -> None:
    """A drift of 1 px per sample on both axes: D = 2·(n - 1), so a threshold of 10 holds six samples."""
    drift = np.arange(18.0)
    fixations = detect_fixations(
        Gaze(drift, drift, t=drift / 10), threshold=10, unit="pixels", min_duration=0.3, max_gap=0.2
    )
    assert fixations.x.tolist() == [2.5, 8.5, 14.5]
    np.testing.assert_allclose(fixations.duration, [0.5] * 3)


def test_velocity_is_distance_over_time() -> None:
    """Steps of 5 px: 50 px/s at 10 Hz is slow for a threshold of 51 and a saccade at 50."""
    gaze = Gaze([0, 3, 6, 9], [0, 4, 8, 12], t=[0, 0.1, 0.2, 0.3])
    options = {"method": "i-vt", "unit": "pixels", "min_duration": 0.2, "max_gap": 0.2}
    assert len(detect_fixations(gaze, threshold=51, **options)) == 1
    assert len(detect_fixations(gaze, threshold=49.9, **options)) == 0


@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_short_rests_are_no_fixations_and_the_limit_counts(method: str, threshold: float) -> None:
    """Seven samples at 60 Hz span exactly 0.1 s, six do not; decimal time stamps must not decide otherwise."""
    gaze = recording((0, 0, 7), (300, 0, 6), (600, 0, 7))
    fixations = detect_fixations(gaze, method=method, threshold=threshold, unit="pixels", min_duration=0.1)
    assert fixations.x.tolist() == [0, 600]
    rounded = Gaze(gaze.x, gaze.y, t=np.round(gaze.t.numpy(), 6))
    assert len(detect_fixations(rounded, method=method, threshold=threshold, unit="pixels", min_duration=0.1)) == 2


@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_lost_samples_are_bridged_up_to_the_gap(method: str, threshold: float) -> None:
    gaze = recording((100, 100, 40))
    valid = np.ones(40, bool)
    valid[[10, 11]] = False  # 50 ms between samples 9 and 12: bridged
    valid[20:26] = False  # 117 ms between samples 19 and 26: a gap
    x = gaze.x.clone()
    x[10] = float("nan")
    fixations = detect_fixations(
        Gaze(x, gaze.y, gaze.t, valid=valid), method=method, threshold=threshold, unit="pixels"
    )
    expected = [(100, 100, 0, 19 / 60), (100, 100, 26 / 60, 13 / 60)]
    np.testing.assert_allclose(found(fixations), expected, atol=1e-12)


@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_readers_are_taken_apart_and_put_in_order(method: str, threshold: float) -> None:
    first, second = recording((10, 10, 20)), recording((12, 10, 20))
    both = Gaze.concat([first, second])
    mixed = Gaze(both.x, both.y, both.t, reader=[3] * 20 + [1] * 20)
    shuffled = mixed.select(np.random.default_rng(0).permutation(40))
    fixations = detect_fixations(shuffled, method=method, threshold=threshold, unit="pixels")
    assert fixations.reader.tolist() == [1, 3]
    assert fixations.x.tolist() == [12, 10]


def test_degrees_scale_each_axis_and_travel_with_the_fixation() -> None:
    gaze = recording((100, 100, 20), (130, 100, 20))
    # 30 px are 0.75 degrees at 40 px per degree and 1.5 at 20.
    assert len(detect_fixations(gaze, px_per_degree=40)) == 1
    assert len(detect_fixations(gaze, px_per_degree=20)) == 2
    assert len(detect_fixations(gaze, px_per_degree=(40, 1))) == 1
    own = Gaze(gaze.x, gaze.y, gaze.t, px_per_degree=[[20, 30]] * 40, shown=[[0, 0, 9, 9]] * 40)
    fixations = detect_fixations(own)
    assert fixations.px_per_degree.tolist() == [[20, 30], [20, 30]]
    assert fixations.shown.tolist() == [[0, 0, 9, 9]] * 2
    # A step of 30 px in 1/60 s is 45 degrees a second at 40 px per degree.
    assert len(detect_fixations(gaze, method="i-vt", px_per_degree=40)) == 2
    assert len(detect_fixations(gaze, method="i-vt", px_per_degree=40, threshold=46)) == 1


@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_nothing_gives_nothing(method: str, threshold: float) -> None:
    for gaze in (Gaze([], [], t=[]), Gaze([np.nan], [1], t=[0]), Gaze([1], [1], t=[np.nan]), Gaze([1], [1], t=[0])):
        fixations = detect_fixations(gaze, method=method, threshold=threshold, unit="pixels")
        assert len(fixations) == 0
        assert fixations.duration.shape == (0,)


def test_equal_time_stamps_do_not_divide_by_zero() -> None:
    gaze = Gaze([1, 1, 50, 50], [1, 1, 1, 1], t=[0.0, 0.2, 0.2, 0.4])
    fixations = detect_fixations(gaze, method="i-vt", threshold=100, unit="pixels", max_gap=1)
    assert fixations.x.tolist() == [1, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "i-xt"}, "unknown fixation method 'i-xt'"),
        ({"unit": "degree"}, "did you mean 'degrees'"),
        ({"unit": "pixels"}, "no threshold given in pixels"),
        ({}, "px_per_degree is unknown"),
        ({"threshold": -1, "unit": "pixels"}, "threshold -1"),
        ({"px_per_degree": 0}, "px_per_degree contains"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detect_fixations(recording((1, 1, 5)), **options)
    with pytest.raises(InputError, match="no times"):
        detect_fixations(Gaze([1], [1]), px_per_degree=30)


def test_fixation_map_counts_valid_points_in_their_cell() -> None:
    grid = Grid.area((40, 60), (4, 6))
    gaze = Gaze(
        [-0.5, 9.4, 9.6, 59.5, 59.4, np.nan, 30, 200],
        [-0.4, 9.4, 0, 39.4, 39, 3, 20, 5],
        valid=[True] * 6 + [False, True],
    )
    expected = np.zeros((4, 6))
    expected[0, 0], expected[0, 1], expected[3, 5] = 2, 1, 1
    counted = fixation_map(gaze, grid)
    assert counted.dtype == torch.float32
    np.testing.assert_array_equal(counted, expected)
    assert fixation_map(Gaze([], []), grid).shape == (4, 6)


def test_fixation_map_at_full_resolution_is_the_count_image() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, 200), rng.integers(0, 30, 200)
    image = np.zeros((30, 20))
    np.add.at(image, (y, x), 1)
    np.testing.assert_array_equal(fixation_map(Gaze(x, y), Grid.strided((30, 20), 1)), image)


def test_statistics_by_hand() -> None:
    gaze = Gaze(
        [0, 3, 3, np.nan, 3, -50],
        [0, 4, 4, 1, 10, 10],
        t=[0, 0.1, 0.2, 0.3, 0.5, 0.6],
    )
    found = statistics(gaze, (20, 20))
    assert (found.points, found.valid, found.inside) == (6, 5, 4)
    assert found.span == pytest.approx(0.6)
    assert found.rate == pytest.approx(10)
    assert found.longest_gap == pytest.approx(0.3)
    assert found.path == pytest.approx(5 + 0 + 6 + 53)
    assert found.centre == pytest.approx((2.25, 4.5))
    assert found.spread == pytest.approx((np.std([0, 3, 3, 3]), np.std([0, 4, 4, 10])))


def test_statistics_keep_readers_apart_and_know_what_is_unknown() -> None:
    two = Gaze([0, 1, 100, 101], [0, 0, 0, 0], t=[0, 1, 50, 51], reader=[0, 0, 1, 1])
    assert statistics(two, (200, 200)).span == 2
    assert statistics(two, (200, 200)).path == 2
    untimed = statistics(Gaze([0, 3], [0, 4]), (9, 9))
    assert untimed.path == 5
    assert untimed.span is untimed.rate is untimed.longest_gap is None
    nothing = statistics(Gaze([], []), (9, 9))
    assert (nothing.points, nothing.path, nothing.centre, nothing.spread) == (0, 0, None, None)
