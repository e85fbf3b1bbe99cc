"""No file that radgaze reads can run code or be mistaken for another kind: whatever is in it, the error is a sentence."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import radgaze
from radgaze.cohort import Cohort, resplit
from radgaze.cohort.pixels import read_image, read_mask
from radgaze.cohort.store import sha256
from radgaze.errors import RadgazeError
from radgaze.files import read_json, write_json
from radgaze.inference import open_model
from radgaze.models import build
from radgaze.models.weights import load_encoder_weights
from radgaze.training import Run
from tests.hostile import traps
from tests.inference.exports import RECIPE, trained

SOURCE = Path(radgaze.__file__).parent


@pytest.fixture(scope="module")
def place(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort, a run trained on it, and the tables it came from."""
    place = tmp_path_factory.mktemp("whole")
    shutil.copytree(cohort.path, place / "cohort")
    shutil.copytree(cohort.path.parent / "tables", place / "tables")
    trained(Cohort.open(place / "cohort"), place / "run", width=2)
    radgaze.load(place / "run")  # leaves calibration.json where it can
    return place


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """The traps; that none has gone off is looked at after the last of the tests."""
    marker = tmp_path_factory.mktemp("marker") / "a-trap-went-off"
    yield traps(marker)
    assert not marker.exists()


def test_the_traps_do_go_off(tmp_path: Path) -> None:
    careless: dict[str, Callable[[Path], Any]] = {
        "pickle 0": lambda path: pickle.loads(path.read_bytes()),
        "pickle 5": lambda path: pickle.loads(path.read_bytes()),
        "torch zip": lambda path: torch.load(path, weights_only=False),
        "torch legacy": lambda path: torch.load(path, weights_only=False),
        "npy": lambda path: np.load(path, allow_pickle=True),
        "npz": lambda path: np.load(path, allow_pickle=True)["images"],
    }
    for index, (name, read) in enumerate(careless.items()):
        marker = tmp_path / f"marker-{index}"
        path = tmp_path / "trap"
        path.write_bytes(traps(marker)[name])
        read(path)
        assert marker.is_dir(), name


# ---- every file that something reads


def described(folder: Path, name: str) -> None:
    """Let cohort.json vouch for the file, as who wrote the trap would."""
    meta = read_json(folder / "cohort.json", "a cohort")
    meta["checksums"][name] = sha256(folder / name)
    write_json(folder / "cohort.json", meta)


def use_cohort(folder: Path) -> None:
    for name in ("studies.parquet", "gaze.parquet", "boxes.parquet"):
        described(folder / "cohort", name)
    cohort = Cohort.open(folder / "cohort")
    for study in cohort:
        _ = study.image, study.gaze, study.boxes
        cohort.mask(study.index, "blob")


def resume(folder: Path) -> None:
    state = read_json(folder / "run/state.json", "a state")
    write_json(folder / "run/state.json", state | {"finished": None})
    radgaze.fit(folder / "cohort", folder / "run", "mt-unet", resume=True, progress=False, model={"width": 2}, **RECIPE)


def fit(folder: Path, **settings: Any) -> None:
    radgaze.fit(folder / "cohort", folder / "new", "mt-unet", progress=False, **{"model": {"width": 2}, **RECIPE, **settings})


def tables(folder: Path) -> None:
    images, gaze, boxes = (folder / "tables" / f"{name}.csv" for name in ("images", "gaze", "boxes"))
    radgaze.import_tables(images, folder / "out", gaze=gaze, boxes=boxes, size=(48, 32), strict=True, progress=False)


def predict(folder: Path) -> None:
    for result in radgaze.predict(folder / "run", folder / "tables" / "000.png", progress=False):
        if hasattr(result, "error"):
            raise RadgazeError(result.error)


def predict_again(folder: Path) -> None:
    radgaze.predict(folder / "run", folder / "tables" / "000.png", folder / "out", resume=True, progress=False)


LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a cohort's description": ("cohort/cohort.json", lambda folder: Cohort.open(folder / "cohort")),
    "a cohort to split": ("cohort/studies.parquet", lambda folder: resplit(folder / "cohort")),
    "studies": ("cohort/studies.parquet", use_cohort),
    "gaze": ("cohort/gaze.parquet", use_cohort),
    "boxes": ("cohort/boxes.parquet", use_cohort),
    "images": ("cohort/images.npy", use_cohort),
    "masks": ("cohort/masks.npy", use_cohort),
    "an image of a shortcut": (
        "cohort/images.npy",
        lambda folder: radgaze.plant_shortcut(folder / "cohort", folder / "out"),
    ),
    "a run's config": ("run/config.json", lambda folder: Run.open(folder / "run")),
    "a run's weights": ("run/weights.safetensors", lambda folder: radgaze.load(folder / "run")),
    "a run's calibration": ("run/calibration.json", lambda folder: radgaze.load(folder / "run")),
    "a run's state": ("run/state.json", lambda folder: radgaze.load(folder / "run")),
    "a state to go on from": ("run/state/epoch-0002.safetensors", resume),
    "initial weights": (
        "initial.safetensors",
        lambda folder: fit(folder, initial_weights=str(folder / "initial.safetensors")),
    ),
    "a teacher's weights": (
        "run/weights.safetensors",
        lambda folder: fit(folder, distill={"teacher": str(folder / "run")}),
    ),
    "a teacher's scores": (
        "scores.safetensors",
        lambda folder: fit(
            folder,
            distill={"teacher": str(folder / "run"), "scores": str(folder / "scores.safetensors")},
            augmentation={"views": 2},
        ),
    ),
    "the table of images": ("tables/images.csv", tables),
    "the table of gaze": ("tables/gaze.csv", tables),
    "the table of boxes": ("tables/boxes.csv", tables),
    "an image to import": ("tables/000.png", tables),
    "a mask to import": ("tables/000-blob.png", tables),
    "an image to predict": ("tables/000.png", predict),
    "what a prediction was asked": ("out/predict.json", predict_again),
}
WEIGHTS = [f"weights{suffix}" for suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz", ".h5")]
IMAGES = [f"image{suffix}" for suffix in (".png", ".jpg", ".tif", ".dcm", ".dicom", ".npy", "")]
MODELS = [f"model{suffix}" for suffix in (".onnx", ".xml", ".pt2", ".pt", ".bin")]


@pytest.mark.parametrize("loader", LOADERS)
def test_a_trap_in_the_place_of_a_file_is_a_sentence(
    place: Path, forms: dict[str, bytes], tmp_path: Path, loader: str
) -> None:
    name, read = LOADERS[loader]
    here = copied(place, tmp_path)
    path = here / name
    path.parent.mkdir(exist_ok=True)
    for form, content in forms.items():
        path.write_bytes(content)
        check(form, path, lambda _: read(here))


def copied(place: Path, folder: Path) -> Path:
    """A copy to spoil, whose run finds its own cohort."""
    shutil.copytree(place, folder / "place")
    config = read_json(folder / "place/run/config.json", "a run")
    config["cohort"]["path"] = str(folder / "place/cohort")
    write_json(folder / "place/run/config.json", config)
    return folder / "place"


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_never_unpickled(forms: dict[str, bytes], tmp_path: Path, name: str) -> None:
    network = build({"name": "mt-unet", "width": 2})
    for form, content in forms.items():
        path = tmp_path / name
        path.write_bytes(content)
        check(form, path, lambda path: load_encoder_weights(network, path))


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_never_unpickled(forms: dict[str, bytes], tmp_path: Path, name: str) -> None:
    for form, content in forms.items():
        path = tmp_path / name
        path.write_bytes(content)
        check(form, path, read_image)
        check(form, path, read_mask)


@pytest.mark.parametrize("name", MODELS)
def test_exported_models_are_never_unpickled(forms: dict[str, bytes], tmp_path: Path, name: str) -> None:
    for form, content in forms.items():
        path = tmp_path / name
        path.write_bytes(content)
        check(form, path, open_model)


def check(form: str, path: Path, read: Callable[[Path], Any]) -> None:
    try:
        read(path)
    except RadgazeError as error:
        said = str(error)
        assert said.count("\n") == 0, f"{form}: {said}"
        assert "Trap" not in said
    except Exception as error:
        raise AssertionError(f"{form} as {path.name}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{form} as {path.name} was taken")


# ---- JSON of another shape

ODD = ["null", "[]", "{}", '"text"', "7", '{"format": 1}', "[" * 100_000, "9" * 5000, '{"a": NaN}']
JSON = [name for name in LOADERS if LOADERS[name][0].endswith(".json")]


@pytest.mark.parametrize("loader", JSON)
def test_json_of_another_shape_is_a_sentence(place: Path, tmp_path: Path, loader: str) -> None:
    name, read = LOADERS[loader]
    here = copied(place, tmp_path)
    (here / name).parent.mkdir(exist_ok=True)
    for content in ODD:
        (here / name).write_text(content)
        check(content[:20], here / name, lambda _: read(here))
