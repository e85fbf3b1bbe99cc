from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp, ttest_rel
from sklearn.metrics import roc_auc_score

from radgaze.comparison.statistics import Measured, adjust, delong_of_classes, draw, over_seeds, paired, t_interval
from radgaze.measures import classification, statistics

CLASSES = ["a", "b", "c"]
PATIENTS = [f"p{index // 2}" for index in range(90)]
TARGETS = torch.arange(90) % 3


def run(seed: int, strength: float = 0.3) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(90, 3, generator=generator) + strength * torch.eye(3)[TARGETS]
    cc = torch.rand(90, generator=generator, dtype=torch.float64)
    cc[::7] = torch.nan
    return Measured(logits.softmax(1).double(), {"saliency:cc": cc})


def test_t_interval_is_scipys() -> None:
    values = [0.81, 0.84, 0.79, 0.9]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert t_interval([0.8]) == (None, None)


def test_over_seeds() -> None:
    summary = over_seeds([0.3, 0.1, 0.8])
    assert (summary["median"], summary["min"], summary["max"], summary["n"]) == (0.3, 0.1, 0.8, 3)
    assert summary["mean"] == pytest.approx(0.4)
    assert (over_seeds([0.5])["low"], over_seeds([0.5])["mean"]) == (None, 0.5)


def test_pair_is_the_paired_bootstrap_of_the_seed_means() -> None:
    ours, theirs = [run(seed, 1.0) for seed in range(3)], [run(seed) for seed in range(10, 13)]
    drawn = [[draw(each, CLASSES, TARGETS, PATIENTS, 300) for each in arm] for arm in (ours, theirs)]
    entries = paired(*drawn)

    def mean_auc(arm: list[Measured]) -> statistics.Statistic:
        return lambda w: torch.stack([classification.auc_macro(each.scores, TARGETS, w) for each in arm]).mean(0)

    expected = statistics.paired_bootstrap(mean_auc(ours), mean_auc(theirs), PATIENTS, resamples=300)
    entry = entries["auc_macro"]
    assert entry["value"] == pytest.approx(expected.value.item())
    assert [entry["low"], entry["high"]] == pytest.approx([expected.low.item(), expected.high.item()])
    assert entry["p_value"] == pytest.approx(expected.p_value.item())
    aucs = [
        [roc_auc_score(TARGETS, each.scores, multi_class="ovr", average="macro") for each in arm]
        for arm in (ours, theirs)
    ]
    assert entry["per_seed"] == pytest.approx(np.subtract(*aucs))
    over = ttest_rel(*aucs).confidence_interval(0.95)
    assert [entry["seed_low"], entry["seed_high"]] == pytest.approx([over.low, over.high])

    cc = np.array([[np.nanmean(each.columns["saliency:cc"]) for each in arm] for arm in (ours, theirs)])
    assert entries["saliency:cc"]["value"] == pytest.approx(cc[0].mean() - cc[1].mean())
    assert {"accuracy", "ece", "brier", "nll", "auc:a", "auc:c", "auc_macro_ovo"} <= entries.keys()


def test_measures_that_a_run_lacks_are_left_out() -> None:
    first = draw(run(0), CLASSES, TARGETS, PATIENTS, 20)
    undefined = Measured(run(1).scores, {"saliency:cc": torch.full((90,), torch.nan, dtype=torch.float64)})
    entries = paired([first], [draw(undefined, CLASSES, TARGETS, PATIENTS, 20)])
    assert "saliency:cc" not in entries
    assert entries["auc_macro"]["seed_low"] is None
    no_classes = Measured(None, run(1).columns)
    assert set(paired([first], [draw(no_classes, CLASSES, TARGETS, PATIENTS, 20)])) == {"saliency:cc"}
    missing = torch.where(TARGETS == 2, 0, TARGETS)
    drawn = draw(run(0), CLASSES, missing, PATIENTS, 20)
    assert {"auc:a", "accuracy"} <= paired([drawn], [drawn]).keys()
    assert not {"auc:c", "auc_macro"} & paired([drawn], [drawn]).keys()


def test_delong_of_seed_means_leaves_unknown_labels_out() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(90, 3, generator=generator) < 0.4).float()
    labels[::5, 1] = torch.nan
    labels[:, 2] = 0  # never present: there is no AUC
    ours, theirs = [run(seed).scores for seed in range(3)], [run(seed).scores for seed in (7, 8, 9)]
    entries = delong_of_classes(ours, theirs, CLASSES, labels)
    assert list(entries) == ["a", "b"]
    known = ~labels[:, 1].isnan()
    aucs = [[roc_auc_score(labels[known, 1], each[known, 1]) for each in arm] for arm in (ours, theirs)]
    assert entries["b"]["value"] == pytest.approx(np.mean(aucs[0]) - np.mean(aucs[1]))
    one = delong_of_classes(ours[:1], theirs[:1], CLASSES, TARGETS)["a"]
    test = statistics.delong_test(ours[0][:, 0], theirs[0][:, 0], TARGETS == 0)
    assert (one["value"], one["z"], one["p_value"]) == pytest.approx((test.value, test.z, test.p_value))


def test_holm_within_a_measure_and_over_all_classes() -> None:
    def entry(p_value: float | None) -> dict[str, float | None]:
        return {"p_value": p_value, "p_adjusted": None}

    pairs = [
        {"measures": {"auc_macro": entry(0.01), "ece": entry(0.04)}, "delong": {"a": entry(0.01), "b": entry(0.2)}},
        {"measures": {"auc_macro": entry(0.02)}, "delong": {"a": entry(0.03)}},
        {"measures": {"auc_macro": entry(None)}, "delong": {}},
    ]
    adjust(pairs)
    adjusted = [pair["measures"]["auc_macro"]["p_adjusted"] for pair in pairs]
    assert adjusted[:2] == pytest.approx([0.02, 0.02])
    assert adjusted[2] is None
    assert pairs[0]["measures"]["ece"]["p_adjusted"] == pytest.approx(0.04)
    assert pairs[0]["delong"]["a"]["p_adjusted"] == pytest.approx(0.03)
    assert pairs[1]["delong"]["a"]["p_adjusted"] == pytest.approx(0.06)
    assert math.isclose(pairs[0]["delong"]["b"]["p_adjusted"], 0.2)
