"""DICOM headers in which every text says where it stood, and the search for those texts in what was made of them."""

from __future__ import annotations

import base64
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pydicom
from PIL import Image
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

__all__ = ["PLANTED", "finds", "plant", "texts"]

# What decodes the pixels, or names the kind of object, stays as it is.
KEPT = {
    "SpecificCharacterSet", "SOPClassUID", "PhotometricInterpretation", "NumberOfFrames", "WindowCenter", "WindowWidth",
    "RescaleIntercept", "RescaleSlope", "VOILUTFunction", "PixelSpacing", "ImagerPixelSpacing", "PatientOrientation",
    "BodyPartExamined", "PatientSex", "PixelAspectRatio", "FrameIncrementPointer",
}  # fmt: skip
DATE, TIME, NUMBER, UID = "19371113", "213141.595265", "86753091", "1.2.826.9999"
VALUES = {"DA": DATE, "TM": TIME, "DT": f"{DATE}{TIME}", "AS": "987Y", "IS": NUMBER, "DS": f"{NUMBER}.5"}
TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
PLANTED = re.compile(
    rb"PLANT(?!ED)|P\x00L\x00A\x00N\x00T\x00|1937.?11.?13|213141|21:31:41|86753091|1\.2\.826\.9999"
    rb"|(?<![\w+/=])987Y(?![\w+/=])"
)


def value(vr: str, tag: int) -> str | None:
    """A valid value that says where it stands, or that is like no other; None for what holds no text."""
    if vr == "UI":
        return f"{UID}.{tag >> 16}.{tag & 0xFFFF}"
    if vr in TEXTS:
        return f"PLANT{tag:08X}"
    return VALUES.get(vr)


def fill(dataset: Dataset, tags: dict[int, str]) -> None:
    for tag, vr in tags.items():
        if (found := value(vr, tag)) is not None:
            dataset.add_new(tag, vr, found)


@cache
def header(nested: bool = True) -> Dataset:
    """Every element of the standard that holds text, and private, nested, overlays' and curves' ones, all planted."""
    known = {
        tag: vr
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
        if keyword not in KEPT and tag >> 16 not in (0, 2)
    }
    dataset, inner, outer = Dataset(), Dataset(), Dataset()
    fill(dataset, known)
    for tag in (0x50000022, 0x50002500, 0x60000022, 0x60001500, 0x60020022, 0x00110010):
        dataset.add_new(tag, "LO", value("LO", tag))
    fill(dataset, dict(enumerate((*TEXTS, *VALUES, "UI"), 0x00111001)))
    dataset.add_new(0x001110F0, "OB", b"PLANT in bytes!!")
    dataset.add_new(0xFFFCFFFC, "OB", b"PLANT in padding")
    if not nested:
        return dataset
    fill(inner, known)
    outer.add_new(0x00081032, "SQ", Items([inner]))
    for sequence in (0x00400275, 0x001110F1):
        dataset.add_new(sequence, "SQ", Items([outer if sequence == 0x00400275 else inner]))
    return dataset


def plant(path: Path, number: int = 0, nested: bool = True, **elements: Any) -> Path:
    """Write a DICOM file anew with :func:`header`; ``elements`` are set by keyword, and None removes.

    Args:
        path: The file, whose pixels stay.
        number: Tells the studies apart.
        nested: Whether sequences are planted too, which takes a third of a second.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = pydicom.dcmread(path)
        dataset = Dataset()
        dataset.update(header(nested))
        dataset.update({one.tag: one for one in source if one.VR not in (*TEXTS, *VALUES, "UI") or one.keyword in KEPT})
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(dataset, keyword, f"{UID}.7.{number}.{len(keyword)}")
        for keyword, given in elements.items():
            if given is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, given)
        dataset.file_meta = meta = source.file_meta
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        meta.ImplementationClassUID = meta.PrivateInformationCreatorUID = f"{UID}.2"
        meta.ImplementationVersionName = meta.SourceApplicationEntityTitle = "PLANT00020013"
        meta.PrivateInformation = b"PLANT in the meta!"
        dataset.preamble = b"PLANT".ljust(128, b"!")
        dataset.save_as(path, enforce_file_format=False)
    return path


def finds(folder: Path) -> list[str]:
    """Where anything planted stands in the files of a folder, also inside archives, tables, pictures and pages."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if match := PLANTED.search(name.encode()):
            found.append(f"{name}: its name has {match[0]!r}")
        if path.is_file():
            for part, content in parts(path.name, path.read_bytes()):
                if match := PLANTED.search(content):
                    around = content[max(0, match.start() - 60) : match.end() + 40]
                    found.append(f"{name}{part}: {around!r}")
    return found


def parts(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and what they hold in another form."""
    yield "", content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield " names", "\n".join(archive.namelist()).encode()
            for member in archive.namelist():
                yield from ((f" {member}{part}", inner) for part, inner in parts(member, archive.read(member)))
    elif name.endswith(".parquet"):
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        yield " rows", str(table.to_pylist()).encode()
        yield " schema", str(table.schema.metadata).encode()
    elif content.startswith((b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")):
        with Image.open(io.BytesIO(content)) as picture:
            with suppress(OSError):  # one that was cut short on purpose
                picture.load()
            yield " info", f"{picture.info} {dict(picture.getexif())}".encode()
    for place, match in enumerate(re.finditer(rb"base64,([A-Za-z0-9+/=]+)", content)):
        yield from ((f" picture {place}{part}", inner) for part, inner in parts("", base64.b64decode(match[1])))


def texts(dataset: Dataset) -> set[str]:
    """Keywords of the elements, nested ones too, whose value was planted."""
    return {
        element.keyword or str(element.tag)
        for element in dataset.iterall()
        if element.VR != "SQ" and PLANTED.search(str(element.value).encode())
    }
