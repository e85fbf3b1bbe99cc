"""A chest radiograph from physics: attenuation through a thorax, an X-ray exposure, and a detector.

Every pixel is one X-ray. Its absorbance is the Beer-Lambert integral over the tissues on its way,

    A = mu_soft * (T - L) + mu_lung * L + (mu_bone - mu_soft) * B + (mu_spongy - mu_soft) * S        I = I0 * exp(-A)

with T the thickness of the body, L the path through air-filled lung, B and S those through compact and spongy bone, in
millimetres (:mod:`~radgaze.cohort.phantom.thorax`). L is what the rib cage holds minus what displaces air: heart,
vessels, diaphragm, and disease (:mod:`~radgaze.cohort.phantom.disease`). The detector counts a Poisson number of
photons plus scatter, blurred, and the console stores their logarithm with its latitude compressed, bones bright, in 12
bits.

Everything is drawn from (seed, patient, study), with streams of their own for anatomy, disease and exposure: the same
patient without disease is the same call with another label. The images are for testing and teaching methods and carry
no clinical meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from radgaze.cohort.phantom.disease import Finding, Label, findings, severity
from radgaze.cohort.phantom.thorax import (
    SIDES,
    Ellipse,
    Frame,
    Image,
    Mask,
    Patient,
    Thorax,
    airways,
    body,
    breasts,
    clavicle,
    enlarge,
    lungs,
    ribs,
    scapula,
    spine,
    stomach,
    vessels,
)
from radgaze.errors import InputError, nearest

__all__ = ["ANATOMIES", "BITS", "CLASSES", "MASKS", "Box", "Label", "Lesion", "Radiograph", "expose"]

Box = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax in image pixels."""

CLASSES: tuple[Label, ...] = get_args(Label)
MASKS = ("left_lung", "right_lung", "mediastinum", "aortic_knob")
ANATOMIES = (
    "cardiac silhouette",
    "left clavicle",
    "left costophrenic angle",
    "left hilar structures",
    "left lower lung zone",
    "left lung",
    "left mid lung zone",
    "left upper lung zone",
    "right clavicle",
    "right costophrenic angle",
    "right hilar structures",
    "right lower lung zone",
    "right lung",
    "right mid lung zone",
    "right upper lung zone",
    "trachea",
    "upper mediastinum",
)
BITS = 12

# Linear attenuation per mm near 70 keV, the effective energy of a 120 kVp chest exposure (after NIST XCOM, rounded).
MU_SOFT, MU_LUNG, MU_SPONGY, MU_BONE = 0.0195, 0.0045, 0.0265, 0.050
PHOTONS_PER_MM2 = 4.0e5  # reaching the detector through air


@dataclass(frozen=True)
class Lesion:
    """Something abnormal: its name in EGD-CXR's words, its box, how well it shows (0 invisible to 1 unmistakable)."""

    name: str
    box: Box
    visibility: float


@dataclass(frozen=True)
class Radiograph:
    """One exposure and everything known about it.

    ``pixels`` is (H, W) uint16 in [0, 4095], bones bright. ``masks`` (names in ``MASKS``) are (H, W) bool,
    ``anatomies`` (names in ``ANATOMIES``; those in the image) boxes in pixels; the patient's left is on the image's
    right. ``cardiothoracic_ratio`` is the silhouette's greatest width over the inner width of the chest.
    """

    pixels: NDArray[np.uint16]
    label: Label
    patient: Patient
    view: Literal["PA", "AP"]
    masks: dict[str, Mask]
    anatomies: dict[str, Box]
    lesions: tuple[Lesion, ...]
    cardiothoracic_ratio: float
    mm_per_pixel: float

    @property
    def size(self) -> tuple[int, int]:
        """Height, width."""
        return self.pixels.shape[0], self.pixels.shape[1]


def expose(
    label: Label,
    *,
    seed: int = 0,
    patient: int = 0,
    study: int = 0,
    size: tuple[int, int] = (768, 640),
    difficulty: float = 0.3,
) -> Radiograph:
    """One chest radiograph of a made-up patient.

    Args:
        label: ``"Normal"``, ``"CHF"`` (large heart, congested vessels, haze, effusions) or ``"pneumonia"`` (one to
            three consolidations).
        seed, patient, study: what is drawn. Another ``label`` is the same patient, position and noise; another
            ``size`` is the same scene on another detector.
        size: (height, width) in pixels, at least 32 each; the 400 x 333 mm field is fitted inside.
        difficulty: 0 (every disease is plain) to 1 (no disease shows: chance). Severity scales with 1 - difficulty, so
            excess heart size, lesion contrast and lesion extent shrink together; healthy heart sizes and lung markings
            spread wider. For scale (benchmarks/phantom.py): logistic regression on 40 principal components of 48 x 40
            pixels, 400 images to learn from, reaches a macro AUC of 0.91, 0.87, 0.86, 0.81, 0.67, 0.54 at 0, 0.3, 0.5,
            0.7, 0.85, 1.

    Raises:
        InputError: unknown label, difficulty outside [0, 1], or an image side below 32 pixels.
    """
    if label not in CLASSES:
        raise InputError(f"label is {label!r}; {nearest(label, CLASSES)}.")
    check(size, difficulty)
    person = Patient.draw(seed, patient, difficulty)
    anatomy, disease, detector = (np.random.default_rng([seed, patient, study, stream]) for stream in (2, 3, 4))

    view: Literal["PA", "AP"] = "AP" if anatomy.random() < 0.3 else "PA"
    degree = severity(disease, difficulty)
    frame = Frame.build(size, person, anatomy.normal(0, 0.018), (anatomy.normal(0, 5), anatomy.normal(0, 7)))
    thorax = _pose(person, view, 0.155 * degree if label == "CHF" else 0.0, anatomy)
    # Healthy vessels differ too, the more so in a hard cohort; failure adds to them.
    congestion = anatomy.uniform(0, 0.05 + 0.2 * difficulty)
    congestion += degree * disease.uniform(0.65, 1.0) if label == "CHF" else 0.0

    air, outlines = lungs(frame, thorax)
    air *= 1 - np.clip(0.045 + 0.028 * frame.cloud(anatomy, 10, 4), 0, 0.3)
    curves, stride = frame.coarser(
        0.25
    )  # fine enough for curved structures, and all that a full-size radiograph can afford
    blood = enlarge(vessels(curves, thorax, anatomy, congestion), size, stride)
    healthy = np.clip(air - blood * np.minimum(air / 18, 1), 0.02 * air, None)
    found = findings(label, frame, thorax, degree, difficulty, disease, anatomy)
    aerated = healthy.copy()
    for finding in found:
        aerated[finding.window] *= 1 - finding.share

    absorbance = _absorb(frame, thorax, aerated, view, anatomy)
    heart = _union(frame, thorax.heart_shapes)
    across = frame.x[heart]
    ratio = float(np.ptp(across) / (2 * person.chest)) if across.size else 0.0
    masks = _masks(frame, thorax, outlines)
    return Radiograph(
        pixels=_detect(absorbance, frame.mm * person.size, detector),
        label=label,
        patient=person,
        view=view,
        masks=masks,
        anatomies=_anatomies(frame, thorax, masks, heart),
        lesions=_lesions(frame, thorax, found, healthy, heart, ratio, congestion),
        cardiothoracic_ratio=ratio,
        mm_per_pixel=frame.mm * person.size,
    )


def check(size: tuple[int, int], difficulty: float) -> None:
    """Refuse what cannot be drawn."""
    if not 0 <= difficulty <= 1:
        raise InputError(f"difficulty is {difficulty}; expected a number from 0 (easy) to 1 (chance).")
    if min(size) < 32:
        raise InputError(f"image size is {size[0]}x{size[1]}; expected at least 32x32 pixels.")


def _pose(person: Patient, view: str, enlargement: float, rng: np.random.Generator) -> Thorax:
    """How the patient stood and breathed. A portable AP view magnifies the heart and catches a shallower breath."""
    diaphragm = 297 + rng.normal(-8 if view == "AP" else 0, 7)
    ratio = person.cardiothoracic * (1.05 if view == "AP" else 1.0) + rng.normal(0, 0.008) + enlargement
    heart, right = 2 * person.chest * min(ratio, 0.8), rng.normal(0.335, 0.015)
    aged = person.age - 60
    return Thorax(
        patient=person,
        apex=42 + rng.normal(0, 3),
        base=diaphragm + 50 + rng.normal(0, 4),
        domes={-1: diaphragm, 1: diaphragm + rng.normal(9, 4)},
        rotation=rng.normal(0, 3),
        heart=(heart * right, heart * (1 - right)),
        # The aorta unfolds with age.
        knob=(rng.normal(25, 2) + 0.05 * aged, 128 + rng.normal(0, 5), rng.normal(16.5, 1.3) + 0.04 * aged),
        depth=rng.normal(168, 8),
    )


def _absorb(frame: Frame, thorax: Thorax, air: Image, view: str, rng: np.random.Generator) -> Image:
    """Absorbance along each ray."""
    person = thorax.patient
    thickness = body(frame, person)
    curves, stride = frame.coarser(0.25)
    bone = enlarge(ribs(curves, thorax, rng), frame.size, stride)
    # Shoulders roll forward for a PA view, which swings the blades out of the lungs.
    outward = rng.normal(16 if view == "PA" else 2, 4)
    for side in SIDES:
        window, collar, _ = clavicle(frame, thorax, side)
        bone[window] += collar
        window, blade = scapula(frame, side, outward)
        bone[window] += blade * person.bone
    window, compact, spongy = spine(frame, person)
    bone[window] += compact
    soft = np.clip(thickness + breasts(frame, thorax) - airways(frame, thorax) - stomach(frame, thorax, rng), 0, None)
    lung = np.minimum(air, 0.88 * soft)
    absorbance = MU_SOFT * (soft - lung) + MU_LUNG * lung + (thickness > 1) * (MU_BONE - MU_SOFT) * bone
    absorbance[window] += (MU_SPONGY - MU_SOFT) * spongy
    _mark(absorbance, frame, rng)
    return absorbance


def _mark(absorbance: Image, frame: Frame, rng: np.random.Generator) -> None:
    """The lead letter L in the upper corner on the patient's left."""
    x0, y0, size = rng.normal(143, 4), rng.normal(20, 4), rng.uniform(7, 10)
    window = frame.window(x0, x0 + size, y0, y0 + 1.4 * size)
    x, y = frame.at(window)
    letter = (x > x0) & (x < x0 + size) & (y > y0) & (y < y0 + 1.4 * size)
    letter &= (x - x0 < 0.28 * size) | (y - y0 > 1.12 * size)
    absorbance[window] += 2.5 * letter


# -------------------------------------------------------------------------------------------------------- detector


def _detect(absorbance: Image, mm: float, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Photons, scatter, blur, logarithm and tone curve, to ``BITS`` bits. ``mm`` is a pixel's side on the detector."""
    primary = np.exp(-absorbance)
    # Scatter comes from all around and carries no detail. Around the body the unattenuated beam is collimated away.
    scatter = 0.30 * _smooth(np.minimum(primary, 0.25), 38 / mm)
    full = PHOTONS_PER_MM2 * mm**2
    photons = full * rng.uniform(0.8, 1.25) * (primary + scatter)
    # With hundreds of photons and more, Poisson counts are Gaussian for every purpose here, and ten times faster.
    photons += np.sqrt(photons) * rng.standard_normal(photons.shape, dtype=np.float32)
    log = -np.log(np.clip(ndimage.gaussian_filter(photons, 0.35 + 0.09 / mm) / full, 1e-4, None))
    # Consoles compress latitude: they take out half of what is broad and raise what is fine.
    log = log - 0.5 * _smooth(log, 26 / mm) + 0.6 * (log - _smooth(log, 9 / mm))
    height, width = log.shape
    chest = log[int(0.12 * height) : int(0.9 * height), int(0.12 * width) : int(0.88 * width)]
    stride = max(1, int(4 / mm))
    low, high = (float(level) for level in np.percentile(chest[::stride, ::stride], (1, 99)))
    span = high - low
    low, high = low - rng.uniform(0.06, 0.16) * span, high + rng.uniform(0.06, 0.16) * span
    tone = np.tanh(2.1 * ((log - low) / (high - low) - rng.uniform(0.47, 0.53))) / np.float32(2 * np.tanh(1.05))
    top = 2**BITS - 1
    return np.clip((0.5 + 0.94 * tone) * top, 0, top).astype(np.uint16)


def _smooth(image: Image, sigma: float) -> Image:
    """A wide Gaussian blur, done on a coarse copy: sigma stays at least three coarse pixels."""
    stride = max(1, int(sigma / 3))
    small = ndimage.gaussian_filter(image[::stride, ::stride], sigma / stride, truncate=3)
    return enlarge(small, (image.shape[0], image.shape[1]), stride)


# ----------------------------------------------------------------------------------------------------------- truth


def _box(mask: Mask, rows: slice = slice(None), columns: slice = slice(None)) -> Box | None:
    """Smallest box around a mask that lies at (rows, columns) of the image; None when it is empty."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(down):
        return None
    y, x = rows.start or 0, columns.start or 0
    return float(x + across[0]), float(y + down[0]), float(x + across[-1] + 1), float(y + down[-1] + 1)


def _region(frame: Frame, side: int, u0: float, u1: float, y0: float, y1: float) -> Box:
    """A box given in patient millimetres, clipped to the image."""
    columns, rows = frame.pixels(np.array([side * u0, side * u1]), np.array([y0, y1]))
    height, width = frame.size
    xmin, xmax = np.clip(sorted(columns), 0, width).tolist()
    ymin, ymax = np.clip(rows, 0, height).tolist()
    return xmin, ymin, xmax, ymax


def _union(frame: Frame, shapes: tuple[Ellipse, ...]) -> Mask:
    mask = np.zeros(frame.size, bool)
    for shape in shapes:
        window, r2 = frame.ellipse(shape)
        mask[window] |= r2 < 1
    return mask


def _masks(frame: Frame, thorax: Thorax, outlines: dict[int, Mask]) -> dict[str, Mask]:
    """Outlines under EGD-CXR's names."""
    y = frame.y[:, None]
    floor = np.where(frame.x < 0, thorax.diaphragm(-1, -frame.x), thorax.diaphragm(1, frame.x))
    between = (frame.x > -thorax.medial(-1, y)) & (frame.x < thorax.medial(1, y)) & (y > thorax.apex + 4)
    mediastinum = between | _union(frame, thorax.heart_shapes + thorax.vessel_shapes)
    return {
        "left_lung": outlines[1],
        "right_lung": outlines[-1],
        "mediastinum": mediastinum & (y < np.minimum(floor, thorax.base) + 4),
        "aortic_knob": _union(frame, thorax.vessel_shapes[-1:]) & (frame.x > 6),
    }


def _anatomies(frame: Frame, thorax: Thorax, masks: dict[str, Mask], heart: Mask) -> dict[str, Box]:
    """Boxes under EGD-CXR's 17 names; a zone is a third of a lung's height."""
    boxes: dict[str, Box | None] = {"cardiac silhouette": _box(heart)}
    for side, name in ((-1, "right"), (1, "left")):
        lung = masks[f"{name}_lung"]
        boxes[f"{name} lung"] = whole = _box(lung)
        if whole is not None:
            edges = np.linspace(whole[1], whole[3], 4).round().astype(int)
            for zone, top, bottom in zip(("upper", "mid", "lower"), edges[:-1], edges[1:], strict=True):
                rows = slice(int(top), int(bottom))
                boxes[f"{name} {zone} lung zone"] = _box(lung[rows], rows)
        window, _, collar = clavicle(frame, thorax, side)
        boxes[f"{name} clavicle"] = _box(collar, *window)
        x, y = thorax.hila[side]
        boxes[f"{name} hilar structures"] = _region(frame, side, abs(x) - 18, abs(x) + 30, y - 32, y + 38)
        wall = thorax.patient.chest
        boxes[f"{name} costophrenic angle"] = _region(
            frame, side, wall - 34, wall + 4, thorax.base - 32, thorax.base + 8
        )
    boxes["trachea"] = _region(frame, 1, -14, 12, thorax.apex - 34, thorax.knob[1] + 36)
    boxes["upper mediastinum"] = _region(frame, 1, -34, 40, thorax.apex + 20, thorax.knob[1] + 42)
    seen = {name: boxes.get(name) for name in ANATOMIES}
    return {name: box for name, box in seen.items() if box is not None and box[2] > box[0] and box[3] > box[1]}


def _lesions(
    frame: Frame,
    thorax: Thorax,
    found: list[Finding],
    air: Image,
    heart: Mask,
    ratio: float,
    congestion: float,
) -> tuple[Lesion, ...]:
    """What there is to see. A finding shows fully when it adds 0.7 to the absorbance, a heart at a ratio of 0.6."""
    lesions = []
    for finding in found:
        added = (MU_SOFT - MU_LUNG) * air[finding.window] * finding.share
        if not added.size or added.max() < 0.02:
            continue
        core = added > 0.35 * added.max()
        box = _box(core, *finding.window)
        if box is not None:
            lesions.append(Lesion(finding.name, box, float(np.clip(np.percentile(added[core], 75) / 0.7, 0, 1))))
    # A large heart or full vessels catch the eye whatever their cause: eyes do not know the label.
    box = _box(heart)
    if box is not None and ratio > 0.48:
        lesions.append(Lesion("enlarged_cardiac_silhouette", box, min((ratio - 0.48) / 0.12, 1.0)))
    if congestion > 0.12:
        for side, (x, y) in thorax.hila.items():
            region = _region(frame, side, abs(x) - 14, abs(x) + 50, y - 70, y + 20)
            lesions.append(Lesion("vascular_redistribution", region, min(0.6 * congestion, 1.0)))
    return tuple(lesions)
