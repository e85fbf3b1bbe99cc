"""Grid: where map pixels sit, against slicing, padding and area resizing done by NumPy and OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radgaze.errors import InputError
from radgaze.gaze import Frame, Grid

EXTENT = st.integers(1, 60)


def centres(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Source (rows, columns) of the grid's pixels."""
    x, y = grid.to_source(np.arange(grid.width), np.arange(grid.height))
    return y, x


@given(EXTENT, EXTENT, st.integers(1, 9), st.integers(0, 20), st.integers(0, 20))
def test_strided_grid_is_padding_then_slicing(height: int, width: int, stride: int, more_y: int, more_x: int) -> None:
    canvas = (height + more_y, width + more_x)
    top, left = int((canvas[0] - height) / 2), int((canvas[1] - width) / 2)
    coordinates = np.mgrid[: canvas[0], : canvas[1]][:, ::stride, ::stride]
    grid = Grid.strided((height, width), stride, canvas)
    rows, columns = centres(grid)
    assert grid.size == coordinates.shape[1:]
    np.testing.assert_array_equal(rows, coordinates[0, :, 0] - top)
    np.testing.assert_array_equal(columns, coordinates[1, 0] - left)


def test_the_papers_canvas() -> None:
    grid = Grid.strided((3056, 2544), 5, (3200, 2560))
    assert grid == Grid(640, 512, -72, -8, 5, 5)


@pytest.mark.parametrize("size", [(4, 6), (12, 18), (6, 9), (1, 1)])
def test_area_grid_has_the_centres_that_area_resizing_averages(size: tuple[int, int]) -> None:
    rows, columns = centres(Grid.area((12, 18), size))
    y, x = np.mgrid[:12, :18].astype(np.float64)
    np.testing.assert_allclose(rows, cv2.resize(y, size[::-1], interpolation=cv2.INTER_AREA)[:, 0], atol=1e-6)
    np.testing.assert_allclose(columns, cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA)[0], atol=1e-6)


@given(EXTENT, EXTENT, EXTENT, EXTENT)
def test_letterbox_holds_the_whole_image_on_whole_pixels(height: int, width: int, h: int, w: int) -> None:
    grid = Grid.letterbox((height, width), (h, w))
    column, row = grid.to_grid(np.array([-0.5, width - 0.5]), np.array([-0.5, height - 0.5]))
    # The image's outer edges fall on the edges of grid pixels, within the map, and one axis is filled.
    for edges, extent in ((column + 0.5, w), (row + 0.5, h)):
        np.testing.assert_allclose(edges, edges.round(), atol=1e-9)
        assert edges[0] > -0.5
        assert edges[1] < extent + 0.5
        assert abs(edges[0] - (extent - edges[1])) < 1.5
    assert np.isclose(row[1] - row[0], h) or np.isclose(column[1] - column[0], w)


def test_letterbox_of_the_image_itself_is_the_image() -> None:
    assert Grid.letterbox((30, 20), (30, 20)) == Grid(30, 20, 0, 0, 1, 1)


def test_canvas_grid_is_the_area_grid_of_the_padded_image() -> None:
    grid = Grid.canvas((3056, 2544), (3200, 2560), (48, 40))
    padded = Grid.area((3200, 2560), (48, 40))
    assert (grid.y0, grid.x0) == (padded.y0 - 72, padded.x0 - 8)
    assert (grid.dy, grid.dx) == (padded.dy, padded.dx)


def test_coarsening_is_the_grid_of_larger_cells() -> None:
    assert Grid.area((60, 40), (30, 20)).coarsen((6, 5)) == Grid.area((60, 40), (6, 5))
    fine = Grid.letterbox((91, 60), (64, 64))
    rows, columns = centres(fine)
    coarse_rows, coarse_columns = centres(fine.coarsen((16, 8)))
    np.testing.assert_allclose(coarse_rows, rows.reshape(16, 4).mean(axis=1))
    np.testing.assert_allclose(coarse_columns, columns.reshape(8, 8).mean(axis=1))


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_to_grid_and_back(x: float, y: float) -> None:
    grid = Grid.canvas((300, 200), (320, 256), (32, 64))
    assert grid.to_source(*grid.to_grid(x, y)) == pytest.approx((x, y), abs=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid.strided((10, 10), 0), "stride 0"),
        (lambda: Grid.strided((10, 10), 2, (9, 10)), "smaller than the image"),
        (lambda: Grid.area((10, 10), (0, 5)), "a map cannot be"),
        (lambda: Grid.area((10, 0), (5, 5)), "a source image cannot be"),
        (lambda: Grid(5, 5, 0, 0, 0, 1), "steps > 0"),
        (lambda: Grid(5, 5, float("nan"), 0, 1, 1), "finite"),
        (lambda: Grid.letterbox((10, 10), (5, 5)).coarsen((2.5, 2)), "whole numbers"),
    ],
)
def test_impossible_grids_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (((8,), "letterbox", None), "an image cannot be"),
        (((8, "6"), "letterbox", None), "an image cannot be"),
        (((8, float("nan")), "letterbox", None), "an image cannot be"),
        (((8, 6), "strech", None), "did you mean 'stretch'"),
        (((8, 6), "canvas", None), "a canvas .* goes with fit='canvas' only"),
        (((8, 6), "canvas", (0, 9)), "a canvas cannot be"),
    ],
)
def test_a_frame_that_is_none_is_refused(frame: tuple[Any, Any, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Frame(*frame)
