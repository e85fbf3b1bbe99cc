"""Learning from another run's class scores: what the teacher sees, when it looks, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.models import build
from radgaze.training import Augmentation, Run, fit
from radgaze.training.config import RunConfig
from radgaze.training.data import CohortDataset, training_studies
from radgaze.training.distillation import Teacher
from radgaze.training.runs import Checkpoint
from radgaze.training.trainer import Trainer
from tests.cohorts import blob_cohort, multilabel_cohort
from tests.training.test_trainer import metrics, same_weights

SMALL: dict[str, Any] = {
    "model": {"width": 4},
    "objective": {"scheme": "class-only"},
    "batch_size": 5,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "progress": False,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = {
        **SMALL,
        "learning_rate": 1e-2,
        "epochs": 20,
        "schedule": "one-cycle",
    }  # long enough to tell images apart
    return fit(cohort, tmp_path_factory.mktemp("teacher") / "run", **settings)


@pytest.fixture(scope="module")
def other_teacher(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(cohort, tmp_path_factory.mktemp("teacher") / "run", epochs=1, **{**SMALL, "seed": 1})


def pupil(teacher: Run, views: int | None = None, scores: Path | None = None, **others: Any) -> RunConfig:
    distill = {"teacher": str(teacher.path), "scores": None if scores is None else str(scores)}
    settings = {key: value for key, value in SMALL.items() if key != "progress"}
    return RunConfig.parse({**settings, "distill": distill, "augmentation": {"views": views}, **others})


def new_teacher(config: RunConfig, cohort: Cohort) -> Teacher:
    studies = len(training_studies(cohort, config))
    return Teacher(Run.open(config.distill.teacher), config, cohort, studies, CPU, "fp32")


def dataset(config: RunConfig, cohort: Cohort) -> CohortDataset:
    return CohortDataset(cohort, training_studies(cohort, config), augmentation=config.augmentation, seed=config.seed)


def looks(teacher: Teacher) -> list[int]:
    """How many images the teacher's network looks at, call by call, from now on."""
    seen: list[int] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


class TestTeacher:
    def test_scores_are_those_of_the_very_images(self, teacher: Run, cohort: Cohort) -> None:
        config = pupil(teacher, views=2)
        batch = dataset(config, cohort).batch([(1, 4), (1, 0), (1, 7)])
        scores = new_teacher(config, cohort).scores(batch, epoch=1)
        with torch.no_grad():
            expected = teacher.network()(batch.images).logits
            plain = teacher.network()(CohortDataset(cohort, cohort.indices("train")).batch([(0, 4)]).images).logits
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
        assert not scores.requires_grad
        assert (scores[0] - plain[0]).abs().max() > 1e-3  # augmentation is something to see
        assert scores.std(0).min() > 1e-3

    def test_without_views_it_looks_every_time(self, teacher: Run, cohort: Cohort) -> None:
        config = pupil(teacher)
        found, data = new_teacher(config, cohort), dataset(config, cohort)
        seen = looks(found)
        for epoch in (0, 0, 1):
            found.scores(data.batch([(epoch, 0), (epoch, 1)]), epoch)
        assert seen == [2, 2, 2]

    def test_each_view_is_looked_at_once(self, teacher: Run, cohort: Cohort) -> None:
        config = pupil(teacher, views=2)
        found, data = new_teacher(config, cohort), dataset(config, cohort)
        seen = looks(found)
        by_epoch = []
        for epoch in range(4):
            order = [0, 1, 2] if epoch < 2 else [2, 0, 1]
            scores = found.scores(data.batch([(epoch, position) for position in order]), epoch)
            by_epoch.append(scores[np.argsort(order)])
        assert seen == [3, 3]
        assert torch.equal(by_epoch[2], by_epoch[0])
        assert torch.equal(by_epoch[3], by_epoch[1])
        assert not torch.equal(by_epoch[1], by_epoch[0])
        found.scores(data.batch([(0, 1), (0, 3)]), 0)  # one of them is new
        assert seen == [3, 3, 2]

    def test_scores_are_shared_through_a_file(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        config = pupil(teacher, views=1, scores=tmp_path / "deep" / "scores.safetensors")
        data = dataset(config, cohort)
        everything = data.batch([(0, position) for position in range(len(data))])
        first = new_teacher(config, cohort)
        first.scores(data.batch([(0, 0)]), 0)
        first.save()
        half_way = new_teacher(config, cohort)
        assert torch.equal(half_way.known.isnan().any(2), torch.tensor([[False] + [True] * (len(data) - 1)]))
        expected = half_way.scores(everything, 0)
        half_way.save()
        second = new_teacher(config, cohort)
        seen = looks(second)
        assert torch.equal(second.scores(everything, 0), expected)
        assert seen == []
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["scores.safetensors"]

    @pytest.mark.parametrize("change", ["teacher", "seed", "views", "augmentation", "studies", "cohort"])
    def test_scores_of_anything_else_are_not_used(
        self, change: str, teacher: Run, other_teacher: Run, cohort: Cohort, tmp_path: Path
    ) -> None:
        file = tmp_path / "scores.safetensors"
        first = new_teacher(pupil(teacher, views=2, scores=file), cohort)
        first.known.fill_(7.0)
        first.save()
        assert new_teacher(pupil(teacher, views=2, scores=file), cohort).complete
        others: dict[str, Any] = {
            "seed": {"seed": 4},
            "augmentation": {"augmentation": {"views": 2, "gain": 0.5}},
            "studies": {"train_studies": 6},
        }.get(change, {})
        config = pupil(other_teacher if change == "teacher" else teacher, 3 if change == "views" else 2, file)
        config = RunConfig.parse({**config.dump(), **others})
        where = blob_cohort(tmp_path / "other", studies=30) if change == "cohort" else cohort
        found = new_teacher(config, where)
        assert found.known.isnan().all()
        batch = dataset(config, where).batch([(0, 0)])
        assert not (found.scores(batch, 0) == 7.0).any()

    def test_a_file_without_views_is_never_written(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        config = pupil(teacher, scores=tmp_path / "scores.safetensors")
        found = new_teacher(config, cohort)
        found.scores(dataset(config, cohort).batch([(0, 0)]), 0)
        found.save()
        assert list(tmp_path.iterdir()) == []


class TestTraining:
    def test_the_pupil_learns_from_the_teachers_scores_alone(
        self, teacher: Run, cohort: Cohort, tmp_path: Path
    ) -> None:
        """Weight 1: labels do not matter, not even wrong ones."""
        settings = {**SMALL, "epochs": 1, "distill": {"teacher": str(teacher.path), "weight": 1.0}}
        right = fit(cohort, tmp_path / "right", **settings)
        truth = cohort.targets
        try:
            cohort.targets = np.roll(truth, 1)
            wrong = fit(cohort, tmp_path / "wrong", **settings)
        finally:
            cohort.targets = truth
        assert same_weights(right.path, wrong.path)
        assert right.history[0]["val_loss"] != wrong.history[0]["val_loss"]  # validation knows labels alone
        plain = fit(cohort, tmp_path / "plain", **{**SMALL, "epochs": 1})
        assert not same_weights(right.path, plain.path)

    def test_weight_0_is_training_without(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        distill = {"teacher": str(teacher.path), "weight": 0.0}
        plain = fit(cohort, tmp_path / "plain", epochs=1, **SMALL)
        distilled = fit(cohort, tmp_path / "run", epochs=1, distill=distill, **SMALL)
        assert same_weights(plain.path, distilled.path)

    @pytest.mark.parametrize(("views", "kept"), [(None, False), (2, True), (2, False)])
    def test_interrupted_training_ends_the_same(
        self,
        views: int | None,
        kept: bool,
        teacher: Run,
        cohort: Cohort,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        scores = tmp_path / "scores.safetensors"
        settings: dict[str, Any] = {**SMALL, "epochs": 4, "augmentation": {"views": views}}

        def distill(file: Path) -> dict[str, Any]:
            return {"distill": {"teacher": str(teacher.path), "scores": str(file) if kept else None}}

        whole = fit(cohort, tmp_path / "whole", **settings, **distill(tmp_path / "others.safetensors"))

        class Killed(BaseException):
            pass

        epoch = Trainer.epoch

        def until_the_second(trainer: Trainer, *shown: Any) -> None:
            if trainer.state.epoch == 1:
                raise Killed
            epoch(trainer, *shown)

        monkeypatch.setattr(Trainer, "epoch", until_the_second)
        with pytest.raises(Killed):
            fit(cohort, tmp_path / "killed", **settings, **distill(scores))
        monkeypatch.undo()
        assert scores.exists() == kept
        resumed = fit(cohort, tmp_path / "killed", resume=True, **settings, **distill(scores))
        assert metrics(resumed.path) == metrics(whole.path)
        assert same_weights(resumed.path, whole.path)

    def test_a_later_run_uses_the_first_ones_scores(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        file = tmp_path / "scores.safetensors"
        distill = {"teacher": str(teacher.path), "scores": str(file)}
        settings: dict[str, Any] = {**SMALL, "epochs": 2, "augmentation": {"views": 2}, "distill": distill}
        first = fit(cohort, tmp_path / "first", **settings)
        with safe_open(file, "pt") as content:
            about = content.metadata()
        assert load_file(file)["scores"].shape == (2, 12, 3)
        save_file({"scores": torch.zeros(2, 12, 3)}, file, metadata=about)  # and it is believed
        second = fit(cohort, tmp_path / "second", **settings)
        assert not same_weights(first.path, second.path)
        assert not load_file(file)["scores"].any()

    def test_several_labels(self, tmp_path: Path) -> None:
        cohort = multilabel_cohort(tmp_path)
        teacher = fit(cohort, tmp_path / "teacher", epochs=1, **SMALL)
        run = fit(cohort, tmp_path / "run", epochs=1, distill={"teacher": str(teacher.path)}, **SMALL)
        assert run.history[0]["train_loss_class"] > 0

    def test_views_come_again(self, cohort: Cohort) -> None:
        config = RunConfig.parse({"augmentation": {"views": 3}})
        data = dataset(config, cohort)
        views = [data.batch([(epoch, 0), (epoch, 5)]).images for epoch in range(7)]
        assert torch.equal(views[3], views[0])
        assert torch.equal(views[4], views[1])
        assert torch.equal(views[6], views[0])
        assert not torch.equal(views[1], views[0])
        assert not torch.equal(views[2], views[1])
        endless = dataset(RunConfig.parse({"augmentation": Augmentation().model_dump()}), cohort)
        assert torch.equal(endless.batch([(1, 0)]).images[0], views[1][0])
        assert not torch.equal(endless.batch([(3, 0)]).images[0], views[0][0])


class TestInitialWeights:
    def test_training_starts_from_them(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        """At a rate of almost 0 the first epoch's parameters are still those of the file."""
        file = teacher.path / "weights.safetensors"
        run = fit(cohort, tmp_path / "run", epochs=1, **{**SMALL, "learning_rate": 1e-12}, initial_weights=str(file))
        start, end = load_file(file), load_file(run.path / "weights.safetensors")
        trained = {name for name, _ in teacher.network().named_parameters()}
        assert all(torch.allclose(end[key], start[key], rtol=0, atol=1e-9) for key in trained)
        fresh = build(run.content["network"]).state_dict()
        assert not torch.allclose(fresh["body.encoder.0.0.weight"], start["body.encoder.0.0.weight"])

    def test_of_another_network(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        settings = {**SMALL, "model": {"width": 3}, "initial_weights": str(teacher.path / "weights.safetensors")}
        with pytest.raises(InputError, match="do not fit the network"):
            fit(cohort, tmp_path / "run", epochs=1, **settings)
        with pytest.raises(InputError, match="no weights file"):
            fit(cohort, tmp_path / "run", epochs=1, **{**SMALL, "initial_weights": str(tmp_path / "absent")})
        assert not (tmp_path / "run" / "config.json").exists()


class TestRefused:
    def refused(self, match: str, cohort: Cohort, out: Path, **settings: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            fit(cohort, out, **{**SMALL, "epochs": 1, **settings})
        assert "\n" not in str(error.value)
        assert not (out / "config.json").exists()

    def test_teachers_that_cannot_teach(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        out = tmp_path / "run"
        self.refused("not a run", cohort, out, distill={"teacher": str(tmp_path / "absent")})
        blind = fit(
            cohort, tmp_path / "blind", epochs=1, **{**SMALL, "objective": {"scheme": "saliency-only"}, "sigma": 6}
        )
        self.refused("knows no classes", cohort, out, distill={"teacher": str(blind.path)})
        two = blob_cohort(tmp_path / "two", classes=2)
        self.refused("has classes", two, out, distill={"teacher": str(teacher.path)})
        large = blob_cohort(tmp_path / "large", size=(64, 48))
        self.refused("was trained at 48x32", large, out, distill={"teacher": str(teacher.path)})

    def test_an_unfinished_teacher(self, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Checkpoint, "publish", lambda checkpoint: None)
        unfinished = fit(cohort, tmp_path / "unfinished", epochs=1, **SMALL)
        monkeypatch.undo()
        self.refused("weights", cohort, tmp_path / "run", distill={"teacher": str(unfinished.path)})

    def test_a_pupil_without_classes(self, teacher: Run, cohort: Cohort, tmp_path: Path) -> None:
        objective = {"scheme": "saliency-only"}
        distill = {"teacher": str(teacher.path)}
        self.refused("class scores", cohort, tmp_path / "run", objective=objective, distill=distill, sigma=6)

    @pytest.mark.parametrize(
        ("distill", "match"),
        [
            ({"weight": 0.5}, "distill.teacher"),
            ({"teacher": "x", "weight": 1.5}, "distill.weight = 1.5"),
            ({"teacher": "x", "temperature": 0}, "distill.temperature = 0"),
            ({"teacher": "x", "temprature": 2}, "'distill.temprature': did you mean 'temperature'"),
        ],
    )
    def test_settings(self, distill: dict[str, Any], match: str, cohort: Cohort, tmp_path: Path) -> None:
        self.refused(match, cohort, tmp_path / "run", distill=distill)
        self.refused("augmentation.views = 0", cohort, tmp_path / "run", augmentation={"views": 0})
