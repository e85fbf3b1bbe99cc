"""Made-up readings in the layout of REFLACX 1.0.0: sheets of three phases, gaze at 1,000 Hz, fixations, dictations and
ellipses.

Written from the data set's public documentation: names, columns and units are its own, every value is invented. In
phases 1 and 2 several readers read each image; some recordings are discarded; readers zoom; times count from the start
of the audio and may be negative; files have CRLF line ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from radgaze.cohort.phantom.anatomy import Box, Lesion, Radiograph
from radgaze.cohort.phantom.egd_cxr import dictate
from radgaze.cohort.phantom.images import Identity, Job
from radgaze.cohort.phantom.reader import Recording, Session, read

Phase = Literal[1, 2, 3]
PHASES: tuple[Phase, ...] = (1, 2, 3)

SHEET_COLUMNS = [
    "id",
    "split",
    "eye_tracking_data_discarded",
    "image",
    "dicom_id",
    "subject_id",
    "image_size_x",
    "image_size_y",
]
_LATER = [
    "Abnormal mediastinal contour",
    "Acute fracture",
    "Atelectasis",
    "Consolidation",
    "Enlarged cardiac silhouette",
    "Enlarged hilum",
    "Groundglass opacity",
    "Hiatal hernia",
    "High lung volume / emphysema",
    "Interstitial lung disease",
    "Lung nodule or mass",
    "Other",
    "Pleural abnormality",
    "Pneumothorax",
    "Pulmonary edema",
    "Support devices",
]
LABELS: dict[Phase, list[str]] = {
    1: [
        "Airway wall thickening",
        "Atelectasis",
        "Consolidation",
        "Emphysema",
        "Enlarged cardiac silhouette",
        "Fibrosis",
        "Fracture",
        "Groundglass opacity",
        "Mass",
        "Nodule",
        "Other",
        "Pleural effusion",
        "Pleural thickening",
        "Pneumothorax",
        "Pulmonary edema",
        "Quality issue",
        "Support devices",
        "Wide mediastinum",
    ],
    2: _LATER,
    3: _LATER,
}
FLAGS = ("Support devices", "Quality issue")  # True or False instead of a certainty

_SHOWN = [f"{corner}_shown_from_image" for corner in ("xmin", "ymin", "xmax", "ymax")]
_ON_SCREEN = [f"{corner}_in_screen_coordinates" for corner in ("xmin", "ymin", "xmax", "ymax")]
_EYE_COLUMNS = [
    "x_position",
    "y_position",
    "pupil_area_normalized",
    "angular_resolution_x_pixels_per_degree",
    "angular_resolution_y_pixels_per_degree",
    "window_width",
    "window_level",
    *_SHOWN,
    *_ON_SCREEN,
]
FIXATION_COLUMNS = ["timestamp_start_fixation", "timestamp_end_fixation", *_EYE_COLUMNS]
GAZE_COLUMNS = ["timestamp_sample", *_EYE_COLUMNS]

SCREEN = (2160, 3840)
PIXELS_PER_DEGREE = 60.0  # of a 27 inch 4K screen at 56 cm
RATE = 1000.0
LONGEST = 25.0  # s; a second is a thousand rows


# ----------------------------------------------------------------------------------------------------------- tree


@dataclass(frozen=True)
class _Reading:
    """One reader at one image."""

    name: str
    phase: Phase
    reader: int
    discarded: bool


@dataclass(frozen=True)
class _Task:
    """One image with all its readings: the unit of work."""

    job: Job
    split: str
    readings: tuple[_Reading, ...]


@dataclass(frozen=True)
class _Study:
    rows: list[tuple[Phase, dict[str, Any]]]
    lesions: tuple[Lesion, ...]


def write_tree(
    jobs: Sequence[Job], root: Path, run: Callable[..., Iterable[Any]]
) -> Iterable[tuple[Identity, tuple[Lesion, ...]]]:
    """Write ``reflacx`` and the images below ``root``; yields each image's lesions as it is done, in order."""
    folder = root / "reflacx"
    (folder / "main_data").mkdir(parents=True)
    (folder / "gaze_data").mkdir()
    sheets: dict[Phase, list[dict[str, Any]]] = {phase: [] for phase in PHASES}
    for job, study in zip(jobs, run(_study, _plan(jobs)), strict=True):
        for phase, row in study.rows:
            sheets[phase].append(row)
        yield job.identity, study.lesions
    for phase, rows in sheets.items():
        path = folder / "main_data" / f"metadata_phase_{phase}.csv"
        _write_csv(path, SHEET_COLUMNS + LABELS[phase], sorted(rows, key=lambda row: row["id"]))


def _plan(jobs: Sequence[Job]) -> list[_Task]:
    """Which phase each image belongs to, and who reads it.

    One image in twelve is of phase 1 and one of phase 2, each read by three to five of five readers; the others are
    read once. At least one recording of the tree is discarded, and about one in thirty.
    """
    rng = np.random.default_rng([jobs[0].seed, 41])
    early = max(1, len(jobs) // 12)
    splits: dict[int, str] = {}  # a patient's images are all on one side
    counters: dict[Phase, int] = dict.fromkeys(PHASES, 0)
    tasks = []
    for index, job in enumerate(jobs):
        phase: Phase = 1 if index < early else 2 if index < 2 * early else 3
        readers = rng.permutation(5)[: int(rng.integers(3, 6)) if phase < 3 else 1]
        readings: list[_Reading] = []
        for reader in sorted(int(number) for number in readers):
            counters[phase] += 1
            # Phases 1 and 2 had trials; phase 3 is always 00.
            trial = 1 + index % 3 if phase < 3 else 0
            name = f"P{phase}{trial:02d}R{counters[phase]:06d}"
            discarded = bool(rng.random() < 0.03) or (index == 0 and not readings)
            readings.append(_Reading(name, phase, reader, discarded))
        split = splits.setdefault(
            job.identity.patient_id, str(rng.choice(["train", "validate", "test"], p=[0.7, 0.1, 0.2]))
        )
        tasks.append(_Task(job, split, tuple(readings)))
    return tasks


def _study(task: _Task) -> _Study:
    """Write one image and all its readings; return their rows of the sheets."""
    job, identity = task.job, task.job.identity
    image = job.expose()
    height, width = image.size
    rows = []
    for reading in task.readings:
        rng = job.random(42, reading.reader)
        folder = job.root / "reflacx" / "main_data" / reading.name
        folder.mkdir()
        verdicts = _judge(image, reading.phase, rng)
        _write_boxes(image, verdicts, reading.phase, folder, rng)
        if not reading.discarded:
            _write_recording(image, reading, job, folder, rng)
        row: dict[str, Any] = {
            "id": reading.name,
            "split": task.split,
            "eye_tracking_data_discarded": reading.discarded,
            "image": f"physionet.org/files/mimic-cxr/2.0.0/{identity.folder}/{identity.dicom_id}.dcm",
            "dicom_id": identity.dicom_id,
            "subject_id": identity.patient_id,
            "image_size_x": width,
            "image_size_y": height,
        }
        rows.append((reading.phase, row | _certainties(verdicts, reading.phase, rng)))
    return _Study(rows, image.lesions)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """A small table; True and False are written so."""
    # Empty text is an empty field, not a quoted one.
    values = {name: [None if row[name] == "" else str(row[name]) for row in rows] for name in columns}
    table = pl.DataFrame(values, schema=dict.fromkeys(columns, pl.String))
    table.write_csv(path, line_terminator="\r\n", quote_style="necessary")


# -------------------------------------------------------------------------------------------------------- verdicts


@dataclass(frozen=True)
class _Verdict:
    """What a reader made of something seen: labels of the phase, certainty 1..5, and an ellipse's box."""

    labels: tuple[str, ...]
    certainty: int
    box: Box


def _names(lesion: str, phase: Phase, certainty: int) -> tuple[str, ...]:
    """A finding in the words of a phase."""
    if lesion == "consolidation":
        return ("Consolidation",) if certainty >= 3 else ("Groundglass opacity",)
    effusion = "Pleural effusion" if phase == 1 else "Pleural abnormality"
    return {
        "enlarged_cardiac_silhouette": ("Enlarged cardiac silhouette",),
        "pulmonary_edema__hazy_opacity": ("Pulmonary edema", "Groundglass opacity"),
        "vascular_redistribution": ("Pulmonary edema",) if phase == 1 else ("Enlarged hilum",),
        "pleural_effusion_or_thickening": (effusion,),
        "linear__patchy_atelectasis": ("Atelectasis",),
    }[lesion]


def _judge(image: Radiograph, phase: Phase, rng: np.random.Generator) -> list[_Verdict]:
    """A reader's findings: plain lesions are hardly missed, faint ones often; edges differ from reader to reader."""
    verdicts = []
    for lesion in image.lesions:
        noticed, doubt = rng.random() < 0.15 + 1.2 * lesion.visibility, rng.normal(0, 0.7)
        certainty = int(np.clip(round(1.5 + 4 * lesion.visibility + doubt), 1, 5))
        xmin, ymin, xmax, ymax = lesion.box
        shift = rng.normal(0, 0.06, 4) * [xmax - xmin, ymax - ymin, xmax - xmin, ymax - ymin]
        if noticed:
            box = (xmin + shift[0], ymin + shift[1], xmax + shift[2], ymax + shift[3])
            verdicts.append(_Verdict(_names(lesion.name, phase, certainty), certainty, box))
    if rng.random() < 0.06:  # a shadow taken for something
        xmin, ymin, xmax, ymax = image.anatomies.get("right lower lung zone", (0.0, 0.0, *image.size[::-1]))
        x, y = rng.uniform(xmin, xmax), rng.uniform(ymin, ymax)
        reach = 0.04 * image.size[0]
        box = (x - reach, y - reach, x + reach, y + reach)
        verdicts.append(_Verdict(("Nodule",) if phase == 1 else ("Lung nodule or mass",), int(rng.integers(1, 3)), box))
    return verdicts


def _certainties(verdicts: list[_Verdict], phase: Phase, rng: np.random.Generator) -> dict[str, Any]:
    """The sheet's label columns: the highest certainty of each, flags, and free text."""
    row: dict[str, Any] = dict.fromkeys(LABELS[phase], 0)
    for verdict in verdicts:
        for label in verdict.labels:
            row[label] = max(row[label], verdict.certainty)
    row |= {flag: bool(rng.random() < 0.05) for flag in FLAGS if flag in row}
    remarks = [text for text in ("old healed rib", "tortuous aorta, mild", "scoliosis") if rng.random() < 0.06]
    return row | {"Other": "|".join(remarks)}


def _write_boxes(
    image: Radiograph, verdicts: list[_Verdict], phase: Phase, folder: Path, rng: np.random.Generator
) -> None:
    """The chest's box and the ellipses, also of a reading whose gaze was discarded."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    height, width = image.size
    down, across = (np.flatnonzero(np.any([m.any(axis) for m in image.masks.values()], axis=0)) for axis in (1, 0))
    edges = (
        np.array([across[0], down[0], across[-1] + 1, down[-1] + 1]) if len(down) else np.array([0, 0, width, height])
    )
    edges = edges + rng.normal(0, 0.006 * height, 4)
    inside = np.clip(edges, 0, [width, height, width, height]).round().astype(int).tolist()
    _write_csv(folder / "chest_bounding_box.csv", corners, [dict(zip(corners, inside, strict=True))])
    rows = []
    for verdict in verdicts:
        row: dict[str, Any] = dict(zip(corners, (round(float(edge)) for edge in verdict.box), strict=True))
        row |= {"certainty": verdict.certainty} | {label: label in verdict.labels for label in LABELS[phase]}
        rows.append(row)
    _write_csv(folder / "anomaly_location_ellipses.csv", [*corners, "certainty", *LABELS[phase]], rows)


# ------------------------------------------------------------------------------------------------------- recording


def _write_recording(image: Radiograph, reading: _Reading, job: Job, folder: Path, rng: np.random.Generator) -> None:
    height, width = image.size
    scale = min(SCREEN[0] / height, SCREEN[1] / width)  # screen pixels per image pixel, unzoomed
    session, case = divmod(job.identity.image, 40)
    recording = read(
        image,
        Session.draw(job.seed, reading.reader, session),
        rng,
        pixels_per_degree=PIXELS_PER_DEGREE / scale,
        rate=RATE,
        start=round(float(rng.uniform(-1.5, 0.2)), 3),
        minutes_into_session=1.2 * case,
        longest=LONGEST,
    )
    view = _views(recording, image.size, rng)
    pupil = recording.pupil**2 / float(np.mean(recording.pupil**2))  # area, against the reading's mean
    gaze = folder.parents[1] / "gaze_data" / reading.name
    gaze.mkdir()
    samples = _eye(recording.x, recording.y, pupil, view, image.size)
    _write_table(gaze / "gaze.csv", {"timestamp_sample": recording.t.round(3)} | samples, GAZE_COLUMNS)
    at = recording.last
    fixations = _eye(recording.centre_x, recording.centre_y, pupil[at], view[at], image.size)
    times = {
        "timestamp_start_fixation": recording.starts.round(3),
        "timestamp_end_fixation": (recording.starts + recording.durations).round(3),
    }
    _write_table(folder / "fixations.csv", times | fixations, FIXATION_COLUMNS)
    _write_dictation(image, recording, folder, rng)


def _views(recording: Recording, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Per sample, the part of the image on screen, (N, 4) xmin, ymin, xmax, ymax.

    About one reader in three zooms once, on to what they look at over some consecutive fixations; the part keeps the
    image's shape.
    """
    height, width = size
    view = np.tile(np.array([0, 0, width, height], float), (len(recording.t), 1))
    count = len(recording.starts)
    if count < 12 or rng.random() > 0.35:
        return view
    first = int(rng.integers(4, count - 7))
    group = slice(first, first + int(rng.integers(3, 7)))
    zoom = float(rng.uniform(0.4, 0.7))  # share of the side that stays visible
    part = np.array([width, height]) * zoom
    middle = np.array([np.median(recording.centre_x[group]), np.median(recording.centre_y[group])])
    corner = np.clip(middle - part / 2, 0, np.array([width, height]) - part).round()
    begin, end = recording.starts[group][0], recording.starts[group][-1] + recording.durations[group][-1]
    view[(recording.t >= begin) & (recording.t <= end)] = [*corner, *(corner + part).round()]
    return view


def _eye(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    pupil: NDArray[np.float64],
    view: NDArray[np.float64],
    size: tuple[int, int],
) -> dict[str, NDArray[np.float64]]:
    """The columns that gaze and fixations share; NaN (an empty field) while the eye is lost."""
    height, width = size
    # Whatever part is shown fills the same area of the screen, centred.
    scale = min(SCREEN[0] / height, SCREEN[1] / width)
    area = np.array([SCREEN[1] - width * scale, SCREEN[0] - height * scale]) / 2
    on_screen = np.concatenate([area, area + np.array([width, height]) * scale]).round()
    magnified = scale * width / (view[:, 2] - view[:, 0])
    lost = ~np.isfinite(x)
    columns = {
        "x_position": x.round(2),
        "y_position": y.round(2),
        "pupil_area_normalized": np.where(lost, np.nan, pupil.round(4)),
        # A flat screen has slightly more pixels per degree away from its middle; across more than down.
        "angular_resolution_x_pixels_per_degree": (1.01 * PIXELS_PER_DEGREE / magnified).round(3),
        "angular_resolution_y_pixels_per_degree": (PIXELS_PER_DEGREE / magnified).round(3),
        "window_width": np.ones(len(x)),
        "window_level": np.full(len(x), 0.5),
    }
    columns |= {name: view[:, corner] for corner, name in enumerate(_SHOWN)}
    return columns | {name: np.full(len(x), on_screen[corner]) for corner, name in enumerate(_ON_SCREEN)}


def _write_table(path: Path, columns: dict[str, NDArray[Any]], order: Sequence[str]) -> None:
    table = pl.DataFrame({name: columns[name] for name in order}).with_columns(pl.col(pl.Float64).fill_nan(None))
    table = table.with_columns(pl.col([*_SHOWN, *_ON_SCREEN]).cast(pl.Int64))
    table.write_csv(path, line_terminator="\r\n")


def _write_dictation(image: Radiograph, recording: Recording, folder: Path, rng: np.random.Generator) -> None:
    """Words with their times, spread over the reading, and the text."""
    sentences = [phrase.capitalize() + "." for phrase in dictate(image)]
    words = " ".join(sentences).split()
    lengths = rng.uniform(0.15, 0.45, len(words))
    free = max(float(recording.t[-1]) - float(lengths.sum()) - 0.5, 0.0)
    begin = 0.5 + np.cumsum(lengths) - lengths + free * np.sort(rng.uniform(0, 1, len(words)))
    rows = [
        {"word": word, "timestamp_start_word": round(float(at), 3), "timestamp_end_word": round(float(at + length), 3)}
        for word, at, length in zip(words, begin, lengths, strict=True)
    ]
    _write_csv(folder / "timestamps_transcription.csv", ["word", "timestamp_start_word", "timestamp_end_word"], rows)
    (folder / "transcription.txt").write_text(" ".join(sentences))
