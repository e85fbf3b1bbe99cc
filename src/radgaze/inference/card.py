"""The model card: what must be known beside a network to use it. It travels inside exported files.

It names the data set that was learned from, as its importer was told to call it, and no path, study, patient or date.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from typing_extensions import TypedDict

from radgaze import __version__
from radgaze.cohort import Cohort
from radgaze.cohort.pixels import MAX_PIXELS
from radgaze.errors import InputError, RadgazeError
from radgaze.files import check_fields, read_json, write_json
from radgaze.gaze import Frame
from radgaze.inference.calibration import Calibration, calibrate
from radgaze.inference.predict import predict_studies
from radgaze.models.build import NETWORKS
from radgaze.training.runs import Run

__all__ = ["ModelCard", "calibration_of"]

FORMAT = 1


class Kept(TypedDict):
    """What ``calibration.json`` says."""

    weights: str
    calibration: dict[str, Any]


@dataclass(frozen=True, eq=False)
class ModelCard:
    """What a trained network answers, and how images must reach it.

    Attributes:
        method: ``"mt-unet"``, ``"gg-cam"``, ``"classifier"``.
        classes: Names of the class scores, in their order; empty without a class head.
        task: ``"multiclass"``, ``"multilabel"`` or ``"none"``.
        frame: How an image of any size becomes one of the network's size.
        attention: What the predicted attention, or the class activation maps, were taught to follow; ``"none"``.
        outputs: Which of ``"logits"``, ``"saliency_logits"``, ``"cams"`` the network has.
        calibration: None where the class scores are read as they are.
        uncalibrated: Why there is no calibration; None where there is, or where there are no classes.
        facts: For people: parameters, digest of the weights, data set, its size, and the best epoch on validation.
    """

    method: str
    classes: tuple[str, ...]
    task: str
    frame: Frame
    attention: str
    outputs: tuple[str, ...]
    calibration: Calibration | None = None
    uncalibrated: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, cohort: Cohort | None = None) -> ModelCard:
        """The card of a trained run; calibrates it on its validation split if that has not been done.

        Args:
            run: A trained run.
            cohort: The one it was trained on, where that has moved.

        Raises:
            InputError: Not a finished run.
        """
        digest, network = run.digest, NETWORKS[run.content["network"]["name"]]
        outputs = ["logits"] if run.classes else []
        if network.predicts_attention:
            outputs.append("saliency_logits")
        if network.name == "gaze-cam":
            outputs.append("cams")
        calibration, reason = calibration_of(run, digest, cohort) if run.classes else (None, None)
        best = {key: value for key, value in run.state.best.items() if key.startswith("val_")}
        return cls(
            method=run.config.method,
            classes=tuple(run.classes),
            task=run.content["task"],
            frame=cohort.frame if cohort else run.frame,
            attention=run.content["attention"],
            outputs=tuple(outputs),
            calibration=calibration,
            uncalibrated=reason,
            facts={
                "radgaze": __version__,
                "parameters": run.content["parameters"],
                "weights": digest,
                "trained_on": run.content["cohort"]["name"],
                "train_studies": run.content.get("train_studies"),
                "seed": run.config.seed,
                "best_epoch": run.state.best_epoch,
                "validation": best,
            },
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "method": self.method,
            "classes": list(self.classes),
            "task": self.task,
            "size": list(self.frame.size),
            "fit": self.frame.fit,
            "canvas": list(self.frame.canvas) if self.frame.canvas else None,
            "attention": self.attention,
            "outputs": list(self.outputs),
            "calibration": self.calibration.to_json() if self.calibration else None,
            "uncalibrated": self.uncalibrated,
            "facts": self.facts,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelCard:
        """The card that :meth:`to_json` wrote.

        Raises:
            InputError: Written by a newer radgaze, or incomplete.
        """
        if not isinstance(content, Mapping):
            raise InputError("The model card is no list of entries; export the run again.")
        found = content.get("format")
        if found != FORMAT:
            raise InputError(
                f"The model card has format {found!r}; this radgaze reads format {FORMAT}: export the "
                "run again, or update radgaze."
            )
        try:
            height, width = content["size"]
            canvas, calibration = content["canvas"], content["calibration"]
            if height * width > MAX_PIXELS:
                raise ValueError(f"images of {height}x{width}")
            if any(not isinstance(name, str) for name in (*content["classes"], *content["outputs"])):
                raise TypeError("a class or an output that is no name")
            card = cls(
                method=content["method"],
                classes=tuple(content["classes"]),
                task=content["task"],
                frame=Frame((height, width), content["fit"], tuple(canvas) if canvas else None),
                attention=content["attention"],
                outputs=tuple(content["outputs"]),
                calibration=Calibration.from_json(calibration) if calibration else None,
                uncalibrated=content["uncalibrated"],
                facts=dict(content["facts"]),
            )
            if card.calibration and card.calibration.slopes.shape[1] != len(card.classes):
                raise ValueError("a calibration of other classes")
            return card
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            reason = " ".join(repr(error).split())[:200]
            raise InputError(f"The model card is incomplete ({reason}); export the run again.") from error


def calibration_of(
    run: Run, digest: str | None = None, cohort: Cohort | None = None
) -> tuple[Calibration | None, str | None]:
    """The run's calibration, fitted on its validation split and kept as ``calibration.json`` in its folder.

    Args:
        run: A trained run with classes.
        digest: SHA-256 of its weights, if known.
        cohort: The one it was trained on, where that has moved.

    Returns:
        The calibration and None, or None and the reason why there is none, which names no path: it goes into the card.
    """
    digest = digest or run.digest
    file = run.path / "calibration.json"
    if file.is_file():
        kept = read_json(file, "a calibration")
        check_fields(kept, Kept, file, "a calibration")
        if kept["weights"] == digest:
            return Calibration.from_json(kept["calibration"]), None
    try:
        cohort = cohort or run.cohort()
        cohort.check()
    except RadgazeError:
        return None, (
            "the validation split it would be fitted on cannot be read: the cohort has moved, is damaged, or is no "
            "longer the one that was trained on"
        )
    studies = cohort.indices("val")
    batches = predict_studies(run.network().to(run.device), cohort, studies.tolist())
    found = [
        (output.logits.float().cpu(), batch.targets.cpu()) for batch, output in batches if output.logits is not None
    ]
    if not found:
        return None, "the cohort has no validation study"
    logits, targets = (torch.cat(part) for part in zip(*found, strict=True))
    patients = cohort.studies["patient_id"][studies].to_list()
    calibration = calibrate(logits, targets, patients, run.content["task"])
    if calibration is None:
        return None, "the validation split has fewer than two patients with, or without, one of the classes"
    with suppress(OSError):  # a folder that may only be read: fitted anew each time
        write_json(file, {"weights": digest, "calibration": calibration.to_json()})
    return calibration, None
