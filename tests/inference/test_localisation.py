from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from radgaze.cohort import Cohort
from radgaze.inference import evaluate
from radgaze.inference.localisation import cam_measures, class_mask, localisation_section, per_study, true_classes
from radgaze.measures import localisation, saliency
from radgaze.training import AttentionTarget, Run, fit
from tests.cohorts import blob_cohort, multilabel_cohort

CAM: dict[str, Any] = {
    "model": {"backbone": "resnet10t"},
    "sigma": 6.0,
    "precision": "fp32",
    "schedule": "one-cycle",
    "learning_rate": 3e-3,
    "progress": False,
}
GAZE = AttentionTarget("gaze", "gg-cam", 6.0)
ROWS = [0, 1, 2, 5]  # classes 0, 1, 2, 2


@pytest.fixture(scope="module")
def guided(large_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(large_cohort, tmp_path_factory.mktemp("localisation") / "run", "gg-cam", epochs=12, **CAM)


@pytest.fixture(scope="module")
def report(guided: Run) -> dict[str, Any]:
    return evaluate(guided, resamples=100, progress=False)


def test_the_true_classs_cam_is_measured_against_its_structures(large_cohort: Cohort) -> None:
    cams = torch.rand(4, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    values = cam_measures(large_cohort, ROWS, cams, None)["model"]
    assert set(values) == {"pointing_game", "energy_inside", "iou"}
    for row, (study, label) in enumerate(zip(ROWS, [0, 1, 2, 2], strict=True)):
        known = ~values["energy_inside"][row].isnan()
        assert known.tolist() == [c == label and label != 0 for c in range(3)]  # class 0 has no structure
        if label:
            mask = torch.from_numpy(large_cohort.mask(study, "blob").copy())[None]
            expected = localisation.energy_inside(cams[row, label][None], mask)
            torch.testing.assert_close(values["energy_inside"][row, label], expected[0])


def test_gaze_itself_is_the_perfect_cam(large_cohort: Cohort) -> None:
    maps, _ = GAZE.maps(large_cohort, ROWS, size=(6, 4))
    cams = torch.zeros(4, 3, 6, 4)
    cams[range(4), [0, 1, 2, 2]] = maps
    values = cam_measures(large_cohort, ROWS, cams, GAZE)
    for key in ("cc", "sim"):
        torch.testing.assert_close(per_study(values["model"][key]), torch.ones(4, dtype=torch.float64))
    assert per_study(values["model"]["pointing_game"])[1:].tolist() == [1, 1, 1]
    assert (per_study(values["uniform"]["sim"]) < 0.6).all()


def test_uniform_map_has_the_masks_share_of_the_area(large_cohort: Cohort) -> None:
    values = cam_measures(large_cohort, ROWS, torch.rand(4, 3, 6, 4), None)["uniform"]
    assert values["energy_inside"][1, 1].item() == pytest.approx((large_cohort.mask(1, "blob") == 1).mean())


def test_structures_are_united_and_unknown_pixels_stay_unknown() -> None:
    class Masks:
        size = (2, 2)
        class_structures = {"a": ["left", "right"], "b": []}  # noqa: RUF012

        def mask(self, study: int, name: str) -> np.ndarray:
            return np.array({"left": [[1, 0], [0, 255]], "right": [[0, 0], [1, 0]]}[name], np.uint8)

    assert class_mask(Masks(), 0, "a").tolist() == [[1, 0], [1, 255]]  # type: ignore[arg-type]
    assert (class_mask(Masks(), 0, "b") == 255).all()  # type: ignore[arg-type]


def test_true_classes_of_both_tasks() -> None:
    rows, classes = true_classes(np.array([2, -1, 0]))
    assert (rows.tolist(), classes.tolist()) == ([0, 2], [2, 0])
    rows, classes = true_classes(np.array([[1, 0, 1], [np.nan, 0, 0], [np.nan, 1, 0]], np.float32))
    assert (rows.tolist(), classes.tolist()) == ([0, 0, 2], [0, 2, 1])


def test_decision_is_where_the_classes_differ(large_cohort: Cohort) -> None:
    """A map that all classes share moves every CAM's energy, and neither a probability nor the decision map."""
    cams = torch.rand(4, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    shared = torch.zeros(4, 1, 6, 4)
    shared[..., 0, 0] = 50
    plain, moved = (cam_measures(large_cohort, ROWS, maps, GAZE) for maps in (cams, cams + shared))
    for key, values in plain["decision"].items():
        torch.testing.assert_close(moved["decision"][key], values, equal_nan=True, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(moved["model"]["cc"].nan_to_num(), plain["model"]["cc"].nan_to_num(), atol=0.05)
    mask = torch.from_numpy(large_cohort.mask(1, "blob").copy())[None]
    expected = localisation.energy_inside(cams[1].std(0, correction=0)[None], mask)
    torch.testing.assert_close(plain["decision"]["energy_inside"][1, 1], expected[0], rtol=1e-4, atol=1e-6)


def test_decision_of_a_label_among_several_is_its_own_map(tmp_path: Path) -> None:
    cohort = multilabel_cohort(tmp_path)
    cams = torch.randn(1, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    gaze = AttentionTarget("mask:blob")
    values = cam_measures(cohort, [0], cams, gaze)
    present = np.flatnonzero(np.nan_to_num(cohort.targets[0]) >= 0.5)
    maps, _ = gaze.maps(cohort, [0], size=(6, 4))
    for label in present:
        expected = saliency.cc(cams[:, label].abs(), maps)
        torch.testing.assert_close(values["decision"]["cc"][0, label].float(), expected[0].float())


def test_grad_cam_is_measured_as_a_cam_is(large_cohort: Cohort) -> None:
    cams = torch.rand(4, 3, 6, 4)
    both = cam_measures(large_cohort, ROWS, cams, GAZE, cams[range(4), [0, 1, 2, 2]])
    alone = cam_measures(large_cohort, ROWS, None, GAZE, cams[range(4), [0, 1, 2, 2]])
    assert list(both) == ["model", "decision", "grad-cam", "uniform"]
    assert list(alone) == ["grad-cam", "uniform"]
    for key, values in both["model"].items():
        for same in (both["grad-cam"], alone["grad-cam"]):
            torch.testing.assert_close(same[key], values, equal_nan=True)
        torch.testing.assert_close(alone["uniform"][key], both["uniform"][key], equal_nan=True)
    assert cam_measures(large_cohort, ROWS, None, GAZE) == {}


def test_each_map_is_compared_with_gaze_on_its_own_grid(large_cohort: Cohort) -> None:
    fine, coarse = (GAZE.maps(large_cohort, ROWS, size=size)[0] for size in ((12, 8), (6, 4)))
    cams = torch.zeros(4, 3, 12, 8)
    cams[range(4), [0, 1, 2, 2]] = fine
    values = cam_measures(large_cohort, ROWS, cams, GAZE, coarse)
    for name in ("model", "grad-cam"):
        torch.testing.assert_close(per_study(values[name]["cc"]), torch.ones(4, dtype=torch.float64))


def test_studies_without_a_true_class_have_no_values(large_cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(large_cohort), "targets", np.full(len(large_cohort), -1))
    values = cam_measures(large_cohort, ROWS, torch.rand(4, 3, 6, 4), GAZE)
    assert all(value.isnan().all() for value in values["model"].values())
    section = localisation_section(large_cohort, values, None, ["a", "b", "c", "d"], 10)
    assert section["model"]["overall"] == {}


def test_report_shows_where_the_cams_point(guided: Run, large_cohort: Cohort, report: dict[str, Any]) -> None:
    section = report["localisation"]
    assert section["structures"] == {"class1": ["blob"], "class2": ["blob"]}
    table = pl.read_csv(guided.path / "studies-test.csv")
    for name, prefix in {"model": "cam", "grad-cam": "grad_cam"}.items():
        for key, entry in section[name]["overall"].items():
            values = table[f"{prefix}_{key}"].fill_nan(None)
            assert entry["mean"] == pytest.approx(values.mean(), rel=1e-5)
            assert entry["n"] == values.count()
            assert entry["low"] <= entry["mean"] <= entry["high"]
    for key in ("energy_inside", "iou", "sim"):  # Grad-CAM is the CAM's positive part
        positive = table[f"cam_{key}"].to_numpy()
        np.testing.assert_allclose(table[f"grad_cam_{key}"].to_numpy(), positive, rtol=1e-3, atol=1e-6)
    labels = table["label"].to_list()
    assert section["model"]["classes"]["class1"]["cc"]["n"] == labels.count("class1")
    assert set(section["uniform"]["classes"]["class0"]) == {"sim"}  # it has gaze, but no structure
    assert "pointing_game" in section["model"]["classes"]["class1"]
    assert json.loads((guided.path / "report.json").read_text())["localisation"] == section
    assert "saliency" not in report
    assert "scheme" not in report["run"]


def test_guided_cams_follow_the_gaze(report: dict[str, Any]) -> None:
    section = report["localisation"]
    assert section["model"]["overall"]["cc"]["mean"] > 0.4
    model, uniform = (section[name]["overall"]["energy_inside"]["mean"] for name in ("model", "uniform"))
    assert model > 1.1 * uniform  # on six cells, of which the blob fills a sixth of one


def test_page_shows_localisation_cams_and_the_curriculum(report: dict[str, Any]) -> None:
    page = Path(report["path"]).read_text()
    for told in ("Localisation", "Pointing game", "Energy inside", "Class activation: class1", "Weights of the loss"):
        assert told in page
    assert "CAM, decision map and Grad-CAM of the true class" in page


def test_control_is_measured_the_same_way(large_cohort: Cohort, tmp_path: Path) -> None:
    run = fit(large_cohort, tmp_path / "run", "classifier", epochs=1, **CAM)
    report = evaluate(run, resamples=20, progress=False, grad_cam=False)
    assert report["attention"] == "none"
    assert set(report["localisation"]["model"]["overall"]) >= {"cc", "pointing_game"}
    assert "grad-cam" not in report["localisation"]
    assert not any(name.startswith("grad_cam") for name in pl.read_csv(run.path / "studies-test.csv").columns)


def test_a_guided_network_needs_no_gaze_to_be_evaluated(guided: Run, tmp_path: Path) -> None:
    plain = blob_cohort(tmp_path, studies=12, gaze=False, size=(96, 64))
    report = evaluate(guided, plain, split="all", resamples=20, progress=False)
    assert set(report["localisation"]["model"]["overall"]) <= {"pointing_game", "energy_inside", "iou"}
    assert report["localisation"]["gaze"] is None
