"""Runs of untrained networks, for what does not depend on what a network has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radgaze.cohort import Cohort
from radgaze.files import read_sealed, write_sealed
from radgaze.models import Network, parameters
from radgaze.training import Run, fit
from tests.runs import replace_weights

RECIPE: dict[str, Any] = {
    "epochs": 2, "batch_size": 4, "schedule": "one-cycle", "learning_rate": 2e-3, "precision": "fp32"
}  # fmt: skip


def run_of(network: Network, like: Run, path: Path) -> Run:
    """The folder of a run whose training left ``network``; everything else is as in another run."""
    path.mkdir()
    content = read_sealed(like.path / "config.json", "a run")
    write_sealed(path / "config.json", content | {"network": network.config, "parameters": parameters(network)})
    (path / "state.json").write_bytes((like.path / "state.json").read_bytes())
    replace_weights(path, network.state_dict())
    return Run.open(path)


def trained(cohort: Cohort, path: Path, method: str = "mt-unet", **model: Any) -> Run:
    return fit(cohort, path, method, model=model or {"width": 4}, progress=False, **RECIPE)
