"""A marker in training that gives the class away, and in test does not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from radgaze.cohort import Cohort, plant_shortcut, resplit
from radgaze.cohort.shortcut import CORNERS, draw_markers, marked_pixels
from radgaze.errors import InputError
from radgaze.gaze import Grid
from tests.cohorts import blob_cohort, multilabel_cohort


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return blob_cohort(tmp_path_factory.mktemp("many"), studies=120)


def marked_corner(cohort: Cohort, index: int) -> str | None:
    """The corner that is white throughout, found in the pixels alone."""
    study = cohort[index]
    white = [
        name
        for name, (rows, columns) in zip(CORNERS, marked_pixels(study.source_size, study.grid, 0.15), strict=True)
        if (study.image[rows, columns] == 65535).all()
    ]
    assert len(white) <= 1
    return white[0] if white else None


def shares(cohort: Cohort, split: str) -> float:
    """Share of a split's studies whose marker is that of their own class."""
    table = cohort.studies.filter(pl.col("split") == split)
    return (table["attr_marker"] == table["label"]).mean()  # type: ignore[return-value]


def test_pixels_agree_with_the_table(many: Cohort, tmp_path: Path) -> None:
    planted = plant_shortcut(many, tmp_path / "planted", size=0.15)
    for index, marker in enumerate(planted.studies["attr_marker"]):
        assert marked_corner(planted, index) == CORNERS[planted.classes.index(marker)]
        assert marked_corner(many, index) is None  # the original is untouched


def test_only_marked_pixels_change(many: Cohort, tmp_path: Path) -> None:
    planted = plant_shortcut(many, tmp_path / "planted", size=0.15)
    changed = np.asarray(planted.images) != np.asarray(many.images)
    study = many[0]
    rows, columns = marked_pixels(study.source_size, study.grid, 0.15)[0]
    assert 0 < changed[0].sum() <= (rows.stop - rows.start) * (columns.stop - columns.start)
    planted.check()
    for name in ("gaze.parquet", "boxes.parquet", "masks.npy"):
        assert (planted.path / name).read_bytes() == (many.path / name).read_bytes()
    assert planted.studies.drop("attr_marker").equals(many.studies)


def test_the_bond_holds_in_training_and_breaks_in_test(many: Cohort, tmp_path: Path) -> None:
    planted = plant_shortcut(many, tmp_path / "certain", rate=1.0)
    assert shares(planted, "train") == shares(planted, "val") == 1
    assert 0.1 < shares(planted, "test") < 0.6  # a third, by lot
    assert len(Counter(planted.studies.filter(pl.col("split") == "test")["attr_marker"])) == 3
    assert shares(plant_shortcut(many, tmp_path / "swapped", test="swapped"), "test") == 0
    absent = plant_shortcut(many, tmp_path / "absent", test="absent")
    assert absent.studies.filter(pl.col("split") == "test")["attr_marker"].null_count() == len(absent.indices("test"))
    assert marked_corner(absent, int(absent.indices("test")[0])) is None


def test_rate_is_the_share_that_is_given_away(many: Cohort) -> None:
    train = many.indices("train")
    own = many.targets
    for rate in (0.0, 0.5, 0.9):
        agree = np.mean(
            [(draw_markers(many, many.classes, rate, "random", seed)[train] == own[train]).mean() for seed in range(60)]
        )
        assert agree == pytest.approx(rate + (1 - rate) / 3, abs=0.02)


def test_test_markers_know_nothing_of_the_label(many: Cohort) -> None:
    test = many.indices("test")
    table = np.zeros((3, 3))
    for seed in range(100):
        np.add.at(table, (many.targets[test], draw_markers(many, many.classes, 1.0, "random", seed)[test]), 1)
    np.testing.assert_allclose(table / table.sum(1, keepdims=True), 1 / 3, atol=0.04)


def test_same_seed_same_cohort(many: Cohort, tmp_path: Path) -> None:
    first, again = (plant_shortcut(many, tmp_path / name, seed=4) for name in ("a", "b"))
    other = plant_shortcut(many, tmp_path / "c", seed=5)
    assert first.meta["checksums"] == again.meta["checksums"] != other.meta["checksums"]


def test_markers_stand_on_the_image_and_not_on_the_padding() -> None:
    grid = Grid.letterbox((100, 50), (40, 40))  # ten columns of padding on either side
    for rows, columns in marked_pixels((100, 50), grid, 0.1):
        assert 0 < rows.start < rows.stop < 40
        assert 10 < columns.start < columns.stop < 30
    assert len({(rows.start, columns.start) for rows, columns in marked_pixels((100, 50), grid, 0.1)}) == 4


def test_some_classes_of_several_labels(tmp_path: Path) -> None:
    cohort = multilabel_cohort(tmp_path)
    planted = plant_shortcut(cohort, tmp_path / "planted", classes=["top", "not_middle"], rate=1.0)
    train = planted.studies.filter(pl.col("split") != "test")
    assert set(planted.studies["attr_marker"]) == {"top", "not_middle"}
    given = [own == marker for own, marker in zip(cohort.strata, planted.studies["attr_marker"], strict=True) if own]
    assert sum(given) >= train.height / 3


def test_evaluation_says_so_and_another_split_is_refused(many: Cohort, tmp_path: Path) -> None:
    planted = plant_shortcut(many, tmp_path / "planted")
    assert planted.meta["shortcut"]["rate"] == 0.95
    with pytest.raises(InputError, match="plant the shortcut again"):
        resplit(planted.path)


def test_bad_arguments(many: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "planted"
    for settings, words in (
        ({"rate": 1.5}, "rate is 1.5"),
        ({"test": "mixed"}, "test is 'mixed'"),
        ({"size": 0.5}, "size is 0.5"),
        ({"classes": ["class9", "class0"]}, "no class 'class9'"),
        ({"classes": ["class0"]}, "two to four"),
        ({"classes": ["class0", "class0"]}, "two to four"),
    ):
        with pytest.raises(InputError, match=words):
            plant_shortcut(many, out, **settings)  # type: ignore[arg-type]
    assert not out.exists()
    out.mkdir()
    with pytest.raises(InputError, match="exists already"):
        plant_shortcut(many, out)
