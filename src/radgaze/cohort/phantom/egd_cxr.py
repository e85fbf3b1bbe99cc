"""Made-up studies in the layout of EGD-CXR 1.0.0: master sheet, raw gaze, fixations, boxes, masks and transcripts.

Written from the data set's public documentation: names, columns and units are its own, every value is invented. The
quirks are there too: calibration screens among the gaze, ``mediastanum.png``, line breaks in the indication, negative
coordinates off the image.
"""

from __future__ import annotations

import csv
import io
import json
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from radgaze.cohort.phantom.anatomy import CLASSES, Label, Lesion, Radiograph
from radgaze.cohort.phantom.images import Identity, Job
from radgaze.cohort.phantom.reader import Recording, Session, read

MASTER_COLUMNS = [
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
_FINDINGS = [name for name in MASTER_COLUMNS[33:44] if name != "normal_anatomically"]
_LABELLER = [name for name in MASTER_COLUMNS if name.endswith("__chx")]

GAZE_COLUMNS = [
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
PIXELS_PER_DEGREE = 41.0  # of a 24 inch full-HD screen at 65 cm
RATE = 60.0
CASES_PER_SESSION = 30


# ----------------------------------------------------------------------------------------------------------- tree


@dataclass(frozen=True)
class _Study:
    """The rows of one study; its image, masks and transcript are on disk."""

    master: dict[str, Any]
    boxes: list[tuple[Any, ...]]
    gaze: bytes
    fixations: bytes
    lesions: tuple[Lesion, ...]


def write_tree(
    jobs: Sequence[Job], root: Path, run: Callable[..., Iterable[Any]]
) -> Iterable[tuple[Identity, tuple[Lesion, ...]]]:
    """Write ``egd-cxr/1.0.0`` and the images below ``root``; yields each image's lesions as it is done, in order."""
    folder = root / "egd-cxr" / "1.0.0"
    folder.mkdir(parents=True)
    criteria = folder / "inclusion_exclusion_criteria_outputs"
    criteria.mkdir()
    included = "\n".join(str(job.identity.study_id) for job in jobs)
    (criteria / "included_studies.csv").write_text(f"study_id\n{included}\n")
    header = (",".join(GAZE_COLUMNS) + "\n").encode()
    with (
        open(folder / "master_sheet.csv", "w", newline="", encoding="utf-8") as master_file,
        open(folder / "bounding_boxes.csv", "w", newline="", encoding="utf-8") as box_file,
        open(folder / "eye_gaze.csv", "wb") as gaze_file,
        open(folder / "fixations.csv", "wb") as fixation_file,
    ):
        master = csv.DictWriter(master_file, MASTER_COLUMNS, restval="", lineterminator="\n")
        master.writeheader()
        boxes = csv.writer(box_file, lineterminator="\n")
        boxes.writerow(["dicom_id", "bbox_name", "x1", "x2", "y1", "y2"])
        gaze_file.write(header)
        fixation_file.write(header)
        for job, study in zip(jobs, run(_study, jobs), strict=True):
            session, case = divmod(job.identity.image, CASES_PER_SESSION)
            if case == 0:
                gaze_file.write(_csv(_calibration(job.seed, session)))
            master.writerow(study.master)
            boxes.writerows(study.boxes)
            gaze_file.write(study.gaze)
            fixation_file.write(study.fixations)
            yield job.identity, study.lesions


def _study(job: Job) -> _Study:
    """Write one study's image, masks and transcript; return its rows."""
    identity, image = job.identity, job.expose()
    folder = job.root / "egd-cxr" / "1.0.0" / "audio_segmentation_transcripts" / identity.dicom_id
    folder.mkdir(parents=True)
    for name, mask in image.masks.items():
        spelled = "mediastanum" if name == "mediastinum" else name
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"{spelled}.png", compress_level=3)
    # One radiologist read the whole data set, in many sittings.
    session, case = divmod(identity.image, CASES_PER_SESSION)
    rng = job.random(31)
    screen_scale = min(SCREEN[0] / job.size[0], SCREEN[1] / job.size[1])
    recording = read(
        image,
        Session.draw(job.seed, reader=0, session=session),
        rng,
        pixels_per_degree=PIXELS_PER_DEGREE / screen_scale,
        rate=RATE,
        minutes_into_session=0.7 * case,
    )
    _write_transcript(image, float(recording.t[-1]), folder)
    gaze = _gaze(recording, identity, job.size, rng)
    ends = gaze.filter(pl.col("FPOGV") == 1).group_by("FPOGID", maintain_order=True).last().select(GAZE_COLUMNS)
    boxes = [
        (identity.dicom_id, name, *(round(edge, 2) for edge in (xmin, xmax, ymin, ymax)))
        for name, (xmin, ymin, xmax, ymax) in image.anatomies.items()
    ]
    return _Study(_master_row(image, identity, rng), boxes, _csv(gaze), _csv(ends), image.lesions)


def _csv(frame: pl.DataFrame) -> bytes:
    """Rows without their header."""
    buffer = io.BytesIO()
    frame.write_csv(buffer, include_header=False)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------------- gaze


def padding(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Screen pixels left free above, below, left and right of an image that fills the 1920 x 1080 screen.

    An odd width or height is padded by one pixel first, as the data set's viewer did.
    """
    height, width = (side + side % 2 for side in size)
    scale = min(SCREEN[0] / height, SCREEN[1] / width)
    top, left = int((SCREEN[0] - height * scale) / 2), int((SCREEN[1] - width * scale) / 2)
    return top, top, left, left


def _gaze(recording: Recording, identity: Identity, size: tuple[int, int], rng: np.random.Generator) -> pl.DataFrame:
    """One recording in the columns of a Gazepoint tracker, a row for each sample."""
    top, bottom, left, right = padding(size)
    height, width = (side + side % 2 for side in size)
    shown_height, shown_width = SCREEN[0] - top - bottom, SCREEN[1] - left - right
    t, fixation, blink, pupil = recording.t, recording.fixation, recording.blink, recording.pupil
    rows = np.arange(len(t))
    # A lost eye repeats what was last seen, flagged invalid.
    seen = np.isfinite(recording.x)
    last_seen = np.maximum.accumulate(np.where(seen, rows, np.argmax(seen)))
    screen_x = (recording.x[last_seen] * shown_width / width + left) / SCREEN[1]
    screen_y = (recording.y[last_seen] * shown_height / height + top) / SCREEN[0]

    # FPOG is the mean of the fixation so far; between fixations, the sample itself.
    inside = fixation >= 0
    first = np.maximum.accumulate(np.where(np.diff(fixation, prepend=-2) != 0, rows, 0))

    def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.cumsum(values)
        return np.where(inside, (total - total[first] + values[first]) / (rows - first + 1), values)

    fpog_x, fpog_y = running_mean(screen_x).round(5), running_mean(screen_y).round(5)
    # The original pixel follows from the screen fractions as stored; off the image it is negative.
    original_x = np.floor(width / shown_width * (fpog_x * SCREEN[1] - left)).astype(np.int64)
    original_y = np.floor(height / shown_height * (fpog_y * SCREEN[0] - top)).astype(np.int64)
    original_x[original_x >= width] = -1
    original_y[original_y >= height] = -1

    begins, ends = blink & ~np.roll(blink, 1), ~blink & np.roll(blink, 1)
    begins[0], ends[0] = blink[0], False
    blink_times = t[begins]
    blink_began = np.maximum.accumulate(np.where(begins, rows, 0))
    # Saccades are reported at the start of the fixation they lead to, in screen pixels and degrees.
    number = np.maximum.accumulate(fixation) + 1
    landing = inside & (rows == first) & (number > 1)
    here, before = np.maximum(number - 1, 0), np.maximum(number - 2, 0)
    jump_x = (recording.centre_x[here] - recording.centre_x[before]) * shown_width / width
    jump_y = (recording.centre_y[here] - recording.centre_y[before]) * shown_height / height

    head_x, head_y = 0.5 + np.cumsum(rng.normal(0, 2e-4, (2, len(t))), axis=1)
    valid = seen.astype(np.int64)
    ones = np.ones(len(t))
    session, case = divmod(identity.image, CASES_PER_SESSION)
    columns: dict[str, Any] = {
        "SESSION_ID": 100 + session,
        "MEDIA_ID": case + 1,
        "DICOM_ID": identity.dicom_id,
        "CNT": rows,
        "Time (in secs)": t,
        "TIMETICK(f=10000000)": 6 * 10**12 + int(rng.integers(10**9)) + (t * 1e7).astype(np.int64),
        "FPOGX": fpog_x,
        "FPOGY": fpog_y,
        "FPOGS": np.where(inside, t[first], t),
        "FPOGD": np.where(inside, t - t[first], 0.0),
        "FPOGID": number,
        "FPOGV": inside.astype(np.int64),
        "BPOGX": screen_x,
        "BPOGY": screen_y,
        "BPOGV": valid,
        "LPCX": head_x - 0.06,
        "LPCY": head_y,
        "LPD": 4.9 * pupil,
        "LPS": ones,
        "LPV": valid,
        "RPCX": head_x + 0.06,
        "RPCY": head_y + 0.004,
        "RPD": 4.95 * pupil,
        "RPS": ones,
        "RPV": valid,
        "BKID": np.where(blink, np.cumsum(begins), 0),
        "BKDUR": np.where(ends, t - t[blink_began], 0.0),
        "BKPMIN": np.searchsorted(blink_times, t) - np.searchsorted(blink_times, t - 60),
        "LPMM": pupil,
        "LPMMV": valid,
        "RPMM": pupil + 0.05,
        "RPMMV": valid,
        "SACCADE_MAG": np.where(landing, np.hypot(jump_x, jump_y), 0.0),
        "SACCADE_DIR": np.where(landing, np.degrees(np.arctan2(-jump_y, jump_x)) % 360, 0.0),
        "VID_FRAME": (t * 10).astype(np.int64),
        "X_ORIGINAL": original_x,
        "Y_ORIGINAL": original_y,
    }
    return pl.DataFrame({name: columns[name] for name in GAZE_COLUMNS}).with_columns(pl.col(pl.Float64).round(5))


def _calibration(seed: int, session: int) -> pl.DataFrame:
    """The dots a reader follows before a session; their DICOM_ID of 39 characters names no image."""
    rng = np.random.default_rng([seed, session, 22])
    dots = np.repeat([[0.5, 0.5], [0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], 18, axis=0)
    x, y = (dots + rng.normal(0, 0.004, dots.shape)).T
    rows = np.arange(len(dots))
    zeros, ones = np.zeros(len(dots), np.int64), np.ones(len(dots), np.int64)
    columns: dict[str, Any] = dict.fromkeys(GAZE_COLUMNS, zeros)
    columns |= {"SESSION_ID": zeros + 100 + session, "DICOM_ID": "-".join(rng.bytes(n).hex() for n in (4, 4, 4, 6))}
    columns |= {"CNT": rows, "Time (in secs)": rows / RATE, "FPOGX": x, "FPOGY": y, "BPOGX": x, "BPOGY": y}
    columns |= {"FPOGS": (rows - rows % 18) / RATE, "FPOGD": rows % 18 / RATE, "FPOGID": rows // 18 + 1}
    columns |= {"FPOGV": ones, "BPOGV": ones, "LPV": ones, "RPV": ones, "X_ORIGINAL": -ones, "Y_ORIGINAL": -ones}
    return pl.DataFrame({name: columns[name] for name in GAZE_COLUMNS}).with_columns(pl.col(pl.Float64).round(5))


# --------------------------------------------------------------------------------------------- sheet and dictation


DIAGNOSES: dict[Label, tuple[tuple[str, str], ...]] = {
    "Normal": (("CHEST PAIN, UNSPECIFIED", "R079"), ("DIZZINESS", "R42"), ("ANXIETY DISORDER, UNSPECIFIED", "F419")),
    "CHF": (("HEART FAILURE, UNSPECIFIED", "I509"), ("DYSPNEA", "R0602"), ("ATRIAL FIBRILLATION", "I4891")),
    "pneumonia": (("PNEUMONIA, UNSPECIFIED", "J189"), ("FEVER, UNSPECIFIED", "R509"), ("COUGH", "R05")),
}
# As in an emergency department, the reason for an examination says little about what it finds.
COMPLAINTS = ("cough", "chest pain", "shortness of breath", "fever", "weakness", "dizziness", "fatigue")
LABELLED = {
    "atelectasis__chx": "linear__patchy_atelectasis",
    "cardiomegaly__chx": "enlarged_cardiac_silhouette",
    "consolidation__chx": "consolidation",
    "edema__chx": "pulmonary_edema__hazy_opacity",
    "pleural_effusion__chx": "pleural_effusion_or_thickening",
}
PHRASES = {
    "consolidation": "there is an air space opacity",
    "pulmonary_edema__hazy_opacity": "perihilar haze suggests edema",
    "pleural_effusion_or_thickening": "there is a pleural effusion",
    "enlarged_cardiac_silhouette": "the cardiac silhouette is enlarged",
    "vascular_redistribution": "the upper zone vessels are prominent",
    "linear__patchy_atelectasis": "linear atelectasis at the base",
}
NORMAL_PHRASES = ("the lungs are clear", "heart size is normal", "no effusion")


def seen(image: Radiograph, visibility: float = 0.2) -> list[str]:
    """Names of what shows clearly enough to be reported."""
    return list(dict.fromkeys(lesion.name for lesion in image.lesions if lesion.visibility > visibility))


def _master_row(image: Radiograph, identity: Identity, rng: np.random.Generator) -> dict[str, Any]:
    names = seen(image)
    decade = image.patient.age // 10 * 10
    row: dict[str, Any] = {
        "dicom_id": identity.dicom_id,
        "path": f"{identity.folder}/{identity.dicom_id}.dcm",
        "study_id": identity.study_id,
        "patient_id": identity.patient_id,
        "stay_id": identity.stay_id,
        "gender": image.patient.sex,
        "anchor_age": f"{decade} - {decade + 10}",
    }
    row |= {
        f"image_{edge}_pad": pad
        for edge, pad in zip(("top", "bottom", "left", "right"), padding(image.size), strict=True)
    }
    for number, (text, code) in enumerate(DIAGNOSES[image.label][: int(rng.integers(1, 4))], start=1):
        row |= {f"dx{number}": text, f"dx{number}_icd": code}
    row |= {"normal_reports": int(image.label == "Normal")} | {label: int(image.label == label) for label in CLASSES}
    row |= {name: int(name in names) for name in _FINDINGS} | {"normal_anatomically": int(not names)}
    # A report labeller leaves most columns empty (not mentioned), negates some (0) and is unsure of a few (-1).
    for column in _LABELLER:
        if LABELLED.get(column) in names:
            row[column] = 1 if rng.random() < 0.8 else -1
        elif rng.random() < 0.25:
            row[column] = 0
    row["pneumonia__chx"] = {"pneumonia": 1, "CHF": -1, "Normal": 0}[image.label]
    row["no_finding__chx"] = "" if names else 1
    person = "woman" if image.patient.sex == "F" else "man"
    one, two = rng.choice(COMPLAINTS, 2, replace=False)
    reason = f'___ year old {person} with {one}, {two}  // "acute process"?'
    row["cxr_exam_indication"] = f"EXAMINATION:  CHEST ({image.view})\n\nINDICATION:  {reason}\n"
    return row


def dictate(image: Radiograph) -> list[str]:
    """What a reader says: a phrase for each thing seen."""
    return [PHRASES[name] for name in seen(image)] or list(NORMAL_PHRASES)


def _write_transcript(image: Radiograph, seconds: float, folder: Path) -> None:
    phrases = dictate(image)
    begin = np.linspace(0.4 * seconds, 0.9 * seconds, len(phrases))
    timed = [
        {
            "phrase": phrase,
            "begin_time": round(float(at), 1),
            "end_time": round(float(at) + 0.3 * len(phrase.split()), 1),
        }
        for phrase, at in zip(phrases, begin, strict=True)
    ]
    text = {"full_text": ". ".join(phrases) + ".", "time_stamped_text": timed}
    (folder / "transcript.json").write_text(json.dumps(text, indent=1) + "\n")
    with wave.open(str(folder / "audio.wav"), "wb") as audio:  # a tenth of a second of silence
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(16_000)
        audio.writeframes(bytes(2 * 1_600))
