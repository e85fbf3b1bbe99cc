"""Who is on a made-up radiograph, and the file it is stored in: DICOM or JPEG under MIMIC-CXR's folder names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from radgaze.cohort.phantom.anatomy import BITS, CLASSES, Label, Radiograph, expose

ImageFormat = Literal["dcm", "jpg"]


@dataclass(frozen=True)
class Identity:
    """Whose image it is: invented numbers in MIMIC-CXR's ranges."""

    image: int  # index in the tree
    patient: int
    study: int  # index within the patient
    label: Label
    dicom_id: str  # five groups of eight hex digits
    patient_id: int
    study_id: int
    stay_id: int

    @property
    def folder(self) -> str:
        """Folder of the image below MIMIC-CXR's root."""
        return f"files/p{str(self.patient_id)[:2]}/p{self.patient_id}/s{self.study_id}"


def identities(count: int, seed: int, repeats: float = 0.05) -> list[Identity]:
    """Images with balanced labels in random order; a share ``repeats`` is a further study of a known patient."""
    rng = np.random.default_rng([seed, 21])
    labels = [CLASSES[i % len(CLASSES)] for i in range(count)]
    rng.shuffle(labels)
    patient_ids, study_ids, stay_ids = (
        first + rng.choice(9_999_999, count, replace=False) for first in (10_000_000, 50_000_000, 30_000_000)
    )
    studies: list[int] = []  # of each patient so far
    out = []
    for image, label in enumerate(labels):
        # The third image is always a repeat, so that even the smallest tree has a patient with two studies.
        if studies and (image == 2 or rng.random() < repeats):
            patient = int(rng.integers(len(studies)))
        else:
            patient = len(studies)
            studies.append(0)
        dicom_id = "-".join(rng.bytes(4).hex() for _ in range(5))
        numbers = int(patient_ids[patient]), int(study_ids[image]), int(stay_ids[image])
        out.append(Identity(image, patient, studies[patient], label, dicom_id, *numbers))
        studies[patient] += 1
    return out


@dataclass(frozen=True)
class Job:
    """All that one process needs to make one image and what belongs to it."""

    root: Path
    identity: Identity
    seed: int
    size: tuple[int, int]
    difficulty: float
    image_format: ImageFormat

    def expose(self) -> Radiograph:
        """Make the radiograph and store it."""
        who = self.identity
        image = expose(
            who.label, seed=self.seed, patient=who.patient, study=who.study, size=self.size, difficulty=self.difficulty
        )
        path = self.root / "mimic-cxr" / who.folder / f"{who.dicom_id}.{self.image_format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.image_format == "dcm":
            write_dicom(image, who, path)
        else:
            Image.fromarray((image.pixels >> (BITS - 8)).astype(np.uint8)).save(path, quality=95)
        return image

    def random(self, *stream: int) -> np.random.Generator:
        """A stream of random numbers of this image's own."""
        return np.random.default_rng([self.seed, self.identity.image, *stream])


def write_dicom(image: Radiograph, identity: Identity, path: Path) -> None:
    """A computed radiograph, 12 of 16 bits, uncompressed; every third or so is MONOCHROME1 (bones dark as stored)."""
    inverted = int(identity.dicom_id[:2], 16) % 3 == 0
    pixels = (2**BITS - 1 - image.pixels if inverted else image.pixels).astype("<u2")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = _uid("image", identity.dicom_id)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("radgaze phantom")
    data = Dataset()
    data.file_meta = meta
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = _uid("study", identity.study_id)
    data.SeriesInstanceUID = _uid("series", identity.study_id)
    number = identity.study_id
    # De-identified dates lie in the next century.
    data.StudyDate = f"{2110 + identity.patient_id % 80}{1 + number % 12:02d}{1 + number % 28:02d}"
    data.StudyTime = f"{number % 24:02d}{number % 60:02d}00"
    data.AccessionNumber = ""
    data.Modality = "CR"
    data.Manufacturer = "radgaze phantom"
    data.ReferringPhysicianName = ""
    data.PatientName = f"Phantom^Patient {identity.patient:04d}"
    data.PatientID = str(identity.patient_id)
    data.PatientBirthDate = ""
    data.PatientSex = image.patient.sex
    data.PatientAge = f"{image.patient.age:03d}Y"
    data.StudyID = str(identity.study_id)
    data.SeriesNumber = data.InstanceNumber = 1
    data.BodyPartExamined = "CHEST"
    data.ViewPosition = image.view
    data.KVP = "120"
    data.PatientOrientation = ["L", "F"]
    data.ImagerPixelSpacing = [f"{image.mm_per_pixel:.6f}"] * 2
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, BITS, BITS - 1, 0
    data.WindowCenter, data.WindowWidth = str(2 ** (BITS - 1)), str(2**BITS)
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.add_new("PixelData", "OW", pixels.tobytes())
    data.save_as(path, enforce_file_format=True)


def _uid(*parts: Any) -> UID:
    """A UID below 2.25, the root for UUIDs; the same for the same parts."""
    return UID("2.25." + str(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:31], 16)))
