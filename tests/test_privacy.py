"""What DICOM headers and pictures' metadata say reaches nothing that is written, printed, logged or answered.

Every text of a header says where it stood; every command is run over such images, whole and damaged, and every byte
that comes out is searched. The only exception are the DICOM objects that ``--dicom`` asks for.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

import radgaze
from radgaze.cohort import Cohort
from radgaze.cohort.phantom import make_phantom
from tests.cohorts import SOURCE_SIZE, write_tables
from tests.inference.predictors import radiograph
from tests.planted import PLANTED, UID, finds, plant, texts

EXTRAS = ("onnx", "onnxruntime", "openvino", "highdicom", "fastapi")
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, EXTRAS)), reason="the extras deploy, dicom-out and serve are not installed"
)
ROOT = Path(__file__).resolve().parents[1]
CARRIED = {  # from a source's header into the objects of --dicom
    "PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "ReferencedSOPInstanceUID", "SeriesInstanceUID",
}  # fmt: skip
WINDOW = {"WindowCenter": "2000", "WindowWidth": "3000"}
LUT = Dataset()
LUT.LUTDescriptor, LUT.LUTExplanation, LUT.LUTData = [3, 0, 99], "PLANT in a table", b"PLANT!"
DAMAGES: dict[str, dict[str, Any]] = {
    "voi": {"VOILUTFunction": "PLANTVOI", **WINDOW},
    "frames": {"NumberOfFrames": "9"},
    "charset": {"SpecificCharacterSet": ["PLANT 8", "PLANT 9"]},
    "bits": {"BitsAllocated": 13},
    "sign": {"PixelRepresentation": 7},
    "palette": {"PhotometricInterpretation": "PALETTE COLOR"},
    "table": {"ModalityLUTSequence": [LUT]},
    "empty": {"PixelData": None},
    "large": {"Rows": 60000, "Columns": 60000},
}
COMPRESSED = {"jpeg": JPEGBaseline8Bit, "jpeg2000": JPEG2000Lossless, "rle": RLELossless}
REWRITTEN = {  # bytes in the place of bytes
    "photometric": (b"MONOCHROME2", b"PLANTPHOTO1"),
    "syntax": (b"1.2.840.10008.1.2.1\0", b"1.2.826.9999.6.6.66\0"),
    "rows": (b"\x28\0\x10\0US\x02\0", b"\x28\0\x10\0LO\x02\0"),
    "slope": (b"\x28\0\x53\x10DS\x02\x001 ", b"\x28\0\x53\x10DS\x02\0PL"),
    "magic": (b"DICM", b"PLAN"),
    "length": (b"\x10\0\x10\0PN", b"\x10\0\x10\0QQ"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and everything that every command makes of them."""
    place = tmp_path_factory.mktemp("place")
    (place / "out").mkdir()
    write_inputs(place / "in")
    hook = place / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    paths = [hook, Path(radgaze.__file__).parents[1], ROOT]
    settings = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "UNPICKLED": str(place / "unpickled"), "COLUMNS": "300"}
    with (place / "out/stdout.txt").open("wb") as out, (place / "out/stderr.txt").open("wb") as err:
        command = [sys.executable, "-m", "tests.every_command"]
        code = subprocess.run(command, cwd=place, env=os.environ | settings, stdout=out, stderr=err).returncode
    assert code == 0, (place / "out/stderr.txt").read_text(errors="replace")[-3000:]
    return place


HOOK = """
import os, sys, traceback

def told(event, arguments):
    if event == "pickle.find_class":
        line = f"{arguments[0]}.{arguments[1]} by " + " < ".join(
            f"{frame.filename}:{frame.name}" for frame in reversed(traceback.extract_stack()[:-1])
        )
        file = os.open(os.environ["UNPICKLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode() + b"\\n")
        os.close(file)

sys.addaudithook(told)
"""


def write_inputs(folder: Path) -> None:
    write_tables(folder)
    good, damaged, pictures = (folder / name for name in ("good", "damaged", "pictures"))
    for made in (good, damaged, pictures):
        made.mkdir()
    template, pixels = b"", b""
    for index in range(24):
        own = np.asarray(Image.open(folder / f"{index:03d}.png")).astype(np.uint16) * 16
        if not template:
            pixels = own.tobytes()
            template = plant(radiograph(good / "000.dcm", own), 10, RescaleIntercept="0", RescaleSlope="1").read_bytes()
        number = f"{UID}.7.{10 + index}.".encode()
        content = template.replace(pixels, own.tobytes()).replace(f"{UID}.7.10.".encode(), number)
        (good / f"{index:03d}.dcm").write_bytes(content)

    for name, elements in DAMAGES.items():
        source = radiograph(damaged / f"{name}.dcm", np.frombuffer(pixels, np.uint16).reshape(SOURCE_SIZE))
        plant(source, 40, nested=False, **elements)
    for name, syntax in COMPRESSED.items():
        dataset = pydicom.dcmread(damaged / "voi.dcm")
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([b"PLANT in pixels!" * 8])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(damaged / f"{name}.dcm", enforce_file_format=False)
    for name, (before, after) in REWRITTEN.items():
        assert before in template, name
        (damaged / f"{name}.dcm").write_bytes(template.replace(before, after))
    for length in (131, 1000, 5000, len(template) - 500):
        (damaged / f"cut{length}.dcm").write_bytes(template[:length])

    with (folder / "images.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    splits = ("train", "train", "val", "test")
    moved = [[row[0], f"good/{row[1][:3]}.dcm", *row[2:], splits[int(row[2][1:]) // 6]] for row in rows]
    write_csv(folder / "images.csv", [*heading, "split"], moved)
    files = sorted(damaged.iterdir())
    for file in files:
        write_csv(folder / f"{file.stem}.csv", ["study_id", "image"], [["s", f"damaged/{file.name}"]])
    write_csv(folder / "fractions.csv", ["study_id", "x_norm", "y_norm"], [["s", 0.5, 0.5]])
    whole = [[f"w{index}", f"good/{index:03d}.dcm"] for index in range(6)]
    write_csv(folder / "damaged.csv", ["study_id", "image"], [*whole, *([x.stem, f"damaged/{x.name}"] for x in files)])

    for layout in ("egd-cxr", "reflacx"):
        make_phantom(folder / layout, studies=4, layout=layout, image_size=(160, 132), workers=1, progress=False)
        files = sorted((folder / layout / "mimic-cxr").rglob("*.dcm"))
        for number, file in enumerate(files, 60):
            plant(file, number, nested=False)
        files[0].write_bytes(files[0].read_bytes()[:-400])

    image, info, exif = Image.open(folder / "000.png"), PngInfo(), Image.Exif()
    info.add_text("PatientName", "PLANT in a text")
    info.add_text("Comment", "PLANT in a packed text", zip=True)
    exif[0x010E] = exif[0x013B] = "PLANT in an exif"
    image.save(pictures / "a.png", pnginfo=info, exif=exif)
    image.save(pictures / "b.jpg", exif=exif, comment="PLANT in a comment")
    image.save(pictures / "c.tif", tiffinfo={270: "PLANT in a tag", 315: "PLANT in a tag"})
    for file in sorted(pictures.iterdir()):
        file.with_name(f"cut-{file.name}").write_bytes(file.read_bytes()[:-400])


def write_csv(path: Path, heading: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heading, *rows])


def test_the_search_finds_what_was_planted(place: Path) -> None:
    whole = pydicom.dcmread(place / "in/good/000.dcm")
    assert len(texts(whole)) > 2000
    found = " ".join(finds(place / "in"))
    for name in ("good/000.dcm", "pictures/a.png", "pictures/a.png info", "pictures/b.jpg", "pictures/c.tif"):
        assert name in found
    for text in ("1937-11-13", "86753091.5", "P\0L\0A\0N\0T\0", f"{UID}.1"):
        assert PLANTED.search(text.encode())


def test_every_command_did_its_work(place: Path) -> None:
    codes = json.loads((place / "out/codes.json").read_text())
    damaged = len(list((place / "in/damaged").iterdir()))
    strict = {name: code for name, code in codes.items() if name.startswith("strict")}
    partly = {"predict": 3, "predict, DICOM": 3}
    done = {name: code for name, code in codes.items() if name not in ("serve", "failures", *strict)}
    assert done == {name: partly.get(name, 0) for name in done}
    refused = [code for code in strict.values() if code == 2]
    assert len(refused) > damaged / 2  # the others are damaged where nothing looks
    assert set(strict.values()) <= {0, 2}
    assert 500 not in codes["serve"]
    assert codes["serve"].count(400) > damaged / 2
    assert codes["failures"] > damaged / 2
    for layout in ("egd-cxr", "reflacx"):
        cohort = Cohort.open(place / "out" / layout)
        assert len(cohort) >= 3
        assert cohort.meta["left_out"], "the image that was cut short came in"
    objects = (place / "out/objects/dicom").glob("000-*")
    assert sorted(path.name[-6:] for path in objects) == ["pm.dcm", "sc.dcm", "sr.dcm"]


def test_nothing_of_a_header_reaches_anything(place: Path) -> None:
    found = [line for line in finds(place / "out") if not line.startswith("objects/dicom/")]
    assert found == []


def test_objects_take_over_what_the_page_lists_and_no_more(place: Path) -> None:
    files = sorted((place / "out/objects/dicom").iterdir())
    assert files
    for file in files:
        assert not PLANTED.search(file.name.encode())
        made = pydicom.dcmread(file)
        assert {"PatientName", "PatientID", "StudyInstanceUID"} <= texts(made) <= CARRIED
    page = (ROOT / "docs/privacy.md").read_text(encoding="utf-8")
    assert all(pydicom.datadict.dictionary_description(keyword) in page for keyword in CARRIED)


def test_nothing_was_unpickled(place: Path) -> None:
    """Neither by radgaze nor by a library on its behalf, in any of its processes."""
    unpickled = place / "unpickled"
    assert not unpickled.exists(), unpickled.read_text()
    code = "import pickle, pathlib; pickle.loads(pickle.dumps(pathlib.PurePath()))"
    settings = {"PYTHONPATH": str(place / "hook"), "UNPICKLED": str(place / "seen")}
    subprocess.run([sys.executable, "-c", code], env=os.environ | settings, check=True)
    assert "pathlib.Pure" in (place / "seen").read_text()
