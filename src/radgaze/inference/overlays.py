"""A prediction as one picture: the image, what the network expects to be looked at, and what speaks for each class.

It is for people, on paper or screen: light background, text that can be read, every colour with what it stands for. No
name is drawn, neither of a patient nor of a file, because a file may be called after its patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from radgaze import __version__
from radgaze.cohort.pixels import resample
from radgaze.gaze import Grid
from radgaze.inference.predictor import Prediction
from radgaze.report import figures

__all__ = ["MOST_CAMS", "draw"]

MOST_CAMS = 3  # of the likeliest classes
MOST_ROWS = 8  # classes with their probability above the pictures
LONGEST = 768  # pixels of a panel's longer side
LONGEST_OF_MANY = 576  # where there are more than three panels
SHORTEST = 384  # smaller images are enlarged to this
CELL = 330  # least width of a panel with its legend
NAME = 460  # most width of a class's name beside its bar
MARGIN, GAP = 28, 24
BAR, BAR_ROW = 240, 32
WIDE = 2.2  # panels are arranged so that they come close to this ratio of width to height

INK, MUTED, RULE, PAPER = "#1b1f24", "#646b73", "#dedcd7", "#ffffff"
FILL, WHISKER = "#0b66a8", "#1b1f24"


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture with what stands above and below it; ``subject`` ends the title and is shortened where it must."""

    title: str
    subject: str
    pixels: NDArray[np.uint8]
    legend: NDArray[np.uint8] | None = None
    ends: tuple[str, str] = ("", "")
    note: str = ""


def draw(prediction: Prediction) -> NDArray[np.uint8]:
    """The picture of a prediction: ``(H, W, 3)`` uint8.

    Panels of at most 768 pixels a side: the image (black is 0, white its brightest pixel, as the network sees it), the
    predicted attention in multiples of an even spread over the image, and the class activation maps of the three
    likeliest classes, all on the scale of the strongest of them.
    """
    panels = _panels(prediction)
    height, width = panels[0].pixels.shape[:2]
    cell = max(width, CELL)
    columns = _columns(len(panels), height + 110, cell)
    rows = math.ceil(len(panels) / columns)
    likely = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
    inner = max(columns * cell + (columns - 1) * GAP, 2 * CELL + GAP)
    head = _head_height(prediction)
    size = (2 * MARGIN + inner, MARGIN + head + rows * (height + 118) + (rows - 1) * GAP + 46)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    _head(pen, prediction, likely, inner)
    left = MARGIN + (inner - columns * cell - (columns - 1) * GAP) // 2
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        _place(sheet, pen, panel, left + column * (cell + GAP), MARGIN + head + row * (height + 118 + GAP), cell)
    foot = f"radgaze {__version__} · research only, not for diagnosis"
    pen.text((MARGIN, size[1] - 20), foot, MUTED, _font(14), "ls")
    return np.asarray(sheet)


def _panels(prediction: Prediction) -> list[Panel]:
    source = prediction.picture.pixels
    height, width = source.shape
    cams = shown_cams(prediction)
    longest = LONGEST if len(cams) + (prediction.attention is not None) < 3 else LONGEST_OF_MANY
    scale = min(longest / max(height, width), max(1.0, SHORTEST / max(height, width)))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    grey = figures.to_uint8(resample(source, Grid.area((height, width), size)))
    panels = [Panel("Image", "", np.repeat(grey[..., None], 3, axis=2))]
    if prediction.attention is not None:
        density = figures.relative_density(prediction.on_image(prediction.attention, size))
        highest = float(density.max())
        panels.append(
            Panel(
                "Predicted attention",
                "",
                figures.overlay(grey, density, high=highest),
                figures.colour_bar(200, 14),
                ("0", f"{highest:.1f}×" if highest < 10 else f"{highest:.0f}×"),
                "multiples of an even spread",
            )
        )
    spread = {name: prediction.on_image(cam, size) for name, cam in cams.items()}
    strongest = max((float(cam.max()) for cam in spread.values()), default=0.0)
    for name, cam in spread.items():
        panels.append(
            Panel(
                "Class activation: ",
                name,
                figures.overlay(grey, cam, high=strongest, colours=figures.CAM_MAP),
                figures.colour_bar(200, 14, colours=figures.CAM_MAP),
                ("0", "1"),
                "evidence for the class, strongest shown = 1" if cam.max() > 0 else "no evidence for the class",
            )
        )
    return panels


def shown_cams(prediction: Prediction) -> dict[str, NDArray[np.float32]]:
    """The class activation maps of the three likeliest classes, likeliest first."""
    cams = prediction.cams or {}
    ranked = sorted(cams, key=lambda name: -prediction.probabilities.get(name, 0.0))
    return {name: cams[name] for name in ranked[:MOST_CAMS]}


def _columns(count: int, height: int, width: int) -> int:
    """How many panels stand side by side: neither a long strip nor many empty places."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns * width / (rows * height * WIDE))) + 1.5 * (1 - count / (rows * columns))

    return min(range(count, 0, -1), key=cost)


# ---- what stands above: the probability of each class


def _head_height(prediction: Prediction) -> int:
    if not prediction.probabilities:
        return 62
    rows = min(len(prediction.probabilities), MOST_ROWS)
    return 84 + BAR_ROW * rows + 24 * (len(prediction.probabilities) > rows) + 12


def _head(pen: ImageDraw.ImageDraw, prediction: Prediction, likely: Sequence[tuple[str, float]], inner: int) -> None:
    title = prediction.predicted
    if title is not None:
        heading = f"Predicted: {title}"
    else:
        heading = "Probability of each label" if likely else "Predicted attention"
    pen.text((MARGIN, MARGIN + 24), _fitted(heading, 26, inner, bold=True), INK, _font(26, bold=True), "ls")
    if not likely:
        return
    told = "probability, 95 % interval" if prediction.intervals else "probability, not calibrated"
    pen.text((MARGIN, MARGIN + 54), told, MUTED, _font(16), "ls")
    shown = likely[:MOST_ROWS]
    numbers = [_numbers(prediction, name, value) for name, value in shown]
    room = min(NAME, inner - BAR - 2 * 16 - round(max(_font(18).getlength(text) for text in numbers)))
    names = [_fitted(name, 18, room, bold=name == title) for name, _ in shown]
    widths = [_font(18, bold=name == title).getlength(text) for (name, _), text in zip(shown, names, strict=True)]
    start = MARGIN + 16 + round(max(widths))
    for row, ((name, value), shortened, text) in enumerate(zip(shown, names, numbers, strict=True)):
        middle = MARGIN + 84 + row * BAR_ROW
        pen.text((MARGIN, middle), shortened, INK, _font(18, bold=name == title), "lm")
        pen.rectangle((start, middle - 8, start + BAR, middle + 8), fill="#eeece8")
        pen.rectangle((start, middle - 8, start + max(1, round(BAR * value)), middle + 8), fill=FILL)
        if prediction.intervals:
            low, high = (start + round(BAR * bound) for bound in prediction.intervals[name])
            ends = (low - 1, middle - 5, low + 1, middle + 5), (high - 1, middle - 5, high + 1, middle + 5)
            mark = [(low, middle - 1, high, middle + 1), *ends]
            for box in mark:
                pen.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), fill=PAPER)
            for box in mark:
                pen.rectangle(box, fill=WHISKER)
        pen.text((start + BAR + 16, middle), text, INK, _font(18), "lm")
    if len(likely) > len(shown):
        middle = MARGIN + 84 + len(shown) * BAR_ROW - 4
        pen.text((MARGIN, middle), f"and {len(likely) - len(shown)} less likely", MUTED, _font(16), "lm")


def _numbers(prediction: Prediction, name: str, value: float) -> str:
    if not prediction.intervals:
        return _told(value)
    low, high = prediction.intervals[name]
    return f"{_told(value)} ({_told(low)} to {_told(high)})"


def _told(probability: float) -> str:
    """Two digits, and never certainty."""
    if probability < 0.005:
        return "<0.01"
    return ">0.99" if probability >= 0.995 else f"{probability:.2f}"


# ---- the panels


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int, cell: int) -> None:
    """A panel in the cell whose upper left corner is given: title, picture, legend."""
    height, width = panel.pixels.shape[:2]
    title = panel.title + panel.subject
    if _font(18, bold=True).getlength(title) > cell and panel.subject:
        title = "CAM: " + _fitted(panel.subject, 18, cell - _font(18, bold=True).getlength("CAM: "), bold=True)
    pen.text((left, top + 20), title, INK, _font(18, bold=True), "ls")
    sheet.paste(Image.fromarray(panel.pixels), (left, top + 34))
    pen.rectangle((left - 1, top + 33, left + width, top + 34 + height), outline=RULE)
    if panel.legend is None:
        return
    below, font = top + 34 + height + 14, _font(16)
    low, high = panel.ends
    place = left + round(font.getlength(low)) + 8
    pen.text((left, below + 7), low, INK, font, "lm")
    sheet.paste(Image.fromarray(panel.legend), (place, below))
    pen.rectangle((place - 1, below - 1, place + panel.legend.shape[1], below + panel.legend.shape[0]), outline=RULE)
    pen.text((place + panel.legend.shape[1] + 8, below + 7), high, INK, font, "lm")
    size = next((size for size in (16, 15, 14, 13) if _font(size).getlength(panel.note) <= cell), 12)
    pen.text((left, below + 38), _fitted(panel.note, size, cell), MUTED, _font(size), "ls")


@lru_cache(maxsize=32)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def _fitted(text: str, size: int, width: float, bold: bool = False) -> str:
    """The text on one line, shortened in its middle until it is at most ``width`` pixels long."""
    text = " ".join(text.split())
    font = _font(size, bold)
    kept = len(text)
    shown = text
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
    return shown
