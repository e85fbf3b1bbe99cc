"""The measures by name: what each is called, what it means, and which direction is better.

One table serves the report's columns, its arrows and its glossary, so that a measure is explained in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BASELINES", "GLOSSARY", "LOCATED", "PREFIXES", "Measure", "base_key", "describe", "is_bounded", "place"]


@dataclass(frozen=True)
class Measure:
    """One measure as a reader of the report meets it.

    ``better`` is the direction of a better model; ``chance`` is the value of a model that knows nothing,
    where there is one.
    """

    key: str
    name: str
    better: Literal["higher", "lower"] | None
    span: str
    definition: str
    chance: float | None = None
    units: str = ""

    @property
    def arrow(self) -> str:
        """``↑`` or ``↓``: the direction of a better value."""
        return {"higher": "↑", "lower": "↓", None: ""}[self.better]

    @property
    def phrase(self) -> str:
        """The name within a sentence: ``macro AUC``, ``AUC of CHF``, ``pointing game (CAM)``."""
        head, colon, tail = self.name.partition(": ")
        if not colon:
            return _uncapitalised(self.name)
        return f"{head} of {tail}" if head == "AUC" else f"{tail} ({head})"


_SALIENCY = (
    Measure(
        "kld",
        "KLD",
        "lower",
        "0 to ∞",
        "Kullback–Leibler divergence of the reader's map Q from the prediction P, both summing to 1: Σ Q·ln(Q / P).",
        units="nats",
    ),
    Measure("cc", "CC", "higher", "−1 to 1", "Pearson correlation of predicted and reader's map over the pixels.", 0.0),
    Measure(
        "sim",
        "SIM",
        "higher",
        "0 to 1",
        "Histogram similarity: Σ min(P, Q) of the two maps, each summing to 1 (the papers call it HS).",
    ),
    Measure(
        "nss",
        "NSS",
        "higher",
        "unbounded",
        "Normalised scanpath saliency: the prediction, standardised to mean 0 and SD 1, averaged over fixated pixels.",
        0.0,
        units="SD",
    ),
    Measure(
        "auc_judd",
        "AUC-Judd",
        "higher",
        "0 to 1",
        "Probability that a fixated pixel is predicted higher than a pixel nobody fixated.",
        0.5,
    ),
    Measure(
        "shuffled_auc",
        "Shuffled AUC",
        "higher",
        "0 to 1",
        "As AUC-Judd, against fixations of other studies: a map that only knows where readers tend to look gets 0.5.",
        0.5,
    ),
    Measure(
        "information_gain",
        "Information gain",
        "higher",
        "unbounded",
        "Mean log₂ of how much likelier the prediction makes each fixation than the baseline map does.",
        0.0,
        units="bits",
    ),
)

_LOCALISATION = (
    Measure(
        "pointing_game",
        "Pointing game",
        "higher",
        "0 to 1",
        "Share of studies where any pixel of the class's structures lies in the 3×3 cells around the peak of the true "
        "class's map.",
    ),
    Measure(
        "energy_inside",
        "Energy inside",
        "higher",
        "0 to 1",
        "Share of the true class's positive activation that lies inside the class's structures.",
    ),
    Measure(
        "iou",
        "IoU",
        "higher",
        "0 to 1",
        "Overlap, intersection over union, of the structures and the region where the activation reaches half its "
        "maximum.",
    ),
)

_CLASSIFICATION = (
    Measure(
        "auc_macro",
        "Macro AUC",
        "higher",
        "0 to 1",
        "Area under the ROC curve, one class against the rest, averaged over classes with equal weight.",
        0.5,
    ),
    Measure(
        "auc_macro_ovo",
        "Macro AUC, one against one",
        "higher",
        "0 to 1",
        "Area under the ROC curve averaged over all pairs of classes: unaffected by how common each class is.",
        0.5,
    ),
    Measure(
        "auc_micro",
        "Micro AUC",
        "higher",
        "0 to 1",
        "Area under one ROC curve of all class decisions pooled: common classes weigh more.",
        0.5,
    ),
    Measure("auc", "AUC", "higher", "0 to 1", "Area under one class's ROC curve, that class against the rest.", 0.5),
    Measure(
        "accuracy",
        "Accuracy",
        "higher",
        "0 to 1",
        "Share of studies whose likeliest class is the true one (multilabel: share of labels right at 0.5).",
    ),
    Measure(
        "balanced_accuracy",
        "Balanced accuracy",
        "higher",
        "0 to 1",
        "Accuracy within each class, averaged over the classes with equal weight.",
    ),
    Measure(
        "ece",
        "ECE",
        "lower",
        "0 to 1",
        "Expected calibration error: mean gap of confidence and accuracy over bins of confidence, weighted by studies.",
    ),
    Measure(
        "brier",
        "Brier score",
        "lower",
        "0 to 2",
        "Mean squared distance of the probabilities from the truth, summed over classes (multilabel: averaged).",
    ),
    Measure(
        "nll",
        "NLL",
        "lower",
        "0 to ∞",
        "Negative log-likelihood of the truth (cross entropy).",
        units="nats",
    ),
)

GLOSSARY: dict[str, Measure] = {measure.key: measure for measure in (*_CLASSIFICATION, *_SALIENCY, *_LOCALISATION)}
"""Every known measure by its key in ``report.json``, in the order in which tables show them."""

BASELINES: dict[str, str] = {
    "mean map": "the average reader's map over the training studies, the same for every image",
    "centre": "a Gaussian at the image centre, the same for every image",
    "uniform": "equal attention everywhere",
}
"""Attention baselines by name: maps that never look at the image they are scored on."""

LOCATED: dict[str, str] = {"model": "CAM", "decision": "Decision map", "grad-cam": "Grad-CAM"}
"""What the maps in ``report["localisation"]`` are called: the true class's own, the classes' difference, Grad-CAM."""


PREFIXES: dict[str, tuple[str, str]] = {
    "auc": ("AUC", "Area under one class's ROC curve, that class against the rest."),
    "saliency": ("Attention", "The predicted attention map, against the attention target."),
    "cam": ("CAM", "The network's own class activation map of the true class."),
    "decision": ("Decision map", "By how much the classes' activation maps differ: where the network decides."),
    "grad_cam": ("Grad-CAM", "The activation map that gradients give for the true class, for networks of any kind."),
}
"""What a measure is taken of, by the prefix of its flat key (``cam:iou``): a name and a definition.

After ``auc:`` stands a class, after the others a measure of the glossary.
"""


def describe(key: str) -> Measure:
    """The measure called ``key``, bare (``cc``) or flat (``saliency:cc``, ``auc:CHF``).

    A flat key takes the direction and definition of its base measure. One this table lacks is named after its key and
    claims no direction.
    """
    if key in GLOSSARY:
        return GLOSSARY[key]
    prefix, _, rest = key.partition(":")
    if rest and prefix == "auc":
        return replace(GLOSSARY["auc"], key=key, name=f"AUC: {rest}")
    if rest and prefix in PREFIXES:
        base = describe(rest)
        return replace(base, key=key, name=f"{PREFIXES[prefix][0]}: {_uncapitalised(base.name)}")
    return Measure(key, key.replace("_", " ").capitalize(), None, "", "")


def base_key(key: str) -> str:
    """The glossary's key of a flat one: ``cc`` of ``saliency:cc``, ``auc`` of ``auc:CHF``."""
    prefix, _, rest = key.partition(":")
    return "auc" if rest and prefix == "auc" else rest if rest and prefix in PREFIXES else key


def place(key: str) -> tuple[int, int]:
    """Where a key stands among others: bare measures, then by prefix, in the glossary's order; unknown ones last."""
    base, prefix = base_key(key), key.partition(":")[0]
    order = list(GLOSSARY).index(base) if base in GLOSSARY else len(GLOSSARY)
    if base == key:
        return (0 if base in GLOSSARY else len(PREFIXES) + 1, order)
    return 1 + list(PREFIXES).index(prefix), order


def is_bounded(key: str) -> bool:
    """Whether ``key`` cannot exceed 1 (AUC, CC, SIM, ...), so that several of its kind may share one axis."""
    return describe(key).span.endswith(" to 1")


def _uncapitalised(name: str) -> str:
    """A name within a sentence: ``Pointing game`` loses its capital, ``IoU`` and ``AUC-Judd`` keep theirs."""
    return name[:1].lower() + name[1:] if name.partition(" ")[0][1:].islower() and name != "Brier score" else name
