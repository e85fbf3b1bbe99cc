from __future__ import annotations

import hashlib
import io
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import radgaze
from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.inference import open_model
from radgaze.inference.seals import is_sealed, seal
from radgaze.training import Run
from tests.inference.exports import trained

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "torch-export": "model.pt2"}


@pytest.fixture(scope="module")
def unet(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(cohort, tmp_path_factory.mktemp("run") / "unet", width=2)


@pytest.fixture(scope="module", params=FORMATS)
def model(request: pytest.FixtureRequest, unet: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("onnxruntime") is None or find_spec("openvino") is None:
        pytest.skip("the extra deploy is not installed")
    path = tmp_path_factory.mktemp("model") / FORMATS[request.param]
    radgaze.export(unet, path, format=request.param)
    return path


def copied(model: Path, folder: Path, file: Path, content: bytes) -> Path:
    """A copy of a model in a folder, with one of its files changed."""
    for part in model.parent.glob("model.*"):
        (folder / part.name).write_bytes(content if part == file else part.read_bytes())
    return folder / model.name


def test_a_flipped_bit_anywhere_is_noticed(model: Path, tmp_path: Path) -> None:
    assert is_sealed(model)
    random = np.random.default_rng(0)
    for file in sorted(model.parent.glob("model.*")):
        whole = file.read_bytes()
        places = {*random.integers(len(whole), size=60).tolist(), *range(len(whole) - 90, len(whole)), 0}
        for place in places:
            changed = bytearray(whole)
            changed[place] ^= 1 << int(random.integers(8))
            copy = copied(model, tmp_path, file, bytes(changed))
            if len(whole) - place <= 90:
                with suppress(InputError):
                    assert not is_sealed(copy), place  # the wrapping of the digits was hit
            else:
                with pytest.raises(InputError, match="has changed since it was written"):
                    is_sealed(copy)


@pytest.mark.parametrize("length", [-1, -70, -90, -1000, 20])
def test_a_file_that_was_cut_short_is_refused(model: Path, tmp_path: Path, length: int) -> None:
    for file in model.parent.glob("model.*"):
        with pytest.raises(InputError, match="export"):
            open_model(copied(model, tmp_path, file, file.read_bytes()[:length]))


def test_what_is_refused_and_what_is_not(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 64
    with pytest.raises(InputError, match=rf"{model.name}.*checksum differs\); copy it again, or export the run again"):
        radgaze.load(copied(model, tmp_path, model, bytes(changed)))
    unsealed = whole[:-66] + b"\0\0" if model.suffix == ".pt2" else whole[: whole.rindex(b"sha256") - 5]
    if model.suffix == ".onnx":
        unsealed = whole[:-76]
    with pytest.raises(InputError, match="has no checksum at its end"):
        radgaze.load(copied(model, tmp_path, model, unsealed))
    assert not is_sealed(tmp_path / model.name)
    seal(tmp_path / model.name)
    assert (tmp_path / model.name).read_bytes() == whole
    radgaze.load(tmp_path / model.name)


def test_the_digits_are_the_sha256_of_what_comes_before(model: Path) -> None:
    whole = model.read_bytes()
    weights = model.with_suffix(".bin").read_bytes() if model.suffix == ".xml" else b""
    ends = {".onnx": (-76, None), ".xml": (-81, -5), ".pt2": (-66, None)}
    before, after = ends[model.suffix]
    assert whole[before:after].endswith(hashlib.sha256(whole[:before] + weights).hexdigest().encode())


def test_other_programs_read_on(model: Path) -> None:
    """A checksum at the end is legal in each format."""
    if model.suffix == ".onnx":
        import onnx

        found = onnx.load(model)
        onnx.checker.check_model(found, full_check=True)
        assert [entry.key for entry in found.metadata_props] == ["radgaze", "sha256"]
    elif model.suffix == ".xml":
        import xml.etree.ElementTree

        import openvino

        xml.etree.ElementTree.parse(model)
        assert openvino.Core().read_model(model).has_rt_info(["radgaze"])
    else:
        with zipfile.ZipFile(model) as archive:
            assert archive.testzip() is None
            assert len(archive.comment) == 64
        torch.export.load(io.BytesIO(model.read_bytes()))
