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
from radgaze.models import Output
from radgaze.objectives import MTUNetObjective, Scheme, class_loss, saliency_kld, uncertainty_weighted


@dataclass
class Studies:
    targets: Tensor
    attention: Tensor | None
    has_attention: Tensor


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
