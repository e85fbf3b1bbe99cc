"""The REFLACX tree, file by file against FORMATS, and through the importer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from radgaze.cohort.sources.reflacx import import_reflacx

from .conftest import SIZE, STUDIES

SHEET = "id,split,eye_tracking_data_discarded,image,dicom_id,subject_id,image_size_x,image_size_y,"
LATER = (
    "Abnormal mediastinal contour,Acute fracture,Atelectasis,Consolidation,Enlarged cardiac silhouette,Enlarged hilum,"
    "Groundglass opacity,Hiatal hernia,High lung volume / emphysema,Interstitial lung disease,Lung nodule or mass,"
    "Other,Pleural abnormality,Pneumothorax,Pulmonary edema,Support devices"
)
LABELS = {
    1: (
        "Airway wall thickening,Atelectasis,Consolidation,Emphysema,Enlarged cardiac silhouette,Fibrosis,Fracture,"
        "Groundglass opacity,Mass,Nodule,Other,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary edema,"
        "Quality issue,Support devices,Wide mediastinum"
    ),
    2: LATER,
    3: LATER,
}
EYE = (
    "x_position,y_position,pupil_area_normalized,angular_resolution_x_pixels_per_degree,"
    "angular_resolution_y_pixels_per_degree,window_width,window_level,xmin_shown_from_image,ymin_shown_from_image,"
    "xmax_shown_from_image,ymax_shown_from_image,xmin_in_screen_coordinates,ymin_in_screen_coordinates,"
    "xmax_in_screen_coordinates,ymax_in_screen_coordinates"
)
ALL_FILES = {
    "fixations.csv",
    "timestamps_transcription.csv",
    "transcription.txt",
    "chest_bounding_box.csv",
    "anomaly_location_ellipses.csv",
}


@pytest.fixture(scope="module")
def main(reflacx_tree: Path) -> Path:
    return reflacx_tree / "reflacx" / "main_data"


@pytest.fixture(scope="module")
def sheets(main: Path) -> dict[int, pl.DataFrame]:
    return {
        phase: pl.read_csv(main / f"metadata_phase_{phase}.csv", infer_schema=False).with_columns(phase=phase)
        for phase in (1, 2, 3)
    }


@pytest.fixture(scope="module")
def readings(sheets: dict[int, pl.DataFrame]) -> pl.DataFrame:
    shared = ["phase", *SHEET.rstrip(",").split(",")]
    return pl.concat([sheet.select(shared) for sheet in sheets.values()])


def lines(path: Path) -> list[str]:
    """Lines of a file whose every line ends in CRLF."""
    text = path.read_bytes().decode()
    assert text.endswith("\r\n")
    assert text.count("\n") == text.count("\r\n")
    return text.split("\r\n")[:-1]


def test_headers_and_line_ends_are_exact(main: Path, readings: pl.DataFrame) -> None:
    for phase, labels in LABELS.items():
        assert lines(main / f"metadata_phase_{phase}.csv")[0] == SHEET + labels
    for row in readings.iter_rows(named=True):
        folder = main / row["id"]
        assert lines(folder / "chest_bounding_box.csv")[0] == "xmin,ymin,xmax,ymax"
        ellipses = lines(folder / "anomaly_location_ellipses.csv")[0]
        assert ellipses == "xmin,ymin,xmax,ymax,certainty," + LABELS[row["phase"]]
        if row["eye_tracking_data_discarded"] == "False":
            words = lines(folder / "timestamps_transcription.csv")[0]
            assert words == "word,timestamp_start_word,timestamp_end_word"
            fixations = lines(folder / "fixations.csv")[0]
            assert fixations == "timestamp_start_fixation,timestamp_end_fixation," + EYE
            gaze = main.parent / "gaze_data" / row["id"] / "gaze.csv"
            with open(gaze, newline="", encoding="utf-8") as file:
                assert file.readline() == "timestamp_sample," + EYE + "\r\n"


def test_readings(readings: pl.DataFrame, reflacx_tree: Path) -> None:
    assert readings["id"].is_unique().all()
    assert readings["dicom_id"].n_unique() == STUDIES
    for row in readings.iter_rows(named=True):
        trial = r"\d\d" if row["phase"] < 3 else "00"
        assert re.fullmatch(rf"P{row['phase']}{trial}R\d{{6}}", row["id"])
        assert row["split"] in {"train", "validate", "test"}
        start = "physionet.org/files/mimic-cxr/2.0.0/"
        assert row["image"].startswith(start + f"files/p{row['subject_id'][:2]}/p{row['subject_id']}/s")
        assert (reflacx_tree / "mimic-cxr" / row["image"].removeprefix(start)).is_file()
        assert (int(row["image_size_y"]), int(row["image_size_x"])) == SIZE
    per_image = readings.group_by("phase", "dicom_id").len()
    assert per_image.filter(pl.col("phase") < 3)["len"].min() >= 3
    assert per_image.filter(pl.col("phase") == 3)["len"].max() == 1
    assert readings.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1


def test_discarded_readings_have_only_boxes(readings: pl.DataFrame, main: Path) -> None:
    discarded = readings.filter(pl.col("eye_tracking_data_discarded") == "True")["id"].to_list()
    assert discarded
    assert len(discarded) < len(readings)
    for name in readings["id"]:
        present = {path.name for path in (main / name).iterdir()}
        if name in discarded:
            assert present == {"chest_bounding_box.csv", "anomaly_location_ellipses.csv"}
        else:
            assert present == ALL_FILES
        assert (main.parent / "gaze_data" / name / "gaze.csv").is_file() == (name not in discarded)


def test_label_values(sheets: dict[int, pl.DataFrame], main: Path) -> None:
    certain = 0
    for phase, sheet in sheets.items():
        for label in LABELS[phase].split(","):
            values = set(sheet[label].to_list())
            if label in {"Support devices", "Quality issue"}:
                assert values <= {"True", "False"}
            elif label != "Other":
                assert values <= set("012345")
        for row in sheet.iter_rows(named=True):
            ellipses = pl.read_csv(main / row["id"] / "anomaly_location_ellipses.csv", infer_schema=False)
            for ellipse in ellipses.iter_rows(named=True):
                assert ellipse["certainty"] in set("12345")
                assert int(ellipse["xmin"]) < int(ellipse["xmax"])
                assert int(ellipse["ymin"]) < int(ellipse["ymax"])
                stated = [label for label in LABELS[phase].split(",") if ellipse[label] == "True"]
                assert {ellipse[label] for label in LABELS[phase].split(",")} <= {"True", "False"}
                assert stated
                # The sheet holds the highest certainty of a label's ellipses.
                assert all(int(row[label]) >= int(ellipse["certainty"]) for label in stated)
                certain += int(ellipse["certainty"]) >= 3
    assert certain > 3


def test_gaze_and_fixations(readings: pl.DataFrame, main: Path) -> None:
    lost = outside = zoomed = early = 0
    for name in readings.filter(pl.col("eye_tracking_data_discarded") == "False")["id"]:
        gaze = pl.read_csv(main.parent / "gaze_data" / name / "gaze.csv")
        t = gaze["timestamp_sample"].to_numpy()
        assert np.diff(t).mean() == pytest.approx(1e-3, rel=1e-3)
        assert (np.diff(t) >= 0).all()
        lost += gaze["x_position"].null_count()
        assert gaze["x_position"].is_null().equals(gaze["y_position"].is_null())
        x = gaze["x_position"].drop_nulls().to_numpy()
        outside += int(((x < 0) | (x > SIZE[1])).sum())
        early += int((t < 0).any())
        fixations = pl.read_csv(main / name / "fixations.csv")
        start, end = (fixations[f"timestamp_{end}_fixation"].to_numpy() for end in ("start", "end"))
        assert (end > start).all()
        assert (start[1:] >= end[:-1]).all()
        assert fixations.null_count().sum_horizontal().sum() == 0
        for table in (gaze, fixations):
            shown = table.select(pl.col("^.*_shown_from_image$")).to_numpy()
            assert (shown[:, :2] >= 0).all()
            assert (shown[:, 2:] <= [SIZE[1], SIZE[0]]).all()
            side = (shown[:, 2] - shown[:, 0]) / SIZE[1]
            zoomed += int((side < 0.9).any())
            # Zooming in spreads fewer image pixels over a degree, by the same factor.
            ppd = table["angular_resolution_y_pixels_per_degree"].to_numpy()
            np.testing.assert_allclose(ppd / side, (ppd / side).max(), rtol=0.02)
        # A fixation lies where its samples are.
        number = len(fixations) // 2
        inside = (t >= start[number]) & (t <= end[number])
        there = gaze.filter(pl.Series(inside))["x_position"].mean()
        assert fixations["x_position"][number] == pytest.approx(there, abs=0.5)
    assert lost > 0
    assert outside > 0
    assert zoomed > 0
    assert early > 0


def test_dictation_is_timed(readings: pl.DataFrame, main: Path) -> None:
    for name in readings.filter(pl.col("eye_tracking_data_discarded") == "False")["id"]:
        words = pl.read_csv(main / name / "timestamps_transcription.csv")
        assert " ".join(words["word"].to_list()) == (main / name / "transcription.txt").read_text()
        start, end = words["timestamp_start_word"].to_numpy(), words["timestamp_end_word"].to_numpy()
        assert (end > start).all()
        assert (start[1:] >= end[:-1] - 2e-3).all()


@pytest.mark.parametrize("kind", ["fixations", "samples"])
def test_through_the_importer(reflacx_tree: Path, readings: pl.DataFrame, tmp_path: Path, kind: str) -> None:
    cohort = import_reflacx(
        reflacx_tree / "reflacx",
        reflacx_tree / "mimic-cxr",
        tmp_path / "cohort",
        gaze=kind,
        size=(48, 40),
        workers=1,
        strict=True,
        progress=False,
    )
    assert len(cohort) == len(readings)
    assert cohort.meta["left_out"] == []
    assert cohort.images.shape[0] == STUDIES
    discarded = set(readings.filter(pl.col("eye_tracking_data_discarded") == "True")["id"])
    for index, study in enumerate(cohort):
        points = cohort.gaze(index)
        assert (points is None) == (study.study_id in discarded)
        if points is not None:
            assert points.px_per_degree is not None
            assert points.shown is not None
            assert bool(points.inside(SIZE).float().mean() > 0.8)
        boxes = cohort.boxes(index)
        assert boxes[0].name == "chest"
        assert all(box.shape == "ellipse" for box in boxes[1:])
