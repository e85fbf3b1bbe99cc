"""No file that radgaze reads can run code or pass for another kind: whatever is in it, the error is a sentence."""

from __future__ import annotations

import ast
import contextlib
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

import radgaze
from radgaze.cohort import Cohort, resplit
from radgaze.cohort.pixels import read_image, read_mask
from radgaze.cohort.store import sha256
from radgaze.errors import InputError, RadgazeError
from radgaze.files import read_sealed, write_sealed
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
    meta = read_sealed(folder / "cohort.json", "a cohort")
    meta["checksums"][name] = sha256(folder / name)
    write_sealed(folder / "cohort.json", meta)


def use_cohort(folder: Path) -> None:
    for name in ("studies.parquet", "gaze.parquet", "boxes.parquet"):
        described(folder / "cohort", name)
    cohort = Cohort.open(folder / "cohort")
    for study in cohort:
        _ = study.image, study.gaze, study.boxes
        cohort.mask(study.index, "blob")


def resume(folder: Path) -> None:
    state = read_sealed(folder / "run/state.json", "a state")
    write_sealed(folder / "run/state.json", state | {"finished": None})
    radgaze.fit(folder / "cohort", folder / "run", "mt-unet", resume=True, progress=False, model={"width": 2}, **RECIPE)


def fit(folder: Path, **settings: Any) -> None:
    given = {"model": {"width": 2}, **RECIPE, **settings}
    radgaze.fit(folder / "cohort", folder / "new", "mt-unet", progress=False, **given)


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
    config = read_sealed(folder / "place/run/config.json", "a run")
    config["cohort"]["path"] = str(folder / "place/cohort")
    write_sealed(folder / "place/run/config.json", config)
    return folder / "place"


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_never_unpickled(forms: dict[str, bytes], tmp_path: Path, name: str) -> None:
    network = build({"name": "mt-unet", "width": 2})
    check_forms(forms, tmp_path / name, lambda path: load_encoder_weights(network, path))


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_never_unpickled(forms: dict[str, bytes], tmp_path: Path, name: str) -> None:
    check_forms(forms, tmp_path / name, read_image, read_mask)


@pytest.mark.parametrize("name", MODELS)
def test_exported_models_are_never_unpickled(forms: dict[str, bytes], tmp_path: Path, name: str) -> None:
    check_forms(forms, tmp_path / name, open_model)


def check_forms(forms: dict[str, bytes], path: Path, *readers: Callable[[Path], Any]) -> None:
    for form, content in forms.items():
        path.write_bytes(content)
        for read in readers:
            check(form, path, read)


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


# ---- files of other kinds that reach out


def test_an_onnx_model_takes_no_weights_from_elsewhere(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra deploy is not installed")
    pytest.importorskip("onnxruntime", reason="the extra deploy is not installed")
    secret, file = tmp_path / "secret.bin", tmp_path / "models/model.onnx"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    file.parent.mkdir()
    (file.parent / "link.bin").symlink_to(secret)
    image, out = (onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("image", "out"))
    for location in ("../secret.bin", str(secret), "link.bin", "/etc/hostname"):
        weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
        weights.external_data.add(key="location", value=location)
        node = onnx.helper.make_node("Add", ["image", "w"], ["out"])
        write_onnx(file, onnx.helper.make_graph([node], "reaching out", [image], [out], [weights]), "")
        with pytest.raises(InputError, match=r"cannot be opened as a model .*xternal data"):
            open_model(file)
    node = onnx.helper.make_node("Trap", ["image"], ["out"], domain="elsewhere")
    write_onnx(file, onnx.helper.make_graph([node], "of its own", [image], [out]), "elsewhere")
    with pytest.raises(InputError, match=r"Trap.* is not a registered"):
        open_model(file)


def write_onnx(file: Path, graph: Any, domain: str) -> None:
    import onnx

    opsets = [onnx.helper.make_opsetid("", 18)] + ([onnx.helper.make_opsetid(domain, 1)] if domain else [])
    file.write_bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


LOLS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
XML = {
    "entities in entities": f'<!DOCTYPE net [<!ENTITY l0 "lol">{LOLS}]><net name="&l9;" version="11"><layers/></net>',
    "an entity of a file": '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/hostname">]><net name="&x;"><layers/></net>',
    "elements in elements": "<net>" * 100_000,
    "an operation of its own": (
        '<net name="g" version="11"><layers><layer id="0" name="image" type="Trap" version="elsewhere"><output>'
        '<port id="0" precision="FP32"><dim>4</dim></port></output></layer></layers><edges/></net>'
    ),
    "weights beyond the file": (
        '<net name="g" version="11"><layers><layer id="0" name="w" type="Const" version="opset1"><data '
        'element_type="f32" shape="4" offset="99999999999" size="16"/><output><port id="0" precision="FP32"><dim>4'
        '</dim></port></output></layer><layer id="1" name="out" type="Result" version="opset1"><input><port id="0" '
        'precision="FP32"><dim>4</dim></port></input></layer></layers><edges><edge from-layer="0" from-port="0" '
        'to-layer="1" to-port="0"/></edges></net>'
    ),
}


@pytest.mark.parametrize("content", XML.values(), ids=XML.keys())
def test_an_openvino_model_is_xml_and_no_more(tmp_path: Path, content: str) -> None:
    pytest.importorskip("openvino", reason="the extra deploy is not installed")
    file = tmp_path / "model.xml"
    file.with_suffix(".bin").write_bytes(bytes(16))
    file.write_text('<?xml version="1.0"?>' + content)
    check("xml", file, open_model)


def test_a_program_of_compressed_records_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/models/model.json", " " * 10_000_000)
    with pytest.raises(InputError, match="compressed records"):
        open_model(file)


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_a_backbone_has_no_second_door_for_weights(option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"The backbone option '{option}' is set by the network itself"):
        build({"name": "gaze-cam", "backbone": "resnet10t", "options": {option: str(tmp_path / "trap.pth")}})


@pytest.mark.parametrize("name", ["hf-hub:someone/trap", "local-dir:trap", "/tmp/trap"])
def test_a_backbone_is_never_fetched_by_its_name(name: str) -> None:
    with pytest.raises(InputError, match="There is no backbone"):
        build({"name": "gaze-cam", "backbone": name})
    with pytest.raises(InputError, match="There is no encoder"):
        build({"name": "mt-unet", "encoder": f"tu-{name}"})


@pytest.mark.parametrize("name", ["../secret.csv", "/etc/hostname", "secret.csv"])
def test_a_cohort_names_no_file_but_its_own(place: Path, tmp_path: Path, name: str) -> None:
    """A copy of it would write that file, wherever it is."""
    here = copied(place, tmp_path)
    (here / "secret.csv").write_text("of somebody else")
    meta = read_sealed(here / "cohort/cohort.json", "a cohort")
    meta["checksums"][name] = "0" * 64
    write_sealed(here / "cohort/cohort.json", meta)
    with pytest.raises(InputError, match=r"has checksums = .* which no import writes"):
        radgaze.plant_shortcut(here / "cohort", here / "out")


def test_a_table_of_python_objects_is_refused(place: Path, forms: dict[str, bytes], tmp_path: Path) -> None:
    """Arrow once unpickled the description of a column's type that its metadata holds."""
    here = copied(place, tmp_path)
    for name, read in (("gaze", lambda cohort: cohort[0].gaze), ("boxes", lambda cohort: cohort[0].boxes)):
        file = here / f"cohort/{name}.parquet"
        table = pa.parquet.read_table(file)
        hints = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": forms["pickle 2"]}
        schema = pa.schema([one.with_metadata(hints) for one in table.schema], metadata=table.schema.metadata)
        pa.parquet.write_table(table.cast(schema), file)
        described(here / "cohort", file.name)
        with contextlib.suppress(RadgazeError):
            read(Cohort.open(here / "cohort"))


# ---- the source


FORBIDDEN = {
    "eval", "exec", "compile", "__import__",
    "pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "h5py",
    "torch.load", "torch.jit.load", "torch.package", "torch.hub", "torch.serialization",
    "np.load", "numpy.load", "np.fromregex", "pd.read_pickle", "pl.DataFrame.deserialize", "pl.LazyFrame.deserialize",
    "os.system", "os.popen", "subprocess.call",
}  # fmt: skip
ALLOWED = {"re.compile"}


def test_the_source_calls_nothing_that_unpickles_or_evaluates() -> None:
    found = [
        f"{file.relative_to(SOURCE)}:{node.lineno}: {name}"
        for file in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in named(node)
        if any(name == one or name.startswith(f"{one}.") for one in FORBIDDEN) and name not in ALLOWED
    ]
    assert found == []


def named(node: ast.AST) -> list[str]:
    """What a node imports or calls, and keywords that switch a safeguard off."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if not isinstance(node, ast.Call):
        return []
    unsafe = {("allow_pickle", True), ("weights_only", False), ("shell", True)}
    switched = [(one.arg, getattr(one.value, "value", None)) for one in node.keywords]
    return [ast.unparse(node.func), *("eval" for pair in switched if pair in unsafe)]
