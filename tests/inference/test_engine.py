from __future__ import annotations

import builtins
import io
import json
import pickle
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import radgaze
from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.inference import open_model
from radgaze.inference.engine import OnnxEngine, is_exported, require
from radgaze.training import Run
from tests.inference.exports import trained


@pytest.fixture(scope="module")
def unet(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(cohort, tmp_path_factory.mktemp("run") / "unet", width=2)


@pytest.fixture(scope="module")
def program(unet: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    radgaze.export(unet, path, format="torch-export")
    return path


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.pt2"])
@pytest.mark.parametrize("content", [b"", b"no model at all" * 40])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    if find_spec("onnxruntime") is None or find_spec("openvino") is None:
        pytest.skip("the extra deploy is not installed")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        radgaze.load(tmp_path / name)


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no model"):
        open_model(tmp_path / "gone.pt2")
    with pytest.raises(InputError, match="no exported model"):
        open_model(tmp_path / "model.h5")
    with pytest.raises(InputError, match="holds 0 OpenVINO models"):
        open_model(tmp_path)


def test_a_foreign_model_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra deploy is not installed")
    openvino = require("openvino", "a test")
    shape = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["image"], ["out"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "foreign", [shape], [out]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "foreign.onnx")
    openvino.save_model(openvino.Core().read_model(tmp_path / "foreign.onnx"), tmp_path / "foreign.xml")
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(1),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    for name in ("foreign.onnx", "foreign.xml", "foreign.pt2"):
        assert is_exported(tmp_path / name)
        with pytest.raises(InputError, match="no model card in it"):
            open_model(tmp_path / name)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return builtins.exec, ("import sys; sys.radgaze_was_tricked = True",)


def rewritten(program: Path, path: Path, record: str, change: bytes | dict[str, str]) -> Path:
    """A copy of an archive with one record replaced, added, or with texts in it replaced."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as target:
        names = source.namelist()
        root = names[0].partition("/")[0]
        for name in names:
            content = source.read(name)
            if name == f"{root}/{record}":
                if isinstance(change, bytes):
                    continue
                for old, new in change.items():
                    assert old.encode() in content
                    content = content.replace(old.encode(), new.encode())
            target.writestr(name, content)
        if isinstance(change, bytes):
            target.writestr(f"{root}/{record}" if "/" in record else record, change)
    return path


def pickled() -> bytes:
    content = io.BytesIO()
    torch.save(Trap(), content)
    return content.getvalue()


RUN = "__import__('sys').__setattr__('radgaze_was_tricked', True)"


@pytest.mark.parametrize(
    ("record", "change", "said"),
    [
        ("data/sample_inputs/model.pt", pickled(), "pickled sample inputs"),
        ("data/weights/model.pt", pickled(), "data/weights/model.pt"),
        ("data/constants/opaque_obj_0", pickle.dumps(Trap()), "opaque_obj_0"),
        ("data/weights/model_weights_config.json", {'"use_pickle": false': '"use_pickle": true'}, "pickled tensors"),
        ("models/model.json", {"Symbol('s": f"{RUN} or Symbol('s"}, "expr_str"),
        ("models/model.json", {"torch.ops.aten.relu.default": "torch.os.system"}, "target"),
        ("models/model.json", {'"guards_code": []': '"guards_code": ["exit"]'}, "guards_code"),
        ("models/model.json", {'"name": "image"': '"name": "image=exit()"'}, "name"),
        ("version", pickled(), "more than one archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_program_that_could_run_code_is_refused(
    program: Path, tmp_path: Path, record: str, change: bytes | dict[str, str], said: str
) -> None:
    path = rewritten(program, tmp_path / "trap.pt2", record, change)
    with pytest.raises(InputError, match=said):
        open_model(path)
    assert not hasattr(sys, "radgaze_was_tricked")


def test_a_program_holds_no_pickle(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith((b"\x80\x02", b"\x80\x04", b"PK")), name
        card = json.loads(next(archive.read(name) for name in archive.namelist() if name.endswith("radgaze.json")))
    assert card["card"]["classes"] == ["class0", "class1", "class2"]


def test_a_damaged_card_is_named(program: Path, tmp_path: Path) -> None:
    path = rewritten(program, tmp_path / "card.pt2", "extra/radgaze.json", {'"format": 1': '"format": 99'})
    with pytest.raises(InputError, match="format 99"):
        open_model(path)


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'pip install "radgaze\[deploy\]"'):
        OnnxEngine(tmp_path / "model.onnx")


def test_nothing_is_told_to_the_makers_of_an_engine() -> None:
    if find_spec("openvino") is None:
        pytest.skip("the extra deploy is not installed")
    require("openvino", "a test")
    assert sys.modules["openvino_telemetry"] is None
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]


def test_threads_and_engines_that_do_not_fit(program: Path) -> None:
    with pytest.raises(InputError, match="threads is 0"):
        open_model(program, threads=0)
    with pytest.raises(InputError, match="for engine 'torch-export', not 'onnx'"):
        radgaze.load(program, engine="onnx")
