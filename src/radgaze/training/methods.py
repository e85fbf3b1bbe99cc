"""A method is a network, an objective and a recipe. A new method is one more entry in :data:`METHODS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from radgaze.cohort import Cohort
from radgaze.errors import InputError, nearest
from radgaze.models import Output
from radgaze.models.gaze_cam import GazeCAM
from radgaze.models.mt_unet import MTUNet
from radgaze.objectives import ClassifierObjective, GazeCAMObjective, MTUNetObjective, Supervision, Term
from radgaze.training.config import Augmentation, RunConfig

__all__ = ["METHODS", "Method", "Objective", "find_method", "network_config", "resolve"]


class Objective(Protocol):
    """What the trainer asks of an objective (a module, because it may hold trained scalars)."""

    needs_attention: bool
    needs_labels: bool

    def terms(self, output: Output, batch: Supervision) -> dict[str, Term]: ...
    def combine(self, means: dict[str, Tensor]) -> Tensor: ...
    def predicted_attention(self, output: Output, batch: Supervision) -> Tensor | None: ...
    def scalars(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Method:
    """How one method is set up.

    Attributes:
        name: As on the command line.
        network: Name of its network in ``radgaze.models.build.NETWORKS``.
        objective: Its objective; called with ``config.objective``.
        summary: One line for help texts.
        recipe: Settings that differ from the defaults of :class:`RunConfig`.
        recipes: Named sets of settings on top of ``recipe``, such as the papers'.
    """

    name: str
    network: str
    objective: type[nn.Module]
    summary: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


CAM_RECIPE = {"preset": "gg-cam", "batch_size": 4, "learning_rate": 1e-3}


def released(guided: bool) -> dict[str, dict[str, Any]]:
    """The settings GG-CAM was published with; the control shares all but the objective's starting values."""
    starts = {
        "paper-resnet50": ("resnet50", 5e-3, {"log_sigma_class": 7.0, "log_sigma_attention": -23.0}),
        "paper-efficientnetv2-s": ("efficientnetv2_s", 6e-3, {"log_sigma_class": 7.0, "log_sigma_attention": -16.0}),
    }
    return {
        name: {
            "model": {"backbone": backbone},
            "objective": {**objective, "log_scale": 0.0} if guided else {},
            "optimizer": "adam",
            "learning_rate": rate,
            "batch_size": 4,
            "schedule": "plateau",
            "augmentation": Augmentation.none().model_dump(),
        }
        for name, (backbone, rate, objective) in starts.items()
    }


METHODS = {
    method.name: method
    for method in [
        Method(
            name="mt-unet",
            network=MTUNet.name,
            objective=MTUNetObjective,
            summary="one U-Net predicts attention and disease, weighted by uncertainty",
        ),
        Method(
            name="gg-cam",
            network=GazeCAM.name,
            objective=GazeCAMObjective,
            summary="a classifier whose class activation maps are guided by gaze",
            recipe=CAM_RECIPE,
            recipes=released(guided=True),
        ),
        Method(
            name="classifier",
            network=GazeCAM.name,
            objective=ClassifierObjective,
            summary="the same classifier without guidance, the control of gg-cam",
            recipe=CAM_RECIPE,
            recipes=released(guided=False),
        ),
    ]
}


def find_method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]


def resolve(method: str, settings: Mapping[str, Any]) -> RunConfig:
    """The full config of a run: the defaults, then the method's recipe, then the named one, then the user's settings.

    Arguments of the network and of the objective are merged one by one, so that a recipe keeps those not given.
    """
    found, name = find_method(method), settings.get("recipe")
    if name is not None and name not in found.recipes:
        hint = nearest(str(name), found.recipes) if found.recipes else "it has none but its defaults, so leave it out."
        raise InputError(f"The method {method!r} has no recipe {name!r}: {hint}")
    merged: dict[str, Any] = {}
    for layer in (found.recipe, found.recipes[name] if name is not None else {}, settings):
        for key, value in layer.items():
            together = key in ("model", "objective") and isinstance(value, Mapping)
            merged[key] = {**merged.get(key, {}), **value} if together else value
    return RunConfig.parse({**merged, "method": method})


def network_config(config: RunConfig, cohort: Cohort, *, with_classes: bool) -> dict[str, Any]:
    """Arguments for ``radgaze.models.build``: the run's, with the cohort's classes filled in."""
    return {
        "name": find_method(config.method).network,
        "num_classes": len(cohort.classes) if with_classes else 0,
        "in_channels": 1,
        **config.model,
    }
