"""A full evaluation to report on, and a strict reader of the page."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radgaze.report import GalleryItem, write_comparison, write_report

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

    def check_self_contained(self, html: str | None = None) -> None:
        """Nothing comes from elsewhere and nothing runs; ``html`` is the text to search, by default all of it."""
        assert not re.findall(r"https?:|//[a-z]|@import|url\((?!#)", self.html if html is None else html)
        assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in self.tags)
        for _, attributes in self.tags:
            assert (attributes.get("src") or "data:image/").startswith("data:image/")
            assert (attributes.get("href") or "#").startswith("#")
            assert not any(name.startswith("on") for name in attributes)
        policy = next(meta for meta in self.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
        assert (policy["content"] or "").startswith("default-src 'none'")

    def check_described(self) -> None:
        """Pictures have a text, tables a caption and scopes, and no level of headings is skipped."""
        assert all(image["alt"] for image in self.all("img"))
        assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in self.all("svg"))
        assert len(self.all("caption")) == len(self.all("table"))
        assert all(cell.get("scope") for cell in self.all("th"))
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


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


# What a seed gives, by method: the level of each measure with every training study. Attention is measured where a
# network predicts it, class activation maps where it has them.
LEVELS: dict[str, dict[str, float]] = {
    "classifier": {"auc_macro": 0.905, "ece": 0.046, "cam:energy_inside": 0.45, "cam:pointing_game": 0.71},
    "gg-cam": {"auc_macro": 0.911, "ece": 0.041, "cam:energy_inside": 0.78, "cam:pointing_game": 0.93},
    "mt-unet": {"auc_macro": 0.908, "ece": 0.052, "saliency:cc": 0.94, "saliency:kld": 0.13},
}
LOWER = ("ece", "brier", "nll", "saliency:kld")  # is better
SPREADS = {"auc_macro": 0.006, "ece": 0.008, "saliency:kld": 0.01}


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Median, range, mean and t interval, as in ``comparison.json``."""
    sample = np.array(values)
    half = T_975[len(sample)] * sample.std(ddof=1) / math.sqrt(len(sample)) if len(sample) > 1 else None
    mean = float(sample.mean())
    return {
        "median": float(np.median(sample)),
        "min": float(sample.min()),
        "max": float(sample.max()),
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "n": len(sample),
    }


T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def comparison_of(
    methods: tuple[str, ...] = ("classifier", "gg-cam"),
    backbones: tuple[str | None, ...] = ("resnet50",),
    sizes: tuple[int, ...] = (756,),
    seeds: int = 3,
    classes: tuple[str, ...] = ("normal", "bacterial pneumonia", "viral pneumonia"),
) -> dict[str, Any]:
    """A made-up comparison as ``radgaze compare`` writes it; the first method is the control of every pair."""
    rng = np.random.default_rng(1)
    arms: list[dict[str, Any]] = []
    for size in sizes:
        for backbone in backbones:
            for method in methods:
                own = None if method == "mt-unet" else backbone
                if method == "mt-unet" and backbone != backbones[0]:
                    continue
                levels = dict(LEVELS.get(method, LEVELS["gg-cam"]))
                levels |= {"auc_micro": 0.93, "accuracy": 0.79, "brier": 0.3, "nll": 0.52}
                levels |= {f"auc:{name}": 0.95 - 0.05 * index for index, name in enumerate(classes)}
                levels |= {f"grad_cam:{key}": 0.55 for key in ("energy_inside", "pointing_game", "cc")}
                fewer = 0.02 * math.log(max(sizes) / size)
                runs = [
                    {
                        "path": f"runs/{method}-{own or 'own'}-{size}-{seed}",
                        "seed": seed,
                        "status": "finished",
                        "error": None,
                        "best_epoch": 6 + seed,
                        "epochs": 12,
                        "seconds": 754.2 + 61 * seed,
                        "values": {
                            key: float(
                                np.clip(
                                    level - fewer * (-1 if key in LOWER else 1) + rng.normal(0, SPREADS.get(key, 0.02)),
                                    0,
                                    1,
                                )
                            )
                            for key, level in levels.items()
                        },
                    }
                    for seed in range(seeds)
                ]
                arms.append(
                    {
                        "name": f"{method} {own or 'width 16'} ({size})",
                        "method": method,
                        "backbone": own,
                        "train_studies": size,
                        "attention": "none" if method == "classifier" else "lungs mask (anatomy, not gaze)",
                        "parameters": 23_508_032 if own else 2_168_000,
                        "settings": {} if method == "classifier" else {"guidance": {"weight": 1.0, "loss": "kld"}},
                        "runs": runs,
                        "measures": {key: over_seeds([run["values"][key] for run in runs]) for key in levels},
                    }
                )
    pairs = [
        pair_of(arm, control, classes, rng)
        for control in arms
        if control["method"] == methods[0]
        for arm in arms
        if arm["method"] != methods[0]
        and arm["train_studies"] == control["train_studies"]
        and (arm["backbone"] in (control["backbone"], None))
        and (arm["backbone"] is not None or control["backbone"] == backbones[0])
    ]
    return {
        "radgaze": "0.1.0",
        "created": "2026-11-24T09:12:00+00:00",
        "title": "Does guidance by anatomy help a classifier?",
        "split": "test",
        "studies": 1110,
        "patients": 781,
        "cohort": {
            "name": "Kermany chest X-rays",
            "source": "tables",
            "studies": 5216,
            "patients": 3654,
            "size": [224, 224],
            "gaze_kind": "none",
            "counts": {"images": 5216, "masks": 5216},
            "splits": {"train": {"studies": 3655}, "val": {"studies": 780}, "test": {"studies": 1110}},
            "split_by": "patient",
        },
        "classes": list(classes),
        "attention": ["lungs mask (anatomy, not gaze)"],
        "protocol": {
            "methods": list(methods),
            "backbones": [name for name in backbones if name],
            "train_studies": list(sizes),
            "seeds": list(range(seeds)),
            "settings": {"epochs": 12, "batch_size": 32, "optimiser": {"name": "adamw", "lr": 0.002}},
            "resamples": 2000,
            "control": methods[0],
        },
        "arms": arms,
        "pairs": pairs,
        "failed": [],
        "notes": ["The lung masks come from a segmentation network and were not corrected by hand."],
    }


def pair_of(first: dict[str, Any], second: dict[str, Any], classes: tuple[str, ...], rng: Any) -> dict[str, Any]:
    """First minus second in the measures both have, with made-up intervals over patients."""
    measures = {}
    for key in first["measures"]:
        if key not in second["measures"]:
            continue
        per_seed = [a["values"][key] - b["values"][key] for a, b in zip(first["runs"], second["runs"], strict=True)]
        seeds, half = over_seeds(per_seed), float(rng.uniform(0.004, 0.012))
        p = 0.001 if abs(seeds["mean"]) > 2 * half else 0.02 if abs(seeds["mean"]) > half else 0.3
        measures[key] = {
            "value": seeds["mean"],
            "low": seeds["mean"] - half,
            "high": seeds["mean"] + half,
            "p_value": p,
            "p_adjusted": min(1.0, 2 * p),
            "seed_low": seeds["low"],
            "seed_high": seeds["high"],
            "per_seed": per_seed,
        }
    delong = {
        name: {
            "value": 0.004 - 0.003 * index,
            "low": -0.006 - 0.003 * index,
            "high": 0.014 - 0.003 * index,
            "z": 0.78 - 0.5 * index,
            "p_value": 0.43 + 0.1 * index,
            "p_adjusted": 1.0,
        }
        for index, name in enumerate(classes)
    }
    return {
        "first": first["name"],
        "second": second["name"],
        "train_studies": first["train_studies"],
        "seeds": [run["seed"] for run in first["runs"]],
        "measures": measures,
        "delong": delong,
    }


@pytest.fixture
def comparison() -> dict[str, Any]:
    """Three methods at three sizes, three seeds each, of which one did not finish."""
    made = comparison_of(("classifier", "gg-cam", "mt-unet"), sizes=(378, 756, 3655))
    return made


@pytest.fixture
def compare(tmp_path: Path) -> Callable[[dict[str, Any]], Page]:
    def page(comparison: dict[str, Any]) -> Page:
        return Page(write_comparison(comparison, tmp_path).read_text("utf-8"))

    return page
