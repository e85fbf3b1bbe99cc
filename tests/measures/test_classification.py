"""Classification measures against scikit-learn, torchmetrics, literal loops and identities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from radgaze.errors import InputError
from radgaze.measures import classification

Measure = Callable[..., torch.Tensor]


def multiclass(
    studies: int = 60, classes: int = 3, seed: int = 0, ties: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (studies,), generator=generator)
    targets[:classes] = torch.arange(classes)
    logits = torch.randn(studies, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(studies), targets] += 1
    probabilities = logits.softmax(1)
    if ties:
        probabilities = (probabilities * 10).round() + 0.5
        probabilities /= probabilities.sum(1, keepdim=True)
    return probabilities, targets


def multilabel(studies: int = 60, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(studies, classes, generator=generator) < 0.4).double()
    probabilities = torch.sigmoid(torch.randn(studies, classes, generator=generator).double() + labels)
    labels[torch.rand(studies, classes, generator=generator) < 0.2] = torch.nan
    return probabilities, labels


def sure(targets: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(targets, classes).double()


# Ranking


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(ties: bool) -> None:
    probabilities, targets = multiclass(ties=ties)
    p, y = probabilities.numpy(), targets.numpy()
    expected = [metrics.roc_auc_score(y == c, p[:, c]) for c in range(3)]
    np.testing.assert_allclose(classification.auc(probabilities, targets), expected, rtol=1e-14)
    macro = classification.auc_macro(probabilities, targets).item()
    assert macro == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr"), rel=1e-14)
    micro = classification.auc_micro(probabilities, targets).item()
    assert micro == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr", average="micro"), rel=1e-14)
    ovo = classification.auc_macro(probabilities, targets, scheme="ovo").item()
    assert ovo == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovo"), rel=1e-14)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), min_size=1, max_size=14))
def test_rank_auc_with_ties_and_weights_is_its_definition(rows: list[tuple[int, bool, int]]) -> None:
    scores = torch.tensor([float(score) for score, _, _ in rows])
    positive = torch.tensor([truth for _, truth, _ in rows])
    copies = torch.tensor([number for _, _, number in rows])
    pairs = [
        (i, j) for i in range(len(rows)) for j in range(len(rows)) if positive[i] and not positive[j]
        for _ in range(int(copies[i] * copies[j]))
    ]  # fmt: skip
    won = [0.5 * (1 + float(torch.sign(scores[i] - scores[j]))) for i, j in pairs]
    area = classification.rank_auc(scores, positive, copies).item()
    if pairs:
        assert area == pytest.approx(np.mean(won), abs=1e-12)
    else:
        assert np.isnan(area)
    np.testing.assert_equal(classification.rank_auc(scores**3 - 7, positive, copies).item(), area)


def test_average_precision_is_scikit_learns() -> None:
    for ties in (False, True):
        probabilities, targets = multiclass(ties=ties)
        expected = [metrics.average_precision_score(targets == c, probabilities[:, c]) for c in range(3)]
        np.testing.assert_allclose(classification.average_precision(probabilities, targets), expected, rtol=1e-12)


def test_perfect_reversed_and_ignorant_scores() -> None:
    _, targets = multiclass()
    perfect, ignorant = sure(targets), torch.full((60, 3), 1 / 3)
    assert classification.auc(perfect, targets).tolist() == [1, 1, 1]
    assert classification.auc(1 - perfect, targets).tolist() == [0, 0, 0]
    assert classification.auc(ignorant, targets).tolist() == [0.5, 0.5, 0.5]
    assert classification.auc_macro(ignorant, targets, scheme="ovo").item() == 0.5
    prevalence = torch.bincount(targets).double() / 60
    torch.testing.assert_close(classification.average_precision(ignorant, targets), prevalence)


def test_ranking_survives_any_increasing_transform() -> None:
    probabilities, targets = multiclass()
    torch.testing.assert_close(
        classification.auc(torch.log(probabilities) * 3, targets), classification.auc(probabilities, targets)
    )


def test_roc_curve_is_scikit_learns_and_encloses_the_auc() -> None:
    probabilities, targets = multiclass(ties=True)
    scores, positive = classification.one_against_rest(probabilities, targets, 1)
    curve = classification.roc_curve(scores, positive)
    for ours, theirs in zip(curve, metrics.roc_curve(positive, scores, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    area = torch.trapezoid(curve.tpr, curve.fpr)
    torch.testing.assert_close(area, classification.auc(probabilities, targets)[1])
    micro = classification.roc_curve(*classification.pooled(probabilities, targets))
    torch.testing.assert_close(torch.trapezoid(micro.tpr, micro.fpr), classification.auc_micro(probabilities, targets))


def test_precision_recall_curve_is_scikit_learns() -> None:
    probabilities, targets = multiclass(ties=True)
    scores, positive = classification.one_against_rest(probabilities, targets, 2)
    curve = classification.precision_recall_curve(scores, positive)
    precision, recall, thresholds = metrics.precision_recall_curve(positive, scores)
    np.testing.assert_allclose(curve.precision.flip(0), precision[:-1], rtol=1e-14)
    np.testing.assert_allclose(curve.recall.flip(0), recall[:-1], rtol=1e-14)
    np.testing.assert_allclose(curve.thresholds.flip(0), thresholds)


# Decisions and probabilities


def test_decisions_are_scikit_learns() -> None:
    probabilities, targets = multiclass()
    decided = probabilities.argmax(1)
    assert classification.accuracy(probabilities, targets).item() == metrics.accuracy_score(targets, decided)
    balanced = classification.balanced_accuracy(probabilities, targets).item()
    assert balanced == pytest.approx(metrics.balanced_accuracy_score(targets, decided))
    matrix = classification.confusion_matrix(probabilities, targets)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(targets, decided))


def test_probability_scores_are_scikit_learns() -> None:
    probabilities, targets = multiclass()
    nll = classification.nll(probabilities, targets).item()
    assert nll == pytest.approx(metrics.log_loss(targets, probabilities), rel=1e-12)
    brier = classification.brier(probabilities, targets).item()
    assert brier == pytest.approx(metrics.brier_score_loss(targets, probabilities, scale_by_half=False), rel=1e-12)


def test_sure_and_right_and_sure_and_wrong() -> None:
    _, targets = multiclass()
    right, wrong = sure(targets), sure((targets + 1) % 3)
    assert [m(right, targets).item() for m in (classification.nll, classification.brier, classification.ece)] == [0] * 3
    assert classification.nll(wrong, targets).item() == pytest.approx(36.04, abs=0.01)
    assert [m(wrong, targets).item() for m in (classification.brier, classification.ece)] == [2, 1]


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_ece_of_equal_widths_is_torchmetrics(bins: int) -> None:
    probabilities, targets = multiclass(200)
    expected = multiclass_calibration_error(probabilities, targets, num_classes=3, n_bins=bins, norm="l1").item()
    assert classification.ece(probabilities, targets, bins=bins).item() == pytest.approx(expected, abs=1e-6)


def test_reliability_of_equal_mass_holds_equally_many() -> None:
    probabilities, targets = multiclass(150)
    table = classification.reliability(probabilities, targets, bins=10, scheme="mass")
    assert table.number.tolist() == [15.0] * 10
    confidence, decided = probabilities.max(1)
    parts = np.split(confidence.argsort().numpy(), 10)
    right = (decided == targets).double()
    torch.testing.assert_close(table.confidence, torch.stack([confidence[part].mean() for part in parts]))
    torch.testing.assert_close(table.outcome, torch.stack([right[part].mean() for part in parts]))
    expected = (table.confidence - table.outcome).abs().mean().item()
    assert classification.ece(probabilities, targets, bins=10, scheme="mass").item() == pytest.approx(expected)


def test_equal_confidences_share_a_bin_and_empty_bins_are_nan() -> None:
    probabilities = torch.tensor([[0.8, 0.2]] * 6)
    targets = torch.tensor([0, 0, 0, 1, 1, 0])
    for scheme in ("width", "mass"):
        table = classification.reliability(probabilities, targets, bins=5, scheme=scheme)
        filled = table.number > 0
        assert table.number[filled].tolist() == [6]
        assert table.outcome[~filled].isnan().all()
        assert table.outcome[filled].item() == pytest.approx(4 / 6)
        assert classification.ece(probabilities, targets, bins=5, scheme=scheme).item() == pytest.approx(0.8 - 4 / 6)


def test_confidence_zero_and_one_fall_in_the_outer_bins() -> None:
    labels = torch.tensor([[0.0], [1.0]])
    table = classification.reliability(torch.tensor([[0.0], [1.0]]), labels, bins=4)
    assert table.number.tolist() == [1, 0, 0, 1]


def test_a_confidence_on_an_edge_falls_in_the_lower_bin() -> None:
    labels = torch.tensor([[0.0], [1.0]])
    table = classification.reliability(torch.tensor([[0.25], [0.75]]), labels, bins=4)
    assert table.number.tolist() == [1, 0, 1, 0]


# Multilabel, unknown targets


def test_multilabel_leaves_unknown_labels_out_one_by_one() -> None:
    probabilities, labels = multilabel()
    p, y = probabilities.numpy(), labels.numpy()
    known = ~np.isnan(y)
    per_class = [metrics.roc_auc_score(y[k, c], p[k, c]) for c, k in enumerate(known.T)]
    precision = [metrics.average_precision_score(y[k, c], p[k, c]) for c, k in enumerate(known.T)]
    np.testing.assert_allclose(classification.auc(probabilities, labels), per_class, rtol=1e-14)
    np.testing.assert_allclose(classification.average_precision(probabilities, labels), precision, rtol=1e-12)
    values = {name: value.item() for name, value in classification.all_measures(probabilities, labels).items()}
    flat_p, flat_y = p[known], y[known]
    assert values["auc_macro"] == pytest.approx(np.mean(per_class))
    assert values["auc_micro"] == pytest.approx(metrics.roc_auc_score(flat_y, flat_p))
    assert values["accuracy"] == pytest.approx(((flat_p >= 0.5) == flat_y).mean())
    assert values["brier"] == pytest.approx(metrics.brier_score_loss(flat_y, flat_p))
    assert values["nll"] == pytest.approx(metrics.log_loss(flat_y, flat_p))
    assert set(values) == {"auc_macro", "auc_micro", "accuracy", "ece", "brier", "nll"}


def test_multilabel_reliability_compares_probability_with_frequency() -> None:
    labels = torch.tensor([[1.0, torch.nan], [0.0, 1.0], [1.0, 0.0]])
    probabilities = torch.tensor([[0.9, 0.1], [0.15, 0.9], [0.15, 0.9]])
    table = classification.reliability(probabilities, labels, bins=2)
    assert table.number.tolist() == [2, 3]
    torch.testing.assert_close(table.outcome, torch.tensor([1 / 2, 2 / 3], dtype=torch.float64))
    expected = (2 * abs(0.15 - 0.5) + 3 * abs(0.9 - 2 / 3)) / 5
    assert classification.ece(probabilities, labels, bins=2).item() == pytest.approx(expected, abs=1e-6)


def test_unknown_classes_are_left_out() -> None:
    probabilities, targets = multiclass()
    some = targets.clone()
    some[::3] = -1
    kept = some >= 0
    expected = classification.all_measures(probabilities[kept], some[kept])
    for name, value in classification.all_measures(probabilities, some).items():
        torch.testing.assert_close(value, expected[name], msg=f"{name}: {{}}".format)
    assert torch.equal(
        classification.confusion_matrix(probabilities, some),
        classification.confusion_matrix(probabilities[kept], some[kept]),
    )


# Weights


with_weights: list[Measure] = [
    classification.accuracy,
    classification.balanced_accuracy,
    classification.auc,
    classification.auc_macro,
    lambda *args: classification.auc_macro(*args, scheme="ovo"),
    classification.auc_micro,
    classification.average_precision,
    classification.ece,
    lambda *args: classification.reliability(*args).outcome,
    classification.brier,
    classification.nll,
    classification.confusion_matrix,
]


@pytest.mark.parametrize("measure", with_weights)
@pytest.mark.parametrize("ties", [False, True])
def test_a_whole_weight_is_a_number_of_copies(measure: Measure, ties: bool) -> None:
    probabilities, targets = multiclass(40, ties=ties)
    targets[5] = -1
    copies = torch.randint(0, 4, (6, 40), generator=torch.Generator().manual_seed(1))
    expected = [measure(probabilities.repeat_interleave(row, 0), targets.repeat_interleave(row)) for row in copies]
    together = measure(probabilities, targets, copies)
    torch.testing.assert_close(together, torch.stack(expected), equal_nan=True)
    torch.testing.assert_close(measure(probabilities, targets, copies[2]), expected[2], equal_nan=True)
    torch.testing.assert_close(
        measure(probabilities, targets, torch.ones(40)), measure(probabilities, targets), equal_nan=True
    )


def test_a_weight_of_a_study_holds_for_all_its_labels() -> None:
    probabilities, labels = multilabel(40)
    copies = torch.randint(0, 4, (5, 40), generator=torch.Generator().manual_seed(1))
    together = classification.all_measures(probabilities, labels, copies)
    for index, row in enumerate(copies):
        alone = classification.all_measures(probabilities.repeat_interleave(row, 0), labels.repeat_interleave(row, 0))
        for name, value in alone.items():
            torch.testing.assert_close(together[name][index], value, msg=f"{name}: {{}}".format)


# Edges


def test_an_absent_class_has_no_value_and_spares_the_others() -> None:
    probabilities, targets = multiclass(classes=4)
    kept = targets != 2
    probabilities, targets = probabilities[kept], targets[kept]
    assert classification.auc(probabilities, targets).isnan().tolist() == [False, False, True, False]
    assert classification.average_precision(probabilities, targets).isnan().tolist() == [False, False, True, False]
    values = classification.all_measures(probabilities, targets)
    undefined = {name for name, value in values.items() if value.isnan()}
    assert undefined == {"auc_macro", "auc_macro_ovo", "balanced_accuracy"}


def test_one_class_alone_and_no_study_at_all() -> None:
    probabilities = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    targets = torch.tensor([0, 0])
    assert classification.auc(probabilities, targets).isnan().all()
    assert classification.accuracy(probabilities, targets).item() == 0.5
    for name, value in classification.all_measures(probabilities[:0], targets[:0]).items():
        assert value.isnan().item(), name
    assert classification.confusion_matrix(probabilities[:0], targets[:0]).tolist() == [[0, 0], [0, 0]]


def test_one_column_is_a_yes_or_no_question() -> None:
    probabilities, labels = multilabel(classes=1)
    assert (
        classification.auc_macro(probabilities, labels).item() == classification.auc_micro(probabilities, labels).item()
    )
    with pytest.raises(InputError, match="at least 2 classes"):
        classification.auc_macro(torch.ones(3, 1), torch.zeros(3, dtype=torch.long), scheme="ovo")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_probabilities_go_in_and_float64_comes_out(dtype: torch.dtype) -> None:
    probabilities, targets = multiclass()
    for name, value in classification.all_measures(probabilities.to(dtype), targets.int()).items():
        assert value.dtype == torch.float64, name
        assert not value.isnan(), name


probabilities, targets = multiclass(8)
refused: list[tuple[Callable[[], object], str]] = [
    (lambda: classification.auc(probabilities[0], targets), r"probabilities have shape \(3,\)"),
    (lambda: classification.auc(probabilities, targets[:5]), r"targets have shape \(5,\)"),
    (lambda: classification.auc(probabilities, targets.double()), "give 8 class indices"),
    (lambda: classification.auc(probabilities, targets + 1), "targets run from 1 to 3 with 3 columns"),
    (lambda: classification.auc(probabilities, sure(targets) + 1), "multilabel targets hold"),
    (lambda: classification.auc(probabilities / 0 * 0, targets), "probabilities of study 0 are NaN"),
    (lambda: classification.brier(probabilities.log(), targets), "apply softmax"),
    (lambda: classification.nll(probabilities / 2, targets), "sum to 0.5, expected 1"),
    (lambda: classification.ece(probabilities, targets, bins=0), "bins is 0"),
    (lambda: classification.ece(probabilities, targets, scheme="log"), "scheme is 'log'"),
    (lambda: classification.auc_macro(probabilities, targets, scheme="x"), "scheme is 'x'"),
    (lambda: classification.auc_macro(probabilities, sure(targets), scheme="ovo"), "targets are multilabel"),
    (lambda: classification.confusion_matrix(probabilities, sure(targets)), "targets are multilabel"),
    (lambda: classification.auc(probabilities, targets, torch.ones(5)), r"weights have shape \(5,\)"),
    (lambda: classification.auc(probabilities, targets, -torch.ones(8)), "weights hold -1"),
    (lambda: classification.rank_auc(probabilities[:, 0], targets), "one bool per study"),
    (lambda: classification.roc_curve(probabilities[:, 0] * torch.nan, targets == 0), "score of study 0 is NaN"),
]


@pytest.mark.parametrize(("call", "sentence"), refused)
def test_bad_input_is_refused_in_one_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()
