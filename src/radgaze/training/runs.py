"""A run is a folder that explains itself.

config.json          resolved settings, network, cohort, classes, attention target
environment.json     versions and machine
metrics.csv          one row an epoch (also tensorboard/)
weights.safetensors  the best epoch on validation
state.json, state/   what a resumed training continues from
report.json, .html   written by `radgaze evaluate`
"""

from __future__ import annotations

import csv
import io
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from radgaze.cohort import Cohort
from radgaze.cohort.pixels import MAX_PIXELS
from radgaze.cohort.store import sha256
from radgaze.errors import InputError
from radgaze.files import read_json, write_json, write_text
from radgaze.gaze import Frame
from radgaze.models import Network, build, load_weights
from radgaze.models.build import save_tensors
from radgaze.training.config import RunConfig
from radgaze.training.data import training_studies
from radgaze.training.schedule import Plateau

__all__ = ["Checkpoint", "Run", "TrainingState", "environment"]


def _is_size(value: Any) -> bool:
    sides = isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    return sides and value[0] * value[1] <= MAX_PIXELS


# What is read of config.json by whoever opens a run
_CONTENT: dict[str, Callable[[Any], bool]] = {
    "run": lambda value: isinstance(value, dict),
    "network": lambda value: isinstance(value, dict),
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "cohort.path": lambda value: isinstance(value, str),
    "cohort.size": _is_size,
    "cohort.checksums": lambda value: isinstance(value, dict) and {"images.npy", "studies.parquet"} <= value.keys(),
}


@dataclass
class TrainingState:
    """Where a training stands after a whole number of epochs. Plain data: it lives in ``state.json``."""

    epoch: int = 0  # finished epochs
    plateau: Plateau = field(default_factory=Plateau)
    best_epoch: int | None = None
    best_value: float | None = None  # of the monitored value, lower is better
    seconds: float = 0.0
    finished: str | None = None  # why training ended; None while it has not
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any]:
        """The row of ``history`` whose weights are kept."""
        return next(row for row in self.history if row["epoch"] == self.best_epoch)

    def to_json(self) -> dict[str, Any]:
        state = asdict(self)
        state["plateau"]["best"] = None if self.plateau.best == float("inf") else self.plateau.best
        return state

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> TrainingState:
        """The state that :meth:`to_json` wrote.

        Raises:
            InputError: Something of it is missing, unknown, or of another kind.
        """
        try:
            plateau = dict(state["plateau"])
            plateau["best"] = float("inf") if plateau["best"] is None else plateau["best"]
            found = cls(**{**state, "plateau": Plateau(**plateau)})
            _check_numbers(found.plateau)
            _check_numbers(found)
            if not all(isinstance(row, dict) and "epoch" in row for row in found.history):
                raise TypeError("history is no list of epochs")
            return found
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"The state of a run is damaged ({reason}); train it again, or copy it again.") from error


def _check_numbers(state: TrainingState | Plateau) -> None:
    """Refuse a count that is no whole number of at least zero, and a number that is none."""
    for one in fields(state):
        value, kind = getattr(state, one.name), str(one.type)
        if value is None and "None" in kind:
            continue
        if (kind.startswith("int") and (type(value) is not int or value < 0)) or (
            kind.startswith("float") and (type(value) not in (int, float))
        ):
            raise TypeError(f"{one.name} is {value!r:.60}")


class Checkpoint:
    """Weights and optimiser state of the last and the best epoch, as safetensors under ``state/``.

    Each epoch's files have their own folder; ``state.json`` names the current ones and is replaced last, so a kill at
    any moment leaves either the old state or the new one.
    """

    def __init__(self, run: Path) -> None:
        self.pointer, self.folder = run / "state.json", run / "state"

    def exists(self) -> bool:
        return self.pointer.is_file()

    def save(self, state: TrainingState, module: nn.Module, optimizer: Optimizer) -> None:
        name = f"epoch-{state.epoch:04d}"
        tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        save_tensors(tensors, self.folder / f"{name}.safetensors")
        best = name if state.best_epoch == state.epoch else f"epoch-{state.best_epoch or state.epoch:04d}"
        write_json(self.pointer, {"last": name, "best": best, **state.to_json()})
        for old in self.folder.glob("epoch-*.safetensors"):
            if old.stem not in (name, best):
                old.unlink()

    def load_state(self) -> TrainingState:
        content = read_json(self.pointer, "a run that can be resumed")
        if not isinstance(content, dict):
            raise InputError(f"{str(self.pointer)!r} is no state of a run; copy the run again.")
        return TrainingState.from_json({k: v for k, v in content.items() if k not in ("last", "best")})

    def restore(self, which: str, module: nn.Module, optimizer: Optimizer) -> None:
        """Load the ``"last"`` or ``"best"`` weights and optimiser state."""
        name = read_json(self.pointer, "a run that can be resumed")[which]
        tensors = load_file(self.folder / f"{name}.safetensors")
        module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, slot = key.split(".")
                parameter = parameters[int(index)]
                if value.shape == parameter.shape:
                    # in the parameter's memory format: a fused step walks both in the order of their memory
                    value = torch.empty_like(parameter, requires_grad=False).copy_(value)
                slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})

    def best_network(self) -> dict[str, Tensor]:
        name = read_json(self.pointer, "a run that can be resumed")["best"]
        tensors = load_file(self.folder / f"{name}.safetensors")
        prefix = "module.network."
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    def metrics_csv(self, state: TrainingState, path: Path) -> None:
        columns = list(dict.fromkeys(key for row in state.history for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(state.history)
        write_text(path, text.getvalue())


@dataclass(frozen=True)
class Run:
    """A trained (or training) run folder.

    Attributes:
        path: The folder.
        config: Its resolved settings.
        content: All of ``config.json``.
    """

    path: Path
    config: RunConfig
    content: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open a run folder without loading its weights.

        Raises:
            InputError: Not a run, or a damaged one.
        """
        path = Path(path)
        content = read_json(path / "config.json", "a run")
        for place, fits in _CONTENT.items():
            found = content
            for key in place.split("."):
                if not isinstance(found, dict) or key not in found:
                    raise InputError(f"{str(path / 'config.json')!r} lacks {place!r}, so this is not a run; check it.")
                found = found[key]
            if not fits(found):
                raise InputError(
                    f"{str(path / 'config.json')!r} has {place} = {repr(found)[:60]}, so this is not a run; check it."
                )
        return cls(path, RunConfig.parse(content["run"]), content)

    @property
    def classes(self) -> list[str]:
        return list(self.content["classes"])

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.content["cohort"]["size"]
        return height, width

    @property
    def frame(self) -> Frame:
        """How images were brought to the size that the network was trained at.

        Raises:
            InputError: A run from before this was written down, whose cohort is gone too.
        """
        trained_on = self.content["cohort"]
        if "fit" not in trained_on:
            return self.cohort().frame
        canvas = trained_on.get("canvas")
        return Frame(self.size, trained_on["fit"], tuple(canvas) if canvas else None)

    @property
    def history(self) -> list[dict[str, Any]]:
        checkpoint = Checkpoint(self.path)
        return checkpoint.load_state().history if checkpoint.exists() else []

    @property
    def state(self) -> TrainingState:
        return Checkpoint(self.path).load_state()

    @property
    def is_trained(self) -> bool:
        """Whether training has ended and left its weights.

        Raises:
            InputError: Training has not begun, or its state is damaged.
        """
        return self.state.finished is not None and (self.path / "weights.safetensors").is_file()

    @property
    def digest(self) -> str:
        """SHA-256 of its weights.

        Raises:
            InputError: It has none yet.
        """
        weights = self.path / "weights.safetensors"
        if not weights.is_file():
            raise InputError(f"The run in {str(self.path)!r} has no weights yet; train it first (train … --resume).")
        return sha256(weights)

    @property
    def device(self) -> torch.device:
        """Where the run's network is measured: a GPU where there is one, unless the run was kept off it."""
        return torch.device("cuda" if torch.cuda.is_available() and self.config.accelerator != "cpu" else "cpu")

    def cohort(self, other: Cohort | Path | str | None = None) -> Cohort:
        """The cohort this run was trained on, or another one.

        Raises:
            InputError: Other classes or size than the run's, or the run's cohort after it was split anew: its test
                split would no longer be unseen.
        """
        cohort = other if isinstance(other, Cohort) else Cohort.open(other or self.content["cohort"]["path"])
        trained_on, given = self.content["cohort"]["checksums"], cohort.meta["checksums"]
        same_images = trained_on["images.npy"] == given["images.npy"]
        if same_images and trained_on["studies.parquet"] != given["studies.parquet"]:
            raise InputError(
                f"Cohort {cohort.name!r} was split anew after the run in {str(self.path)!r} was trained: its test "
                "split holds studies the run has learned from, so restore the old split or train a new run."
            )
        if list(cohort.classes) != self.classes and self.classes:
            raise InputError(
                f"Cohort {cohort.name!r} has classes {list(cohort.classes)}, the run has {self.classes}; "
                "evaluate on a cohort with the same classes in the same order."
            )
        if tuple(cohort.size) != self.size:
            raise InputError(
                f"Cohort {cohort.name!r} is {cohort.size[0]}x{cohort.size[1]}, the run was trained at "
                f"{self.size[0]}x{self.size[1]}; import the cohort with --size {self.size[0]}x{self.size[1]}."
            )
        return cohort

    def training_studies(self, cohort: Cohort) -> NDArray[np.int64]:
        """Rows that the run learned from; of another cohort than its own, that cohort's training split."""
        own = cohort.meta["checksums"] == self.content["cohort"]["checksums"]
        return training_studies(cohort, self.config) if own else cohort.indices("train")

    def network(self) -> Network:
        """The network with its best weights, in evaluation mode, on the CPU."""
        return load_weights(build(self.content["network"]), self.path / "weights.safetensors").eval()


def environment() -> dict[str, Any]:
    """Versions and machine, for the record: nothing that names a person or a host."""
    packages = ["radgaze", "torch", "torchvision", "timm", "lightning", "numpy", "polars", "pydicom"]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "processor": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in packages},
    }
