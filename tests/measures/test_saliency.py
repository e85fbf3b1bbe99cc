"""Saliency measures against literal loops of their definitions, SciPy, scikit-learn, and identities."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy, pearsonr, zscore
from sklearn.metrics import roc_auc_score

from radgaze.errors import InputError
from radgaze.measures import saliency


def maps(studies: int = 4, size: tuple[int, int] = (13, 9), seed: int = 0) -> torch.Tensor:
    return torch.rand(studies, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(studies: int = 4, size: tuple[int, int] = (13, 9), number: int = 12, seed: int = 1) -> torch.Tensor:
    """Fixation counts with repeats, a different number in each study."""
    rng = np.random.default_rng(seed)
    result = np.zeros((studies, size[0] * size[1]))
    for row in range(studies):
        np.add.at(result[row], rng.integers(0, size[0] * size[1], number + row), 1)
    return torch.from_numpy(result).reshape(studies, *size)


def benchmark_auc_judd(prediction: np.ndarray, fixations: np.ndarray) -> float:
    """The MIT saliency benchmark's algorithm, one threshold at a time, without its jitter."""
    thresholds = np.sort(prediction[fixations > 0])[::-1]
    tp, fp = [0.0], [0.0]
    for index, threshold in enumerate(thresholds, start=1):
        above = (prediction >= threshold).sum()
        tp.append(index / len(thresholds))
        fp.append((above - index) / (prediction.size - len(thresholds)))
    return float(np.trapezoid([*tp, 1.0], [*fp, 1.0]))


def curve_auc_judd(prediction: np.ndarray, fixations: np.ndarray) -> float:
    """The documented curve: one point per distinct fixated value."""
    fixated, other = prediction[fixations > 0], prediction[fixations == 0]
    points = [(0.0, 0.0), *(((other >= t).mean(), (fixated >= t).mean()) for t in np.unique(fixated)[::-1]), (1.0, 1.0)]
    fp, tp = np.array(points).T
    return float(np.trapezoid(tp, fp))


def pairs_auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Probability that a positive outranks a negative, a tie counting one half: the definition, pair by pair."""
    differences = np.asarray(positives)[:, None] - np.asarray(negatives)[None]
    return float((np.sign(differences) * 0.5 + 0.5).mean())


def at_fixations(prediction: torch.Tensor, fixations: torch.Tensor) -> np.ndarray:
    """Values at the fixations, repeats repeated."""
    return np.repeat(prediction.flatten().numpy(), fixations.flatten().long().numpy())


# KLD, CC, SIM


def test_kld_is_the_relative_entropy() -> None:
    p, q = maps(seed=1), maps(seed=2)
    expected = [entropy(b.ravel(), a.ravel()) for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    np.testing.assert_allclose(saliency.kld(p, q), expected, rtol=1e-12)


def test_kld_ignores_scale_and_is_zero_only_for_equal_maps() -> None:
    p, q = maps(seed=1), maps(seed=2)
    torch.testing.assert_close(saliency.kld(7 * p, q / 3), saliency.kld(p, q))
    assert torch.equal(saliency.kld(q, q), torch.zeros(4, dtype=torch.float64))
    assert (saliency.kld(p, q) > 0).all()


def test_kld_of_zeros_outside_the_gaze_is_exact() -> None:
    q = torch.tensor([[[0.0, 0.5], [0.5, 0.0]]])
    p = torch.tensor([[[0.0, 0.25], [0.75, 0.0]]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert saliency.kld(p, q).item() == pytest.approx(expected, rel=1e-6)


def test_kld_of_a_zero_under_the_gaze_is_large_and_finite() -> None:
    q = torch.tensor([[[1.0, 0.0]]])
    p = torch.tensor([[[0.0, 1.0]]])
    assert saliency.kld(p, q).item() == pytest.approx(-math.log(saliency.PROBABILITY_FLOOR), rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, -2000.0, 2000.0])
def test_kld_takes_logits_and_log_probabilities_alike(shift: float) -> None:
    logits, q = 5 * maps(seed=1).log(), maps(seed=2)
    p = torch.softmax(logits.flatten(1), 1).view_as(q)
    log_p = torch.log_softmax(logits.flatten(1), 1).view_as(q)
    torch.testing.assert_close(saliency.kld(logits + shift, q, logits=True), saliency.kld(p, q))
    torch.testing.assert_close(saliency.kld(log_p, q, logits=True), saliency.kld(p, q))


def test_kld_from_logits_does_not_underflow() -> None:
    logits = torch.tensor([[[0.0, -500.0]]])  # a probability of e^-500 is zero in float32
    q = torch.tensor([[[0.5, 0.5]]])
    assert saliency.kld(logits, q, logits=True).item() == pytest.approx(250 - math.log(2), rel=1e-6)


def test_cc_is_pearsons_r() -> None:
    p, q = maps(seed=1), maps(seed=2)
    expected = [pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    np.testing.assert_allclose(saliency.cc(p, q), expected, rtol=1e-12)


def test_cc_ignores_gain_and_offset_even_when_tiny_or_far() -> None:
    p, q = maps(seed=1), maps(seed=2)
    expected = saliency.cc(p, q)
    torch.testing.assert_close(saliency.cc(1e-200 * p, 3 * q - 2), expected)
    torch.testing.assert_close(saliency.cc(p.float() + 1000, q.float()), expected.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(saliency.cc(-p, q), -expected)


def test_sim_is_the_overlap_of_two_histograms() -> None:
    p, q = maps(seed=1), maps(seed=2)
    expected = [
        sum(min(a, b) for a, b in zip((x / x.sum()).ravel(), (y / y.sum()).ravel(), strict=True))
        for x, y in zip(p.numpy(), q.numpy(), strict=True)
    ]
    np.testing.assert_allclose(saliency.sim(p, q), expected, rtol=1e-12)
    torch.testing.assert_close(saliency.sim(p, q), saliency.sim(5 * q, p))
    torch.testing.assert_close(saliency.sim(p, 2 * p), torch.ones(4, dtype=torch.float64))


def test_float32_keeps_the_float64_values_on_full_size_maps() -> None:
    p, q = (maps(2, (640, 512), 1) ** 8 + 1e-9).float(), (maps(2, (640, 512), 2) ** 4).float()
    fixations = counts(2, (640, 512), 80)
    exact = saliency.all_measures(p.double(), q.double(), fixations, fixations.flip(0), q.double())
    single = saliency.all_measures(p, q, fixations, fixations.flip(0), q)
    for name, values in exact.items():
        torch.testing.assert_close(single[name].double(), values, rtol=1e-5, atol=1e-6, msg=f"{name}: {{}}".format)


# NSS, AUC-Judd, shuffled AUC, IG


def test_nss_is_the_mean_z_score_over_fixations() -> None:
    p, fixations = maps(), counts()
    expected = [
        at_fixations(torch.from_numpy(zscore(a.numpy(), axis=None)), c).mean()
        for a, c in zip(p, fixations, strict=True)
    ]
    np.testing.assert_allclose(saliency.nss(p, fixations), expected, rtol=1e-12)
    torch.testing.assert_close(saliency.nss(0.01 * p + 9, fixations), saliency.nss(p, fixations))


def test_auc_judd_is_the_benchmarks_loop() -> None:
    p, fixations = maps(5, (31, 17)), counts(5, (31, 17), 25)
    expected = [benchmark_auc_judd(a.numpy(), c.numpy()) for a, c in zip(p, fixations, strict=True)]
    np.testing.assert_allclose(saliency.auc_judd(p, fixations), expected, rtol=0, atol=1e-14)


def test_auc_judd_exceeds_the_rank_area_by_the_corners_it_cuts() -> None:
    p, fixations = maps(5, (31, 17)), counts(5, (31, 17), 25)
    for value, a, c in zip(saliency.auc_judd(p, fixations), p.numpy(), fixations.numpy(), strict=True):
        fixated, other = a[c > 0], a[c == 0]
        corners = (other > fixated.min()).mean() / (2 * len(fixated))
        assert value.item() == pytest.approx(roc_auc_score((c > 0).ravel(), a.ravel()) + corners, abs=1e-12)


def test_auc_judd_equals_scikit_learn_where_no_corner_is_cut() -> None:
    fixations = (counts(3) > 0).double()
    fixated_low = 0.1 * maps(3) + 2 * (1 - fixations)  # every fixated pixel lies below every other: f = 1
    perfect = 0.1 * maps(3) + 2 * fixations  # and above: f = 0
    n = fixations.sum((1, 2))
    torch.testing.assert_close(saliency.auc_judd(perfect, fixations), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(saliency.auc_judd(fixated_low, fixations), 1 / (2 * n))
    two_levels = (maps(3) > 0.5).double()  # both levels are fixated, so the two curves share their only inner point
    expected = [roc_auc_score(c.ravel(), a.ravel()) for a, c in zip(two_levels, fixations, strict=True)]
    np.testing.assert_allclose(saliency.auc_judd(two_levels, fixations), expected, atol=1e-12)


tied_maps = arrays(np.float64, (3, 5), elements=st.integers(0, 4).map(float))
fixation_maps = arrays(np.int64, (3, 5), elements=st.integers(0, 2))


@settings(max_examples=150, deadline=None)
@given(prediction=tied_maps, fixations=fixation_maps, others=fixation_maps)
def test_ranks_with_ties_follow_their_definitions(
    prediction: np.ndarray, fixations: np.ndarray, others: np.ndarray
) -> None:
    p, f, o = (torch.from_numpy(a)[None] for a in (prediction, fixations, others))
    judd, shuffled = saliency.auc_judd(p, f), saliency.shuffled_auc(p, f, o, splits=None)
    fixated = (fixations > 0).sum()
    if 0 < fixated < fixations.size:
        assert judd.item() == pytest.approx(curve_auc_judd(prediction, fixations), abs=1e-12)
    else:
        assert judd.isnan().item()
    if fixated and others.any():
        assert shuffled.item() == pytest.approx(pairs_auc(at_fixations(p, f), at_fixations(p, o)), abs=1e-12)
    else:
        assert shuffled.isnan().item()
    torch.testing.assert_close(saliency.auc_judd(torch.exp(p) - 5, f), judd, equal_nan=True)
    torch.testing.assert_close(saliency.shuffled_auc(p**3, f, o, splits=None), shuffled, equal_nan=True)


def any_floats(dtype: type[np.floating]) -> st.SearchStrategy[np.ndarray]:
    """Arrays of one size of everything finite: both zeros, denormals, the extremes, many ties."""
    limits = np.finfo(dtype)
    special = [0.0, -0.0, 1.0, np.nextafter(dtype(1), dtype(2)), limits.smallest_subnormal, limits.tiny, limits.max]
    some = st.sampled_from([dtype(value) for value in special] + [-dtype(value) for value in special])
    width = limits.bits
    return arrays(dtype, 40, elements=some | st.floats(width=width, allow_nan=False, allow_infinity=False))


@pytest.mark.parametrize("per_cell", [1, 4, 16])
@settings(max_examples=150, deadline=None)
@given(pixels=any_floats(np.float32) | any_floats(np.float64), number=st.integers(1, 40))
def test_pixels_below_a_threshold_are_counted_exactly(per_cell: int, pixels: np.ndarray, number: int) -> None:
    thresholds = np.sort(pixels[:number])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saliency, "_PIXELS_PER_CELL", per_cell)
        counted = saliency._count_below(torch.from_numpy(pixels), torch.from_numpy(thresholds), saliency._Scratch())
    assert counted.tolist() == (pixels[None] < thresholds[:, None]).sum(1).tolist()


large = maps(1, (160, 128))[0]
large_maps = {
    "uniform": large,
    "negative logits": large.log() * 30 - 50,
    "wide dynamic range": (-600 * large).exp(),
    "wide in float32": (-80 * large).exp(),  # down to its denormals
    "denormals": 1e-310 * large,
    "offset": large + 2**20,
    "eight bits": (255 * large).round(),
    "constant": torch.full_like(large, 0.1),
    "both zeros": torch.where(large < 0.5, 0.0, -0.0),
    "masked": torch.where(large < 0.5, -1e30, large),
    "hot pixel": torch.where(large == large.max(), 1e30, large),
}


@pytest.mark.parametrize("name", large_maps)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [1, 30, 2000])
def test_auc_judd_of_a_large_map_is_its_definition(name: str, dtype: torch.dtype, number: int) -> None:
    assert large.numel() > saliency._COUNTED_MAP
    p = large_maps[name].to(dtype)
    p, fixations = torch.stack((p, p.flip(1))), counts(2, (160, 128), number)
    expected = [curve_auc_judd(a.numpy(), c.numpy()) for a, c in zip(p, fixations, strict=True)]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-7
    np.testing.assert_allclose(saliency.auc_judd(p, fixations), expected, rtol=0, atol=tolerance)
    fixations[0] = 0
    first, second = saliency.auc_judd(p, fixations).tolist()
    assert math.isnan(first)
    assert second == pytest.approx(expected[1], abs=tolerance)


def test_auc_judd_does_not_depend_on_how_ranks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    p, fixations = maps(5, (31, 17)).requires_grad_(), counts(5, (31, 17), 25)
    by_sorting = saliency.auc_judd(p, fixations)
    monkeypatch.setattr(saliency, "_COUNTED_MAP", 0)
    assert torch.equal(saliency.auc_judd(p, fixations), by_sorting)
    turned = p.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(saliency.auc_judd(turned, fixations), by_sorting)


def test_shuffled_auc_is_scikit_learns_area_over_fixations() -> None:
    p, fixations = maps(), counts()
    others = saliency.fixations_of_others(fixations)
    for value, a, own, other in zip(
        saliency.shuffled_auc(p, fixations, others, splits=None), p, fixations, others, strict=True
    ):
        positives, negatives = at_fixations(a, own), at_fixations(a, other)
        truth = np.r_[np.ones(len(positives)), np.zeros(len(negatives))]
        assert value.item() == pytest.approx(roc_auc_score(truth, np.r_[positives, negatives]), abs=1e-12)


def test_shuffled_auc_of_splits_converges_to_the_exact_value_and_repeats() -> None:
    p, fixations = maps(), counts()
    others = saliency.fixations_of_others(fixations)
    exact = saliency.shuffled_auc(p, fixations, others, splits=None)
    torch.testing.assert_close(saliency.shuffled_auc(p, fixations, others, splits=20_000), exact, atol=2e-3, rtol=0)
    first = saliency.shuffled_auc(p, fixations, others, seed=3)
    assert torch.equal(first, saliency.shuffled_auc(p, fixations, others, seed=3))
    assert not torch.equal(first, saliency.shuffled_auc(p, fixations, others, seed=4))


def test_shuffled_auc_draws_each_split_without_replacement() -> None:
    p, fixations = maps(1), counts(1, number=12)
    others = counts(1, number=9, seed=5)  # fewer than this study's own: every split must take them all
    exact = saliency.shuffled_auc(p, fixations, others, splits=None)
    torch.testing.assert_close(saliency.shuffled_auc(p, fixations, others, splits=1), exact)


def test_shuffled_auc_gives_centre_bias_no_credit() -> None:
    fixations = counts(60, number=40)
    fixations[:, :4] = 0  # all readers look at the lower rows
    bias = fixations.sum(0).expand(60, -1, -1)
    others = saliency.fixations_of_others(fixations)
    assert saliency.auc_judd(bias, fixations).mean() > 0.65
    assert saliency.shuffled_auc(bias, fixations, others, splits=None).mean().item() == pytest.approx(0.5, abs=0.03)


def test_fixations_of_others_leaves_out_the_studys_own_group() -> None:
    fixations = counts(5)
    per_study = saliency.fixations_of_others(fixations)
    grouped = saliency.fixations_of_others(fixations, groups=["a", "b", "a", "c", "b"])
    assert torch.equal(per_study[2], fixations[[0, 1, 3, 4]].sum(0).long())
    assert torch.equal(grouped[2], fixations[[1, 3, 4]].sum(0).long())
    with pytest.raises(InputError, match="2 labels for 5 studies"):
        saliency.fixations_of_others(fixations, groups=["a", "b"])


def test_information_gain_is_the_mean_log_ratio_in_bits() -> None:
    p, fixations, baseline = maps(seed=1), counts(), maps(seed=2)[0]
    gain = (p / p.sum((1, 2), keepdim=True)).log2() - (baseline / baseline.sum()).log2()
    expected = [at_fixations(g, c).mean() for g, c in zip(gain, fixations, strict=True)]
    np.testing.assert_allclose(saliency.information_gain(3 * p, fixations, 7 * baseline), expected, rtol=1e-10)
    logits = p.log() + 4
    np.testing.assert_allclose(
        saliency.information_gain(logits, fixations, baseline, logits=True), expected, rtol=1e-10
    )


def test_information_gain_of_the_baseline_is_zero_and_of_a_sure_hit_all_bits() -> None:
    baseline = torch.ones(1, 4, 8)
    fixations = torch.zeros(1, 4, 8)
    fixations[0, 2, 3] = 3
    assert saliency.information_gain(baseline, fixations, baseline).item() == 0
    assert saliency.information_gain(fixations, fixations, baseline).item() == pytest.approx(5)  # 32 pixels


# Shapes, batches, edges


def test_all_measures_equals_the_single_functions() -> None:
    p, q, fixations, baseline = maps(seed=1), maps(seed=2), counts(), maps(seed=3)[0]
    others = saliency.fixations_of_others(fixations)
    together = saliency.all_measures(p, q, fixations, others, baseline, seed=5)
    apart = {
        "kld": saliency.kld(p, q),
        "cc": saliency.cc(p, q),
        "sim": saliency.sim(p, q),
        "nss": saliency.nss(p, fixations),
        "auc_judd": saliency.auc_judd(p, fixations),
        "shuffled_auc": saliency.shuffled_auc(p, fixations, others, seed=5),
        "information_gain": saliency.information_gain(p, fixations, baseline),
    }
    assert together.keys() == apart.keys()
    for name, values in apart.items():
        assert torch.equal(together[name], values), name
    logits = saliency.all_measures(p.log(), q, fixations, others, baseline, logits=True, seed=5)
    for name, values in apart.items():
        torch.testing.assert_close(logits[name], values, msg=f"{name}: {{}}".format)


def test_all_measures_gives_what_the_inputs_allow() -> None:
    p, fixations = maps(), counts()
    assert set(saliency.all_measures(p, p)) == {"kld", "cc", "sim"}
    assert set(saliency.all_measures(p, fixations=fixations)) == {"nss", "auc_judd"}
    with pytest.raises(InputError, match="pass fixations too"):
        saliency.all_measures(p, baseline=p)


def test_a_study_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q, fixations = maps(seed=1), maps(seed=2), counts()
    fixations[1] = 0
    others = saliency.fixations_of_others(fixations)
    together = saliency.all_measures(p, q, fixations, others, q)
    monkeypatch.setattr(saliency, "_CPU_CHUNK", 13 * 9 * 3)  # chunks of three studies and of one
    chunked = saliency.all_measures(p, q, fixations, others, q)
    for name, values in together.items():
        torch.testing.assert_close(chunked[name], values, equal_nan=True, msg=f"{name}: {{}}".format)
    alone = saliency.all_measures(p[:1], q[:1], fixations[:1], others[:1], q[:1])
    for name, values in together.items():
        torch.testing.assert_close(alone[name], values[:1], msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32])
def test_any_number_type_goes_in_and_floats_come_out(dtype: torch.dtype) -> None:
    p, q = (200 * maps(seed=1)).to(dtype), (200 * maps(seed=2)).to(dtype)
    fixations = counts().to(dtype)
    for name, values in saliency.all_measures(p, q, fixations, fixations, q).items():
        assert values.dtype == torch.float32, name
        expected = saliency.all_measures(p.double(), q.double(), fixations, fixations, q.double())[name]
        torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-6, msg=f"{name}: {{}}".format)


def test_a_non_contiguous_map_and_one_that_needs_gradients_are_fine() -> None:
    p, q, fixations = maps(), maps(seed=2), counts()
    expected = saliency.all_measures(p, q, fixations, fixations, q)
    turned = p.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for name, values in saliency.all_measures(turned, q, fixations, fixations, q).items():
        torch.testing.assert_close(values, expected[name], msg=f"{name}: {{}}".format)


def test_no_fixations_means_no_value_for_that_study_alone() -> None:
    p, fixations = maps(), counts()
    fixations[2] = 0
    for name, values in saliency.all_measures(p, None, fixations, counts(seed=9), p).items():
        assert values.isnan().tolist() == [False, False, True, False], name


def test_constant_map() -> None:
    flat, q, fixations = torch.full((4, 13, 9), 0.1), maps().float(), counts()
    values = saliency.all_measures(flat, q, fixations, counts(seed=9), torch.ones(13, 9))
    assert values["cc"].isnan().all()
    assert values["nss"].isnan().all()
    torch.testing.assert_close(values["auc_judd"], torch.full((4,), 0.5))
    torch.testing.assert_close(values["shuffled_auc"], torch.full((4,), 0.5))
    torch.testing.assert_close(values["information_gain"], torch.zeros(4), atol=1e-5, rtol=0)
    assert (values["kld"] > 0).all()
    assert saliency.cc(q, flat).isnan().all()


def test_empty_gaze_map_or_prediction_is_undefined_not_zero() -> None:
    p, nothing = maps(), torch.zeros(4, 13, 9, dtype=torch.float64)
    for measure in (saliency.kld, saliency.cc, saliency.sim):
        assert measure(p, nothing).isnan().all()
        assert measure(nothing, p).isnan().all()
        assert measure(nothing, nothing).isnan().all()


def test_one_pixel() -> None:
    one, fixation = torch.full((1, 1, 1), 0.3), torch.ones(1, 1, 1)
    values = saliency.all_measures(one, one, fixation, fixation, one)
    assert (values["kld"].item(), values["sim"].item(), values["information_gain"].item()) == (0, 1, 0)
    assert values["shuffled_auc"].item() == 0.5
    assert all(values[name].isnan().item() for name in ("cc", "nss", "auc_judd"))


def test_all_fixations_on_one_pixel() -> None:
    p = torch.arange(12.0).reshape(1, 3, 4)
    fixations = torch.zeros(1, 3, 4)
    fixations[0, 1, 2] = 30  # value 6, with 5 of 11 other pixels above it
    assert saliency.auc_judd(p, fixations).item() == pytest.approx(6 / 11 + (5 / 11) / 2)
    assert saliency.nss(p, fixations).item() == pytest.approx((6 - 5.5) / np.arange(12).std())
    assert saliency.shuffled_auc(p, fixations, torch.ones(1, 3, 4), splits=None).item() == pytest.approx(6.5 / 12)


def test_an_empty_batch_gives_empty_values() -> None:
    none = torch.zeros(0, 5, 4)
    for name, values in saliency.all_measures(none, none, none, none, none).items():
        assert values.shape == (0,), name


two_maps: list[Callable[..., torch.Tensor]] = [saliency.kld, saliency.cc, saliency.sim]
with_fixations: list[Callable[..., torch.Tensor]] = [
    saliency.nss,
    saliency.auc_judd,
    lambda p, f: saliency.shuffled_auc(p, f, counts()),
    lambda p, f: saliency.information_gain(p, f, maps()),
]


@pytest.mark.parametrize("measure", [*two_maps, *with_fixations])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_pixel_is_refused(measure: Callable[..., torch.Tensor], value: float) -> None:
    broken = maps()
    broken[2, 3, 4] = value
    with pytest.raises(InputError, match="prediction has a NaN or infinite pixel in map 2"):
        measure(broken, counts())
    with pytest.raises(InputError):
        measure(maps(), broken)


@pytest.mark.parametrize("measure", [saliency.kld, saliency.sim])
def test_a_negative_density_is_refused(measure: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(InputError, match=r"prediction has a pixel of -\d.*never negative"):
        measure(maps() - 0.5, maps())


@pytest.mark.parametrize("measure", with_fixations)
@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_counts_that_are_no_counts_are_refused(measure: Callable[..., torch.Tensor], value: float) -> None:
    fixations = counts()
    fixations[0, 0, 0] = value
    with pytest.raises(InputError, match=f"fixations has a pixel of {value:g}"):
        measure(maps(), fixations)


@pytest.mark.parametrize("measure", [*two_maps, *with_fixations])
def test_shapes_that_differ_are_refused(measure: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(InputError, match=r"has shape \(4, 5, 9\) and prediction \(4, 13, 9\)"):
        measure(maps(), maps()[:, :5])
    with pytest.raises(InputError, match=r"expected maps \(B, h, w\)"):
        measure(maps()[0], counts()[0])


def test_splits_must_be_positive() -> None:
    with pytest.raises(InputError, match="splits is 0"):
        saliency.shuffled_auc(maps(), counts(), counts(), splits=0)
