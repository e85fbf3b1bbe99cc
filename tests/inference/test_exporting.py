from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import radgaze
from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.inference import exporting, pt2
from radgaze.inference.card import ModelCard
from radgaze.inference.engine import CARD, FORMATS, open_model
from radgaze.inference.exporting import compare, export, onnx_model
from radgaze.models import Network, build, save_weights
from radgaze.simplification.structure import Kept, Structure, apply
from radgaze.training import Run, fit
from tests.cohorts import blob_cohort
from tests.simplification.networks import BOTTLENECKS, make

SIZE = (48, 32)
RECIPE = {"epochs": 2, "batch_size": 4, "schedule": "one-cycle", "learning_rate": 2e-3, "precision": "fp32"}
LARGE = (96, 64)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """48 studies: enough patients of each class in the validation split to calibrate on."""
    return blob_cohort(tmp_path_factory.mktemp("blobs"), studies=48)


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(cohort, tmp_path_factory.mktemp("run") / "unet", "mt-unet", model={"width": 4}, progress=False, **RECIPE)


@pytest.fixture(scope="module")
def gaze_cam(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = {"backbone": "resnet10t", "options": {"output_stride": 8}}
    return fit(cohort, tmp_path_factory.mktemp("run") / "cam", "gg-cam", model=model, progress=False, **RECIPE)


def image_of(cohort: Cohort) -> Path:
    return cohort.path.parent / "tables" / "004.png"


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("which", ["run", "gaze_cam"])
def test_a_file_says_what_the_run_says(
    format: str, which: str, cohort: Cohort, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained: Run = request.getfixturevalue(which)
    file = tmp_path / f"model{FORMATS[format][0]}"
    exported = export(trained, file, format=format)
    assert exported.images == "validation"
    assert exported.differences
    assert all(difference < 1e-4 for difference in exported.differences.values())
    assert exported.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written(tmp_path) == {"model.xml", "model.bin"} if format == "openvino" else {file.name}
    for path in tmp_path.iterdir():  # nothing of the machine, no study and no patient
        content = path.read_bytes()
        assert not re.findall(rb"/[\w/.-]+\.py", content)
        for secret in (str(trained.path), str(Path(radgaze.__file__).parent), "p001", "s001"):
            assert secret.encode() not in content

    mine, theirs = radgaze.load(trained), radgaze.load(file)
    assert theirs.engine.name == format
    assert theirs.card.to_json() == mine.card.to_json()
    one, other = mine.predict(image_of(cohort)), theirs.predict(image_of(cohort))
    assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
    assert other.intervals is not None
    assert one.intervals is not None
    assert {name: pytest.approx(bounds, abs=1e-5) for name, bounds in one.intervals.items()} == other.intervals
    for name, values in one.maps().items():
        assert other.maps()[name] == pytest.approx(values, abs=1e-4 * float(np.abs(values).max()))

    images = torch.rand(3, 1, *SIZE)  # another number of them than it was traced with
    together = theirs.engine(images)
    for position in range(3):
        alone = theirs.engine(images[position : position + 1])
        for part, single in zip(together, alone, strict=True):
            if part is not None and single is not None:
                assert part[position].numpy() == pytest.approx(single[0].numpy(), abs=1e-4)


def with_widths() -> Network:
    """A backbone without a plain config of its own for other widths than its class's."""
    network = make({"name": "gaze-cam", "backbone": "mobilenetv3_small_050", "num_classes": 3})
    from radgaze.models.channels import ChannelGraph

    group = max(ChannelGraph(network).groups, key=lambda group: group.size)
    smaller = apply(network, Structure(kept={group.name: Kept(np.arange(0, group.size, 3))}, dropped=()))
    assert smaller.config["widths"]
    return smaller


NETWORKS: dict[str, Callable[[], Network]] = {
    "odd widths": lambda: make(BOTTLENECKS),
    "widths in the config": with_widths,
    "encoder in colour": lambda: make({"name": "mt-unet", "num_classes": 0, "in_channels": 3, "encoder": "resnet18"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_keep_their_outputs_as_onnx(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]().eval()
    images = torch.nn.functional.interpolate(torch.rand(3, 1, 6, 4), LARGE, mode="bilinear")
    with torch.no_grad():
        expected = network(images)
    model = onnx_model(*pt2.trace(network, images[:2]))
    onnx.checker.check_model(model)
    card = ModelCard.from_json(
        {
            "format": 1, "method": "x", "classes": [], "task": "none", "size": list(LARGE), "fit": "stretch",
            "canvas": None, "attention": "none", "outputs": [], "calibration": None, "uncalibrated": None, "facts": {},
        }
    )  # fmt: skip
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD, json.dumps(card.to_json())
    file = tmp_path / "network.onnx"
    file.write_bytes(model.SerializeToString())
    found = open_model(file)[1](images)
    assert max(compare(expected, found).values()) < 1e-3


def test_less_precision_is_judged_and_refused_beyond_the_tolerance(
    gaze_cam: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = export(gaze_cam, tmp_path / "kept.xml", format="openvino", precision="int8", tolerance=1.0)
    assert kept.measure == "auc_macro"
    assert kept.before is not None
    assert kept.after is not None
    assert open_model(kept.path)[1].name == "openvino"
    before = written(tmp_path)
    monkeypatch.setattr(
        exporting, "what_counts", lambda run, cohort: ("auc_macro", lambda engine: float(engine.name == "torch"))
    )
    with pytest.raises(InputError, match=r"0\.0000 instead of 1\.0000.*--tolerance"):
        export(gaze_cam, tmp_path / "lost.xml", format="openvino", precision="int8")
    assert written(tmp_path) == before


def test_bf16_of_a_network_without_classes_is_judged_by_its_attention(cohort: Cohort, tmp_path: Path) -> None:
    settings = {**RECIPE, "epochs": 1, "objective": {"scheme": "saliency-only"}}
    trained = fit(cohort, tmp_path / "run", "mt-unet", model={"width": 4}, progress=False, **settings)
    found = export(trained, tmp_path / "model.xml", format="openvino", precision="bf16", tolerance=0.1)
    assert found.measure == "cc"
    assert found.after == pytest.approx(found.before, abs=0.1)


def test_a_format_that_changes_the_outputs_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "compare", lambda *_: {"logits": 0.01})
    with pytest.raises(InputError, match=r"'logits' differs from PyTorch's by 1\.0e-02"):
        export(run, tmp_path / "model.onnx")
    assert written(tmp_path) == set()


@pytest.mark.parametrize(
    ("settings", "file", "said"),
    [
        ({"format": "tensorrt"}, "a.onnx", "no format 'tensorrt'"),
        ({"format": "onnx"}, "a.pt2", "does not end in .onnx"),
        ({"precision": "int8"}, "a.onnx", "is OpenVINO's"),
        ({"precision": "fp8"}, "a.onnx", "expected one of"),
        ({"tolerance": -1}, "a.onnx", "expected 0 to 1"),
        ({}, "there.onnx", "exists already"),
    ],
)
def test_what_cannot_be_exported(settings: dict[str, Any], file: str, said: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(InputError, match=re.escape(said)):
        export(run, tmp_path / file, **settings)
    assert written(tmp_path) == {"there.onnx"}
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_without_its_cohort_a_run_is_compared_on_synthetic_images(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    content = json.loads((moved / "config.json").read_text())
    content["cohort"]["path"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(content))
    assert export(moved, tmp_path / "a.onnx").images == "synthetic"
    with pytest.raises(InputError, match="cohort cannot be opened"):
        export(moved, tmp_path / "b.xml", format="openvino", precision="int8")


def test_another_engine_is_made_once_and_anew_for_other_weights(run: Run, cohort: Cohort, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run.path, copied)
    first = radgaze.load(copied, "onnx")
    expected = radgaze.load(copied).predict(image_of(cohort)).probabilities
    assert first.predict(image_of(cohort)).probabilities == pytest.approx(expected, abs=1e-5)
    (file,) = (copied / "exported").glob("*.onnx")
    made = file.stat().st_mtime_ns
    radgaze.load(copied, "onnx")
    assert file.stat().st_mtime_ns == made
    save_weights(build(run.content["network"]), copied / "weights.safetensors")
    radgaze.load(copied, "onnx")
    (other,) = (copied / "exported").glob("*.onnx")
    assert other.name != file.name


@pytest.mark.parametrize("format", FORMATS)
def test_files_that_are_no_models(format: str, tmp_path: Path) -> None:
    file = tmp_path / f"model{FORMATS[format][0]}"
    with pytest.raises(InputError, match="no file"):
        radgaze.load(file)
    file.write_bytes(b"<nothing/>" * 50)
    with pytest.raises(InputError, match=r"cannot be read|no model card|is damaged"):
        radgaze.load(file)


def test_a_model_of_another_program_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["image"], ["logits"])
    ports = [onnx.helper.make_tensor_value_info(name, 1, [1, 3]) for name in ("image", "logits")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:]), ir_version=9)
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match="no model card"):
        radgaze.load(tmp_path / "foreign.onnx")
    (tmp_path / "model.bin.gz").write_bytes(b"")
    with pytest.raises(InputError, match="no exported model"):
        radgaze.load(tmp_path / "model.bin.gz")


def test_a_file_runs_on_its_own_engine_alone(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "a.onnx")
    with pytest.raises(InputError, match="for the engine 'onnx', not 'openvino'"):
        radgaze.load(tmp_path / "a.onnx", "openvino")
    with pytest.raises(InputError, match="no format 'tensorrt'"):
        radgaze.load(run, "tensorrt")
