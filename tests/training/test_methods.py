from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.training import AttentionTarget, Augmentation, Run, fit
from radgaze.training.data import CohortDataset
from radgaze.training.methods import METHODS, resolve
from tests.cohorts import blob_cohort

CAM: dict[str, Any] = {"model": {"backbone": "resnet10t"}, "sigma": 6.0, "precision": "fp32", "progress": False}


@pytest.fixture(scope="module")
def guided(large_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(large_cohort, tmp_path_factory.mktemp("methods") / "run", "gg-cam", epochs=2, **CAM)


def test_gg_cam_logs_terms_scalars_and_weights_apart(guided: Run) -> None:
    row = guided.history[-1]
    for name in ("train_loss_class", "train_loss_attention", "val_loss_class", "val_loss_attention", "val_cc"):
        assert math.isfinite(row[name])
    assert row["weight_class"] == pytest.approx(1 / row["sigma_class"] ** 2)
    assert row["weight_attention"] == pytest.approx(0.5 / row["sigma_attention"] ** 2)
    assert row["cam_scale"] != 1.0
    total = row["weight_class"] * row["val_loss_class"] + row["weight_attention"] * row["val_loss_attention"]
    total += math.log(row["sigma_class"] + 1) + math.log(row["sigma_attention"] + 1)
    assert row["val_loss"] == pytest.approx(total, rel=1e-5)
    output = guided.network()(torch.rand(1, 1, 96, 64))  # the image alone
    assert output.cams.shape == (1, 3, 3, 2)


def test_control_shares_everything_but_the_objective(guided: Run, large_cohort: Cohort, tmp_path: Path) -> None:
    control = fit(large_cohort, tmp_path / "run", "classifier", epochs=1, **CAM)
    assert control.content["attention"] == "none"
    assert control.content["network"] == guided.content["network"]
    assert control.content["parameters"] == guided.content["parameters"]  # the three scalars are the objective's
    assert {"val_loss_attention", "val_cc", "weight_class"}.isdisjoint(control.history[0])
    for recipe in METHODS["gg-cam"].recipes:
        ours, theirs = (resolve(method, {"recipe": recipe}).dump() for method in ("gg-cam", "classifier"))
        different = {key for key in ours if ours[key] != theirs[key]}
        assert different == {"method", "objective"}


def test_attention_is_rendered_on_the_cams_grid(large_cohort: Cohort) -> None:
    dataset = CohortDataset(large_cohort, large_cohort.indices("train"), AttentionTarget("gaze", "gg-cam"), (3, 2))
    batch = dataset.batch([(0, 0), (0, 1)])
    assert batch.attention.shape == (2, 3, 2)
    torch.testing.assert_close(batch.attention.amax((1, 2)), torch.ones(2))  # divided by its maximum


@pytest.mark.parametrize(
    ("recipe", "backbone", "rate", "start"),
    [("paper-resnet50", "resnet50", 5e-3, -23.0), ("paper-efficientnetv2-s", "efficientnetv2_s", 6e-3, -16.0)],
)
def test_recipes_of_the_paper(recipe: str, backbone: str, rate: float, start: float) -> None:
    config = resolve("gg-cam", {"recipe": recipe})
    assert config.model == {"backbone": backbone}
    assert config.objective == {"log_sigma_class": 7.0, "log_sigma_attention": start, "log_scale": 0.0}
    assert (config.learning_rate, config.batch_size, config.optimizer, config.schedule) == (rate, 4, "adam", "plateau")
    assert config.preset == "gg-cam"
    assert config.augmentation == Augmentation.none()


def test_settings_go_on_top_of_a_recipe() -> None:
    given = {"recipe": "paper-resnet50", "model": {"weights": "hub"}, "objective": {"loss": "kld"}, "batch_size": 8}
    config = resolve("gg-cam", given)
    assert config.model == {"backbone": "resnet50", "weights": "hub"}
    assert config.objective["loss"] == "kld"
    assert config.objective["log_sigma_attention"] == -23.0
    assert config.batch_size == 8
    assert resolve("gg-cam", json.loads(json.dumps(config.dump()))) == config  # a resolved config is its own recipe


def test_released_start_trains(large_cohort: Cohort, tmp_path: Path) -> None:
    settings = {**CAM, "precision": "bf16"}
    run = fit(large_cohort, tmp_path / "run", "gg-cam", epochs=1, recipe="paper-resnet50", **settings)
    row = run.history[0]
    assert row["weight_class"] < 1e-5
    assert 1e19 < row["weight_attention"] < 5e19
    assert math.isfinite(row["val_loss"])


def test_refusals(cohort: Cohort, large_cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'paper-resnet50'"):
        fit(large_cohort, tmp_path / "run", "gg-cam", recipe="resnet50")
    with pytest.raises(InputError, match="has no recipe 'paper': it has none"):
        fit(large_cohort, tmp_path / "run", recipe="paper")
    with pytest.raises(InputError, match="the attention target is 'none'"):
        fit(large_cohort, tmp_path / "run", "gg-cam", attention="none", **CAM)
    with pytest.raises(InputError, match="do not divide by 32; pad or resize them to 64x32"):
        fit(cohort, tmp_path / "run", "gg-cam", **CAM)
    narrow = blob_cohort(tmp_path, studies=12, gaze=False, size=(64, 32))
    with pytest.raises(InputError, match="at least 64x64"):
        fit(narrow, tmp_path / "run", "classifier", **CAM)
    with pytest.raises(InputError, match="it has mask:blob, boxes"):
        fit(narrow, tmp_path / "run", "gg-cam", **CAM)
    assert not (tmp_path / "run" / "config.json").exists()
