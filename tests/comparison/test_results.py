from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from radgaze.cohort import Cohort
from radgaze.comparison.protocol import Arm
from radgaze.comparison.results import read_measured, read_values, same_target
from radgaze.errors import InputError

ARM = Arm(
    "gg-cam resnet50 (9)", "gg-cam", "resnet50", 9, "lungs mask (anatomy, not gaze)", 1,
    {"preset": "gg-cam", "sigma": None}, True, False, [],
)  # fmt: skip


def test_values_are_the_single_numbers_of_a_report() -> None:
    report: dict[str, Any] = {
        "classification": {
            "auc_macro": {"value": 0.9, "low": 0.8, "high": 1.0},
            "auc_micro": {"value": None, "low": None, "high": None},
            "auc": {"normal": {"value": 0.7, "n_positive": 3}, "CHF": {"value": None, "n_positive": 0}},
            "roc": {"normal": {"fpr": [0, 1], "tpr": [0, 1]}},
            "confusion": [[1]],
            "reliability": [],
        },
        "saliency": {"model": {"cc": {"mean": 0.4}}, "centre": {"cc": {"mean": 0.3}}},
        "localisation": {
            "structures": {},
            "model": {"overall": {"iou": {"mean": 0.2}, "cc": {"mean": None}}, "classes": {}},
            "grad-cam": {"overall": {"iou": {"mean": 0.1}}},
            "uniform": {"overall": {"iou": {"mean": 0.05}}},
        },
    }
    assert read_values(report) == {
        "auc_macro": 0.9, "auc:normal": 0.7, "saliency:cc": 0.4, "cam:iou": 0.2, "grad_cam:iou": 0.1
    }  # fmt: skip
    assert read_values({"saliency": None}) == {}


def test_table_of_studies_gives_the_networks_own_digits(cohort: Cohort, tmp_path: Path) -> None:
    studies = cohort.studies[cohort.indices("test")].select("study_id", "patient_id", "split", "label")
    scores = torch.rand(len(studies), 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    columns = {f"probability_{name}": scores[:, index].numpy() for index, name in enumerate(cohort.classes)}
    columns |= {"cc": [None, *[0.25] * (len(studies) - 1)], "cam_iou": [float("nan")] * len(studies)}
    columns |= {"grad_cam_iou": [1] * len(studies)}
    table = studies.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    table.write_csv(tmp_path / "studies-test.csv")
    measured = read_measured(tmp_path, "test", cohort, cohort.classes)
    assert torch.equal(measured.scores, scores.double())
    assert list(measured.columns) == ["saliency:cc", "cam:iou", "grad_cam:iou"]
    assert measured.columns["saliency:cc"].isnan().tolist() == [True, *[False] * (len(studies) - 1)]
    assert measured.columns["cam:iou"].isnan().all()
    table.drop(f"probability_{name}" for name in cohort.classes).write_csv(tmp_path / "studies-test.csv")
    assert read_measured(tmp_path, "test", cohort, cohort.classes).scores is None
    table.reverse().write_csv(tmp_path / "studies-test.csv")
    with pytest.raises(InputError, match="is not of the test studies"):
        read_measured(tmp_path, "test", cohort, cohort.classes)


def test_measures_against_different_targets_are_not_compared() -> None:
    gaze = replace(ARM, attention="reader's gaze", config={"preset": "mt-unet", "sigma": None})
    assert all(same_target(name, ARM, ARM) for name in ("saliency:kld", "cam:cc", "grad_cam:sim"))
    compared = ["auc_macro", "auc:normal", "cam:energy_inside", "grad_cam:pointing_game"]
    apart = ["saliency:kld", "saliency:cc", "cam:cc", "grad_cam:sim"]
    assert [name for name in compared + apart if same_target(name, ARM, gaze)] == compared
