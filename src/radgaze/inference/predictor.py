"""A trained network as a user wants it: images in, probabilities and maps out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radgaze.cohort.pixels import Upload, read_image, resample
from radgaze.errors import InputError
from radgaze.gaze import Grid
from radgaze.inference.card import ModelCard
from radgaze.inference.engine import Engine, TorchEngine, checked_threads, is_exported, open_model
from radgaze.inference.predict import probabilities
from radgaze.training.runs import Run

__all__ = ["Failure", "Picture", "Prediction", "Predictor", "load"]

Image = str | Path | Upload | NDArray[Any]
READERS = 2  # threads that decode images while the network works


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as it was read, and as a network takes it.

    Attributes:
        name: What it is called in results and errors: its path as it was given.
        pixels: ``(H, W)`` brightness, uint16 or float32, as :func:`radgaze.cohort.pixels.read_image` reads it.
        grid: Where the network's pixels sit in it.
        input: ``(1, h, w)`` float32 in [0, 1].
    """

    name: str
    pixels: NDArray[Any]
    grid: Grid
    input: Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one image.

    Attributes:
        picture: The image.
        card: The network's card.
        probabilities: Class to probability, calibrated where the card has a calibration; empty without classes.
        intervals: Class to (low, high), 95 % over validation patients; None where the scores are not calibrated.
        attention: ``(h', w')`` float32, >= 0, sums to 1: where a reader is expected to look; None if not predicted.
        cams: Class to ``(h', w')`` float32 evidence, positive for the class and negative against it; None if the
            network has none. Their mean, plus a constant, is the class's score.
    """

    picture: Picture
    card: ModelCard
    probabilities: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None
    attention: NDArray[np.float32] | None
    cams: dict[str, NDArray[np.float32]] | None

    @property
    def predicted(self) -> str | None:
        """The likeliest of classes that exclude each other; None for other networks."""
        if self.card.task != "multiclass" or not self.probabilities:
            return None
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def maps(self) -> dict[str, NDArray[np.float32]]:
        """All maps by name: ``"attention"``, and ``"cam:CLASS"`` for each class."""
        maps = {} if self.attention is None else {"attention": self.attention}
        return maps | {f"cam:{name}": cam for name, cam in (self.cams or {}).items()}

    def grid_of(self, values: NDArray[Any]) -> Grid:
        """Where the cells of one of the maps sit in the source image."""
        return self.picture.grid.coarsen((values.shape[0], values.shape[1]))

    def on_image(self, values: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """One of the maps over exactly the source image, bilinear between cells: ``size`` (H, W), or as the image."""
        grid, source = self.grid_of(values), self.picture.pixels.shape
        size = size or (source[0], source[1])
        shown = Grid.area((source[0], source[1]), size)
        down = _between((shown.y0 + shown.dy * np.arange(size[0]) - grid.y0) / grid.dy, grid.height)
        across = _between((shown.x0 + shown.dx * np.arange(size[1]) - grid.x0) / grid.dx, grid.width)
        return np.asarray(down @ np.asarray(values, np.float32) @ across.T, np.float32)

    def peak(self, values: NDArray[Any]) -> tuple[float, float] | None:
        """(x, y) of a map's highest cell in source pixels; None where the map is the same everywhere."""
        if not values.max() > values.min():
            return None
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        x, y = self.grid_of(values).to_source(float(column), float(row))
        height, width = self.picture.pixels.shape
        return float(np.clip(x, 0, width - 1)), float(np.clip(y, 0, height - 1))

    def to_json(self) -> dict[str, Any]:
        """Without pixels and maps: name, size, probabilities with intervals, and where each map is highest."""
        classes: dict[str, Any] = {}
        for name, value in self.probabilities.items():
            low, high = self.intervals[name] if self.intervals else (None, None)
            classes[name] = {"probability": value, "low": low, "high": high}
        content: dict[str, Any] = {
            "image": self.picture.name,
            "height": self.picture.pixels.shape[0],
            "width": self.picture.pixels.shape[1],
        }
        if classes:
            content |= {"predicted": self.predicted, "calibrated": self.intervals is not None, "classes": classes}
        peaks = {name: self.peak(values) for name, values in self.maps().items()}
        content["peaks"] = {name: peak and {"x": peak[0], "y": peak[1]} for name, peak in peaks.items()}
        return content


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    name: str
    error: str


class Predictor:
    """A network with its card, on an engine. Use :func:`load`.

    Attributes:
        card: What it answers and how images reach it.
        engine: What runs it.
        origin: The run's folder or exported file that the engine runs; None if it was made in this process alone.
    """

    def __init__(self, card: ModelCard, engine: Engine, origin: Path | None = None) -> None:
        self.card, self.engine, self.origin = card, engine, origin

    def read(self, image: Image, name: str | None = None) -> Picture:
        """Read an image and bring it to the network's size, as the importer did for training.

        Args:
            image: A PNG, JPEG, TIFF or DICOM file, or its bytes as an ``Upload``, or pixels ``(H, W)`` of any numeric
                type, brighter where larger.
            name: What it is called; its path by default.

        Raises:
            InputError: It cannot be read, or is of one brightness everywhere.
        """
        if isinstance(image, np.ndarray):
            name, pixels = name or "array", _as_pixels(image)
        else:
            source = image if isinstance(image, Upload) else Path(image)
            name, pixels = name or str(image), read_image(source)[0]
        if pixels.min() == pixels.max():
            raise InputError(f"Image {name!r} has the same brightness everywhere; expected a radiograph.")
        grid = self.card.frame.grid((pixels.shape[0], pixels.shape[1]))
        values = torch.from_numpy(resample(pixels, grid).astype(np.float32))
        return Picture(name, pixels, grid, (values / values.max().clamp(min=1))[None])

    def predict(self, image: Image) -> Prediction:
        """Probabilities and maps of one image; for the arguments and errors see :meth:`read`."""
        return self.predict_pictures([self.read(image)])[0]

    def predict_pictures(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """The predictions of images that were read, in one forward pass.

        Raises:
            InputError: The network's output is not finite.
        """
        if not pictures:
            return []
        output = self.engine(torch.stack([picture.input for picture in pictures]))
        for part in output:
            if part is not None and not part.isfinite().all():
                raise InputError(
                    f"The network's output for {pictures[0].name!r} is not finite: its weights are damaged, or do not "
                    f"survive the engine {self.engine.name!r}; use another engine or train the run again."
                )
        classes, intervals = self._classes(output.logits, len(pictures))
        attention = output.saliency()
        return [
            Prediction(
                picture,
                self.card,
                classes[index],
                intervals[index] if intervals else None,
                None if attention is None else attention[index].numpy(),
                None
                if output.cams is None
                else dict(zip(self.card.classes, (cam.numpy() for cam in output.cams[index]), strict=True)),
            )
            for index, picture in enumerate(pictures)
        ]

    def predict_all(self, images: Iterable[Image], *, batch_size: int = 16) -> Iterator[Prediction | Failure]:
        """Predictions of any number of images, in their order; one that cannot be read becomes a :class:`Failure`.

        A few images ahead are decoded in threads while the network works; nothing else is held.
        """

        def attempt(image: Image) -> Picture | Failure:
            try:
                return self.read(image)
            except (InputError, OSError) as error:
                return Failure("array" if isinstance(image, np.ndarray) else str(image), str(error))

        with ThreadPoolExecutor(READERS) as readers:
            coming = iter(images)
            ahead: deque[Future[Picture | Failure]] = deque(
                readers.submit(attempt, image) for image in islice(coming, 2 * batch_size)
            )
            while ahead:
                read = [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
                ahead.extend(readers.submit(attempt, image) for image in islice(coming, len(read)))
                predicted = iter(self.predict_pictures([one for one in read if isinstance(one, Picture)]))
                for one in read:
                    yield one if isinstance(one, Failure) else next(predicted)

    def _classes(
        self, logits: Tensor | None, count: int
    ) -> tuple[list[dict[str, float]], list[dict[str, tuple[float, float]]] | None]:
        names = self.card.classes
        if logits is None or not names:
            return [{} for _ in range(count)], None
        if self.card.calibration is None:
            values = probabilities(logits, self.card.task)
            return [dict(zip(names, row, strict=True)) for row in values.tolist()], None
        values, low, high = self.card.calibration(logits)
        bounds = torch.stack([low, high], -1).tolist()
        return (
            [dict(zip(names, row, strict=True)) for row in values.tolist()],
            [{name: (pair[0], pair[1]) for name, pair in zip(names, row, strict=True)} for row in bounds],
        )


def load(model: Run | Path | str, engine: str | None = None, *, threads: int | None = None) -> Predictor:
    """A trained network, ready to predict: ``radgaze.load(run).predict(image)``.

    Args:
        model: A run, its folder, or a file that :func:`radgaze.export` wrote, which needs no run and no cohort.
        engine: ``"torch"``, ``"onnx"``, ``"openvino"`` or ``"torch-export"``. A run is exported for any other engine
            than torch once, into its folder ``exported``; by default it runs in torch, and a file in the engine that
            it is for.
        threads: How many the engine computes with, by default all cores; torch's is for the whole process.

    Raises:
        InputError: Not a finished run, a file that cannot be opened or is for another engine.
    """
    if not isinstance(model, Run) and is_exported(model):
        card, opened = open_model(model, threads)
        if engine not in (None, opened.name):
            raise InputError(
                f"{str(model)!r} is for engine {opened.name!r}, not {engine!r}; leave the engine out, or load the run."
            )
        return Predictor(card, opened, Path(model))
    run = model if isinstance(model, Run) else Run.open(model)
    card = ModelCard.of(run)
    if engine in (None, "torch"):
        if checked_threads(threads):
            torch.set_num_threads(threads)  # type: ignore[arg-type]  # not None
        return Predictor(card, TorchEngine(run.network(), run.device), run.path)
    from radgaze.inference.exporter import exported_for  # heavy: only other engines pay for it

    checked_threads(threads)
    path = exported_for(run, str(engine))
    try:
        opened = open_model(path, threads)[1]
    except InputError:  # damaged, or of a PyTorch that this one cannot read
        opened = open_model(exported_for(run, str(engine), anew=True), threads)[1]
    return Predictor(card, opened, path)


def _as_pixels(image: NDArray[Any]) -> NDArray[Any]:
    if image.ndim != 2 or image.size == 0 or not np.issubdtype(image.dtype, np.number):
        raise InputError(
            f"The image is an array of shape {image.shape} and type {image.dtype}; expected numbers of shape "
            "(height, width)."
        )
    if not np.isfinite(image).all():
        raise InputError("The image has pixels that are not finite; expected numbers.")
    return image - image.min() if image.min() < 0 else image


def _between(places: NDArray[np.floating[Any]], cells: int) -> NDArray[np.float32]:
    """``(len(places), cells)`` weights of linear interpolation at fractional cells; beyond the outer ones they hold."""
    places = np.clip(places, 0, cells - 1)
    below = np.minimum(places.astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((len(places), cells), np.float32)
    rows = np.arange(len(places))
    weights[rows, below] = 1 - (places - below)
    if cells > 1:
        weights[rows, below + 1] = places - below
    return weights
