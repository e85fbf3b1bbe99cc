"""A run is a folder that explains itself.

config.json          resolved settings, network, cohort, classes, attention target
environment.json     versions, machine, state of the code
metrics.csv          one row an epoch (also tensorboard/)
weights.safetensors  the best epoch on validation
state.json, state/   what a resumed training continues from; checksums of all weights
report.json, .html   written by `radgaze evaluate`
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypedDict

from radgaze.cohort import Cohort
from radgaze.cohort.pixels import MAX_PIXELS
from radgaze.cohort.store import sha256
from radgaze.errors import InputError
from radgaze.files import atomic_path, check_fields, read_sealed, write_sealed, write_text
from radgaze.gaze import Frame
from radgaze.models import Network, build, load_weights
from radgaze.models.build import write_tensors
from radgaze.models.weights import read_tensors
from radgaze.training.config import RunConfig
from radgaze.training.data import training_studies
from radgaze.training.schedule import Plateau

__all__ = ["Checkpoint", "Run", "TrainingState"]


def _fits_memory(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS:,} pixels")
    return size


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
    def from_json(cls, content: Mapping[str, Any]) -> TrainingState:
        """The state in the content of ``state.json``, which has more than that.

        Raises:
            InputError: Something of it is missing, unknown, or of another kind.
        """
        try:
            state = {one.name: content[one.name] for one in fields(cls)}
            plateau = dict(state["plateau"])
            plateau["best"] = float("inf") if plateau["best"] is None else plateau["best"]
            found = cls(**{**state, "plateau": Plateau(**plateau)})
            _check_numbers(found.plateau)
            _check_numbers(found)
            if not all(isinstance(row, dict) and "epoch" in row for row in found.history):
                raise TypeError("history is no list of epochs")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The state of a run is damaged ({error}); train it again, or copy it again.") from error


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


def _names_the_cohort(checksums: dict[str, str]) -> dict[str, str]:
    if not {"images.npy", "studies.parquet"} <= checksums.keys():
        raise ValueError("expected those of images.npy and studies.parquet")
    return checksums


class Pointer(TypedDict):
    """What ``state.json`` must say beside the fields of :class:`TrainingState`."""

    last: str
    best: str


class TrainedOn(TypedDict):
    """What ``config.json`` says of the cohort."""

    path: str
    name: str
    size: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_fits_memory)]
    checksums: Annotated[dict[str, str], AfterValidator(_names_the_cohort)]


class Content(TypedDict):
    """What ``config.json`` must say; it may say more."""

    run: dict[str, Any]
    network: dict[str, Any]
    classes: list[str]
    task: str
    attention: str
    parameters: int
    cohort: TrainedOn


class Checkpoint:
    """Weights and optimiser state of the last and the best epoch, as safetensors under ``state/``.

    Each epoch has its own file; ``state.json`` names the current ones, with their checksums, and is replaced last, so
    a kill at any moment leaves either the old state or the new one.
    """

    def __init__(self, run: Path) -> None:
        self.pointer, self.folder, self.weights = run / "state.json", run / "state", run / "weights.safetensors"

    def exists(self) -> bool:
        return self.pointer.is_file()

    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = read_sealed(self.pointer, "a run that can be resumed")
        check_fields(content, Pointer, self.pointer, "a run that can be resumed")
        return content

    def save(self, state: TrainingState, module: nn.Module, optimizer: Optimizer) -> None:
        name = f"epoch-{state.epoch:04d}"
        best = name if state.best_epoch == state.epoch else f"epoch-{state.best_epoch or state.epoch:04d}"
        before = self.content() if self.exists() else {}
        checksums = {key: value for key, value in before.get("checksums", {}).items() if key == best}
        with atomic_path(self.folder / f"{name}.safetensors") as partial:
            write_tensors(state_tensors(module, optimizer), partial)
            checksums[name] = sha256(partial)
        pointer = {"last": name, "best": best, "checksums": checksums, "weights": before.get("weights")}
        write_sealed(self.pointer, pointer | state.to_json())
        for old in self.folder.glob("epoch-*.safetensors"):
            if old.stem not in (name, best):
                old.unlink()

    def load_state(self) -> TrainingState:
        return TrainingState.from_json(self.content())

    def tensors(self, which: str) -> dict[str, Tensor]:
        """The ``"last"`` or ``"best"`` epoch's file.

        Raises:
            InputError: It is missing or damaged.
        """
        content = self.content()
        file = self.folder / f"{content[which]}.safetensors"
        if not file.is_file():
            raise InputError(f"{str(file)!r} is missing, which state.json names; restore it, or train anew.")
        check_sum(file, content.get("checksums", {}).get(file.stem), "restore it, or train anew")
        return read_tensors(file)

    def restore(self, which: str, module: nn.Module, optimizer: Optimizer) -> None:
        """Load the ``"last"`` or ``"best"`` weights and optimiser state.

        Raises:
            InputError: They are damaged, or of another network.
        """
        try:
            self._fill(module, optimizer, self.tensors(which))
        except (IndexError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The {which} state in {str(self.folder)!r} does not fit the network that is trained; keep a run's "
                "files together."
            ) from error

    def _fill(self, module: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
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

    def publish(self) -> None:
        """Write the best epoch's network as the run's weights. The checksum goes first: weights without one would pass
        for those of an older radgaze; a sum without its weights is made good by the next ``--resume``.
        """
        prefix = "module.network."
        network = {key.removeprefix(prefix): value for key, value in self.tensors("best").items() if prefix in key}
        with atomic_path(self.weights) as partial:
            write_tensors(network, partial)
            write_sealed(self.pointer, self.content() | {"weights": sha256(partial)})

    def metrics_csv(self, state: TrainingState, path: Path) -> None:
        columns = list(dict.fromkeys(key for row in state.history for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(state.history)
        write_text(path, text.getvalue())


def state_tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a training goes on from: parameters, buffers and the optimiser's state, by name."""
    tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    return tensors


def check_sum(file: Path, expected: str | None, fix: str) -> str:
    """The file's SHA-256, which must be the one that was written down; runs from before sums were have none.

    Raises:
        InputError: It is another.
    """
    found = sha256(file)
    if expected not in (None, found):
        raise InputError(f"{str(file)!r} has changed since it was written (its checksum differs); {fix}.")
    return found


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
        content = read_sealed(path / "config.json", "a run")
        check_fields(content, Content, path / "config.json", "a run")
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
            InputError: It has none yet, or they are damaged.
        """
        checkpoint = Checkpoint(self.path)
        if not checkpoint.weights.is_file():
            raise InputError(f"The run in {str(self.path)!r} has no weights yet; train it first (train … --resume).")
        expected = checkpoint.content().get("weights") if checkpoint.exists() else None
        return check_sum(checkpoint.weights, expected, "restore it, or write it again (train … --resume)")

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
        """The network with its best weights, in evaluation mode, on the CPU.

        Raises:
            InputError: There are no weights, or damaged ones.
        """
        weights = self.path / "weights.safetensors"
        if weights.is_file():
            _ = self.digest  # refuses those that are not the ones that were written
        return load_weights(build(self.content["network"]), weights).eval()
