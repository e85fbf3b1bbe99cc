from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from radgaze.cohort import Cohort
from radgaze.errors import InputError, RadgazeError
from radgaze.files import read_sealed, write_sealed
from radgaze.inference import evaluate
from radgaze.training import Run, fit
from radgaze.training.data import Batches, training_studies
from radgaze.training.runs import Checkpoint
from radgaze.training.trainer import Learner, Trainer
from tests.cohorts import blob_cohort

SMALL: dict[str, Any] = {
    "model": {"width": 2},
    "sigma": 6.0,
    "batch_size": 5,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "progress": False,
}


def metrics(run: Path) -> list[dict[str, str]]:
    """Every figure of every epoch but its wall time, as written: equal strings mean equal bits."""
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_learns_where_and_what(cohort: Cohort, tmp_path: Path) -> None:
    settings = {**SMALL, "model": {"width": 4}, "learning_rate": 1e-2, "schedule": "one-cycle"}
    run = fit(cohort, tmp_path / "run", epochs=25, **settings)
    first, best = run.history[0], run.history[run.state.best_epoch - 1]
    assert best["val_loss"] < first["val_loss"]
    assert best["val_auc_macro"] > 0.9
    assert best["val_cc"] > 0.5
    assert best["val_loss"] == min(row["val_loss"] for row in run.history)


def test_run_folder_explains_itself(cohort: Cohort, tmp_path: Path) -> None:
    run = fit(cohort, tmp_path / "run", epochs=2, seed=5, **SMALL)
    config = json.loads((run.path / "config.json").read_text())
    assert config["run"]["seed"] == 5
    assert config["run"]["model"] == {"width": 2}
    assert config["network"]["num_classes"] == 3
    assert config["classes"] == ["class0", "class1", "class2"]
    assert config["attention"].startswith("reader's gaze (fixations, preset mt-unet, sigma 6 px)")
    assert config["cohort"]["checksums"] == cohort.meta["checksums"]
    assert (
        json.loads((run.path / "environment.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]
    )
    assert len(metrics(run.path)) == 2
    assert any((run.path / "tensorboard").iterdir())
    network = Run.open(run.path).network()
    assert not network.training
    assert network(torch.rand(1, 1, 48, 32)).logits.shape == (1, 3)


def test_same_seed_same_bits_other_seed_other_bits(cohort: Cohort, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(cohort, tmp_path / name, epochs=2, seed=seed, **SMALL)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """kill -9 wherever the training happens to be, several times; the rest comes out the same."""
    cohort = blob_cohort(tmp_path)
    settings = {**SMALL, "epochs": 12, "patience": 1, "progress": False}
    fit(cohort, tmp_path / "whole", **settings)
    call = (
        "import sys, json; from radgaze.training import fit; "
        "fit(sys.argv[1], sys.argv[2], resume=True, **json.loads(sys.argv[3]))"
    )
    command = [sys.executable, "-c", call, str(cohort.path), str(tmp_path / "killed"), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for kill_after in (2, 5):
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        state = tmp_path / "killed" / "state.json"
        while process.poll() is None and not (state.exists() and json.loads(state.read_text())["epoch"] >= kill_after):
            time.sleep(0.005)
        assert process.poll() is None, "the training ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "weights.safetensors").exists()
    fit(cohort, tmp_path / "killed", resume=True, **settings)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert same_weights(tmp_path / "killed", tmp_path / "whole")


def test_rate_drop_restores_the_best_state(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation values are scripted: epoch 2 is the best, after epoch 4 the rate drops and epoch 2's state is back."""
    script = iter([3.0, 2.0, 2.5, 2.6, 2.4])
    validate = Trainer.validate
    monkeypatch.setattr(Trainer, "validate", lambda self: {**validate(self), "val_loss": next(script)})
    settings = {**SMALL, "patience": 1}
    run = fit(cohort, tmp_path / "run", epochs=4, **settings)
    state = json.loads((run.path / "state.json").read_text())
    assert [row["event"] for row in run.history] == ["", "", "", "rate dropped, best restored"]
    assert (state["last"], state["best"]) == ("epoch-0004", "epoch-0002")
    last, best = (load_file(run.path / "state" / f"{state[which]}.safetensors") for which in ("last", "best"))
    assert any(key.startswith("optimizer.") for key in last)
    assert all(torch.equal(last[key], best[key]) for key in best)
    assert fit(cohort, run.path, epochs=5, resume=True, **settings).history[4]["lr"] == pytest.approx(3e-4)


def test_resume_of_a_finished_run_changes_nothing(cohort: Cohort, tmp_path: Path) -> None:
    fit(cohort, tmp_path / "run", epochs=2, **SMALL)
    before = metrics(tmp_path / "run")
    fit(cohort, tmp_path / "run", epochs=2, resume=True, **SMALL)
    assert metrics(tmp_path / "run") == before
    longer = fit(cohort, tmp_path / "run", epochs=3, resume=True, **SMALL)
    assert metrics(longer.path)[:2] == before
    assert longer.state.epoch == 3


def test_resume_of_a_run_that_is_older_than_some_settings(cohort: Cohort, tmp_path: Path) -> None:
    fit(cohort, tmp_path / "run", epochs=1, **SMALL)
    content = read_sealed(tmp_path / "run" / "config.json", "a run")
    del content["run"]["distill"], content["run"]["augmentation"]["views"]
    write_sealed(tmp_path / "run" / "config.json", content)
    assert fit(cohort, tmp_path / "run", epochs=2, resume=True, **SMALL).state.epoch == 2
    with pytest.raises(InputError, match="started with augmentation"):
        fit(cohort, tmp_path / "run", epochs=2, resume=True, augmentation={"views": 3}, **SMALL)


@pytest.mark.parametrize(
    ("scheme", "absent"), [("saliency-only", "val_auc_macro"), ("class-only", "val_cc"), ("equal", "sigma_class")]
)
def test_schemes(scheme: str, absent: str, cohort: Cohort, tmp_path: Path) -> None:
    run = fit(cohort, tmp_path / "run", epochs=1, objective={"scheme": scheme}, **SMALL)
    assert absent not in run.history[0]
    if scheme == "saliency-only":
        assert run.network().class_head is None


def test_bf16_learns_too(cohort: Cohort, tmp_path: Path) -> None:
    run = fit(cohort, tmp_path / "run", epochs=2, **{**SMALL, "precision": "bf16"})
    assert math.isfinite(run.history[-1]["val_loss"])


def test_time_budget(cohort: Cohort, tmp_path: Path) -> None:
    run = fit(cohort, tmp_path / "run", epochs=100, time_budget=1e-3, **SMALL)
    assert (run.state.finished, run.state.epoch) == ("time budget", 1)


def test_cohort_without_gaze_trains_on_labels_alone(tmp_path: Path) -> None:
    cohort = blob_cohort(tmp_path, gaze=False)
    with pytest.raises(InputError, match="no attention target 'gaze'; it has mask:blob, boxes"):
        fit(cohort, tmp_path / "run", **SMALL)
    run = fit(cohort, tmp_path / "run", epochs=1, attention="mask:blob", **SMALL)
    assert run.content["attention"] == "blob mask (anatomy, not gaze)"


def test_exploding_loss_names_the_batch_and_keeps_the_last_state(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(RadgazeError, match=r"batch of studies s\d{3}"):
        fit(cohort, tmp_path / "run", epochs=5, **{**SMALL, "learning_rate": 1e30})


def test_refusals(cohort: Cohort, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(cohort, run, epochs=1, **SMALL)
    with pytest.raises(InputError, match="add --resume"):
        fit(cohort, run, epochs=1, **SMALL)
    with pytest.raises(InputError, match=r"started with seed = 0, not 1"):
        fit(cohort, run, epochs=1, resume=True, seed=1, **SMALL)
    with pytest.raises(InputError, match="'batch_size'"):
        fit(cohort, tmp_path / "other", batchsize=3)
    with pytest.raises(InputError, match="learning_rate = -1"):
        fit(cohort, tmp_path / "other", learning_rate=-1)
    with pytest.raises(InputError, match="'mt-unet'"):
        fit(cohort, tmp_path / "other", method="mtunet")
    with pytest.raises(InputError, match="needs class scores"):
        fit(cohort, tmp_path / "other", objective={"scheme": "saliency-only"}, monitor="val_auc_macro")
    assert not (tmp_path / "other" / "config.json").exists()


def test_class_absent_from_a_split(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cohort.indices("val")
    few = whole[cohort.targets[whole] != 2]
    monkeypatch.setattr(Cohort, "indices", lambda self, split: few if split == "val" else whole)
    with pytest.raises(InputError, match="'class2' is absent from the 'val' split"):
        fit(cohort, tmp_path / "run", **SMALL)


def test_accumulation_steps_once_for_several_batches(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a, **k: steps.append(1) or step(self, *a, **k))
    fit(cohort, tmp_path / "run", epochs=1, accumulate=2, clip=1.0, **SMALL)
    batches = math.ceil(len(cohort.indices("train")) / SMALL["batch_size"])
    assert len(steps) == math.ceil(batches / 2)


def test_part_of_the_training_split(cohort: Cohort, tmp_path: Path) -> None:
    run = fit(cohort, tmp_path / "six", epochs=1, train_studies=6, seed=1, **SMALL)
    rows = run.training_studies(cohort)
    assert len(rows) == run.content["train_studies"] == 6
    assert set(rows) < set(cohort.indices("train"))
    assert np.bincount(cohort.targets[rows]).tolist() == [2, 2, 2]
    assert evaluate(run, resamples=50, progress=False)["run"]["train_studies"] == 6
    other = Run.open(run.path).config.model_copy(update={"seed": 2})
    assert set(training_studies(cohort, other)) != set(rows)  # another seed, other patients
    fixed = other.model_copy(update={"subset_seed": 1})
    assert training_studies(cohort, fixed).tolist() == rows.tolist()
    elsewhere = blob_cohort(tmp_path / "other", studies=30)
    assert run.training_studies(elsewhere).tolist() == elsewhere.indices("train").tolist()


def test_only_the_drawn_studies_are_seen(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    train_epoch = Trainer.train_epoch

    def spy(trainer: Trainer, bar: Any) -> dict[str, float]:
        seen.extend(row for batch in trainer.train_loader for row in batch.studies.tolist())
        return train_epoch(trainer, bar)

    monkeypatch.setattr(Trainer, "train_epoch", spy)
    run = fit(cohort, tmp_path / "run", epochs=1, train_studies=6, **SMALL)
    assert sorted(seen) == run.training_studies(cohort).tolist()


def test_subsets_that_cannot_be_trained_on(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train_studies is 99, but the training split of .* has 12"):
        fit(cohort, tmp_path / "run", train_studies=99, **SMALL)
    with pytest.raises(InputError, match=r"absent .* when 2 of its studies are drawn"):
        fit(cohort, tmp_path / "run", train_studies=2, **SMALL)
    assert not (tmp_path / "run").exists() or not any(path.suffix == ".json" for path in (tmp_path / "run").iterdir())


# ---- losses, gradients and states that are not finite


def spoil(monkeypatch: pytest.MonkeyPatch, how: Callable[[Tensor, torch.nn.Parameter], Tensor], step: int) -> None:
    """Change the loss of one training step, counted from 1."""
    forward, steps = Learner.forward, iter(range(1, 10**6))

    def spoilt(self: Learner, batch: Any) -> Any:
        loss, terms, output = forward(self, batch)
        if self.training and next(steps) == step:
            loss = how(loss, next(self.parameters()))
        return loss, terms, output

    monkeypatch.setattr(Learner, "forward", spoilt)


SPOILT = {
    "loss, nan": ("loss", lambda loss, _: loss * math.nan),
    "loss, infinite, its gradient finite": ("loss", lambda loss, _: loss + math.inf),
    "gradient, nan, its loss finite": ("gradient", lambda loss, weight: loss + (0 * weight.sum()).sqrt()),
    "gradient, too large for float32": (
        "gradient",
        lambda loss, weight: loss + 1e38 * (weight - weight.detach()).sum(),
    ),
}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_step_that_would_spoil_the_weights_is_not_made(
    kind: str, clip: float | None, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second step of the second epoch: the first epoch's state stays, and goes on as if undisturbed."""
    what, how = SPOILT[kind]
    settings = {**SMALL, "epochs": 3, "clip": clip}
    batches = math.ceil(len(cohort.indices("train")) / SMALL["batch_size"])
    with monkeypatch.context() as patch:
        spoil(patch, how, step=batches + 2)
        with pytest.raises(RadgazeError, match=rf"The {what} stopped being finite in epoch 2 on the batch") as error:
            fit(cohort, tmp_path / "spoilt", **settings)
    order = Batches(len(cohort.indices("train")), SMALL["batch_size"], shuffle=True)
    order.epoch = 1
    rows = cohort.indices("train")[[position for _, position in list(order)[1]]]
    for row, study in enumerate(cohort.studies["study_id"]):
        assert (study in str(error.value)) == (row in rows)
    assert json.loads((tmp_path / "spoilt" / "state.json").read_text())["last"] == "epoch-0001"
    fit(cohort, tmp_path / "whole", **settings)
    fit(cohort, tmp_path / "spoilt", resume=True, **settings)
    assert metrics(tmp_path / "spoilt") == metrics(tmp_path / "whole")
    assert same_weights(tmp_path / "spoilt", tmp_path / "whole")


def test_of_added_batches_the_one_with_the_loss_is_named(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda loss, _: loss * math.nan, step=1)
    with pytest.raises(RadgazeError, match="The loss stopped") as error:
        fit(cohort, tmp_path / "run", epochs=1, accumulate=2, **SMALL)
    assert str(error.value).partition("studies ")[2].partition(";")[0].count("s0") == 4  # one batch, not two


def test_a_state_that_is_not_finite_is_not_kept(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch statistics are no parameters: no gradient tells of them, and a validation may still look fine."""
    validate = Trainer.validate

    def spoilt(self: Trainer) -> dict[str, float]:
        row = validate(self)
        if self.state.epoch == 1:
            next(self.learner.buffers()).fill_(math.inf)
        return row

    monkeypatch.setattr(Trainer, "validate", spoilt)
    with pytest.raises(RadgazeError, match=r"state stopped being finite in epoch 2 \(module.*epoch 1 is kept"):
        fit(cohort, tmp_path / "run", epochs=3, **SMALL)
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["epoch-0001.safetensors"]
    assert len(metrics(tmp_path / "run")) == 1


ONE_OF_TWO = """
import math, os, sys
from radgaze import cli
from radgaze.training.trainer import Learner

forward, steps = Learner.forward, iter(range(100))

def spoilt(self, batch):
    loss, terms, output = forward(self, batch)
    second = os.environ.get("LOCAL_RANK") == "1"
    return loss + (math.inf if self.training and second and next(steps) == 1 else 0), terms, output

Learner.forward = spoilt
cli.main()
"""


def test_when_one_process_has_a_bad_loss_all_end(cohort: Cohort, tmp_path: Path) -> None:
    """The gradient is finite, so only the process with the loss sees it; alone, it would leave the other waiting."""
    script = tmp_path / "spoilt.py"
    script.write_text(ONE_OF_TWO)
    command = [sys.executable, str(script), "train", "mt-unet", str(cohort.path), "--out", str(tmp_path / "run")]
    options = ["--devices", "2", "--set", "accelerator=cpu", "--precision", "fp32", "--width", "2", "--sigma", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options, "--epochs", "2", "--batch-size", "3", "--quiet"],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "The loss stopped being finite in epoch 1 on the batch of studies s0" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "state.json").exists()


# ---- what stands beside the state


def test_a_kill_right_after_the_state_costs_no_row(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume does no epoch again that the state counts, so the table and the board have it by then."""

    class Killed(BaseException):
        pass

    def killed(self: Checkpoint, *arguments: Any) -> None:
        save(self, *arguments)
        raise Killed

    save = Checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.close", lambda self: None)
        with pytest.raises(Killed):
            fit(cohort, tmp_path / "run", epochs=1, **SMALL)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"val/loss" in events.read_bytes()
    fit(cohort, tmp_path / "run", epochs=1, resume=True, **SMALL)
    fit(cohort, tmp_path / "whole", epochs=1, **SMALL)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
