"""The command line as a user meets it: exit codes, one-sentence errors, JSON for machines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import radgaze
from radgaze import cli
from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.training import fit
from tests.cohorts import write_tables


@pytest.fixture
def radgaze_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["radgaze", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return call


def test_the_whole_job(radgaze_command: Any, tmp_path: Path) -> None:
    tables = write_tables(tmp_path / "tables", studies=36)
    cohort, run = tmp_path / "cohort", tmp_path / "run"
    code, out, _ = radgaze_command(
        "import", "tables", tables / "images.csv", "--gaze", tables / "gaze.csv", "--boxes", tables / "boxes.csv",
        "--out", cohort, "--size", "48x32", "--workers", 1, "--quiet", "--json",
        "--structure", "class1=blob", "--structure", "class2=blob",
    )  # fmt: skip
    imported = json.loads(out)
    assert code == 0
    assert imported["studies"] == 36
    assert imported["gaze points"] == 36 * 12
    assert imported["masks"] == ["blob"]
    assert imported["class structures"] == {"class1": ["blob"], "class2": ["blob"]}
    assert sum(row["studies"] for row in imported["splits"]) == 36

    code, out, _ = radgaze_command("info", cohort, "--check")
    assert code == 0
    assert "36 studies" in out

    code, out, err = radgaze_command(
        "train", "mt-unet", cohort, "--out", run, "--width", 2, "--epochs", 1, "--sigma", 6, "--batch-size", 8,
        "--set", "clip=1.0", "--set", "augmentation.rotate=2", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["epochs"] == 1
    settings = json.loads((run / "config.json").read_text())["run"]
    assert (settings["clip"], settings["augmentation"]["rotate"], settings["model"]) == (1.0, 2, {"width": 2})

    code, out, err = radgaze_command("evaluate", run, "--resamples", 20, "--quiet", "--json")
    assert code == 0, err
    assert Path(json.loads(out)["path"]).is_file()

    again = tmp_path / "again"
    code, _, err = radgaze_command("train", "mt-unet", cohort, "--config", run / "config.json", "--out", again, "-q")
    assert code == 0, err
    first, second = ((folder / "metrics.csv").read_text().split(",")[:-1] for folder in (run, again))
    assert first[:-1] == second[:-1]  # all but the seconds

    code, _, err = radgaze_command("train", "mt-unet", cohort, "--out", run)
    assert code == 2
    assert "--resume" in err


def test_gg_cam(radgaze_command: Any, large_cohort: Cohort, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, err = radgaze_command(
        "train", "gg-cam", large_cohort.path, "--out", run, "--recipe", "paper-efficientnetv2-s", "--backbone",
        "resnet10t", "--supervise", "predicted-class", "--loss", "1-cc", "--epochs", 1, "--sigma", 6, "--quiet",
    )  # fmt: skip
    assert code == 0, err
    settings = json.loads((run / "config.json").read_text())["run"]
    assert settings["model"] == {"backbone": "resnet10t"}
    assert settings["objective"]["log_sigma_attention"] == -16
    assert (settings["objective"]["supervise"], settings["objective"]["loss"]) == ("predicted-class", "1-cc")
    code, out, err = radgaze_command("evaluate", run, "--resamples", 20, "--quiet")
    assert code == 0, err
    assert "pointing game" in out
    assert "uniform" in out
    assert "Grad-CAM" in out
    code, out, err = radgaze_command("evaluate", run, "--resamples", 20, "--no-grad-cam", "--json")
    assert code == 0, err
    assert "grad-cam" not in json.loads(out)["localisation"]

    code, _, err = radgaze_command(
        "train", "classifier", large_cohort.path, "--out", tmp_path / "other", "--backbone", "resnet10"
    )
    assert code == 2
    assert "'resnet10t'" in err.replace("\n", " ")


def test_predict(radgaze_command: Any, cohort: Cohort, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    fit(cohort, run, "mt-unet", model={"width": 2}, epochs=1, batch_size=8, progress=False)
    images = cohort.path.parent / "tables"
    code, said, err = radgaze_command("predict", run, images / "00[0-3].png", "--out", out, "--maps", "--json")
    assert code == 0, err
    summary = json.loads(said)
    assert (summary["predicted"], summary["failed"], summary["calibrated"]) == (4, 0, False)
    assert err.count("not calibrated") == 1  # too few patients to calibrate on, said once
    assert "fewer than two patients" in err
    assert len(list((out / "overlays").glob("*.png"))) == len(list((out / "maps").iterdir())) == 4

    code, _, err = radgaze_command("predict", run, images / "000.png", "--out", out, "-q")
    assert code == 2
    assert "--resume" in err
    more = (images / "000.png", images / "004.png", tmp_path / "gone.png")
    code, said, err = radgaze_command("predict", run, *more, "--out", out, "--maps", "--resume")
    assert code == 3
    assert "does not exist" in err
    assert "predictions.csv" in said
    code, _, err = radgaze_command("predict", run, tmp_path / "gone.png", "--out", tmp_path / "none", "--no-overlays")
    assert code == 2
    assert "gone.png" in err
    code, _, err = radgaze_command("predict", run, images / "000.png", "--out", tmp_path / "x", "--dicom", "seg")
    assert code == 2
    assert "sc,sr,pm" in err
    pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    code, _, err = radgaze_command("predict", run, images / "000.png", "--out", tmp_path / "x", "--dicom", "sc,sr")
    assert code == 3  # predicted, but no DICOM file to make a DICOM object of
    assert err.count("no DICOM file") == 2


@pytest.mark.parametrize("how", ["raised", "returned"])
def test_stopped_by_hand_says_how_to_go_on(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    def call() -> int:
        if how == "raised":
            raise KeyboardInterrupt
        return 130  # what newer typers make of it

    assert cli.guarded(call) == 130
    assert "--resume" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["info", "nowhere"], "nowhere"),
        (["evaluate", "nowhere"], "not a run"),
        (["import", "tables", "nowhere.csv", "--out", "x", "--size", "640"], "HEIGHTxWIDTH"),
        (["import", "tables", "nowhere.csv", "--out", "x"], "nowhere.csv"),
        (["import", "tables", "nowhere.csv", "--out", "x", "--structure", "lungs"], "CLASS=MASK"),
        (["train", "mt-unet", "nowhere", "--out", "x", "--set", "clip"], "KEY=VALUE"),
        (["import", "reflacx", "nowhere", "--images", ".", "--out", "x", "--phases", "one"], "1,2,3"),
        (["compare", "nowhere", "--methods", "mt-unet", "--out", "x"], "nowhere"),
        (["compare", "nowhere", "--out", "x", "--seeds", "three"], "--seeds 'three'"),
        (["compare", "nowhere", "--out", "x", "--train-studies", "half"], "--train-studies 'half'"),
        (["compare", "nowhere", "--out", "x", "--set", "mt-unet:clip"], "KEY=VALUE"),
        (["trian"], "trian"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, radgaze_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = radgaze_command(*arguments)
    assert code == 2
    assert sentence in err.replace("\n", " ")
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_shortcut_and_part_of_the_training_split(radgaze_command: Any, cohort: Cohort, tmp_path: Path) -> None:
    code, out, err = radgaze_command(
        "shortcut", cohort.path, "--out", tmp_path / "planted", "--rate", 1, "--classes", "class0,class2", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["studies"] == len(cohort)
    code, out, err = radgaze_command(
        "train", "mt-unet", tmp_path / "planted", "--out", tmp_path / "run", "--train-studies", 6, "--scheme",
        "class-only", "--width", 2, "--epochs", 1, "--quiet",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train_studies"] == 6
    code, out, err = radgaze_command("evaluate", tmp_path / "run", "--resamples", 20, "--quiet", "--json")
    assert code == 0, err
    assert any("shortcut is planted" in note for note in json.loads(out)["notes"])


@pytest.fixture(scope="module")
def narrow_run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier on a narrow ResNet, an epoch old."""
    stages = [{"width": 8, "blocks": [[6, 6], [6, 6]]}, {"width": 12, "blocks": [[8, 8]]}]
    model = {"backbone": "narrow_resnet", "options": {"stem": 6, "stages": stages, "output_stride": 8}}
    settings: dict[str, Any] = {"epochs": 1, "precision": "fp32", "progress": False, "model": model}
    return fit(cohort, tmp_path_factory.mktemp("narrow") / "run", "classifier", **settings).path


def test_simplify(radgaze_command: Any, narrow_run: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    arguments: list[object] = ["simplify", narrow_run, "--out", small, "--max-auc-drop", 1, "--target-params", 2000]
    arguments += ["--images", 3, "--distill", "--views", 1, "--epochs", 1, "--set", "batch_size=6", "--quiet"]
    code, out, err = radgaze_command(*arguments)
    assert code == 0, err
    lines = out.splitlines()
    (first,) = [line for line in lines if "01" in line and "accepted" in line]
    log = json.loads((small / "simplification.json").read_text())
    step = log["steps"][0]
    assert f"{step['parameters']:,}" in first
    assert f"{step['tau']:g}" in first
    assert f"{step['auc']:.4f}" in first
    assert any(f"{log['base']['parameters']:,}" in line and "the run" in line for line in lines)
    assert "threshold" in out
    assert "Ended: reached 2,000 parameters." in out
    assert "holds step 01. Next: radgaze evaluate" in " ".join(out.split())
    config = json.loads((small / "config.json").read_text())
    assert config["run"]["batch_size"] == 6
    assert config["run"]["distill"]["teacher"] == str(narrow_run)

    code, out, err = radgaze_command(*arguments, "--resume", "--json")
    assert code == 0, err
    assert json.loads(out) == {**log, "path": str(small / "simplification.html")}
    code, out, err = radgaze_command("evaluate", small, "--split", "val", "--resamples", 20, "--quiet", "--json")
    assert code == 0, err
    assert json.loads(out)["classification"]["auc_macro"]["value"] == pytest.approx(step["auc"])
    code, _, err = radgaze_command(*arguments)
    assert code == 2
    assert "--resume" in err


def test_simplify_accepts_nothing(
    radgaze_command: Any, narrow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code says so, for people and machines alike."""
    monkeypatch.setattr(
        "radgaze.simplification.engine.validation_auc", lambda run: 0.9 if run.path == narrow_run else 0.6
    )
    arguments: list[object] = ["simplify", narrow_run, "--out", tmp_path / "out", "--guide", "l1"]
    arguments += ["--ratio", 1.3, "--images", 3, "--quiet"]
    code, out, _ = radgaze_command(*arguments)
    assert code == 1
    assert "share" in out
    assert "rejected" in out
    assert "No smaller network was accepted: allow a larger --max-auc-drop" in " ".join(out.split())
    code, out, _ = radgaze_command(*arguments, "--resume", "--json")
    assert code == 1
    assert json.loads(out)["accepted"] is None
    assert json.loads(out)["arguments"]["distill"] is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tau", "1.5"], "tau is 1.5"),
        (["--guide", "taylr"], "'taylor'"),
        (["--start", "warm"], "fresh"),
        (["--images", "1"], "images is 1, expected at least 2"),
        (["--images", "3", "--set", "epoch=3"], "'epochs'"),
    ],
)
def test_simplify_refuses(
    options: list[str], words: str, radgaze_command: Any, narrow_run: Path, tmp_path: Path
) -> None:
    code, out, err = radgaze_command("simplify", narrow_run, "--out", tmp_path / "out", *options)
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


def test_redundancy(radgaze_command: Any, narrow_run: Path, tmp_path: Path) -> None:
    arguments: list[object] = ["redundancy", narrow_run, "--images", 3, "--out", tmp_path]
    code, out, err = radgaze_command(*arguments, "--quiet")
    assert code == 0, err
    assert err == ""
    written = json.loads((tmp_path / "redundancy.json").read_text())
    rows = [re.findall(r"[^\s│┃]+", line) for line in out.splitlines() if "│" in line]
    told = {
        name: [str(found["kernels"]), str(len(found["dead"])), str(found["distinct"]), f"{found['krm']:.3f}"]
        for name, found in written["layers"].items()
    }
    network = written["network"]
    told["network"] = [str(network[key]) for key in ("kernels", "dead", "distinct")] + [f"{network['krm']:.3f}"]
    assert rows == [[name, *numbers] for name, numbers in told.items()]
    words = " ".join(out.split())
    assert written["title"] in words
    assert "Distinct at τ = 0.5, on 3 probe images" in words
    assert f"Report: {tmp_path / 'redundancy.html'}" in out
    assert (tmp_path / "redundancy.html").is_file()


def test_redundancy_for_machines(radgaze_command: Any, narrow_run: Path, tmp_path: Path) -> None:
    """Standard output is JSON and nothing else, with a progress bar too."""
    code, out, err = radgaze_command(
        "redundancy", narrow_run, "--images", 2, "--layers", "*layer1*conv1, backbone.conv1", "--after", "conv",
        "--difference", "rmse", "--tau", 0.2, "--seed", 4, "--out", tmp_path, "--json",
    )  # fmt: skip
    assert code == 0, err
    written = json.loads((tmp_path / "redundancy.json").read_text())
    assert json.loads(out) == {**written, "path": str(tmp_path / "redundancy.html")}
    assert "looking at kernels" in err
    assert list(written["layers"]) == ["backbone.conv1", "backbone.layer1.0.conv1", "backbone.layer1.1.conv1"]
    assert written["settings"] == {
        "cohort": None,
        "images": 2,
        "layers": ["*layer1*conv1", "backbone.conv1"],
        "after": "conv",
        "difference": "rmse",
        "tau": 0.2,
        "seed": 4,
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tau", "1.5"], "tau is 1.5, expected a difference between 0 and 1"),
        (["--images", "1"], "The number of probe images is 1, expected at least 2"),
        (["--images", "99"], "expected 99; ask for fewer"),
        (["--layers", "*layer9*"], "No convolution is named '*layer9*'"),
        (["--layers", ","], "layers is empty"),
        (["--after", "nrm"], "after is 'nrm': did you mean 'norm'?"),
        (["--difference", "msim"], "'mssim'"),
        (["--cohort", "nowhere"], "nowhere"),
    ],
)
def test_redundancy_refuses(
    options: list[str], words: str, radgaze_command: Any, narrow_run: Path, tmp_path: Path
) -> None:
    code, out, err = radgaze_command("redundancy", narrow_run, "--images", 3, "--out", tmp_path / "out", *options)
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err
    assert (out, len(err.splitlines())) == ("", 1)
    assert not (tmp_path / "out").exists()


def test_what_redundancy_left_out_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    layer = {"kernels": 4, "dead": [2], "distinct": 1, "krm": 0.75}
    network = {"kernels": 4, "dead": 1, "distinct": 1, "krm": 0.75}
    report = {"title": "t", "tau": 0.5, "images": 3, "path": "p", "layers": {"conv": layer}, "network": network}
    cli.print_redundancy({**report, "left_out": {"se.fc1": "its output has a single pixel"}})
    assert "Not measured: se.fc1, because its output has a single pixel." in capsys.readouterr().out


def test_every_command_has_help_with_an_example(radgaze_command: Any) -> None:
    for command in (
        "phantom",
        "info",
        "split",
        "shortcut",
        "train",
        "evaluate",
        "compare",
        "redundancy",
        "simplify",
        "demo",
    ):
        code, out, _ = radgaze_command(command, "--help")
        assert code == 0
        assert f"radgaze {command}" in out
    for source in ("egd-cxr", "reflacx", "tables"):
        code, out, _ = radgaze_command("import", source, "--help")
        assert code == 0
        assert f"radgaze import {source}" in out


def test_version(radgaze_command: Any) -> None:
    assert radgaze_command("--version")[1].strip() == radgaze.__version__


def test_compare_passes_on_what_it_was_told(
    radgaze_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def compare(cohort: Path, out: Path, methods: list[str], **options: Any) -> dict[str, Any]:
        told.update(options, methods=methods)
        return {"failed": []}

    monkeypatch.setattr("radgaze.comparison.compare", compare)
    (tmp_path / "config.json").write_text(json.dumps({"run": {"method": "gg-cam", "seed": 3, "epochs": 9, "clip": 2}}))
    code, _, err = radgaze_command(
        "compare", "cohort", "--out", "x", "--methods", "gg-cam, mt-unet", "--backbones", "resnet50",
        "--seeds", "3,4,7", "--train-studies", "378,all", "--config", tmp_path / "config.json", "--epochs", 5,
        "--attention", "mask:lungs",
        "--set", "mt-unet:model.width=2", "--set", "mt-unet:batch_size=8", "--set", "objective.half=false",
        "--runs", "a,b", "--runs", "c", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert told["methods"] == ["gg-cam", "mt-unet"]
    assert (told["seeds"], told["train_studies"], told["runs"]) == ((3, 4, 7), [378, None], ["a", "b", "c"])
    assert told["settings"] == {"epochs": 5, "clip": 2, "attention": "mask:lungs", "objective": {"half": False}}
    assert told["settings_of"] == {"mt-unet": {"model": {"width": 2}, "batch_size": 8}}
    assert cli.parse_seeds("5") == 5


def test_settings_below_a_value() -> None:
    settings: dict[str, Any] = {"clip": 1}
    with pytest.raises(InputError, match="not a group"):
        cli.place(settings, "clip.norm", 2)
