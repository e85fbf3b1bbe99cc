"""A cohort opens without reading, says what is wrong with it, and gives each study what belongs to it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from radgaze.cohort import Box, Cohort, resplit
from radgaze.cohort.sources.engine import write_cohort
from radgaze.cohort.store import sha256
from radgaze.errors import InputError
from radgaze.files import folder_lock, read_sealed, write_sealed
from tests.cohort.pictures import make_raws, options


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_cohort(make_raws(tmp_path / "data", 40), tmp_path / "cohort", **options()).path


def change_meta(path: Path, **changes: Any) -> None:
    file = path / "cohort.json"
    write_sealed(file, read_sealed(file, "a cohort") | changes)


def test_opening_reads_no_pixels_and_no_gaze(path: Path) -> None:
    for name in ("images.npy", "masks.npy", "gaze.parquet", "boxes.parquet"):
        (path / name).write_bytes(b"nothing that could be read")
    cohort = Cohort.open(str(path))
    assert (len(cohort), cohort.size, cohort.classes, cohort.task) == (40, (16, 12), ["a", "b"], "multiclass")
    assert cohort[3].study_id == "s3"
    assert cohort.targets.shape == (40,)


def test_sequence(path: Path) -> None:
    cohort = Cohort.open(path)
    assert cohort[-1].study_id == "s39"
    assert cohort[-1].index == 39
    with pytest.raises(IndexError):
        cohort[40]
    assert [study.index for study in cohort] == list(range(40))
    assert cohort.by_id("s7").index == 7
    assert "Cohort('made up', 40 studies, 16x12" in repr(cohort)


def test_splits(path: Path) -> None:
    cohort = Cohort.open(path)
    parts = [cohort.indices(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [28, 6, 6]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), cohort.indices("all"))
    assert all(cohort[int(index)].split == "val" for index in parts[1])
    assert parts[0].dtype == np.int64
    with pytest.raises(InputError, match="split is 'tests'; did you mean 'test'"):
        cohort.indices("tests")


def test_arrays_are_maps_and_views(path: Path) -> None:
    cohort = Cohort.open(path)
    assert isinstance(cohort.images, np.memmap)
    assert cohort.images.dtype == np.uint16
    assert cohort.images.shape == (40, 16, 12)
    assert np.shares_memory(cohort[5].image, cohort.images)
    assert cohort.masks is not None
    assert cohort.masks.shape == (40, 1, 16, 12)
    assert np.shares_memory(cohort[5].mask("lungs"), cohort.masks)
    with pytest.raises(ValueError, match="read-only"):
        cohort.images[0, 0, 0] = 1


def test_targets(path: Path) -> None:
    cohort = Cohort.open(path)
    assert cohort.targets.dtype == np.int64
    assert cohort.targets.tolist() == [cohort.classes.index(str(study.label)) for study in cohort]


def test_grid_places_the_image(path: Path) -> None:
    study = Cohort.open(path)[1]
    assert study.source_size == (41, 30)
    assert study.grid.size == (16, 12)
    column, row = study.grid.to_grid(14.5, 20.0)  # the middle of the image is the middle of the grid
    assert (column, row) == pytest.approx((5.5, 7.5))


def test_boxes_belong_to_their_study(path: Path) -> None:
    cohort = Cohort.open(path)
    assert cohort[0].boxes == []
    assert cohort[3].boxes == [Box("nodule", 1, 2, 6, 4, "ellipse", 3.0)]


def test_boxes_are_made_for_the_study_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.concat([pl.read_parquet(path / "boxes.parquet")] * 2)  # two for each study, apart from each other
    table.with_columns(xmin=pl.int_range(pl.len()) / 64).write_parquet(path / "boxes.parquet")
    made: list[str] = []
    monkeypatch.setattr("radgaze.cohort.store.Box", lambda **given: made.append(given["name"]) or Box(**given))
    cohort = Cohort.open(path)
    assert cohort[4].boxes == []
    assert made == []
    for place, index in enumerate(range(1, 40, 2)):
        assert [box.xmin for box in cohort[index].boxes] == [place / 64, (place + 20) / 64]
        assert [box.xmax for box in cohort[index].boxes] == [3 + index] * 2
    assert len(made) == 80


def test_unknown_names_offer_known_ones(path: Path) -> None:
    cohort = Cohort.open(path)
    with pytest.raises(InputError, match=r"no study 's390'; it has, for example, 's39'"):
        cohort.by_id("s390")
    with pytest.raises(InputError, match="no mask 'lung'; did you mean 'lungs'"):
        cohort[0].mask("lung")
    with pytest.raises(InputError, match="no mask 'heart'; choose one of lungs"):
        cohort[0].has_mask("heart")


def test_another_process_opens_the_files_itself(path: Path) -> None:
    cohort = Cohort.open(path)
    assert cohort.images.size  # mapped, and yet not part of what travels
    sent = pickle.dumps(cohort)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent)[4].image, cohort[4].image)


# ---- what is wrong with a folder


def test_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; expected a cohort folder, make one with `radgaze import`"):
        Cohort.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is no cohort"):
        Cohort.open(tmp_path)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "gaze.parquet", "boxes.parquet", "studies.parquet"])
def test_missing_files_are_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(InputError, match=f"lacks its file '{name}'; copy the whole folder"):
        Cohort.open(path)


def test_damaged_or_newer_description(path: Path) -> None:
    whole = (path / "cohort.json").read_text()
    (path / "cohort.json").write_text(whole[:100])
    with pytest.raises(InputError, match="is damaged"):
        Cohort.open(path)
    (path / "cohort.json").write_text(whole)
    change_meta(path, format=2)
    with pytest.raises(InputError, match="has cohort format 2; this radgaze reads format 1"):
        Cohort.open(path)
    (path / "cohort.json").write_text("[]")
    with pytest.raises(InputError, match="has cohort format None"):
        Cohort.open(path)


def test_truncated_arrays(path: Path) -> None:
    data = (path / "images.npy").read_bytes()
    (path / "images.npy").write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"images.npy' is damaged"):
        Cohort.open(path)[0].image  # noqa: B018
    np.save(path / "images.npy", np.zeros((40, 16, 13), np.uint16))
    with pytest.raises(InputError, match=r"expected uint16 \(40, 16, 12\)"):
        Cohort.open(path)[0].image  # noqa: B018


def test_damaged_tables(path: Path) -> None:
    table = pl.read_parquet(path / "gaze.parquet")
    table[:-1].write_parquet(path / "gaze.parquet")
    with pytest.raises(InputError, match="has 149 points; expected 150"):
        Cohort.open(path)[1].gaze  # noqa: B018
    (path / "gaze.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"gaze.parquet' is damaged"):
        Cohort.open(path)[1].gaze  # noqa: B018
    (path / "studies.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"is not the table that cohort.json describes"):
        Cohort.open(path)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "gaze.parquet", "boxes.parquet"])
def test_check_finds_a_flipped_bit(path: Path, name: str) -> None:
    cohort = Cohort.open(path)
    cohort.check()
    data = bytearray((path / name).read_bytes())
    data[-9] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}' has changed since it was written"):
        cohort.check()


def test_a_patient_on_two_sides_is_refused_and_can_be_mended(path: Path) -> None:
    table = pl.read_parquet(path / "studies.parquet")
    table = table.with_columns(
        split=pl.when(pl.col("study_id") == "s4").then(pl.lit("test")).otherwise(pl.lit("train"))
    )
    table.write_parquet(path / "studies.parquet")
    checksums = json.loads((path / "cohort.json").read_text())["checksums"]
    change_meta(path, checksums=checksums | {"studies.parquet": sha256(path / "studies.parquet")})
    with pytest.raises(InputError, match=r"Patient 'p2' is in 'test' .*split the cohort again by patient"):
        Cohort.open(path)
    assert len(resplit(path).indices("val")) == 6


# ---- a new split


def test_resplit(path: Path) -> None:
    before = Cohort.open(path)
    after = resplit(path, fractions=(0.5, 0.3, 0.2), seed=4)
    assert [len(after.indices(split)) for split in ("train", "val", "test")] == [20, 12, 8]
    assert (after.meta["split_by"], after.meta["seed"], after.meta["fractions"]) == ("patient", 4, [0.5, 0.3, 0.2])
    assert after.studies.drop("split").equals(before.studies.drop("split"))
    after.check()
    with pytest.warns(UserWarning, match="by image"):
        assert resplit(path, "image", seed=1).meta["split_by"] == "image"
    with pytest.raises(InputError, match="by is 'patients'; did you mean 'patient'"):
        resplit(path, "patients")
    with pytest.raises(InputError, match="does not exist"):
        resplit(path / "nowhere")


def test_an_interrupted_resplit_is_refused_until_done_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def power_cut(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("radgaze.cohort.store.write_sealed", power_cut)
        with pytest.raises(RuntimeError):
            resplit(path, seed=9)
    with pytest.raises(InputError, match="a new split was interrupted"):
        Cohort.open(path)
    resplit(path, seed=9).check()


def test_two_processes_do_not_split_one_cohort(path: Path) -> None:
    before = (path / "studies.parquet").read_bytes()
    with folder_lock(path, "splitting"), pytest.raises(InputError, match=r"Another process is splitting .*cohort"):
        resplit(path, seed=3)
    assert (path / "studies.parquet").read_bytes() == before
    resplit(path, seed=3).check()


def test_resplit_of_several_labels(tmp_path: Path) -> None:
    raws = make_raws(tmp_path / "data", 40)
    for index, raw in enumerate(raws):
        raw.label, raw.labels = None, {"a": 1.0, "b": float(index < 8)}
    write_cohort(raws, tmp_path / "cohort", **options(task="multilabel"))
    cohort = resplit(tmp_path / "cohort", fractions=(0.5, 0.25, 0.25))
    assert [int(cohort.targets[cohort.indices(split), 1].sum()) for split in ("train", "val", "test")] == [4, 2, 2]


# ---- files that another program changed, their checksums right


def changed(folder: Path, name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Path:
    """A cohort whose table ``name`` was changed, as if it had been written so."""
    path = write_cohort(make_raws(folder / "raws"), folder / "out", **options()).path
    change(pl.read_parquet(path / name)).write_parquet(path / name)
    meta = read_sealed(path / "cohort.json", "a cohort")
    meta["checksums"][name] = sha256(path / name)
    write_sealed(path / "cohort.json", meta)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop("image_row"), "lacks the column 'image_row'"),
        (lambda table: table.with_columns(image_row=pl.lit("x")), "has String in the column 'image_row'"),
        (lambda table: table.with_columns(patient_id=pl.lit(None, pl.String)), "has no patient_id in some row"),
        (lambda table: table.with_columns(gaze_start=-pl.col("gaze_count")), "has a gaze_start below zero"),
        (lambda table: table.head(0), "has no rows"),
    ],
)
def test_a_table_of_studies_that_is_none(
    tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], says: str
) -> None:
    with pytest.raises(InputError, match=f"studies.parquet' {says}"):
        Cohort.open(changed(tmp_path, "studies.parquet", change))


def test_gaze_and_boxes_that_are_none(tmp_path: Path) -> None:
    path = changed(tmp_path / "gaze", "gaze.parquet", lambda table: table.with_columns(x=pl.lit("left")))
    with pytest.raises(InputError, match=r"gaze.parquet' has another column 'x' than an import writes"):
        Cohort.open(path)[1].gaze  # noqa: B018
    path = changed(tmp_path / "boxes", "boxes.parquet", lambda table: table.drop("ymin"))
    with pytest.raises(InputError, match=r"boxes.parquet' lacks the column 'ymin'"):
        Cohort.open(path)[1].boxes  # noqa: B018


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", [16]),
        ("size", ["16", 12]),
        ("task", "guess"),
        ("classes", [1]),
        ("checksums", {"studies.parquet": "", "images.npy": "", "../x": ""}),
        ("readers", None),
    ],
)
def test_a_description_that_no_import_writes(tmp_path: Path, key: str, value: object) -> None:
    path = write_cohort(make_raws(tmp_path / "raws", 2), tmp_path / "out", **options()).path
    meta = read_sealed(path / "cohort.json", "a cohort")
    write_sealed(path / "cohort.json", meta | {key: value})
    with pytest.raises(InputError, match=f"cohort.json' has {key} = "):
        Cohort.open(path)
    del meta[key]
    write_sealed(path / "cohort.json", meta)
    with pytest.raises(InputError, match=f"cohort.json' lacks '{key}'"):
        Cohort.open(path)
