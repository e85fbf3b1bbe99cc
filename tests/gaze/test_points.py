"""Gaze: validation, and transforms that move points with the pixels under them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radgaze.errors import InputError
from radgaze.gaze import Gaze, render

FIELDS = {
    "t": [0.0, 0.1, 0.2],
    "duration": [0.1, 0.2, 0.3],
    "reader": [0, 0, 1],
    "valid": [True, False, True],
    "px_per_degree": [[30, 31], [30, 31], [40, 41]],
    "shown": [[0, 0, 9, 9], [0, 0, 9, 9], [2, 3, 7, 8]],
}


def full() -> Gaze:
    return Gaze([1, 2, 3], [4, 5, 6], **FIELDS)


def test_fields_become_tensors_of_the_documented_types() -> None:
    gaze = full()
    assert gaze.x.dtype == gaze.t.dtype == gaze.duration.dtype == torch.float64
    assert gaze.reader.dtype == torch.int64
    assert gaze.valid.dtype == torch.bool
    assert gaze.px_per_degree.shape == (3, 2)
    assert gaze.shown.shape == (3, 4)
    assert len(gaze) == 3
    assert repr(gaze) == "Gaze(3 points, with t, duration, reader, valid, px_per_degree, shown)"


def test_empty_gaze_has_empty_columns() -> None:
    gaze = Gaze([], [], t=[], px_per_degree=[], shown=[])
    assert len(gaze) == 0
    assert gaze.px_per_degree.shape == (0, 2)
    assert gaze.inside((5, 5)).shape == (0,)


def test_points_that_are_no_position_are_marked_invalid() -> None:
    gaze = Gaze([1.0, np.nan, 3.0, np.inf], [1.0, 2.0, np.nan, 4.0])
    assert gaze.valid.tolist() == [True, False, False, False]
    kept = Gaze([1.0, np.nan, 3.0], [1.0, 2.0, 3.0], valid=[False, True, True])
    assert kept.valid.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": [1, 2], "y": [1]}, "2 x but 1 y"),
        ({"x": [1], "y": [1], "t": [0, 1]}, "1 x but 2 t"),
        ({"x": [[1]], "y": [[1]]}, r"x has shape \(1, 1\); expected \(N,\)"),
        ({"x": [1], "y": [1], "shown": [[1, 2]]}, r"shown has shape \(1, 2\); expected \(N, 4\)"),
        ({"x": [1], "y": [1], "duration": [-0.5]}, "-0.5 s is negative"),
        ({"x": ["left"], "y": [1]}, "x is not an array of numbers"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gaze(**arguments)


def test_inside_covers_the_area_of_the_border_pixels_and_nothing_more() -> None:
    gaze = Gaze([-0.51, -0.5, 0, 3, 3.5, 3.51, 1, 1, np.nan], [1, 1, 1, 1, 1, 1, -0.6, 2.6, 1])
    assert gaze.inside((3, 4)).tolist() == [False, True, True, True, True, False, False, False, False]
    assert full().inside((10, 10)).tolist() == [True, False, True]


def test_select_takes_masks_and_positions_through_every_field() -> None:
    gaze = full()
    by_mask, by_place = gaze.select([True, False, True]), gaze.select([2, 0])
    assert by_mask.x.tolist() == [1, 3]
    assert by_place.shown.tolist() == [[2, 3, 7, 8], [0, 0, 9, 9]]
    assert by_place.reader.tolist() == [1, 0]
    with pytest.raises(InputError, match="mask has 2 entries for 3"):
        gaze.select([True, False])


def test_concat_joins_fields_and_refuses_to_drop_one() -> None:
    joined = Gaze.concat([full(), full().select([0])])
    assert joined.x.tolist() == [1, 2, 3, 1]
    assert joined.valid.tolist() == [True, False, True, True]
    half_valid = Gaze.concat([Gaze([1], [1]), Gaze([2], [2], valid=[False])])
    assert half_valid.valid.tolist() == [True, False]
    with pytest.raises(InputError, match="only some of the 2 gazes have t"):
        Gaze.concat([Gaze([1], [1], t=[0]), Gaze([1], [1])])
    with pytest.raises(InputError, match="at least one"):
        Gaze.concat([])


def test_moving_to_a_device_keeps_every_field() -> None:
    moved = full().to("cpu")
    assert moved.x.dtype == torch.float64
    assert moved.valid.tolist() == [True, False, True]
    assert moved.reader.dtype == torch.int64


def test_gradients_survive_construction_and_transforms() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    Gaze(x, [0.0, 0.0]).hflip(10).affine([[2, 0, 0], [0, 1, 0]]).crop(0, 3).x.sum().backward()
    assert x.grad.tolist() == [-2, -2]


def bright(height: int, width: int, x: int, y: int) -> np.ndarray:
    image = np.zeros((height, width), np.float32)
    image[y, x] = 1
    return image


def peak(image: np.ndarray) -> tuple[int, int]:
    y, x = np.unravel_index(image.argmax(), image.shape)
    return int(x), int(y)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_points_move_with_pixels(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    image, gaze = bright(height, width, x, y), Gaze([x], [y])
    top, left = data.draw(st.integers(0, y)), data.draw(st.integers(0, x))
    for moved, pixels in (
        (gaze.hflip(width), image[:, ::-1]),
        (gaze.vflip(height), image[::-1]),
        (gaze.crop(top, left), image[top:, left:]),
        (gaze.affine([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), image.T),
    ):
        assert (moved.x.item(), moved.y.item()) == peak(pixels)
        assert moved.inside(pixels.shape).all()


def test_affine_agrees_with_opencvs_warp() -> None:
    matrix = cv2.getRotationMatrix2D((30, 25), 30, 1.3)
    image = cv2.GaussianBlur(bright(60, 70, 35, 30), (9, 9), 2)
    warped = cv2.warpAffine(image, matrix, (90, 80), flags=cv2.INTER_CUBIC)
    moved = Gaze([35], [30]).affine(matrix)
    rows, columns = np.mgrid[:80, :90]
    assert moved.x.item() == pytest.approx((warped * columns).sum() / warped.sum(), abs=0.02)
    assert moved.y.item() == pytest.approx((warped * rows).sum() / warped.sum(), abs=0.02)


def test_affine_refuses_other_matrices() -> None:
    for matrix in ([[1, 0], [0, 1]], [[1, 0, 0], [0, 1, 0], [0.1, 0, 1]]):
        with pytest.raises(InputError, match="affine matrix"):
            Gaze([1], [1]).affine(matrix)


def test_spread_and_rectangle_move_too() -> None:
    """A REFLACX map of moved gaze is the moved map, because σ and the clip move with the points."""
    gaze = Gaze(
        [12, 30], [10, 25], duration=[1, 2], px_per_degree=[[4, 6], [5, 3]], shown=[[2, 4, 33, 31], [0, 0, 50, 40]]
    )
    image = render(gaze, (40, 50), preset="reflacx").numpy()

    def moved(other: Gaze, size: tuple[int, int]) -> np.ndarray:
        return render(other, size, preset="reflacx").numpy()

    np.testing.assert_allclose(moved(gaze.hflip(50), (40, 50)), image[:, ::-1], atol=1e-9)
    np.testing.assert_allclose(moved(gaze.vflip(40), (40, 50)), image[::-1], atol=1e-9)
    np.testing.assert_allclose(moved(gaze.affine([[0, 1, 0], [1, 0, 0]]), (50, 40)), image.T, atol=1e-9)
    quarter = gaze.affine([[0, 1, 0], [-1, 0, 49]])
    np.testing.assert_allclose(moved(quarter, (50, 40)), np.rot90(image), atol=1e-9)
    cropped = image[5:35, 7:45]
    np.testing.assert_allclose(moved(gaze.crop(5, 7), (30, 38)), cropped / cropped.sum(), atol=1e-9)


@pytest.mark.parametrize("x", [None, [10**400], "text", {"a": 1}, 3, [[1.0]]])
def test_what_is_no_column_of_numbers_is_named(x: Any) -> None:
    with pytest.raises(InputError, match="gaze x"):
        Gaze(x, [1.0])
