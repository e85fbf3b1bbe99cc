"""The loop: what it tries, accepts and writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.files import read_sealed, write_sealed
from radgaze.inference import evaluate
from radgaze.models import GazeCAM, build, parameters
from radgaze.simplification import engine, simplify
from radgaze.simplification.engine import check_folder, validation_auc
from radgaze.training import Run, fit
from radgaze.training.runs import Checkpoint
from radgaze.training.trainer import Trainer
from tests.runs import replace_weights
from tests.simplification.networks import narrow

STAGES = [{"width": 8, "blocks": [[6, 6], [6, 6]]}, {"width": 12, "blocks": [[8, 8], [8, 8]]}]
SETTINGS: dict[str, Any] = {
    "sigma": 6.0,
    "batch_size": 6,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "epochs": 1,
    "progress": False,
}
MODEL = {key: value for key, value in narrow(STAGES, stem=6, output_stride=8).items() if key in ("backbone", "options")}
QUICK: dict[str, Any] = {"images": 3, "views": 1, "progress": False, "max_auc_drop": 1.0, "distill": True}


@pytest.fixture(scope="module")
def classifier(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(cohort, tmp_path_factory.mktemp("base") / "run", "classifier", model=MODEL, **SETTINGS)


@pytest.fixture(scope="module")
def unet(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = {**SETTINGS, "model": {"width": 2}, "objective": {"scheme": "class-only"}}
    return fit(cohort, tmp_path_factory.mktemp("base") / "run", "mt-unet", **settings)


@pytest.fixture(scope="module")
def simplified(classifier: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simplified") / "out"
    simplify(classifier, out, ratio=2.0, target_params=parameters(classifier.network()) // 3, **QUICK)
    return out


def scripted(monkeypatch: pytest.MonkeyPatch, base: Run, aucs: Callable[[int], float]) -> None:
    """Validation AUCs by step number; the run's own is 0.8."""
    monkeypatch.setattr(
        engine, "validation_auc", lambda run: 0.8 if run.path == base.path else aucs(int(run.path.name))
    )


def read_log(out: Path) -> dict[str, Any]:
    return json.loads((out / "simplification.json").read_text())


class TestWholeJob:
    def test_the_log_says_what_happened(self, simplified: Path, classifier: Run) -> None:
        log = read_log(simplified)
        before = parameters(classifier.network())
        base = log["base"]
        assert (base["parameters"], base["auc"]) == (before, validation_auc(classifier))
        assert log["arguments"]["ratio"] == 2.0
        assert log["ended"] == f"reached {before // 3:,} parameters"
        assert (
            [step["step"] for step in log["steps"]]
            == ["01", "02"]
            == [p.name for p in sorted((simplified / "steps").iterdir())]
        )
        assert [step["from"] for step in log["steps"]] == [None, "01"]
        assert log["accepted"] == "02"
        for step in log["steps"]:
            assert step["accepted"]
            assert before // 3 - 1 < step["aim"] < before
            assert step["parameters"] <= step["aim"]
            assert 0 < step["tau"] < 1
            assert all(1 <= group["kept"] <= group["channels"] for group in step["groups"].values())
            assert sum(group["kept"] for group in step["groups"].values()) < sum(
                group["channels"] for group in step["groups"].values()
            )
        first, second = log["steps"]
        assert second["aim"] == max(before // 3, math.floor(first["parameters"] / 2))
        assert second["groups"]["backbone.conv1"]["channels"] == first["groups"]["backbone.conv1"]["kept"]

    def test_every_step_is_a_run(self, simplified: Path, classifier: Run) -> None:
        for step in read_log(simplified)["steps"]:
            run = Run.open(simplified / "steps" / step["step"])
            assert run.content["network"] == step["network"]
            assert parameters(run.network()) == run.content["parameters"] == step["parameters"]
            assert step["auc"] == validation_auc(run)
            assert run.config.method == "classifier"
            assert run.config.distill is not None
            assert run.config.distill.teacher == str(classifier.path)
            assert run.config.augmentation.views == 1
            assert run.config.initial_weights is None  # fresh
            kept = {name: group["kept"] for name, group in step["groups"].items()}
            assert run.network().backbone.conv1.out_channels == kept["backbone.conv1"]
            decision = json.loads((run.path / "decision.json").read_text())
            measured = ("auc", "accepted", "macs", "bytes")
            assert decision == {key: value for key, value in step.items() if key not in measured}

    def test_the_folder_is_the_accepted_run(self, simplified: Path, cohort: Cohort) -> None:
        run, step = Run.open(simplified), Run.open(simplified / "steps" / "02")
        assert isinstance(run.network(), GazeCAM)  # class activation maps and all
        ours, theirs = (load_file(r.path / "weights.safetensors") for r in (run, step))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert (run.state.finished, run.history) == (step.state.finished, step.history)
        report = evaluate(run, split="val", resamples=20, progress=False)
        assert report["classification"]["auc_macro"]["value"] == pytest.approx(read_log(simplified)["steps"][1]["auc"])
        assert Path(report["path"]).is_relative_to(simplified)

    def test_the_teacher_looks_once(self, simplified: Path) -> None:
        assert load_file(simplified / "teacher.safetensors")["scores"].shape == (1, 12, 3)

    def test_again_is_refused_and_resuming_changes_nothing(self, simplified: Path, classifier: Run) -> None:
        target = parameters(classifier.network()) // 3
        before = read_log(simplified)
        with pytest.raises(InputError, match="holds a simplification already; add --resume"):
            simplify(classifier, simplified, ratio=2.0, target_params=target, **QUICK)
        with pytest.raises(InputError, match=r"was started with ratio = 2\.0, not 3\.0; resume with the same"):
            simplify(classifier, simplified, ratio=3.0, target_params=target, resume=True, **QUICK)
        assert read_log(simplified) == before
        again = simplify(classifier.path, simplified, ratio=2.0, target_params=target, resume=True, **QUICK)
        assert again.pop("path") == str(simplified / "simplification.html")
        assert again == read_log(simplified) == before


class TestResume:
    @pytest.mark.parametrize("lost", ["training", "decision", "log"])
    def test_goes_the_same_way(self, lost: str, simplified: Path, classifier: Run, tmp_path: Path) -> None:
        """A copy that was stopped in its second step, at different moments."""
        out, expected = tmp_path / "out", read_log(simplified)
        shutil.copytree(simplified, out, ignore=shutil.ignore_patterns("report*", "weights.safetensors~"))
        for name in engine.PUBLISHED:
            (out / name).unlink()
        if lost == "training":
            for path in (out / "steps" / "02").iterdir():
                if path.name != "decision.json":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif lost == "decision":
            shutil.rmtree(out / "steps" / "02")
        log = {**expected, "steps": [] if lost == "log" else expected["steps"][:1], "ended": None, "accepted": None}
        (out / "simplification.json").write_text(json.dumps(log))
        # the teacher's scores are in the folder's name: a copy has its own
        for step in (out / "steps").glob("*/config.json"):
            content = json.dumps(read_sealed(step, "a run")).replace(str(simplified), str(out))
            write_sealed(step, json.loads(content))
        target = parameters(classifier.network()) // 3
        found = simplify(classifier, out, ratio=2.0, target_params=target, resume=True, **QUICK)
        assert found.pop("path") == str(out / "simplification.html")
        assert found == expected
        ours, theirs = (load_file(folder / "weights.safetensors") for folder in (out, simplified))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    def test_killed_in_training(self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {**QUICK, "settings": {"epochs": 2}, "ratio": 3.0, "guide": "uniform", "distill": False}
        settings["target_params"] = parameters(classifier.network()) // 3
        whole = simplify(classifier, tmp_path / "whole", **settings)

        class Killed(BaseException):
            pass

        def stop(trainer: Trainer, *shown: Any) -> None:
            if trainer.state.epoch == 1:
                raise Killed
            epoch(trainer, *shown)

        epoch = Trainer.epoch
        monkeypatch.setattr(Trainer, "epoch", stop)
        with pytest.raises(Killed):
            simplify(classifier, tmp_path / "killed", **settings)
        monkeypatch.undo()
        with pytest.raises(InputError, match="not a run"):
            Run.open(tmp_path / "killed")
        resumed = simplify(classifier, tmp_path / "killed", resume=True, **settings)
        assert Path(resumed.pop("path")).parent == tmp_path / "killed"
        assert resumed == {key: value for key, value in whole.items() if key != "path"}


class TestDecisions:
    def test_a_rejected_step_is_tried_again_more_carefully(
        self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripted(monkeypatch, classifier, lambda step: {1: 0.7, 2: 0.75, 3: 0.79}.get(step, 0.5))
        settings = {**QUICK, "max_auc_drop": 0.02, "guide": "uniform", "distill": False}
        log = simplify(classifier, tmp_path / "out", ratio=8.0, **settings)
        before = parameters(classifier.network())
        steps = log["steps"]
        assert [step["accepted"] for step in steps[:4]] == [False, False, True, False]
        assert [step["from"] for step in steps[:4]] == [None, None, None, "03"]
        # from step 03, 8**0.25 would lead to the network of step 02 again, which was rejected
        ratios = [8.0, 8**0.5, 8**0.25, 8**0.125]
        sources = [before, before, before, steps[2]["parameters"]]
        assert [step["aim"] for step in steps[:4]] == [
            math.floor(size / ratio) for size, ratio in zip(sources, ratios, strict=True)
        ]
        assert log["accepted"] == "03"
        assert log["ended"] == "smaller networks lose more than 0.02 of the validation AUC"
        assert Run.open(tmp_path / "out").content["parameters"] == steps[2]["parameters"]

    def test_the_same_structure_is_not_trained_twice(
        self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripted(monkeypatch, classifier, lambda step: 0.5)
        settings = {**QUICK, "max_auc_drop": 0.1, "guide": "uniform", "distill": False}
        monkeypatch.setattr(engine.Uniform, "settings", (0.5,))  # one structure, whatever the aim
        log = simplify(classifier, tmp_path / "out", ratio=4.0, **settings)
        assert len(log["steps"]) == 1
        assert log["ended"] == "smaller networks lose more than 0.1 of the validation AUC"
        assert [folder.name for folder in (tmp_path / "out" / "steps").iterdir()] == ["01"]

    def test_nothing_accepted(self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, classifier, lambda step: 0.7999)
        settings = {**QUICK, "max_auc_drop": 0.0, "guide": "uniform", "distill": False}
        log = simplify(classifier, tmp_path / "out", ratio=3.0, **settings)
        assert log["accepted"] is None
        assert len(log["steps"]) == 3  # 3, 1.73, 1.32; the next would be below 1.2
        assert log["ended"] == "smaller networks lose more than 0.0 of the validation AUC"
        assert not (tmp_path / "out" / "config.json").exists()
        assert not (tmp_path / "out" / "weights.safetensors").exists()

    def test_equal_is_good_enough(self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, classifier, lambda step: 0.8)
        size = parameters(classifier.network())
        settings = {**QUICK, "max_auc_drop": 0.0, "guide": "uniform", "distill": False, "target_params": size // 2}
        assert simplify(classifier, tmp_path / "out", **settings)["accepted"] == "01"

    def test_a_fixed_threshold_is_tried_once(
        self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripted(monkeypatch, classifier, lambda step: 0.1)
        log = simplify(classifier, tmp_path / "out", tau=0.6, **{**QUICK, "max_auc_drop": 0.1, "distill": False})
        assert [step["tau"] for step in log["steps"]] == [0.6]
        assert log["accepted"] is None

    def test_ends_when_nothing_shrinks(self, classifier: Run, tmp_path: Path) -> None:
        """At a threshold below all differences, only rounding is the same."""
        log = simplify(classifier, tmp_path / "out", tau=1e-5, block_tau=0.0, **QUICK)
        assert log["steps"] == []
        assert log["ended"].startswith("nothing shrinks: the next step would leave")
        assert list((tmp_path / "out" / "steps").iterdir()) == []

    def test_blocks_that_change_nothing_go(self, classifier: Run, tmp_path: Path) -> None:
        """After one epoch all but the first of each stage are still nearly what they began as."""
        log = simplify(classifier, tmp_path / "out", block_tau=0.9, tau=0.01, **{**QUICK, "distill": False})
        step = log["steps"][0]
        assert set(step["dropped"]) == {"backbone.layer1.1", "backbone.layer2.1"}
        assert all(0 <= change < 0.9 for change in step["dropped"].values())
        assert [len(stage["blocks"]) for stage in step["network"]["options"]["stages"]] == [1, 1]

    @pytest.mark.parametrize("guide", ["random", "l1", "fpgm", "taylor"])
    def test_rivals(self, guide: str, classifier: Run, tmp_path: Path) -> None:
        target = parameters(classifier.network()) // 4
        log = simplify(classifier, tmp_path / "out", guide=guide, target_params=target, **{**QUICK, "distill": False})
        assert log["steps"][0]["parameters"] <= target
        assert 0 < log["steps"][0]["share"] < 1
        assert Run.open(tmp_path / "out").config.distill is None

    def test_the_test_split_is_never_touched(
        self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        indices, get = Cohort.indices, Cohort.__getitem__
        unseen = set(classifier.cohort().indices("test").tolist())

        def no_test(cohort: Cohort, split: str) -> Any:
            assert split in ("train", "val")
            return indices(cohort, split)

        def no_test_study(cohort: Cohort, row: int) -> Any:
            assert int(row) not in unseen
            return get(cohort, row)

        monkeypatch.setattr(Cohort, "indices", no_test)
        monkeypatch.setattr(Cohort, "__getitem__", no_test_study)
        log = simplify(classifier, tmp_path / "out", target_params=parameters(classifier.network()) // 2, **QUICK)
        assert log["accepted"] == "01"

    def test_probes_are_training_studies_of_the_run(
        self, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        few = fit(cohort, tmp_path / "run", "classifier", model=MODEL, **SETTINGS, train_studies=6)
        seen: list[int] = []
        load = engine.load_images
        monkeypatch.setattr(engine, "load_images", lambda c, rows: seen.extend(rows) or load(c, rows))
        simplify(few, tmp_path / "out", target_params=parameters(few.network()) // 2, **QUICK)
        assert len(set(seen)) == 3
        assert set(seen) <= set(few.training_studies(cohort).tolist())

    def test_settings_reach_the_trainings(self, classifier: Run, tmp_path: Path) -> None:
        settings = {"learning_rate": 1e-3, "augmentation": {"gain": 0.3}, "distill": {"temperature": 5.0}}
        target = parameters(classifier.network()) // 2
        simplify(classifier, tmp_path / "out", target_params=target, settings=settings, **{**QUICK, "views": 2})
        config = Run.open(tmp_path / "out").config
        assert (config.learning_rate, config.batch_size, config.distill.temperature) == (1e-3, 6, 5.0)
        assert (config.augmentation.gain, config.augmentation.views, config.augmentation.gamma) == (0.3, 2, 0.15)


class TestInherited:
    def test_starts_from_the_merged_weights(self, classifier: Run, tmp_path: Path) -> None:
        settings = {**QUICK, "distill": False, "settings": {"learning_rate": 1e-12}}
        target = parameters(classifier.network()) // 2
        simplify(classifier, tmp_path / "out", start="inherited", target_params=target, **settings)
        step = tmp_path / "out" / "steps" / "01"
        start, end = load_file(step / "start.safetensors"), load_file(step / "weights.safetensors")
        trained = {name for name, _ in Run.open(step).network().named_parameters()}
        assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-9) for name in trained)
        large = load_file(classifier.path / "weights.safetensors")
        ours, theirs = start["backbone.conv1.weight"].flatten(1), large["backbone.conv1.weight"].flatten(1)
        assert (torch.cdist(ours, theirs).amin(1) == 0).all()  # kernels of the large network, as they are

    def test_any_other_network(self, unet: Run, tmp_path: Path) -> None:
        log = simplify(unet, tmp_path / "out", start="inherited", ratio=2.0, **QUICK, target_params=12_000)
        assert log["accepted"] == log["steps"][-1]["step"] == "02"
        assert log["steps"][-1]["parameters"] <= 12_000
        run = Run.open(tmp_path / "out")
        assert run.content["network"]["widths"]["body.encoder.4.3"] < 32
        assert parameters(run.network()) == log["steps"][-1]["parameters"]
        assert "val_auc_macro" in run.history[-1]

    def test_taylor_with_a_head_that_has_no_loss(self, unet: Run, tmp_path: Path) -> None:
        log = simplify(unet, tmp_path / "out", start="inherited", guide="taylor", target_params=8000, **QUICK)
        assert log["accepted"] == "01"

    def test_what_was_inherited_can_be_simplified_afresh(self, classifier: Run, tmp_path: Path) -> None:
        """The second simplification's trainings must not look for the first one's start."""
        size = parameters(classifier.network())
        settings = {**QUICK, "guide": "uniform"}
        simplify(classifier, tmp_path / "first", start="inherited", target_params=size // 2, **settings)
        log = simplify(
            tmp_path / "first", tmp_path / "second", target_params=size // 5, **{**settings, "distill": False}
        )
        assert log["accepted"] is not None
        config = Run.open(tmp_path / "second").config
        assert (config.initial_weights, config.distill) == (None, None)

    def test_guided_networks_stay_guided(self, cohort: Cohort, tmp_path: Path) -> None:
        model = {
            "backbone": "resnet18",
            "options": {"channels": [4, 4, 4, 4], "layers": [1, 1, 1, 1], "output_stride": 8},
        }
        guided = fit(cohort, tmp_path / "run", "gg-cam", model=model, **SETTINGS)
        target = parameters(guided.network()) // 2
        log = simplify(guided, tmp_path / "out", start="inherited", ratio=3.0, target_params=target, **QUICK)
        run = Run.open(tmp_path / "out")
        network = run.network()
        assert (run.config.method, network.config["backbone"]) == ("gg-cam", "narrow_resnet")
        assert network(torch.rand(1, 1, 48, 32)).cams.shape == (1, 3, 6, 4)
        assert {"val_cc", "train_loss_attention", "cam_scale"} <= run.history[-1].keys()
        assert build(log["steps"][-1]["network"]).state_dict().keys() == network.state_dict().keys()


class TestRefused:
    def refused(self, match: str, run: Run | Path, out: Path, **arguments: Any) -> None:
        there = out.exists()
        with pytest.raises(InputError, match=match) as error:
            simplify(run, out, **{**QUICK, **arguments})
        assert "\n" not in str(error.value)
        assert out.exists() == there  # nothing was written

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"tau": 0.0}, r"tau is 0\.0, expected a difference between 0 and 1"),
            ({"tau": 1.0}, r"tau is 1\.0"),
            ({"tau": math.nan}, "tau is nan"),
            ({"tau": 0.5, "guide": "l1"}, "means nothing to the guide 'l1'"),
            ({"guide": "l2"}, "no guide 'l2': did you mean 'l1'"),
            ({"start": "inherit"}, "no start 'inherit': did you mean 'inherited'"),
            ({"images": 1}, "images is 1, expected at least 2"),
            ({"images": 13}, "has 12 images .* that are not blank, expected 13; ask for fewer"),
            ({"views": 0}, "views is 0, expected at least 1"),
            ({"ratio": 1.2}, r"ratio is 1\.2, expected more than 1\.2; try 8"),
            ({"ratio": math.nan}, "ratio is nan"),
            ({"ratio": math.inf}, "ratio is inf"),
            ({"max_auc_drop": -0.1}, r"max_auc_drop is -0\.1, expected 0 to 1"),
            ({"max_auc_drop": math.nan}, "max_auc_drop is nan"),
            ({"block_tau": 2.0}, r"block_tau is 2\.0"),
            ({"target_params": 0}, "target_params is 0, expected at least 1"),
            ({"target_params": 10**6}, "target_params is 1,000,000, but the run has .* already; give fewer"),
            ({"difference": "msim"}, "no difference 'msim': did you mean 'mssim'"),
            ({"settings": {"epoch": 3}}, "no training setting 'epoch'"),
            ({"settings": {"epochs": 0}}, "epochs = 0"),
            ({"settings": {"distill": {"weight": 7}}}, r"distill\.weight = 7"),
            ({"settings": {"model": {"width": 3}}}, "'model' is what a simplification decides itself"),
            ({"settings": {"method": "gg-cam"}}, "'method' is what a simplification decides itself"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], match: str, classifier: Run, tmp_path: Path) -> None:
        self.refused(match, classifier, tmp_path / "out", **arguments)

    def test_other_networks_have_no_fresh_start(self, unet: Run, tmp_path: Path) -> None:
        self.refused("no plain ResNet, .* use start='inherited'", unet, tmp_path / "out")

    def test_folders(self, classifier: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        self.refused("is not empty and holds no simplification; choose another", classifier, tmp_path)
        self.refused("is not empty and holds no simplification", classifier, classifier.path)
        assert (tmp_path / "file").read_text() == "mine"
        self.refused("not a run", tmp_path, tmp_path / "out")

    def test_a_folder_that_was_killed_before_its_first_file_is_free(self, tmp_path: Path) -> None:
        for name in (".lock", ".simplification.json.4e55ba7b22a9.partial"):
            (tmp_path / name).touch()
        check_folder(tmp_path, {}, resume=False)
        check_folder(tmp_path, {}, resume=True)

    def test_a_folder_that_was_refused_is_not_taken(self, classifier: Run, tmp_path: Path) -> None:
        self.refused("ask for fewer", classifier, tmp_path / "out", images=13)
        target = parameters(classifier.network()) // 2
        assert simplify(classifier, tmp_path / "out", target_params=target, **QUICK)["accepted"] == "01"

    def test_runs_without_an_auc(self, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {**SETTINGS, "model": {"width": 2}}
        blind = fit(cohort, tmp_path / "blind", objective={"scheme": "saliency-only"}, **settings)
        self.refused("has no validation AUC", blind, tmp_path / "out", start="inherited")

        class Killed(BaseException):
            pass

        def stop(checkpoint: Checkpoint) -> None:
            raise Killed

        def train(epochs: int) -> None:
            with pytest.raises(Killed):
                fit(cohort, tmp_path / "killed", **{**settings, "epochs": epochs})

        monkeypatch.setattr(Checkpoint, "publish", stop)
        train(epochs=1)
        monkeypatch.undo()
        self.refused("has no validation AUC", Run.open(tmp_path / "killed"), tmp_path / "out", start="inherited")

    def test_nan_weights(self, classifier: Run, tmp_path: Path) -> None:
        shutil.copytree(classifier.path, tmp_path / "run")
        weights = load_file(tmp_path / "run" / "weights.safetensors")
        weights["backbone.layer1.0.conv1.weight"][0, 0, 0, 0] = math.nan
        replace_weights(tmp_path / "run", weights)
        self.refused("'backbone.layer1.0.conv1.weight' has NaN", tmp_path / "run", tmp_path / "out")

    def test_constant_images(self, classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cohort = classifier.cohort()
        blank = np.full_like(np.asarray(cohort.images), 7)
        monkeypatch.setattr(Cohort, "images", blank)
        self.refused("has 0 images .* that are not blank, expected 3", classifier, tmp_path / "out")
