"""A predictor whose network is a formula, and radiographs as DICOM, for tests of what is made of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydicom.uid import generate_uid

from radgaze.gaze import Frame
from radgaze.inference import Predictor
from radgaze.inference.calibration import Calibration
from radgaze.inference.card import ModelCard
from radgaze.models import Output
from tests.cohort.pictures import write_dicom

CLASSES = ("normal", "pneumonia", "a label of its own")


class Formula:
    """Attention follows brightness; a class's activation is brightness shifted by its number."""

    name = "formula"

    def __init__(self, parts: tuple[str, ...] = Output._fields) -> None:
        self.parts, self.batches = parts, 0

    def __call__(self, images: torch.Tensor) -> Output:
        self.batches += 1
        maps = images[:, 0]
        cams = torch.stack([maps - 0.3 * index for index in range(len(CLASSES))], 1)[:, :, ::4, ::4]
        output = Output(3 * cams.mean((2, 3)), 4 * maps[:, ::2, ::2], cams)
        return Output(**{name: value for name, value in output._asdict().items() if name in self.parts})


def formula_predictor(
    parts: tuple[str, ...] = Output._fields,
    classes: tuple[str, ...] = CLASSES,
    task: str = "multiclass",
    calibrated: bool = True,
    facts: dict[str, Any] | None = None,
) -> Predictor:
    known = classes if "logits" in parts else ()
    slopes = torch.linspace(1, 2, 21, dtype=torch.float64)[:, None].expand(21, len(known))
    offsets = torch.zeros(21, len(known), dtype=torch.float64)
    calibration = Calibration(slopes, offsets, task, 40, 30, (0.7, 0.6)) if calibrated and known else None
    card = ModelCard(
        method="mt-unet",
        classes=known,
        task=task if known else "none",
        frame=Frame((32, 24)),
        attention="gaze",
        outputs=parts,
        calibration=calibration,
        uncalibrated=None if calibration or not known else "the test wants it so",
        facts=facts or {"weights": "ab" * 32},
    )
    return Predictor(card, Formula(parts))


def blob(height: int = 90, width: int = 70, y: float = 30, x: float = 40, seed: int = 0) -> npt.NDArray[np.uint16]:
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 300, (height, width))
    return (3500 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 200) + noise).astype(np.uint16)


def radiograph(path: Path, pixels: npt.NDArray[np.uint16] | None = None, **elements: Any) -> Path:
    """A chest radiograph with a header as devices write it; ``elements`` replace, and None removes."""
    header: dict[str, Any] = {
        "StudyInstanceUID": generate_uid(None),
        "SeriesInstanceUID": generate_uid(None),
        "SOPInstanceUID": generate_uid(None),
        "Modality": "CR",
        "PatientName": "Tanaka^Hanako",
        "PatientID": "P-4711",
        "PatientBirthDate": "19501231",
        "PatientSex": "F",
        "StudyDate": "20240229",
        "StudyTime": "101112",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Referrer^Rita",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "ImagerPixelSpacing": ["0.2", "0.25"],
    }
    kept = {key: value for key, value in (header | elements).items() if value is not None}
    return write_dicom(path, blob() if pixels is None else pixels, bits=12, **kept)
