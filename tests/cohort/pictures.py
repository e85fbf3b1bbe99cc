"""Small image files and studies that show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from radgaze.cohort.sources.engine import RawStudy
from radgaze.cohort.study import Box
from radgaze.gaze import Gaze

CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"


def write_image(path: Path, pixels: npt.NDArray[Any]) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def make_raws(
    folder: Path, count: int = 12, classes: str = "ab", gaze: bool = True, masks: bool = True
) -> list[RawStudy]:
    """Studies of random images of differing sizes, two for each patient, every third without a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    raws = []
    for index in range(count):
        shape = (40 + index % 5, 30)
        image = write_image(folder / f"{index}.png", random.integers(0, 256, shape, dtype=np.uint8))
        mask = write_image(folder / f"{index}-mask.png", np.uint8(255) * random.integers(0, 2, shape, dtype=np.uint8))
        points = Gaze(random.uniform(0, 29, 5), random.uniform(0, 39, 5), t=np.arange(5.0))
        raws.append(
            RawStudy(
                study_id=f"s{index}",
                patient_id=f"p{index // 2}",
                image=image,
                label=classes[index // 2 % len(classes)],
                masks={"lungs": mask} if masks and index % 3 else {},
                gaze=points if gaze and index % 4 else None,
                boxes=[Box("nodule", 1, 2, 3 + index, 4, "ellipse", 3.0)] if index % 2 else [],
                attributes={"age": index, "view": "PA"},
            )
        )
    return raws


def options(**changed: Any) -> dict[str, Any]:
    """Arguments of ``write_cohort`` for the studies of :func:`make_raws`."""
    usual: dict[str, Any] = {
        "name": "made up",
        "source": "test",
        "size": (16, 12),
        "classes": ["a", "b"],
        "structures": ["lungs"],
        "gaze_kind": "samples",
        "workers": 1,
        "progress": False,
    }
    return usual | changed


def write_dicom(path: Path, pixels: npt.NDArray[Any], bits: int | None = None, **elements: Any) -> Path:
    """An uncompressed radiograph of ``bits`` stored bits in 16 (or 8); ``elements`` are set by keyword."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CR_STORAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SOPClassUID = CR_STORAGE
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path
