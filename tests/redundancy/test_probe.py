"""The probe set: balanced, from the rows that were given, without blank images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.redundancy import probe_studies


def test_classes_in_turn_from_the_given_rows(cohort: Cohort) -> None:
    rows = cohort.indices("train")
    chosen = probe_studies(cohort, rows, 7, seed=3)
    assert len(set(chosen.tolist())) == 7
    assert set(chosen) <= set(rows)
    assert chosen.tolist() == sorted(chosen)
    assert sorted(np.bincount(cohort.targets[chosen]).tolist()) == [2, 2, 3]
    assert chosen.tolist() == probe_studies(cohort, rows[::-1][::-1], 7, seed=3).tolist()
    assert any(chosen.tolist() != probe_studies(cohort, rows, 7, seed=seed).tolist() for seed in range(4, 8))


def test_rare_classes_are_used_up(cohort: Cohort) -> None:
    rows = cohort.indices("train")
    few = np.concatenate([rows[cohort.targets[rows] == 0], rows[cohort.targets[rows] == 1][:1]])
    chosen = probe_studies(cohort, few, 4)
    assert np.bincount(cohort.targets[chosen]).tolist() == [3, 1]


def test_blank_images_are_skipped(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cohort.indices("train")
    blank = set(rows[::2].tolist())
    get = Cohort.__getitem__

    def some_blank(cohort: Cohort, row: int) -> Any:
        study = get(cohort, row)
        return SimpleNamespace(image=np.full_like(study.image, 9)) if row in blank else study

    monkeypatch.setattr(Cohort, "__getitem__", some_blank)
    assert set(probe_studies(cohort, rows, 6)) == set(rows.tolist()) - blank
    with pytest.raises(InputError, match=r"has 6 images .* that are not blank, expected 7; ask for fewer"):
        probe_studies(cohort, rows, 7)


def test_too_few(cohort: Cohort) -> None:
    with pytest.raises(InputError, match=r"has 12 images .* expected 13"):
        probe_studies(cohort, cohort.indices("train"), 13)


def test_one_image_is_too_few(cohort: Cohort) -> None:
    with pytest.raises(InputError, match="number of probe images is 1, expected at least 2"):
        probe_studies(cohort, cohort.indices("train"), 1)


def test_a_seed_is_not_negative(cohort: Cohort) -> None:
    with pytest.raises(InputError, match="seed of the probe images is -1, expected 0 or more"):
        probe_studies(cohort, cohort.indices("train"), 4, seed=-1)
