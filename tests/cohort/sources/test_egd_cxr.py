"""Trees in the exact layout of EGD-CXR, a few studies with invented values each, through the importer and back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from radgaze.cohort import Cohort
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.cohort.study import Box
from radgaze.errors import InputError
from tests.cohort.sources.egd_rows import CALIBRATION, HEADER, A, B, C, gaze_row, write_rows

SIZE = (40, 31)  # height, width of every image
PADS = {"image_top_pad": 0, "image_bottom_pad": 0, "image_left_pad": 540, "image_right_pad": 541}
SHEET_HEADER = [
    "dicom_id",
    "path",
    "study_id",
    "patient_id",
    "stay_id",
    "gender",
    "anchor_age",
    "image_top_pad",
    "image_bottom_pad",
    "image_left_pad",
    "image_right_pad",
    "dx1",
    "dx1_icd",
    "normal_reports",
    "Normal",
    "CHF",
    "pneumonia",
    "consolidation",
    "atelectasis__chx",
    "cxr_exam_indication",
]
CLASS_OF = {A: "CHF", B: "Normal", C: "pneumonia"}


def sheet_row(image: str, **others: Any) -> dict[str, Any]:
    patient = f"1000{'abc'.index(image[0])}"
    row = {"dicom_id": image, "study_id": f"5{patient}", "patient_id": patient, "stay_id": 7, "gender": "F"}
    row |= {"path": f"files/p10/p{patient}/s5{patient}/{image}.dcm", "anchor_age": "20 - 30", "dx1_icd": "0389"}
    row |= {name: int(name == CLASS_OF[image]) for name in ("Normal", "CHF", "pneumonia")}
    row |= {"cxr_exam_indication": 'dyspnea,\n"worse"\n\nat night'}
    return row | PADS | others


def pixels(image: str) -> np.ndarray:
    values = np.full(SIZE, 20 + 50 * "abc".index(image[0]), np.uint8)
    values[5:25, 8:20] = 250
    return values


def left_lung() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[10:30, 18:28] = 255
    return mask


def right_lung() -> np.ndarray:
    return left_lung()[:, ::-1]


class Tree:
    """An EGD-CXR folder of A (CHF), B (Normal) and C (pneumonia); each part can be rewritten before the import."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "egd-cxr" / "1.0.0"
        self.images = root / "mimic-cxr"
        self.out = root / "cohort"
        self.folder.mkdir(parents=True)
        self.write_sheet([sheet_row(image) for image in (A, B, C)])
        for row in (sheet_row(image) for image in (A, B, C)):
            self.write_image(row["path"].replace(".dcm", ".png"), pixels(row["dicom_id"]))
        self.write_gaze(
            "eye_gaze.csv",
            [
                gaze_row(CALIBRATION, 0, 900, 500),
                gaze_row(A, 0.0, 3, 4),
                gaze_row(A, 0.016, 5, 6, FPOGV=0),
                gaze_row(A, 0.033, -7, 8, BKID=4),
                gaze_row(A, 0.05, 30, 39, BKID=4, FPOGV=0),
                gaze_row(C, 0.0, 31, 0),
            ],
        )
        self.write_boxes([(A, "cardiac silhouette", 2.5, 20, 10, 30.25)])
        for image in (A, B):
            self.write_mask(image, "left_lung", left_lung())
            self.write_mask(image, "right_lung", right_lung())
        self.write_mask(A, "mediastanum", left_lung() | right_lung())
        self.write_mask(B, "mediastinum", right_lung())
        self.write_mask(C, "left_lung", left_lung())
        self.write_mask(C, "aortic_knob", left_lung() // 255)

    def write_sheet(self, rows: list[dict[str, Any]], header: list[str] | None = None) -> None:
        with (self.folder / "master_sheet.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, header or SHEET_HEADER, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def write_gaze(self, name: str, rows: list[dict[str, Any]], header: list[str] = HEADER) -> None:
        write_rows(self.folder / name, rows, header)

    def write_boxes(self, rows: list[tuple[Any, ...]]) -> None:
        lines = ["dicom_id,bbox_name,x1,x2,y1,y2", *(",".join(map(str, row)) for row in rows)]
        (self.folder / "bounding_boxes.csv").write_text("\n".join(lines) + "\n")

    def write_image(self, path: str, values: np.ndarray) -> None:
        file = self.images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)

    def write_mask(self, image: str, name: str, values: np.ndarray) -> None:
        file = self.folder / "audio_segmentation_transcripts" / image / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)

    def run(self, **options: Any) -> Cohort:
        # Letterboxed to their own size, images keep their pixels.
        options = {"size": SIZE, "workers": 1, "progress": False} | options
        import_egd_cxr(self.folder, self.images, self.out, **options)
        return Cohort.open(self.out)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def points(cohort: Cohort, study: str) -> list[tuple[float, float]]:
    gaze = cohort.by_id(study).gaze
    assert gaze is not None
    return list(zip(gaze.x.tolist(), gaze.y.tolist(), strict=True))


def valid(cohort: Cohort, study: str) -> list[bool]:
    gaze = cohort.by_id(study).gaze
    assert gaze is not None
    return gaze.usable.tolist()


def reason(cohort: Cohort, study: str) -> str:
    (found,) = [entry["reason"] for entry in cohort.meta["left_out"] if entry["study_id"] == study]
    return found


def test_everything_arrives(tree: Tree) -> None:
    cohort = tree.run()
    assert (cohort.name, cohort.task, cohort.gaze_kind) == ("EGD-CXR", "multiclass", "samples")
    assert cohort.classes == ["Normal", "CHF", "pneumonia"]
    assert cohort.targets.tolist() == [1, 0, 2]
    assert cohort.structures == ["left_lung", "right_lung", "lungs", "mediastinum", "aortic_knob"]
    assert cohort.class_structures == {"CHF": ["mediastinum"], "pneumonia": ["lungs"]}
    assert cohort.meta["left_out"] == []

    study = cohort.by_id(A)
    assert (study.patient_id, study.label, study.source_size) == ("10000", "CHF", SIZE)
    expected = np.rint(pixels(A).astype(float) / 250 * 65535)
    np.testing.assert_allclose(study.image, expected, atol=1)
    assert study.boxes == [Box("cardiac silhouette", 2.5, 10, 20, 30.25)]
    assert points(cohort, A) == [(3, 4), (5, 6), (-7, 8), (30, 39)]
    assert study.gaze is not None
    assert study.gaze.t is not None
    assert study.gaze.t.tolist() == [0.0, 0.016, 0.033, 0.05]
    assert study.gaze.duration is None
    assert study.gaze.inside(SIZE).tolist() == [True, True, False, True]
    assert cohort.by_id(B).gaze is None
    assert points(cohort, C) == [(31, 0)]
    assert cohort.by_id(C).boxes == []

    attributes = study.attributes
    assert attributes["mimic_study_id"] == 510000
    assert attributes["anchor_age"] == "20 - 30"
    assert attributes["dx1_icd"] == "0389"
    assert attributes["cxr_exam_indication"] == 'dyspnea,\n"worse"\n\nat night'
    assert attributes["image_right_pad"] == 541
    assert attributes["consolidation"] is None
    assert not {"dicom_id", "path", "patient_id", "CHF"} & attributes.keys()


def test_masks_in_both_spellings(tree: Tree) -> None:
    cohort = tree.run()
    left, right = left_lung() // 255, right_lung() // 255
    a, b, c = (cohort.by_id(image) for image in (A, B, C))
    np.testing.assert_array_equal(a.mask("left_lung"), left)
    np.testing.assert_array_equal(a.mask("right_lung"), right)
    np.testing.assert_array_equal(a.mask("lungs"), left | right)
    np.testing.assert_array_equal(a.mask("mediastinum"), left | right)
    np.testing.assert_array_equal(b.mask("mediastinum"), right)
    np.testing.assert_array_equal(c.mask("aortic_knob"), left)
    # The other lung of C is not background only because nobody drew it.
    assert not c.has_mask("lungs")
    assert (c.mask("lungs") == 255).all()


def test_every_quirk_is_counted(tree: Tree) -> None:
    tree.write_boxes([(A, "hilum", 1, 2, 3, 4), (A, "flat", 5, 5, 1, 2), ("unheard-of", "hilum", 1, 2, 3, 4)])
    counts = tree.run().meta["counts"]
    assert {name: count for name, count in counts.items() if "mask" not in name} == {
        "gaze rows in the file": 6,
        "gaze rows of calibration screens, skipped": 1,
        "gaze rows of images that are not in the sheet, skipped": 0,
        "images with gaze that are not in the sheet": 0,
        "gaze rows in a blink (BKID > 0)": 2,
        "gaze rows the tracker calls invalid (FPOGV = 0)": 2,
        "boxes of images that are not in the sheet, skipped": 1,
        "boxes without an area, skipped": 1,
        "images missing": 0,
        "studies without gaze": 1,
        "studies": 3,
        "patients": 3,
        "images": 3,
        "studies with gaze": 2,
        "gaze points": 5,
        "gaze points invalid": 0,
        "gaze points outside the image": 2,
        "boxes": 1,
        "studies left out": 0,
    }
    assert counts["masks of right_lung missing"] == 1
    assert counts["masks of aortic_knob missing"] == 2
    assert counts["masks of mediastinum missing"] == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [True, True, True, True]),  # as the papers' code, which looks at neither flag
        ({"drop_invalid": True}, [True, False, True, False]),
        ({"drop_blinks": True}, [True, True, False, False]),
        ({"drop_invalid": True, "drop_blinks": True}, [True, False, False, False]),
    ],
)
def test_points_that_the_tracker_doubts(tree: Tree, options: dict[str, bool], expected: list[bool]) -> None:
    cohort = tree.run(**options)
    assert valid(cohort, A) == expected
    assert cohort.meta["counts"]["gaze rows in a blink (BKID > 0)"] == 2


def test_a_row_without_a_position_is_invalid(tree: Tree) -> None:
    tree.write_gaze("eye_gaze.csv", [gaze_row(A, 0, "", ""), gaze_row(A, 0.1, 2, 3)])
    cohort = tree.run()
    assert valid(cohort, A) == [False, True]
    assert cohort.meta["counts"]["gaze points invalid"] == 1


def test_fixations(tree: Tree) -> None:
    tree.write_gaze("fixations.csv", [gaze_row(A, 0.5, 3, 4, FPOGD=0.25), gaze_row(A, 1.0, 5, 6, FPOGD=0.125)])
    cohort = tree.run(gaze="fixations")
    gaze = cohort.by_id(A).gaze
    assert gaze is not None
    assert gaze.t is not None
    assert gaze.duration is not None
    assert cohort.gaze_kind == "fixations"
    assert gaze.t.tolist() == [0.25, 0.875]
    assert gaze.duration.tolist() == [0.25, 0.125]
    assert points(cohort, A) == [(3, 4), (5, 6)]


@pytest.mark.parametrize("suffix", ["", "_pad"])
def test_positions_on_the_screen_become_image_pixels(tree: Tree, suffix: str) -> None:
    header = [name for name in HEADER if "ORIGINAL" not in name]
    tree.write_gaze("eye_gaze.csv", [gaze_row(A, t, 0, 0, FPOGX=x, FPOGY=0.5) for t, x in ((0, 0.5), (1, 0.1))], header)
    pads = {
        f"image_{side}{suffix}": pad
        for side, pad in zip(("top", "bottom", "left", "right"), PADS.values(), strict=True)
    }
    old = [name.removesuffix("_pad") + suffix if name in PADS else name for name in SHEET_HEADER]
    tree.write_sheet([sheet_row(image, **pads) for image in (A, B, C)], old)
    # 32 columns (31, padded to be even) over 1920 - 540 - 541 screen pixels
    assert points(tree.run(), A) == [(int(32 / 839 * (960 - 540)), 20), (-1, -1)]


def test_positions_on_the_screen_need_the_pads(tree: Tree) -> None:
    header = [name for name in HEADER if "ORIGINAL" not in name]
    tree.write_gaze("eye_gaze.csv", [gaze_row(image, 0, 0, 0, FPOGX=0.5, FPOGY=0.5) for image in (A, C)], header)
    tree.write_sheet([sheet_row(A, image_left_pad=""), sheet_row(B), sheet_row(C, image_left_pad=1500)])
    cohort = tree.run()
    assert len(cohort) == 1
    assert "image_left_pad is None" in reason(cohort, A)
    assert "its pads are" in reason(cohort, C)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ({"Normal": 1, "CHF": 1}, "Normal=1, CHF=1, pneumonia=0"),
        ({"CHF": 0}, "Normal=0, CHF=0, pneumonia=0"),
        ({"CHF": ""}, "Normal=0, CHF=empty, pneumonia=0"),
        ({"CHF": "yes"}, "CHF=yes"),
        ({"CHF": 2, "Normal": -1}, "Normal=-1, CHF=2"),
    ],
)
def test_a_row_that_is_not_one_hot_is_left_out(tree: Tree, labels: dict[str, Any], shown: str) -> None:
    tree.write_sheet([sheet_row(A, **labels), sheet_row(B), sheet_row(C, pneumonia="1.0", Normal="0.0")])
    cohort = tree.run()
    assert cohort.studies["study_id"].to_list() == [B, C]
    assert shown in reason(cohort, A)
    assert cohort.by_id(C).label == "pneumonia"
    with pytest.raises(InputError, match=f"Study '{A}': its row is not one-hot"):
        tree.run(strict=True, overwrite=True)


def test_broken_studies_are_left_out_by_name(tree: Tree) -> None:
    (tree.images / sheet_row(A)["path"]).with_suffix(".png").unlink()
    (tree.images / sheet_row(B)["path"]).with_suffix(".png").write_bytes(b"no picture")
    cohort = tree.run()
    assert cohort.studies["study_id"].to_list() == [C]
    assert "is not under" in reason(cohort, A)
    assert B in reason(cohort, B)
    assert cohort.meta["counts"]["images missing"] == 1
    assert cohort.meta["counts"]["studies left out"] == 2
    assert points(cohort, C) == [(31, 0)]
    with pytest.raises(InputError, match=f"Study '{A}': image"):
        tree.run(strict=True, overwrite=True)


def test_a_mask_of_another_size_leaves_its_study_out(tree: Tree) -> None:
    tree.write_mask(B, "aortic_knob", np.zeros((20, 20), np.uint8))
    cohort = tree.run()
    assert cohort.studies["study_id"].to_list() == [A, C]
    assert "20x20" in reason(cohort, B)


def test_rows_that_contradict_themselves(tree: Tree) -> None:
    other = f"files/p10/p1/s5/{C}.dcm"
    rows = [
        sheet_row(A),
        sheet_row(A, CHF=0, Normal=1),
        sheet_row(B, path=other),
        sheet_row(C),
        sheet_row(C, dicom_id=""),
    ]
    tree.write_sheet(rows)
    cohort = tree.run()
    assert cohort.studies["study_id"].to_list() == [C]
    assert [entry["study_id"] for entry in cohort.meta["left_out"]] == [A, A, B, "row 5 of master_sheet.csv"]
    assert "expected a file named" in reason(cohort, B)
    assert "no dicom_id" in reason(cohort, "row 5 of master_sheet.csv")
    tree.write_sheet([sheet_row(A, patient_id=" "), sheet_row(B)])
    assert "no patient_id" in reason(tree.run(overwrite=True), A)


def test_boxes_that_cannot_be_read_leave_their_study_out(tree: Tree) -> None:
    tree.write_boxes([(A, "hilum", 1, "two", 3, 4), (B, "hilum", 9, 2, 3, 4), (C, "hilum", 1, 2, 3, 4)])
    cohort = tree.run()
    assert cohort.studies["study_id"].to_list() == [C]
    assert "x1=1, y1=3, x2=two, y2=4" in reason(cohort, A)
    assert "xmin < xmax" in reason(cohort, B)


def test_masks_and_boxes_may_be_absent(tree: Tree) -> None:
    (tree.folder / "bounding_boxes.csv").unlink()
    (tree.folder / "audio_segmentation_transcripts").rename(tree.folder / "elsewhere")
    cohort = tree.run()
    assert len(cohort) == 3
    assert not cohort.has_boxes
    assert (cohort.by_id(A).mask("lungs") == 255).all()
    assert cohort.meta["counts"]["files missing: bounding_boxes.csv"] == 1
    assert cohort.meta["counts"]["masks of left_lung missing"] == 3


def test_dicom_goes_before_jpeg_at_any_depth_of_both_roots(tree: Tree) -> None:
    for image in (A, B, C):
        png = (tree.images / sheet_row(image)["path"]).with_suffix(".png")
        Image.open(png).save(png.with_suffix(".jpg"), quality=95)
        png.unlink()
    write_dicom(tree.images / sheet_row(A)["path"], 4 * pixels(A).astype(np.uint16))
    import_egd_cxr(tree.folder.parent, tree.images / "files" / "p10", tree.out, size=SIZE, workers=1, progress=False)
    cohort = Cohort.open(tree.out)
    assert len(cohort) == 3
    np.testing.assert_allclose(cohort.by_id(A).image, np.rint(pixels(A) / 250 * 65535), atol=1)
    np.testing.assert_allclose(cohort.by_id(B).image / 65535, pixels(B) / 250, atol=0.06)


def write_dicom(path: Path, values: np.ndarray) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = values.tobytes()
    dataset.save_as(path)


def test_splits_are_by_patient(tree: Tree) -> None:
    tree.write_sheet([sheet_row(A, patient_id="1"), sheet_row(B, patient_id="1"), sheet_row(C, patient_id="2")])
    cohort = tree.run(fractions=(0.5, 0.0, 0.5))
    assert cohort.by_id(A).split == cohort.by_id(B).split != cohort.by_id(C).split
    assert cohort.meta["split_by"] == "patient"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaze": "sample"}, "gaze is 'sample'; did you mean 'samples'?"),
        ({"split": "source"}, "EGD-CXR states none"),
        ({"gaze": "fixations"}, r"fixations\.csv' does not exist"),
    ],
)
def test_arguments_are_checked(tree: Tree, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tree.run(**options)
    assert not tree.out.exists()


def test_damaged_tables_are_one_sentence(tree: Tree) -> None:
    with (tree.folder / "eye_gaze.csv").open("a") as file:
        file.write("1,2,3\n")  # the download broke off
    with pytest.raises(InputError, match=r"eye_gaze\.csv' is damaged"):
        tree.run()
    tree.write_sheet([sheet_row(A)], [name for name in SHEET_HEADER if name != "CHF"])
    with pytest.raises(InputError, match=r"master_sheet\.csv' has no column 'CHF'"):
        tree.run()
    with pytest.raises(InputError, match=r"holds no master_sheet\.csv"):
        import_egd_cxr(tree.images, tree.images, tree.out)
    with pytest.raises(InputError, match=r"Image folder .* does not exist"):
        import_egd_cxr(tree.folder, tree.images / "none", tree.out)
    assert not tree.out.exists()
