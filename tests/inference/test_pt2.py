"""Programs of torch.export are looked through before PyTorch opens them."""

from __future__ import annotations

import builtins
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from radgaze.errors import InputError
from radgaze.inference import pt2
from radgaze.inference.engine import open_model
from tests.inference.predictors import formula_predictor
from tests.simplification.networks import MT_UNET, images, make


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    card = json.dumps(formula_predictor(("logits", "saliency_logits")).card.to_json())
    pt2.write(*pt2.trace(make(MT_UNET), images()), card, path)
    return path


def test_a_program_says_what_the_network_says(program: Path) -> None:
    with torch.no_grad():
        expected = make(MT_UNET)(images(1))
    found = open_model(program)[1](images(1))
    for name in ("logits", "saliency_logits"):
        assert getattr(found, name).numpy() == pytest.approx(getattr(expected, name).numpy(), abs=1e-4)


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
    assert card["card"]["method"] == "mt-unet"


def test_a_damaged_card_is_named(program: Path, tmp_path: Path) -> None:
    path = rewritten(program, tmp_path / "card.pt2", "extra/radgaze.json", {'"format": 1': '"format": 99'})
    with pytest.raises(InputError, match="format 99"):
        open_model(path)


def test_a_foreign_program_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(1),)), tmp_path / "foreign.pt2")
    with pytest.raises(InputError, match="no model card in it"):
        open_model(tmp_path / "foreign.pt2")
