"""Where a network's evidence for a class lies: in the structures of the true class, and where a reader looked.

The true class's map, its class activation map (CAM) or its Grad-CAM, is measured on its own grid, as
:mod:`radgaze.measures.localisation` defines it, against the union of the structures in which the cohort says the class
shows itself, and by CC and SIM against the reader's gaze rendered on the same grid. So is the decision map, by how much
the CAMs differ (:func:`radgaze.models.decision_map`; of a label among several, how far its CAM is from 0). A map of
equal activation everywhere stands beside them: what pointing nowhere would score. A multi-label study has a value for
each present class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radgaze.cohort import Cohort
from radgaze.inference.summaries import over_studies
from radgaze.measures import localisation, saliency
from radgaze.models import decision_map
from radgaze.training.attention import AttentionTarget

__all__ = ["MAPS", "Measured", "cam_measures", "localisation_section", "per_study", "true_classes"]

THRESHOLD = 0.5  # of the CAM's maximum, for IoU
TOLERANCE = 1  # cells around the peak: the 3x3 neighbourhood
UNKNOWN = 255

MAPS = {"model": "cam", "decision": "decision", "grad-cam": "grad_cam"}
"""The maps, as ``report.json`` names them (``"model"`` is the network's own CAM), and as columns of tables do."""

Measured = dict[str, dict[str, Tensor]]
"""Map (one of :data:`MAPS`, or ``"uniform"``) to measure to ``(N, C)`` values, NaN where a class is not present or not
mapped."""


def cam_measures(
    cohort: Cohort,
    studies: Sequence[int],
    cams: Tensor | None,
    gaze: AttentionTarget | None,
    grad_cams: Tensor | None = None,
) -> Measured:
    """Measure the true classes' maps of some studies; nothing where the network has none.

    Args:
        cohort: Where the studies are.
        studies: ``B`` rows of ``cohort.studies``.
        cams: ``(B, C, h, w)`` of those studies, for the cohort's classes.
        gaze: How the reader's gaze is rendered; ``None`` leaves out CC and SIM.
        grad_cams: ``(P, h, w)``, one for each place of :func:`true_classes`.
    """
    rows, classes = true_classes(cohort.targets[list(studies)])
    found: dict[str, Tensor] = {}
    if cams is not None:
        cams, exclusive = cams.float().cpu(), cohort.task == "multiclass"
        found["model"] = cams[rows, classes]
        found["decision"] = decision_map(cams)[rows] if exclusive else cams[rows, classes].abs()
    if grad_cams is not None:
        found["grad-cam"] = grad_cams.float().cpu()
    if not found:
        return {}
    found["uniform"] = torch.ones_like(next(iter(found.values())))
    masks = torch.from_numpy(
        np.stack([class_mask(cohort, studies[row], cohort.classes[c]) for row, c in zip(rows, classes, strict=True)])
        if len(rows)
        else np.empty((0, *cohort.size), np.uint8)
    )
    readers: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by grid: CAM and Grad-CAM as a rule share one
    measured: Measured = {}
    for name, maps in found.items():
        values = {
            "pointing_game": localisation.pointing_game(maps, masks, tolerance=TOLERANCE),
            "energy_inside": localisation.energy_inside(maps, masks),
            "iou": localisation.iou(maps, masks, threshold=THRESHOLD),
        }
        if gaze is not None:
            size = (maps.shape[1], maps.shape[2])
            if size not in readers:
                readers[size] = gaze.maps(cohort, studies, size=size)
            attention, looked = (each[rows] for each in readers[size])
            values["cc"] = torch.where(looked, saliency.cc(maps, attention), torch.nan)
            values["sim"] = torch.where(looked, saliency.sim(maps.clamp(min=0), attention), torch.nan)
        measured[name] = {}
        for key, value in values.items():
            table = torch.full((len(studies), len(cohort.classes)), torch.nan, dtype=torch.float64)
            table[rows, classes] = value.double()
            measured[name][key] = table
    return measured


def true_classes(targets: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Places (row, class) where a class is present, of ``(B,)`` labels or ``(B, C)`` multi-labels."""
    if targets.ndim == 1:
        rows = np.flatnonzero(targets >= 0)
        return torch.from_numpy(rows), torch.from_numpy(targets[rows])
    rows, classes = np.nonzero(np.nan_to_num(targets) >= 0.5)
    return torch.from_numpy(rows), torch.from_numpy(classes)


def class_mask(cohort: Cohort, study: int, name: str) -> NDArray[np.uint8]:
    """(h, w) union of a class's structures: 1 in any, 0 outside all, 255 where that is unknown or no structure set."""
    structures = cohort.class_structures.get(name, [])
    if not structures:
        return np.full(cohort.size, UNKNOWN, np.uint8)
    masks = np.stack([cohort.mask(study, structure) for structure in structures])
    unknown = np.where((masks == UNKNOWN).any(0), np.uint8(UNKNOWN), np.uint8(0))
    return np.where((masks == 1).any(0), np.uint8(1), unknown)


def per_study(values: Tensor) -> Tensor:
    """``(N, C)`` values to ``(N,)``: the mean over each study's present classes."""
    return values.nanmean(1)


def localisation_section(
    cohort: Cohort, measured: Measured, gaze: str | None, patients: Sequence[str], resamples: int
) -> dict[str, Any]:
    """``report["localisation"]``: each map's measures, over all classes and class by class, with intervals over
    patients. A measure that no study has (no mask, no gaze) is left out.
    """
    section: dict[str, Any] = {
        "structures": cohort.class_structures,
        "threshold": THRESHOLD,
        "tolerance": TOLERANCE,
        "gaze": gaze,
    }
    for predictor, measures in measured.items():
        columns: dict[tuple[str, str], Tensor] = {}
        for key, values in measures.items():
            columns["", key] = per_study(values)
            columns |= {(name, key): values[:, index] for index, name in enumerate(cohort.classes)}
        found = over_studies({k: v for k, v in columns.items() if not v.isnan().all()}, patients, resamples)
        section[predictor] = {
            "overall": {key: entry for (name, key), entry in found.items() if not name},
            "classes": {
                of: {key: entry for (name, key), entry in found.items() if name == of} for of in cohort.classes
            },
        }
    return section
