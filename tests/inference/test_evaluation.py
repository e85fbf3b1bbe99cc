from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, roc_auc_score

from radgaze.cli import print_report
from radgaze.cohort import Cohort, resplit
from radgaze.errors import InputError
from radgaze.gaze import fixation_map
from radgaze.inference import evaluate, evaluation, grad_cam
from radgaze.inference.evaluation import FixationCounts, centre_map, fixations_of, mean_attention
from radgaze.training import AttentionTarget, Run, fit
from tests.cohorts import blob_cohort, multilabel_cohort

SMALL: dict[str, Any] = {
    "model": {"width": 4},
    "sigma": 6.0,
    "batch_size": 5,
    "precision": "fp32",
    "schedule": "one-cycle",
    "learning_rate": 1e-2,
    "progress": False,
}


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(cohort, tmp_path_factory.mktemp("evaluate") / "run", epochs=20, **SMALL)


@pytest.fixture(scope="module")
def report(run: Run) -> dict[str, Any]:
    return evaluate(run, resamples=200, progress=False)


def test_figures_are_those_of_the_table(run: Run, cohort: Cohort, report: dict[str, Any]) -> None:
    """Recompute the headline figures from the written table with scikit-learn."""
    table = pl.read_csv(run.path / "studies-test.csv")
    assert table["study_id"].to_list() == cohort.studies["study_id"][cohort.indices("test")].to_list()
    scores = table.select(f"probability_{name}" for name in cohort.classes).to_numpy()
    truth = cohort.targets[cohort.indices("test")]
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    section = report["classification"]
    expected = np.mean([roc_auc_score(truth == c, scores[:, c]) for c in range(3)])
    assert section["auc_macro"]["value"] == pytest.approx(expected)
    assert section["accuracy"]["value"] == pytest.approx(accuracy_score(truth, scores.argmax(1)))
    assert section["accuracy"]["low"] <= section["accuracy"]["value"] <= section["accuracy"]["high"]
    for name in ("kld", "cc", "nss", "auc_judd", "shuffled_auc", "information_gain"):
        assert report["saliency"]["model"][name]["mean"] == pytest.approx(table[name].mean(), rel=1e-4)
    assert np.sum(section["confusion"]) == len(table)


def test_beats_its_baselines(report: dict[str, Any]) -> None:
    saliency = report["saliency"]
    assert saliency["model"]["cc"]["mean"] > saliency["mean map"]["cc"]["mean"] + 0.1
    assert saliency["model"]["shuffled_auc"]["mean"] > 0.7
    assert saliency["mean map"]["information_gain"]["mean"] == pytest.approx(0, abs=1e-5)
    assert saliency["model"]["information_gain"]["mean"] > 0


def test_grad_cam_tells_where_a_network_without_cams_looks(
    run: Run, cohort: Cohort, report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    section = report["localisation"]
    assert "model" not in section
    assert set(section["grad-cam"]["overall"]) == {"pointing_game", "energy_inside", "iou", "cc", "sim"}
    assert "energy_inside" not in section["grad-cam"]["classes"]["class0"]  # it has no structure
    table = pl.read_csv(run.path / "studies-test.csv")
    assert not any(name.startswith("cam_") for name in table.columns)
    network = run.network()
    energies = []
    for study in (cohort.by_id(name) for name in table["study_id"]):
        images = torch.from_numpy(study.image.astype(np.float32) / study.image.max())[None, None]
        heat = grad_cam(network, images, torch.tensor([cohort.classes.index(study.label)]))
        inside = F.adaptive_avg_pool2d(torch.from_numpy(study.mask("blob") == 1)[None].float(), heat.shape[1:])
        energies.append(((heat * inside).sum() / heat.sum()).item() if study.label != "class0" else np.nan)
    np.testing.assert_allclose(table["grad_cam_energy_inside"].to_numpy(), energies, rtol=1e-3, atol=1e-5)
    assert section["grad-cam"]["overall"]["energy_inside"]["mean"] == pytest.approx(np.nanmean(energies), rel=1e-3)
    page = Path(report["path"]).read_text()
    assert "Grad-CAM of the true class on the test split" in page
    assert "Of the true class’s Grad-CAM, a share of" in page
    assert "class activation map" not in page
    print_report(report)
    assert "Grad-CAM" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [True, False])
def test_what_cannot_or_shall_not_be_measured_is_not_computed(
    wanted: bool, run: Run, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("Grad-CAM was computed")

    monkeypatch.setattr(evaluation, "explain", never)
    if wanted:
        cohort = multilabel_cohort(tmp_path)  # neither gaze nor structures of its classes
        run = fit(cohort, tmp_path / "run", epochs=1, **{**SMALL, "attention": "mask:blob"})
    report = evaluate(run, resamples=20, out=tmp_path, progress=False, grad_cam=wanted)
    assert "localisation" not in report
    assert not any(name.startswith("grad_cam") for name in pl.read_csv(tmp_path / "studies-test.csv").columns)


def test_report_files(run: Run, report: dict[str, Any]) -> None:
    written = json.loads((run.path / "report.json").read_text())
    assert written == {key: value for key, value in report.items() if key != "path"}
    assert written["attention"] == "reader's gaze (fixations, preset mt-unet, sigma 6 px)"
    page = Path(report["path"]).read_text()
    assert "class1" in page
    assert "sigma 6 px" in page


def test_batch_size_changes_nothing(run: Run, report: dict[str, Any], tmp_path: Path) -> None:
    again = evaluate(run, resamples=200, batch_size=1, out=tmp_path, progress=False)
    for name, entry in report["saliency"]["model"].items():
        assert again["saliency"]["model"][name]["mean"] == pytest.approx(entry["mean"], rel=1e-3, abs=1e-4)


def test_other_splits_and_cohorts_get_their_own_folder(run: Run, report: dict[str, Any], tmp_path: Path) -> None:
    val = evaluate(run, split="val", resamples=50, progress=False)
    assert Path(val["path"]).parent == run.path / "tables-val"
    assert json.loads((run.path / "report.json").read_text())["split"] == "test"
    other = blob_cohort(tmp_path, studies=12)
    elsewhere = evaluate(run, other, split="all", resamples=50, progress=False)
    assert elsewhere["studies"] == 12


def test_cohort_that_does_not_fit(run: Run, tmp_path: Path) -> None:
    two = blob_cohort(tmp_path, studies=12, classes=2)
    with pytest.raises(InputError, match="same classes in the same order"):
        evaluate(run, two)


def test_cohort_split_anew_after_training_is_refused(tmp_path: Path) -> None:
    cohort = blob_cohort(tmp_path)
    run = fit(cohort, tmp_path / "run", epochs=1, **SMALL)
    resplit(cohort.path, seed=1)
    with pytest.raises(InputError, match="holds studies the run has learned from"):
        evaluate(run)


def test_multilabel_with_unknown_and_absent_labels(tmp_path: Path) -> None:
    cohort = multilabel_cohort(tmp_path)
    run = fit(cohort, tmp_path / "run", epochs=2, **{**SMALL, "attention": "mask:blob"})
    assert 0 <= run.history[0]["val_auc_macro"] <= 1  # over the labels that occur there
    report = evaluate(run, resamples=50, progress=False)
    per_label = {name: entry["value"] for name, entry in report["classification"]["auc"].items()}
    assert per_label["rare"] is None
    assert per_label["top"] is not None
    assert report["classification"]["auc_macro"]["value"] is None  # a mean over fewer labels is another measure
    assert "confusion" not in report["classification"]
    table = pl.read_csv(run.path / "studies-test.csv")
    known = np.array([study.labels["not_middle"] for study in cohort if study.split == "test"])
    assert per_label["not_middle"] == pytest.approx(roc_auc_score(known, table["probability_not_middle"].to_numpy()))


def test_unfinished_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        evaluate(tmp_path)
    (tmp_path / "config.json").write_text((run.path / "config.json").read_text())
    with pytest.raises(InputError, match="no weights file"):
        evaluate(tmp_path)


def test_single_tasks(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = fit(cohort, tmp_path / "class", epochs=1, objective={"scheme": "class-only"}, **SMALL)
    report = evaluate(classes, resamples=50, progress=False)
    assert "saliency" not in report
    assert report["attention"] == "none"
    assert set(report["localisation"]) >= {"grad-cam", "uniform"}
    print_report(report)
    assert "pointing game" in capsys.readouterr().out
    attention = fit(cohort, tmp_path / "saliency", epochs=1, objective={"scheme": "saliency-only"}, **SMALL)
    report = evaluate(attention, resamples=50, progress=False)
    assert "classification" not in report
    assert "localisation" not in report  # no class to explain
    assert report["saliency"]["model"]["kld"]["n"] == len(cohort.indices("test"))


def test_mask_target_has_no_fixations(cohort: Cohort, tmp_path: Path) -> None:
    run = fit(cohort, tmp_path / "run", epochs=1, attention="mask:blob", **SMALL)
    report = evaluate(run, resamples=50, progress=False)
    assert set(report["saliency"]["model"]) == {"kld", "cc", "sim"}
    assert "anatomy, not gaze" in report["attention"]


def test_mean_map_is_a_density_of_the_training_split_alone(cohort: Cohort) -> None:
    target = AttentionTarget("gaze", sigma=6.0)
    mean_map = mean_attention(cohort, target, batch_size=5)
    assert mean_map.sum().item() == pytest.approx(1, abs=1e-5)
    maps, _ = target.maps(cohort, cohort.indices("train").tolist())
    expected = (maps / maps.sum((1, 2), keepdim=True)).mean(0)
    torch.testing.assert_close(mean_map, 0.999 * expected + 0.001 / expected.numel(), atol=1e-7, rtol=1e-4)


def test_centre_map_keeps_centre_and_spread() -> None:
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(40.0), indexing="ij")
    blob = torch.exp(-((y - 25) ** 2) / (2 * 6**2) - (x - 18) ** 2 / (2 * 4**2))
    torch.testing.assert_close(centre_map(blob), blob / blob.sum(), atol=1e-5, rtol=1e-3)


def test_negatives_leave_out_the_patient(cohort: Cohort) -> None:
    studies = cohort.indices("all")
    counts = FixationCounts(cohort, studies)
    for row in (0, 2, 5):
        patient = cohort[row].patient_id
        expected = sum(counts.own(int(o)) for o in studies if cohort[int(o)].patient_id != patient)
        assert torch.equal(counts.of_other_patients(row), expected)
        assert counts.own(row).sum() == len(fixations_of(cohort[row]))


def test_fixation_counts_are_the_maps_and_hold_no_gaze(cohort: Cohort, tmp_path: Path) -> None:
    without = blob_cohort(tmp_path, studies=12, gaze=False)
    assert not FixationCounts(without, without.indices("all")).own(3).any()
    counts = FixationCounts(cohort, cohort.indices("all"))
    maps = [fixation_map(fixations_of(study), study.grid).long() for study in cohort]
    for row, expected in enumerate(maps):
        assert counts.own(row).dtype == torch.int64
        assert torch.equal(counts.own(row), expected)
        cells, numbers = counts.cells[row]
        assert cells.dtype == numbers.dtype == np.int32
        assert len(cells) == (expected > 0).sum()
    others = sum(m for m, study in zip(maps, cohort, strict=True) if study.patient_id != cohort[4].patient_id)
    assert torch.equal(counts.of_other_patients(4), others)
