"""The settings of a run, resolved and written beside its weights. An unknown key is an error, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radgaze.errors import InputError, nearest

__all__ = ["Augmentation", "Distillation", "RunConfig"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False)


class Augmentation(Strict):
    """Random changes of a training study. Image, gaze, masks and boxes move together.

    Flips are off by default: they swap the patient's left and right, and the heart is on the left.
    """

    rotate: float = Field(default=5.0, ge=0, le=180)  # degrees, uniform in +-
    translate: float = Field(default=0.04, ge=0, lt=1)  # fraction of height and width, uniform in +-
    zoom: float = Field(default=0.06, ge=0, lt=1)  # relative, log-uniform in +-
    flip: bool = False  # left-right, with probability 1/2
    gamma: float = Field(default=0.15, ge=0, lt=1)  # exponent exp(uniform +-) on the image in [0, 1]
    gain: float = Field(default=0.1, ge=0, lt=1)  # relative brightness, uniform in +-
    views: int | None = Field(default=None, ge=1)  # changes of a study before the first comes again; None: never

    @classmethod
    def none(cls) -> Augmentation:
        """No change at all, as the papers trained."""
        return cls(rotate=0.0, translate=0.0, zoom=0.0, flip=False, gamma=0.0, gain=0.0)

    def view(self, epoch: int) -> int:
        """Which of a study's changes an epoch shows."""
        return epoch if self.views is None else epoch % self.views

    @property
    def moves(self) -> bool:
        return bool(self.rotate or self.translate or self.zoom or self.flip)

    @property
    def shades(self) -> bool:
        return bool(self.gamma or self.gain)


class Distillation(Strict):
    """A trained run's class scores, learned beside the labels (Hinton, Vinyals, Dean, arXiv 1503.02531).

    The teacher sees the very images that its pupil sees. With ``augmentation.views`` it looks at each view once, and
    its scores are kept; without, it runs at every step.
    """

    teacher: str  # its run folder
    weight: float = Field(default=0.5, ge=0, le=1)  # of the teacher's scores; the labels have the rest
    temperature: float = Field(default=2.0, gt=0)
    scores: str | None = None  # a .safetensors file that runs with the same teacher, seed and views share


class RunConfig(Strict):
    """Everything that decides a run's outcome, apart from the cohort. The defaults are MT-UNet's, as published."""

    method: str = "mt-unet"
    recipe: str | None = None  # the method's named settings this run started from; all of them stand below
    model: dict[str, Any] = Field(default_factory=dict)  # arguments of the network; classes come from the cohort
    objective: dict[str, Any] = Field(default_factory=dict)  # arguments of the objective
    initial_weights: str | None = None  # a .safetensors file of the whole network; None starts from the seed
    distill: Distillation | None = None

    attention: str = "gaze"  # gaze | mask:NAME | boxes | none
    preset: str = "mt-unet"  # how gaze is rendered, see radgaze.gaze.PRESETS
    sigma: float | None = Field(default=None, gt=0)  # source pixels; None keeps the preset's

    train_studies: int | None = Field(default=None, ge=1)  # whole patients, classes in proportion; None is all
    subset_seed: int | None = Field(default=None, ge=0, lt=2**31)  # which of them; None is the run's seed

    batch_size: int = Field(default=6, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    accumulate: int = Field(default=1, ge=1)  # batches whose gradients are added before a step
    clip: float | None = Field(default=None, gt=0)  # greatest gradient norm

    schedule: Literal["plateau", "one-cycle"] = "plateau"
    monitor: Literal["val_loss", "val_auc_macro"] = "val_loss"  # what "best" means; always on the validation split
    epochs: int = Field(default=1024, ge=1)
    patience: int = Field(default=40, ge=0)  # plateau: epochs without improvement before the rate drops
    factor: float = Field(default=0.1, gt=0, lt=1)
    min_learning_rate: float = Field(default=1e-8, gt=0)
    warmup: float = Field(default=0.25, ge=0, lt=1)  # one-cycle: share of the run in which the rate rises
    time_budget: float | None = Field(default=None, gt=0)  # seconds of training over all sittings

    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = 1
    nodes: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)  # threads that make batches ahead; a CPU step does without
    seed: int = Field(default=0, ge=0, lt=2**31)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> RunConfig:
        """Validate ``settings``; the first problem becomes one sentence.

        Raises:
            InputError: An unknown key (the nearest known ones are named) or a value out of range.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                parts: dict[str, type[Strict]] = {"augmentation": Augmentation, "distill": Distillation}
                fields = parts.get(where.split(".")[0], cls).model_fields if "." in where else cls.model_fields
                hint = nearest(where.split(".")[-1], fields)
                raise InputError(f"There is no training setting {where!r}: {hint}") from None
            message = problem["msg"].lower()
            raise InputError(f"Training setting {where} = {problem['input']!r} cannot be used: {message}.") from None

    def dump(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`parse` gives the same config back."""
        return self.model_dump(mode="json")
