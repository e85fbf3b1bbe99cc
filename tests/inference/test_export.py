from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import radgaze
from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.files import read_sealed, write_sealed
from radgaze.inference import open_model
from radgaze.inference.card import ModelCard
from radgaze.inference.engine import SUFFIXES, TorchEngine, require
from radgaze.inference.exporter import COMPARED, check_change, check_parity, last_layers, measure, synthetic
from radgaze.models import Output, build
from radgaze.training import Run
from tests.cohorts import blob_cohort, multilabel_cohort
from tests.inference.exports import run_of, trained
from tests.simplification.networks import BOTTLENECKS, make

pytest.importorskip("onnx", reason="the extra deploy is not installed")
if find_spec("openvino") is None:
    pytest.skip("the extra deploy is not installed", allow_module_level=True)

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenet": ("onnx", {"name": "gaze-cam", "backbone": "mobilenetv3_small_050", "in_channels": 3}),
    "narrow": ("torch-export", BOTTLENECKS),
    "simplified": (
        "torch-export",
        {"name": "mt-unet", "width": 4, "widths": {"body.encoder.1.0": 5, "body.up.0.1": 7}},
    ),
    "encoder": ("torch-export", {"name": "mt-unet", "encoder": "resnet18", "num_classes": 0}),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """48 studies: enough patients of each class in the validation split to calibrate on."""
    return blob_cohort(tmp_path_factory.mktemp("blobs"), studies=48, size=(96, 64))


@pytest.fixture(scope="module")
def image(cohort: Cohort) -> Path:
    return cohort.path.parent / "tables" / "003.png"


@pytest.fixture(scope="module")
def unet(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(cohort, tmp_path_factory.mktemp("run") / "unet")


@pytest.fixture(scope="module")
def files(unet: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The same run in every format, and what export said of it."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for format, suffix in SUFFIXES.items():
        path = folder / f"model{suffix}"
        made[format] = (path, radgaze.export(unet, path, format=format, progress=False))
    return made


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_file_says_what_its_run_says(
    unet: Run, files: dict[str, tuple[Path, dict[str, Any]]], format: str, image: Path
) -> None:
    path, told = files[format]
    assert told["compared_on"] == f"{COMPARED} images of the validation split"
    assert set(told["parity"]) == {"logits", "saliency_logits"}
    expected, found = (radgaze.load(model).predict(image) for model in (unet, path))
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert found.intervals is not None
    assert expected.intervals is not None
    for name, bounds in expected.intervals.items():
        assert found.intervals[name] == pytest.approx(bounds, abs=1e-5)
    assert found.attention == pytest.approx(expected.attention, abs=1e-6)
    assert found.card.classes == expected.card.classes


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_file_takes_batches_of_any_size(
    unet: Run, files: dict[str, tuple[Path, dict[str, Any]]], format: str
) -> None:
    card, engine = open_model(files[format][0], threads=1)
    reference = TorchEngine(unet.network())
    assert engine.name == format
    for count in (1, 3):
        images = synthetic(card.frame.size)[:count]
        for expected, found in zip(reference(images), engine(images), strict=True):
            assert (expected is None) == (found is None)
            if expected is not None:
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
                assert found.dtype == torch.float32


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_file_tells_of_no_machine_and_no_patient(
    cohort: Cohort, files: dict[str, tuple[Path, dict[str, Any]]], format: str
) -> None:
    path, told = files[format]
    written = [path, path.with_suffix(".bin")] if format == "openvino" else [path]
    assert sorted(path.parent.glob("*")) == sorted(path.parent.glob("model.*"))  # nothing else was left
    assert told["bytes"] == sum(part.stat().st_size for part in written)
    content = b"".join(part.read_bytes() for part in written)
    assert re.search(rb"[\w.-]+/site-packages|\.py\b", content) is None
    for secret in (str(cohort.path.parent), str(path.parent), str(Path.cwd()), "stack_trace", "graph.onnx"):
        assert secret.encode() not in content
    for name in ("s003", "p003"):
        assert name.encode() not in content


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network(unet: Run, tmp_path: Path, name: str) -> None:
    format, config = NETWORKS[name]
    network = make(config) if name in ("narrow", "mobilenet") else build(config).eval()
    run = run_of(network, unet, tmp_path / "run")
    path = tmp_path / f"model{SUFFIXES[format]}"
    told = radgaze.export(run, path, format=format)
    card, engine = open_model(path)
    assert set(card.outputs) == set(told["parity"]) | ({"logits"} if name == "encoder" else set())
    assert card.facts["exported"] == {"format": format, "precision": "fp32"}
    images = synthetic(run.size)[:3]
    for expected, found in zip(TorchEngine(run.network())(images), engine(images), strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            assert (expected - found).abs().max() <= 1e-4 * max(float(expected.abs().max()), 0.1)


def test_labels_that_do_not_exclude_each_other(tmp_path: Path) -> None:
    cohort = multilabel_cohort(tmp_path)
    options = {"output_stride": 8, "channels": (8, 8, 8, 8), "stem_width": 8}
    run = trained(cohort, tmp_path / "run", "classifier", backbone="resnet10t", options=options)
    radgaze.export(run, tmp_path / "model.pt2", format="torch-export")
    expected, found = (
        radgaze.load(model).predict(tmp_path / "tables" / "000.png") for model in (run, tmp_path / "model.pt2")
    )
    assert found.predicted is None
    assert found.intervals is None
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert found.cams is not None
    assert expected.cams is not None
    for label, cam in expected.cams.items():
        assert found.cams[label] == pytest.approx(cam, abs=1e-4)


def test_without_its_cohort_a_run_is_compared_on_made_up_images(unet: Run, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from radgaze.cli import app

    shutil.copytree(unet.path, tmp_path / "moved")
    content = read_sealed(tmp_path / "moved" / "config.json", "a run")
    content["cohort"]["path"] = str(tmp_path / "gone")
    write_sealed(tmp_path / "moved" / "config.json", content)
    path = tmp_path / "model.pt2"
    command = ["export", str(tmp_path / "moved"), "--format", "torch-export", "--out", str(path), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["path"] == str(path)
    assert told["bytes"] == path.stat().st_size
    assert "synthetic images" in told["compared_on"]
    with pytest.raises(InputError, match="measured on its cohort's validation split"):
        radgaze.export(tmp_path / "moved", tmp_path / "model.xml", format="openvino", precision="int8")
    assert not (tmp_path / "model.xml").exists()


def test_a_moved_cohort_leaves_no_path_and_is_found_with_its_new_one(unet: Run, cohort: Cohort, tmp_path: Path) -> None:
    run = run_of(build(BOTTLENECKS), unet, tmp_path / "run")
    content = read_sealed(run.path / "config.json", "a run")
    content["cohort"]["path"] = str(tmp_path / "jane-doe" / "cohort")
    for key in ("fit", "canvas"):  # as in runs from before these were written down
        kept = content["cohort"].pop(key)
        assert kept == {"fit": cohort.frame.fit, "canvas": None}[key]
    write_sealed(run.path / "config.json", content)
    path = tmp_path / "model.pt2"
    with pytest.raises(InputError, match="jane-doe"):
        radgaze.export(run.path, path, format="torch-export")  # its frame is not known without the cohort

    content["cohort"] |= {"fit": cohort.frame.fit, "canvas": None}
    write_sealed(run.path / "config.json", content)
    told = radgaze.export(run.path, path, format="torch-export")
    assert "jane-doe" in told["compared_on"]  # said to the person, not written
    assert b"jane-doe" not in path.read_bytes()
    card, _ = open_model(path)
    assert card.calibration is None
    assert "has moved" in str(card.uncalibrated)

    for key in ("fit", "canvas"):
        content["cohort"].pop(key)
    write_sealed(run.path / "config.json", content)
    radgaze.export(run.path, path, format="torch-export", cohort=cohort)
    card, _ = open_model(path)
    assert card.calibration is not None
    assert card.frame == cohort.frame


def test_outputs_that_are_not_finite_are_refused(unet: Run, cohort: Cohort) -> None:
    class Overflowing:
        name = "overflowing"

        def __call__(self, images: torch.Tensor) -> Output:
            return Output(logits=torch.zeros(len(images), 3), saliency_logits=images[:, 0] * torch.nan)

    with pytest.raises(InputError, match=r"'overflowing' the network's saliency_logits are not finite"):
        measure(unet, cohort, Overflowing())


def test_int8_is_measured_and_refused_beyond_the_tolerance(
    unet: Run,
    files: dict[str, tuple[Path, dict[str, Any]]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if find_spec("nncf") is None:
        pytest.skip("the extra deploy is not installed")
    openvino = require("openvino", "a test")
    written = files["openvino"][0]
    monkeypatch.setattr("radgaze.inference.exporter.convert", lambda *_: openvino.Core().read_model(written))
    path = tmp_path / "files" / "model.xml"
    told = radgaze.export(unet, path, format="openvino", precision="int8", tolerance=1, progress=False)
    assert capfd.readouterr().out == ""
    assert set(told["change"]) == {"studies", "auc_macro", "cc"}
    auc = told["change"]["auc_macro"]
    assert auc["change"] == pytest.approx(auc["after"] - auc["before"])
    assert all(entry["difference"] > 0 for entry in told["parity"].values())
    card, engine = open_model(path.parent)
    assert card.facts["exported"]["precision"] == "int8"
    own = ModelCard.of(unet).calibration
    assert card.calibration is not None
    assert own is not None
    assert card.calibration.slopes.tolist() != own.slopes.tolist()  # fitted to the scores in 8 bits
    assert engine(synthetic(card.frame.size)[:1]).logits is not None
    before = {file: file.read_bytes() for file in path.parent.iterdir()}

    monkeypatch.setattr("radgaze.inference.exporter.quantised", lambda model, *_: broken(model))
    for out in (path, tmp_path / "new" / "model.xml"):
        with pytest.raises(InputError, match=r"In int8 the macro AUC .* falls from .*--tolerance"):
            radgaze.export(unet, out, format="openvino", precision="int8", tolerance=0.0)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before  # the earlier file stays whole
    assert not list((tmp_path / "new").iterdir())


def test_last_layers_are_those_that_write_the_outputs(files: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    openvino = require("openvino", "a test")
    model = openvino.Core().read_model(files["openvino"][0])
    kinds = {node.get_friendly_name(): (node.get_type_name(), node) for node in model.get_ordered_ops()}
    found = {kinds[name][0]: kinds[name][1].input_value(1).shape for name in last_layers(model)}
    assert sorted(found) == ["Convolution", "MatMul"]
    assert list(found["Convolution"]) == [1, 4, 1, 1]  # the saliency head, of width 4
    assert sorted(found["MatMul"]) == [3, 4]  # the class head


def broken(model: Any) -> Any:
    """The model with scores of the opposite sign: what ranks well now ranks ill."""
    ov = require("openvino", "a test")

    output = model.output("logits")
    source = output.get_node().input_value(0)
    negated = ov.opset13.negative(source)
    output.get_node().input(0).replace_source_output(negated.output(0))
    negated.output(0).set_names({"logits"})
    model.validate_nodes_and_infer_types()
    return model


def test_what_is_allowed() -> None:
    check_parity({"logits": {"difference": 9e-5, "scale": 1.0}}, "onnx")
    for difference in (2e-4, float("nan")):
        with pytest.raises(InputError, match="differ from PyTorch's"):
            check_parity({"logits": {"difference": difference, "scale": 1.0}}, "onnx")
    fell = {"before": 0.9, "after": 0.89, "change": -0.01}
    check_change({"studies": 3, "auc_macro": fell}, "int8", 0.02)
    check_change({"studies": 3, "auc_macro": {**fell, "change": 0.01}, "cc": fell}, "int8", 0.002)
    with pytest.raises(InputError, match=r"CC of the attention .* by 0.0100 where 0.002 is allowed"):
        check_change({"studies": 3, "cc": fell}, "int8", 0.002)
    with pytest.raises(InputError, match="cannot be measured"):
        check_change({"studies": 0}, "int8", 0.002)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("m.onnx", {"format": "tflite"}, "no format 'tflite'"),
        ("m.onnx", {"precision": "fp8"}, "no precision 'fp8'"),
        ("m.onnx", {"precision": "int8"}, "use --format openvino"),
        ("m.bin", {"format": "openvino"}, r"does not end in \.xml"),
        ("m.xml", {"format": "openvino", "tolerance": 5}, "tolerance is 5"),
    ],
)
def test_bad_input(unet: Run, tmp_path: Path, name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        radgaze.export(unet, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_place_where_no_file_can_be_written(unet: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    for out, said in (("folder.pt2", "is a folder"), ("file/model.pt2", "is a file, expected a folder")):
        with pytest.raises(InputError, match=said):
            radgaze.export(unet, tmp_path / out, format="torch-export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.pt2"]


def test_a_run_is_exported_anew_when_its_weights_change(unet: Run, tmp_path: Path, image: Path) -> None:
    small = build(BOTTLENECKS)  # the quickest to trace
    run = run_of(small, unet, tmp_path / "run")
    first = radgaze.load(run, "torch-export").predict(image)
    (made,) = (run.path / "exported").iterdir()
    written = made.stat().st_mtime_ns
    radgaze.load(run.path, engine="torch-export")
    assert made.stat().st_mtime_ns == written
    made.write_bytes(made.read_bytes()[:5000])
    assert radgaze.load(run, "torch-export").predict(image).probabilities == first.probabilities  # mended

    shutil.rmtree(run.path)
    small.head.bias.data += torch.tensor([3.0, 0.0, 0.0])  # type: ignore[union-attr, operator]
    run = run_of(small, unet, tmp_path / "other")
    (run.path / "exported").mkdir()
    stale = run.path / "exported" / "0123456789abcdef.pt2"
    stale.write_bytes(b"of earlier weights")
    second = radgaze.load(run, "torch-export").predict(image)
    assert not stale.exists()
    assert second.probabilities != pytest.approx(first.probabilities, abs=1e-3)
    assert second.probabilities == pytest.approx(radgaze.load(run).predict(image).probabilities, abs=1e-5)
    with pytest.raises(InputError, match="no engine 'tensorrt'"):
        radgaze.load(run, "tensorrt")


def test_class_activation_maps_survive_int8(cohort: Cohort, tmp_path: Path) -> None:
    """OpenVINO 2026.4 makes nothing of the mean of an 8-bit map: the head must have stayed in 32 bits."""
    if find_spec("nncf") is None:
        pytest.skip("the extra deploy is not installed")
    run = trained(cohort, tmp_path / "cam", "gg-cam", backbone="resnet10t", options={"output_stride": 16})
    radgaze.export(run, tmp_path / "model.xml", format="openvino", precision="int8", tolerance=1, progress=False)
    images = synthetic(run.size)
    expected, found = TorchEngine(run.network())(images), open_model(tmp_path / "model.xml")[1](images)
    assert expected.cams is not None
    assert found.cams is not None
    assert found.logits is not None
    assert torch.corrcoef(torch.stack([expected.cams.flatten(), found.cams.flatten()]))[0, 1] > 0.9
    bias = run.network().head.bias.detach()  # type: ignore[union-attr]
    assert (found.cams.mean((2, 3)) + bias).numpy() == pytest.approx(found.logits.numpy(), abs=1e-3)
