"""Intervals and tests against SciPy, literal formulas, and simulations whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from radgaze.errors import InputError
from radgaze.measures import classification, statistics


def two_methods(studies: int = 80, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (2, N) of a good and a fair method, with ties, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(studies, generator=generator) < 0.4
    noise = torch.randn(3, studies, generator=generator, dtype=torch.float64)
    scores = torch.stack((1.5 * positive + noise[0] + 0.5 * noise[2], 0.7 * positive + noise[1] + 0.5 * noise[2]))
    return (scores * 4).round() / 4, positive


def literal_delong(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong et al. 1988, equations 3 to 6, pair by pair."""
    x, y = scores[:, positive], scores[:, ~positive]
    kernel = 0.5 * (1 + np.sign(x[:, :, None] - y[:, None, :]))
    placement_x, placement_y = kernel.mean(2), kernel.mean(1)
    return kernel.mean((1, 2)), np.cov(placement_x) / x.shape[1] + np.cov(placement_y) / y.shape[1]


# Summary and mean


def test_summary_leaves_out_and_counts_what_has_no_value() -> None:
    values = torch.tensor([1.0, torch.nan, 4.0, 2.0, torch.nan, 5.0])
    result = statistics.summary(values)
    assert result == (3.0, 3.0, pytest.approx(np.std([1, 4, 2, 5], ddof=1)), 4, 2)


def test_summary_of_one_study_and_of_none() -> None:
    one = statistics.summary(torch.tensor([2.0]))
    assert (one.mean, one.median, one.studies) == (2, 2, 1)
    assert math.isnan(one.std)
    none = statistics.summary(torch.tensor([torch.nan]))
    assert none.studies == 0
    assert math.isnan(none.mean)
    assert math.isnan(none.median)
    with pytest.raises(InputError, match="one at a time"):
        statistics.summary(torch.zeros(3, 2))


def test_mean_is_a_statistic_of_weights() -> None:
    values = torch.tensor([1.0, torch.nan, 4.0])
    weights = torch.tensor([[1, 1, 1], [2, 5, 1], [0, 3, 0]]).double()
    torch.testing.assert_close(
        statistics.mean(values)(weights), torch.tensor([2.5, 2.0, torch.nan]).double(), equal_nan=True
    )
    both = statistics.mean(torch.stack((values, -values), dim=1))(weights)
    torch.testing.assert_close(both[:, 1], -both[:, 0], equal_nan=True)


# Bootstrap


def test_resamples_draw_whole_patients_as_often_as_there_are() -> None:
    patients = ["a", "b", "a", "c", "c", "c", "d"]
    weights = statistics.resample_weights(patients, 4000, seed=1)
    assert weights.shape == (4000, 7)
    assert torch.equal(weights[:, 0], weights[:, 2])
    assert torch.equal(weights[:, 3], weights[:, 5])
    one_study_each = weights[:, [0, 1, 3, 6]]
    assert (one_study_each.sum(1) == 4).all()  # four patients drawn from four
    torch.testing.assert_close(one_study_each.mean(0), torch.ones(4, dtype=torch.float64), atol=0.05, rtol=0)
    # number of copies of a patient: binomial(4, 1/4)
    shares = torch.bincount(weights[:, 1].long(), minlength=5) / 4000
    torch.testing.assert_close(shares, torch.tensor([81, 108, 54, 12, 1]) / 256, atol=0.03, rtol=0)


def test_bootstrap_is_the_loop_over_resamples() -> None:
    scores, positive = two_methods()
    patients = [str(i // 2) for i in range(80)]
    weights = statistics.resample_weights(patients, 60, seed=3)
    one_by_one = [
        roc_auc_score(positive.numpy().repeat(row.int()), scores[0].numpy().repeat(row.int())) for row in weights
    ]
    result = statistics.bootstrap(
        lambda w: classification.rank_auc(scores[0], positive, w), patients, resamples=60, level=0.9, seed=3
    )
    assert result.value.item() == pytest.approx(roc_auc_score(positive, scores[0]))
    np.testing.assert_allclose([result.low, result.high], np.quantile(one_by_one, [0.05, 0.95]), rtol=1e-12)
    assert (result.level, result.resamples, result.undefined.item()) == (0.9, 60, 0)


def test_bootstrap_repeats_with_its_seed_only() -> None:
    statistic = statistics.mean(torch.randn(40, generator=torch.Generator().manual_seed(0)))
    first = statistics.bootstrap(statistic, range(40), resamples=200, seed=1)
    assert torch.equal(first.low, statistics.bootstrap(statistic, range(40), resamples=200, seed=1).low)
    assert not torch.equal(first.low, statistics.bootstrap(statistic, range(40), resamples=200, seed=2).low)


@pytest.mark.parametrize(("weights", "pieces"), [(40 * 45, [45, 45, 10]), (40, [32, 32, 32, 4])])
def test_bootstrap_of_many_studies_runs_in_pieces(
    weights: int, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_CHUNK", weights)
    seen: list[int] = []

    def statistic(weights: torch.Tensor) -> torch.Tensor:
        seen.append(len(weights))
        return weights.mean(1)

    result = statistics.bootstrap(statistic, range(40), resamples=100)
    assert seen == [1, *pieces]
    assert (result.low.item(), result.high.item()) == (1, 1)  # every resample has as many patients as there are


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = statistics.bootstrap(statistics.mean(values), range(400), resamples=4000)
    half = 1.96 * values.std() / 20
    assert result.low.item() == pytest.approx((values.mean() - half).item(), abs=0.01)
    assert result.high.item() == pytest.approx((values.mean() + half).item(), abs=0.01)


def test_bootstrap_over_patients_covers_the_truth_where_one_over_studies_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = torch.zeros(2)
    for trial in range(150):  # 40 patients with 5 studies each that resemble each other; the true mean is 0
        values = torch.randn(40, 1, generator=generator) + 0.3 * torch.randn(40, 5, generator=generator)
        statistic = statistics.mean(values.flatten())
        for column, patients in enumerate(([i // 5 for i in range(200)], range(200))):
            interval = statistics.bootstrap(statistic, patients, resamples=300, seed=trial)
            covered[column] += bool(interval.low <= 0 <= interval.high)
    by_patient, by_study = (covered / 150).tolist()
    assert 0.88 <= by_patient <= 0.99
    assert by_study < 0.75


def test_bootstrap_keeps_the_shape_of_the_statistic_and_counts_missing_classes() -> None:
    probabilities = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0] * 15 + [1] * 14 + [2])  # one study of class 2: absent from a third of the resamples
    result = statistics.bootstrap(lambda w: classification.auc(probabilities, targets, w), range(30), resamples=1000)
    assert result.value.shape == result.low.shape == result.undefined.shape == (3,)
    assert result.undefined[:2].tolist() == [0, 0]
    assert result.undefined[2].item() == pytest.approx(1000 / math.e, abs=60)
    assert not result.low.isnan().any()


def test_one_patient_gives_a_value_without_an_interval() -> None:
    result = statistics.bootstrap(statistics.mean(torch.tensor([1.0, 3.0])), ["p", "p"], resamples=50)
    assert result.value.item() == 2
    assert result.low.isnan().item()
    assert result.high.isnan().item()
    assert result.undefined.item() == 50


def test_one_class_gives_no_value_and_no_interval() -> None:
    scores, positive = torch.rand(9), torch.ones(9, dtype=torch.bool)
    result = statistics.bootstrap(lambda w: classification.rank_auc(scores, positive, w), range(9), resamples=50)
    assert all(bound.isnan().item() for bound in (result.value, result.low, result.high))


def test_paired_bootstrap_sees_through_what_methods_share() -> None:
    generator = torch.Generator().manual_seed(0)
    difficulty = torch.randn(100, generator=generator)
    first = difficulty + 0.1 + 0.2 * torch.randn(100, generator=generator)
    paired = statistics.paired_bootstrap(statistics.mean(first), statistics.mean(difficulty), range(100))
    alone = statistics.bootstrap(statistics.mean(first), range(100))
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)
    assert paired.value.item() == pytest.approx((first - difficulty).mean().item(), abs=1e-6)
    z = (first - difficulty).mean() / ((first - difficulty).std() / 10)
    assert paired.p_value.item() == pytest.approx(2 * norm.sf(z.item()), abs=1e-3)


def test_paired_bootstrap_of_one_method_with_itself_finds_nothing() -> None:
    statistic = statistics.mean(torch.randn(20, generator=torch.Generator().manual_seed(0)))
    result = statistics.paired_bootstrap(statistic, statistic, range(20), resamples=99)
    assert (result.value.item(), result.low.item(), result.high.item(), result.p_value.item()) == (0, 0, 0, 1)


def test_paired_bootstrap_p_value_counts_sides_and_is_never_zero() -> None:
    values = torch.randn(25, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.3
    zero, statistic = statistics.mean(torch.zeros(25)), statistics.mean(values)
    result = statistics.paired_bootstrap(statistic, zero, range(25), resamples=999, seed=5)
    drawn = statistic(statistics.resample_weights(range(25), 999, seed=5))
    below = min((drawn <= 0).sum().item(), (drawn >= 0).sum().item())
    assert result.p_value.item() == pytest.approx(2 * (below + 1) / 1000)
    certain = statistics.paired_bootstrap(statistics.mean(values.abs() + 1), zero, range(25), resamples=999)
    assert certain.p_value.item() == pytest.approx(2 / 1000)
    one_patient = statistics.paired_bootstrap(statistic, zero, ["p"] * 25, resamples=9)
    assert one_patient.p_value.isnan().item()


def test_paired_bootstrap_holds_its_level() -> None:
    generator = torch.Generator().manual_seed(1)
    rejected = 0
    for trial in range(200):
        values = torch.randn(2, 60, generator=generator)
        first, second = statistics.mean(values[0]), statistics.mean(values[1])
        result = statistics.paired_bootstrap(first, second, range(60), resamples=300, seed=trial)
        rejected += result.p_value.item() < 0.05
    assert 0.01 <= rejected / 200 <= 0.11


# DeLong


def test_delong_is_the_literal_formula() -> None:
    scores, positive = two_methods()
    auc, covariance = literal_delong(scores.numpy(), positive.numpy())
    result = statistics.delong(scores, positive)
    np.testing.assert_allclose(result.auc, auc, rtol=1e-13)
    np.testing.assert_allclose(result.covariance, covariance, rtol=1e-12)
    np.testing.assert_allclose(result.auc, [roc_auc_score(positive, row) for row in scores], rtol=1e-13)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=12), st.integers(2, 10))
def test_delong_with_ties_is_the_literal_formula(rows: list[tuple[int, int]], split: int) -> None:
    scores = np.array(rows, dtype=float).T
    positive = np.arange(len(rows)) < min(split, len(rows) - 2)
    auc, covariance = literal_delong(scores, positive)
    result = statistics.delong(torch.from_numpy(scores), torch.from_numpy(positive))
    np.testing.assert_allclose(result.auc, auc, atol=1e-13)
    np.testing.assert_allclose(result.covariance, covariance, atol=1e-13)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_midranks_are_scipys(values: list[int]) -> None:
    np.testing.assert_array_equal(statistics._midranks(torch.tensor([values]))[0], rankdata(values))


def test_delong_test_and_interval() -> None:
    scores, positive = two_methods()
    auc, covariance = literal_delong(scores.numpy(), positive.numpy())
    result = statistics.delong_test(scores[0], scores[1], positive)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert result.value == pytest.approx(auc[0] - auc[1])
    assert result.z == pytest.approx((auc[0] - auc[1]) / error)
    assert result.p_value == pytest.approx(2 * norm.sf(abs(result.z)))
    assert result.high - result.low == pytest.approx(2 * norm.isf(0.025) * error)
    back = statistics.delong_test(scores[1], scores[0], positive)
    assert (back.value, back.p_value) == (pytest.approx(-result.value), pytest.approx(result.p_value))
    low, high = statistics.delong_interval(scores[0], positive, level=0.9)
    assert (low + high) / 2 == pytest.approx(auc[0])
    assert high - low == pytest.approx(2 * norm.isf(0.05) * math.sqrt(covariance[0, 0]))


def test_delong_and_paired_bootstrap_agree() -> None:
    scores, positive = two_methods(400)
    delong = statistics.delong_test(scores[0], scores[1], positive)
    drawn = statistics.paired_bootstrap(
        lambda w: classification.rank_auc(scores[0], positive, w),
        lambda w: classification.rank_auc(scores[1], positive, w),
        range(400),
        resamples=3000,
    )
    assert drawn.value.item() == pytest.approx(delong.value)
    assert [drawn.low.item(), drawn.high.item()] == pytest.approx([delong.low, delong.high], abs=0.008)


def test_contrast_of_seed_means_is_the_literal_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    positive = torch.arange(70) % 3 == 0
    shared = torch.randn(70, generator=generator) + positive.float()
    scores = shared + torch.randn(6, 70, generator=generator) + 0.4 * positive * (torch.arange(6) < 3)[:, None]
    weights = torch.tensor([1, 1, 1, -1, -1, -1]) / 3
    auc, covariance = literal_delong(scores.double().numpy(), positive.numpy())
    contrast = np.array([1, 1, 1, -1, -1, -1]) / 3
    result = statistics.delong_contrast(scores, positive, weights)
    assert result.value == pytest.approx(auc[:3].mean() - auc[3:].mean(), abs=1e-7)
    error = math.sqrt(contrast @ covariance @ contrast)
    assert result.high - result.low == pytest.approx(2 * norm.isf(0.025) * error, rel=1e-6)
    assert result.p_value == pytest.approx(2 * norm.sf(abs(result.value) / error), rel=1e-5)

    def mean_auc(rows: torch.Tensor) -> statistics.Statistic:
        return lambda w: torch.stack([classification.rank_auc(row, positive, w) for row in rows]).mean(0)

    drawn = statistics.paired_bootstrap(mean_auc(scores[:3]), mean_auc(scores[3:]), range(70), resamples=3000)
    assert [drawn.low.item(), drawn.high.item()] == pytest.approx([result.low, result.high], abs=0.02)


def test_contrast_of_two_is_the_test_of_two() -> None:
    scores, positive = two_methods()
    assert statistics.delong_contrast(scores, positive, torch.tensor([1, -1])) == statistics.delong_test(
        scores[0], scores[1], positive
    )


def test_draws_that_are_kept_give_the_paired_bootstrap() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (statistics.mean(torch.rand(40, 3, generator=generator)) for _ in range(2))
    patients = [index // 2 for index in range(40)]
    once = statistics.paired_bootstrap(first, second, patients, resamples=200, level=0.9, seed=4)
    kept = [statistics.draws(statistic, patients, resamples=200, seed=4) for statistic in (first, second)]
    again = statistics.difference(*kept, level=0.9)
    for expected, found in zip(once, again, strict=True):
        assert torch.equal(torch.as_tensor(expected), torch.as_tensor(found))


def test_delong_edges() -> None:
    positive = torch.tensor([True, True, False, False])
    perfect = positive.double()
    same = statistics.delong_test(perfect, 2 * perfect + 1, positive)
    assert (same.value, same.z, same.p_value) == (0, 0, 1)
    certain = statistics.delong_test(perfect, -perfect, positive)
    assert (certain.value, certain.z, certain.p_value) == (1, math.inf, 0)
    assert statistics.delong_interval(perfect, positive) == (1, 1)
    for broken in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        assert all(math.isnan(bound) for bound in statistics.delong_interval(perfect, broken))
        assert math.isnan(statistics.delong_test(perfect, -perfect, broken).p_value)
    one_positive = torch.tensor([True, False, False, False])
    assert statistics.delong(perfect[None], one_positive).auc.item() == pytest.approx(5 / 6)
    assert statistics.delong(perfect[None], one_positive).covariance.isnan().item()


# Holm


def test_holm_by_hand() -> None:
    adjusted = statistics.holm(torch.tensor([0.01, 0.04, 0.03, torch.nan, 0.005]))
    torch.testing.assert_close(adjusted, torch.tensor([0.03, 0.06, 0.06, torch.nan, 0.02]), equal_nan=True)
    assert statistics.holm(torch.tensor([0.9, 0.8])).tolist() == [1, 1]
    assert statistics.holm(torch.tensor([])).tolist() == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_loop(p_values: list[float]) -> None:
    expected, highest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - step)))
        expected[index] = highest
    np.testing.assert_allclose(statistics.holm(torch.tensor(p_values, dtype=torch.float64)), expected, rtol=1e-12)


refused: list[tuple[Callable[[], object], str]] = [
    (lambda: statistics.bootstrap(statistics.mean(torch.zeros(0)), []), "no study to resample"),
    (lambda: statistics.bootstrap(statistics.mean(torch.zeros(2)), "ab", resamples=0), "resamples is 0"),
    (lambda: statistics.bootstrap(statistics.mean(torch.zeros(2)), "ab", level=95), "level is 95"),
    (lambda: statistics.delong(torch.zeros(2, 3), torch.zeros(4, dtype=torch.bool)), "one bool per study"),
    (lambda: statistics.delong(torch.full((2, 3), torch.nan), torch.zeros(3, dtype=torch.bool)), "scores hold NaN"),
    (lambda: statistics.delong_test(torch.zeros(2), torch.zeros(3), torch.zeros(2, dtype=torch.bool)), "same studies"),
    (
        lambda: statistics.delong_contrast(torch.zeros(2, 3), torch.zeros(3, dtype=torch.bool), torch.zeros(3)),
        "one per row",
    ),
    (
        lambda: statistics.difference(
            statistics.draws(statistics.mean(torch.zeros(2)), "ab", resamples=3),
            statistics.draws(statistics.mean(torch.zeros(2)), "ab", resamples=4),
        ),
        "same number of resamples",
    ),
    (lambda: statistics.holm(torch.tensor([0.5, 1.5])), "a p-value is 1.5"),
    (lambda: statistics.holm(torch.zeros(2, 2)), "flatten"),
]


@pytest.mark.parametrize(("call", "sentence"), refused)
def test_bad_input_is_refused_in_one_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()
