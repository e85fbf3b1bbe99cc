"""Rendering against full-resolution OpenCV blurs, plain sums of Gaussians and SciPy densities."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from radgaze.errors import InputError
from radgaze.gaze import PRESETS, Gaze, Grid, render, render_batch

# `radgaze.gaze.render` is the function; the module under it is reached by its full name.
from radgaze.gaze.render import _TABLES, _Axis, _TableCache

PAPER = (3056, 2544), (3200, 2560), 5
CORNERS = [(0, 0), (1, 0), (0, 1), (-1, -1), (-2, -1), (0, -1), (-1, 0), (249, 250), (250, 251), (-251, -250)]


def counts(x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = np.zeros(size)
    np.add.at(image, (y, x), 1)
    return image


def blurred(x: np.ndarray, y: np.ndarray, size: tuple[int, int], ksize: int) -> np.ndarray:
    """The papers' way: OpenCV's blur of the full-resolution count image, σ from the kernel's size, default border."""
    return cv2.GaussianBlur(counts(x, y, size), (ksize, ksize), 0)


def padded(image: np.ndarray, canvas: tuple[int, int], stride: int) -> np.ndarray:
    out = np.zeros(canvas)
    top, left = (int((outer - inner) / 2) for outer, inner in zip(canvas, image.shape, strict=True))
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out[::stride, ::stride]


def min_max(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / (image.max() - image.min())


def test_the_papers_map_is_opencvs_blur_padded_and_strided() -> None:
    (height, width), canvas, stride = PAPER
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, width, 1500), rng.integers(0, height, 1500)
    for i, (row, column) in enumerate(CORNERS):
        y[i], x[i] = row % height, column % width
    expected = padded(blurred(x, y, (height, width), 501), canvas, stride)
    for dtype, error in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        options = {"stride": stride, "canvas": canvas, "dtype": dtype}
        plain = render(Gaze(x, y), (height, width), **options, scale="none").numpy()
        assert plain.shape == (640, 512)
        assert np.abs(plain - expected).max() <= error * expected.max()
        assert np.abs(render(Gaze(x, y), (height, width), **options).numpy() - min_max(expected)).max() <= error


@pytest.mark.parametrize(
    ("preset", "ksize"), [("gg-cam", 501), ("gg-cam-201", 201), ("gg-cam-501", 501), ("gg-cam-801", 801)]
)
def test_gg_cam_maps_are_opencvs_blur_over_its_maximum_at_the_cams_pixels(preset: str, ksize: int) -> None:
    rng = np.random.default_rng(1)
    size = (700, 600)
    x, y = rng.integers(0, 600, 80), rng.integers(0, 700, 80)
    image = blurred(x, y, size, ksize)
    for stride in (1, 32):
        sampled = image[::stride, ::stride]
        drawn = render(Gaze(x, y), size, preset=preset, stride=stride).numpy()
        np.testing.assert_allclose(drawn, sampled / sampled.max(), atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_border_and_every_small_image_reflects_as_opencv(data: st.DataObject) -> None:
    """Images smaller than the kernel reflect again and again; 1 and 2 pixels are the ends of that."""
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    ksize = data.draw(st.sampled_from([3, 7, 21, 51, 91]))
    points = data.draw(
        st.lists(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1)), min_size=1, max_size=6)
    )
    x, y = np.array(points).T
    sigma, radius = 0.3 * ((ksize - 1) / 2 - 1) + 0.8, (ksize - 1) / 2
    # σ is given because OpenCV has its own fixed kernels of up to nine taps.
    expected = cv2.GaussianBlur(counts(x, y, (height, width)), (ksize, ksize), sigma)
    options = {"sigma": sigma, "truncate": radius, "scale": "none", "dtype": torch.float64}
    for gaze in (Gaze(x, y), Gaze(torch.tensor(x, dtype=torch.float64, requires_grad=True), y)):
        drawn = render(gaze, (height, width), **options).detach().numpy()
        np.testing.assert_allclose(drawn, _unless_constant(expected), atol=1e-12)


def _unless_constant(image: np.ndarray) -> np.ndarray:
    return image if np.ptp(image) > 1e-14 * image.max() else np.zeros_like(image)


def test_points_between_pixels_meet_the_table_at_whole_pixels() -> None:
    """Evaluated directly, with or without gradients, a point approaching a pixel approaches the table's row."""
    (height, width), canvas, stride = PAPER
    x = np.array([0, 1, 3, width - 1, width - 2, 250, 1200])
    y = np.array([0, height - 1, 1, height - 2, 249, 251, 1500])
    grid = Grid.strided((height, width), stride, canvas)
    table = render(Gaze(x, y), (height, width), grid=grid, scale="none")
    needs_grad = Gaze(torch.tensor(x, dtype=torch.float64, requires_grad=True), y)
    direct = render(needs_grad, (height, width), grid=grid, scale="none").detach()
    assert (table - direct).abs().max() <= 1e-6 * table.max()
    # Towards the inside, where the truncation radius does not decide.
    nudge = 1e-7 * np.sign(np.array([width, height]) / 2 - np.stack([x, y], axis=1))
    near = render(
        Gaze(*(np.stack([x, y], axis=1) + nudge).T), (height, width), grid=grid, scale="none", truncate=math.inf
    )
    untruncated = render(Gaze(x, y), (height, width), grid=grid, scale="none", truncate=math.inf)
    assert (near - untruncated).abs().max() <= 1e-6 * untruncated.max()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_fractional_points_follow_the_written_formula(data: st.DataObject) -> None:
    """Exact distances to the point and its images at ±p + 2(L-1)m, the mirrored ones faded over the border pixel."""
    length = data.draw(st.integers(2, 40))
    sigma, radius = data.draw(st.floats(0.5, 12)), data.draw(st.integers(1, 45))
    p = data.draw(st.floats(-0.5, length - 0.5))
    rows = np.linspace(-0.49, length - 0.51, 23)

    def tap(d: np.ndarray) -> np.ndarray:
        return np.where(np.abs(d) <= radius, np.exp(-(d**2) / (2 * sigma**2)), 0)

    fade = min(max(min(p, length - 1 - p), 0), 1)
    expected = sum(
        tap(rows - p - 2 * (length - 1) * m) + fade * tap(rows + p - 2 * (length - 1) * m) for m in range(-60, 61)
    )
    expected /= tap(np.arange(-radius, radius + 1)).sum()
    axis = _Axis(length, 23, -0.49, rows[1] - rows[0], sigma, float(radius), True)
    drawn = axis.evaluate(torch.tensor([p], dtype=torch.float64), torch.float64)[0].numpy()
    # A tap exactly at the radius falls to either side by rounding.
    images = np.stack([s * p + 2 * (length - 1) * m for m in range(-60, 61) for s in (1, -1)])
    undecided = (np.abs(np.abs(rows[:, None] - images) - radius) < 1e-9).any(axis=1)
    np.testing.assert_allclose(drawn[~undecided], expected[~undecided], atol=1e-12)


def test_egd_official_is_a_plain_sum_of_gaussians() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 900, 7), rng.uniform(0, 800, 7)
    grid = Grid.letterbox((800, 900), (40, 50))
    u, v = grid.to_source(np.arange(50), np.arange(40))
    image = sum(np.exp(-((u[None] - a) ** 2 + (v[:, None] - b) ** 2) / (2 * 150**2)) for a, b in zip(x, y, strict=True))
    image *= ((u > -0.5) & (u < 899.5))[None] * ((v > -0.5) & (v < 799.5))[:, None]
    drawn = render(Gaze(x, y), (800, 900), preset="egd-official", grid=grid)
    np.testing.assert_allclose(drawn.numpy(), min_max(image), atol=2e-6)


def test_reflacx_is_duration_weighted_degrees_clipped_to_the_screen() -> None:
    """As the data set's own code: bivariate normal densities inside the shown rectangle, summing to one."""
    x, y, duration = [20.0, 45.3, 62.0], [30.0, 12.9, 25.0], [0.4, 1.1, 0.2]
    degrees = [[6, 8], [12, 9], [5, 5]]
    shown = [[0, 0, 60, 50], [10, 5, 47, 33], [0, 0, 60, 50]]
    image = np.zeros((50, 60))
    rows, columns = np.mgrid[:50, :60]
    for a, b, seconds, (s_x, s_y), (left, top, right, bottom) in zip(x, y, duration, degrees, shown, strict=True):
        density = multivariate_normal([b, a], [s_y**2, s_x**2]).pdf(np.dstack([rows, columns]))
        inside = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
        image += seconds * density * inside
    gaze = Gaze(x, y, duration=duration, px_per_degree=degrees, shown=shown)
    drawn = render(gaze, (50, 60), preset="reflacx", dtype=torch.float64)
    np.testing.assert_allclose(drawn.numpy(), image / image.sum(), atol=1e-12)
    assert drawn.sum().item() == pytest.approx(1)
    everything = render(Gaze(x, y, duration=duration, px_per_degree=degrees), (50, 60), preset="reflacx")
    assert (everything > 0).all()


def test_sigma_per_axis_weights_and_scales_replace_the_presets() -> None:
    gaze = Gaze([10, 20.5], [12, 5], duration=[1, 3])
    size = (30, 40)
    v, u = np.mgrid[:30, :40]
    image = sum(
        w * multivariate_normal([b, a], [16, 4]).pdf(np.dstack([v, u])) for a, b, w in ((10, 12, 1), (20.5, 5, 3))
    )
    options = {"preset": "egd-official", "sigma": (2, 4), "dtype": torch.float64}
    for weights in ("duration", torch.tensor([1.0, 3.0])):
        drawn = render(gaze, size, **options, weights=weights, scale="none")
        np.testing.assert_allclose(drawn.numpy(), image, atol=1e-12)
    for scale, expected in (("max", image / image.max()), ("sum", image / image.sum()), ("min-max", min_max(image))):
        drawn = render(gaze, size, **options, weights="duration", scale=scale)
        np.testing.assert_allclose(drawn.numpy(), expected, atol=1e-12)


def test_sigma_alone_keeps_opencvs_relation_to_the_radius() -> None:
    gaze = Gaze([50], [50])
    np.testing.assert_allclose(
        render(gaze, (101, 101), sigma=4.1, scale="none").numpy(),
        blurred(np.array([50]), np.array([50]), (101, 101), 25),
        atol=1e-7,
    )
    full = render(Gaze([1500], [1500]), (3056, 2544), stride=5)
    assert torch.equal(render(Gaze([1500], [1500]), (3056, 2544), stride=5, sigma=75.5), full)


def test_size_and_canvas_choose_the_grid() -> None:
    gaze = Gaze([10, 40], [20, 30])
    same = [
        ({"size": (16, 12)}, Grid.area((64, 48), (16, 12))),
        ({"size": (16, 12), "canvas": (80, 60)}, Grid.canvas((64, 48), (80, 60), (16, 12))),
        ({"stride": 3}, Grid.strided((64, 48), 3)),
        ({}, Grid.strided((64, 48), 1)),
        ({"canvas": (80, 60)}, Grid.strided((64, 48), 1, (80, 60))),
    ]
    for options, grid in same:
        assert torch.equal(render(gaze, (64, 48), sigma=6, **options), render(gaze, (64, 48), sigma=6, grid=grid))


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize(
    ("gaze", "has_map"),
    [
        (Gaze([], []), False),
        (Gaze([np.nan], [3], duration=[1], px_per_degree=[[9, 9]]), False),
        (Gaze([5], [5], valid=[False], duration=[1], px_per_degree=[[9, 9]]), False),
        (Gaze([-20, 9, 999], [500, -1, 5], duration=[1, 1, 1], px_per_degree=[[9, 9]] * 3), False),
        (Gaze([500], [700], duration=[1], px_per_degree=[[9, 9]]), True),
        (Gaze([500, np.nan, -70], [700, 8, 3], duration=[1, 1, 1], px_per_degree=[[9, 9]] * 3), True),
    ],
    ids=["empty", "NaN", "invalid", "outside", "single", "mixed"],
)
def test_gaze_without_a_place_gives_zeros_and_never_nan(preset: str, gaze: Gaze, has_map: bool) -> None:
    size = (1200, 900)
    maps, known = render_batch([gaze], [size], [Grid.strided(size, 10)], preset=preset)
    assert torch.isfinite(maps).all()
    assert known.tolist() == [has_map]
    assert bool((maps != 0).any()) == has_map
    assert torch.equal(maps[0], render(gaze, size, preset=preset, stride=10))
    if has_map:
        row, column = divmod(int(maps[0].argmax()), 90)
        assert (column, row) == (50, 70)


@pytest.mark.parametrize("scale", ["min-max", "max", "sum", "none"])
def test_constant_maps_are_zero(scale: str) -> None:
    for size, sigma in (((1, 1), None), ((64, 48), 1e6), ((2, 2), 1e9)):
        maps, has_map = render_batch([Gaze([0], [0])], [size], [Grid.strided(size, 1)], sigma=sigma, scale=scale)
        assert not has_map.any()
        assert not maps.any()


def test_rounding_is_not_stretched_to_full_contrast() -> None:
    """A Gaussian far wider than the image is flat but for the last bits of float32."""
    rng = np.random.default_rng(6)
    gaze = Gaze(rng.uniform(0, 47, 50), rng.uniform(0, 63, 50))
    assert not render(gaze, (64, 48), preset="egd-official", sigma=4e4).any()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_gaze_beside_the_image_reaches_into_it_only_in_reflacx(preset: str) -> None:
    inside = Gaze([300, 350], [200, 420], duration=[1, 1], px_per_degree=[[40, 50]] * 2)
    beside = Gaze([-9], [210], duration=[1], px_per_degree=[[40, 50]])
    alone, together = (render(g, (500, 600), preset=preset, stride=10) for g in (inside, Gaze.concat([inside, beside])))
    assert torch.equal(alone, together) == (preset != "reflacx")
    assert (together[21, 0] > alone[21, 0] + 1e-4) == (preset == "reflacx")


def test_zero_weights_and_a_grid_elsewhere_have_no_map() -> None:
    gaze = Gaze([5, 6], [5, 6])
    assert not render(gaze, (30, 20), weights=torch.zeros(2)).any()
    elsewhere = Grid(8, 8, 100.0, 100.0, 1.0, 1.0)
    maps, has_map = render_batch([gaze], [(30, 20)], [elsewhere])
    assert not has_map.any()
    assert not maps.any()


def test_a_batch_is_its_studies_one_by_one() -> None:
    rng = np.random.default_rng(3)
    sizes = [(300, 200), (256, 280), (300, 200), (100, 90)]
    gazes = [
        Gaze(rng.integers(0, w, n), rng.integers(0, h, n)) for (h, w), n in zip(sizes, (40, 3, 0, 17), strict=True)
    ]
    gazes[1] = Gaze(gazes[1].x + 0.25, gazes[1].y)
    grids = [Grid.letterbox(size, (160, 120)) for size in sizes]
    weights = [torch.tensor(rng.uniform(0, 1, len(gaze))) for gaze in gazes]
    maps, has_map = render_batch(gazes, sizes, grids, sigma=20, weights=weights)
    assert maps.shape == (4, 160, 120)
    assert has_map.tolist() == [True, True, False, True]
    for i in range(4):
        alone = render(gazes[i], sizes[i], grid=grids[i], sigma=20, weights=weights[i])
        torch.testing.assert_close(maps[i], alone, atol=1e-7, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["none", "sum"]))
def test_maps_are_linear_in_the_points_and_blind_to_their_order(seed: int, scale: str) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 119, 12), rng.uniform(0, 149, 12)
    options = {"sigma": 9, "dtype": torch.float64}
    whole = render(Gaze(x, y), (150, 120), **options, scale="none")
    parts = [render(Gaze(x[s], y[s]), (150, 120), **options, scale="none") for s in (slice(5), slice(5, 12))]
    torch.testing.assert_close(whole, parts[0] + parts[1], atol=1e-12, rtol=0)
    order = rng.permutation(12)
    shuffled = render(Gaze(x[order], y[order]), (150, 120), **options, scale=scale)
    torch.testing.assert_close(shuffled, render(Gaze(x, y), (150, 120), **options, scale=scale), atol=1e-12, rtol=0)


def test_flipping_the_gaze_flips_the_map() -> None:
    rng = np.random.default_rng(4)
    gaze = Gaze(rng.uniform(-0.5, 89.5, 20), rng.uniform(-0.5, 119.5, 20))
    plain = render(gaze, (120, 90), sigma=15)
    torch.testing.assert_close(render(gaze.hflip(90), (120, 90), sigma=15), plain.flip(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(render(gaze.vflip(120), (120, 90), sigma=15), plain.flip(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", ["mt-unet", "gg-cam-201", "egd-official", "reflacx"])
def test_gradients_through_points_and_weights(preset: str) -> None:
    """Against finite differences, with points by the border, where images fold back, and a row count that is banded."""
    rng = np.random.default_rng(5)
    x = torch.tensor([0.3, 4.6, 17.2, 18.7, 11.4], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([88.6, 0.4, 12.3, 1.7, 44.9], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor(rng.uniform(0.5, 2, 5), requires_grad=True)
    sigma = None if preset == "reflacx" else 3.1

    def draw(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gaze = Gaze(x, y, px_per_degree=[[3, 4]] * 5, shown=[[1, 2, 16, 80]] * 5)
        options = {"preset": preset, "sigma": sigma, "weights": weights, "dtype": torch.float64}
        return render(gaze, (90, 20), grid=Grid(70, 9, -2.0, -1.0, 1.37, 2.45), **options)

    assert torch.autograd.gradcheck(draw, (x, y, weights), atol=1e-6)


def test_points_can_be_learned_from_a_map() -> None:
    target = render(Gaze([60.0], [25.0]), (80, 100), sigma=12)
    x, y = torch.tensor([45.0], requires_grad=True), torch.tensor([40.0], requires_grad=True)
    optimiser = torch.optim.Adam([x, y], lr=1.0)
    for _ in range(80):
        optimiser.zero_grad()
        (render(Gaze(x, y), (80, 100), sigma=12, truncate=math.inf) - target).square().sum().backward()
        optimiser.step()
    assert (x.item(), y.item()) == pytest.approx((60, 25), abs=0.3)


def test_no_map_has_zero_gradients_not_nan() -> None:
    x = torch.tensor([-50.0, float("nan")], requires_grad=True)
    weights = torch.tensor([1.0, 1.0], requires_grad=True)
    render(Gaze(x, [3.0, 4.0]), (20, 20), weights=weights).sum().backward()
    assert x.grad.tolist() == [0, 0]
    assert weights.grad.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "mtunet"}, "did you mean 'mt-unet'"),
        ({"edge": "reflekt"}, "did you mean 'reflect'"),
        ({"scale": "maximum"}, "unknown gaze scale"),
        ({"weights": "durations"}, "did you mean 'duration'"),
        ({"weights": "duration"}, "no duration"),
        ({"weights": torch.ones(3)}, r"weights of shape \(3,\) for 2 points"),
        ({"weights": torch.tensor([1.0, -1.0])}, "negative"),
        ({"weights": torch.tensor([1.0, float("nan")])}, "NaN"),
        ({"preset": "reflacx", "weights": "ones"}, "no px_per_degree"),
        ({"preset": "reflacx", "edge": "reflect"}, "needs one spread"),
        ({"sigma": 0}, "sigma 0 px is not positive"),
        ({"sigma": (3, float("nan"))}, "is not positive"),
        ({"truncate": -1}, "not a radius"),
        ({"stride": 2, "size": (5, 5)}, "more than one of"),
        ({"grid": Grid(5, 5, 0, 0, 1, 1), "canvas": (99, 99)}, "more than one of"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(Gaze([1, 2], [3, 4]), (20, 20), **options)


def test_bad_batches_are_refused() -> None:
    gaze, grid = Gaze([1], [1]), Grid.strided((9, 9), 1)
    with pytest.raises(InputError, match="2 gazes, 1 source sizes"):
        render_batch([gaze, gaze], [(9, 9)], [grid])
    with pytest.raises(InputError, match="at least one"):
        render_batch([], [], [])
    with pytest.raises(InputError, match="cannot be stacked"):
        render_batch([gaze, gaze], [(9, 9)] * 2, [grid, Grid.strided((9, 9), 2)])
    with pytest.raises(InputError, match="1 weight tensors for 2"):
        render_batch([gaze, gaze], [(9, 9)] * 2, [grid] * 2, weights=[torch.ones(1)])
    with pytest.raises(InputError, match="px_per_degree has NaN"):
        render(Gaze([1], [1], duration=[1], px_per_degree=[[np.nan, 3]]), (9, 9), preset="reflacx")


def test_tables_are_reused_and_the_oldest_thrown_away() -> None:
    cache = _TableCache(budget=3 * 100 * 10 * 4)
    axes = [_Axis(100, 10, float(i), 10.0, 5.0, 15.0, True) for i in range(4)]
    cpu = torch.device("cpu")
    first = cache.get(axes[0], torch.float32, cpu)
    for axis in axes[1:3]:
        cache.get(axis, torch.float32, cpu)
    assert cache.get(axes[0], torch.float32, cpu) is first
    cache.get(axes[3], torch.float32, cpu)
    assert cache.get(axes[0], torch.float32, cpu) is first
    assert [axes.index(axis) for axis, _, _ in cache._tables] == [2, 3, 0]
    assert not cache.worth(_Axis(1000, 1000, 0.0, 1.0, 5.0, 15.0, True), torch.float32)
    assert cache.get(axes[0], torch.float64, cpu).dtype == torch.float64
    assert _TABLES.budget <= 2**28
