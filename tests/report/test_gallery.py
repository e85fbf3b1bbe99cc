from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from radgaze.errors import InputError
from radgaze.report import GalleryItem, gallery
from radgaze.report.gallery import gallery_context

IMAGE = np.linspace(0, 1, 40 * 30).reshape(40, 30)


def studies(item: GalleryItem, **report: Any) -> dict[str, Any]:
    return gallery_context([item], report)["groups"][0]["studies"][0]


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))).astype(int)


def test_best_comes_first_whatever_the_order(render: Callable[..., Any], report: Any, gallery: Any) -> None:
    text = render(report, [], gallery).text
    assert text.index("Best P1/s1") < text.index("Median P2/s2") < text.index("Worst P0/s0")
    assert "✓ right" in text
    assert "✗ wrong" in text


def test_only_gaze_is_called_a_readers_attention() -> None:
    item = GalleryItem("s", "best", IMAGE, attention=np.eye(5), fixations=np.array([[3, 4], [5, 6]]))
    gaze = studies(item, attention="reader's gaze (fixations, preset mt-unet)", cohort={"gaze_kind": "samples"})
    assert [p["caption"] for p in gaze["pictures"]] == ["Image", "Reader’s attention, 2 fixations"]
    mask = studies(GalleryItem("s", "best", IMAGE, attention=np.eye(5)), attention="lungs mask (anatomy, not gaze)")
    assert [p["caption"] for p in mask["pictures"]] == ["Image", "Attention target"]


def test_an_empty_map_says_so() -> None:
    study = studies(GalleryItem("s", "worst", IMAGE, attention=np.zeros((4, 4)), prediction=np.full((4, 4), np.nan)))
    assert [p["caption"] for p in study["pictures"][1:]] == ["Attention target: none", "Predicted attention: none"]
    assert study["scale"] is None


def test_the_scale_is_the_highest_density_of_both_maps() -> None:
    peak = np.zeros((4, 5))
    peak[1, 2] = 3.0  # all attention on 1 of 20 pixels: 20 times an even spread
    assert studies(GalleryItem("s", "best", IMAGE, attention=np.ones((4, 4)), prediction=peak))["scale"] == "20.0"


def test_both_maps_of_a_study_share_one_scale() -> None:
    peak = np.zeros((4, 5))
    peak[1, 2] = 1.0
    grey = np.full((40, 50), 128, np.uint8)
    item = GalleryItem("s", "best", grey, attention=np.ones((4, 5)), prediction=peak)
    image, even, peaked = (decoded(picture["source"]) for picture in studies(item)["pictures"])
    assert np.abs(peaked - image[..., None]).max() > 3 * np.abs(even - image[..., None]).max() > 0


def test_cams_share_one_scale_and_show_only_evidence_for_their_class() -> None:
    grey = np.full((40, 50), 128, np.uint8)
    cams = {"strong": np.full((4, 5), 8.0), "weak": np.full((4, 5), 1.0), "against": np.full((4, 5), -8.0)}
    study = studies(GalleryItem("s", "best", grey, cams=cams))
    assert study["pictures"][3]["caption"] == "Class activation: against, none positive"
    image, strong, weak, against = (decoded(picture["source"]) for picture in study["pictures"])
    shift = [np.abs(picture - image[..., None]).max() for picture in (strong, weak, against)]
    assert shift[0] > shift[1] > shift[2] == 0


def test_decision_map_is_drawn_on_its_own_scale() -> None:
    grey, decision = np.full((40, 50), 128, np.uint8), np.zeros((4, 5))
    decision[2:] = 0.01  # small beside the CAM, and drawn as strongly as the CAM at its peak
    study = studies(GalleryItem("s", "best", grey, cams={"a": np.full((4, 5), 8.0)}, decision=decision))
    assert [picture["caption"] for picture in study["pictures"]] == ["Image", "Class activation: a", "Decision map"]
    image, cam, drawn = (decoded(picture["source"]) for picture in study["pictures"])
    inside, outside = drawn[35, 25] - image[35, 25], drawn[3, 25] - image[3, 25]
    assert np.abs(inside).max() > 0.8 * np.abs(cam - image[..., None]).max()
    assert np.abs(outside).max() <= 2


def test_probabilities_that_exclude_each_other_name_a_prediction_and_others_do_not() -> None:
    single = studies(GalleryItem("s", "best", IMAGE, probabilities={"a": 0.7, "b": 0.3}, label="b"))
    assert (single["predicted"], single["right"]) == ("a", False)
    multi = studies(GalleryItem("s", "best", IMAGE, probabilities={"a": 0.7, "b": 0.8}, label=("a", "b")))
    assert (multi["predicted"], multi["right"]) == (None, None)
    assert [bar["true"] for bar in multi["bars"]] == [True, True]
    unknown = studies(GalleryItem("s", "best", IMAGE, probabilities={"a": np.nan, "b": 1.0}))
    assert unknown["bars"][0]["text"] == "n/a"


def test_of_many_classes_the_true_and_the_likeliest_are_shown_in_order() -> None:
    probabilities = {f"c{index:02d}": index / 100 for index in range(14)}
    study = studies(GalleryItem("s", "best", IMAGE, probabilities=probabilities, label="c00"))
    assert [bar["name"] for bar in study["bars"]] == ["c00", "c07", "c08", "c09", "c10", "c11", "c12", "c13"]
    assert study["left_out"] == 6
    cams = {name: np.eye(3) for name in probabilities}
    shown = studies(GalleryItem("s", "best", IMAGE, probabilities=probabilities, label="c00", cams=cams))["pictures"]
    assert [picture["caption"] for picture in shown[1:]] == [f"Class activation: {c}" for c in ("c00", "c12", "c13")]


def test_pictures_shrink_until_the_page_is_small_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    items = [
        GalleryItem(str(index), "best", rng.random((600, 500)), attention=rng.random((9, 9))) for index in range(4)
    ]

    def longest_and_total() -> tuple[int, int]:
        shown = [p for s in gallery_context(items, {})["groups"][0]["studies"] for p in s["pictures"]]
        return shown[0]["height"], sum(len(picture["source"]) for picture in shown)

    largest, total = longest_and_total()
    assert largest == gallery.PICTURE_SIZES[0][0]
    monkeypatch.setattr(gallery, "PICTURE_BUDGET", total // 2)
    smaller, fitted = longest_and_total()
    assert smaller < largest
    assert fitted <= total // 2


def test_a_small_image_is_not_blown_up_and_keeps_its_shape() -> None:
    picture = studies(GalleryItem("s", "best", IMAGE))["pictures"][0]
    assert (picture["height"], picture["width"]) == IMAGE.shape


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(InputError, match="'good' is unknown: use one of best, median, worst"):
        GalleryItem("s", "good", IMAGE)  # type: ignore[arg-type]
