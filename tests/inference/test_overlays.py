from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from radgaze.inference import Prediction
from radgaze.inference import overlays as module
from radgaze.inference.overlays import draw
from radgaze.report import figures
from tests.inference.predictors import CLASSES, blob, formula_predictor


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return formula_predictor().predict(np.kron(blob(), np.ones((10, 10), np.uint16)))


def panels(prediction: Prediction) -> dict[str, module.Panel]:
    return {panel.title + panel.subject: panel for panel in module._panels(prediction)}


def test_panels_show_the_image_and_maps_at_one_size(prediction: Prediction) -> None:
    found = panels(prediction)
    ranked = sorted(CLASSES, key=lambda name: -prediction.probabilities[name])
    assert list(found) == ["Image", "Predicted attention", *(f"Class activation: {name}" for name in ranked)]
    assert {panel.pixels.shape for panel in found.values()} == {(576, 448, 3)}
    image = found["Image"].pixels
    assert np.array_equal(image[..., 0], image[..., 2])  # grey
    assert image.max() == 255  # its brightest pixel is white
    assert image[192, 256].mean() > 250  # where the blob is
    assert image[500, 50].mean() < 30


def test_attention_is_told_in_multiples_of_an_even_spread(prediction: Prediction) -> None:
    assert prediction.attention is not None
    spread = prediction.on_image(prediction.attention, (576, 448))
    top = float(spread.max() / spread.mean())
    panel = panels(prediction)["Predicted attention"]
    assert panel.ends == ("0", f"{top:.1f}×" if top < 10 else f"{top:.0f}×")
    differs = np.abs(panel.pixels.astype(int) - panels(prediction)["Image"].pixels).sum(-1)
    assert differs[192, 256] > 2 * differs[500, 50]  # the blob is tinted, the dark corner less


def test_cams_share_the_scale_of_the_strongest(prediction: Prediction) -> None:
    assert prediction.cams is not None
    strongest = max(prediction.on_image(cam, (576, 448)).max() for cam in prediction.cams.values())
    weakest = panels(prediction)[f"Class activation: {CLASSES[2]}"]
    grey = panels(prediction)["Image"].pixels[..., 0]
    cam = prediction.on_image(prediction.cams[CLASSES[2]], (576, 448))
    assert 0 < cam.max() < strongest
    assert np.array_equal(weakest.pixels, figures.overlay(grey, cam, high=strongest, colours=figures.CAM_MAP))
    against = replace(prediction, cams={name: -np.ones((4, 3), np.float32) for name in CLASSES})
    panel = panels(against)[f"Class activation: {CLASSES[0]}"]
    assert panel.note == "no evidence for the class"
    assert np.array_equal(panel.pixels[..., 0], grey)


def test_only_the_likeliest_of_many_classes_have_a_panel() -> None:
    names = tuple(f"class {index}" for index in range(12))
    likely = {name: (index + 1) / 100 for index, name in enumerate(names)}
    maps = dict.fromkeys(names, np.eye(4, dtype=np.float32))
    base = formula_predictor().predict(blob())
    many = replace(base, probabilities=likely, intervals=None, cams=maps)
    assert list(panels(many))[2:] == [f"Class activation: class {index}" for index in (11, 10, 9)]
    assert draw(many).shape[2] == 3


def test_a_probability_is_never_told_as_certainty() -> None:
    told = {value: module._told(value) for value in (0.0, 1e-6, 0.0049, 0.006, 0.5, 0.994, 0.9951, 1.0)}
    assert list(told.values()) == ["<0.01", "<0.01", "<0.01", "0.01", "0.50", "0.99", ">0.99", ">0.99"]


@pytest.mark.parametrize("size", [(3, 2), (2000, 40), (40, 2000), (1, 1000)])
@pytest.mark.parametrize("name", ["short", "an exceedingly long name of a class, " * 5, "", "ключица 肺炎"])
def test_any_shape_and_name_stays_within_the_picture(size: tuple[int, int], name: str) -> None:
    predictor = formula_predictor(classes=(name, "b", "c"))
    pixels = np.linspace(0, 1000, size[0] * size[1]).reshape(size).astype(np.uint16)
    drawn = draw(predictor.predict(pixels))
    assert drawn.dtype == np.uint8
    assert max(drawn.shape[:2]) < 3200
    assert (drawn[:, :20] == 255).all()  # nothing runs over the margins
    assert (drawn[:, -20:] == 255).all()
    assert (drawn != 255).any()


def test_no_name_is_drawn(tmp_path: Path) -> None:
    """A file may be called after its patient: pictures of one image are alike under any name."""
    from PIL import Image

    first, second = tmp_path / "a.png", tmp_path / "Jane Doe 1950.png"
    for path in (first, second):
        Image.fromarray(blob().astype(np.uint16)).save(path)
    predictor = formula_predictor()
    assert np.array_equal(draw(predictor.predict(first)), draw(predictor.predict(second)))


def test_networks_without_classes_or_maps() -> None:
    without_classes = draw(formula_predictor(("saliency_logits",)).predict(blob()))
    without_maps = draw(formula_predictor(("logits",)).predict(blob()))
    assert without_classes.shape != without_maps.shape
    uncalibrated = draw(formula_predictor(calibrated=False).predict(blob()))
    assert not np.array_equal(uncalibrated, draw(formula_predictor().predict(blob())))
