"""Perceived differences against scikit-image, NumPy and identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from radgaze.errors import InputError
from radgaze.redundancy import difference
from radgaze.redundancy.difference import DIFFERENCES, find_difference, is_constant, mssim, perceived


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scikit_image(maps: Tensor) -> np.ndarray:
    def pair(a: np.ndarray, b: np.ndarray) -> float:
        _, full = structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
        )
        return full[5:-5, 5:-5].mean()

    arrays = maps.double().numpy()
    return np.array([[pair(a, b) for b in arrays] for a in arrays])


def one_window(a: np.ndarray, b: np.ndarray) -> float:
    """MSSIM by its definition, where the map is no larger than the window."""
    taps = [np.exp(-((np.arange(n) - (n - 1) / 2) ** 2) / (2 * 1.5**2)) for n in a.shape]
    w = np.outer(*taps) / np.outer(*taps).sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    return (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))


class TestMSSIM:
    @pytest.mark.parametrize("size", [(11, 11), (12, 30), (37, 11), (40, 61)])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_is_scikit_images(self, size: tuple[int, int], dtype: torch.dtype) -> None:
        noise, sparse = random_maps(3, *size), perceived((random_maps(3, *size, seed=1) - 0.7).relu())
        ramp = torch.linspace(0, 1, size[1], dtype=torch.float64).expand(1, *size)
        maps = torch.cat([noise, sparse, ramp, torch.zeros(1, *size), torch.ones(1, *size)]).to(dtype)
        ours = mssim(maps)
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, scikit_image(maps), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)

    @pytest.mark.parametrize("size", [(7, 7), (2, 2), (10, 10), (1, 6), (3, 8)])
    def test_smaller_than_the_window_is_one_window_of_its_own_size(self, size: tuple[int, int]) -> None:
        maps = random_maps(4, *size)
        expected = [[one_window(a, b) for b in maps.numpy()] for a in maps.numpy()]
        np.testing.assert_allclose(mssim(maps), expected, rtol=0, atol=1e-12)

    def test_smaller_along_one_axis_slides_along_the_other(self) -> None:
        maps = random_maps(2, 7, 13)
        windows = [one_window(*maps[:, :, start : start + 11].numpy()) for start in range(3)]
        assert mssim(maps)[0, 1].item() == pytest.approx(np.mean(windows), abs=1e-12)

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        maps = random_maps(23, 14, 15)
        whole = mssim(maps)
        monkeypatch.setattr(difference, "_CPU_BLOCK", 14 * 15 * 12)
        monkeypatch.setattr(difference, "_CPU_COLUMNS", 4)
        monkeypatch.setattr(difference, "_BAND_ROWS", 2)
        torch.testing.assert_close(mssim(maps), whole, rtol=0, atol=1e-14)

    def test_symmetric_with_unit_diagonal(self) -> None:
        similarity = mssim(random_maps(150, 9, 9).float())
        assert torch.equal(similarity, similarity.T)
        assert torch.equal(similarity.diagonal(), torch.ones(150))

    def test_many_images_at_once(self) -> None:
        maps = random_maps(3, 4, 12, 12)
        torch.testing.assert_close(mssim(maps), torch.stack([mssim(image) for image in maps]))

    def test_any_memory_layout_and_integer_type(self) -> None:
        maps = (random_maps(1, 5, 12, 13) > 0.5).to(torch.uint8)
        expected = mssim(maps[0].float())
        assert torch.equal(mssim(maps.contiguous(memory_format=torch.channels_last)[0]), expected)

    def test_precision_and_autocast_of_the_caller_do_not_matter(self) -> None:
        maps = random_maps(6, 20, 20).float()
        expected = mssim(maps)
        torch.set_float32_matmul_precision("medium")
        try:
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(mssim(maps), expected)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")

    @pytest.mark.parametrize("shape", [(4, 4), (0, 5, 5), (2, 0, 5)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="expected"):
            mssim(torch.zeros(shape))

    def test_nan_is_refused(self) -> None:
        with pytest.raises(InputError, match="NaN"):
            mssim(torch.full((2, 5, 5), torch.nan))


class TestPerceived:
    def test_spans_zero_to_one(self) -> None:
        maps = perceived(random_maps(2, 3, 5, 6) * 40 - 7)
        assert torch.equal(maps.amin((-2, -1)), torch.zeros(2, 3, dtype=torch.float64))
        assert torch.equal(maps.amax((-2, -1)), torch.ones(2, 3, dtype=torch.float64))

    def test_gain_and_offset_do_not_matter(self) -> None:
        maps = random_maps(3, 8, 8)
        torch.testing.assert_close(perceived(maps * 300 - 50), perceived(maps))

    @pytest.mark.parametrize("level", [0.0, 3.7, -1e-30, 1e30])
    def test_constant_is_perceived_as_nothing(self, level: float) -> None:
        flat = torch.full((2, 6, 6), level)
        flat[1, 2, 3] *= 1 + 2 * torch.finfo(torch.float32).eps  # rounding is no contrast
        assert is_constant(flat).all()
        assert torch.equal(perceived(flat), torch.zeros(2, 6, 6))

    def test_faint_contrast_is_seen(self) -> None:
        assert not is_constant(torch.tensor([[[1.0, 1.0001]]])).any()


@pytest.mark.parametrize("name", DIFFERENCES)
class TestDifferences:
    def test_symmetric_zero_diagonal_not_negative(self, name: str) -> None:
        values = DIFFERENCES[name](perceived(random_maps(9, 12, 13).float()))
        assert torch.equal(values, values.T)
        assert not values.diagonal().any()
        assert (values >= 0).all()

    def test_equal_images_do_not_differ(self, name: str) -> None:
        values = DIFFERENCES[name](perceived(random_maps(1, 14, 14).float().repeat(5, 1, 1)))
        assert values.max() < 1e-5

    def test_nothing_is_like_nothing_and_unlike_an_image(self, name: str) -> None:
        maps = perceived(torch.cat([torch.zeros(2, 14, 14), random_maps(1, 14, 14).float()]))
        values = DIFFERENCES[name](maps)
        assert torch.isfinite(values).all()
        assert values[0, 1] < 1e-6
        assert values[0, 2] > 0.4

    def test_found_by_name(self, name: str) -> None:
        assert find_difference(name) is DIFFERENCES[name]


def test_pearson_is_numpys() -> None:
    maps = random_maps(5, 6, 7)
    expected = 1 - np.abs(np.corrcoef(maps.flatten(1).numpy()))
    np.testing.assert_allclose(DIFFERENCES["pearson"](maps), expected, rtol=0, atol=1e-12)


def test_rmse_is_its_definition() -> None:
    maps = random_maps(4, 6, 7)
    scores = (maps - maps.mean((1, 2), keepdim=True)) / maps.std((1, 2), correction=0, keepdim=True)
    for name, values in (("rmse", maps), ("rmse-z", scores)):
        expected = (values[:, None] - values[None]).square().mean((2, 3)).sqrt()
        torch.testing.assert_close(DIFFERENCES[name](maps), expected)


def test_unknown_difference_names_a_near_one() -> None:
    with pytest.raises(InputError, match="did you mean 'mssim'"):
        find_difference("msssim")
