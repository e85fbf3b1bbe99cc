from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from radgaze.report import summary
from radgaze.report.results import classification_context, localisation_context, saliency_context
from tests.report.conftest import over_studies


def test_the_best_mean_follows_the_direction_of_the_measure(report: Any) -> None:
    groups = saliency_context(report)["groups"]
    best = {group["measure"].key: [row["name"] for row in group["rows"] if row["best"]] for group in groups}
    assert best["cc"] == ["MT-UNet"]  # 0.607 against 0.5, higher is better
    assert best["kld"] == ["mean map"]  # 0.61 against 0.5, lower is better
    assert all(group["rows"][0]["model"] for group in groups)


def test_a_baseline_that_wins_is_said_to_win(render: Callable[..., Any], report: Any) -> None:
    report["saliency"]["mean map"]["cc"]["mean"] = 0.7
    assert "not above the strongest baseline that never sees the image (mean map: 0.700)" in render(report).text


def test_measures_are_in_the_glossarys_order_and_unknown_ones_last(report: Any) -> None:
    report["saliency"]["model"] = {"energy_inside": 0.4, **report["saliency"]["model"]}
    keys = [group["measure"].key for group in saliency_context(report)["groups"]]
    assert keys == ["kld", "cc", "sim", "nss", "auc_judd", "shuffled_auc", "energy_inside"]


def test_confusion_shares_are_of_the_true_class(report: Any) -> None:
    rows = classification_context(report)["confusion"]["rows"]
    assert [cell["count"] for cell in rows[2]["cells"]] == ["12", "11", "33"]
    assert [cell["share"] for cell in rows[2]["cells"]] == ["21 %", "20 %", "59 %"]
    assert [cell["right"] for cell in rows[2]["cells"]] == [False, False, True]
    assert rows[2]["total"] == "56"


def test_a_class_without_studies_has_no_share_and_no_curve(report: Any) -> None:
    part = report["classification"]
    part["confusion"][1] = [0, 0, 0]
    part["roc"]["CHF"] = {"fpr": [0.0, 1.0], "tpr": [None, math.nan]}
    part["auc"]["CHF"] = {"value": None, "low": None, "high": None, "n_positive": 0}
    context = classification_context(report)
    assert [cell["share"] for cell in context["confusion"]["rows"][1]["cells"]] == ["n/a"] * 3
    assert "normal 0.900, pneumonia 0.800" in context["roc"]


def test_an_auc_below_chance_stays_on_the_scale(report: Any) -> None:
    report["classification"]["auc"]["CHF"] = {"value": 0.33, "low": 0.27, "high": 0.4}
    assert classification_context(report)["domain"] == ["0.2", "1"]


def test_multilabel_and_partial_results(report: Any) -> None:
    report["classification"] = {"auc": {"CHF": {"value": 0.8}}, "operating": {"CHF": {"threshold": 0.31, "n": 4}}}
    context = classification_context(report)
    assert context["confusion"] is None
    assert context["roc"] is None
    assert context["reliability"] is None
    assert context["operating"]["rows"] == [("CHF", ["0.310", "4"])]


@pytest.mark.parametrize(
    ("split", "told"),
    [("val", "chose the best epoch"), ("all", "include studies the network was trained on"), ("test", None)],
)
def test_numbers_that_flatter_carry_a_caution(
    split: str, told: str | None, render: Callable[..., Any], report: Any
) -> None:
    report["split"] = split
    page = render(report)
    assert ("Caution" in page.text) == (told is not None)
    assert told is None or told in page.text


def test_a_split_by_image_carries_a_caution(render: Callable[..., Any], report: Any) -> None:
    report["cohort"]["split_by"] = "image"
    assert "a patient may be on both sides" in render(report).text


def test_localisation_is_read_class_by_class_beside_a_uniform_map(report: Any) -> None:
    context = localisation_context(report)
    rows = {group["measure"].key: group["rows"] for group in context["groups"]}
    assert [(row["name"], row["value"], row["uniform"]) for row in rows["pointing_game"]] == [
        ("All classes", "0.900", "0.410"),
        ("CHF", "0.800", ""),
    ]
    assert [row["name"] for row in rows["cc"]] == ["All classes", "normal"]
    assert context["structures"] == [("CHF", "heart and mediastinum"), ("pneumonia", "lungs")]


def test_grad_cam_stands_beside_the_networks_own_map(render: Callable[..., Any], report: Any) -> None:
    report["localisation"]["grad-cam"] = {
        "overall": {"pointing_game": over_studies(0.7), "iou": over_studies(0.2)},
        "classes": {"normal": {}, "CHF": {"pointing_game": over_studies(0.6)}},
    }
    rows = {group["measure"].key: group["rows"] for group in localisation_context(report)["groups"]}
    assert [(row["name"], row["map"], row["value"], row["uniform"]) for row in rows["pointing_game"]] == [
        ("All classes", "CAM", "0.900", "0.410"),
        ("All classes", "Grad-CAM", "0.700", "0.410"),
        ("CHF", "CAM", "0.800", ""),
        ("CHF", "Grad-CAM", "0.600", ""),
    ]
    assert [(row["map"], row["overall"]) for row in rows["iou"]] == [("Grad-CAM", True)]
    text = render(report).text
    assert "CAM and Grad-CAM of the true class on the test split." in text
    assert "here, the positive part of the CAM" in text


def test_grad_cam_alone_is_not_taken_for_a_map_of_the_networks_own(render: Callable[..., Any], report: Any) -> None:
    report["localisation"]["grad-cam"] = {"overall": {"energy_inside": over_studies(0.3)}, "classes": {}}
    del report["localisation"]["model"], report["saliency"]
    page = render(report)
    assert "Grad-CAM of the true class on the test split." in page.text
    assert "Of the true class’s Grad-CAM, a share of 0.300" in page.text
    assert "CAM is the network’s own" not in page.text
    assert "Share of the true class's positive activation" in page.text  # the glossary explains it
    assert [card["measure"].name for card in summary.cards(report)] == ["Macro AUC", "Accuracy", "ECE"]


def test_no_localisation_without_a_measured_study(report: Any) -> None:
    report["localisation"] = {"structures": {}, "model": {"overall": {}, "classes": {}}}
    assert localisation_context(report) is None
