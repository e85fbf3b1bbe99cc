from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from radgaze.errors import InputError
from radgaze.inference.calibration import Calibration, calibrate


def scored(studies: int = 400, classes: int = 3, slope: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Scores whose classes were drawn with the probabilities softmax(slope · z + b)."""
    random = np.random.default_rng(seed)
    z = random.normal(0, 2, (studies, classes))
    u = slope * z + np.linspace(-1, 1, classes)
    p = np.exp(u) / np.exp(u).sum(1, keepdims=True)
    codes = [random.choice(classes, p=row) for row in p]
    return torch.tensor(z), torch.tensor(codes), [f"p{index // 2}" for index in range(studies)]


def test_is_the_maximum_that_scipy_finds() -> None:
    z, codes, patients = scored()

    def cost(x: np.ndarray) -> float:
        u = np.exp(x[0]) * z.numpy() + x[1:]
        log_p = u - np.log(np.exp(u).sum(1, keepdims=True))
        return float(-log_p[np.arange(len(codes)), codes.numpy()].sum() + (x**2).sum() / 2)

    expected = scipy.optimize.minimize(cost, np.zeros(4), tol=1e-12).x
    found = calibrate(z, codes, patients, "multiclass", resamples=3)
    assert found is not None
    assert found.slopes[0, 0].item() == pytest.approx(np.exp(expected[0]), rel=1e-4)
    assert found.offsets[0].numpy() == pytest.approx(expected[1:], abs=1e-4)


def test_finds_the_slope_that_the_classes_were_drawn_with() -> None:
    z, codes, patients = scored(20_000, slope=0.5)
    found = calibrate(z, codes, patients, "multiclass", resamples=2)
    assert found is not None
    assert found.slopes[0, 0].item() == pytest.approx(0.5, abs=0.02)
    assert (found.offsets[0] - found.offsets[0].mean()).numpy() == pytest.approx([-1, 0, 1], abs=0.05)
    before, after = found.log_loss
    assert after < before


def test_more_studies_give_narrower_intervals_and_they_hold_the_probability() -> None:
    widths = []
    for studies in (60, 6000):
        z, codes, patients = scored(studies)
        found = calibrate(z, codes, patients, "multiclass")
        assert found is not None
        value, low, high = found(z[:50])
        assert value.sum(1).numpy() == pytest.approx(np.ones(50), abs=1e-6)
        assert bool(((low <= value) & (value <= high)).all())
        assert bool((low >= 0).all())
        assert bool((high <= 1).all())
        widths.append((high - low).mean().item())
    assert widths[1] < widths[0] / 5


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    z = torch.tensor([[1.0, 0.0, -0.5]], dtype=torch.float64)
    u = 0.5 * z[0].numpy() + np.linspace(-1, 1, 3)
    truth = np.exp(u) / np.exp(u).sum()
    hits = 0
    for seed in range(60):
        scores, codes, patients = scored(300, seed=seed)
        found = calibrate(scores, codes, patients, "multiclass", seed=seed)
        assert found is not None
        _, low, high = found(z)
        hits += int(low[0, 1] <= truth[1] <= high[0, 1])
    assert hits >= 50  # 57 expected


def test_labels_that_do_not_exclude_each_other_are_calibrated_one_by_one() -> None:
    random = np.random.default_rng(1)
    z = torch.tensor(random.normal(0, 2, (4000, 2)))
    p = torch.stack([(0.5 * z[:, 0]).sigmoid(), (2 * z[:, 1] - 1).sigmoid()], 1)
    targets = (torch.tensor(random.random((4000, 2))) < p).float()
    targets[:30, 1] = torch.nan
    patients = [str(index) for index in range(4000)]
    found = calibrate(z, targets, patients, "multilabel", resamples=20)
    assert found is not None
    assert found.slopes[0].numpy() == pytest.approx([0.5, 2], abs=0.2)
    alone = calibrate(z[:, :1], targets[:, :1], patients, "multilabel", resamples=20)
    assert alone is not None
    assert found(z)[0][:, 0].numpy() == pytest.approx(alone(z)[0][:, 0].numpy(), abs=1e-5)


def test_a_perfect_validation_split_stays_finite() -> None:
    z = torch.tensor([[5.0, -5.0], [-5.0, 5.0]] * 20)
    found = calibrate(z, torch.tensor([0, 1] * 20), [str(index) for index in range(40)], "multiclass")
    assert found is not None
    value, low, high = found(z)
    assert bool(torch.stack([value, low, high]).isfinite().all())
    assert 0.9 < value[0, 0] < 1


@pytest.mark.parametrize(
    ("targets", "patients"),
    [
        ([0, 0, 0, 0], ["a", "b", "c", "d"]),
        ([0, 0, 1, 1], ["a", "b", "c", "c"]),  # both studies of class 1 are one patient's
        ([0, 0, 1, -1], ["a", "b", "c", "d"]),
    ],
)
def test_too_few_patients_of_a_class_allow_no_calibration(targets: list[int], patients: list[str]) -> None:
    assert calibrate(torch.randn(4, 2), torch.tensor(targets), patients, "multiclass") is None


def test_unknown_labels_change_nothing() -> None:
    z, codes, patients = scored(100)
    known = calibrate(z, codes, patients, "multiclass", resamples=5)
    unknown = torch.cat([codes, torch.full((7,), -1)])
    more = calibrate(torch.cat([z, z[:7]]), unknown, [*patients, *"abcdefg"], "multiclass", resamples=5)
    assert known is not None
    assert more is not None
    assert torch.equal(known.slopes, more.slopes)
    assert more.studies == 100


def test_survives_json_to_the_bit() -> None:
    z, codes, patients = scored(100)
    found = calibrate(z, codes, patients, "multiclass", resamples=5)
    assert found is not None
    again = Calibration.from_json(json.loads(json.dumps(found.to_json())))
    for mine, theirs in zip(found(z), again(z), strict=True):
        assert torch.equal(mine, theirs)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        calibrate(torch.tensor([[torch.nan, 0.0]]), torch.tensor([0]), ["a"], "multiclass")
