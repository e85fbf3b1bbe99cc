"""A radiologist's eyes on a radiograph: fixations, saccades, blinks and an eye tracker that is not perfect.

The reader follows a search pattern over the anatomy in an order of its own, is drawn by whatever stands out, returns
to it, and checks what goes with it (a large heart sends the eyes to hila and costophrenic angles). It never knows the
label: a lesion attracts in proportion to how well it shows.

Numbers are those of the eye-movement literature, not fitted to any data set:

- fixation durations are log-normal with a median near 280 ms (Rayner 1998; Kundel & La Follette 1972 for films),
longer on findings;
- saccade duration follows the main sequence, 21 ms + 2.2 ms per degree (Carpenter 1988), with a smooth velocity
profile;
- within a fixation the eye jitters by about 0.1 degree and drifts slowly; blinks come about every 4 s and last 100-250
ms;
- the tracker adds a calibration offset that drifts through a session, and loses the eye around blinks.

Positions are pixels of the radiograph as shown; where a reader looks off the image they lie outside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from radgaze.cohort.phantom.anatomy import Box, Lesion, Radiograph
from radgaze.errors import InputError

__all__ = ["Recording", "Session", "read"]

SEARCH = (
    "trachea",
    "upper mediastinum",
    "right upper lung zone",
    "right mid lung zone",
    "right lower lung zone",
    "right costophrenic angle",
    "left upper lung zone",
    "left mid lung zone",
    "left lower lung zone",
    "left costophrenic angle",
    "cardiac silhouette",
    "right hilar structures",
    "left hilar structures",
    "right clavicle",
    "left clavicle",
)
"""What a complete search covers, top to bottom and right lung first, the way it is taught."""

COMPANIONS = {
    "enlarged_cardiac_silhouette": (
        "right hilar structures",
        "left hilar structures",
        "right costophrenic angle",
        "left costophrenic angle",
    ),
    "vascular_redistribution": ("right upper lung zone", "left upper lung zone", "cardiac silhouette"),
    "pulmonary_edema__hazy_opacity": ("cardiac silhouette", "right costophrenic angle", "left costophrenic angle"),
    "pleural_effusion_or_thickening": ("right costophrenic angle", "left costophrenic angle", "cardiac silhouette"),
    "consolidation": (),
}
"""Where a finding sends the eyes next."""


class _Visit(NamedTuple):
    """Some fixations in one place, each the longer the more the place holds the eye (0..1)."""

    box: Box
    fixations: int
    hold: float = 0.0


@dataclass(frozen=True)
class Session:
    """One sitting of one reader at one tracker: habits and calibration that its recordings share."""

    order: tuple[str, ...]
    pace: float  # 1 = average; more is slower
    offset: tuple[float, float]  # calibration error at the start, degrees
    drift: tuple[float, float]  # further error per minute, degrees
    blink_every: float  # s
    pupil_mm: float

    @classmethod
    def draw(cls, seed: int, reader: int, session: int = 0) -> Session:
        habits, tracker = np.random.default_rng([seed, reader, 11]), np.random.default_rng([seed, reader, session, 12])
        order = list(SEARCH)
        # A reader swaps a few neighbours of the taught order, and may start with the left lung or the heart.
        for _ in range(int(habits.integers(1, 6))):
            i = int(habits.integers(0, len(order) - 1))
            order[i], order[i + 1] = order[i + 1], order[i]
        if habits.random() < 0.3:
            order = [name.replace("right", "?").replace("left", "right").replace("?", "left") for name in order]
        turn = int(habits.choice([0, 0, 2, 10]))
        return cls(
            order=tuple(order[turn:] + order[:turn]),
            pace=float(np.exp(habits.normal(0, 0.18))),
            offset=(float(tracker.normal(0, 0.25)), float(tracker.normal(0, 0.25))),
            drift=(float(tracker.normal(0, 0.02)), float(tracker.normal(0, 0.02))),
            blink_every=float(habits.uniform(3, 7)),
            pupil_mm=float(habits.uniform(2.8, 4.2)),
        )


@dataclass(frozen=True)
class Recording:
    """What the tracker wrote while one radiograph was on screen.

    Per sample, (N,): ``t`` s since the image appeared, ``x``/``y`` pixels of the radiograph (NaN while the eye is
    lost), ``fixation`` index of the fixation under way (-1 in a saccade or blink), ``blink`` bool, ``pupil`` mm.
    Per fixation, (F,): ``starts``/``durations`` s, ``centre_x``/``centre_y`` pixels as measured, ``last`` index of its
    last sample.
    """

    t: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    fixation: NDArray[np.int64]
    blink: NDArray[np.bool_]
    pupil: NDArray[np.float64]
    starts: NDArray[np.float64]
    durations: NDArray[np.float64]
    centre_x: NDArray[np.float64]
    centre_y: NDArray[np.float64]
    last: NDArray[np.int64]


def read(
    image: Radiograph,
    session: Session,
    rng: np.random.Generator,
    *,
    pixels_per_degree: float,
    rate: float = 60.0,
    start: float = 0.0,
    minutes_into_session: float = 0.0,
    longest: float = 40.0,
) -> Recording:
    """Let one reader look at one radiograph.

    Args:
        image: what is on screen.
        session: whose eyes, and how well calibrated.
        rng: this reading's chance.
        pixels_per_degree: image pixels in one degree of visual angle.
        rate: samples per second.
        start: time of the first sample, s.
        minutes_into_session: how far the calibration has drifted.
        longest: the reading is cut after this many seconds.

    Raises:
        InputError: a rate or scale that is not positive.
    """
    if rate <= 0 or pixels_per_degree <= 0:
        raise InputError(f"rate {rate} Hz and {pixels_per_degree} pixels per degree: both must be positive")
    x, y, durations = _scan_path(image, session, rng)
    degrees = np.hypot(np.diff(x), np.diff(y)) / pixels_per_degree
    flights = 0.021 + 0.0022 * np.minimum(degrees, 40)
    onsets = np.concatenate([[0.0], np.cumsum(durations[:-1] + flights)])
    keep = onsets + durations <= longest
    keep[: min(3, len(keep))] = True
    x, y, durations, onsets = x[keep], y[keep], durations[keep], onsets[keep]
    return _record(x, y, onsets, durations, image, session, rng, pixels_per_degree, rate, start, minutes_into_session)


def _scan_path(
    image: Radiograph, session: Session, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Where the eyes rest, and for how long: x, y (pixels) and durations (s)."""
    height, width = image.size
    visits: list[_Visit] = [_Visit((0.42 * width, 0.35 * height, 0.58 * width, 0.6 * height), int(rng.integers(1, 3)))]
    noticed: list[Lesion] = []
    for name in session.order:
        box = image.anatomies.get(name)
        if box is None or rng.random() < 0.06:
            continue
        visits.append(_Visit(box, 1 + int(rng.poisson(1.8 if "zone" in name else 0.7))))
        # A finding catches the eye when the search comes near, or from the corner of the eye when it is plain.
        for lesion in image.lesions:
            near = 0.85 if _overlap(box, lesion.box) else 0.18
            if lesion not in noticed and rng.random() < near * lesion.visibility:
                noticed.append(lesion)
                visits.append(_Visit(lesion.box, 1 + int(rng.poisson(3.0 * lesion.visibility)), lesion.visibility))
                visits += [
                    _Visit(image.anatomies[companion], 1, 0.25)
                    for companion in COMPANIONS.get(lesion.name, ())
                    if companion in image.anatomies and rng.random() < 0.5 * lesion.visibility
                ]
    # The report is dictated with a second look at what was found and glances at everything else.
    names = list(image.anatomies)
    for lesion in noticed:
        for _ in range(int(rng.poisson(1.4 * lesion.visibility))):
            visits.append(_Visit(lesion.box, 1 + int(rng.poisson(1.2)), lesion.visibility))
            visits.append(_Visit(image.anatomies[names[int(rng.integers(len(names)))]], 1))
    while sum(visit.fixations for visit in visits) < 40 and names:
        visits.append(_Visit(image.anatomies[names[int(rng.integers(len(names)))]], 1 + int(rng.poisson(0.5))))
    if rng.random() < 0.6:  # a glance off the film, at the worklist
        aside = _Visit((-0.25 * width, 0.2 * height, -0.03 * width, 0.7 * height), 1)
        visits.insert(int(rng.integers(len(visits))), aside)

    x, y, durations = [], [], []
    for (xmin, ymin, xmax, ymax), count, hold in visits:
        # Landings scatter around a region's centre, nearly all of them within it.
        fx, fy = np.clip(rng.normal(0.5, 0.24, (2, count)), -0.1, 1.1)
        x.append(xmin + fx * (xmax - xmin))
        y.append(ymin + fy * (ymax - ymin))
        median = 0.275 * session.pace * (1 + 0.55 * hold)
        durations.append(np.clip(np.exp(rng.normal(np.log(median), 0.42, count)), 0.09, 1.6))
    return np.concatenate(x), np.concatenate(y), np.concatenate(durations)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _record(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    onsets: NDArray[np.float64],
    durations: NDArray[np.float64],
    image: Radiograph,
    session: Session,
    rng: np.random.Generator,
    ppd: float,
    rate: float,
    start: float,
    minutes: float,
) -> Recording:
    """Sample a scan path the way a tracker does."""
    end = onsets[-1] + durations[-1]
    t = np.arange(0, end, 1 / rate)
    t = t + rng.normal(0, 0.02 / rate, len(t))  # the clock's jitter
    t[0] = max(t[0], 0.0)
    index = np.clip(np.searchsorted(onsets, t, side="right") - 1, 0, len(onsets) - 1)
    into = t - onsets[index]
    following = np.minimum(index + 1, len(onsets) - 1)
    flight = np.maximum(onsets[following] - onsets[index] - durations[index], 1e-6)
    progress = np.clip((into - durations[index]) / flight, 0, 1)
    progress = progress**3 * (10 - 15 * progress + 6 * progress**2)  # minimum jerk: slow, fast, slow
    gaze_x = x[index] + (x[following] - x[index]) * progress
    gaze_y = y[index] + (y[following] - y[index]) * progress
    fixation = np.where(progress > 0, -1, index)

    # Fixational eye movements: a slow random walk with memory plus tremor and tracker noise.
    minute = minutes + t / 60
    walk = np.exp(-1 / (0.08 * rate))
    for gaze, axis in ((gaze_x, 0), (gaze_y, 1)):
        gaze += ppd * 0.11 * _wander(rng, len(t), walk)
        gaze += ppd * rng.normal(0, 0.035, len(t))
        gaze += ppd * (session.offset[axis] + session.drift[axis] * minute)

    blink = np.zeros(len(t), bool)
    onset = rng.exponential(session.blink_every)
    while onset < end:
        blink |= (t >= onset) & (t < onset + rng.uniform(0.10, 0.25))
        onset += 0.6 + rng.exponential(session.blink_every)
    lost = blink | (rng.random(len(t)) < 0.12 / rate)  # and for a moment every eight seconds or so
    fixation[lost] = -1
    gaze_x[lost] = np.nan
    gaze_y[lost] = np.nan
    pupil = session.pupil_mm + 0.12 * _wander(rng, len(t), np.exp(-1 / (1.5 * rate)))
    return _fixations(t + start, gaze_x, gaze_y, fixation, blink, pupil)


def _wander(rng: np.random.Generator, n: int, memory: float) -> NDArray[np.float64]:
    """A first-order autoregressive walk with unit deviation."""
    steps = rng.normal(0, np.sqrt(1 - memory**2), n)
    return lfilter([1.0], [1.0, -memory], steps)


def _fixations(
    t: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    fixation: NDArray[np.int64],
    blink: NDArray[np.bool_],
    pupil: NDArray[np.float64],
) -> Recording:
    """Group samples into fixations: an unbroken run of at least 60 ms in one resting place (a blink ends it)."""
    change = np.flatnonzero(np.diff(fixation)) + 1
    begin, end = np.concatenate([[0], change]), np.concatenate([change, [len(t)]]) - 1
    lasting = t[end] - t[begin]
    real = (fixation[begin] >= 0) & (lasting >= 0.06)
    begin, end, lasting = begin[real], end[real], lasting[real]
    numbered = np.full(len(t), -1, dtype=np.int64)
    lengths = end - begin + 1
    owner = np.repeat(np.arange(len(begin)), lengths)
    offsets = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    member = begin[owner] + offsets
    numbered[member] = owner
    centre_x = np.bincount(owner, weights=x[member], minlength=len(begin)) / np.maximum(lengths, 1)
    centre_y = np.bincount(owner, weights=y[member], minlength=len(begin)) / np.maximum(lengths, 1)
    return Recording(t, x, y, numbered, blink, pupil, t[begin], lasting, centre_x, centre_y, end)
