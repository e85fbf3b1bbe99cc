"""Trees in the layout of REFLACX (CRLF, no index column), a few invented readings, through the importer and back."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from radgaze.cohort import Cohort
from radgaze.cohort.sources.reflacx import import_reflacx
from radgaze.cohort.study import Box
from radgaze.errors import InputError

SIZE = (30, 24)  # height, width of every image
LABELS = {
    1: [
        "Airway wall thickening",
        "Atelectasis",
        "Emphysema",
        "Other",
        "Pleural effusion",
        "Quality issue",
        "Support devices",
    ],
    2: ["Acute fracture", "Atelectasis", "High lung volume / emphysema", "Other", "Support devices"],
    3: ["Acute fracture", "Atelectasis", "High lung volume / emphysema", "Other", "Support devices"],
}
CLASSES = sorted({*LABELS[1], *LABELS[2]} - {"Other"})
SHARED_COLUMNS = [
    "pupil_area_normalized",
    "angular_resolution_x_pixels_per_degree",
    "angular_resolution_y_pixels_per_degree",
    "window_width",
    "window_level",
    "xmin_shown_from_image",
    "ymin_shown_from_image",
    "xmax_shown_from_image",
    "ymax_shown_from_image",
    "xmin_in_screen_coordinates",
    "ymin_in_screen_coordinates",
    "xmax_in_screen_coordinates",
    "ymax_in_screen_coordinates",
]
FIXATIONS = ["timestamp_start_fixation", "timestamp_end_fixation", "x_position", "y_position", *SHARED_COLUMNS]
SAMPLES = ["timestamp_sample", "x_position", "y_position", *SHARED_COLUMNS]
VIEW = [1.0, 94, 93.5, 1, 0.5, 2, 0, 20, 30, 600, 0, 3200, 2160]  # the shared columns of a point
LOST = ["", "", "", 1, 0.5, 2, 0, 20, 30, 600, 0, 3200, 2160]  # a blink: no pupil, no resolution

# Two readings of image "one" in phase 1 and one in phase 2, a discarded reading of "two", and image "three" in phase 3.
FIRST, SECOND, DISCARDED, LATER, MAIN = "P101R000001", "P102R000002", "P101R000003", "P203R000004", "P300R000005"


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows([header, *rows])


def image_path(image: str, patient: str) -> str:
    return f"physionet.org/files/mimic-cxr/2.0.0/files/p{patient[:2]}/p{patient}/s5{patient}/{image}.dcm"


class Tree:
    """A REFLACX folder; ``rows`` holds the metadata, written by :meth:`run`."""

    def __init__(self, root: Path) -> None:
        self.root = root / "reflacx" / "1.0.0"
        self.main = self.root / "main_data"
        self.images = root / "mimic-cxr"
        self.out = root / "cohort"
        self.rows: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 3: []}
        self.add(
            1,
            FIRST,
            "one",
            "1001",
            **{"Atelectasis": 3, "Emphysema": 2, "Support devices": True, "Other": "hernia|scar"},
        )
        self.add(1, SECOND, "one", "1001", **{"Atelectasis": 1, "Pleural effusion": 5, "Quality issue": True})
        self.add(1, DISCARDED, "two", "1002", split="validate", discarded=True)
        self.add(2, LATER, "one", "1001", **{"Acute fracture": 4})
        self.add(3, MAIN, "three", "1103", split="test", **{"High lung volume / emphysema": 5})
        for number, (image, patient) in enumerate((("one", "1001"), ("two", "1002"), ("three", "1103"))):
            values = np.full(SIZE, 40 * number, np.uint8)
            values[3:10, 5:9] = 200
            self.write_image(image, patient, values)
        for reading in (FIRST, SECOND, LATER, MAIN):
            self.write_fixations(reading, [[0.5, 0.75, 10, 12, *VIEW]])
            write_csv(self.main / reading / "timestamps_transcription.csv", ["word"], [["lungs"]])
        self.write_fixations(FIRST, [[-1.25, -1.0, 3, 4, *VIEW], [-0.75, 0.5, 30, 5, *VIEW], [1, 1.125, -2, 6, *VIEW]])
        for phase, reading in ((1, FIRST), (1, SECOND), (1, DISCARDED), (2, LATER), (3, MAIN)):
            write_csv(
                self.main / reading / "chest_bounding_box.csv", ["xmin", "ymin", "xmax", "ymax"], [[2, 3, 21, 27]]
            )
            self.write_ellipses(phase, reading, [])
        self.write_ellipses(1, FIRST, [([4, 5, 9, 12.5], 3, {"Atelectasis", "Emphysema"}), ([1, 2, 3, 4], 2, set())])

    def add(
        self,
        phase: int,
        reading: str,
        image: str,
        patient: str,
        split: str = "train",
        discarded: bool = False,
        **labels: Any,
    ) -> None:
        row = {
            "id": reading,
            "split": split,
            "eye_tracking_data_discarded": discarded,
            "image": image_path(image, patient),
        }
        row |= {"dicom_id": image, "subject_id": patient, "image_size_x": SIZE[1], "image_size_y": SIZE[0]}
        row |= dict.fromkeys(LABELS[phase], 0) | {"Support devices": False, "Other": ""} | labels
        if phase == 1:
            row.setdefault("Quality issue", False)
            row["Quality issue"] = bool(row["Quality issue"])
        self.rows[phase].append(row)

    def write_image(self, image: str, patient: str, values: np.ndarray) -> None:
        file = self.images / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s5{patient}" / f"{image}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)

    def write_fixations(self, reading: str, rows: list[list[Any]]) -> None:
        write_csv(self.main / reading / "fixations.csv", FIXATIONS, rows)

    def write_samples(self, reading: str, rows: list[list[Any]]) -> None:
        write_csv(self.root / "gaze_data" / reading / "gaze.csv", SAMPLES, rows)

    def write_ellipses(self, phase: int, reading: str, ellipses: list[tuple[list[float], Any, set[str]]]) -> None:
        header = ["xmin", "ymin", "xmax", "ymax", "certainty", *LABELS[phase]]
        rows = [
            [*corners, certainty, *(name in names for name in LABELS[phase])] for corners, certainty, names in ellipses
        ]
        write_csv(self.main / reading / "anomaly_location_ellipses.csv", header, rows)

    def run(self, **options: Any) -> Cohort:
        for phase, rows in self.rows.items():
            write_csv(self.main / f"metadata_phase_{phase}.csv", list(rows[0]), [list(row.values()) for row in rows])
        options = {"size": SIZE, "workers": 1, "progress": False} | options
        import_reflacx(self.root, self.images, self.out, **options)
        return Cohort.open(self.out)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def reason(cohort: Cohort, study: str) -> str:
    (found,) = [entry["reason"] for entry in cohort.meta["left_out"] if entry["study_id"] == study]
    return found


def test_every_reading_is_a_study_and_shares_its_image(tree: Tree) -> None:
    cohort = tree.run()
    assert (cohort.name, cohort.task, cohort.gaze_kind) == ("REFLACX", "multilabel", "fixations")
    assert cohort.studies["study_id"].to_list() == [FIRST, SECOND, DISCARDED, LATER, MAIN]
    assert cohort.studies["patient_id"].to_list() == ["1001", "1001", "1002", "1001", "1103"]
    assert cohort.studies["image_row"].to_list() == [0, 0, 1, 0, 2]
    assert cohort.images.shape == (3, *SIZE)
    assert {cohort.by_id(reading).split for reading in (FIRST, SECOND, LATER)} == {cohort.by_id(FIRST).split}
    assert cohort.by_id(FIRST).source_size == SIZE
    np.testing.assert_array_equal(cohort.by_id(MAIN).image[:2], np.full((2, SIZE[1]), round(80 / 200 * 65535)))


def test_labels_of_all_phases(tree: Tree) -> None:
    cohort = tree.run()
    assert cohort.classes == CLASSES
    unasked_in_1 = {"Acute fracture": None, "High lung volume / emphysema": None}
    unasked_later = dict.fromkeys(("Airway wall thickening", "Emphysema", "Pleural effusion", "Quality issue"))
    absent = dict.fromkeys(CLASSES, 0.0)
    expected = {
        FIRST: absent
        | unasked_in_1
        | {"Atelectasis": 1.0, "Support devices": 1.0},  # certainty 2 of Emphysema is absent
        SECOND: absent | unasked_in_1 | {"Pleural effusion": 1.0, "Quality issue": 1.0},
        DISCARDED: absent | unasked_in_1,
        LATER: absent | unasked_later | {"Acute fracture": 1.0},
        MAIN: absent | unasked_later | {"High lung volume / emphysema": 1.0},
    }
    assert {study.study_id: study.labels for study in cohort} == expected
    assert np.isnan(cohort.targets).sum() == 3 * 2 + 2 * 4


def test_attributes(tree: Tree) -> None:
    cohort = tree.run()
    assert cohort.by_id(FIRST).attributes == {
        "phase": 1,
        "trial": 1,
        "dicom_id": "one",
        "other": "hernia|scar",
        "source_split": "train",
        "eye_tracking_discarded": False,
    }
    assert cohort.by_id(LATER).attributes["trial"] == 3
    assert cohort.by_id(MAIN).attributes["trial"] is None
    assert cohort.by_id(MAIN).attributes["other"] is None
    assert cohort.by_id(DISCARDED).attributes["eye_tracking_discarded"] is True


def test_fixations_keep_what_was_on_screen(tree: Tree) -> None:
    gaze = tree.run().by_id(FIRST).gaze
    assert gaze is not None
    assert gaze.x.tolist() == [3, 30, -2]
    assert gaze.y.tolist() == [4, 5, 6]
    assert gaze.t is not None
    assert gaze.t.tolist() == [-1.25, -0.75, 1]
    assert gaze.duration is not None
    assert gaze.duration.tolist() == [0.25, 1.25, 0.125]
    assert gaze.px_per_degree is not None
    assert gaze.px_per_degree.tolist() == [[94, 93.5]] * 3
    assert gaze.shown is not None
    assert gaze.shown.tolist() == [[2, 0, 20, 30]] * 3
    assert gaze.inside(SIZE).tolist() == [True, False, False]
    assert gaze.reader is None


def test_samples_without_the_eye_are_invalid(tree: Tree) -> None:
    for reading in (FIRST, SECOND, LATER, MAIN):
        tree.write_samples(reading, [[0.001, 5, 6, *VIEW]])
    tree.write_samples(FIRST, [[-0.001, 5, 6, *VIEW], [0, "", "", *LOST], [0.001, 7, 8, *VIEW]])
    cohort = tree.run(gaze="samples")
    gaze = cohort.by_id(FIRST).gaze
    assert cohort.gaze_kind == "samples"
    assert gaze is not None
    assert gaze.usable.tolist() == [True, False, True]
    assert gaze.x[gaze.usable].tolist() == [5, 7]
    assert gaze.t is not None
    assert gaze.t.tolist() == [-0.001, 0, 0.001]
    assert gaze.duration is None
    assert gaze.px_per_degree is not None
    np.testing.assert_array_equal(gaze.px_per_degree, [[94, 93.5], [np.nan, np.nan], [94, 93.5]])
    assert cohort.meta["counts"]["gaze points invalid"] == 1
    assert cohort.by_id(DISCARDED).gaze is None


def test_ellipses_and_the_chest_are_boxes(tree: Tree) -> None:
    cohort = tree.run()
    assert cohort.by_id(FIRST).boxes == [
        Box("chest", 2, 3, 21, 27),
        Box("Atelectasis", 4, 5, 9, 12.5, "ellipse", 3),
        Box("Emphysema", 4, 5, 9, 12.5, "ellipse", 3),
    ]
    assert cohort.by_id(DISCARDED).boxes == [Box("chest", 2, 3, 21, 27)]


def test_every_quirk_is_counted(tree: Tree) -> None:
    (tree.main / LATER / "chest_bounding_box.csv").unlink()
    (tree.main / MAIN / "anomaly_location_ellipses.csv").unlink()
    counts = tree.run().meta["counts"]
    assert counts == {
        "readings discarded by the source, kept without gaze": 1,
        "images missing": 0,
        "ellipses without a label, skipped": 1,
        "files missing: chest_bounding_box.csv": 1,
        "files missing: anomaly_location_ellipses.csv": 1,
        "studies": 5,
        "patients": 3,
        "images": 3,
        "studies with gaze": 4,
        "gaze points": 6,
        "gaze points invalid": 0,
        "gaze points outside the image": 2,
        "boxes": 6,
        "studies left out": 0,
    }


def test_a_discarded_reading_has_no_gaze_whatever_files_it_has(tree: Tree) -> None:
    tree.write_fixations(DISCARDED, [[0, 1, 2, 3, *VIEW]])
    assert tree.run().by_id(DISCARDED).gaze is None


def test_the_sources_split(tree: Tree) -> None:
    cohort = tree.run(split="source")
    assert [study.split for study in cohort] == ["train", "train", "val", "train", "test"]
    assert cohort.meta["split_by"] == "source"
    tree.rows[2][0]["split"] = "test"  # the same patient as in phase 1
    with pytest.raises(InputError, match="Patient '1001' is in 'train'"):
        tree.run(split="source", overwrite=True)
    assert tree.run(overwrite=True).meta["split_by"] == "patient"


def test_some_phases_only(tree: Tree) -> None:
    cohort = tree.run(phases=[3, 2, 2])
    assert cohort.studies["study_id"].to_list() == [LATER, MAIN]
    assert cohort.classes == sorted(set(LABELS[2]) - {"Other"})
    assert not np.isnan(cohort.targets).any()


def test_broken_readings_are_left_out_by_name(tree: Tree) -> None:
    (tree.main / FIRST / "fixations.csv").unlink()
    (tree.main / LATER / "fixations.csv").write_text(",".join(FIXATIONS) + "\r\n1,2,three\r\n")
    shutil.rmtree(tree.images / "files" / "p10" / "p1002")
    cohort = tree.run()
    assert cohort.studies["study_id"].to_list() == [SECOND, MAIN]
    assert "does not exist" in reason(cohort, FIRST)
    assert "is not under" in reason(cohort, DISCARDED)
    assert "is damaged" in reason(cohort, LATER)
    assert cohort.meta["counts"]["images missing"] == 1
    assert cohort.meta["counts"]["studies left out"] == 3
    with pytest.raises(InputError, match=f"Study '{DISCARDED}': .*is not under"):
        tree.run(strict=True, overwrite=True)


@pytest.mark.parametrize(("kind", "file"), [("fixations", "fixations.csv"), ("samples", "gaze.csv")])
def test_a_reading_without_its_gaze_file_is_left_out_once_the_engine_asks(tree: Tree, kind: str, file: str) -> None:
    for reading in (FIRST, SECOND, LATER, MAIN):
        tree.write_samples(reading, [[0.001, 5, 6, *VIEW]])
    broken = (tree.main if kind == "fixations" else tree.main.parent / "gaze_data") / FIRST / file
    broken.unlink()
    cohort = tree.run(gaze=kind)
    assert cohort.studies["study_id"].to_list() == [SECOND, DISCARDED, LATER, MAIN]
    assert cohort.meta["left_out"] == [
        {
            "study_id": FIRST,
            "reason": f"{str(broken)!r} does not exist; copy it from the data set, or check the folder.",
        }
    ]
    with pytest.raises(InputError, match=f"Study '{FIRST}': .*does not exist"):
        tree.run(gaze=kind, strict=True, overwrite=True)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Atelectasis", 6, "'Atelectasis' is '6'"),
        ("Atelectasis", "maybe", "'Atelectasis' is 'maybe'"),
        ("image_size_x", SIZE[1] + 1, "30x25"),
        ("image_size_y", "tall", "image_size_y is 'tall'"),
        ("subject_id", "", "subject_id is empty"),
        ("eye_tracking_data_discarded", "", "eye_tracking_data_discarded is None"),
        ("id", "", "id is empty"),
        ("id", "../main_data", "id is '../main_data'; expected the name of a folder"),
        ("id", "a" * 256, f"id is '{'a' * 40}'; expected the name of a folder"),
    ],
)
def test_a_row_that_says_nonsense_leaves_its_reading_out(tree: Tree, column: str, value: Any, message: str) -> None:
    tree.rows[3][0][column] = value
    cohort = tree.run()
    assert cohort.studies["study_id"].to_list() == [FIRST, SECOND, DISCARDED, LATER]
    (entry,) = cohort.meta["left_out"]
    assert message in entry["reason"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 0.5, 3, 4, *VIEW]], "negative"),  # it ends before it starts
        ([["soon", 0.5, 3, 4, *VIEW]], "is damaged"),
    ],
)
def test_impossible_fixations_leave_their_reading_out(tree: Tree, rows: list[list[Any]], message: str) -> None:
    tree.write_fixations(MAIN, rows)
    assert message in reason(tree.run(), MAIN)


@pytest.mark.parametrize("corners", [["", 2, 3, 4], [5, 2, 3, 4]])
def test_impossible_ellipses_leave_their_reading_out(tree: Tree, corners: list[Any]) -> None:
    tree.write_ellipses(3, MAIN, [(corners, 3, {"Atelectasis"})])
    assert "expected" in reason(tree.run(), MAIN)


def test_an_unknown_label_is_unknown(tree: Tree) -> None:
    tree.rows[3][0]["Atelectasis"] = ""
    assert tree.run().by_id(MAIN).labels["Atelectasis"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaze": "fixation"}, "gaze is 'fixation'; did you mean 'fixations'?"),
        ({"gaze": "samples"}, "gaze_data' does not exist"),
        ({"phases": []}, r"phases are \[\]"),
        ({"phases": [1, 4]}, r"phases are \[1, 4\]"),
    ],
)
def test_arguments_are_checked(tree: Tree, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tree.run(**options)
    assert not tree.out.exists()


def test_a_missing_sheet_is_named(tree: Tree) -> None:
    tree.run()
    (tree.main / "metadata_phase_2.csv").unlink()
    with pytest.raises(InputError, match=r"metadata_phase_2\.csv' does not exist"):
        import_reflacx(tree.root, tree.images, tree.out, overwrite=True)
    assert len(Cohort.open(tree.out)) == 5
