"""The EGD-CXR tree, file by file against FORMATS, and through the importer."""

from __future__ import annotations

import csv
import json
import re
import wave
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from radgaze.cohort.phantom import egd_cxr
from radgaze.cohort.phantom.anatomy import ANATOMIES, CLASSES
from radgaze.cohort.phantom.images import Identity
from radgaze.cohort.phantom.reader import Recording
from radgaze.cohort.sources.egd_cxr import import_egd_cxr

from .conftest import SIZE, STUDIES

# Spelt out here once more: the layout is not ours to change.
MASTER = (
    "dicom_id,path,study_id,patient_id,stay_id,gender,anchor_age,image_top_pad,image_bottom_pad,image_left_pad,"
    "image_right_pad,dx1,dx1_icd,dx2,dx2_icd,dx3,dx3_icd,dx4,dx4_icd,dx5,dx5_icd,dx6,dx6_icd,dx7,dx7_icd,dx8,dx8_icd,"
    "dx9,dx9_icd,normal_reports,Normal,CHF,pneumonia,consolidation,enlarged_cardiac_silhouette,"
    "linear__patchy_atelectasis,lobar__segmental_collapse,"
    "not_otherwise_specified_opacity___pleural__parenchymal_opacity__,pleural_effusion_or_thickening,"
    "pulmonary_edema__hazy_opacity,normal_anatomically,elevated_hemidiaphragm,hyperaeration,vascular_redistribution,"
    "atelectasis__chx,cardiomegaly__chx,consolidation__chx,edema__chx,enlarged_cardiomediastinum__chx,fracture__chx,"
    "lung_lesion__chx,lung_opacity__chx,no_finding__chx,pleural_effusion__chx,pleural_other__chx,pneumonia__chx,"
    "pneumothorax__chx,support_devices__chx,cxr_exam_indication"
)
GAZE = (
    "SESSION_ID,MEDIA_ID,DICOM_ID,CNT,Time (in secs),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,BPOGX,"
    "BPOGY,BPOGV,LPCX,LPCY,LPD,LPS,LPV,RPCX,RPCY,RPD,RPS,RPV,BKID,BKDUR,BKPMIN,LPMM,LPMMV,RPMM,RPMMV,SACCADE_MAG,"
    "SACCADE_DIR,VID_FRAME,X_ORIGINAL,Y_ORIGINAL"
)


@pytest.fixture(scope="module")
def folder(egd_tree: Path) -> Path:
    return egd_tree / "egd-cxr" / "1.0.0"


@pytest.fixture(scope="module")
def master(folder: Path) -> list[dict[str, str]]:
    with open(folder / "master_sheet.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def gaze(folder: Path) -> pl.DataFrame:
    return pl.read_csv(folder / "eye_gaze.csv", schema_overrides={"DICOM_ID": pl.String})


def test_headers_are_exact(folder: Path) -> None:
    def header(name: str) -> str:
        with open(folder / name, newline="", encoding="utf-8") as file:
            return file.readline()

    assert header("master_sheet.csv") == MASTER + "\n"
    assert header("eye_gaze.csv") == header("fixations.csv") == GAZE + "\n"
    assert header("bounding_boxes.csv") == "dicom_id,bbox_name,x1,x2,y1,y2\n"
    assert len(MASTER.split(",")) == 59
    assert len(GAZE.split(",")) == 37


def test_master_sheet(master: list[dict[str, str]], egd_tree: Path) -> None:
    assert len(master) == STUDIES
    for row in master:
        assert re.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}", row["dicom_id"])
        patient = row["patient_id"]
        assert row["path"] == f"files/p{patient[:2]}/p{patient}/s{row['study_id']}/{row['dicom_id']}.dcm"
        assert (egd_tree / "mimic-cxr" / row["path"]).is_file()
        assert [row[label] for label in CLASSES].count("1") == 1
        assert [row[label] for label in CLASSES].count("0") == 2
        assert re.fullmatch(r"\d+ - \d+", row["anchor_age"])
        assert row["gender"] in {"F", "M"}
        assert {row[name] for name in row if name.endswith("__chx")} <= {"-1", "0", "1", ""}
        assert row["cxr_exam_indication"].count("\n") >= 2
        assert '"' in row["cxr_exam_indication"]
        assert row["dx1"]
        assert not row["dx9"]
    assert len({row["patient_id"] for row in master}) < STUDIES


def test_findings_follow_what_shows(master: list[dict[str, str]]) -> None:
    for row in master:
        if row["CHF"] == "1":
            assert row["enlarged_cardiac_silhouette"] == "1"
        if row["pneumonia"] == "1":
            assert row["consolidation"] == "1"
        findings = [row[name] for name in MASTER.split(",")[33:44] if name != "normal_anatomically"]
        assert (row["normal_anatomically"] == "1") == (set(findings) == {"0"})


def test_gaze_rows(gaze: pl.DataFrame, master: list[dict[str, str]]) -> None:
    names = {row["dicom_id"] for row in master}
    calibration = gaze.filter(pl.col("DICOM_ID").str.len_chars() == 39)
    images = gaze.filter(pl.col("DICOM_ID").is_in(list(names)))
    assert len(calibration) > 0
    assert len(images) + len(calibration) == len(gaze)
    assert set(images["DICOM_ID"]) == names
    for _, rows in images.group_by("DICOM_ID", maintain_order=True):
        t = rows["Time (in secs)"].to_numpy()
        assert rows["CNT"].to_list() == list(range(len(rows)))
        assert (np.diff(t) > 0).all()
        assert 1 / np.mean(np.diff(t)) == pytest.approx(60, rel=0.02)
        assert (np.diff(rows["FPOGID"].to_numpy()) >= 0).all()
    assert images["SACCADE_DIR"].is_between(0, 360).all()
    assert (images["BKID"] > 0).any()
    assert ((images["X_ORIGINAL"] < 0) | (images["Y_ORIGINAL"] < 0)).any()
    assert images["X_ORIGINAL"].max() < SIZE[1]
    assert images["Y_ORIGINAL"].max() < SIZE[0] + 1
    assert images["X_ORIGINAL"].dtype == images["Y_ORIGINAL"].dtype == pl.Int64


def test_original_pixels_follow_from_the_screen(gaze: pl.DataFrame, master: list[dict[str, str]]) -> None:
    """The conversion FORMATS gives, written out."""
    height, width = SIZE[0] + 1, SIZE[1]
    for row in master:
        rows = gaze.filter(pl.col("DICOM_ID") == row["dicom_id"])
        top, bottom, left, right = (int(row[f"image_{edge}_pad"]) for edge in ("top", "bottom", "left", "right"))
        eye_x, eye_y = rows["FPOGX"].to_numpy() * 1920, rows["FPOGY"].to_numpy() * 1080
        inside = (left < eye_x) & (eye_x < 1920 - right) & (top < eye_y) & (eye_y < 1080 - bottom)
        x = (width / (1920 - left - right) * (eye_x - left)).astype(int)
        y = (height / (1080 - top - bottom) * (eye_y - top)).astype(int)
        np.testing.assert_array_equal(rows["X_ORIGINAL"].to_numpy()[inside], x[inside])
        np.testing.assert_array_equal(rows["Y_ORIGINAL"].to_numpy()[inside], y[inside])
        off = (rows["X_ORIGINAL"].to_numpy() < 0) | (rows["Y_ORIGINAL"].to_numpy() < 0)
        assert not (off & inside).any()
        assert inside.mean() > 0.85


def test_gaze_off_any_edge_is_negative() -> None:
    who = Identity(0, 0, 0, "Normal", "-".join(["01234567"] * 5), 10_000_001, 50_000_001, 30_000_001)
    x = np.repeat([40.0, -10.0, 95.0, 40.0, 40.0], 12)
    y = np.repeat([50.0, 50.0, 50.0, -10.0, 120.0], 12)
    fixation = np.repeat([0, 1, 2, 3, 4], 12)
    rows = np.arange(60)
    nothing = np.zeros(60, bool)
    starts, last = rows[::12] / 60, rows[11::12]
    recording = Recording(
        rows / 60, x, y, fixation, nothing, nothing + 3.0, starts, np.full(5, 11 / 60), x[::12], y[::12], last
    )
    table = egd_cxr._gaze(recording, who, SIZE, np.random.default_rng(0))
    off_x, off_y = (table[f"{axis}_ORIGINAL"].to_numpy()[::12] < 0 for axis in "XY")
    np.testing.assert_array_equal(off_x, [False, True, True, False, False])
    np.testing.assert_array_equal(off_y, [False, False, False, True, True])
    assert table["X_ORIGINAL"][0] == pytest.approx(40, abs=1)
    assert table["Y_ORIGINAL"][0] == pytest.approx(50, abs=1)
    # The first saccade went straight left.
    assert table["SACCADE_DIR"][12] == pytest.approx(180)
    assert table["SACCADE_MAG"][12] == pytest.approx(50 * 1080 / (SIZE[0] + 1), rel=0.02)


def test_fixations_are_the_last_rows(folder: Path, gaze: pl.DataFrame) -> None:
    fixations = pl.read_csv(folder / "fixations.csv", schema_overrides={"DICOM_ID": pl.String})
    assert fixations.columns == gaze.columns
    valid = gaze.filter((pl.col("FPOGV") == 1) & (pl.col("DICOM_ID").str.len_chars() == 44))
    last = valid.group_by("DICOM_ID", "FPOGID", maintain_order=True).last().select(gaze.columns)
    assert fixations.equals(last)
    longest = valid.group_by("DICOM_ID", "FPOGID", maintain_order=True).agg(pl.col("FPOGD").max())["FPOGD"]
    assert fixations["FPOGD"].equals(longest)
    assert 0.2 < fixations["FPOGD"].median() < 0.36
    assert fixations["FPOGS"].to_numpy() + fixations["FPOGD"].to_numpy() == pytest.approx(
        fixations["Time (in secs)"].to_numpy(), abs=3e-5
    )


def test_every_study_has_its_masks_boxes_and_words(folder: Path, master: list[dict[str, str]]) -> None:
    boxes = pl.read_csv(folder / "bounding_boxes.csv")
    assert (boxes["x1"] < boxes["x2"]).all()
    assert (boxes["y1"] < boxes["y2"]).all()
    for row in master:
        names = boxes.filter(pl.col("dicom_id") == row["dicom_id"])["bbox_name"].to_list()
        assert names == list(ANATOMIES)
        here = folder / "audio_segmentation_transcripts" / row["dicom_id"]
        assert {path.name for path in here.iterdir()} == {
            "left_lung.png",
            "right_lung.png",
            "mediastanum.png",
            "aortic_knob.png",
            "transcript.json",
            "audio.wav",
        }
        for path in here.glob("*.png"):
            mask = np.asarray(Image.open(path))
            assert mask.shape == SIZE
            assert set(np.unique(mask)) == {0, 255}
        words = json.loads((here / "transcript.json").read_text())
        assert words["full_text"]
        assert all(word["begin_time"] < word["end_time"] for word in words["time_stamped_text"])
        with wave.open(str(here / "audio.wav")) as audio:
            assert audio.getnframes() > 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [((3056, 2544), (0, 510)), ((2544, 3056), (0, 311)), ((1000, 3000), (220, 0)), ((97, 80), (0, 519))],
)
def test_padding_centres_the_image_on_the_screen(size: tuple[int, int], expected: tuple[int, int]) -> None:
    top, bottom, left, right = egd_cxr.padding(size)
    assert (top, left) == (bottom, right) == expected


def test_several_sessions_are_named_and_calibrated() -> None:
    """A session ends after thirty images; each starts with dots of its own."""
    first, second = (egd_cxr._calibration(1, session) for session in (0, 1))
    assert first["SESSION_ID"].unique().to_list() != second["SESSION_ID"].unique().to_list()
    assert len(first["DICOM_ID"][0]) == len(second["DICOM_ID"][0]) == 39
    assert first["DICOM_ID"][0] != second["DICOM_ID"][0]


@pytest.mark.parametrize("kind", ["samples", "fixations"])
def test_through_the_importer(
    egd_tree: Path, master: list[dict[str, str]], gaze: pl.DataFrame, tmp_path: Path, kind: str
) -> None:
    cohort = import_egd_cxr(
        egd_tree / "egd-cxr",
        egd_tree / "mimic-cxr",
        tmp_path / "cohort",
        gaze=kind,
        size=(48, 40),
        workers=1,
        strict=True,
        progress=False,
    )
    assert len(cohort) == STUDIES
    assert cohort.meta["left_out"] == []
    assert tuple(cohort.classes) == CLASSES
    labels = {row["dicom_id"]: next(label for label in CLASSES if row[label] == "1") for row in master}
    lesions = pl.read_csv(egd_tree / "lesions.csv")
    assert set(lesions["dicom_id"]) <= set(labels)
    for index, study in enumerate(cohort):
        assert study.label == labels[study.study_id]
        points = cohort.gaze(index)
        assert points is not None
        rows = gaze.filter(pl.col("DICOM_ID") == study.study_id)
        if kind == "samples":
            np.testing.assert_array_equal(points.x.numpy(), rows["X_ORIGINAL"].to_numpy())
        assert bool(points.inside(SIZE).float().mean() > 0.85)
        assert [box.name for box in cohort.boxes(index)] == list(ANATOMIES)
        # Where the importer puts the lungs, the image is dark.
        lungs, middle = study.mask("lungs") == 1, study.mask("mediastinum") == 1
        assert study.image[middle].mean() > 1.3 * study.image[lungs].mean()
