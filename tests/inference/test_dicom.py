"""DICOM objects made of predictions: valid by an independent validator, and read back with equal values."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")

import highdicom as hd

from radgaze.errors import InputError
from radgaze.inference import Prediction
from radgaze.inference.dicom import Header, class_code, make, map_values
from radgaze.inference.overlays import draw
from tests.inference.predictors import CLASSES, blob, formula_predictor, radiograph

KINDS = ("sc", "sr", "pm")


def predicted(path: Path, **options: Any) -> Prediction:
    return formula_predictor(**options).predict(path)


def made(kind: str, path: Path, prediction: Prediction | None = None) -> pydicom.Dataset:
    """The object, written and read again."""
    prediction = prediction or predicted(path)
    out = path.with_name(f"{path.stem}-{kind}.dcm")
    make(kind, Header.read(path), prediction, draw(prediction)).save_as(out, enforce_file_format=True)
    return pydicom.dcmread(out)


def errors(path: Path | str) -> list[str]:
    """What dciodvfy calls an error; it writes one line for each."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian and Ubuntu: apt-get install dicom3tools)")
    told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace").stderr
    assert any(name in told for name in ("SCImage", "ComprehensiveSR", "ParametricMap")), told
    return [line for line in told.splitlines() if line.startswith("Error")]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return radiograph(tmp_path_factory.mktemp("dicom") / "scan.dcm")


BARE = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"]
BARE += ["AccessionNumber", "ReferringPhysicianName", "BodyPartExamined", "Modality"]
POOR: dict[str, dict[str, Any]] = {
    "whole": {},
    "bare": dict.fromkeys(BARE),
    "empty": dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime"), ""),
    "wrong": {"StudyDate": "29.02.2024", "StudyTime": "noon", "PatientBirthDate": "1950", "PatientSex": "female"},
    "long": {"StudyID": "x" * 40, "AccessionNumber": ["a", "b"], "BodyPartExamined": "thorax, pa"},
    "other part": {"BodyPartExamined": "ABDOMEN", "PatientOrientation": ["R", "F"]},
    "paired part": {"BodyPartExamined": "KNEE", "Laterality": "L", "PatientOrientation": ["A", "F"]},
    "by view": {"PatientOrientation": None, "ViewPosition": "AP"},
    "lossy": {"LossyImageCompression": "01", "LossyImageCompressionRatio": "10", "BurnedInAnnotation": "YES"},
    "one name": {"PatientName": "Bono"},
    "kanji": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("header", POOR.values(), ids=POOR.keys())
def test_valid_whatever_the_source_lacks(tmp_path: Path, kind: str, header: dict[str, Any]) -> None:
    source = radiograph(tmp_path / "scan.dcm", blob(300, 200), **header)
    made(kind, source)
    assert errors(tmp_path / f"scan-{kind}.dcm") == []


@pytest.mark.parametrize("kind", KINDS)
def test_belongs_to_the_study_and_patient_and_points_to_the_image(scan: Path, kind: str) -> None:
    source, found = pydicom.dcmread(scan), made(kind, scan)
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate"):
        assert found[keyword].value == source[keyword].value
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
        assert found[keyword].value != source[keyword].value
        assert UID(found[keyword].value).is_valid
    referenced = [str(element.value) for element in found.iterall() if element.keyword == "ReferencedSOPInstanceUID"]
    assert set(referenced) == {source.SOPInstanceUID}
    assert "research only" in found.SeriesDescription
    assert kind == "sr" or found.BodyPartExamined == "CHEST"
    again = made(kind, scan)
    assert again.SOPInstanceUID != found.SOPInstanceUID
    assert again.SeriesInstanceUID != found.SeriesInstanceUID


def test_names_in_any_script_arrive(tmp_path: Path) -> None:
    names = {"ISO_IR 100": "Müller^Jürgen", "ISO_IR 144": "Люкceмбypг^Роза", "ISO_IR 192": "山田^太郎"}
    for charset, name in names.items():
        scan = radiograph(tmp_path / "scan.dcm", SpecificCharacterSet=charset, PatientName=name)
        for kind in KINDS:
            assert str(made(kind, scan).PatientName) == name


def test_secondary_capture_is_the_picture(scan: Path) -> None:
    found = made("sc", scan)
    assert np.array_equal(found.pixel_array, draw(predicted(scan)))
    assert found.ImageType[0] == "DERIVED"
    assert list(found.PatientOrientation) == ["L", "F"]


def test_burned_in_annotation_is_told_as_far_as_it_is_known(tmp_path: Path) -> None:
    for said in ("YES", "NO", None):
        scan = radiograph(tmp_path / "scan.dcm", BurnedInAnnotation=said)
        assert made("sc", scan).get("BurnedInAnnotation") == said
        assert made("pm", scan).BurnedInAnnotation == "NO"


def groups(report: pydicom.Dataset) -> Iterator[tuple[tuple[str, str, str], dict[str, float], dict[str, Any]]]:
    """Of each measurement group: the finding's code, its numbers by their names, and all other items."""
    measurements = next(
        item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
    )
    for group in measurements.ContentSequence:
        numbers, rest = {}, {}
        for item in group.ContentSequence:
            name = item.ConceptNameCodeSequence[0]
            if item.ValueType == "NUM":
                numbers[name.CodeValue] = float(item.MeasuredValueSequence[0].FloatingPointValue)
                assert item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "1"
            else:
                rest.setdefault(name.CodeMeaning, []).append(item)
        code = rest["Finding"][0].ConceptCodeSequence[0]
        yield (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning), numbers, rest


def test_report_holds_probabilities_intervals_and_the_algorithm(scan: Path) -> None:
    prediction = predicted(scan)
    assert prediction.intervals is not None
    report = made("sr", scan, prediction)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    found = list(groups(report))
    assert len(found) == len(CLASSES)
    for name, (code, numbers, rest) in zip(CLASSES, found, strict=True):
        low, high = prediction.intervals[name]
        assert numbers == {"122157": prediction.probabilities[name], "PROBABILITY-LOW": low, "PROBABILITY-HIGH": high}
        assert rest["Tracking Identifier"][0].TextValue == name
        assert code == (class_code(name).value, class_code(name).scheme_designator, class_code(name).meaning)
        likeliest = rest["Likeliest of the classes"][0].ConceptCodeSequence[0].CodeMeaning
        assert likeliest == ("Yes" if name == prediction.predicted else "No")
        assert rest["Algorithm Name"][0].TextValue == "radgaze mt-unet"
        assert any("ab" * 32 in item.TextValue for item in rest["Algorithm Parameters"])
    assert found[1][0] == ("233604007", "SCT", "Pneumonia")
    assert {code[1] for code, _, _ in found} == {"SCT", "99RADGAZE"}
    scheme = report.CodingSchemeIdentificationSequence[0]
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeVersion) == ("99RADGAZE", "1")
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    read = hd.sr.srread(scan.with_name("scan-sr.dcm"))
    assert len(read.content.get_image_measurement_groups()) == len(CLASSES)


def test_report_without_calibration_or_with_labels(scan: Path) -> None:
    report = made("sr", scan, predicted(scan, calibrated=False, task="multilabel"))
    for _, numbers, rest in groups(report):
        assert list(numbers) == ["122157"]
        assert "Likeliest of the classes" not in rest
        assert any("not calibrated" in item.TextValue for item in rest["Algorithm Parameters"])
    assert errors(scan.with_name("scan-sr.dcm")) == []


def test_class_codes_are_stable_and_fit() -> None:
    assert class_code("Pneumonia") == class_code(" pneumonia ")
    assert class_code("edema").value == class_code("edema").value != class_code("oedema").value
    for name in ("ключица " * 30, "a\\b\nc", "", "x"):
        code = class_code(name)
        assert len(code.value) <= 16
        assert 0 < len(code.meaning.encode()) <= 64
        assert "\\" not in code.meaning


@pytest.mark.parametrize("size", [(90, 70), (1500, 1201), (30, 2000)])
def test_parametric_map_holds_the_maps_where_they_belong(tmp_path: Path, size: tuple[int, int]) -> None:
    scan = radiograph(tmp_path / "scan.dcm", blob(*size))
    prediction = predicted(scan)
    found = made("pm", scan, prediction)
    assert errors(tmp_path / "scan-pm.dcm") == []
    expected = map_values(prediction)
    assert list(expected) == ["attention", *(f"cam:{name}" for name in CLASSES)]
    assert max(found.Rows, found.Columns) == min(640, max(size))
    assert found.pixel_array.dtype == np.float32
    for frame, values in zip(found.pixel_array, expected.values(), strict=True):
        assert np.array_equal(frame, values)
    assert expected["attention"].mean() == pytest.approx(1, abs=1e-4)
    quantities = [
        item.RealWorldValueMappingSequence[0].QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue
        for item in found.PerFrameFunctionalGroupsSequence
    ]
    assert quantities == ["ATTENTION", *(class_code(name).value for name in CLASSES)]
    indices = [
        tuple(item.FrameContentSequence[0].DimensionIndexValues) for item in found.PerFrameFunctionalGroupsSequence
    ]
    assert len(set(indices)) == 4
    shared = found.SharedFunctionalGroupsSequence[0]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 0, -1]
    spacing = [float(one) for one in shared.PixelMeasuresSequence[0].PixelSpacing]
    extent = found.Rows * spacing[0], found.Columns * spacing[1]
    assert extent == pytest.approx((size[0] * 0.2, size[1] * 0.25), rel=1e-6)  # exactly the image's
    frame = found.PerFrameFunctionalGroupsSequence[0]
    x, y, z = (float(one) for one in frame.PlanePositionSequence[0].ImagePositionPatient)
    assert (x + 0.125, y, z - 0.1) == pytest.approx((spacing[1] / 2, 0, -spacing[0] / 2), abs=1e-6)  # its very corner
    assert UID(found.FrameOfReferenceUID).is_valid


def test_one_map_alone(scan: Path) -> None:
    prediction = predicted(scan, parts=("saliency_logits",))
    found = made("pm", scan, prediction)
    assert np.array_equal(np.squeeze(found.pixel_array), map_values(prediction)["attention"])
    assert errors(scan.with_name("scan-pm.dcm")) == []
    even = replace(prediction, attention=np.full((4, 3), 1 / 12, np.float32))
    made("pm", scan, even)
    assert errors(scan.with_name("scan-pm.dcm")) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "header", "told"),
    [
        ("pm", {"ImagerPixelSpacing": None}, "spacing"),
        ("pm", {"ImagerPixelSpacing": ["0", "0"]}, "spacing"),
        ("pm", {"PatientOrientation": None, "ViewPosition": "LL"}, "how the patient lies"),
        ("pm", {"PatientOrientation": ["L", "R"]}, "how the patient lies"),
        ("sc", {"StudyInstanceUID": ""}, "StudyInstanceUID"),
        ("sr", {"SeriesInstanceUID": "not a uid"}, "SeriesInstanceUID"),
        ("sr", {"PatientID": ["1", "2"]}, "invalid PatientID"),
        ("sr", {"PatientName": "x" * 80}, "invalid PatientName"),
    ],
)
def test_what_cannot_be_said_truly_is_refused(tmp_path: Path, kind: str, header: dict[str, Any], told: str) -> None:
    scan = radiograph(tmp_path / "scan.dcm", **header)
    with pytest.raises(InputError, match=told) as refused:
        made(kind, scan)
    for value in ("P-4711", "Tanaka", "not a uid", "xxxx"):
        assert value not in str(refused.value)


def test_what_is_no_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="no DICOM file"):
        Header.read(tmp_path / "a.png")


def test_a_real_radiograph(shared_data: Any, tmp_path: Path) -> None:
    scan = tmp_path / "scan.dcm"
    scan.write_bytes((shared_data("dicom") / "cr_chest_mono1_15bit_j2k_lossy.dcm").read_bytes())
    prediction = predicted(scan)
    for kind in ("sc", "sr"):
        made(kind, scan, prediction)
        assert errors(tmp_path / f"scan-{kind}.dcm") == []
    with pytest.raises(InputError, match="spacing"):  # its header says 0 mm
        made("pm", scan, prediction)
