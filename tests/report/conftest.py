"""A full evaluation to report on, and a strict reader of the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radgaze.report import GalleryItem, write_report

CLASSES = ["normal", "CHF", "pneumonia"]
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr", "source"}


class Page(HTMLParser):
    """Reads a page and fails on what a browser would have to repair: unbalanced tags, repeated ids or attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), "an id stands twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute stands twice on <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open or tag == "svg", f"<{tag}/> closes itself outside a drawing"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> crosses another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., Page]:
    def page(report: dict[str, Any], history: Any = (), gallery: Any = ()) -> Page:
        return Page(write_report(report, list(history), list(gallery), tmp_path).read_text("utf-8"))

    return page


def estimate(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - 0.04, "high": value + 0.03, **more}


def over_studies(mean: float) -> dict[str, Any]:
    return {"mean": mean, "median": mean - 0.01, "std": 0.2, "low": mean - 0.03, "high": mean + 0.03, "n": 40}


@pytest.fixture
def report() -> dict[str, Any]:
    rates = np.linspace(0, 1, 30)
    measures = {"kld": 0.61, "cc": 0.607, "sim": 0.56, "nss": 1.12, "auc_judd": 0.8, "shuffled_auc": 0.61}
    return {
        "radgaze": "0.1.0",
        "created": "2026-11-23T14:05:00+00:00",
        "title": "MT-UNet on a phantom cohort",
        "run": {
            "method": "mt-unet",
            "scheme": "uncertainty-class",
            "seed": 3,
            "parameters": 2_168_000,
            "best_epoch": 6,
            "epochs": 8,
            "precision": "bf16",
            "config": {"model": {"width": 16, "dropout": 0.25}, "augment": {}, "weights": None},
            "environment": {"torch": "2.11.0"},
        },
        "cohort": {
            "name": "Phantom",
            "source": "egd-cxr",
            "studies": 1083,
            "patients": 1038,
            "size": [640, 512],
            "gaze_kind": "samples",
            "counts": {"gaze_samples": 1512345, "calibration_rows": 20412},
            "splits": {"train": {"studies": 758}, "test": {"studies": 162}},
            "split_by": "patient",
        },
        "split": "test",
        "studies": 162,
        "patients": 1,
        "attention": "reader's gaze (samples, preset mt-unet, sigma 75.5 px)",
        "classes": list(CLASSES),
        "classification": {
            "auc_macro": estimate(0.874),
            "accuracy": estimate(0.716),
            "ece": estimate(0.061),
            "auc": {name: estimate(0.9 - 0.05 * i, n_positive=50 + i) for i, name in enumerate(CLASSES)},
            "confusion": [[39, 2, 9], [3, 44, 9], [12, 11, 33]],
            "roc": {name: {"fpr": rates.tolist(), "tpr": (rates**0.3).tolist()} for name in CLASSES},
            "reliability": [
                {"low": 0.0, "high": 0.5, "confidence": math.nan, "accuracy": math.nan, "count": 0},
                {"low": 0.5, "high": 1.0, "confidence": 0.75, "accuracy": 0.7, "count": 162},
            ],
        },
        "saliency": {
            "mean map": {key: over_studies(0.5) for key in measures},
            "model": {key: over_studies(value) for key, value in measures.items()},
        },
        "localisation": {
            "structures": {"normal": [], "CHF": ["heart", "mediastinum"], "pneumonia": ["lungs"]},
            "threshold": 0.5,
            "tolerance": 1,
            "gaze": "reader's gaze (samples, preset gg-cam)",
            "model": {
                "overall": {"cc": over_studies(0.5), "pointing_game": over_studies(0.9)},
                "classes": {"normal": {"cc": over_studies(0.4)}, "CHF": {"pointing_game": over_studies(0.8)}},
            },
            "uniform": {"overall": {"pointing_game": over_studies(0.41)}, "classes": {"normal": {}, "CHF": {}}},
        },
        "notes": ["Intervals are percentile bootstrap over patients."],
    }


@pytest.fixture
def history() -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "lr": 1e-4 if epoch < 5 else 1e-5,
            "train_loss": 2 - 0.1 * epoch,
            "val_loss": 2.1 - 0.1 * epoch,
            "val_loss_saliency": 1 / epoch,
            "sigma_class": 1.0,
            "sigma_attention": 1e-10 * 10**epoch,
            "weight_class": 1.0,
            "weight_attention": 0.5 * 1e20 / 100**epoch,
            "cam_scale": 1 + 0.1 * epoch,
            "val_auc_macro": 0.5 + 0.04 * epoch,
            "val_cc": 0.05 * epoch,
            "val_kld": 1 / epoch,
            "event": "rate dropped, best restored" if epoch == 5 else "",
            "seconds": 40.25,
        }
        for epoch in range(1, 9)
    ]


@pytest.fixture
def gallery() -> list[GalleryItem]:
    rng = np.random.default_rng(0)
    image = np.linspace(0, 1, 64 * 48).reshape(64, 48)
    return [
        GalleryItem(
            study_id=f"P{index}/s{index}",
            group=group,
            image=image,
            attention=rng.random((16, 12)),
            prediction=rng.random((16, 12)),
            probabilities={"normal": 0.7, "CHF": 0.2, "pneumonia": 0.1},
            label="normal" if group == "best" else "CHF",
            scores={"cc": 0.8, "kld": math.nan},
            fixations=rng.random((5, 2)) * [48, 64],
        )
        for index, group in enumerate(("worst", "best", "median"))
    ]
