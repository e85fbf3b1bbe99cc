"""Tables are read as spreadsheets write them; what cannot be read is named, and nothing is guessed."""

from __future__ import annotations

import csv
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fuzz.tables import imported, written
from radgaze.cohort import Box, Cohort
from radgaze.cohort.sources import tables
from radgaze.cohort.sources.engine import RawStudy, write_cohort
from radgaze.cohort.sources.tables import import_tables
from radgaze.errors import InputError
from radgaze.gaze import Gaze
from tests.cohort.pictures import write_dicom, write_image

SIZE = (30, 20)  # of the images, (H, W)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images and a mask."""
    (tmp_path / "images").mkdir()
    for index in range(6):
        write_image(tmp_path / "images" / f"{index}.png", np.full(SIZE, 40 + index, np.uint8))
    mask = np.zeros(SIZE, np.uint8)
    mask[10:20, 5:15] = 255
    write_image(tmp_path / "mask.png", mask)
    return tmp_path


def run(folder: Path, images: str, **changed: Any) -> Cohort:
    """Import ``images`` (the text of the table) and tables named in ``changed`` likewise."""
    for name in ("gaze", "boxes"):
        if name in changed:
            changed[name] = write(folder / f"{name}.csv", changed[name])
    table = write(folder / "images.csv", images)
    usual: dict[str, Any] = {"size": (12, 8), "workers": 1, "progress": False}
    return import_tables(table, folder / "out", **usual | changed)


THREE = "study_id,image,patient_id,label\n001,images/0.png,07,sick\n002,images/1.png,08,well\n003,images/2.png,09,\n"


def test_all_columns(folder: Path) -> None:
    cohort = run(
        folder,
        "study_id,image,patient_id,label,split,mask_lungs,age,weight,zip,note\n"
        "001,images/0.png,07,sick,training,mask.png,61,70.5,01234,calm\n"
        "002,images/1.png,07,well,train,,,81,99999,\n"
        "003,images/2.png,09,sick,dev,mask.png,40,,12345,calm\n",
        gaze="study_id,x,y,t,duration,reader,valid\n003,1,2,0,0.2,ann,1\n001,3.5,4,0.5,0.1,bob,true\n003,,,0.9,0.1,ann,0\n",
        boxes="study_id,name,xmin,ymin,xmax,ymax,shape,certainty\n001,heart,1,2,3,4,,\n001,lung,1,2,3,4.5,ellipse,3\n",
    )
    assert [study.study_id for study in cohort] == ["001", "002", "003"]
    assert [study.patient_id for study in cohort] == ["07", "07", "09"]
    assert (cohort.classes, cohort.targets.tolist()) == (["sick", "well"], [0, 1, 0])
    assert [study.split for study in cohort] == ["train", "train", "val"]
    assert cohort.meta["split_by"] == "source"
    assert cohort.name == folder.name
    assert [study.has_mask("lungs") for study in cohort] == [True, False, True]
    assert cohort[0].mask("lungs").sum() == 16  # a third of the height and half of the width of 12x8
    assert cohort[0].attributes == {"age": 61, "weight": 70.5, "zip": "01234", "note": "calm"}
    assert cohort[1].attributes == {"age": None, "weight": 81.0, "zip": "99999", "note": None}
    first, last = cohort.gaze(0), cohort.gaze(2)
    assert cohort.gaze(1) is None
    assert first is not None
    assert last is not None
    assert first.x.tolist() == [3.5]
    assert last.x.tolist()[:1] == [1]
    assert last.valid is not None
    assert last.valid.tolist() == [True, False]
    assert last.reader is not None
    assert [cohort.readers[code] for code in last.reader] == ["ann", "ann"]
    assert cohort.gaze_kind == "fixations"
    assert cohort[0].boxes == [Box("heart", 1, 2, 3, 4), Box("lung", 1, 2, 3, 4.5, "ellipse", 3)]


def test_only_what_is_required(folder: Path) -> None:
    cohort = run(folder, "study_id,image\na,images/0.png\nb,images/1.png\n")
    assert (cohort.task, cohort.gaze_kind, cohort.structures) == ("none", None, [])
    assert cohort.meta["counts"]["studies without patient_id, each taken as a patient of its own"] == 2
    assert cohort.meta["counts"]["patients"] == 2
    assert cohort.meta["split_by"] == "patient"
    assert import_tables.__kwdefaults__["size"] == (640, 512)


def test_one_class_and_one_study(folder: Path) -> None:
    cohort = run(folder, "study_id,image,label\na,images/0.png,sick\n")
    assert (cohort.classes, cohort.task, cohort.targets.tolist()) == (["sick"], "multiclass", [0])
    assert cohort[0].split == "train"


def test_classes_in_a_chosen_order(folder: Path) -> None:
    assert run(folder, THREE, classes=["well", "sick"]).targets.tolist() == [1, 0, -1]


def test_several_labels(folder: Path) -> None:
    table = "study_id,image,label_edema,label_mass\na,images/0.png,1,0\nb,images/1.png,,True\n"
    cohort = run(folder, table)
    assert (cohort.task, cohort.classes) == ("multilabel", ["edema", "mass"])
    np.testing.assert_array_equal(cohort.targets, [[1, 0], [np.nan, 1]])
    with pytest.raises(InputError, match="row 2 has label_mass '-1'; expected 1, 0 or nothing"):
        run(folder, table.replace("1,0", "1,-1"))
    with pytest.raises(InputError, match="has both 'label' and 'label_edema'"):
        run(folder, "study_id,image,label,label_edema\na,images/0.png,x,1\n")


# ---- spreadsheets' habits


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text, "utf-8"),
        (lambda text: text, "utf-8-sig"),
        (lambda text: text, "utf-16"),
        (lambda text: text, "cp1252"),
        (lambda text: text.replace("\n", "\r\n"), "utf-8"),
        (lambda text: text.replace(",", ";"), "utf-8-sig"),
        (lambda text: text.replace(",", "\t"), "utf-8"),
        (lambda text: "sep=;\n" + text.replace(",", ";"), "utf-8"),
        (lambda text: text.replace("study_id,image", " Study_ID , IMAGE"), "utf-8"),
        (lambda text: text + ",,,\n,,,\n\n", "utf-8"),
        (lambda text: text.replace("séjour", '"séjour\nlong, calme"'), "utf-8"),
        (lambda text: text.replace("images/0", "images\\0"), "utf-8"),
        (lambda text: text.replace("001", " 001 "), "utf-8"),
        (lambda text: text.rstrip("\n"), "utf-8"),
    ],
    ids=["plain", "bom", "utf-16", "cp1252", "crlf", "semicolon", "tab", "sep=", "header", "empty rows", "line break",
         "backslash", "spaces", "no last line end"],
)  # fmt: skip
def test_habits(folder: Path, change: Callable[[str], str], encoding: str) -> None:
    plain = "study_id,image,label,note\n001,images/0.png,sick,séjour\n002,images/1.png,well,\n"
    table = write(folder / "images.csv", change(plain), encoding)
    cohort = import_tables(table, folder / "out", size=(12, 8), workers=1, progress=False)
    assert [study.study_id for study in cohort] == ["001", "002"]
    assert cohort.classes == ["sick", "well"]
    assert str(cohort[0].attributes["note"]).startswith("séjour")


def test_decimal_commas(folder: Path) -> None:
    write(folder / "images.csv", "study_id;image\na;images/0.png\n")
    gaze = write(folder / "gaze.csv", "study_id;x;y;t\na;1,5;2,25;-0,5\na;3;4;1e-1\n")
    cohort = import_tables(folder / "images.csv", folder / "out", gaze=gaze, size=(4, 4), progress=False)
    points = cohort.gaze(0)
    assert points is not None
    assert points.t is not None
    assert points.x.tolist() == [1.5, 3]
    assert points.y.tolist() == [2.25, 4]
    assert points.t.tolist() == [-0.5, 0.1]
    # In a table with commas between the columns "1,500" may be either: it is named.
    with pytest.raises(InputError, match=r"gaze.csv row 2: x is '1,500', expected a number"):
        run(folder, "study_id,image\na,images/0.png\n", gaze='study_id,x,y\na,"1,500",2\n', strict=True, overwrite=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no column 'study_id' .its columns: none."),
        ("studyid,image\n", "has no column 'study_id' .*did you mean 'studyid'"),
        ("study_id,file\na,b\n", "has no column 'image'"),
        ("study_id,image,Image\na,b,c\n", "more than one column 'image'"),
        ("study_id,image\na,b,c,d\n", "is no readable table"),
        ("study_id,image\n", "holds no study"),
        ("study_id,image\na,images/0.png\nb,images/0.png\na,images/1.png\n", "study_id 'a' in rows 2 and 4"),
    ],
)
def test_tables_that_are_none(folder: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        run(folder, text)


def test_files_that_are_no_tables(folder: Path) -> None:
    with pytest.raises(InputError, match="is a workbook; expected text: save the sheet as CSV"):
        import_tables(folder / "images.xlsx", folder / "out")
    with pytest.raises(InputError, match="does not exist; expected a table"):
        import_tables(folder / "nothing.csv", folder / "out")
    with pytest.raises(InputError, match="cannot be read"):
        import_tables(folder / "images", folder / "out")


# ---- gaze


def test_fractions_of_the_image(folder: Path) -> None:
    write_dicom(folder / "images" / "1.dcm", np.ones((50, 40), np.uint16))
    gaze = "study_id,x_norm,y_norm\n001,0,0\n001,1,1\n001,0.5,0.5\n002,0.5,0.5\n"
    cohort = run(folder, THREE.replace("1.png", "1.dcm"), gaze=gaze)
    first, second = cohort.gaze(0), cohort.gaze(1)
    assert first is not None
    assert second is not None
    assert first.x.tolist() == [-0.5, 19.5, 9.5]  # 0 and 1 are the outer edges of the border pixels
    assert first.y.tolist() == [-0.5, 29.5, 14.5]
    assert (second.x.tolist(), second.y.tolist()) == ([19.5], [24.5])
    assert cohort.meta["counts"]["gaze points outside the image"] == 0
    assert cohort.gaze_kind == "samples"


def test_fractions_under_the_wrong_heading_are_refused(folder: Path) -> None:
    gaze = "study_id,x,y\n" + "001,0.25,0.75\n" * 12
    with pytest.raises(InputError, match=r"x and y between 0 and 1 only.*name the columns x_norm and y_norm"):
        run(folder, THREE, gaze=gaze)
    with pytest.raises(InputError, match=r"expected x and y .pixels of the original image., or x_norm and y_norm"):
        run(folder, THREE, gaze="study_id,gx,gy\n001,1,2\n")


def test_odd_gaze_is_counted(folder: Path) -> None:
    gaze = "study_id,x,y\n001,5,5\n001,-3,5\n001,5,400\n001,NaN,5\n001,,\n001,.,.\nzzz,1,1\nzzz,1,1\n,1,1\n"
    counts = run(folder, THREE, gaze=gaze).meta["counts"]
    assert counts["gaze points"] == 6
    assert counts["gaze points invalid"] == 3
    assert counts["gaze points outside the image"] == 2
    assert counts["gaze points of unknown or left-out studies"] == 3
    assert counts["studies with gaze"] == 1


@pytest.mark.parametrize(
    ("gaze", "reason"),
    [
        ("study_id,x,y\n001,1,1\n002,1,1\n001,left,1\n", "gaze.csv row 4: x is 'left', expected a number"),
        ("study_id,x,y,t\n001,1,1,inf\n", "gaze.csv row 2: t is 'inf', expected a number"),
        ("study_id,x,y,duration\n001,1,1,-2\n", "duration of -2 s is negative"),
        ("study_id,x,y,valid\n001,1,1,maybe\n", "gaze.csv row 2: valid is 'maybe', expected 1 or 0"),
        ("study_id,x,y,valid\n001,1,1,\n", "gaze.csv row 2: valid is None, expected 1 or 0"),
    ],
)
def test_broken_gaze_costs_its_study(folder: Path, gaze: str, reason: str) -> None:
    cohort = run(folder, THREE, gaze=gaze)
    assert cohort.studies["study_id"].to_list() == ["002", "003"]
    assert cohort.meta["left_out"][0]["study_id"] == "001"
    assert reason in cohort.meta["left_out"][0]["reason"]
    with pytest.raises(InputError, match="Study '001': "):
        run(folder, THREE, gaze=gaze, strict=True, overwrite=True)


def test_gaze_is_checked_with_the_tables_and_made_when_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that its gaze costs has no boxes either, as one that is not in the table."""
    held: list[RawStudy] = []

    def spy(raws: list[RawStudy], *given: Any, **options: Any) -> Cohort:
        held.extend(raws)
        return write_cohort(raws, *given, **options)

    monkeypatch.setattr(tables, "write_cohort", spy)
    gaze = "study_id,x_norm,y_norm,duration\n002,0,0,1\n001,0.5,0.5,-2\n003,1,1,1\n002,0.5,1,2\n"
    boxes = "study_id,name,xmin,ymin,xmax,ymax\n001,heart,1,1,2,2\n002,heart,1,1,2,2\n"
    cohort = run(folder, THREE, gaze=gaze, boxes=boxes)
    assert [entry["study_id"] for entry in cohort.meta["left_out"]] == ["001"]
    assert cohort.meta["counts"]["boxes of unknown or left-out studies"] == 1
    assert [raw.study_id for raw in held] == ["002", "003"]
    assert not any(isinstance(raw.gaze, Gaze) for raw in held)
    points = cohort.gaze(0)
    assert points is not None
    assert points.duration is not None
    assert [points.x.tolist(), points.y.tolist(), points.duration.tolist()] == [[-0.5, 9.5], [-0.5, 29.5], [1, 2]]


def test_broken_rows_and_boxes(folder: Path) -> None:
    table = THREE + ",images/3.png,10,sick\n005,,11,sick\n006,images/9.png,12,sick\n"
    boxes = (
        "study_id,name,xmin,ymin,xmax,ymax\n001,heart,9,1,2,2\n002,heart,1,1,2,two\n003,heart,1,1,2,2\n9,a,1,1,2,2\n"
    )
    cohort = run(folder, table, boxes=boxes)
    reasons = {entry["study_id"]: entry["reason"] for entry in cohort.meta["left_out"]}
    assert reasons["images.csv row 5"] == "its study_id is empty; expected a name"
    assert reasons["005"] == "images.csv row 6: its image is empty; expected a path"
    assert "boxes.csv row 2: Box 'heart' is" in reasons["001"]
    assert "boxes.csv row 3: ymax is 'two', expected a number" in reasons["002"]
    assert "images/9.png' does not exist" in reasons["006"]
    assert [study.study_id for study in cohort] == ["003"]
    assert cohort.meta["counts"]["boxes of unknown or left-out studies"] == 1
    assert cohort.meta["counts"]["studies left out"] == 5


def test_masks_that_are_missing_or_of_another_size(folder: Path) -> None:
    write_image(folder / "small.png", np.zeros((3, 3), np.uint8))
    table = "study_id,image,mask_lungs\na,images/0.png,small.png\nb,images/1.png,nowhere.png\nc,images/2.png,mask.png\n"
    cohort = run(folder, table)
    assert [study.study_id for study in cohort] == ["c"]


# ---- splits


def test_patients_without_a_name_do_not_share_one(folder: Path) -> None:
    cohort = run(folder, "study_id,image,patient_id\n1,images/0.png,2\n2,images/1.png,\n")
    assert cohort.meta["counts"]["patients"] == 2
    assert cohort.meta["counts"]["studies without patient_id, each taken as a patient of its own"] == 1


def test_a_leaking_split_is_refused_with_the_fix(folder: Path) -> None:
    table = "study_id,image,patient_id,split\na,images/0.png,p,train\nb,images/1.png,p,test\n"
    with pytest.raises(InputError, match=r"Patient 'p' is in 'train' .*or import with a split by patient"):
        run(folder, table)
    assert run(folder, table, split="patient").meta["split_by"] == "patient"


def test_a_half_filled_split_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="Study 'b' has split None"):
        run(folder, "study_id,image,split\na,images/0.png,train\nb,images/1.png,\n")


# ---- real and large


def test_real_chest_x_rays_with_masks(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = shared_data("kermany")
    with (source / "images.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)[::400]
        header = list(reader.fieldnames or [])
    for archive, column in (("images", "image"), ("lung_masks", "mask_lungs")):
        with zipfile.ZipFile(source / f"{archive}.zip") as packed:
            for row in rows:
                if row[column]:
                    packed.extract(Path(row[column]).name, tmp_path / archive)
    with (tmp_path / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    cohort = import_tables(tmp_path / "images.csv", tmp_path / "out", size=(112, 112), workers=1, progress=False)
    assert len(cohort) == len(rows) == 14
    assert cohort.meta["left_out"] == []
    assert set(cohort.classes) == {"bacterial", "normal", "viral"}
    assert cohort.meta["split_by"] == "source"
    for study in cohort:
        if study.has_mask("lungs"):
            inside = study.mask("lungs") == 1
            assert 0.1 < inside.mean() < 0.7
            assert inside[:, :56].any()
            assert inside[:, 56:].any()
    assert cohort[0].attributes["original_width"] == 2090


def test_many_points_are_quick(folder: Path) -> None:
    """200,000 points; 10 s is generous for a busy machine, it takes about a quarter of a second."""
    random = np.random.default_rng(0)
    lines = [
        f"00{1 + i % 3},{x:.2f},{y:.2f},{i / 60:.3f}" for i, (x, y) in enumerate(random.uniform(0, 20, (200_000, 2)))
    ]
    start = time.perf_counter()
    cohort = run(folder, THREE, gaze="study_id,x,y,t\n" + "\n".join(lines))
    assert time.perf_counter() - start < 10
    assert cohort.meta["counts"]["gaze points"] == 200_000
    points = cohort.gaze(1)
    assert points is not None
    assert points.t is not None
    assert (np.diff(points.t.numpy()) > 0).all()  # the order of the table is kept


# ---- habits that could mean two things, and files that are none


NAMED = {
    "a heading twice": ("study_id,image,age,age\na,images/0.png,1,2\n", "more than one column 'age'"),
    "decimal commas between commas": ("study_id,image,age\na,images/0.png,1,5\n", "numbers with decimal commas want"),
    "an open quotation mark": ('study_id,image\na,"images/0.png\n', "a quotation mark inside a cell, or without its"),
    "an unknown separator": ("sep=é\nstudy_id,image\n", "states the separator 'é'"),
    "no separator": ("sep=\nstudy_id,image\n", "states the separator ''"),
    "a workbook": ("PK\x03\x04", "is a workbook; expected text"),
    "UTF-16 without a mark": ("s\0t\0u\0d\0y\0", "has null bytes in it, so it is no text, or UTF-16"),
    "one endless line": ("a" * (2 << 20), "starts with a line of more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("habit", NAMED)
def test_what_could_mean_two_things_is_named(folder: Path, habit: str) -> None:
    text, says = NAMED[habit]
    with pytest.raises(InputError, match=says) as error:
        run(folder, text)
    assert len(str(error.value).splitlines()) == 1


def test_torn_utf_16_is_named(folder: Path) -> None:
    (folder / "images.csv").write_bytes("study_id,image\n".encode("utf-16") + b"\x00\xd8")
    with pytest.raises(InputError, match="is damaged text"):
        import_tables(folder / "images.csv", folder / "out", progress=False)


def test_thousands_separators_beside_decimal_commas_are_named(folder: Path) -> None:
    gaze = "study_id;x;y\na;1,5;2\na;1.234;2\n"
    with pytest.raises(
        InputError, match=r"row 3: x is '1.234', expected a number with a decimal comma, as others have"
    ):
        run(folder, "study_id,image\na,images/0.png\n", gaze=gaze, strict=True)
    plain = run(folder, "study_id,image\na,images/0.png\n", gaze=gaze.replace("1,5", "1.5")).gaze(0)
    assert plain is not None
    assert plain.x.tolist() == [1.5, 1.234]  # without a comma anywhere the point is decimal


def test_old_macs_empty_columns_and_a_column_called_row(folder: Path) -> None:
    cohort = run(folder, "study_id,image,row,,\ra,images/0.png,7,,\rb,images/1.png,8,,\r")
    assert [study.attributes for study in cohort] == [{"row": 7}, {"row": 8}]


CELL = st.text(st.characters(codec="cp1252", exclude_characters="\r\x00\ufeff"), max_size=8).map(str.strip)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    notes=st.lists(CELL, min_size=2, max_size=4),
    ages=st.lists(st.floats(-1e6, 1e6).map(lambda age: round(age, 3)), min_size=4, max_size=4),
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    quote=st.booleans(),
    sep_line=st.booleans(),
    blank_lines=st.integers(0, 2),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
def test_in_any_habit_a_table_is_the_same_studies(
    notes: list[str], ages: list[float], separator: str, encoding: str, sep_line: bool, **habit: Any
) -> None:
    assume(encoding != "cp1252" or "".join(notes).isascii())  # others may read as UTF-8, which is tried first
    rows = [["study_id", "image", "age", "note"]]
    rows += [[f"00{place}", f"{place % 3}.png", f"{ages[place]:f}", note] for place, note in enumerate(notes)]
    text = written(rows, separator=separator, comma=separator != ",", encoding=encoding, sep_line=sep_line, **habit)
    read = imported({"images": text})
    assert [raw.study_id for raw in read] == [f"00{place}" for place in range(len(notes))]
    assert [raw.attributes["age"] for raw in read] == [float(f"{age:f}") for age in ages[: len(notes)]]
    if all(note.isalpha() for note in notes):
        assert [raw.attributes["note"] for raw in read] == notes
