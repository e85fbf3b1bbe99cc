"""Predicting into a folder: what is written, what fails alone, and what a kill leaves."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import radgaze
from radgaze.errors import InputError
from radgaze.files import folder_lock
from radgaze.inference import Failure, Prediction
from radgaze.models import Output
from tests.inference.predictors import CLASSES, blob, formula_predictor, radiograph


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images in two folders, pairs under one name."""
    for index in range(10):
        path = tmp_path / "images" / f"ward{index % 2}" / f"{index // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blob(60, 40 + index, seed=index)).save(path)
    return tmp_path / "images"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predict(images: Any, out: Path, **options: Any) -> dict[str, Any]:
    options = {"progress": False, "batch_size": 3, "overlays": False, **options}
    return radgaze.predict(options.pop("model", None) or formula_predictor(), images, out, **options)


def test_lines_tables_pictures_and_maps_say_what_the_predictor_says(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = predict(images, out, maps=True, overlays=True)
    assert {key: summary[key] for key in ("images", "predicted", "failed", "failed_outputs", "skipped")} == {
        "images": 10, "predicted": 10, "failed": 0, "failed_outputs": 0, "skipped": 0,
    }  # fmt: skip
    written, table = lines(out), rows(out / "predictions.csv")
    assert [line["image"] for line in written] == [str(path) for path in sorted(images.rglob("*.png"))]
    for line, row in zip(written, table, strict=True):
        alone = formula_predictor().predict(line["image"])
        files = line.pop("files")
        assert line == json.loads(json.dumps(alone.to_json()))
        for name in CLASSES:
            shown = tuple(float(row[f"{key}_{name}"]) for key in ("p", "low", "high"))
            assert alone.intervals is not None
            assert shown == (alone.probabilities[name], *alone.intervals[name])
        assert alone.attention is not None
        assert (float(row["attention_x"]), float(row["attention_y"])) == alone.peak(alone.attention)
        assert row["predicted"] == alone.predicted
        with Image.open(out / files["overlay"]) as picture:
            assert picture.format == "PNG"
            picture.load()
        with safe_open(out / files["maps"], "numpy") as stored:
            assert set(stored.keys()) == {"attention", *(f"cam:{name}" for name in CLASSES)}
            for name, values in alone.maps().items():
                assert np.array_equal(stored.get_tensor(name), values)
                grid = alone.grid_of(values)
                assert radgaze.Grid(**json.loads(stored.metadata()[name])) == grid
    assert not (out / "failures.csv").exists()
    assert len({line["image"] for line in written}) == len(list((out / "overlays").iterdir())) == 10


def test_without_a_folder_the_predictions_come_back(images: Path) -> None:
    found = radgaze.predict(formula_predictor(), [images / "ward0", images / "gone.png"], progress=False)
    assert [type(one) for one in found] == [Prediction] * 5 + [Failure]
    assert isinstance(found[-1], Failure)
    assert "does not exist" in found[-1].error


def test_a_bad_file_does_not_stop_the_others(images: Path, tmp_path: Path) -> None:
    (images / "ward0" / "00.png").write_bytes(b"no image")
    whole = (images / "ward1" / "1.png").read_bytes()
    (images / "ward1" / "00.png").write_bytes(whole[: len(whole) // 2])
    summary = predict([images, tmp_path / "gone.png"], tmp_path / "out")
    assert (summary["predicted"], summary["failed"]) == (10, 3)
    failed = rows(tmp_path / "out" / "failures.csv")
    assert [Path(row["image"]).name for row in failed] == ["00.png", "00.png", "gone.png"]
    assert [row["output"] for row in failed] == ["prediction"] * 3
    assert summary["failures"] == failed
    assert sum("error" in line for line in lines(tmp_path / "out")) == 3
    assert len(rows(tmp_path / "out" / "predictions.csv")) == 10


def test_an_error_of_the_disk_is_of_one_image(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from radgaze.inference import predictor

    def read_image(path: Any) -> Any:
        if path.name == "3.png":
            raise OSError(5, "Input/output error")
        return real(path)

    real = predictor.read_image
    monkeypatch.setattr(predictor, "read_image", read_image)
    summary = predict(images, tmp_path / "out")
    assert (summary["predicted"], summary["failed"]) == (8, 2)


class Stops:
    """A network that is killed in its n-th batch."""

    name = "formula"

    def __init__(self, after: int) -> None:
        self.left, self.real = after, formula_predictor().engine

    def __call__(self, images: torch.Tensor) -> Output:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.real(images)


def interrupted(images: Path, out: Path, after: int, **options: Any) -> None:
    model = formula_predictor()
    model.engine = Stops(after)
    with pytest.raises(KeyboardInterrupt):
        predict(images, out, model=model, **options)


def test_resuming_does_what_is_left_and_nothing_twice(images: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", formula_predictor()
    interrupted(images, out, after=2, overlays=True)
    assert len(lines(out)) == 6
    journal = out / "predictions.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # torn in the middle of the sixth line
    (out / "overlays" / ".x.png.1.partial").write_bytes(b"half a picture")
    summary = predict(images, out, model=model, resume=True, overlays=True)
    assert (summary["predicted"], summary["skipped"]) == (10, 5)
    assert model.engine.batches == 2  # five images in batches of three
    whole = tmp_path / "whole"
    predict(images, whole, overlays=True)
    assert lines(out) == lines(whole)
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    assert {path.name for path in (out / "overlays").iterdir()} == {
        path.name for path in (whole / "overlays").iterdir()
    }
    again = predict(images, out, model=model, resume=True, overlays=True)
    assert (again["skipped"], model.engine.batches) == (10, 2)


def test_killed_for_good_nothing_is_half(images: Path, tmp_path: Path) -> None:
    for index in range(10):
        Image.fromarray(blob(60, 50, seed=index)).save(images / f"more{index}.png")
    out, journal = tmp_path / "out", tmp_path / "out" / "predictions.jsonl"
    command = (
        "import radgaze; from tests.inference.predictors import formula_predictor; "
        f"radgaze.predict(formula_predictor(), {str(images)!r}, {str(out)!r}, batch_size=2, maps=True)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", command], cwd=root, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not journal.is_file() or journal.read_bytes().count(b"\n") < 5):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    *whole, _ = journal.read_bytes().split(b"\n")
    assert len(whole) >= 5
    for line in whole:
        for file in json.loads(line)["files"].values():
            assert (out / file).is_file()
    for file in out.glob("overlays/*.png"):
        Image.open(file).load()
    for file in out.glob("maps/*.safetensors"):
        with safe_open(file, "numpy") as opened:
            assert opened.get_tensor("attention").sum() == pytest.approx(1, abs=1e-4)
    summary = predict(images, out, overlays=True, maps=True, resume=True)
    assert (summary["predicted"], summary["failed"]) == (20, 0)
    assert summary["skipped"] >= len(whole)
    assert sorted(line["image"] for line in lines(out)) == sorted(map(str, images.rglob("*.png")))
    assert not list(out.rglob("*.partial"))


def test_a_line_that_lacks_its_end_alone_is_done_again(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(images, out, after=1)
    journal = out / "predictions.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])  # what follows would be appended to it
    assert predict(images, out, resume=True)["skipped"] == 2
    assert len(lines(out)) == 10


@pytest.mark.parametrize("damage", [b"", b"\n", b"{}\n", b"\xff\xfe\n", b'{"image": "half'])
def test_a_line_that_is_no_line_is_dropped(images: Path, tmp_path: Path, damage: bytes) -> None:
    out = tmp_path / "out"
    interrupted(images, out, after=1)
    with (out / "predictions.jsonl").open("ab") as file:
        file.write(damage)
    assert predict(images, out, resume=True)["predicted"] == 10
    assert len(lines(out)) == 10


def test_what_failed_is_tried_again(images: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "out", images / "ward0" / "0.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"not yet copied")
    assert predict(images, out)["failed"] == 1
    bad.write_bytes(whole)
    summary = predict(images, out, resume=True)
    assert (summary["predicted"], summary["failed"], summary["skipped"]) == (10, 0, 9)
    assert not (out / "failures.csv").exists()
    assert len(lines(out)) == 10


def test_resuming_with_more_images_adds_them(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(images / "ward0", out)
    assert predict([images / "ward0", images / "ward1"], out, resume=True)["skipped"] == 5
    assert len(rows(out / "predictions.csv")) == 10


def test_another_model_or_other_outputs_are_not_mixed_in(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(images, out)
    before = sorted(path.name for path in out.rglob("*"))
    with pytest.raises(InputError, match=r"not empty.*--resume"):
        predict(images, out)
    other = formula_predictor(facts={"weights": "cd" * 32})
    with pytest.raises(InputError, match=r"other settings \(model\)"):
        predict(images, out, model=other, resume=True)
    with pytest.raises(InputError, match=r"other settings \(overlays, maps\)"):
        predict(images, out, overlays=True, maps=True, resume=True)
    with folder_lock(out, "predicting into"), pytest.raises(InputError, match="Another process is predicting into"):
        predict(images, out, resume=True)
    assert sorted(path.name for path in out.rglob("*")) == before


def test_a_folder_of_something_else_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(InputError):
            predict(images, tmp_path / "mine", resume=resume)
    with pytest.raises(InputError, match="is a file"):
        predict(images, tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert not list((tmp_path / "mine").glob("predict*"))


def test_resume_in_a_new_folder_begins(images: Path, tmp_path: Path) -> None:
    assert predict(images, tmp_path / "out", resume=True)["predicted"] == 10


def test_a_folder_inside_the_images_is_not_predicted_in_turn(images: Path) -> None:
    out = images / "predictions"
    predict(images, out)
    assert predict(images, out, resume=True)["images"] == 10


def test_outputs_a_network_does_not_have_are_refused_before_work(images: Path, tmp_path: Path) -> None:
    classifier, attention = formula_predictor(("logits",)), formula_predictor(("saliency_logits",))
    pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    for model, options, told in (
        (classifier, {"maps": True}, "--maps"),
        (classifier, {"dicom": ["pm"]}, "--dicom pm"),
        (attention, {"dicom": ["sr"]}, "--dicom sr"),
        (classifier, {"dicom": ["seg"]}, "sc,sr,pm"),
        (classifier, {"batch_size": 0}, "--batch-size 0"),
    ):
        with pytest.raises(InputError, match=told):
            predict(images, tmp_path / "out", model=model, **options)
    assert not (tmp_path / "out").exists()
    predict(images, tmp_path / "out", model=classifier)
    assert "attention_x" not in rows(tmp_path / "out" / "predictions.csv")[0]
    predict(images, tmp_path / "other", model=attention)
    assert rows(tmp_path / "other" / "predictions.csv")[0]["predicted"] == ""


def test_dicom_without_its_package(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radgaze.inference.folder.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"highdicom.*radgaze\[dicom-out\]"):
        predict(images, tmp_path / "out", dicom=["sc"])


def test_labels_that_are_not_calibrated(images: Path, tmp_path: Path) -> None:
    summary = predict(images, tmp_path / "out", model=formula_predictor(task="multilabel", calibrated=False))
    assert (summary["calibrated"], summary["uncalibrated"]) == (False, "the test wants it so")
    row = rows(tmp_path / "out" / "predictions.csv")[0]
    assert row["low_normal"] == row["predicted"] == ""
    assert 0 < float(row["p_normal"]) < 1


def test_nothing_of_a_header_leaves_by_another_door(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Unmistakable values in every text tag, some of them invalid; readable and unreadable images."""
    planted = {
        "PatientName": "PLANTED^NAME", "PatientID": "PLANTED-ID", "PatientComments": "PLANTED comments",
        "OtherPatientIDs": "PLANTED-OTHER", "InstitutionName": "PLANTED institution", "StationName": "PLANTED-STN",
        "StudyDescription": "PLANTED study", "SeriesDescription": "PLANTED series", "AccessionNumber": "PLANTED-ACC",
        "StudyID": "PLANTED-STUDY", "ReferringPhysicianName": "PLANTED^DOCTOR", "OperatorsName": "PLANTED^OPERATOR",
        "ImageComments": "PLANTED image", "Manufacturer": "PLANTED maker", "DeviceSerialNumber": "PLANTED-SERIAL",
        "ProtocolName": "PLANTED protocol", "AdditionalPatientHistory": "PLANTED history",
        "RequestingPhysician": "PLANTED^REQUESTER", "PatientAddress": "PLANTED street",
    }  # fmt: skip
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    radiograph(folder / "good.dcm", **planted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, bad in {
            "name": {"PatientName": "PLANTED" * 20},
            "dates": {"StudyDate": "PLANTED", "PatientSex": "PLANTED", "StudyTime": "PLANTED"},
            "colour": {"PhotometricInterpretation": "PLANTED"},
            "window": {"VOILUTFunction": "PLANTED", "WindowCenter": "9", "WindowWidth": "9"},
            "uid": {"SeriesInstanceUID": "PLANTED"},
            "lossy": {"LossyImageCompression": "PLANTED", "PatientOrientation": ["PLANTED", "PLANTED"]},
        }.items():
            radiograph(folder / f"bad-{name}.dcm", **planted | bad)
    broken = (folder / "good.dcm").read_bytes()
    (folder / "torn.dcm").write_bytes(broken[: len(broken) // 2])
    (folder / "mangled.dcm").write_bytes(broken.replace(b"MONOCHROME2 ", b"PLANTEDCOLOR"))
    capfd.readouterr()
    pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    with caplog.at_level("DEBUG"), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        summary = predict(folder, out, overlays=True, maps=True, dicom=["sc", "sr", "pm"], progress=True)
    assert summary["failed"] >= 2
    assert summary["failed_outputs"] >= 2
    told = [*capfd.readouterr(), json.dumps(summary), *(str(warning.message) for warning in warned)]
    told += [record.getMessage() for record in caplog.records]
    for text in told:
        assert "PLANTED" not in text
    others = [path for path in out.rglob("*") if path.is_file() and path.parent.name != "dicom"]
    assert len(others) > 10
    for path in (*others, *out.rglob("*.dcm")):
        assert "PLANTED" not in path.name
    for path in others:
        assert b"PLANTED" not in path.read_bytes(), path.name
    good = next(line for line in lines(out) if line["image"].endswith("good.dcm"))
    assert b"PLANTED^NAME" in (out / good["files"]["sr"]).read_bytes()  # which must belong to the patient
