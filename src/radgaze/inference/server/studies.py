"""The cohort beside the models: its studies, where their readers looked, and how a model agrees with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from radgaze.cohort import Cohort, Study
from radgaze.errors import InputError
from radgaze.gaze import Gaze, Grid
from radgaze.inference.evaluation import fixations_of
from radgaze.inference.predictor import Picture, Prediction, Predictor
from radgaze.inference.server.answers import map_of, maps_of, preview_of
from radgaze.measures import saliency
from radgaze.training.attention import AttentionTarget

__all__ = ["StudyRoom"]


class StudyRoom:
    """Answers about a cohort's studies; every method may take a while and belongs on a thread.

    Args:
        cohort: Open cohort.
        renderings: How each model's gaze was drawn when it was trained; others are drawn as the default preset.
    """

    def __init__(self, cohort: Cohort, renderings: Mapping[str, AttentionTarget]) -> None:
        self.cohort, self.renderings = cohort, renderings
        table = cohort.studies.with_row_index("index")
        if cohort.task == "multilabel":
            present = [
                pl.when(pl.col(f"y_{name}") >= 0.5).then(pl.lit(name)).otherwise(None) for name in cohort.classes
            ]
            table = table.with_columns(label=pl.concat_list(present).list.drop_nulls())
        self.table = table.select("index", "study_id", "split", "label", "gaze_count")

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.cohort.name,
            "studies": len(self.cohort),
            "classes": self.cohort.classes,
            "task": self.cohort.task,
            "splits": ["train", "val", "test"],
            "gaze": self.cohort.gaze_kind,
            "size": list(self.cohort.size),
        }

    def listed(
        self, offset: int, limit: int, split: str | None, label: str | None, gaze: bool | None, search: str | None
    ) -> dict[str, Any]:
        """Some studies in their order, of those that the filters let through."""
        table = self.table
        if split:
            table = table.filter(pl.col("split") == split)
        if label:
            several = self.cohort.task == "multilabel"
            table = table.filter(pl.col("label").list.contains(label) if several else pl.col("label") == label)
        if gaze is not None:
            table = table.filter((pl.col("gaze_count") > 0) == gaze)
        if search:
            table = table.filter(pl.col("study_id").str.contains(search, literal=True))
        return {"total": table.height, "studies": table.slice(offset, limit).to_dicts()}

    def detail(self, index: int) -> dict[str, Any]:
        study = self.cohort[index]
        pixels, place = without_padding(study)
        height, width = study.source_size
        entry = self.table.row(index, named=True)
        return {**entry, "height": height, "width": width, "preview": preview_of(pixels, place)}

    def gaze(self, index: int) -> dict[str, Any] | None:
        """Where the readers looked, and their fixations; None without gaze."""
        study = self.cohort[index]
        gaze, fixations = study.gaze, fixations_of(study)
        if gaze is None or fixations is None:
            return None
        points, found = (columns(one, ("x", "y", "t", "duration", "reader")) for one in (gaze, fixations))
        return {
            "kind": self.cohort.gaze_kind,
            "readers": self.cohort.readers,
            "points": points,
            "fixations": found,
        }

    def picture(self, index: int, predictor: Predictor) -> Picture:
        """The study's stored image, as the network was trained on it.

        Raises:
            InputError: The network takes images of another size.
        """
        study = self.cohort[index]
        wanted = predictor.card.frame.size
        if wanted != self.cohort.size:
            raise InputError(
                f"The cohort's images are {self.cohort.size[0]}x{self.cohort.size[1]} and the model takes "
                f"{wanted[0]}x{wanted[1]}; serve it with a cohort of its own size."
            )
        pixels = torch.from_numpy(study.image.astype(np.float32))
        unread = np.broadcast_to(np.uint16(0), study.source_size)
        return Picture(study.study_id, unread, study.grid, (pixels / pixels.max().clamp(min=1))[None])

    def compared(self, index: int, model: str, prediction: Prediction) -> dict[str, Any]:
        """The prediction with its maps, the reader's attention, and how well they agree."""
        rendering = self.renderings.get(model, AttentionTarget("gaze"))
        maps = prediction.maps()
        human, agreement = None, None
        drawn: dict[tuple[int, int], Tensor | None] = {}
        for name, values in maps.items():
            size = (values.shape[0], values.shape[1])
            if size not in drawn:
                drawn[size] = self.attention(index, rendering, size)
            attention = drawn[size]
            if attention is None:
                continue
            if human is None:
                human = map_of(attention.numpy(), prediction.grid_of(values))
            agreement = (agreement or {}) | {name: agree(torch.from_numpy(values), attention)}
        return prediction.to_json() | {
            "maps": maps_of(prediction),
            "human": human,
            "rendering": rendering.describe(self.cohort) if human else None,
            "agreement": agreement,
        }

    def attention(self, index: int, rendering: AttentionTarget, size: tuple[int, int]) -> Tensor | None:
        """``(h, w)`` in [0, 1]; None where the study has no gaze on the image."""
        if not rendering.is_in(self.cohort):
            return None
        maps, present = rendering.maps(self.cohort, [index], size=size)
        return maps[0] if bool(present[0]) else None


def agree(predicted: Tensor, attention: Tensor) -> dict[str, float | None]:
    """CC, KLD and SIM of a map ``(h, w)``, of which the positive part counts, with the reader's."""
    prediction, target = predicted.clamp(min=0)[None], attention[None]
    measures = {"cc": saliency.cc, "kld": saliency.kld, "sim": saliency.sim}
    values = {name: float(measure(prediction, target)) for name, measure in measures.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def columns(gaze: Gaze, names: tuple[str, ...]) -> dict[str, list[float | int | None] | None]:
    """Columns of the points that are somewhere; what is unknown of a point is None."""
    usable, found = gaze.usable.numpy(), {}
    for name in names:
        column = getattr(gaze, name)
        found[name] = None if column is None else [known(value) for value in column.numpy()[usable].tolist()]
    return found


def known(value: float | int) -> float | int | None:
    """None for what stands for an unknown: a code of -1, or a number that is not finite."""
    if isinstance(value, int):
        return value if value >= 0 else None
    return value if math.isfinite(value) else None


def without_padding(study: Study) -> tuple[NDArray[np.uint16], Grid]:
    """The stored image without the cells beyond the source image, and where the rest sits in it."""
    grid, (height, width) = study.grid, study.source_size
    rows = inside(grid.y0, grid.dy, grid.height, height)
    across = inside(grid.x0, grid.dx, grid.width, width)
    x0, y0 = grid.to_source(float(across.start), float(rows.start))
    place = Grid(rows.stop - rows.start, across.stop - across.start, y0, x0, grid.dy, grid.dx)
    return np.asarray(study.image[rows, across]), place


def inside(start: float, step: float, count: int, extent: int) -> slice:
    """The cells along one axis whose centres lie on an image of ``extent`` pixels."""
    centres = start + step * np.arange(count)
    cells = np.flatnonzero((centres >= -0.5) & (centres <= extent - 0.5))
    return slice(int(cells[0]), int(cells[-1]) + 1)
