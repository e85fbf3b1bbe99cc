"""``report.html``: what was trained on what, how well it does and what that looks like, in one self-contained file.

:func:`write_report` has each part of an evaluation turned into finished text and pictures (``summary``, ``results``,
``training``, ``gallery``, ``data``) and has ``templates/report.html.j2`` place them. The page needs no network and no
script, and its content security policy forbids both. Everything that comes from data is escaped by Jinja2's autoescape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radgaze.report import data, results, summary, training
from radgaze.report.gallery import GalleryItem, gallery_context
from radgaze.report.page import write_page
from radgaze.report.values import date_and_time, section

__all__ = ["GalleryItem", "write_report"]

HEADINGS = {
    "classification": "Diagnosis",
    "saliency": "Attention",
    "localisation": "Localisation",
    "gallery": "Studies",
    "training": "Training",
    "data": "Data",
    "notes": "Notes",
    "settings": "Settings",
    "glossary": "Measures",
    "commands": "Reproduce",
}
"""The sections in page order: the context's key, which is also the anchor, and the heading."""


def write_report(
    report: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    gallery: Sequence[GalleryItem],
    out: Path,
) -> Path:
    """Write the page and return its path.

    ``report`` is the content of ``report.json``; every section of it may be absent, and a value that is None or NaN
    reads "n/a". ``history`` has one row per epoch, ``gallery`` the studies to show; both may be empty. ``out`` is the
    file to write (``.html``), or a folder to write ``report.html`` into. The file appears complete or not at all.

    Raises InputError when a part contradicts itself: a confusion matrix that does not fit the classes, an image that is
    not two-dimensional.
    """
    return write_page("report", HEADINGS, _context(report, history, gallery), out)


def _context(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], gallery: Sequence[GalleryItem]
) -> dict[str, Any]:
    run = section(report, "run")
    return {
        "title": str(report.get("title") or "radgaze report"),
        "version": report.get("radgaze"),
        "created": date_and_time(report.get("created")),
        "split": summary.split_name(report),
        "attention": summary.attention_target(report),
        "summary": summary.paragraph(report),
        "cautions": summary.cautions(report),
        "cards": summary.cards(report),
        "classification": results.classification_context(report),
        "saliency": results.saliency_context(report),
        "localisation": results.localisation_context(report),
        "training": training.training_context(history, run),
        "gallery": gallery_context(gallery, report),
        "data": data.data_context(report),
        "notes": [str(note) for note in report.get("notes") or ()],
        "settings": data.settings_context(run),
        "glossary": data.measures_used(report, history, [item.scores for item in gallery]),
        "commands": data.commands(report),
    }
