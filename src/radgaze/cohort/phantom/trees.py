"""Write made-up studies in the layouts of EGD-CXR 1.0.0 and REFLACX 1.0.0, quirks included.

Both data sets are credentialed: nothing here comes from them but their public documentation (file names, columns, units). Every id,
name, date, word and number is invented, so the trees may be shared, and the real importers are what reads them.

``OUT/egd-cxr/1.0.0/...`` or ``OUT/reflacx/{main_data,gaze_data}`` hold the tables, ``OUT/mimic-cxr/files/...`` the images, and beside them
lies what no real data set has: ``OUT/phantom.json`` (how it was made) and ``OUT/lesions.csv`` (the lesions drawn, with their visibility).

The gaze presets' sigmas are pixels of a radiograph about 3,000 pixels tall. At the default height of 1,024 scale them by
height / 3056, or the attention maps are three times too smooth.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import wave
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from rich.progress import track

from radgaze.cohort.phantom.anatomy import BITS, CLASSES, Label, Radiograph, expose
from radgaze.cohort.phantom.reader import Recording, Session, read
from radgaze.errors import InputError

__all__ = ["EGD_GAZE_COLUMNS", "EGD_MASTER_COLUMNS", "make_phantom"]

Layout = Literal["egd-cxr", "reflacx"]
ImageFormat = Literal["dcm", "jpg"]

EGD_MASTER_COLUMNS = [
    "dicom_id",
    "path",
    "study_id",
    "patient_id",
    "stay_id",
    "gender",
    "anchor_age",
    "image_top_pad",
    "image_bottom_pad",
    "image_left_pad",
    "image_right_pad",
    "dx1",
    "dx1_icd",
    "dx2",
    "dx2_icd",
    "dx3",
    "dx3_icd",
    "dx4",
    "dx4_icd",
    "dx5",
    "dx5_icd",
    "dx6",
    "dx6_icd",
    "dx7",
    "dx7_icd",
    "dx8",
    "dx8_icd",
    "dx9",
    "dx9_icd",
    "normal_reports",
    "Normal",
    "CHF",
    "pneumonia",
    "consolidation",
    "enlarged_cardiac_silhouette",
    "linear__patchy_atelectasis",
    "lobar__segmental_collapse",
    "not_otherwise_specified_opacity___pleural__parenchymal_opacity__",
    "pleural_effusion_or_thickening",
    "pulmonary_edema__hazy_opacity",
    "normal_anatomically",
    "elevated_hemidiaphragm",
    "hyperaeration",
    "vascular_redistribution",
    "atelectasis__chx",
    "cardiomegaly__chx",
    "consolidation__chx",
    "edema__chx",
    "enlarged_cardiomediastinum__chx",
    "fracture__chx",
    "lung_lesion__chx",
    "lung_opacity__chx",
    "no_finding__chx",
    "pleural_effusion__chx",
    "pleural_other__chx",
    "pneumonia__chx",
    "pneumothorax__chx",
    "support_devices__chx",
    "cxr_exam_indication",
]

EGD_GAZE_COLUMNS = [
    "SESSION_ID",
    "MEDIA_ID",
    "DICOM_ID",
    "CNT",
    "Time (in secs)",
    "TIMETICK(f=10000000)",
    "FPOGX",
    "FPOGY",
    "FPOGS",
    "FPOGD",
    "FPOGID",
    "FPOGV",
    "BPOGX",
    "BPOGY",
    "BPOGV",
    "LPCX",
    "LPCY",
    "LPD",
    "LPS",
    "LPV",
    "RPCX",
    "RPCY",
    "RPD",
    "RPS",
    "RPV",
    "BKID",
    "BKDUR",
    "BKPMIN",
    "LPMM",
    "LPMMV",
    "RPMM",
    "RPMMV",
    "SACCADE_MAG",
    "SACCADE_DIR",
    "VID_FRAME",
    "X_ORIGINAL",
    "Y_ORIGINAL",
]

SCREEN = (1080, 1920)
SCREEN_PIXELS_PER_DEGREE = 41.0  # a 24 inch full-HD screen at 65 cm
EGD_CASES_PER_SESSION = 30


# ------------------------------------------------------------------------------------------------------------------ identities


@dataclass(frozen=True)
class _Identity:
    """Who and what one image is: invented numbers in MIMIC-CXR's ranges."""

    image: int  # index of the image in the tree
    patient: int
    study: int  # index within the patient
    label: Label
    dicom_id: str
    patient_id: int
    study_id: int
    stay_id: int

    @property
    def folder(self) -> str:
        return f"files/p{str(self.patient_id)[:2]}/p{self.patient_id}/s{self.study_id}"


def _identities(studies: int, seed: int, repeats: float = 0.08) -> list[_Identity]:
    """Images with balanced labels in random order; about ``repeats`` of them are a further study of a patient already seen."""
    rng = np.random.default_rng([seed, 21])
    labels = [CLASSES[i % len(CLASSES)] for i in range(studies)]
    rng.shuffle(labels)
    patient_ids = iter(10_000_000 + rng.choice(9_999_999, studies, replace=False))
    study_ids = 50_000_000 + rng.choice(9_999_999, studies, replace=False)
    stay_ids = 30_000_000 + rng.choice(9_999_999, studies, replace=False)
    known: list[int] = []
    seen: list[int] = []
    out = []
    for image, label in enumerate(labels):
        # The third image is always a repeat, so that even the smallest tree has a patient with two studies.
        if known and (image == 2 or rng.random() < repeats):
            patient = int(rng.integers(len(known)))
        else:
            known.append(int(next(patient_ids)))
            seen.append(0)
            patient = len(known) - 1
        dicom_id = "-".join(rng.bytes(4).hex() for _ in range(5))
        identity = _Identity(
            image, patient, seen[patient], label, dicom_id, known[patient], int(study_ids[image]), int(stay_ids[image])
        )
        seen[patient] += 1
        out.append(identity)
    return out


# ---------------------------------------------------------------------------------------------------------------------- images


def _uid(*parts: object) -> str:
    """A UID under the UUID-derived root 2.25, the same for the same parts."""
    return "2.25." + str(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:31], 16))


def _write_dicom(image: Radiograph, identity: _Identity, path: Path) -> None:
    """A computed radiograph: 12 of 16 bits, MONOCHROME1 in one third of the images."""
    inverted = int(identity.dicom_id[:2], 16) % 3 == 0
    top = 2**BITS - 1
    pixels = (top - image.pixels if inverted else image.pixels).astype("<u2")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(identity.dicom_id)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("radgaze phantom")
    data = Dataset()
    data.file_meta = meta
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = _uid("study", identity.study_id)
    data.SeriesInstanceUID = _uid("series", identity.study_id)
    year = 2110 + identity.patient_id % 80
    data.StudyDate = data.SeriesDate = f"{year}{1 + identity.study_id % 12:02d}{1 + identity.study_id % 28:02d}"
    data.StudyTime = f"{identity.study_id % 24:02d}{identity.study_id % 60:02d}00"
    data.AccessionNumber = ""
    data.Modality = "CR"
    data.Manufacturer = "radgaze phantom"
    data.ReferringPhysicianName = ""
    data.PatientName = f"Phantom^Patient {identity.patient:04d}"
    data.PatientID = str(identity.patient_id)
    data.PatientBirthDate = ""
    data.PatientSex = image.patient.sex
    data.PatientAge = f"{image.patient.age:03d}Y"
    data.StudyID = str(identity.study_id)
    data.SeriesNumber = data.InstanceNumber = 1
    data.BodyPartExamined = "CHEST"
    data.ViewPosition = image.view
    data.KVP = "120"
    data.PatientOrientation = ["L", "F"]
    data.ImagerPixelSpacing = [f"{image.mm_per_pixel:.6f}"] * 2
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, BITS, BITS - 1, 0
    data.WindowCenter, data.WindowWidth = str(2 ** (BITS - 1)), str(2**BITS)
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


def _write_image(image: Radiograph, identity: _Identity, root: Path, image_format: ImageFormat) -> None:
    path = root / "mimic-cxr" / identity.folder / f"{identity.dicom_id}.{image_format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if image_format == "dcm":
        _write_dicom(image, identity, path)
    else:
        Image.fromarray((image.pixels >> (BITS - 8)).astype(np.uint8)).save(path, quality=95)


def _lesion_rows(image: Radiograph, identity: _Identity) -> list[tuple[Any, ...]]:
    return [
        (
            identity.dicom_id,
            image.label,
            lesion.name,
            *(round(edge, 1) for edge in lesion.box),
            round(lesion.visibility, 3),
        )
        for lesion in image.lesions
    ]


# ---------------------------------------------------------------------------------------------------------------------- EGD-CXR


def _padding(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Screen pixels left free above, below, left and right when the image fills a 1920 x 1080 screen.

    An odd width or height is padded by one pixel first, as the data set's viewer did.
    """
    height, width = (side + side % 2 for side in size)
    scale = min(SCREEN[0] / height, SCREEN[1] / width)
    top = int((SCREEN[0] - height * scale) / 2)
    left = int((SCREEN[1] - width * scale) / 2)
    return top, top, left, left


def _egd_gaze(
    recording: Recording, identity: _Identity, size: tuple[int, int], session: str, rng: np.random.Generator
) -> pl.DataFrame:
    """One recording in the columns of a Gazepoint tracker, one row per sample."""
    top, bottom, left, right = _padding(size)
    height, width = (side + side % 2 for side in size)
    shown_h, shown_w = SCREEN[0] - top - bottom, SCREEN[1] - left - right
    n = len(recording.t)
    rows = np.arange(n)
    # A lost eye repeats what was last seen, flagged invalid.
    seen = np.isfinite(recording.x)
    last_seen = np.maximum.accumulate(np.where(seen, rows, np.argmax(seen)))
    screen_x = (recording.x[last_seen] * shown_w / width + left) / SCREEN[1]
    screen_y = (recording.y[last_seen] * shown_h / height + top) / SCREEN[0]
    # FPOG is the mean of the fixation so far; between fixations it is the sample itself.
    inside = recording.fixation >= 0
    first = np.maximum.accumulate(np.where(np.diff(recording.fixation, prepend=-2) != 0, rows, 0))
    count = rows - first + 1

    def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.cumsum(values)
        return np.where(inside, (total - total[first] + values[first]) / count, values)

    fpog_x, fpog_y = running_mean(screen_x), running_mean(screen_y)
    # The tracker's own definition of the original pixel, from the rounded screen fractions it stores.
    fpog_x, fpog_y = np.round(fpog_x, 5), np.round(fpog_y, 5)
    eye_x, eye_y = fpog_x * SCREEN[1], fpog_y * SCREEN[0]
    original_x = np.floor(width / shown_w * (eye_x - left)).astype(np.int64)
    original_y = np.floor(height / shown_h * (eye_y - top)).astype(np.int64)
    original_x[original_x >= width] = -1
    original_y[original_y >= height] = -1

    number = np.maximum.accumulate(recording.fixation) + 1
    begin = np.where(inside, recording.t[first], recording.t)
    blink_start = recording.blink & ~np.concatenate([[False], recording.blink[:-1]])
    blink_end = ~recording.blink & np.concatenate([[False], recording.blink[:-1]])
    blink_began = np.maximum.accumulate(np.where(blink_start, rows, 0))
    fixation_start = inside & (rows == first)
    previous = np.maximum(number - 2, 0)
    current = np.maximum(number - 1, 0)
    jump_x = (
        (recording.centre_x[current] - recording.centre_x[previous]) * shown_w / width
        if len(recording.starts)
        else np.zeros(n)
    )
    jump_y = (
        (recording.centre_y[current] - recording.centre_y[previous]) * shown_h / height
        if len(recording.starts)
        else np.zeros(n)
    )
    tick = 6_000_000_000_000 + int(rng.integers(10**9)) + (recording.t * 1e7).astype(np.int64)
    head_x, head_y = 0.5 + np.cumsum(rng.normal(0, 2e-4, n)), 0.5 + np.cumsum(rng.normal(0, 2e-4, n))
    valid = seen.astype(np.int64)
    pupil = recording.pupil
    columns: dict[str, Any] = {
        "SESSION_ID": session,
        "MEDIA_ID": identity.image % EGD_CASES_PER_SESSION + 1,
        "DICOM_ID": identity.dicom_id,
        "CNT": rows,
        "Time (in secs)": np.round(recording.t, 5),
        "TIMETICK(f=10000000)": tick,
        "FPOGX": fpog_x,
        "FPOGY": fpog_y,
        "FPOGS": np.round(begin, 5),
        "FPOGD": np.round(np.where(inside, recording.t - begin, 0.0), 5),
        "FPOGID": number,
        "FPOGV": (inside & seen).astype(np.int64),
        "BPOGX": np.round(screen_x, 5),
        "BPOGY": np.round(screen_y, 5),
        "BPOGV": valid,
        "LPCX": np.round(head_x - 0.06, 5),
        "LPCY": np.round(head_y, 5),
        "LPD": np.round(pupil * 4.9, 5),
        "LPS": np.round(1.0 + 0.0 * pupil, 5),
        "LPV": valid,
        "RPCX": np.round(head_x + 0.06, 5),
        "RPCY": np.round(head_y + 0.004, 5),
        "RPD": np.round(pupil * 4.95, 5),
        "RPS": np.round(1.0 + 0.0 * pupil, 5),
        "RPV": valid,
        "BKID": np.where(recording.blink, np.cumsum(blink_start), 0),
        "BKDUR": np.round(np.where(blink_end, recording.t - recording.t[blink_began], 0.0), 5),
        "BKPMIN": np.searchsorted(recording.t[blink_start], recording.t)
        - np.searchsorted(recording.t[blink_start], recording.t - 60),
        "LPMM": np.round(pupil, 5),
        "LPMMV": valid,
        "RPMM": np.round(pupil + 0.05, 5),
        "RPMMV": valid,
        "SACCADE_MAG": np.round(np.where(fixation_start, np.hypot(jump_x, jump_y), 0.0), 5),
        "SACCADE_DIR": np.round(np.where(fixation_start, np.degrees(np.arctan2(-jump_y, jump_x)) % 360, 0.0), 5),
        "VID_FRAME": (recording.t * 10).astype(np.int64),
        "X_ORIGINAL": original_x,
        "Y_ORIGINAL": original_y,
    }
    return pl.DataFrame({name: columns[name] for name in EGD_GAZE_COLUMNS})


def _calibration(session: str, seed: int, number: int) -> pl.DataFrame:
    """The dots a reader follows before a session; their 39-character DICOM_ID names no image."""
    rng = np.random.default_rng([seed, number, 22])
    name = "-".join(rng.bytes(size).hex() for size in (4, 4, 4, 6))
    t = np.arange(90) / 60
    grid = np.array([[0.5, 0.5], [0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])
    x, y = grid[np.arange(90) // 18].T + rng.normal(0, 0.004, (2, 90))
    zeros = np.zeros(90, np.int64)
    columns: dict[str, Any] = dict.fromkeys(EGD_GAZE_COLUMNS, zeros)
    columns |= {"SESSION_ID": session, "DICOM_ID": name, "CNT": np.arange(90), "Time (in secs)": np.round(t, 5)}
    columns |= {"FPOGX": np.round(x, 5), "FPOGY": np.round(y, 5), "BPOGX": np.round(x, 5), "BPOGY": np.round(y, 5)}
    columns |= {
        "FPOGS": np.round(np.floor(t / 0.3) * 0.3, 5),
        "FPOGD": np.round(t % 0.3, 5),
        "FPOGID": np.arange(90) // 18 + 1,
    }
    columns |= {"FPOGV": zeros + 1, "BPOGV": zeros + 1, "X_ORIGINAL": zeros - 1, "Y_ORIGINAL": zeros - 1}
    return pl.DataFrame({name: columns[name] for name in EGD_GAZE_COLUMNS})


def _last_of_fixations(gaze: pl.DataFrame) -> pl.DataFrame:
    """The data set's fixations: the last row of each."""
    return gaze.filter(pl.col("FPOGV") == 1).group_by("FPOGID", maintain_order=True).last().select(EGD_GAZE_COLUMNS)


DIAGNOSES: dict[Label, tuple[tuple[str, str], ...]] = {
    "Normal": (
        ("CHEST PAIN, UNSPECIFIED", "R079"),
        ("DIZZINESS AND GIDDINESS", "R42"),
        ("ANXIETY DISORDER, UNSPECIFIED", "F419"),
    ),
    "CHF": (("HEART FAILURE, UNSPECIFIED", "I509"), ("SHORTNESS OF BREATH", "R0602"), ("ATRIAL FIBRILLATION", "I4891")),
    "pneumonia": (("PNEUMONIA, UNSPECIFIED ORGANISM", "J189"), ("FEVER, UNSPECIFIED", "R509"), ("COUGH", "R05")),
}

# As in a real emergency department, the reason for the examination says little about what is found.
COMPLAINTS = ("cough", "chest pain", "shortness of breath", "fever", "weakness", "dizziness", "fatigue")


def _indication(image: Radiograph, rng: np.random.Generator) -> str:
    sex = "woman" if image.patient.sex == "F" else "man"
    one, two = rng.choice(COMPLAINTS, 2, replace=False)
    return f'EXAMINATION:  CHEST ({image.view})\n\nINDICATION:  ___ year old {sex} with {one}, {two}  // "acute process"?\n'


def _present(image: Radiograph, name: str) -> bool:
    """Whether a report would mention it: shown clearly enough to be seen."""
    return any(lesion.name == name and lesion.visibility > 0.2 for lesion in image.lesions)


def _egd_master_row(image: Radiograph, identity: _Identity, rng: np.random.Generator) -> dict[str, Any]:
    found = {name: int(_present(image, name)) for name in EGD_MASTER_COLUMNS[33:44]}
    top, bottom, left, right = _padding(image.size)
    decade = image.patient.age // 10 * 10
    row: dict[str, Any] = {
        "dicom_id": identity.dicom_id,
        "path": f"{identity.folder}/{identity.dicom_id}.dcm",
        "study_id": identity.study_id,
        "patient_id": identity.patient_id,
        "stay_id": identity.stay_id,
        "gender": image.patient.sex,
        "anchor_age": f"{decade} - {decade + 10}",
        "image_top_pad": top,
        "image_bottom_pad": bottom,
        "image_left_pad": left,
        "image_right_pad": right,
    }
    for number, (text, code) in enumerate(DIAGNOSES[image.label][: int(rng.integers(1, 4))], start=1):
        row |= {f"dx{number}": text, f"dx{number}_icd": code}
    row["normal_reports"] = int(image.label == "Normal")
    row |= {label: int(image.label == label) for label in CLASSES}
    row |= found | {"normal_anatomically": int(not any(found.values()))}
    # A report labeller leaves most findings unmentioned (empty), negates some (0) and is unsure of others (-1).
    labelled = {
        "atelectasis__chx": "linear__patchy_atelectasis",
        "cardiomegaly__chx": "enlarged_cardiac_silhouette",
        "consolidation__chx": "consolidation",
        "edema__chx": "pulmonary_edema__hazy_opacity",
        "pleural_effusion__chx": "pleural_effusion_or_thickening",
    }
    for column in EGD_MASTER_COLUMNS[44:58]:
        if column in labelled and found[labelled[column]]:
            row[column] = 1 if rng.random() < 0.8 else -1
        elif rng.random() < 0.25:
            row[column] = 0
    row["pneumonia__chx"] = {"pneumonia": 1, "CHF": -1, "Normal": 0}[image.label]
    row["no_finding__chx"] = 1 if not any(found.values()) else None
    row["cxr_exam_indication"] = _indication(image, rng)
    return row


PHRASES = {
    "Normal": ("the lungs are clear", "heart size is normal", "no effusion"),
    "consolidation": ("there is an air space opacity",),
    "pulmonary_edema__hazy_opacity": ("perihilar haze suggests edema",),
    "pleural_effusion_or_thickening": ("there is a pleural effusion",),
    "enlarged_cardiac_silhouette": ("the cardiac silhouette is enlarged",),
    "vascular_redistribution": ("the upper zone vessels are prominent",),
    "linear__patchy_atelectasis": ("linear atelectasis at the base",),
}


def _dictation(image: Radiograph) -> list[str]:
    """What the reader says: phrases about what can be seen."""
    seen = dict.fromkeys(lesion.name for lesion in image.lesions if lesion.visibility > 0.2)
    return [phrase for name in seen for phrase in PHRASES[name]] or list(PHRASES["Normal"])


def _write_transcript(image: Radiograph, seconds: float, folder: Path) -> None:
    phrases = _dictation(image)
    begin = np.linspace(0.4 * seconds, 0.9 * seconds, len(phrases))
    timed = [
        {
            "phrase": phrase,
            "begin_time": round(float(at), 1),
            "end_time": round(float(at) + 0.3 * len(phrase.split()), 1),
        }
        for phrase, at in zip(phrases, begin, strict=True)
    ]
    (folder / "transcript.json").write_text(
        json.dumps({"full_text": ". ".join(phrases) + ".", "time_stamped_text": timed}, indent=1)
    )
    with wave.open(str(folder / "audio.wav"), "wb") as audio:  # a tenth of a second of silence
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(16_000)
        audio.writeframes(bytes(2 * 1_600))


def _egd_session(image: int) -> tuple[int, str]:
    number = image // EGD_CASES_PER_SESSION
    return number, f"{100 + number}"


@dataclass(frozen=True)
class _Job:
    """Everything one process needs to make one image and what belongs to it."""

    root: Path
    identity: _Identity
    seed: int
    size: tuple[int, int]
    difficulty: float
    image_format: ImageFormat

    def expose(self) -> Radiograph:
        who = self.identity
        return expose(
            who.label, seed=self.seed, patient=who.patient, study=who.study, size=self.size, difficulty=self.difficulty
        )


@dataclass(frozen=True)
class _EgdStudy:
    master: dict[str, Any]
    boxes: list[tuple[Any, ...]]
    lesions: list[tuple[Any, ...]]
    gaze: bytes
    fixations: bytes


def _egd_study(job: _Job) -> _EgdStudy:
    """Write one study's image and masks; return its rows."""
    identity, image = job.identity, job.expose()
    _write_image(image, identity, job.root, job.image_format)
    folder = job.root / "egd-cxr" / "1.0.0" / "audio_segmentation_transcripts" / identity.dicom_id
    folder.mkdir(parents=True)
    for name, mask in image.masks.items():
        spelled = "mediastanum" if name == "mediastinum" else name
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"{spelled}.png", compress_level=3)
    number, session_id = _egd_session(identity.image)
    rng = np.random.default_rng([job.seed, identity.image, 31])
    recording = read(
        image,
        Session.draw(job.seed, reader=0, session=number),
        rng,
        pixels_per_degree=SCREEN_PIXELS_PER_DEGREE * job.size[0] / SCREEN[0],
        minutes_into_session=(identity.image % EGD_CASES_PER_SESSION) * 0.7,
    )
    _write_transcript(image, float(recording.t[-1]), folder)
    gaze = _egd_gaze(recording, identity, job.size, session_id, rng)
    boxes = [
        (identity.dicom_id, name, *(round(edge, 2) for edge in (box[0], box[2], box[1], box[3])))
        for name, box in image.anatomies.items()
    ]
    return _EgdStudy(
        _egd_master_row(image, identity, rng),
        boxes,
        _lesion_rows(image, identity),
        _csv_rows(gaze),
        _csv_rows(_last_of_fixations(gaze)),
    )


def _csv_rows(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_csv(buffer, include_header=False)
    return buffer.getvalue()


def _write_egd(jobs: Sequence[_Job], root: Path, run: Callable[..., Iterable[Any]]) -> list[tuple[Any, ...]]:
    folder = root / "egd-cxr" / "1.0.0"
    folder.mkdir(parents=True)
    lesions: list[tuple[Any, ...]] = []
    header = (",".join(EGD_GAZE_COLUMNS) + "\n").encode()
    with (
        open(folder / "master_sheet.csv", "w", newline="", encoding="utf-8") as master_file,
        open(folder / "bounding_boxes.csv", "w", newline="", encoding="utf-8") as box_file,
        open(folder / "eye_gaze.csv", "wb") as gaze_file,
        open(folder / "fixations.csv", "wb") as fixation_file,
    ):
        master = csv.DictWriter(master_file, EGD_MASTER_COLUMNS, restval="", lineterminator="\n")
        master.writeheader()
        boxes = csv.writer(box_file, lineterminator="\n")
        boxes.writerow(["dicom_id", "bbox_name", "x1", "x2", "y1", "y2"])
        gaze_file.write(header)
        fixation_file.write(header)
        for job, study in zip(jobs, run(_egd_study, jobs), strict=True):
            number, session_id = _egd_session(job.identity.image)
            if job.identity.image % EGD_CASES_PER_SESSION == 0:
                gaze_file.write(_csv_rows(_calibration(session_id, job.seed, number)))
            master.writerow(study.master)
            boxes.writerows(study.boxes)
            lesions += study.lesions
            gaze_file.write(study.gaze)
            fixation_file.write(study.fixations)
    criteria = folder / "inclusion_exclusion_criteria_outputs"
    criteria.mkdir()
    included = "\n".join(str(job.identity.study_id) for job in jobs)
    (criteria / "included_studies.csv").write_text(f"study_id\n{included}\n")
    return lesions


# ------------------------------------------------------------------------------------------------------------------- the trees


def make_phantom(
    out: str | os.PathLike[str],
    *,
    studies: int = 200,
    layout: Layout = "egd-cxr",
    seed: int = 0,
    image_size: tuple[int, int] = (1024, 852),
    difficulty: float = 0.3,
    image_format: ImageFormat = "dcm",
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a made-up data set in the layout of EGD-CXR or REFLACX.

    Args:
        out: folder to create; it must not exist, or be empty.
        studies: number of images. A REFLACX tree has more readings than images.
        layout: ``"egd-cxr"`` or ``"reflacx"``.
        seed: the same seed, sizes and difficulty give the same bytes.
        image_size: (height, width) in pixels. The field's radiographs are about (3056, 2544), which works and takes some 4 s and 16 MB
            an image; the default keeps their shape at a third of the side.
        difficulty: 0 (plain disease) to 1 (nothing to see), see :func:`radgaze.cohort.phantom.anatomy.expose`.
        image_format: ``"dcm"`` (12-bit DICOM, some MONOCHROME1) or ``"jpg"`` (8 bits, as MIMIC-CXR-JPG).
        workers: processes; default one per core.
        progress: show a progress bar.

    Returns:
        ``out`` as a Path. It appears complete or not at all: the work is done in ``OUT.partial`` and renamed.

    Raises:
        InputError: ``out`` is not empty, fewer than one study, or an unknown layout or format.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not empty; choose a new folder, or remove that one first")
    if studies < 1:
        raise InputError(f"studies is {studies}; expected at least 1")
    if layout not in get_args(Layout):
        raise InputError(f"layout is {layout!r}; expected one of {', '.join(get_args(Layout))}")
    if image_format not in get_args(ImageFormat):
        raise InputError(f"image_format is {image_format!r}; expected one of {', '.join(get_args(ImageFormat))}")
    work = target.with_name(target.name + ".partial")
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    jobs = [_Job(work, identity, seed, image_size, difficulty, image_format) for identity in _identities(studies, seed)]
    processes = min(os.cpu_count() or 1 if workers is None else workers, studies)

    def run(function: Callable[[_Job], Any], items: Sequence[_Job]) -> Iterable[Any]:
        if processes <= 1:
            yield from track(map(function, items), "Phantom", total=len(items), disable=not progress)
            return
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            yield from track(pool.map(function, items, chunksize=2), "Phantom", total=len(items), disable=not progress)

    lesions = _write_egd(jobs, work, run)
    with open(work / "lesions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dicom_id", "label", "name", "xmin", "ymin", "xmax", "ymax", "visibility"])
        writer.writerows(lesions)
    recipe = {
        "layout": layout,
        "studies": studies,
        "seed": seed,
        "image_size": list(image_size),
        "difficulty": difficulty,
    }
    (work / "phantom.json").write_text(json.dumps(recipe | {"image_format": image_format}, indent=1) + "\n")
    if target.exists():
        target.rmdir()
    work.rename(target)
    return target
