"""A chest radiograph from physics: attenuation through a parametric thorax, an X-ray exposure and a detector.

Every pixel is one X-ray. Its absorbance is the Beer-Lambert integral over the tissues on its way,

    A(x, y) = mu_soft * (T - L) + mu_lung * L + (mu_bone - mu_soft) * B + ...          I = I0 * exp(-A)

with T the thickness of the body, L the air-filled path through the lungs and B the path through bone, all in millimetres.
L is what the rib cage holds minus what displaces air: heart, great vessels, diaphragm, pulmonary vessels, fluid, consolidation.
So a lesion is never painted: it takes air away, and hides behind ribs and heart as it does in a patient.
The detector sees a Poisson number of photons plus scatter, blurs them, and stores the logarithm (bones bright), 12 bits.

The model is 2.5-dimensional: paths are analytic chords of a few bodies (superellipse rib cage, ellipsoid heart), ribs and pulmonary
vessels are projected from space curves. It is made for testing and teaching methods; it carries no clinical meaning.

Coordinates are millimetres in the patient: x towards the image's right (the patient's left), y downwards, origin at the top centre
of a nominal 350 x 420 mm field. Every size and every shape comes from random numbers seeded by (seed, patient, study), drawn from separate
streams for anatomy, disease and exposure: the same patient without disease is the same call with another label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from radgaze.errors import InputError

__all__ = ["ANATOMIES", "BITS", "CLASSES", "MASKS", "Box", "Label", "Lesion", "Patient", "Radiograph", "expose"]

Label = Literal["Normal", "CHF", "pneumonia"]
Box = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax in image pixels."""
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

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

FIELD_MM = (420.0, 350.0)  # height, width of the nominal field
# Linear attenuation per mm near 70 keV, the effective energy of a 120 kVp chest exposure (NIST XCOM, rounded).
MU_SOFT, MU_LUNG, MU_BONE, MU_SPONGY = 0.0195, 0.0045, 0.050, 0.0265
PHOTONS_PER_MM2 = 4.0e5  # reaching the detector through air; about 2.5 uGy behind the lungs


@dataclass(frozen=True)
class Patient:
    """What stays the same between one patient's studies. Lengths in mm."""

    number: int
    sex: Literal["F", "M"]
    age: int
    size: float  # overall scale, 1 = average
    habitus: float  # soft tissue thickness, 1 = average
    chest_width: float  # half width of the rib cage inside
    cardiothoracic: float  # heart width / chest width when healthy
    scoliosis: float  # sideways bow of the spine
    bone_density: float
    seed: tuple[int, int] = field(repr=False)

    @classmethod
    def draw(cls, seed: int, number: int, difficulty: float = 0.3) -> Patient:
        rng = np.random.default_rng([seed, number, 1])
        female = rng.random() < 0.5
        return cls(
            number=number,
            sex="F" if female else "M",
            age=int(np.clip(rng.normal(62, 16), 20, 92)),
            size=float(np.clip(rng.normal(0.965 if female else 1.015, 0.03), 0.88, 1.08)),
            habitus=float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.35)),
            chest_width=float(rng.normal(131, 4)),
            # A hard cohort has healthy hearts that are nearly as large as diseased ones.
            cardiothoracic=float(np.clip(rng.normal(0.445, 0.018 + 0.022 * difficulty), 0.36, 0.56)),
            scoliosis=float(rng.normal(0, 3)),
            bone_density=float(np.clip(rng.normal(1.0, 0.12), 0.65, 1.3)),
            seed=(seed, number),
        )


@dataclass(frozen=True)
class Lesion:
    """Something abnormal: its name in EGD-CXR's words, its box, and how well it shows (0 invisible, 1 unmistakable)."""

    name: str
    box: Box
    visibility: float


@dataclass(frozen=True)
class Radiograph:
    """One exposure with everything known about it.

    ``pixels`` is (H, W) uint16 in [0, 4095], bones bright; ``masks`` are (H, W) bool (see ``MASKS``), ``anatomies`` boxes in pixels (see
    ``ANATOMIES``). ``cardiothoracic_ratio`` is measured from the silhouette: greatest heart width over inner chest width.
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
        return self.pixels.shape[0], self.pixels.shape[1]


# ---------------------------------------------------------------------------------------------------------------- the frame


@dataclass(frozen=True)
class _Frame:
    """Where pixels sit in the patient: row i at height y[i] mm, and x[i, j] mm sideways from the leaning, bowed midline."""

    size: tuple[int, int]
    mm: float  # patient millimetres per pixel
    y: Image  # (H,)
    x: Image  # (H, W)
    midline: Image  # (H,) mm from the image's centre column

    @classmethod
    def build(cls, size: tuple[int, int], patient: Patient, lean: float, shift: tuple[float, float]) -> _Frame:
        height, width = size
        mm = max(FIELD_MM[0] / height, FIELD_MM[1] / width) / patient.size
        y = ((np.arange(height) - (height - 1) / 2) * mm + FIELD_MM[0] / 2 - shift[1]).astype(np.float32)
        midline = shift[0] + lean * (y - 210) + patient.scoliosis * np.sin((y - 60) / 85)
        x = (np.arange(width) - (width - 1) / 2) * mm
        return cls(size, mm, y, (x[None, :] - midline[:, None]).astype(np.float32), midline.astype(np.float32))

    def pixels(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Patient millimetres to (column, row)."""
        row = (y - self.y[0]) / self.mm
        return (x + np.interp(y, self.y, self.midline)) / self.mm + (self.size[1] - 1) / 2, row

    def window(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        """The rows and columns that may hold anything between x0..x1, y0..y1: most bodies are small, so work is too."""
        rows = slice(*(int(np.clip((y - self.y[0]) / self.mm + end, 0, self.size[0])) for y, end in ((y0, 0), (y1, 2))))
        centre = (self.size[1] - 1) / 2
        low, high = self.midline.min() + x0, self.midline.max() + x1
        columns = slice(
            *(int(np.clip(x / self.mm + centre + end, 0, self.size[1])) for x, end in ((low, 0), (high, 2)))
        )
        return rows, columns

    def splat(self, x: NDArray[Any], y: NDArray[Any], volume: NDArray[Any]) -> Image:
        """Sum volumes (mm^3) at points (mm) into a map of thickness (mm), bilinearly: mass is kept wherever a point falls."""
        height, width = self.size
        column, row = self.pixels(x.ravel(), y.ravel())
        inside = (column >= 0) & (column < width - 1) & (row >= 0) & (row < height - 1)
        column, row, mass = column[inside], row[inside], np.broadcast_to(volume, x.shape).ravel()[inside] / self.mm**2
        j, i = column.astype(np.int64), row.astype(np.int64)
        fx, fy = column - j, row - i
        index = i * width + j
        total = np.zeros(height * width)
        for step, weight in (
            (0, (1 - fx) * (1 - fy)),
            (1, fx * (1 - fy)),
            (width, (1 - fx) * fy),
            (width + 1, fx * fy),
        ):
            total += np.bincount(index + step, weights=mass * weight, minlength=height * width)
        return total.reshape(height, width).astype(np.float32)

    def cloud(self, rng: np.random.Generator, scale: float, octaves: int = 3) -> Image:
        """Fractal noise, about zero mean and unit deviation, with its coarsest detail at ``scale`` mm; the same at any image size."""
        total = np.zeros(self.size, np.float32)
        x = (np.arange(self.size[1], dtype=np.float32) - (self.size[1] - 1) / 2) * self.mm + 250
        for octave in range(octaves):
            step = scale / 2**octave
            knots = rng.standard_normal((int(520 / step) + 4, int(500 / step) + 4)).astype(np.float32)
            rows, columns = (
                _cubic(np.clip(self.y + 50, 0, 519) / step, knots.shape[0]),
                _cubic(np.clip(x, 0, 499) / step, knots.shape[1]),
            )
            total += (rows @ knots @ columns.T) * (1.3 * 0.55**octave)
        return total


def _cubic(position: Image, knots: int) -> Image:
    """(N, knots) matrix of uniform cubic B-spline weights at fractional knot positions."""
    start = position.astype(np.int64)
    t = position - start
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((len(position), knots), np.float32)
    matrix[np.arange(len(position))[:, None], start[:, None] + np.arange(4)] = weights
    return matrix


def _step(x: NDArray[Any]) -> NDArray[Any]:
    """Smooth step: 0 below 0, 1 above 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _dome(t: NDArray[Any], power: float = 2.0) -> NDArray[Any]:
    """A quarter superellipse: 0 at t = 0 rising steeply to 1 at t = 1 and staying there."""
    return (1 - (1 - np.clip(t, 0, 1)) ** power) ** (1 / power)


# --------------------------------------------------------------------------------------------------------------- the thorax


@dataclass(frozen=True)
class _Thorax:
    """One study's geometry, mm. ``sides`` are -1 (patient's right, image left) and +1."""

    chest: float  # inner half width
    apex: float  # y of the lung tops
    base: float  # y of the costophrenic angles
    dome: dict[int, float]  # y of the top of each diaphragm dome
    rotation: float  # sideways shift of the front against the back
    heart: tuple[float, float]  # how far the silhouette reaches right and left of the midline
    knob: tuple[float, float, float]  # aortic knob: x, y, radius
    depth: float  # greatest front-to-back depth of the rib cage

    def lateral(self, y: NDArray[Any]) -> NDArray[Any]:
        """Half width of the rib cage inside at height y; 50 at the apex."""
        t = (y - self.apex) / (self.base - self.apex)
        return 46 + (self.chest - 46) * _dome(t / 0.8, 2.2) - 5 * np.clip(t - 0.9, 0, 1)

    def medial(self, side: int, y: NDArray[Any]) -> NDArray[Any]:
        """Where lung meets the midline structures at height y, without heart and arch."""
        t = (y - self.apex) / (self.base - self.apex)
        vessels = 6 * np.exp(-(((y - 165) / 45) ** 2)) if side < 0 else 3 * np.exp(-(((y - 100) / 22) ** 2))
        return 46 - (46 - 23) * _dome(t / 0.22) + vessels + 4 * t

    def diaphragm(self, side: int, u: NDArray[Any]) -> NDArray[Any]:
        """y of the dome at u = side * x: highest between heart and wall, falling into the costophrenic angle."""
        top, peak = self.dome[side], 0.46 * self.chest
        outside = np.clip((u - peak) / (self.chest - peak), 0, 1.2)
        inside = np.clip((peak - u) / peak, 0, 1.5)
        return top + (self.base - top) * outside**2.6 + 16 * inside**2

    def ellipses(self) -> list[tuple[float, float, float, float, float, float]]:
        """The heart and great vessels as ellipses: x, y, half axes, angle (rad), depth."""
        right, left = self.heart
        floor = 0.5 * (self.dome[-1] + self.dome[1])
        size = (right + left) / 120
        knob_x, knob_y, knob = self.knob
        return [
            (
                left - 62 * size,
                floor - 40 * size,
                66 * size,
                47 * size,
                0.52,
                105,
            ),  # ventricles, apex to the patient's left
            (-right + 33 * size, floor - 38 * size, 33 * size, 42 * size, 0.0, 90),  # right atrium
            (8 * size, floor - 74 * size, 36 * size, 34 * size, 0.4, 80),  # left atrium and roots
            (16 + 8 * size, knob_y + 37, 22, 24, 0.3, 70),  # pulmonary trunk
            (-10, knob_y + 25, 27, 45, 0.0, 70),  # ascending aorta and superior vena cava
            (knob_x, knob_y, knob, knob, 0.0, 75),  # aortic knob
        ]


def _ellipse(frame: _Frame, at: tuple[float, float, float, float, float, float]) -> tuple[tuple[slice, slice], Image]:
    """Squared elliptic radius in the window that holds the ellipse (1 on its edge)."""
    x0, y0, a, b, angle, _ = at
    reach = max(a, b)
    window = frame.window(x0 - reach, x0 + reach, y0 - reach, y0 + reach)
    dx, dy = frame.x[window] - x0, (frame.y[window[0]] - y0)[:, None]
    c, s = np.cos(angle), np.sin(angle)
    return window, ((c * dx + s * dy) / a) ** 2 + ((c * dy - s * dx) / b) ** 2


def _body(frame: _Frame, patient: Patient) -> Image:
    """Thickness of the body along each ray, mm."""
    y = frame.y
    # Flanks, then the shoulders that widen the outline above the armpits.
    half = patient.chest_width + 30 * patient.habitus + 95 * _step((165 - y) / 75) + 8 * _step((y - 280) / 120)
    depth = (118 + 100 * _step((y - 15) / 170) + 22 * _step((y - 260) / 120)) * patient.habitus**0.5
    across = np.clip(1 - (frame.x / half[:, None]) ** 2, 0, None)
    torso = depth[:, None] * across**0.45
    # The slope from neck to shoulder: nothing above it but the neck.
    x = np.abs(frame.x)
    slope = 14 + 0.34 * np.clip(x - 52, 0, None) + 0.0006 * np.clip(x - 52, 0, None) ** 2
    shoulder = _dome((y[:, None] - slope) / 70)
    neck = np.clip(1 - (frame.x / 58) ** 2, 0, None) ** 0.5
    return (torso * np.maximum(shoulder, 0.9 * neck)).astype(np.float32)


def _lungs(frame: _Frame, thorax: _Thorax) -> tuple[dict[int, Image], dict[int, Mask]]:
    """Air paths before disease, mm, and the outlines seen above the diaphragm and beside heart and vessels."""
    displaced = np.zeros(frame.size, np.float32)
    silhouette = np.zeros(frame.size, bool)
    for ellipse in thorax.ellipses():
        window, r2 = _ellipse(frame, ellipse)
        displaced[window] = np.maximum(displaced[window], ellipse[5] * np.sqrt(np.clip(1 - r2, 0, None)))
        silhouette[window] |= r2 < 1
    y = frame.y
    depth = thorax.depth * _dome((y - thorax.apex + 6) / 190, 2.2) * (y > thorax.apex - 6)
    air, outline = {}, {}
    for side in (-1, 1):
        u = side * frame.x
        lateral, medial = thorax.lateral(y)[:, None], thorax.medial(side, y)[:, None]
        # The rib cage is an elliptic cylinder: its chord falls to nothing at the wall, which draws the bright pleural margin.
        chord = np.sqrt(np.clip(1 - (u / lateral) ** 2, 0, None)) * _step((u - medial) / 5 + 0.5)
        below = y[:, None] - thorax.diaphragm(side, u)
        # Behind the dome the lung reaches down into the posterior recess, thinning out.
        above = _step(0.5 - below / 3)
        recess = np.where(below > 0, 0.16 * np.exp(-np.clip(below, 0, None) / 22), 0.16)
        path = depth[:, None] * chord * np.maximum(above, recess)
        crowd = displaced * np.clip(chord * 2, 0, 1)
        air[side] = np.clip(path - crowd * above, 0.12 * path, None).astype(np.float32)
        outline[side] = (u > medial) & (u < lateral) & (below < 0) & (y > thorax.apex)[:, None] & ~silhouette
    return air, outline


def _ribs(frame: _Frame, thorax: _Thorax, patient: Patient, rng: np.random.Generator) -> Image:
    """Thickness of compact bone in ten pairs of ribs, mm.

    A rib is a space curve from the spine around the wall to the front. Its cross-section is everywhere the same upright band, so the
    projection is the curve's, splatted and convolved down the columns once. Where the curve runs along the beam, at the side walls,
    its mass piles up by itself, as in a radiograph.
    """
    first, spacing = thorax.apex + 8, (thorax.base - thorax.apex - 40) / 9.6
    theta = np.linspace(0.17, 0.84 * np.pi, max(64, int(430 / (0.6 * frame.mm))))
    xs, ys, volumes = [], [], []
    offsets = np.linspace(-1, 1, max(5, int(7 / (0.8 * frame.mm))))
    for number in range(10):
        drop = 26 + 66 * _dome(np.array((number + 0.5) / 7))[()] - 2.5 * max(0, number - 7)
        top = first + spacing * number + rng.normal(0, 1.0)
        wall = thorax.lateral(np.array(top + drop * 0.45)) + 2.5
        reach = np.where(theta < np.pi / 2, 1.0, 0.80 + 0.2 * np.sin(theta))
        for side in (-1, 1):
            x = wall * np.sin(theta) ** 0.92 * reach
            z = -np.cos(theta)
            y = (
                top
                + drop * (1 - np.cos(theta)) / 2
                - 9 * np.sin(2 * theta) * (theta < np.pi / 2)
                + side * rng.normal(0, 0.6)
            )
            y = y + 16 * np.clip(theta / np.pi - 0.62, 0, 1) ** 1.0  # the front end dips towards its cartilage
            arc = np.sqrt(np.gradient(x) ** 2 + np.gradient(y) ** 2 + np.gradient(z * 0.6 * wall) ** 2)
            # The band's 7 mm thickness points away from the chest's axis: sideways at the wall, along the beam in front and behind.
            sideways = 3.2 * np.sin(theta)
            xs.append((side * x + thorax.rotation * z)[:, None] + side * sideways[:, None] * offsets)
            ys.append(np.broadcast_to(y[:, None], (len(theta), len(offsets))))
            # The front half is thinner, and fades into cartilage the X-rays hardly see.
            compact = np.where(theta < np.pi / 2, 1.0, 0.86) * _step((0.84 * np.pi - theta) / 0.12)
            edges = 0.7 + 0.6 * np.abs(offsets) ** 4
            volumes.append((arc * compact)[:, None] * edges / edges.sum())
    section = 26.0 * patient.bone_density  # mm^2 of compact bone, cut across
    line = frame.splat(np.stack(xs), np.stack(ys), np.stack(volumes) * section)
    # Upright profile of a shell 13 mm tall: dense at its upper and lower edge.
    half = 6.6 / frame.mm
    position = np.arange(-int(half) - 1, int(half) + 2)
    inside = np.clip(half + 0.5 - np.abs(position), 0, 1)
    profile = inside * (0.75 + 0.9 * np.clip(np.abs(position) / half, 0, 1) ** 6)
    return ndimage.convolve1d(line, profile / profile.sum(), axis=0, mode="constant").astype(np.float32)


def _spine(frame: _Frame, patient: Patient) -> tuple[Image, Image]:
    """Spongy and compact bone of the vertebrae, mm."""
    spongy, compact = np.zeros(frame.size, np.float32), np.zeros(frame.size, np.float32)
    window = frame.window(-45, 45, -40, 460)
    x, y = frame.x[window], frame.y[window[0]][:, None]
    pitch = 21 + 0.018 * np.clip(y, 0, 420)  # vertebrae grow downwards
    phase = (y / pitch) % 1.0 - 0.5
    half = 14.5 + 0.012 * np.clip(y, 0, 420)
    body = _step((half - np.abs(x)) / 2.5 + 0.5) * _step((0.40 - np.abs(phase)) * pitch / 2 + 0.5)
    spongy[window] = 30 * body * np.sqrt(np.clip(1 - (x / (half + 3)) ** 2, 0.05, None))
    rim = np.exp(-(((np.abs(phase) - 0.39) * pitch / 1.3) ** 2)) * (np.abs(x) < half)
    wall = np.exp(-(((np.abs(x) - half + 1) / 1.2) ** 2)) * (np.abs(phase) < 0.40)
    pedicle = np.hypot((np.abs(x) - half + 5) / 4, (phase + 0.12) * pitch / 5.5)
    process = np.hypot(x / 3.0, (phase - 0.22) * pitch / 7)
    arms = (
        _step((half + 17 - np.abs(x)) / 5)
        * _step((np.abs(x) - half + 2) / 4)
        * np.exp(-(((phase + 0.1) * pitch / 4.5) ** 2))
    )
    rings = 3.0 * np.exp(-(((pedicle - 1) / 0.35) ** 2)) + 4.0 * _step(1.4 - process)
    compact[window] = (1.6 * rim + 2.2 * wall + rings + 3.0 * arms) * patient.bone_density
    return spongy, compact


def _clavicle(frame: _Frame, thorax: _Thorax, side: int) -> tuple[tuple[slice, slice], Image, Mask]:
    """Compact bone of one clavicle, mm, in its window, and its outline."""
    window = frame.window(*sorted((side * 8.0, side * 165.0)), 35, 125)
    u = side * (frame.x[window] - thorax.rotation * 0.9)
    line = thorax.apex + 47 - 0.24 * np.clip(u, 0, 170) + 7 * np.sin((u - 15) / 24)
    half = 5.4 + 2.6 * np.exp(-(((u - 18) / 11) ** 2)) + 1.5 * _step((u - 110) / 40)
    r = np.abs(frame.y[window[0]][:, None] - line) * 0.96 / half
    ends = _step((u - 10) / 5) * _step((160 - u) / 10)
    tube = np.sqrt(np.clip(1 - r**2, 0, None)) - 0.82 * np.sqrt(np.clip(1 - (r / 0.80) ** 2, 0, None))
    return window, (ends * half * tube * 1.6).astype(np.float32), (r < 1) & (ends > 0.5)


def _scapula(frame: _Frame, side: int, outward: float) -> tuple[tuple[slice, slice], Image]:
    """Compact bone of one shoulder blade and humeral head, mm."""
    window = frame.window(*sorted((side * 90.0, side * 250.0)), 35, 260)
    u, y = side * frame.x[window] - outward, frame.y[window[0]][:, None]
    inner = 122 + 0.10 * np.abs(y - 110) + 0.10 * np.clip(y - 150, 0, None)
    outer = inner + np.clip(48 - 0.42 * np.clip(y - 95, 0, None), 0, None)
    blade = _step((u - inner) / 2) * _step((outer - u) / 3) * _step((y - 72) / 6) * _step((215 - y) / 8)
    border = np.exp(-(((u - inner - 2) / 2.0) ** 2)) + 1.6 * np.exp(-(((u - outer + 3) / 3.0) ** 2))
    spine = np.exp(-(((y - 88 - 0.10 * (168 - u)) / 4.5) ** 2)) * _step((u - inner) / 10)
    head = np.sqrt(np.clip(1 - np.hypot((u - 186) / 24, (y - 102) / 25) ** 2, 0, None))
    shell = head - 0.86 * np.sqrt(np.clip(1 - np.hypot((u - 186) / 22.5, (y - 102) / 23.5) ** 2, 0, None))
    return window, (blade * (0.7 + 1.7 * border * (y < 210)) + 2.2 * spine * (y < 120) + 14 * shell + 2 * head).astype(
        np.float32
    )


def _vessels(
    frame: _Frame, thorax: _Thorax, rng: np.random.Generator, congestion: float
) -> tuple[Image, dict[int, tuple[float, float]]]:
    """Blood in the branching pulmonary vessels, mm, and the hila (x, y).

    A binary tree from each hilum: daughters 0.78 as wide (Murray's law: r^3 is shared), straightish, towards the wall. ``congestion``
    (0..1) widens the upper-zone vessels most, the redistribution radiologists call cephalisation.
    """
    levels = 7
    hila = {-1: (-34.0, thorax.knob[1] + 55), 1: (37.0, thorax.knob[1] + 43)}
    total = np.zeros(frame.size, np.float32)
    starts, angles, radii, sides = [], [], [], []
    for side, (x, y) in hila.items():
        # Angles from straight lateral, positive down: two for the upper lobe, one middle, three to the base; artery and vein.
        for angle in np.deg2rad([-74, -48, -22, 6, 28, 47, 62, 76]) + rng.normal(0, 0.08, 8):
            starts.append((x + rng.normal(0, 2.5), y + 10 * np.sin(angle) + rng.normal(0, 3)))
            angles.append(angle)
            sides.append(side)
            radii.append(rng.uniform(2.5, 3.7) * (0.72 if angle < -0.2 else 1.0))
    x, y = np.array(starts).T
    angle, radius, side_of = np.array(angles), np.array(radii), np.array(sides)
    length = rng.uniform(24, 34, len(x))
    steps = max(6, int(16 / frame.mm))
    t = np.linspace(0, 1, steps)
    for level in range(levels):
        bend = rng.normal(0, 0.22, len(x))
        heading = angle[:, None] + bend[:, None] * t
        path_x = x[:, None] + side_of[:, None] * length[:, None] * np.cumsum(np.cos(heading), 1) / steps
        path_y = y[:, None] + length[:, None] * np.cumsum(np.sin(heading), 1) / steps
        upper = _step((thorax.knob[1] + 60 - path_y) / 60)
        wide = radius[:, None] * (1 - 0.12 * t) * (1 + congestion * (0.25 + 0.55 * upper))
        volume = np.pi * wide**2 * length[:, None] / steps
        # One blur per level gives the level's typical width; a cylinder's chord is close enough to a Gaussian of half its radius.
        spread = 0.5 * float(np.median(radius)) * (1 + 0.35 * congestion) / frame.mm
        line = frame.splat(path_x, path_y, volume)
        total += ndimage.gaussian_filter(line, spread, truncate=3) if spread > 0.35 else line
        split = rng.uniform(0.22, 0.60, len(x))
        lean = rng.uniform(0.25, 0.75, len(x))
        angle = np.concatenate([heading[:, -1] - split * lean, heading[:, -1] + split * (1 - lean)])
        x, y = np.tile(path_x[:, -1], 2), np.tile(path_y[:, -1], 2)
        length = np.tile(length, 2) * rng.uniform(0.68, 0.92, len(x))
        radius = np.tile(radius, 2) * rng.uniform(0.66, 0.82, len(x))
        side_of = np.tile(side_of, 2)
    return total, hila


# --------------------------------------------------------------------------------------------------------------- the disease


@dataclass(frozen=True)
class _Finding:
    """Part of the air that disease takes away: ``share`` (0..1) within ``window``, by a process that EGD-CXR calls ``name``."""

    name: str
    window: tuple[slice, slice]
    share: Image


def _severity(rng: np.random.Generator, difficulty: float) -> float:
    """How pronounced a disease is: around 1 in an easy cohort, 0 at difficulty 1."""
    return (1 - difficulty) * rng.uniform(0.7, 1.15)


def _everything(frame: _Frame) -> tuple[slice, slice]:
    return slice(0, frame.size[0]), slice(0, frame.size[1])


def _oedema(
    frame: _Frame, hila: dict[int, tuple[float, float]], severity: float, rng: np.random.Generator
) -> list[_Finding]:
    """Interstitial haze around both hila, denser towards the bases, with short Kerley B lines at the lateral walls."""
    texture = np.clip(1 + 0.30 * frame.cloud(rng, 9, 3), 0.2, None)
    findings = []
    for side, (x, y) in hila.items():
        reach = rng.uniform(42, 58)
        window = frame.window(*sorted((side * 10.0, side * 150.0)), y - 110, y + 150)
        distance = np.hypot(frame.x[window] - x - side * 16, (frame.y[window[0]][:, None] - y - 22) / 1.35) / reach
        share = 0.40 * severity * np.exp(-0.5 * distance**2) * texture[window]
        findings.append(_Finding("pulmonary_edema__hazy_opacity", window, np.clip(share, 0, 0.75).astype(np.float32)))
    return findings


def _effusion(frame: _Frame, thorax: _Thorax, side: int, severity: float, rng: np.random.Generator) -> _Finding:
    """Fluid in the costophrenic angle with a meniscus that climbs the lateral wall."""
    window = frame.window(*sorted((side * 15.0, side * (thorax.chest + 12))), thorax.base - 170, thorax.base + 30)
    u, y = side * frame.x[window], frame.y[window[0]][:, None]
    height = severity * rng.uniform(22, 62)
    across = np.clip((u - 30) / (thorax.chest - 30), 0, 1)
    surface = thorax.base - 8 - height * (0.62 + 0.75 * across**3.5 + 0.08 * (1 - across) ** 2)
    # Fluid wraps the lung, so its path grows over some centimetres below the surface.
    share = (1 - np.exp(-np.clip(y - surface, 0, None) / 13)) * min(1.0, 0.45 + 0.6 * severity) * (height > 1)
    return _Finding("pleural_effusion_or_thickening", window, share.astype(np.float32))


def _consolidation(frame: _Frame, thorax: _Thorax, severity: float, rng: np.random.Generator) -> _Finding:
    """Air spaces filled with fluid: a ragged patch, or a lobe cut straight by its fissure; a few dark bronchi remain."""
    side = int(rng.choice([-1, 1]))
    lobar = rng.random() < 0.4
    height = thorax.base - thorax.apex
    level = rng.uniform(0.22, 0.80)
    y0 = thorax.apex + level * height
    lateral = float(thorax.lateral(np.array(y0)))
    # Behind the heart there is little to see on the left, so patches there sit further out.
    x0 = lateral * rng.uniform(0.42 if side < 0 else 0.55, 0.78)
    radius = (rng.uniform(24, 40) if lobar else rng.uniform(15, 32)) * (0.75 + 0.25 * severity)
    reach = 2.2 * radius
    window = frame.window(side * x0 - reach, side * x0 + reach, y0 - reach, y0 + reach)
    dx, dy = (side * frame.x[window] - x0) / 1.15, frame.y[window[0]][:, None] - y0
    ragged = frame.cloud(rng, 26, 4)[window]
    r = np.hypot(dx, dy) / radius - 0.22 * ragged
    share = _step((1.25 - r) / 0.85)
    if lobar:
        fissure = y0 + (1 if level < 0.5 else -1) * 0.55 * radius - 0.08 * dx
        cut = (fissure - frame.y[window[0]][:, None]) * (1 if level < 0.5 else -1)
        share = share * _step(cut / 2.5 + 0.5)
    bronchi = np.clip(1.0 - 0.28 * np.clip(frame.cloud(rng, 7, 2)[window], 0, None), 0.4, 1)
    share = 0.72 * severity * share * bronchi
    return _Finding("consolidation", window, np.clip(share, 0, 0.92).astype(np.float32))


def _plate(frame: _Frame, thorax: _Thorax, strength: float, rng: np.random.Generator) -> _Finding:
    """A band of linear atelectasis or scar at a base: common, in any class, and no sign of either disease."""
    side = int(rng.choice([-1, 1]))
    x0, y0 = rng.uniform(55, 95), thorax.dome[side] - rng.uniform(8, 50)
    tilt, half = rng.normal(0, 0.15), rng.uniform(14, 28)
    window = frame.window(side * x0 - 40, side * x0 + 40, y0 - 16, y0 + 16)
    dx = side * frame.x[window] - x0
    dy = frame.y[window[0]][:, None] - y0 - tilt * dx
    share = strength * np.exp(-((dy / 1.6) ** 2)) * _step((half - np.abs(dx)) / 8)
    return _Finding("linear__patchy_atelectasis", window, np.clip(share, 0, 0.6).astype(np.float32))


# --------------------------------------------------------------------------------------------------------------- the exposure


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
        label: ``"Normal"``, ``"CHF"`` (large heart, congested vessels, haze, effusions) or ``"pneumonia"`` (one to three consolidations).
        seed, patient, study: what is drawn. Anatomy, disease and exposure have streams of their own: another ``label`` is the same
            patient, positioning and noise; another ``size`` is the same scene on another detector.
        size: (height, width) in pixels, at least 32 each. The 420 x 350 mm field is fitted inside.
        difficulty: 0 (every disease is plain) to 1 (disease does not show: chance). It scales severity by 1 - difficulty, so heart
            size, lesion contrast and lesion extent all shrink, and it widens the spread of healthy heart sizes and lung markings.

    Raises:
        InputError: unknown label, difficulty outside [0, 1], or an image smaller than 32 pixels.
    """
    if label not in CLASSES:
        raise InputError(f"label is {label!r}; expected one of {', '.join(CLASSES)}")
    if not 0 <= difficulty <= 1:
        raise InputError(f"difficulty is {difficulty}; expected a number from 0 (easy) to 1 (chance)")
    if min(size) < 32:
        raise InputError(f"image size is {size[0]}x{size[1]}; expected at least 32x32 pixels")
    person = Patient.draw(seed, patient, difficulty)
    anatomy, disease, detector = (np.random.default_rng([seed, patient, study, stream]) for stream in (2, 3, 4))

    view: Literal["PA", "AP"] = "AP" if anatomy.random() < 0.3 else "PA"
    inspiration = anatomy.normal(-8 if view == "AP" else 0, 7)
    frame = _Frame.build(size, person, anatomy.normal(0, 0.018), (anatomy.normal(0, 5), anatomy.normal(0, 7)))
    dome = 297 + inspiration
    severity = _severity(disease, difficulty)
    # A healthy ratio is blurred by view and breath; failure adds on top of it.
    ratio = person.cardiothoracic * (1.05 if view == "AP" else 1.0) + anatomy.normal(0, 0.008)
    if label == "CHF":
        ratio += 0.155 * severity
    heart = 2 * person.chest_width * min(ratio, 0.80)
    right_share = anatomy.normal(0.335, 0.015)
    thorax = _Thorax(
        chest=person.chest_width,
        apex=44 + anatomy.normal(0, 3),
        base=dome + 50 + anatomy.normal(0, 4),
        dome={-1: dome, 1: dome + anatomy.normal(9, 4)},
        rotation=anatomy.normal(0, 3),
        heart=(heart * right_share, heart * (1 - right_share)),
        knob=(
            anatomy.normal(25, 2) + 0.05 * (person.age - 60),
            128 + anatomy.normal(0, 5),
            anatomy.normal(16.5, 1.3) + 0.04 * (person.age - 60),
        ),
        depth=anatomy.normal(168, 8),
    )

    body = _body(frame, person)
    air, outline = _lungs(frame, thorax)
    everywhere = air[-1] + air[1]
    texture = frame.cloud(anatomy, 10, 4)
    everywhere *= 1 - np.clip(0.045 + 0.028 * texture, 0, 0.3)

    congestion = (
        severity * disease.uniform(0.75, 1.1) if label == "CHF" else anatomy.uniform(0, 0.05 + 0.2 * difficulty)
    )
    blood, hila = _vessels(frame, thorax, anatomy, congestion)
    everywhere = np.clip(everywhere - blood * _step(everywhere / 18), 0.06 * everywhere, None)

    findings = _findings(label, frame, thorax, hila, severity, difficulty, disease, anatomy)
    full = everywhere.copy()
    for finding in findings:
        everywhere[finding.window] *= 1 - finding.share

    bone, spongy = _bone(frame, thorax, person, view, anatomy)
    soft = np.clip(body - _airways(frame, thorax) + _breasts(frame, thorax, person), 0, None)
    air_path = np.minimum(everywhere, 0.88 * soft)
    present = body > 1
    absorbance = (
        MU_SOFT * (soft - air_path)
        + MU_LUNG * air_path
        + present * ((MU_BONE - MU_SOFT) * bone + (MU_SPONGY - MU_SOFT) * spongy)
    )
    absorbance += _stomach(frame, thorax, anatomy) + _marker(frame, anatomy)

    pixels = _detect(absorbance, frame, person, detector)
    masks = _masks(frame, thorax, outline)
    width, ratio_seen = _silhouette(frame, thorax)
    lesions = _lesions(label, frame, findings, full, thorax, ratio_seen, congestion, hila)
    anatomies = _anatomies(frame, thorax, masks, hila, width)
    return Radiograph(pixels, label, person, view, masks, anatomies, lesions, ratio_seen, frame.mm * person.size)


def _findings(
    label: Label,
    frame: _Frame,
    thorax: _Thorax,
    hila: dict[int, tuple[float, float]],
    severity: float,
    difficulty: float,
    disease: np.random.Generator,
    anatomy: np.random.Generator,
) -> list[_Finding]:
    findings = []
    if anatomy.random() < 0.12 + 0.2 * difficulty:
        findings.append(_plate(frame, thorax, anatomy.uniform(0.15, 0.35), anatomy))
    if label == "CHF":
        findings += _oedema(frame, hila, severity * disease.uniform(0.6, 1.2), disease)
        both = disease.random()
        for side in (-1, 1):
            if both < 0.45 or (both < 0.8 and side == (-1 if both < 0.7 else 1)):
                findings.append(_effusion(frame, thorax, side, severity, disease))
    elif label == "pneumonia":
        for _ in range(int(disease.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))):
            findings.append(_consolidation(frame, thorax, severity * disease.uniform(0.75, 1.1), disease))
        if disease.random() < 0.12:
            findings.append(_effusion(frame, thorax, int(disease.choice([-1, 1])), 0.4 * severity, disease))
    return findings


def _bone(frame: _Frame, thorax: _Thorax, person: Patient, view: str, rng: np.random.Generator) -> tuple[Image, Image]:
    """Compact and spongy bone along each ray, mm."""
    bone = _ribs(frame, thorax, person, rng)
    spongy, compact = _spine(frame, person)
    bone += compact
    # Shoulders are rolled forward for a PA view, which swings the blades out of the lungs.
    outward = rng.normal(16 if view == "PA" else 2, 4)
    for side in (-1, 1):
        window, clavicle, _ = _clavicle(frame, thorax, side)
        bone[window] += clavicle * person.bone_density
        window, scapula = _scapula(frame, side, outward)
        bone[window] += scapula * person.bone_density
    return bone, spongy


def _airways(frame: _Frame, thorax: _Thorax) -> Image:
    """Air in the trachea and the main bronchi, mm."""
    air = np.zeros(frame.size, np.float32)
    carina = thorax.knob[1] + 34
    window = frame.window(-70, 70, -20, carina + 50)
    x, y = frame.x[window] - 0.7 * thorax.rotation, frame.y[window[0]][:, None]
    x = x + 4 * np.exp(-(((y - thorax.knob[1]) / 25) ** 2))  # the arch pushes the trachea to the right
    trachea = 15 * np.sqrt(np.clip(1 - (x / 8.5) ** 2, 0, None)) * _step((carina - y) / 8)
    below = np.clip(y - carina + 6, 0, None)
    right = 9 * np.sqrt(np.clip(1 - ((x + 0.62 * below) / 6) ** 2, 0, None)) * _step((38 - below) / 12) * (below > 0)
    left = 9 * np.sqrt(np.clip(1 - ((x - 1.15 * below) / 6.5) ** 2, 0, None)) * _step((30 - below) / 12) * (below > 0)
    air[window] = np.maximum(trachea, np.maximum(right, left))
    return air


def _breasts(frame: _Frame, thorax: _Thorax, person: Patient) -> Image:
    """Extra soft tissue in front of a woman's lower lungs, mm."""
    extra = np.zeros(frame.size, np.float32)
    if person.sex == "F":
        for side in (-1, 1):
            ellipse = (side * 82.0, thorax.dome[-1] - 18, 60 * person.habitus, 54.0, side * 0.25, 30 * person.habitus)
            window, r2 = _ellipse(frame, ellipse)
            extra[window] += ellipse[5] * np.clip(1 - r2, 0, None) ** 0.7
    return extra


def _stomach(frame: _Frame, thorax: _Thorax, rng: np.random.Generator) -> Image:
    """Absorbance lost to gas under the left dome."""
    loss = np.zeros(frame.size, np.float32)
    x, y, radius, present = (
        rng.normal(62, 9),
        thorax.dome[1] + rng.normal(32, 4),
        rng.uniform(14, 26),
        rng.random() < 0.7,
    )
    if present:
        window, r2 = _ellipse(frame, (x, y, radius * 1.4, radius, rng.normal(0, 0.3), 0))
        loss[window] -= MU_SOFT * 46 * np.sqrt(np.clip(1 - r2, 0, None))
    return loss


def _marker(frame: _Frame, rng: np.random.Generator) -> Image:
    """The lead letter L in the upper corner on the patient's left."""
    lead = np.zeros(frame.size, np.float32)
    x, y, letter = rng.normal(148, 4), rng.normal(22, 4), rng.uniform(7, 10)
    rows, columns = frame.window(x, x + letter, y, y + 1.4 * letter)
    stem = frame.x[rows, columns] - x < 0.28 * letter
    foot = (frame.y[rows] - y)[:, None] > 1.1 * letter
    inside = (frame.x[rows, columns] > x) & (frame.x[rows, columns] < x + letter)
    lead[rows, columns] = 2.5 * ((stem | foot) & inside)
    return lead


def _detect(absorbance: Image, frame: _Frame, person: Patient, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Photons, scatter, blur, logarithm and the console's tone curve, to 12 bits."""
    mm = frame.mm * person.size  # on the detector
    primary = np.exp(-absorbance)
    # Scatter comes from all around and carries no detail: a wide blur of a coarse copy is all there is to it.
    step = max(1, int(4 / mm))
    coarse = ndimage.gaussian_filter(primary[::step, ::step], 38 / (mm * step))
    scatter = 0.30 * _enlarge(np.minimum(coarse, 0.25), absorbance.shape)
    photons = PHOTONS_PER_MM2 * mm**2 * rng.uniform(0.8, 1.25) * (primary + scatter)
    # At these counts (hundreds to tens of thousands) a Poisson number is Gaussian to within a part in its square root.
    photons += np.sqrt(photons) * rng.standard_normal(photons.shape, dtype=np.float32)
    photons = ndimage.gaussian_filter(photons, 0.35 + 0.09 / mm)
    log = -np.log(np.clip(photons / (PHOTONS_PER_MM2 * mm**2), 1e-4, None))
    # Consoles compress latitude: half of what is broader than some centimetres is taken out.
    broad = _enlarge(ndimage.gaussian_filter(log[::step, ::step], 26 / (mm * step)), absorbance.shape)
    log = log - 0.42 * broad
    chest = log[int(0.12 * log.shape[0]) : int(0.9 * log.shape[0]), int(0.12 * log.shape[1]) : int(0.88 * log.shape[1])]
    low, high = np.percentile(chest[::step, ::step], (1, 99))
    low, high = low - rng.uniform(0.06, 0.16) * (high - low), high + rng.uniform(0.06, 0.16) * (high - low)
    t = (log - low) / (high - low)
    tone = 1 / (1 + np.exp(-4.2 * (t - rng.uniform(0.47, 0.53))))
    floor, ceiling = 1 / (1 + np.exp(2.1)), 1 / (1 + np.exp(-2.1))
    top = 2**BITS - 1
    return np.clip((tone - floor) / (ceiling - floor) * 0.94 * top + 0.03 * top, 0, top).astype(np.uint16)


def _enlarge(small: Image, size: tuple[int, ...]) -> Image:
    """Bilinear enlargement of a strided copy to the full size."""

    def weights(n: int, knots: int) -> Image:
        position = np.arange(n) * (knots - 1) / max(1, n - 1)
        start = np.minimum(position.astype(int), max(0, knots - 2))
        matrix = np.zeros((n, knots), np.float32)
        matrix[np.arange(n), start] = 1 - (position - start)
        matrix[np.arange(n), np.minimum(start + 1, knots - 1)] += position - start
        return matrix

    return weights(size[0], small.shape[0]) @ small.astype(np.float32) @ weights(size[1], small.shape[1]).T


# --------------------------------------------------------------------------------------------------------------- the truth


def _box(mask: Mask, rows: slice = slice(None), columns: slice = slice(None)) -> Box | None:
    """Smallest box around a mask that lies at (rows, columns) of the image."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(down):
        return None
    y, x = rows.start or 0, columns.start or 0
    return (float(x + across[0]), float(y + down[0]), float(x + across[-1] + 1), float(y + down[-1] + 1))


def _region(frame: _Frame, x0: float, x1: float, y0: float, y1: float) -> Box:
    """A box given in patient millimetres, clipped to the image."""
    columns, rows = frame.pixels(np.array([x0, x1]), np.array([y0, y1]))
    height, width = frame.size
    xmin, xmax = np.clip(sorted(columns), 0, width)
    ymin, ymax = np.clip(sorted(rows), 0, height)
    return float(xmin), float(ymin), float(xmax), float(ymax)


def _heart(frame: _Frame, thorax: _Thorax) -> Mask:
    mask = np.zeros(frame.size, bool)
    for ellipse in thorax.ellipses()[:3]:
        window, r2 = _ellipse(frame, ellipse)
        mask[window] |= r2 < 1
    return mask


def _silhouette(frame: _Frame, thorax: _Thorax) -> tuple[Mask, float]:
    """The heart's outline, and its greatest width over that of the chest."""
    mask = _heart(frame, thorax)
    x = np.where(mask, frame.x, 0)
    return mask, float((x.max() - x.min()) / (2 * thorax.chest))


def _masks(frame: _Frame, thorax: _Thorax, outline: dict[int, Mask]) -> dict[str, Mask]:
    """Outlines as EGD-CXR names them; the patient's left is the image's right."""
    y = frame.y[:, None]
    domes = np.where(frame.x < 0, thorax.diaphragm(-1, -frame.x), thorax.diaphragm(1, frame.x))
    between = (frame.x > -thorax.medial(-1, y)) & (frame.x < thorax.medial(1, y)) & (y > thorax.apex + 4)
    silhouette = np.zeros(frame.size, bool)
    for ellipse in thorax.ellipses():
        window, r2 = _ellipse(frame, ellipse)
        silhouette[window] |= r2 < 1
    window, r2 = _ellipse(frame, thorax.ellipses()[-1])
    knob = np.zeros(frame.size, bool)
    knob[window] = (r2 < 1) & (frame.x[window] > 6)
    return {
        "left_lung": outline[1],
        "right_lung": outline[-1],
        "mediastinum": (between | silhouette) & (y < np.minimum(domes, thorax.base) + 4),
        "aortic_knob": knob,
    }


def _anatomies(
    frame: _Frame, thorax: _Thorax, masks: dict[str, Mask], hila: dict[int, tuple[float, float]], heart: Mask
) -> dict[str, Box]:
    """Boxes in EGD-CXR's 17 names; zones are thirds of a lung's height."""
    boxes: dict[str, Box | None] = {"cardiac silhouette": _box(heart)}
    for side, name in ((-1, "right"), (1, "left")):
        lung = masks[f"{name}_lung"]
        boxes[f"{name} lung"] = _box(lung)
        rows = np.flatnonzero(lung.any(1))
        if len(rows):
            for zone, part in zip(("upper", "mid", "lower"), np.array_split(rows, 3), strict=True):
                cut = slice(int(part[0]), int(part[-1]) + 1) if len(part) else slice(0, 0)
                boxes[f"{name} {zone} lung zone"] = _box(lung[cut], cut)
        window, _, mask = _clavicle(frame, thorax, side)
        boxes[f"{name} clavicle"] = _box(mask, *window)
        x, y = hila[side]
        boxes[f"{name} hilar structures"] = _region(frame, x - side * 18, x + side * 32, y - 32, y + 38)
        edge = side * thorax.chest
        boxes[f"{name} costophrenic angle"] = _region(
            frame, edge - side * 34, edge + side * 4, thorax.base - 32, thorax.base + 8
        )
    boxes["trachea"] = _region(frame, -14, 12, thorax.apex - 34, thorax.knob[1] + 36)
    boxes["upper mediastinum"] = _region(frame, -34, 40, thorax.apex + 20, thorax.knob[1] + 42)
    return {
        name: box for name in ANATOMIES if (box := boxes.get(name)) is not None and box[2] > box[0] and box[3] > box[1]
    }


def _lesions(
    label: Label,
    frame: _Frame,
    findings: list[_Finding],
    air: Image,
    thorax: _Thorax,
    ratio: float,
    congestion: float,
    hila: dict[int, tuple[float, float]],
) -> tuple[Lesion, ...]:
    """What disease left to see. Visibility is the absorbance it adds, against 0.45 (about what a rib adds twice over)."""
    lesions = []
    for finding in findings:
        added = (MU_SOFT - MU_LUNG) * air[finding.window] * finding.share
        if not added.size or added.max() < 0.02:
            continue
        box = _box(added > 0.35 * added.max(), *finding.window)
        if box is not None:
            seen = float(np.percentile(added[added > 0.35 * added.max()], 75))
            lesions.append(Lesion(finding.name, box, float(np.clip(seen / 0.45, 0, 1))))
    if label == "CHF":
        heart = _box(_heart(frame, thorax))
        if heart is not None and ratio > 0.48:
            lesions.append(Lesion("enlarged_cardiac_silhouette", heart, float(np.clip((ratio - 0.48) / 0.12, 0, 1))))
        for side, (x, y) in hila.items():
            if congestion > 0.1:
                box = _region(frame, x - side * 14, x + side * 50, y - 70, y + 20)
                lesions.append(Lesion("vascular_redistribution", box, float(np.clip(0.6 * congestion, 0, 1))))
    return tuple(lesions)
