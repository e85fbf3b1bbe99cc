from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radgaze.errors import InputError
from radgaze.report import GalleryItem, html, write_report

Render = Callable[..., Any]
HOSTILE = '<script>alert(\'x\')</script>" onload="x" $\\frac{1}{0}$ &amp; _\x00\udcff'


def test_the_whole_page_reads_from_top_to_bottom(render: Render, report: Any, history: Any, gallery: Any) -> None:
    page = render(report, history, gallery)
    assert page.sections == list(html.HEADINGS)
    assert [a["href"] for a in page.all("a")][1:] == [f"#{anchor}" for anchor in html.HEADINGS]
    for told in (
        "MT-UNet (2.17 million parameters, learning scheme uncertainty-class) was trained on Phantom "
        "(1,083 studies of 1,038 patients, split by patient) to tell apart normal, CHF and pneumonia "
        "and to predict where attention goes.",
        "The attention target is reader's gaze (samples, preset mt-unet, sigma 75.5 px)",
        "On the test split (162 studies of 1 patient) its macro AUC is 0.874 (95 % interval 0.834 to 0.904).",
        "at CC 0.607 (95 % interval 0.577 to 0.637), above the strongest baseline that never sees the image",
        "23 November 2026, 14:05 UTC",
        "640 × 512 pixels",
        "1,512,345",
        "Epoch 5 rate dropped, best restored",
        "radgaze train mt-unet COHORT --config RUN/config.json --seed 3 --out AGAIN",
        "radgaze evaluate AGAIN --split test",
    ):
        assert told in page.text, told


def test_it_needs_nothing_from_outside_and_runs_nothing(
    render: Render, report: Any, history: Any, gallery: Any
) -> None:
    page = render(report, history, gallery)
    page.check_self_contained()


def test_every_picture_is_described_and_every_table_headed(
    render: Render, report: Any, history: Any, gallery: Any
) -> None:
    page = render(report, history, gallery)
    page.check_described()


@pytest.mark.parametrize(
    ("absent", "gone", "kept"),
    [
        ("classification", {"classification"}, {"saliency", "gallery"}),
        ("saliency", {"saliency"}, {"classification", "gallery"}),
        ("run", {"settings", "commands"}, {"classification", "training"}),
        ("cohort", {"data"}, {"classification", "saliency"}),
        ("notes", {"notes"}, {"data"}),
    ],
)
def test_an_absent_part_leaves_no_trace(
    absent: str, gone: set[str], kept: set[str], render: Render, report: Any, history: Any, gallery: Any
) -> None:
    del report[absent]
    page = render(report, history, gallery)
    assert gone.isdisjoint(page.sections)
    assert kept <= set(page.sections)


def test_a_class_only_run_speaks_of_no_attention(render: Render, report: Any) -> None:
    del report["saliency"], report["localisation"]
    report["attention"] = "none"
    page = render(report)
    assert page.sections == ["classification", "data", "notes", "settings", "glossary", "commands"]
    assert "attention target is" not in page.text
    assert "predict where attention goes" not in page.text
    assert "AUC-Judd" not in page.text


def test_nothing_at_all_is_still_a_page(render: Render) -> None:
    assert render({}).sections == []


def test_missing_numbers_read_na(render: Render, report: Any) -> None:
    void = {"value": math.nan, "low": None, "high": math.nan}
    report["classification"] = {"auc_macro": void, "accuracy": None, "nll": math.inf, "auc": {"CHF": void}}
    report["saliency"] = {"model": {"cc": {"mean": math.nan, "std": math.nan, "n": 1}, "kld": 0.5}}
    page = render(report)
    assert not re.search(r"\b(nan|None|inf)\b", page.text)
    assert "n/a" in page.text
    assert "∞" in page.text
    assert "macro AUC is" not in page.text  # the summary tells no number that is not there


def test_one_epoch_and_a_history_of_holes(render: Render, report: Any, history: Any) -> None:
    assert "1 epoch." in render(report, history[:1]).text
    holes = [{"epoch": 1, "val_loss": math.nan, "lr": 0.0}, {"epoch": 2, "val_loss": None}]
    page = render(report, holes)
    assert "training" in page.sections
    assert not any("over 2 epochs" in (svg.get("aria-label") or "") for svg in page.all("svg"))


def test_every_loss_term_gets_a_panel_whatever_its_name(render: Render, report: Any) -> None:
    page = render(
        report, [{"epoch": e, "train_loss_localisation": 1 / e, "val_loss_localisation": 1.0} for e in (1, 2)]
    )
    assert "Localisation loss" in page.text


def test_whatever_comes_from_data_is_escaped(render: Render, report: Any, history: Any) -> None:
    hostile = copy.deepcopy(report)
    hostile |= {"title": HOSTILE, "split": HOSTILE, "attention": HOSTILE, "notes": [HOSTILE], "created": HOSTILE}
    hostile["classes"] = [HOSTILE, "CHF", "pneumonia"]
    for part in ("auc", "roc"):
        hostile["classification"][part][HOSTILE] = hostile["classification"][part].pop("normal")
    hostile["run"] |= {"method": HOSTILE, "config": {HOSTILE: HOSTILE}, "environment": {HOSTILE: {HOSTILE: [HOSTILE]}}}
    hostile["cohort"] |= {"name": HOSTILE, "counts": {HOSTILE: 1}, "splits": {HOSTILE: {HOSTILE: HOSTILE}}, HOSTILE: 1}
    hostile["saliency"][HOSTILE] = {HOSTILE: 0.5}
    hostile["gallery"] = {"ranked_by": HOSTILE}
    history[0] |= {"event": HOSTILE, HOSTILE: HOSTILE, f"val_{HOSTILE}": 0.5, f"sigma_{HOSTILE}": 1.0}
    item = GalleryItem(
        study_id=HOSTILE,
        group="best",
        image=np.zeros((8, 8)),
        cams={HOSTILE: np.eye(4)},
        probabilities={HOSTILE: 0.5, "CHF": 0.5},
        label=HOSTILE,
        scores={HOSTILE: 0.5},
    )
    page = render(hostile, history, [item])
    assert page.text.count("<script>alert('x')</script>") > 20  # shown as it is ...
    assert "<script" not in page.html  # ... and never obeyed
    assert not any("onload" in attributes for _, attributes in page.tags)


def test_the_page_is_the_same_each_time(tmp_path: Path, report: Any, history: Any, gallery: Any) -> None:
    one = write_report(report, history, gallery, tmp_path / "one").read_bytes()
    two = write_report(report, history, gallery, tmp_path / "two.html").read_bytes()
    assert one == two
    assert (tmp_path / "one" / "report.html").is_file()


def test_a_failed_report_leaves_the_old_one(tmp_path: Path, report: Any) -> None:
    path = write_report(report, [], [], tmp_path)
    before = path.read_bytes()
    report["classification"]["confusion"] = [[1, 2], [3, 4]]
    with pytest.raises(InputError, match=r"shape \(2, 2\) does not fit 3 classes"):
        write_report(report, [], [], tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_page_cut_short_is_never_seen(tmp_path: Path, report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(report, [], [], tmp_path)
    before = path.read_bytes()

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(report | {"title": "another"}, [], [], tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_style_and_template_are_part_of_the_package() -> None:
    templates = Path(html.__file__).parent / "templates"
    assert {entry.name for entry in templates.iterdir()} == {
        "base.html.j2",
        "comparison.html.j2",
        "macros.html.j2",
        "redundancy.html.j2",
        "report.html.j2",
        "simplification.html.j2",
        "style.css",
    }
