"""A method is a network, an objective and a recipe. A new method is one more entry in :data:`METHODS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from radgaze.cohort import Cohort
from radgaze.errors import InputError, nearest
from radgaze.models import Output
from radgaze.models.mt_unet import MTUNet
from radgaze.objectives import MTUNetObjective, Supervision, Term
from radgaze.training.config import RunConfig

__all__ = ["METHODS", "Method", "Objective", "find_method", "network_config", "resolve"]


class Objective(Protocol):
    """What the trainer asks of an objective (a module, because it may hold trained scalars)."""

    needs_attention: bool
    needs_labels: bool

    def terms(self, output: Output, batch: Supervision) -> dict[str, Term]: ...
    def combine(self, means: dict[str, Tensor]) -> Tensor: ...
    def scalars(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Method:
    """How one method is set up.

    Attributes:
        name: As on the command line.
        network: Name of its network in ``radgaze.models.build.NETWORKS``.
        objective: Its objective; called with ``config.objective``.
        recipe: Settings that differ from the defaults of :class:`RunConfig`.
        summary: One line for help texts.
    """

    name: str
    network: str
    objective: type[nn.Module]
    summary: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


METHODS = {
    method.name: method
    for method in [
        Method(
            name="mt-unet",
            network=MTUNet.name,
            objective=MTUNetObjective,
            summary="one U-Net predicts attention and disease, weighted by uncertainty",
        )
    ]
}


def find_method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]


def resolve(method: str, settings: Mapping[str, Any]) -> RunConfig:
    """The full config of a run: the defaults, then the method's recipe, then the user's settings."""
    return RunConfig.parse({**find_method(method).recipe, **settings, "method": method})


def network_config(config: RunConfig, cohort: Cohort, *, with_classes: bool) -> dict[str, Any]:
    """Arguments for ``radgaze.models.build``: the run's, with the cohort's classes filled in."""
    return {
        "name": find_method(config.method).network,
        "num_classes": len(cohort.classes) if with_classes else 0,
        "in_channels": 1,
        **config.model,
    }
