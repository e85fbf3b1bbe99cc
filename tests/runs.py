"""Runs whose weights a test replaces: written as the training writes them, with their checksum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from radgaze.cohort.store import sha256
from radgaze.files import read_sealed, write_sealed
from radgaze.models.build import write_tensors


def replace_weights(run: Path, tensors: Mapping[str, Tensor]) -> None:
    """Give the run folder other weights, as if its training had left them."""
    write_tensors(tensors, run / "weights.safetensors")
    state = read_sealed(run / "state.json", "a run")
    write_sealed(run / "state.json", state | {"weights": sha256(run / "weights.safetensors")})
