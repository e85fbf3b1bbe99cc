"""What networks are trained to minimise.

MT-UNet (Zhu, Rohling, Salcudean, arXiv 2202.07118) weighs its two losses by learned uncertainties:

    L = L_c / s_c^2 + ln(s_c + 1)  +  L_s / (2 s_s^2) + ln(s_s + 1),        s = exp(log s),  log s starts at 0

    L_c  cross entropy between the class scores and the label
    L_s  KLD(S || S^) = sum of S (ln S - ln S^) over all pixels, S the reader's attention map with sum 1

The paper's Eq. 5 is quoted elsewhere without the factor 1/2 on L_s; the released code has it. ``half`` chooses, and
follows the released code by default.

GG-CAM (Zhu, Salcudean, Rohling, arXiv 2202.07107) guides a classifier's class activation maps M by three scalars:

    L = L_c / s_c^2 + ln(s_c + 1)  +  L_d / (2 s_d^2) + ln(s_d + 1),        s = exp(log s),  k = exp(log k)

    L_d  MSE(sigmoid(k M_y), S) over the CAM's cells, M_y the true class's CAM, S the attention map divided by its
         maximum, on the CAM's grid; a study without attention has L_c alone

The released code applies the sigmoid and k to the label, so that class 0's CAM is supervised for every study and k
never learns. Here both act on the map, as the paper means. Other maps to supervise and other losses than the paper's
are choices of :class:`GazeCAMObjective`. One of them is this project's own, ``decision``: softmax sees only by how much
the classes differ, so the map that decides is their spread D, :func:`radgaze.models.output.decision_map`, and
P = 2 sigmoid(k D) - 1 is to follow S. Guiding M_y alone leaves the other classes' maps free, and a network may
decide by them wherever it likes; D is zero only where no class gains on another.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radgaze.errors import InputError, nearest
from radgaze.models.output import Output, decision_map

__all__ = [
    "CamLoss",
    "ClassifierObjective",
    "Distilled",
    "GazeCAMObjective",
    "MTUNetObjective",
    "Scheme",
    "Supervised",
    "Supervision",
    "Term",
    "cam_loss",
    "class_loss",
    "distillation_loss",
    "saliency_kld",
    "seen_as_attention",
    "supervised_cam",
    "uncertainty_weighted",
]

Scheme = Literal["equal", "uncertainty", "uncertainty-class", "saliency-only", "class-only"]
Supervised = Literal["true-class", "predicted-class", "class-agnostic", "decision"]
CamLoss = Literal["mse", "kld", "1-cc"]

# exp(2 * 24) / 2 = 3.5e20 is the heaviest weight whose gradient Adam can square in float32, where it keeps g^2 / 1000
LARGEST_LOG = 24.0


class Supervision(Protocol):
    """What an objective may ask of a batch of ``B`` studies."""

    targets: Tensor  # (B,) int64 with -1 unknown, or (B, C) float with NaN unknown (multi-label)
    attention: Tensor | None  # (B, h, w) non-negative
    has_attention: Tensor  # (B,) bool: studies whose attention map exists


class Term(NamedTuple):
    """One loss term, study by study, so that means over unequal batches and several machines stay exact.

    Attributes:
        values: ``(B,)`` loss of each study; 0 where the study lacks what the term needs.
        used: ``(B,)`` bool, the studies that have it.
    """

    values: Tensor
    used: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over the studies that have the term; 0 (with a gradient of 0) when there are none."""
        return self.values.sum() / self.used.sum().clamp(min=1)


def class_loss(logits: Tensor, targets: Tensor) -> Term:
    """Cross entropy over studies with a known label.

    Args:
        logits: ``(B, C)`` class scores.
        targets: ``(B,)`` int64 class indices with -1 for unknown: softmax cross entropy. Or ``(B, C)`` floats in [0, 1]
            with NaN for unknown: binary cross entropy, averaged over a study's known classes.
    """
    logits = logits.float()  # log-sum-exp loses digits in bf16
    if targets.ndim == 1:
        known = targets >= 0
        losses = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    else:
        labelled = ~targets.isnan()
        known = labelled.any(dim=1)
        each = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0).float(), reduction="none")
        losses = (each * labelled).sum(1) / labelled.sum(1).clamp(min=1)
    return Term(losses * known, known)


def saliency_kld(saliency_logits: Tensor, attention: Tensor, has_attention: Tensor) -> Term:
    """KLD(S || S^) in nats for the studies that have an attention map.

    Args:
        saliency_logits: ``(B, h, w)``; S^ is their softmax over all pixels.
        attention: ``(B, h, w)`` non-negative maps; each is divided by its own sum to give S.
        has_attention: ``(B,)`` bool; the other maps are not looked at.
    """
    log_prediction = torch.log_softmax(saliency_logits.float().flatten(1), dim=1)
    target = attention.float().flatten(1)
    mass = target.sum(1, keepdim=True)
    used = has_attention & (mass.squeeze(1) > 0)
    target = target / torch.where(mass > 0, mass, 1.0)
    # xlogy: a pixel nobody looked at contributes 0, not 0 * ln 0
    divergence = (torch.xlogy(target, target) - target * log_prediction).sum(1)
    return Term(divergence * used, used)


def uncertainty_weighted(loss: Tensor, log_sigma: Tensor, factor: float = 1.0) -> Tensor:
    """``factor * loss / s^2 + ln(s + 1)`` with ``s = exp(log_sigma)``.

    Never divided by s^2: at GG-CAM's released start, log s = -23, the derivative of that quotient by s^2 is of order
    1e40, beyond float32, although the one by log s is not.
    """
    return factor * loss * torch.exp(-2 * log_sigma) + F.softplus(log_sigma)


class MTUNetObjective(nn.Module):
    """The learning schemes of MT-UNet; ``log_sigma_class`` and ``log_sigma_saliency`` are trained as the scheme says.

    Args:
        scheme: ``"uncertainty-class"`` learns only s_c and keeps s_s = 1 (the paper's further optimised scheme);
            ``"uncertainty"`` learns both; ``"equal"`` is L_c + L_s; ``"saliency-only"`` and ``"class-only"`` are the
            single-task controls.
        half: Keep the released code's factor 1/2 on L_s in the uncertainty schemes.
    """

    def __init__(self, scheme: Scheme = "uncertainty-class", half: bool = True) -> None:
        super().__init__()
        if scheme not in get_args(Scheme):
            raise InputError(f"There is no learning scheme {scheme!r}: {nearest(scheme, get_args(Scheme))}")
        self.scheme = scheme
        self.saliency_factor = 0.5 if half else 1.0
        self.log_sigma_class = nn.Parameter(torch.zeros(()), requires_grad=scheme.startswith("uncertainty"))
        self.log_sigma_saliency = nn.Parameter(torch.zeros(()), requires_grad=scheme == "uncertainty")

    @property
    def needs_attention(self) -> bool:
        return self.scheme != "class-only"

    @property
    def needs_labels(self) -> bool:
        return self.scheme != "saliency-only"

    def terms(self, output: Output, batch: Supervision) -> dict[str, Term]:
        """The raw losses ``{"class": L_c, "saliency": L_s}`` that the scheme uses."""
        terms = {}
        if self.needs_labels:
            if output.logits is None:
                raise InputError(f"Scheme {self.scheme!r} needs class scores, but the network has no class head.")
            terms["class"] = class_loss(output.logits, batch.targets)
        if self.needs_attention:
            if output.saliency_logits is None or batch.attention is None:
                raise InputError(f"Scheme {self.scheme!r} needs a saliency head and attention maps; one is absent.")
            terms["saliency"] = saliency_kld(output.saliency_logits, batch.attention, batch.has_attention)
        return terms

    def combine(self, means: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise, from the mean of each term over a batch or a whole split."""
        if not self.scheme.startswith("uncertainty"):
            return torch.stack(list(means.values())).sum()
        return uncertainty_weighted(means["class"], self.log_sigma_class) + uncertainty_weighted(
            means["saliency"], self.log_sigma_saliency, self.saliency_factor
        )

    def predicted_attention(self, output: Output, batch: Supervision) -> Tensor | None:
        """The map ``(B, h, w)`` that is compared with the attention target, for the log."""
        return output.saliency() if self.needs_attention else None

    def scalars(self) -> dict[str, float]:
        """The state worth logging: ``sigma_class`` and ``sigma_saliency`` where the scheme has them."""
        if not self.scheme.startswith("uncertainty"):
            return {}
        return {
            "sigma_class": self.log_sigma_class.detach().exp().item(),
            "sigma_saliency": self.log_sigma_saliency.detach().exp().item(),
        }


def supervised_cam(output: Output, targets: Tensor, supervise: Supervised) -> tuple[Tensor, Tensor]:
    """The one map of each study that gaze supervises.

    Args:
        output: With logits ``(B, C)`` and CAMs ``(B, C, h, w)``.
        targets: ``(B,)`` int64 with -1 unknown, or ``(B, C)`` floats with NaN unknown.
        supervise: ``"true-class"`` (the paper): the label's CAM; of several present labels, the mean of their CAMs.
            ``"predicted-class"``: that of the highest logit, known without a label. ``"class-agnostic"``: the mean
            over all classes, which guides the features but, for labels that exclude each other, no decision.
            ``"decision"``: by how much the classes differ (:func:`decision_map`); non-negative, known without a label.

    Returns:
        ``(B, h, w)`` maps and ``(B,)`` bool: False where the study has no such class (unlabelled, or nothing present).
    """
    logits, cams = output.logits, output.cams
    if logits is None or cams is None:
        raise InputError("Guiding class activation maps needs a network with a CAM head; use the network gaze-cam.")
    if supervise == "class-agnostic":
        return cams.mean(1), torch.ones_like(cams[:, 0, 0, 0], dtype=torch.bool)
    if supervise == "decision":
        return decision_map(cams, exclusive=targets.ndim == 1), torch.ones_like(cams[:, 0, 0, 0], dtype=torch.bool)
    if supervise == "predicted-class":
        share = F.one_hot(logits.argmax(1), cams.shape[1])
    elif targets.ndim == 1:
        share = F.one_hot(targets.clamp(min=0), cams.shape[1]) * (targets >= 0)[:, None]
    else:
        share = targets.nan_to_num(0.0) >= 0.5
    number = share.sum(1)
    share = share / number.clamp(min=1)[:, None]
    return torch.einsum("bc,bchw->bhw", share.to(cams.dtype), cams), number > 0


def seen_as_attention(cam: Tensor, log_scale: Tensor, supervise: Supervised) -> Tensor:
    """The map P in [0, 1] that is compared with attention: sigmoid(k M), or 2 sigmoid(k D) - 1 of a decision map."""
    scaled = log_scale.exp() * cam.float()
    return (scaled / 2).tanh() if supervise == "decision" else scaled.sigmoid()  # tanh keeps the digits near 0


def cam_loss(
    cam: Tensor,
    log_scale: Tensor,
    attention: Tensor,
    has_attention: Tensor,
    loss: CamLoss = "mse",
    supervise: Supervised = "true-class",
) -> Term:
    """How far P, see :func:`seen_as_attention`, is from the attention map S of each study.

    Args:
        cam: ``(B, h, w)`` activation maps M, or decision maps D.
        log_scale: ``ln k``.
        attention: ``(B, h, w)`` non-negative maps on the same grid; each is divided by its own maximum to give S.
        has_attention: ``(B,)`` bool; the other maps are not looked at.
        loss: ``"mse"``: mean (P - S)^2 over cells (the paper). ``"kld"``: KLD(S || P) in nats, both with sum 1.
            ``"1-cc"``: one minus Pearson's correlation, not defined for a constant S, which is then not used.
        supervise: What kind of map ``cam`` is.
    """
    if cam.shape != attention.shape:
        raise InputError(
            f"The attention maps have shape {tuple(attention.shape)}, the CAMs {tuple(cam.shape)}; "
            "render attention on the network's attention_size."
        )
    prediction = seen_as_attention(cam, log_scale, supervise).flatten(1)
    target = attention.float().flatten(1)
    highest = target.amax(1)
    used = has_attention & (highest > 0)
    target = target / torch.where(highest > 0, highest, 1.0)[:, None]
    if loss == "mse":
        values = (prediction - target).square().mean(1)
    elif loss == "kld":
        if supervise == "decision":
            log_prediction = prediction.clamp(min=1e-12).log()
        else:
            log_prediction = F.logsigmoid(log_scale.exp() * cam.float().flatten(1))  # exact where the sigmoid is 0
        log_prediction = log_prediction - log_prediction.logsumexp(1, keepdim=True)
        density = target / target.sum(1, keepdim=True).clamp(min=1)  # a map with a maximum of 1 sums to 1 at least
        values = (torch.xlogy(density, density) - density * log_prediction).sum(1)
    else:
        prediction, centred = prediction - prediction.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
        used = used & (centred.abs().amax(1) > 0)
        # clamped before the root, whose slope at 0 is infinite: a flat CAM has correlation 0
        spread = (prediction.square().mean(1) * centred.square().mean(1)).clamp(min=1e-12).sqrt()
        values = 1 - (prediction * centred).mean(1) / spread
    return Term(torch.where(used, values, 0.0), used)


class GazeCAMObjective(nn.Module):
    """Classification and gaze-guided CAMs, weighed by two learned uncertainties; three trained scalars in all.

    Args:
        log_sigma_class: Starting value of log s_c.
        log_sigma_attention: Starting value of log s_d. The released 7 and -23 (ResNet50) or -16 (EfficientNetV2-S)
            make a curriculum: attention first, the class as the weights cross.
        log_scale: Starting value of log k.
        supervise: Which CAM is guided, see :func:`supervised_cam`.
        loss: How it is compared with the attention map, see :func:`cam_loss`.

    Raises:
        InputError: An unknown choice, or starting weights that float32 cannot hold.
    """

    needs_attention = True
    needs_labels = True

    def __init__(
        self,
        log_sigma_class: float = 0.0,
        log_sigma_attention: float = 0.0,
        log_scale: float = 0.0,
        supervise: Supervised = "true-class",
        loss: CamLoss = "mse",
    ) -> None:
        super().__init__()
        if supervise not in get_args(Supervised):
            raise InputError(f"There is no CAM to supervise {supervise!r}: {nearest(supervise, get_args(Supervised))}")
        if loss not in get_args(CamLoss):
            raise InputError(f"There is no CAM loss {loss!r}: {nearest(loss, get_args(CamLoss))}")
        for name, start in (
            ("log_sigma_class", log_sigma_class),
            ("log_sigma_attention", log_sigma_attention),
            ("log_scale", log_scale),
        ):
            if not abs(start) <= LARGEST_LOG:
                raise InputError(
                    f"{name}={start} makes weights that float32 cannot train with; start within +-{LARGEST_LOG:g}."
                )
        self.supervise, self.loss = supervise, loss
        self.log_sigma_class = nn.Parameter(torch.tensor(float(log_sigma_class)))
        self.log_sigma_attention = nn.Parameter(torch.tensor(float(log_sigma_attention)))
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))

    def terms(self, output: Output, batch: Supervision) -> dict[str, Term]:
        """The raw losses ``{"class": L_c, "attention": L_d}``."""
        if batch.attention is None:
            raise InputError(
                "GG-CAM needs an attention target; give gaze, mask:NAME or boxes, or train the method classifier."
            )
        cam, supervised = supervised_cam(output, batch.targets, self.supervise)
        assert output.logits is not None
        return {
            "class": class_loss(output.logits, batch.targets),
            "attention": cam_loss(
                cam, self.log_scale, batch.attention, batch.has_attention & supervised, self.loss, self.supervise
            ),
        }

    def combine(self, means: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise, from the mean of each term over a batch or a whole split."""
        return uncertainty_weighted(means["class"], self.log_sigma_class) + uncertainty_weighted(
            means["attention"], self.log_sigma_attention, factor=0.5
        )

    def predicted_attention(self, output: Output, batch: Supervision) -> Tensor | None:
        """P ``(B, h, w)`` in [0, 1], for the log; a study without the class to supervise has a flat map."""
        cam, _ = supervised_cam(output, batch.targets, self.supervise)
        return seen_as_attention(cam, self.log_scale, self.supervise)

    def scalars(self) -> dict[str, float]:
        """The three scalars, and the weights 1 / s_c^2 and 1 / (2 s_d^2) that they give the two terms."""
        log_class, log_attention = self.log_sigma_class.item(), self.log_sigma_attention.item()
        return {
            "sigma_class": math.exp(log_class),
            "sigma_attention": math.exp(log_attention),
            "cam_scale": self.log_scale.exp().item(),
            "weight_class": math.exp(-2 * log_class),
            "weight_attention": math.exp(-2 * log_attention) / 2,
        }


class ClassifierObjective(nn.Module):
    """L_c alone: the control of :class:`GazeCAMObjective`, without attention and without trained scalars."""

    needs_attention = False
    needs_labels = True

    def terms(self, output: Output, batch: Supervision) -> dict[str, Term]:
        """``{"class": L_c}``."""
        if output.logits is None:
            raise InputError("The classifier's objective needs class scores, but the network has no class head.")
        return {"class": class_loss(output.logits, batch.targets)}

    def combine(self, means: dict[str, Tensor]) -> Tensor:
        return means["class"]

    def predicted_attention(self, output: Output, batch: Supervision) -> Tensor | None:
        return None

    def scalars(self) -> dict[str, float]:
        return {}


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float, exclusive: bool = True) -> Tensor:
    """How far class scores are from a teacher's, both softened: ``T^2 KL(teacher / T || logits / T)``.

    Hinton, Vinyals, Dean, arXiv 1503.02531. The square keeps the gradient's size whatever the temperature.

    Args:
        logits, teacher: ``(B, C)`` class scores before softmax or sigmoid.
        temperature: ``T``, above 0.
        exclusive: Whether a study has one class (softmax), or several labels (the mean over a sigmoid each).

    Returns:
        ``(B,)`` in nats, not negative; 0 where both say the same.
    """
    logits, teacher = logits.float() / temperature, teacher.float() / temperature
    if exclusive:
        expected, said = teacher.log_softmax(1), logits.log_softmax(1)
        divergence = (expected.exp() * (expected - said)).sum(1)
    else:
        p = teacher.sigmoid()
        yes = F.logsigmoid(teacher) - F.logsigmoid(logits)
        no = F.logsigmoid(-teacher) - F.logsigmoid(-logits)
        divergence = (p * yes + (1 - p) * no).mean(1)
    return temperature**2 * divergence


class Distilled(nn.Module):
    """Another objective whose class term is shared between the labels and a teacher's scores.

        L_c = (1 - w) CE(label) + w T^2 KL(teacher / T || logits / T)

    A study without a label learns from the teacher alone; a batch without scores (validation) from the labels alone.

    Args:
        objective: The objective of the run's method.
        weight: ``w`` in [0, 1].
        temperature: ``T``, above 0.
    """

    def __init__(self, objective: Any, weight: float, temperature: float) -> None:
        super().__init__()
        self.objective, self.weight, self.temperature = objective, weight, temperature
        self.needs_attention: bool = objective.needs_attention
        self.needs_labels: bool = objective.needs_labels

    def terms(self, output: Output, batch: Any) -> dict[str, Term]:
        terms: dict[str, Term] = self.objective.terms(output, batch)
        if batch.teacher is None:
            return terms
        assert output.logits is not None
        of_teacher = distillation_loss(output.logits, batch.teacher, self.temperature, batch.targets.ndim == 1)
        of_labels = terms["class"].values
        values = (1 - self.weight) * of_labels + self.weight * of_teacher
        return {**terms, "class": Term(values, torch.ones_like(values, dtype=torch.bool))}

    def combine(self, means: dict[str, Tensor]) -> Tensor:
        return self.objective.combine(means)

    def predicted_attention(self, output: Output, batch: Any) -> Tensor | None:
        return self.objective.predicted_attention(output, batch)

    def scalars(self) -> dict[str, float]:
        return self.objective.scalars()
