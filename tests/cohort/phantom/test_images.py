"""Made-up DICOM and JPEG files, and who is on them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from radgaze.cohort.phantom.anatomy import expose
from radgaze.cohort.phantom.images import Identity, Job, identities, write_dicom
from radgaze.cohort.pixels import read_image


def identity(dicom_id: str) -> Identity:
    return Identity(0, 3, 0, "CHF", dicom_id, 10_000_123, 50_000_456, 30_000_789)


@pytest.mark.parametrize(("first", "photometric"), [("00", "MONOCHROME1"), ("01", "MONOCHROME2")])
def test_dicom_is_valid_and_bones_are_bright_after_reading(tmp_path: Path, first: str, photometric: str) -> None:
    who = identity(f"{first}000000-11111111-22222222-33333333-44444444")
    image = expose("CHF", patient=3, size=(64, 56))
    write_dicom(image, who, tmp_path / "image.dcm")
    data = pydicom.dcmread(tmp_path / "image.dcm")
    assert data.PhotometricInterpretation == photometric
    assert data.SOPClassUID.name == "Computed Radiography Image Storage"
    assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID
    assert len(data.SOPInstanceUID) <= 64
    assert data.SOPInstanceUID.is_valid
    assert (data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit) == (64, 56, 16, 12, 11)
    assert data.PatientID == "10000123"
    assert str(data.PatientName).startswith("Phantom^")
    stored = data.pixel_array
    np.testing.assert_array_equal(4095 - stored if photometric == "MONOCHROME1" else stored, image.pixels)
    read, _ = read_image(tmp_path / "image.dcm")
    lungs = image.masks["left_lung"] | image.masks["right_lung"]
    assert read[image.masks["mediastinum"]].mean() > read[lungs].mean()
    assert np.corrcoef(read.ravel().astype(float), image.pixels.ravel())[0, 1] > 0.999


def test_jpeg_has_eight_bits_of_the_same_image(tmp_path: Path) -> None:
    who = identity("01000000-11111111-22222222-33333333-44444444")
    image = Job(tmp_path, who, seed=1, size=(64, 56), difficulty=0.2, image_format="jpg").expose()
    path = tmp_path / "mimic-cxr/files/p10/p10000123/s50000456" / f"{who.dicom_id}.jpg"
    stored = np.asarray(Image.open(path)).astype(float)
    assert np.abs(stored - (image.pixels >> 4)).mean() < 2


def test_identities_are_distinct_and_balanced() -> None:
    people = identities(300, seed=2)
    assert people == identities(300, seed=2)
    assert people != identities(300, seed=3)
    assert Counter(person.label for person in people) == {"Normal": 100, "CHF": 100, "pneumonia": 100}
    assert len({person.dicom_id for person in people}) == len({person.study_id for person in people}) == 300
    assert all(re.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}", person.dicom_id) for person in people)
    assert all(re.fullmatch(r"files/p1\d/p1\d{7}/s5\d{7}", person.folder) for person in people)
    # Numbers name patients one to one, and several have more than one study.
    assert len({person.patient_id for person in people}) == len({person.patient for person in people})
    assert len({(person.patient, person.patient_id) for person in people}) == len({person.patient for person in people})
    studies = Counter(person.patient for person in people)
    assert 5 < 300 - len(studies) < 40
    for patient, count in studies.items():
        assert [person.study for person in people if person.patient == patient] == list(range(count))
    assert len({person.patient for person in identities(3, seed=9)}) < 3
