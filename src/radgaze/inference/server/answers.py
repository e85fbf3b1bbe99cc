"""What the server answers: the models that its OpenAPI description is made of, and what fills them.

Maps and previews travel as base64 of little-endian numbers, row by row: a page reads them into typed arrays without a
loss, and at a quarter of what decimal text would weigh.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from radgaze.cohort.pixels import area_average
from radgaze.gaze import Grid
from radgaze.inference.card import ModelCard
from radgaze.inference.predictor import Prediction

__all__ = [
    "Batch",
    "CohortPrediction",
    "Error",
    "GazePoints",
    "Health",
    "Models",
    "Predicted",
    "Studies",
    "StudyDetail",
    "card_of",
    "encode",
    "map_of",
    "maps_of",
    "preview_of",
]

PREVIEW_SIDE = 1024


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(Answer):
    error: str = Field(description="One sentence: the value, what was expected, and the fix.")


class Health(Answer):
    status: Literal["ok"]
    version: str
    ready: bool = Field(description="False once the server was told to stop.")


class CalibrationSummary(Answer):
    method: str
    studies: int
    patients: int
    log_loss: list[float] = Field(description="On the validation split: before, after.")


class Card(BaseModel):
    """A model's card, without the arrays of its calibration."""

    model_config = ConfigDict(extra="allow")

    method: str
    classes: list[str]
    task: str
    size: list[int] = Field(description="Height and width of the network's images.")
    attention: str
    outputs: list[str]
    calibration: CalibrationSummary | None
    uncalibrated: str | None


class Model(Answer):
    name: str
    card: Card


class CohortSummary(Answer):
    name: str
    studies: int
    classes: list[str]
    task: str
    splits: list[str]
    gaze: Literal["samples", "fixations"] | None
    size: list[int]


class Models(Answer):
    models: list[Model]
    cohort: CohortSummary | None


class ClassScore(Answer):
    probability: float
    low: float | None = Field(description="Of the 95 % interval; null where the model is not calibrated.")
    high: float | None


class Place(Answer):
    x: float = Field(description="Column, in source pixels.")
    y: float = Field(description="Row, in source pixels.")


class Map(Answer):
    """Values over the source image: cell (row i, column j) is centred at source pixel (x0 + j dx, y0 + i dy)."""

    height: int
    width: int
    x0: float
    y0: float
    dx: float
    dy: float
    low: float = Field(description="Least value.")
    high: float = Field(description="Greatest value.")
    data: str = Field(description="Base64 of height x width float32, little-endian, row by row.")


class Preview(Answer):
    """The image's brightness: (row, column) is centred at source pixel (x0 + column scale_x, y0 + row scale_y)."""

    height: int
    width: int
    scale: float = Field(description="Source pixels per preview pixel, down.")
    scale_x: float
    scale_y: float
    x0: float
    y0: float
    low: float = Field(description="Source brightness that 0 stands for.")
    high: float = Field(description="Source brightness that 65535 stands for.")
    data: str = Field(description="Base64 of height x width uint16, little-endian, row by row.")


class PredictedBase(Answer):
    """A prediction; ``predicted``, ``calibrated`` and ``classes`` are absent where the model has no classes."""

    image: str
    height: int
    width: int
    predicted: str | None = None
    calibrated: bool | None = None
    classes: dict[str, ClassScore] | None = None
    peaks: dict[str, Place | None] = Field(description="Where each map is highest; null for a map without range.")


class Predicted(PredictedBase):
    model: str
    seconds: float = Field(description="From the end of the upload to the prediction.")
    maps: dict[str, Map] | None = None
    preview: Preview | None = None


class Unread(Answer):
    image: str
    error: str


class Batch(Answer):
    predictions: list[PredictedBase | Unread]


class StudyEntry(Answer):
    index: int
    study_id: str
    split: str
    label: str | list[str] | None = Field(description="A list of the present labels where they do not exclude another.")
    gaze_count: int


class Studies(Answer):
    total: int = Field(description="Studies that the filters let through.")
    studies: list[StudyEntry]


class StudyDetail(StudyEntry):
    height: int = Field(description="Of the source image.")
    width: int
    preview: Preview


class Points(Answer):
    x: list[float]
    y: list[float]
    t: list[float | None] | None = Field(description="Seconds.")
    duration: list[float | None] | None = Field(description="Seconds.")
    reader: list[int | None] | None = Field(description="Places in readers.")


class Fixations(Answer):
    x: list[float]
    y: list[float]
    t: list[float | None] | None
    duration: list[float | None] | None
    reader: list[int | None] | None


class GazePoints(Answer):
    kind: Literal["samples", "fixations"]
    readers: list[str]
    points: Points
    fixations: Fixations


class Agreement(Answer):
    cc: float | None = Field(description="Null where a map has no range.")
    kld: float | None
    sim: float | None


class CohortPrediction(PredictedBase):
    model: str
    seconds: float
    maps: dict[str, Map]
    human: Map | None
    rendering: str | None = Field(description="How the human map was drawn from the gaze.")
    agreement: dict[str, Agreement] | None


def card_of(card: ModelCard) -> dict[str, Any]:
    content = card.to_json()
    calibration = content["calibration"]
    if calibration:
        content["calibration"] = {key: calibration[key] for key in ("method", "studies", "patients", "log_loss")}
    return content


def map_of(values: NDArray[Any], grid: Grid) -> dict[str, Any]:
    """A map ``(h, w)`` on ``grid``, as :class:`Map`."""
    return {
        "height": grid.height,
        "width": grid.width,
        "x0": grid.x0,
        "y0": grid.y0,
        "dx": grid.dx,
        "dy": grid.dy,
        "low": float(values.min()),
        "high": float(values.max()),
        "data": _base64(values, "<f4"),
    }


def maps_of(prediction: Prediction) -> dict[str, Any]:
    return {name: map_of(values, prediction.grid_of(values)) for name, values in prediction.maps().items()}


def preview_of(pixels: NDArray[Any], place: Grid | None = None) -> dict[str, Any]:
    """An image ``(H, W)``, averaged to at most 1024 pixels a side, as :class:`Preview`.

    Args:
        pixels: Brightness.
        place: Where they sit in the source image, if they are not the source image.
    """
    height, width = pixels.shape
    shrink = max(height, width, PREVIEW_SIDE) / PREVIEW_SIDE
    grid = Grid.area((height, width), (max(1, round(height / shrink)), max(1, round(width / shrink))))
    shown = area_average(pixels, grid)
    low, high = float(shown.min()), float(shown.max())
    values = np.rint((shown - low) * (65535 / max(high - low, math.ulp(1.0))))
    place = place or Grid(height, width, 0, 0, 1, 1)
    x0, y0 = place.to_source(grid.x0, grid.y0)
    return {
        "height": grid.height,
        "width": grid.width,
        "scale": grid.dy * place.dy,
        "scale_x": grid.dx * place.dx,
        "scale_y": grid.dy * place.dy,
        "x0": x0,
        "y0": y0,
        "low": low,
        "high": high,
        "data": _base64(values, "<u2"),
    }


def encode(content: Mapping[str, Any]) -> bytes:
    """JSON, as bytes. Slow for maps: not for the event loop."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _base64(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).data).decode("ascii")
