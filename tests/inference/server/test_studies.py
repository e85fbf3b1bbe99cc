"""The cohort's routes say what the library says of the same studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from radgaze.cohort import Cohort
from radgaze.gaze import render
from radgaze.inference import Predictor
from radgaze.inference.predict import predict_studies
from radgaze.inference.server import Settings, answers, create_app
from radgaze.inference.server.studies import StudyRoom
from radgaze.measures import saliency
from radgaze.training import Run
from tests.cohorts import blob_cohort, multilabel_cohort
from tests.inference.server.conftest import Client
from tests.inference.server.test_limits import error
from tests.inference.server.test_predict import decoded


def test_summary(client: TestClient, cohort: Cohort) -> None:
    content = client.get("/v1/models").json()["cohort"]
    assert content == {
        "name": cohort.name,
        "studies": 24,
        "classes": cohort.classes,
        "task": "multiclass",
        "splits": ["train", "val", "test"],
        "gaze": cohort.gaze_kind,
        "size": [48, 32],
    }


def test_listing_and_its_filters(client: TestClient, cohort: Cohort) -> None:
    def listed(query: str) -> dict[str, object]:
        answer = client.get(f"/v1/cohort/studies?{query}")
        answers.Studies.model_validate(answer.json())
        return answer.json()

    everything = listed("limit=500")
    assert everything["total"] == len(everything["studies"]) == 24
    for entry, study in zip(everything["studies"], cohort, strict=True):
        own = {name: getattr(study, name) for name in ("index", "study_id", "split", "label", "gaze_count")}
        assert entry == own
    page = listed("offset=10&limit=5")
    assert (page["total"], [one["index"] for one in page["studies"]]) == (24, list(range(10, 15)))
    tested = listed("split=test&label=class1&limit=500")
    assert [one["index"] for one in tested["studies"]] == [
        study.index for study in cohort if study.split == "test" and study.label == "class1"
    ]
    assert listed("search=01")["total"] == 11  # s001 and s010 to s019
    assert listed("search=.*")["total"] == 0  # as it is written, no pattern
    assert listed("gaze=false")["total"] == 0
    assert listed("gaze=true")["total"] == 24
    assert listed("offset=1000")["studies"] == []


def test_present_labels_are_listed(tmp_path: Path) -> None:
    cohort = multilabel_cohort(tmp_path)
    room = StudyRoom(cohort, {})
    for entry, study in zip(room.listed(0, 500, None, None, None, None)["studies"], cohort, strict=True):
        assert entry["label"] == [name for name, value in study.labels.items() if value is not None and value >= 0.5]
    found = room.listed(0, 500, None, "rare", None, None)
    assert [one["study_id"] for one in found["studies"]] == ["s000"]


def test_a_studys_image(client: TestClient, cohort: Cohort) -> None:
    content = client.get("/v1/cohort/studies/5").json()
    answers.StudyDetail.model_validate(content)
    study, preview = cohort[5], content["preview"]
    assert (content["height"], content["width"]) == study.source_size
    assert (content["study_id"], content["label"]) == (study.study_id, study.label)
    shown = preview["low"] + decoded(preview, "<u2") / 65535 * (preview["high"] - preview["low"])
    assert shown == pytest.approx(study.image.astype(float), abs=1)
    assert (preview["x0"], preview["scale_x"]) == (study.grid.x0, study.grid.dx)


def test_padding_is_not_part_of_the_preview(tmp_path: Path) -> None:
    cohort = blob_cohort(tmp_path, studies=6, size=(48, 64))  # twice as wide as the images
    preview = StudyRoom(cohort, {}).detail(0)["preview"]
    grid = cohort[0].grid
    inside = grid.x0 + grid.dx * np.arange(64)
    left = int(np.argmax(inside >= -0.5))
    assert preview["width"] == 32
    assert preview["x0"] == pytest.approx(inside[left])
    assert decoded(preview, "<u2").max() == 65535


def test_gaze(client: TestClient, cohort: Cohort) -> None:
    content = client.get("/v1/cohort/studies/3/gaze").json()
    answers.GazePoints.model_validate(content)
    gaze = cohort[3].gaze
    assert gaze is not None
    assert content["kind"] == cohort.gaze_kind
    assert content["readers"] == cohort.readers == ["a", "b"]
    assert content["points"]["x"] == gaze.x.tolist()
    assert content["points"]["y"] == gaze.y.tolist()
    assert content["points"]["t"] == gaze.t.tolist()
    assert content["points"]["reader"] == gaze.reader.tolist()
    assert len(content["fixations"]["x"]) > 0
    assert set(content["fixations"]["reader"]) == {0, 1}


def test_lost_points_are_left_out(client: TestClient) -> None:
    from radgaze.gaze import Gaze
    from radgaze.inference.server.studies import columns

    gaze = Gaze([1, float("nan"), 3], [1, 2, 3], t=[0.1, 0.2, float("nan")], reader=[0, 0, -1])
    found = columns(gaze, ("x", "y", "t", "duration", "reader"))
    assert found == {"x": [1, 3], "y": [1, 3], "t": [0.1, None], "duration": None, "reader": [0, None]}


def test_attention_is_compared_with_the_readers(client: TestClient, cohort: Cohort, unet: Run) -> None:
    content = client.get("/v1/cohort/studies/7/predict?model=unet").json()
    answers.CohortPrediction.model_validate(content)
    study = cohort[7]
    _, output = next(iter(predict_studies(unet.network(), cohort, [7])))
    expected = output.saliency()
    assert expected is not None
    assert decoded(content["maps"]["attention"], "<f4") == pytest.approx(expected[0].numpy(), abs=1e-6)
    assert study.gaze is not None
    human = render(study.gaze, study.source_size, preset="mt-unet", sigma=9.0, grid=study.grid)
    assert decoded(content["human"], "<f4") == pytest.approx(human.numpy(), abs=1e-6)
    assert "sigma 9" in content["rendering"]
    for name, measure in {"cc": saliency.cc, "kld": saliency.kld, "sim": saliency.sim}.items():
        assert content["agreement"]["attention"][name] == pytest.approx(float(measure(expected, human[None])), abs=1e-5)


def test_cams_are_compared_by_their_positive_part(
    client: TestClient, cohort: Cohort, predictors: dict[str, Predictor]
) -> None:
    content = client.get("/v1/cohort/studies/7/predict?model=cam").json()
    answers.CohortPrediction.model_validate(content)
    study = cohort[7]
    cam = torch.from_numpy(decoded(content["maps"]["cam:class1"], "<f4").copy())
    human = torch.from_numpy(decoded(content["human"], "<f4").copy())
    assert human.shape == cam.shape
    grid = study.grid.coarsen((cam.shape[0], cam.shape[1]))
    assert (content["human"]["x0"], content["human"]["dx"]) == (grid.x0, grid.dx)
    agreement = content["agreement"]["cam:class1"]
    positive = cam.clamp(min=0)[None]
    expected = float(saliency.cc(positive, human[None]))
    assert agreement["cc"] == (pytest.approx(expected, abs=1e-5) if np.isfinite(expected) else None)
    assert set(content["agreement"]) == {f"cam:{name}" for name in cohort.classes}


def test_a_cohort_without_gaze(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    cohort = blob_cohort(tmp_path, studies=12, gaze=False)
    with TestClient(create_app(predictors, cohort), "http://localhost") as client:
        content = client.get("/v1/cohort/studies/0/predict?model=unet").json()
        answers.CohortPrediction.model_validate(content)
        assert (content["human"], content["agreement"], content["rendering"]) == (None, None, None)
        assert "no gaze" in error(client.get("/v1/cohort/studies/0/gaze"), 404)


def test_a_cohort_of_another_size(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    cohort = blob_cohort(tmp_path, studies=6, size=(96, 64))
    with TestClient(create_app(predictors, cohort, Settings()), "http://localhost") as client:
        assert "96x64" in error(client.get("/v1/cohort/studies/0/predict?model=unet"), 400)


def test_without_a_cohort(serve: Client) -> None:
    client = serve()
    assert client.get("/v1/models").json()["cohort"] is None
    for path in ("", "/0", "/0/gaze", "/0/predict"):
        assert "--cohort" in error(client.get(f"/v1/cohort/studies{path}"), 404)
