"""A trained run as the teacher of another one: its class scores for the images that the pupil is about to see."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.files import atomic_path
from radgaze.training.config import RunConfig
from radgaze.training.data import Batch
from radgaze.training.runs import Run

__all__ = ["Teacher", "open_teacher"]


def open_teacher(config: RunConfig, cohort: Cohort) -> Run:
    """The run that ``config.distill`` names.

    Raises:
        InputError: Not a finished run, or one of other classes or another image size.
    """
    assert config.distill is not None
    run = Run.open(config.distill.teacher)
    run.cohort(cohort)
    if not (run.path / "weights.safetensors").is_file():
        raise InputError(
            f"The teacher in {config.distill.teacher!r} has no weights yet; finish its training first (--resume), or "
            "give another run."
        )
    if not run.classes:
        raise InputError(
            f"The teacher in {config.distill.teacher!r} knows no classes, so nothing can be distilled from it; "
            "give a run that was trained with labels."
        )
    return run


class Teacher:
    """Scores of a frozen network, each view of each study computed once if views come again.

    Args:
        run: The teacher.
        config: Of the pupil.
        cohort: What both look at.
        studies: How many studies the pupil learns from.
        device: Where the teacher runs.
        precision: "bf16" or "fp32".
    """

    def __init__(
        self, run: Run, config: RunConfig, cohort: Cohort, studies: int, device: torch.device, precision: str
    ) -> None:
        assert config.distill is not None
        self.network = run.network().to(device)
        if config.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.precision = precision
        self.augmentation = config.augmentation
        self.recurs = self.augmentation.views is not None
        self.file = Path(config.distill.scores) if config.distill.scores is not None and self.recurs else None
        about = {
            "teacher": run.digest,
            "cohort": cohort.meta["checksums"],
            "train_studies": [config.train_studies, config.subset_seed],
            "augmentation": config.augmentation.model_dump(mode="json"),
            "seed": config.seed,
        }
        self.about = {"about": json.dumps(about, sort_keys=True)}
        self.known = torch.full((self.augmentation.views or 0, studies, len(run.classes)), torch.nan)
        self.complete = self.load()

    def load(self) -> bool:
        """Take over the scores of an earlier run, if they are of the same teacher for the same views."""
        if self.file is None or not self.file.is_file():
            return False
        try:
            with safe_open(self.file, "pt") as content:
                if content.metadata() != self.about:
                    return False
                self.known = content.get_tensor("scores")
        except SafetensorError as error:
            raise InputError(
                f"The teacher's scores in {str(self.file)!r} are damaged ({error}); remove the file, they are computed "
                "anew."
            ) from error
        return not bool(self.known.isnan().any())

    @torch.no_grad()
    def scores(self, batch: Batch, epoch: int) -> Tensor:
        """(B, C) class scores for the images of ``batch``, as they were changed in ``epoch``."""
        view, positions = self.augmentation.view(epoch), batch.positions.cpu()
        if self.recurs:
            known = self.known[view, positions]
            if not known.isnan().any():
                return known.to(batch.images.device)
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits: Tensor = self.network(batch.images).logits
        if self.recurs:
            self.known[view, positions] = logits.float().cpu()
        return logits.float()

    def save(self) -> None:
        """Keep the scores for other runs, whole or not at all."""
        if self.file is None or self.complete:
            return
        self.complete = not bool(self.known.isnan().any())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.file) as partial:
            save_file({"scores": self.known}, partial, metadata=self.about)
