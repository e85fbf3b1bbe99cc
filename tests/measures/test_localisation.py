"""Localisation measures against painting the CAM on the mask's pixels, and against cases done by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radgaze.errors import InputError
from radgaze.measures import localisation


def scene(size: tuple[int, int] = (6, 5), factor: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """CAMs of both signs, and masks ``factor`` times as fine with some pixels unknown."""
    generator = torch.Generator().manual_seed(seed)
    cam = torch.randn(3, *size, generator=generator, dtype=torch.float64)
    mask = (torch.rand(3, size[0] * factor, size[1] * factor, generator=generator) < 0.3).to(torch.uint8)
    mask[:, :3, :7] = localisation.UNKNOWN
    return cam, mask


def painted(cam: torch.Tensor, factor: int = 4) -> np.ndarray:
    return np.kron(cam.numpy(), np.ones((1, factor, factor)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_coverage_is_the_mean_over_a_common_refinement(h: int, w: int, rows: int, columns: int) -> None:
    mask = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(h * w)) < 0.5
    fine = np.kron(mask.numpy(), np.ones((1, h, w)))  # rows·h by columns·w: both grids divide it
    expected = fine.reshape(2, h, rows, w, columns).mean((2, 4))
    np.testing.assert_allclose(localisation.coverage(mask, (h, w)), expected, atol=1e-14)


def test_energy_and_iou_are_those_of_the_painted_cam() -> None:
    cam, mask = scene()
    fine, truth = painted(cam), mask.numpy()
    known, inside = truth != 255, truth == 1
    energy = np.clip(fine, 0, None)
    expected = [(e * i).sum() / (e * k).sum() for e, i, k in zip(energy, inside, known, strict=True)]
    np.testing.assert_allclose(localisation.energy_inside(cam, mask), expected, rtol=1e-12)
    for threshold in (0.2, 0.5, 1.0):
        region = fine >= threshold * fine.max((1, 2), keepdims=True)
        expected = [(r & i).sum() / ((r & k) | i).sum() for r, i, k in zip(region, inside, known, strict=True)]
        np.testing.assert_allclose(localisation.iou(cam, mask, threshold=threshold), expected, rtol=1e-12)


def test_pointing_game_hits_within_one_cell_of_the_peak() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.uint8)
    mask[0, 9, 9] = 1  # one pixel, in cell (2, 2) of 5 by 5
    for row in range(5):
        for column in range(5):
            cam = torch.zeros(1, 5, 5)
            cam[0, row, column] = 1
            distance = max(abs(row - 2), abs(column - 2))
            assert localisation.pointing_game(cam, mask).item() == (distance <= 1)
            assert localisation.pointing_game(cam, mask, tolerance=0).item() == (distance == 0)


def test_pointing_game_shares_a_tied_peak() -> None:
    mask = torch.zeros(1, 6, 6)
    mask[0, 0, 0] = 1
    tied = torch.zeros(1, 6, 6)
    tied[0, 0, 1] = tied[0, 5, 5] = 2
    assert localisation.pointing_game(tied, mask).item() == 0.5
    assert localisation.pointing_game(torch.zeros(1, 6, 6), mask).item() == pytest.approx(4 / 36)


def test_perfect_constant_and_silent_cams() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:6, 0:4] = True
    perfect = mask.float()
    for measure in (localisation.pointing_game, localisation.energy_inside, localisation.iou):
        assert measure(perfect, mask).item() == 1
    constant = torch.full((1, 8, 8), 3.0)
    assert localisation.energy_inside(constant, mask).item() == 0.25
    assert localisation.iou(constant, mask).item() == 0.25
    silent = torch.full((1, 8, 8), -1.0)
    assert localisation.energy_inside(silent, mask).isnan().item()
    assert localisation.iou(silent, mask).item() == 0
    assert localisation.iou(torch.zeros(1, 8, 8), mask).item() == 0


def test_gain_of_the_cam_does_not_matter() -> None:
    cam, mask = scene()
    for measure in (localisation.pointing_game, localisation.energy_inside, localisation.iou):
        torch.testing.assert_close(measure(7 * cam, mask), measure(cam, mask))


def test_an_empty_or_unknown_mask_leaves_nothing_to_find() -> None:
    cam, mask = scene()
    mask[1] = 0
    mask[2] = localisation.UNKNOWN
    for measure in (localisation.pointing_game, localisation.energy_inside, localisation.iou):
        assert measure(cam, mask).isnan().tolist() == [False, True, True]


def test_cam_and_mask_of_odd_and_equal_sizes() -> None:
    cam, mask = torch.rand(2, 7, 3), torch.ones(2, 40, 11)
    assert localisation.energy_inside(cam, mask).tolist() == pytest.approx([1, 1])
    assert localisation.pointing_game(cam, mask).tolist() == [1, 1]
    assert localisation.iou(torch.ones(2, 7, 3), mask).tolist() == pytest.approx([1, 1])


cams, masks = scene()
refused: list[tuple[Callable[[], object], str]] = [
    (lambda: localisation.iou(cams[0], masks), r"cam has shape \(6, 5\)"),
    (lambda: localisation.iou(cams[:2], masks), "one structure's mask for each study"),
    (lambda: localisation.iou(cams * torch.nan, masks), "NaN or infinite activation"),
    (lambda: localisation.iou(cams, masks + 1), "mask holds"),
    (lambda: localisation.iou(cams, masks, threshold=0), "threshold is 0"),
    (lambda: localisation.pointing_game(cams, masks, tolerance=-1), "tolerance is -1"),
]


@pytest.mark.parametrize(("call", "sentence"), refused)
def test_bad_input_is_refused_in_one_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()
