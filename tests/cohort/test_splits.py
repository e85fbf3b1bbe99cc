"""No patient on two sides, classes in proportion, the same answer every time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radgaze.cohort.splits import (
    SPLITS,
    check_no_patient_overlap,
    normalise_split,
    rarest_labels,
    split_by_image,
    split_by_patient,
    subset_by_patient,
)
from radgaze.errors import InputError

FRACTIONS = (0.7, 0.15, 0.15)


def crowd(patients: int, seed: int = 0) -> tuple[list[str], list[str | None]]:
    """Patients with one to three studies of one class; a tenth are of the rare class."""
    random = np.random.default_rng(seed)
    names: list[str] = []
    labels: list[str | None] = []
    for patient in range(patients):
        for _ in range(random.integers(1, 4)):
            names.append(f"p{patient:04d}")
            labels.append("rare" if patient % 10 == 0 else "normal" if patient % 2 else "sick")
    return names, labels


@given(
    patients=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    labels=st.randoms(use_true_random=False),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_any_patients_any_labels(patients: list[int], labels: object, seed: int) -> None:
    names = [f"p{patient}" for patient in patients]
    classes = [labels.choice(["a", "b", None]) for _ in names]  # type: ignore[attr-defined]
    splits = split_by_patient(names, classes, FRACTIONS, seed)
    check_no_patient_overlap(names, splits, names, "")
    assert set(splits) <= set(SPLITS)
    if len(set(names)) >= 3:
        assert set(splits) == set(SPLITS)
    order = np.random.default_rng(seed).permutation(len(names))
    again = split_by_patient([names[i] for i in order], [classes[i] for i in order], FRACTIONS, seed)
    assert [splits[i] for i in order] == again  # the order of the studies does not matter


def test_shares_hold_overall_and_in_every_class() -> None:
    names, labels = crowd(400)
    splits = split_by_patient(names, labels, FRACTIONS)
    for label in (None, "rare", "normal", "sick"):
        chosen = [split for split, own in zip(splits, labels, strict=True) if label in (None, own)]
        for split, fraction in zip(SPLITS, FRACTIONS, strict=True):
            assert abs(chosen.count(split) - fraction * len(chosen)) <= 5


def test_the_seed_decides() -> None:
    names, labels = crowd(100)
    assert split_by_patient(names, labels, FRACTIONS, 1) == split_by_patient(names, labels, FRACTIONS, 1)
    assert split_by_patient(names, labels, FRACTIONS, 1) != split_by_patient(names, labels, FRACTIONS, 2)


def test_a_patient_counts_as_its_rarest_class() -> None:
    names = [f"p{i}" for i in range(40) for _ in range(2)]
    labels = ["common", "rare"] * 8 + ["common", "common"] * 32
    splits = split_by_patient(names, labels, (0.5, 0.25, 0.25))
    rare = Counter(splits[1:16:2])
    assert rare == {"train": 4, "val": 2, "test": 2}


def test_few_patients() -> None:
    assert split_by_patient(["p"], ["a"]) == ["train"]
    assert split_by_patient(["p", "p", "p"], ["a", "b", "a"]) == ["train"] * 3
    assert Counter(split_by_patient(list("pqr"), ["a"] * 3)) == {"train": 1, "val": 1, "test": 1}
    assert set(split_by_patient(list("pqrs"), ["a"] * 4, (1, 0, 0))) == {"train"}
    assert "test" not in split_by_patient([f"{i}" for i in range(50)], ["a"] * 50, (0.8, 0.2, 0.0))


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (-0.1, 0.6, 0.5), (float("nan"), 0.5, 0.5), (0, 0.5, 0.5)])
def test_fractions_must_be_shares(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="Split fractions are"):
        split_by_patient(["p"], ["a"], fractions)


def test_split_by_image_warns_of_leakage() -> None:
    images = [f"{i}.png" for i in range(40)]
    with pytest.warns(UserWarning, match="one patient may be in train and in test"):
        splits = split_by_image(images, ["a"] * 40)
    assert set(splits) == set(SPLITS)


def test_a_leaking_patient_is_named() -> None:
    with pytest.raises(
        InputError, match=r"Patient 'q' is in 'train' \(study 's2'\) and in 'test' \(study 's3'\).*mend it"
    ):
        check_no_patient_overlap(["p", "q", "q"], ["train", "train", "test"], ["s1", "s2", "s3"], "mend it")


def test_names_of_splits() -> None:
    for name in ("val", "valid", "Validate", " validation ", "dev"):
        assert normalise_split(name) == "val"
    assert normalise_split("Training") == "train"
    assert normalise_split("TESTING") == "test"
    with pytest.raises(InputError, match="Study 's1' has split 'trian'; did you mean 'train'"):
        normalise_split("trian", "s1")
    with pytest.raises(InputError, match="has split None"):
        normalise_split(None, "s1")


def test_rarest_of_several_labels() -> None:
    labels = [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": None}, {"a": 1.0, "b": None}]
    assert rarest_labels(labels) == ["b", "a", None, "a"]


def test_subset_holds_whole_patients_and_classes_in_proportion() -> None:
    names, labels = crowd(400)
    for count in (40, 123, 500):
        chosen = subset_by_patient(names, labels, count, seed=3)
        assert len(chosen) == count  # patients of one study fill the last gap
        inside, outside = {names[i] for i in chosen}, {n for i, n in enumerate(names) if i not in set(chosen.tolist())}
        assert not inside & outside
        for label in ("rare", "normal", "sick"):
            here = sum(labels[i] == label for i in chosen) / count
            assert here == pytest.approx(labels.count(label) / len(labels), abs=4 / count)


def test_a_smaller_subset_lies_within_a_larger_one() -> None:
    names, labels = crowd(300)
    for seed in range(5):
        nested = [set(subset_by_patient(names, labels, count, seed).tolist()) for count in (30, 100, 250, len(names))]
        assert all(small <= large for small, large in pairwise(nested))
        assert len(nested[-1]) == len(names)


def test_subset_follows_seed_and_names_and_not_the_order() -> None:
    names, labels = crowd(100)
    chosen = {names[i] for i in subset_by_patient(names, labels, 50, seed=1)}
    order = np.random.default_rng(0).permutation(len(names))
    again = subset_by_patient([names[i] for i in order], [labels[i] for i in order], 50, seed=1)
    assert chosen == {names[order[i]] for i in again}
    assert chosen != {names[i] for i in subset_by_patient(names, labels, 50, seed=2)}


def test_subset_that_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="subset of 5 studies cannot be drawn from 3"):
        subset_by_patient(["a", "b", "c"], [None] * 3, 5)
    with pytest.raises(InputError, match="give at least 2"):
        subset_by_patient(["a", "a", "b", "b"], [None] * 4, 1)
