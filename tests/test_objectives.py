from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from radgaze.errors import InputError
from radgaze.models import GazeCAM, Output
from radgaze.objectives import (
    CamLoss,
    ClassifierObjective,
    Distilled,
    GazeCAMObjective,
    MTUNetObjective,
    Scheme,
    Supervised,
    cam_loss,
    class_loss,
    distillation_loss,
    saliency_kld,
    supervised_cam,
    uncertainty_weighted,
)


@dataclass
class Studies:
    targets: Tensor
    attention: Tensor | None
    has_attention: Tensor
    teacher: Tensor | None = None


@pytest.fixture
def studies() -> Studies:
    torch.manual_seed(0)
    return Studies(torch.tensor([0, 2, 1]), torch.rand(3, 4, 5), torch.tensor([True, True, True]))


@pytest.fixture
def output() -> Output:
    torch.manual_seed(1)
    return Output(torch.randn(3, 3, requires_grad=True), torch.randn(3, 4, 5, requires_grad=True))


def test_kld_equals_scipy(studies: Studies, output: Output) -> None:
    term = saliency_kld(output.saliency_logits, studies.attention, studies.has_attention)
    for i in range(3):
        target = studies.attention[i].double().numpy().ravel()
        target /= target.sum()
        prediction = np.exp(log_softmax(output.saliency_logits[i].detach().double().numpy().ravel()))
        assert term.values[i].item() == pytest.approx(rel_entr(target, prediction).sum(), rel=1e-5)


def test_kld_is_zero_at_the_target_and_defined_where_nobody_looked() -> None:
    attention = torch.tensor([[[0.0, 1.0], [3.0, 0.0]]])
    term = saliency_kld((attention + 1e-30).log(), attention, torch.tensor([True]))
    assert term.mean.item() == pytest.approx(0.0, abs=1e-6)


def test_studies_without_gaze_or_label_do_not_count(studies: Studies, output: Output) -> None:
    studies.attention[1] = 0.0  # an empty map
    studies.has_attention[2] = False
    term = saliency_kld(output.saliency_logits, studies.attention, studies.has_attention)
    alone = saliency_kld(output.saliency_logits[:1], studies.attention[:1], studies.has_attention[:1])
    torch.testing.assert_close(term.mean, alone.mean)

    studies.targets[0] = -1
    some = class_loss(output.logits, studies.targets)
    torch.testing.assert_close(some.mean, class_loss(output.logits[1:], studies.targets[1:]).mean)


def test_a_batch_with_nothing_known_gives_zero_and_finite_gradients(studies: Studies, output: Output) -> None:
    studies.targets[:] = -1
    studies.has_attention[:] = False
    objective = MTUNetObjective("equal")
    loss = objective.combine({k: t.mean for k, t in objective.terms(output, studies).items()})
    loss.backward()
    assert loss.item() == 0
    assert output.logits.grad.abs().sum() == 0
    assert output.saliency_logits.grad.abs().sum() == 0


def test_cross_entropy_and_masked_binary_cross_entropy(output: Output) -> None:
    targets = torch.tensor([[1.0, 0.0, math.nan], [math.nan] * 3, [0.0, 1.0, 1.0]])
    term = class_loss(output.logits, targets)
    p = output.logits.detach().double().sigmoid()
    first = -(p[0, 0].log() + (1 - p[0, 1]).log()) / 2
    third = -((1 - p[2, 0]).log() + p[2, 1].log() + p[2, 2].log()) / 3
    assert term.used.tolist() == [True, False, True]
    assert term.mean.item() == pytest.approx(((first + third) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("scheme", get_args(Scheme))
@pytest.mark.parametrize("half", [True, False])
def test_schemes_follow_their_equation(scheme: Scheme, half: bool, studies: Studies, output: Output) -> None:
    objective = MTUNetObjective(scheme, half)
    with torch.no_grad():
        objective.log_sigma_class.fill_(0.3)
    if scheme == "uncertainty":
        with torch.no_grad():
            objective.log_sigma_saliency.fill_(-0.2)
    means = {name: term.mean for name, term in objective.terms(output, studies).items()}
    loss = objective.combine(means).item()
    lc = torch.nn.functional.cross_entropy(output.logits, studies.targets).item()
    ls = means["saliency"].item() if "saliency" in means else 0.0
    sc, ss = math.exp(0.3), math.exp(-0.2) if scheme == "uncertainty" else 1.0
    factor = 0.5 if half else 1.0
    expected = {
        "equal": lc + ls,
        "saliency-only": ls,
        "class-only": lc,
    }.get(scheme, lc / sc**2 + math.log(sc + 1) + factor * ls / ss**2 + math.log(ss + 1))
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("scheme", "trained"),
    [("equal", 0), ("saliency-only", 0), ("class-only", 0), ("uncertainty-class", 1), ("uncertainty", 2)],
)
def test_which_sigmas_are_trained(scheme: Scheme, trained: int) -> None:
    assert sum(p.requires_grad for p in MTUNetObjective(scheme).parameters()) == trained


def test_sigma_settles_where_the_derivative_vanishes() -> None:
    """dL/ds = -2 L_c / s^3 + 1 / (s + 1) = 0."""
    log_sigma = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_sigma], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = uncertainty_weighted(torch.tensor(0.7), log_sigma)
        loss.backward()
        return loss

    optimizer.step(closure)
    sigma = log_sigma.exp().item()
    assert 2 * 0.7 * (sigma + 1) == pytest.approx(sigma**3, rel=1e-2)


def test_released_starting_values_stay_finite_in_float32() -> None:
    for log_sigma in (7.0, -16.0):
        value = uncertainty_weighted(torch.tensor(1.0), torch.tensor(log_sigma))
        assert torch.isfinite(value)


def test_misspelt_scheme() -> None:
    with pytest.raises(InputError, match="'uncertainty-class'"):
        MTUNetObjective("uncertainty-clas")  # type: ignore[arg-type]


# GG-CAM --------------------------------------------------------------------------------------------------------------

RELEASED = [(7.0, -23.0, 5e-3), (7.0, -16.0, 6e-3)]


@pytest.fixture
def mapped() -> Output:
    torch.manual_seed(2)
    cams = torch.randn(3, 3, 4, 5, requires_grad=True)
    return Output(logits=cams.mean((2, 3)), cams=cams)


def total(objective: GazeCAMObjective, output: Output, studies: Studies) -> Tensor:
    return objective.combine({name: term.mean for name, term in objective.terms(output, studies).items()})


def test_gg_cam_follows_its_equation(studies: Studies, mapped: Output) -> None:
    objective = GazeCAMObjective(log_sigma_class=0.3, log_sigma_attention=-0.4, log_scale=0.7)
    maps = mapped.cams.detach().double().numpy()
    squares = []
    for study, label in enumerate([0, 2, 1]):
        target = studies.attention[study].double().numpy()
        squares.append(((1 / (1 + np.exp(-np.exp(0.7) * maps[study, label])) - target / target.max()) ** 2).mean())
    lc = torch.nn.functional.cross_entropy(mapped.logits, studies.targets).item()
    expected = lc / math.exp(0.3) ** 2 + math.log(math.exp(0.3) + 1)
    expected += np.mean(squares) / (2 * math.exp(-0.4) ** 2) + math.log(math.exp(-0.4) + 1)
    assert total(objective, mapped, studies).item() == pytest.approx(expected, rel=1e-5)


def test_only_the_true_classs_cam_and_the_scale_learn_from_attention(studies: Studies, mapped: Output) -> None:
    """The released code's defect: class 0's CAM supervised for every study, and k without a gradient."""
    objective = GazeCAMObjective()
    objective.terms(mapped, studies)["attention"].mean.backward()
    touched = mapped.cams.grad.abs().sum((2, 3)) > 0
    assert torch.equal(touched, torch.nn.functional.one_hot(studies.targets, 3).bool())
    assert objective.log_scale.grad.abs() > 0


def test_three_trained_scalars_more_than_the_classifier() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    assert count(GazeCAMObjective()) == 3
    assert count(ClassifierObjective()) == 0


def test_control_is_the_class_term_alone(studies: Studies, mapped: Output) -> None:
    control, guided = ClassifierObjective(), GazeCAMObjective()
    terms = control.terms(mapped, studies)
    assert list(terms) == ["class"]
    loss = control.combine({"class": terms["class"].mean})
    assert loss == guided.terms(mapped, studies)["class"].mean


def test_studies_without_gaze_contribute_the_class_term_only(studies: Studies, mapped: Output) -> None:
    studies.has_attention[1] = False
    studies.attention[2] = 0.0
    terms = GazeCAMObjective().terms(mapped, studies)
    assert terms["attention"].used.tolist() == [True, False, False]
    assert terms["class"].used.all()
    terms["attention"].mean.backward()
    assert mapped.cams.grad[1:].abs().sum() == 0
    assert mapped.cams.grad[0].abs().sum() > 0


def test_an_unlabelled_study_has_no_true_class_to_guide(studies: Studies, mapped: Output) -> None:
    studies.targets[0] = -1
    used = GazeCAMObjective().terms(mapped, studies)["attention"].used
    assert used.tolist() == [False, True, True]
    used = GazeCAMObjective(supervise="predicted-class").terms(mapped, studies)["attention"].used
    assert used.all()


def test_which_cam_is_supervised(mapped: Output) -> None:
    cams = mapped.cams
    one = torch.tensor([0, 2, 1])
    several = torch.tensor([[1.0, 0.0, 1.0], [math.nan, 1.0, 0.0], [0.0, math.nan, 0.0]])
    torch.testing.assert_close(supervised_cam(mapped, one, "true-class")[0], cams[torch.arange(3), one])
    mean, used = supervised_cam(mapped, several, "true-class")
    torch.testing.assert_close(mean[0], (cams[0, 0] + cams[0, 2]) / 2)
    torch.testing.assert_close(mean[1], cams[1, 1])
    assert used.tolist() == [True, True, False]
    predicted, _ = supervised_cam(mapped, one, "predicted-class")
    torch.testing.assert_close(predicted, cams[torch.arange(3), mapped.logits.argmax(1)])
    torch.testing.assert_close(supervised_cam(mapped, one, "class-agnostic")[0], cams.mean(1))
    torch.testing.assert_close(supervised_cam(mapped, one, "decision")[0], cams.std(1, correction=0))
    torch.testing.assert_close(supervised_cam(mapped, several, "decision")[0], cams.square().mean(1).sqrt())


def test_a_map_that_all_classes_share_decides_nothing(mapped: Output) -> None:
    """Adding one map to all classes changes no probability, and not the decision map, but every class's own."""
    shared = 5 * torch.randn(3, 1, *mapped.cams.shape[2:])
    moved = Output(logits=mapped.logits + shared.mean((2, 3)), cams=mapped.cams + shared)
    labels = torch.tensor([0, 1, 2])
    torch.testing.assert_close(moved.logits.softmax(1), mapped.logits.softmax(1))
    ours, theirs = (supervised_cam(output, labels, "decision")[0] for output in (mapped, moved))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(supervised_cam(moved, labels, "true-class")[0], mapped.cams[range(3), range(3)])


@pytest.mark.parametrize("supervise", ["true-class", "decision"])
def test_cam_losses_equal_scipy_and_numpy(supervise: Supervised) -> None:
    torch.manual_seed(3)
    cam, attention = torch.randn(2, 4, 5), torch.rand(2, 4, 5)
    cam = cam.abs() if supervise == "decision" else cam
    has, log_scale = torch.ones(2, dtype=torch.bool), torch.tensor(0.5)
    for study in range(2):
        p = 1 / (1 + np.exp(-np.exp(0.5) * cam[study].double().numpy().ravel()))
        p = 2 * p - 1 if supervise == "decision" else p
        q = attention[study].double().numpy().ravel()
        expected = {
            "mse": ((p - q / q.max()) ** 2).mean(),
            "kld": rel_entr(q / q.sum(), p / p.sum()).sum(),
            "1-cc": 1 - np.corrcoef(p, q)[0, 1],
        }
        for loss in get_args(CamLoss):
            value = cam_loss(cam, log_scale, attention, has, loss, supervise).values[study].item()
            assert value == pytest.approx(expected[loss], rel=1e-4)


@pytest.mark.parametrize("supervise", get_args(Supervised))
@pytest.mark.parametrize("loss", get_args(CamLoss))
def test_flat_maps_and_empty_targets_give_finite_gradients(loss: CamLoss, supervise: Supervised) -> None:
    cams = torch.zeros(3, 3, 2, 2, requires_grad=True)
    cam, _ = supervised_cam(Output(logits=torch.zeros(3, 3), cams=cams), torch.tensor([0, 1, 2]), supervise)
    log_scale = torch.zeros((), requires_grad=True)
    attention = torch.stack([torch.ones(2, 2), torch.zeros(2, 2), torch.eye(2)])
    term = cam_loss(cam, log_scale, attention, torch.ones(3, dtype=torch.bool), loss, supervise)
    assert term.used.tolist() == [loss != "1-cc", False, True]
    term.mean.backward()
    assert term.values.isfinite().all()
    assert cams.grad.isfinite().all()
    assert log_scale.grad.isfinite()


@pytest.mark.parametrize(("log_class", "log_attention", "rate"), RELEASED)
@pytest.mark.parametrize("supervise", get_args(Supervised))
def test_released_starts_train_in_float32(
    log_class: float, log_attention: float, rate: float, supervise: Supervised
) -> None:
    """Loss, gradients and Adam's squared gradients stay finite, and all three scalars move the right way."""
    torch.manual_seed(0)
    network, objective = GazeCAM("resnet10t"), GazeCAMObjective(log_class, log_attention, supervise=supervise)
    everything = [*network.parameters(), *objective.parameters()]
    optimizer = torch.optim.Adam(everything, lr=rate)
    batch = Studies(torch.tensor([0, 1, 2, 0]), torch.rand(4, 2, 2), torch.ones(4, dtype=torch.bool))
    images = torch.rand(4, 1, 64, 64)
    for _ in range(3):
        optimizer.zero_grad()
        loss = total(objective, network(images), batch)
        assert loss.isfinite()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in everything)
        optimizer.step()
    assert all(slot.isfinite().all() for state in optimizer.state.values() for slot in state.values())
    assert objective.log_sigma_class < log_class
    assert objective.log_sigma_attention > log_attention
    assert objective.log_scale != 0


def test_gradient_of_the_heaviest_weight_is_exact() -> None:
    log_sigma = torch.tensor(-23.0, requires_grad=True)
    uncertainty_weighted(torch.tensor(0.5), log_sigma, 0.5).backward()
    assert log_sigma.grad.item() == pytest.approx(-0.5 * math.exp(46), rel=1e-4)


def test_scalars_are_logged_with_the_weights_they_make() -> None:
    scalars = GazeCAMObjective(7.0, -16.0, 0.5).scalars()
    assert scalars["weight_class"] == pytest.approx(1 / scalars["sigma_class"] ** 2)
    assert scalars["weight_attention"] == pytest.approx(1 / (2 * scalars["sigma_attention"] ** 2))
    assert scalars["cam_scale"] == pytest.approx(math.exp(0.5))


def test_gg_cam_refusals(studies: Studies, output: Output, mapped: Output) -> None:
    with pytest.raises(InputError, match="'true-class'"):
        GazeCAMObjective(supervise="true")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mse"):
        GazeCAMObjective(loss="l2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="log_sigma_attention=-40"):
        GazeCAMObjective(log_sigma_attention=-40)
    with pytest.raises(InputError, match="CAM head"):
        GazeCAMObjective().terms(output, studies)
    studies.attention = torch.rand(3, 8, 10)
    with pytest.raises(InputError, match="attention_size"):
        GazeCAMObjective().terms(mapped, studies)
    studies.attention = None
    with pytest.raises(InputError, match="train the method classifier"):
        GazeCAMObjective().terms(mapped, studies)


# Distillation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_equals_torchs_divergence(temperature: float) -> None:
    torch.manual_seed(4)
    logits, teacher = 3 * torch.randn(5, 3), 3 * torch.randn(5, 3)
    expected = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="none"
    ).sum(1)
    found = distillation_loss(logits, teacher, temperature)
    torch.testing.assert_close(found, temperature**2 * expected)
    assert (found > 0).all()
    shifted = distillation_loss(teacher + 7, teacher, temperature)  # softmax does not see a shared shift
    torch.testing.assert_close(shifted, torch.zeros(5), rtol=0, atol=1e-4)


def test_distillation_of_several_labels_equals_scipy() -> None:
    torch.manual_seed(5)
    logits, teacher = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (1 / (1 + np.exp(-values.double().numpy() / 3)) for values in (teacher, logits))
    expected = 9 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean(1)
    np.testing.assert_allclose(distillation_loss(logits, teacher, 3.0, exclusive=False), expected, rtol=1e-4)
    same = distillation_loss(teacher, teacher, 3.0, exclusive=False)
    torch.testing.assert_close(same, torch.zeros(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_gradient_does_not_fade_with_the_temperature(exclusive: bool) -> None:
    """For T far above the scores' range it is that of half the squared difference of (centred) scores, per class."""
    torch.manual_seed(6)
    teacher = torch.randn(4, 3)
    gradients = []
    for temperature in (50.0, 500.0):
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(7)).requires_grad_()
        distillation_loss(logits, teacher, temperature, exclusive).sum().backward()
        gradients.append(logits.grad)
    difference = logits.detach() - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / 3 if exclusive else difference / 4 / 3
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0.02)
    torch.testing.assert_close(gradients[1], limit, rtol=0, atol=5e-3)


def test_extreme_scores_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for exclusive in (True, False):
        value = distillation_loss(logits, -logits.detach(), 1.0, exclusive).sum()
        assert value.isfinite()
        assert value > 1e3
        value.backward()
    assert logits.grad.isfinite().all()


def test_labels_and_teacher_share_the_class_term(studies: Studies, mapped: Output) -> None:
    objective = Distilled(GazeCAMObjective(), weight=0.3, temperature=2.0)
    studies.teacher = torch.randn(3, 3)
    plain, terms = GazeCAMObjective().terms(mapped, studies), objective.terms(mapped, studies)
    expected = 0.7 * plain["class"].values + 0.3 * distillation_loss(mapped.logits, studies.teacher, 2.0)
    torch.testing.assert_close(terms["class"].values, expected)
    torch.testing.assert_close(terms["attention"].values, plain["attention"].values)
    means = {name: term.mean for name, term in terms.items()}
    torch.testing.assert_close(objective.combine(means), GazeCAMObjective().combine(means))
    studies.teacher = None  # validation
    assert torch.equal(objective.terms(mapped, studies)["class"].values, plain["class"].values)


def test_a_study_without_a_label_learns_from_the_teacher_alone(studies: Studies, mapped: Output) -> None:
    studies.targets[1] = -1
    studies.teacher = torch.randn(3, 3)
    term = Distilled(ClassifierObjective(), weight=0.5, temperature=1.0).terms(mapped, studies)["class"]
    assert term.used.all()
    expected = distillation_loss(mapped.logits, studies.teacher, 1.0)[1] / 2
    torch.testing.assert_close(term.values[1], expected)


def test_several_labels_are_distilled_one_by_one(studies: Studies, mapped: Output) -> None:
    studies.targets = torch.tensor([[1.0, 0.0, math.nan], [math.nan] * 3, [0.0, 1.0, 1.0]])
    studies.teacher = torch.randn(3, 3)
    term = Distilled(ClassifierObjective(), weight=1.0, temperature=2.0).terms(mapped, studies)["class"]
    torch.testing.assert_close(term.values, distillation_loss(mapped.logits, studies.teacher, 2.0, exclusive=False))


def test_distilling_keeps_the_objectives_own_ways(studies: Studies, mapped: Output) -> None:
    inner = GazeCAMObjective(0.1, -0.2, 0.3)
    objective = Distilled(inner, 0.5, 2.0)
    assert (objective.needs_attention, objective.needs_labels) == (True, True)
    assert objective.scalars() == inner.scalars()
    assert torch.equal(objective.predicted_attention(mapped, studies), inner.predicted_attention(mapped, studies))
    assert len(list(objective.parameters())) == 3
