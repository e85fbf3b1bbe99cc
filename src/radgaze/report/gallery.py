"""The gallery: studies as a reader and as the network saw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radgaze.errors import InputError
from radgaze.report import figures
from radgaze.report.glossary import describe
from radgaze.report.values import count, finite, number, ordered, section

__all__ = ["GalleryItem", "gallery_context"]

GROUPS = {"best": "Best", "median": "Median", "worst": "Worst"}

# The pictures of a page shrink together until they fit: (longest side in pixels, JPEG quality), best first.
PICTURE_SIZES = ((480, 86), (400, 84), (320, 80), (256, 76), (192, 70), (128, 60))
PICTURE_BUDGET = 4_500_000  # characters of all pictures together; the rest of a page is a few hundred thousand
MAX_BARS = 8
MAX_CAMS = 3


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """One study to show.

    ``image`` (h, w) is float in [0, 1], or an integer image over its type's full range. ``attention`` (the reader's, or
    whatever target was trained for), ``prediction``, the ``cams`` per class and the ``decision`` map (by how much the
    cams differ) are maps on any grid covering the image, in any normalisation; the two attention maps are shown on one
    common scale, the decision map on its own. ``fixations`` (N, 2) are columns and
    rows in pixels of ``image``. ``label`` is the true class, or a tuple of them for a multilabel study. ``scores`` are
    shown under their names in the glossary. Absent parts are None and are left out.

    Raises InputError for an unknown ``group``.
    """

    study_id: str
    group: Literal["best", "median", "worst"]
    image: NDArray[Any]
    attention: NDArray[Any] | None = None
    prediction: NDArray[Any] | None = None
    cams: Mapping[str, NDArray[Any]] | None = None
    decision: NDArray[Any] | None = None
    probabilities: Mapping[str, float] | None = None
    label: str | tuple[str, ...] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    fixations: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise InputError(f"gallery group {self.group!r} is unknown: use one of {', '.join(GROUPS)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """The true classes, none for an unlabelled study."""
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)


def gallery_context(items: Sequence[GalleryItem], report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The studies in their groups, best first, with legends; None where there is no study."""
    if not items:
        return None
    target = _target_name(report)
    for longest, quality in PICTURE_SIZES:
        pictures = [_pictures(item, target, longest, quality) for item in items]
        if sum(len(picture["source"]) for shown in pictures for picture in shown) <= PICTURE_BUDGET:
            break
    groups = []
    for group, heading in GROUPS.items():
        studies = [_study(item, shown) for item, shown in zip(items, pictures, strict=True) if item.group == group]
        if studies:
            groups.append({"heading": heading, "studies": studies})
    ranked_by = section(report, "gallery").get("ranked_by")
    has_maps = any(item.attention is not None or item.prediction is not None for item in items)
    has_cams = any(item.cams for item in items)
    has_fixations = any(item.attention is not None and _has_fixations(item) for item in items)
    return {
        "groups": groups,
        "ranked_by": describe(str(ranked_by)).name if ranked_by else None,
        "attention_bar": figures.data_uri(figures.colour_bar(256, 8), None) if has_maps else None,
        "cam_bar": figures.data_uri(figures.colour_bar(256, 8, colours=figures.CAM_MAP), None) if has_cams else None,
        "fixations": has_fixations,
    }


def _target_name(report: Mapping[str, Any]) -> str:
    """Only gaze is a reader's attention; a mask or boxes stand in for it and are not called so."""
    attention = str(report.get("attention") or "")
    return "Reader’s attention" if attention.startswith(("gaze", "reader")) else "Attention target"


def _has_fixations(item: GalleryItem) -> bool:
    return item.fixations is not None and len(item.fixations) > 0


def _densities(item: GalleryItem, target: str) -> dict[str, figures.Map]:
    maps = {target: item.attention, "Predicted attention": item.prediction}
    return {name: figures.relative_density(heat) for name, heat in maps.items() if heat is not None}


def _highest(densities: Mapping[str, figures.Map]) -> float:
    return max((float(density.max()) for density in densities.values()), default=0.0)


def _pictures(item: GalleryItem, target: str, longest: int, quality: int) -> list[dict[str, Any]]:
    """The image, the two attention maps on one scale, and the CAMs: encoded, with caption and alternative text."""
    grey = figures.to_uint8(item.image)
    scale = min(1.0, longest / max(grey.shape))
    size = (max(1, round(grey.shape[0] * scale)), max(1, round(grey.shape[1] * scale)))
    over = f"over the image of study {item.study_id}"
    found = [("Image", f"Image of study {item.study_id}", figures.resized(grey, size))]

    densities = _densities(item, target)
    for name, density in densities.items():
        picture = figures.overlay(grey, density, high=_highest(densities), size=size)
        caption = name if density.any() else f"{name}: none"
        if name == target and item.fixations is not None and len(item.fixations):
            picture = figures.mark_points(picture, item.fixations, grey.shape)
            caption = f"{name}, {count(len(item.fixations))} fixations"
        found.append((caption, f"{name} {over}", picture))

    cams = _shown_cams(item)
    strongest = max((float(np.nanmax(cam, initial=0.0)) for cam in cams.values()), default=0.0)
    for name, cam in cams.items():  # evidence for a class is positive; evidence against it is not drawn
        picture = figures.overlay(grey, cam, high=strongest, colours=figures.CAM_MAP, size=size)
        caption = f"Class activation: {name}" if (cam > 0).any() else f"Class activation: {name}, none positive"
        found.append((caption, f"Class activation map of {name} {over}", picture))
    if item.decision is not None:
        strongest = float(np.nanmax(item.decision, initial=0.0))
        picture = figures.overlay(grey, item.decision, high=strongest, colours=figures.CAM_MAP, size=size)
        found.append(("Decision map", f"Where the classes differ {over}", picture))
    return [
        {
            "caption": caption,
            "alt": alt,
            "source": figures.data_uri(picture, quality),
            "height": size[0],
            "width": size[1],
        }
        for caption, alt, picture in found
    ]


def _shown_cams(item: GalleryItem) -> dict[str, figures.Map]:
    cams = item.cams or {}
    likely = _shown_classes({name: (item.probabilities or {}).get(name) for name in cams}, item.labels, MAX_CAMS)
    return {name: np.asarray(cams[name], dtype=np.float64) for name in likely}


def _study(item: GalleryItem, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    probabilities = {str(name): finite(value) for name, value in (item.probabilities or {}).items()}
    known = {name: value for name, value in probabilities.items() if value is not None}
    # Probabilities that sum to 1 belong to classes that exclude each other; only then is there one predicted class.
    exclusive = len(known) > 1 and abs(sum(known.values()) - 1) < 0.02
    predicted = max(known, key=lambda name: known[name]) if exclusive else None
    shown = _shown_classes(probabilities, item.labels, MAX_BARS)
    high = _highest(_densities(item, "target"))
    return {
        "id": str(item.study_id),
        "truth": list(item.labels),
        "predicted": predicted,
        "right": predicted in item.labels if predicted is not None and item.labels else None,
        "pictures": pictures,
        "bars": [
            {
                "name": name,
                "text": number(probabilities[name], 2),
                "percent": round(100 * min(max(probabilities[name] or 0.0, 0.0), 1.0), 1),
                "true": name in item.labels,
            }
            for name in shown
        ],
        "left_out": len(probabilities) - len(shown),
        "scores": [(describe(key), number(item.scores[key])) for key in ordered(item.scores)],
        "scale": number(high, 1) if high > 0 else None,
    }


def _shown_classes(probabilities: Mapping[str, float | None], labels: Sequence[str], limit: int) -> list[str]:
    """All classes in their own order or, when they are many, the true ones and the likeliest."""
    ranked = sorted(probabilities, key=lambda name: (name not in labels, -(probabilities[name] or 0.0)))[:limit]
    return [name for name in probabilities if name in ranked]
