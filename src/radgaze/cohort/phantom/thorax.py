"""The bodies an X-ray passes through: rib cage, lungs, heart, vessels and bones, each as a map of path lengths.

The model is 2.5-dimensional. Large bodies are analytic chords (a superelliptic rib cage, ellipsoid heart and great
vessels); ribs and pulmonary vessels are space curves whose mass is projected onto the detector. Every function returns
millimetres of something along each ray; :mod:`radgaze.cohort.phantom.anatomy` turns those into a radiograph.

Coordinates are millimetres in the patient: x towards the image's right (the patient's left), y downwards, origin at
the top centre of a nominal 333 x 400 mm field. ``side`` is -1 for the patient's right (the image's left), +1 for the
left, and u = side * x is the distance from the midline. Shapes depend on millimetres only, so the same patient looks
the same at any image size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Window = tuple[slice, slice]
SIDES = (-1, 1)
FIELD_MM = (400.0, 333.0)  # height, width of the nominal field


# ---------------------------------------------------------------------------------------------------------- shapes


def step(x: NDArray[Any]) -> NDArray[Any]:
    """Smooth step: 0 below 0, 1 above 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def dome(t: NDArray[Any], power: float = 2.0) -> NDArray[Any]:
    """A quarter superellipse: 0 at t = 0, rising steeply at first, 1 from t = 1 on."""
    return (1 - (1 - np.clip(t, 0, 1)) ** power) ** (1 / power)


def bump(x: NDArray[Any], width: float) -> NDArray[Any]:
    """A Gaussian bell of height 1."""
    return np.exp(-((x / width) ** 2))


def chord(r2: NDArray[Any]) -> NDArray[Any]:
    """Chord of a unit circle, as a share of its diameter, at squared radius ``r2``."""
    return np.sqrt(np.clip(1 - r2, 0, None))


class Ellipse(NamedTuple):
    x: float
    y: float
    a: float  # half axes, mm
    b: float
    angle: float = 0.0  # of the a axis from x towards y, radians
    depth: float = 0.0  # greatest path through it, mm


@dataclass(frozen=True)
class Frame:
    """Where pixels sit in the patient: row i at height y[i] mm, x[i, j] mm sideways from the leaning, bowed midline."""

    size: tuple[int, int]
    mm: float  # patient millimetres per pixel
    y: Image  # (H,)
    x: Image  # (H, W)
    midline: Image  # (H,) mm from the image's centre column
    centre: float  # the centre column

    @classmethod
    def build(cls, size: tuple[int, int], patient: Patient, lean: float, shift: tuple[float, float]) -> Frame:
        height, width = size
        mm = max(FIELD_MM[0] / height, FIELD_MM[1] / width) / patient.size
        y = ((np.arange(height) - (height - 1) / 2) * mm + FIELD_MM[0] / 2 - shift[1]).astype(np.float32)
        midline = shift[0] + lean * (y - 210) + patient.scoliosis * np.sin((y - 60) / 85)
        centre = (width - 1) / 2
        x = ((np.arange(width) - centre) * mm)[None, :] - midline[:, None]
        return cls(size, mm, y, x.astype(np.float32), midline.astype(np.float32), centre)

    def coarser(self, mm: float) -> tuple[Frame, int]:
        """Every n-th pixel, so that they grow to at most ``mm``, and n; unchanged (n = 1) where they are that large."""
        n = max(1, int(mm / self.mm))
        x, y = self.x[::n, ::n], self.y[::n]
        return Frame((len(y), x.shape[1]), self.mm * n, y, x, self.midline[::n], self.centre / n), n

    def zeros(self) -> Image:
        return np.zeros(self.size, np.float32)

    def pixels(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Patient millimetres to (column, row)."""
        column = (x + np.interp(y, self.y, self.midline)) / self.mm + self.centre
        return column, (y - self.y[0]) / self.mm

    def window(self, x0: float, x1: float, y0: float, y1: float) -> Window:
        """Rows and columns that hold all between x0..x1 and y0..y1: most bodies are small, so the work is too."""

        def span(low: float, high: float, length: int) -> slice:
            return slice(int(np.clip(low, 0, length)), int(np.clip(high + 2, 0, length)))

        left, right = (float(self.midline.min()) + x0) / self.mm, (float(self.midline.max()) + x1) / self.mm
        top = float(self.y[0])
        return span((y0 - top) / self.mm, (y1 - top) / self.mm, self.size[0]), span(
            left + self.centre, right + self.centre, self.size[1]
        )

    def beside(self, side: int, u0: float, u1: float, y0: float, y1: float) -> Window:
        """The window between u0 and u1 mm from the midline, on one side."""
        return self.window(min(side * u0, side * u1), max(side * u0, side * u1), y0, y1)

    def at(self, window: Window) -> tuple[Image, Image]:
        """x (h, w) and y (h, 1) of the pixels in a window."""
        return self.x[window], self.y[window[0]][:, None]

    def ellipse(self, shape: Ellipse) -> tuple[Window, Image]:
        """Squared elliptic radius (1 on the edge) in the window that holds the ellipse."""
        reach = max(shape.a, shape.b)
        window = self.window(shape.x - reach, shape.x + reach, shape.y - reach, shape.y + reach)
        x, y = self.at(window)
        dx, dy = x - shape.x, y - shape.y
        c, s = float(np.cos(shape.angle)), float(np.sin(shape.angle))
        r2: NDArray[Any] = ((c * dx + s * dy) / shape.a) ** 2 + ((c * dy - s * dx) / shape.b) ** 2
        return window, r2

    def splat(self, x: NDArray[Any], y: NDArray[Any], volume: NDArray[Any]) -> Image:
        """Sum volumes (mm^3) at points (mm) into a map of thickness (mm), bilinearly, so that mass is kept."""
        height, width = self.size
        column, row = self.pixels(x.ravel(), y.ravel())
        inside = (column >= 0) & (column < width - 1) & (row >= 0) & (row < height - 1)
        column, row = column[inside], row[inside]
        mass = np.broadcast_to(volume, x.shape).ravel()[inside] / self.mm**2
        i, j = row.astype(np.int64), column.astype(np.int64)
        fy, fx = row - i, column - j
        corner = i * width + j
        index = np.concatenate([corner, corner + 1, corner + width, corner + width + 1])
        weight = np.concatenate([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx]) * np.tile(mass, 4)
        return np.bincount(index, weights=weight, minlength=height * width).reshape(height, width).astype(np.float32)

    def cloud(self, rng: np.random.Generator, scale: float, octaves: int = 3) -> Image:
        """Fractal noise of zero mean and about unit deviation, its coarsest detail ``scale`` mm wide, at any size."""
        total = self.zeros()
        x = (np.arange(self.size[1], dtype=np.float32) - self.centre) * self.mm + 250
        for octave in range(octaves):
            pitch = scale / 2**octave
            knots = rng.standard_normal((int(520 / pitch) + 4, int(500 / pitch) + 4)).astype(np.float32)
            rows = bspline(np.clip(self.y + 50, 0, 519) / pitch, knots.shape[0])
            columns = bspline(np.clip(x, 0, 499) / pitch, knots.shape[1])
            total += (columns @ (rows @ knots).T).T * (1.3 * 0.55**octave)
        return total


def enlarge(small: Image, size: tuple[int, int], stride: int) -> Image:
    """Cubic B-spline enlargement of every ``stride``-th pixel to the full ``size``."""
    if stride == 1:
        return small
    padded = np.pad(small, ((1, 3), (1, 3)), mode="edge")  # knots beyond the border
    rows, columns = (
        bspline(np.arange(n, dtype=np.float32) / stride, k) for n, k in zip(size, padded.shape, strict=True)
    )
    return (columns @ (rows @ padded).T).T


def bspline(position: NDArray[Any], knots: int) -> sparse.csr_array:
    """(N, knots) uniform cubic B-spline weights at fractional knot positions, sparse: four a row."""
    start = position.astype(np.int64)
    t = (position - start).astype(np.float32)
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    columns = start[:, None] + np.arange(4)
    return sparse.csr_array((weights.ravel(), columns.ravel(), 4 * np.arange(len(t) + 1)), shape=(len(t), knots))


# ------------------------------------------------------------------------------------------------- patient and study


@dataclass(frozen=True)
class Patient:
    """What stays the same between one patient's studies."""

    number: int
    sex: Literal["F", "M"]
    age: int
    size: float = field(repr=False)  # overall scale, 1 = average
    habitus: float = field(repr=False)  # soft tissue, 1 = average
    chest: float = field(repr=False)  # half width of the rib cage inside, mm
    cardiothoracic: float = field(repr=False)  # width of the healthy heart / of the chest
    scoliosis: float = field(repr=False)  # sideways bow of the spine, mm
    bone: float = field(repr=False)  # bone density, 1 = average

    @classmethod
    def draw(cls, seed: int, number: int, difficulty: float) -> Patient:
        rng = np.random.default_rng([seed, number, 1])
        female = bool(rng.random() < 0.5)
        return cls(
            number=number,
            sex="F" if female else "M",
            age=int(np.clip(rng.normal(62, 16), 20, 92)),
            size=float(np.clip(rng.normal(0.965 if female else 1.015, 0.03), 0.88, 1.08)),
            habitus=float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.35)),
            chest=float(rng.normal(131, 4)),
            # A hard cohort has healthy hearts nearly as large as diseased ones.
            cardiothoracic=float(np.clip(rng.normal(0.445, 0.018 + 0.022 * difficulty), 0.36, 0.56)),
            scoliosis=float(rng.normal(0, 3)),
            bone=float(np.clip(rng.normal(1.0, 0.12), 0.65, 1.3)),
        )


@dataclass(frozen=True)
class Thorax:
    """One study's geometry, mm: the patient as they breathed in and stood."""

    patient: Patient
    apex: float  # y of the lung tops
    base: float  # y of the costophrenic angles
    domes: dict[int, float]  # y of the top of each half of the diaphragm
    rotation: float  # sideways shift of the front of the chest against its back
    heart: tuple[float, float]  # how far the silhouette reaches right and left of the midline
    knob: tuple[float, float, float]  # aortic knob: x, y, radius
    depth: float  # greatest front-to-back depth of the rib cage inside

    def lateral(self, y: NDArray[Any]) -> NDArray[Any]:
        """Half width of the rib cage inside at height y."""
        t = (y - self.apex) / (self.base - self.apex)
        return 46 + (self.patient.chest - 46) * dome(t / 0.8, 2.2) - 5 * np.clip(t - 0.9, 0, 1)

    def medial(self, side: int, y: NDArray[Any]) -> NDArray[Any]:
        """Where lung meets the midline structures at height y, heart and arch aside."""
        t = (y - self.apex) / (self.base - self.apex)
        vessels = 4 * bump(y - 165, 45) if side < 0 else 3 * bump(y - 100, 22)
        return 46 - 28 * dome(t / 0.2) + vessels + 4 * t + 12 * step((t - 0.7) / 0.12)  # fat beside the heart's floor

    def diaphragm(self, side: int, u: NDArray[Any]) -> NDArray[Any]:
        """y of the diaphragm: highest between heart and wall, falling steeply into the costophrenic angle."""
        chest = self.patient.chest
        top, peak = self.domes[side], 0.46 * chest
        outside = np.clip((u - peak) / (chest - peak), 0, 1.2)
        inside = np.clip((peak - u) / peak, 0, 1.5)
        return top + (self.base - top) * outside**2.6 + 16 * inside**2

    @property
    def heart_shapes(self) -> tuple[Ellipse, ...]:
        """Ventricles, right atrium, left atrium: together as wide as ``heart`` says."""
        right, left = self.heart
        floor = 0.5 * (self.domes[-1] + self.domes[1])
        s = (right + left) / 120
        return (
            Ellipse(left - 57.3 * s, floor - 39 * s, 61 * s, 44 * s, 0.52, 170),  # apex towards the patient's left
            Ellipse(-right + 33 * s, floor - 38 * s, 33 * s, 44 * s, 0.0, 150),
            Ellipse(11 * s, floor - 70 * s, 41 * s, 33 * s, 0.8, 150),
        )

    @property
    def vessel_shapes(self) -> tuple[Ellipse, ...]:
        """Pulmonary trunk, ascending aorta with superior vena cava, aortic knob (last)."""
        x, y, r = self.knob
        grown = (self.heart[0] + self.heart[1] - 110) / 60  # a large heart takes its trunk along
        return (
            Ellipse(13 + 4 * grown, y + 48, 25, 40, -0.22, 120),
            Ellipse(-6, y + 16, 27, 100, 0.0, 90),
            Ellipse(x - 5, y, r, 1.15 * r, 0.0, 120),
        )

    @property
    def hila(self) -> dict[int, tuple[float, float]]:
        """Roots of the lungs; the left one sits higher."""
        return {-1: (-40.0, self.knob[1] + 55), 1: (42.0, self.knob[1] + 43)}


# ------------------------------------------------------------------------------------------------------ soft tissue


def body(frame: Frame, patient: Patient) -> Image:
    """Thickness of the body, lungs included."""
    y = frame.y
    # Flanks, then the shoulders that widen the outline above the armpits.
    half = patient.chest + 38 * patient.habitus + 120 * step((165 - y) / 75) + 8 * step((y - 280) / 120)
    depth = (118 + 100 * step((y - 15) / 170) + 22 * step((y - 260) / 120)) * float(patient.habitus**0.5)
    torso = depth[:, None] * np.clip(1 - (frame.x / half[:, None]) ** 2, 0, None) ** 0.36
    # From neck to shoulder the outline slopes; above it there is only the neck.
    out = np.clip(np.abs(frame.x) - 52, 0, None)
    shoulder = dome((y[:, None] - (14 + 0.34 * out + 0.0006 * out**2)) / 70)
    return (torso * np.maximum(shoulder, 0.9 * chord((frame.x / 58) ** 2))).astype(np.float32)


def breasts(frame: Frame, thorax: Thorax) -> Image:
    """Extra soft tissue in front of a woman's lower lungs."""
    extra, patient = frame.zeros(), thorax.patient
    if patient.sex == "F":
        for side in SIDES:
            shape = Ellipse(
                side * 76.0, thorax.domes[-1] - 18, 56 * patient.habitus, 52, side * 0.25, 30 * patient.habitus
            )
            window, r2 = frame.ellipse(shape)
            extra[window] += shape.depth * np.clip(1 - r2, 0, None) ** 0.7
    return extra


def lungs(frame: Frame, thorax: Thorax) -> tuple[Image, dict[int, Mask]]:
    """Air in both lungs before vessels and disease, and each lung's outline above diaphragm and beside heart."""
    displaced, silhouette = frame.zeros(), np.zeros(frame.size, bool)
    # The heart is full-bodied and its border crisp; vessels are round and fade.
    for shape, power in [(s, 0.36) for s in thorax.heart_shapes] + [(s, 0.75) for s in thorax.vessel_shapes]:
        window, r2 = frame.ellipse(shape)
        displaced[window] = np.maximum(displaced[window], shape.depth * np.clip(1 - r2, 0, None) ** power)
        silhouette[window] |= r2 < 1
    y = frame.y
    depth = (thorax.depth * dome((y - thorax.apex + 6) / 190, 2.2) * (y > thorax.apex - 6))[:, None]
    # A little lung lies in front of and behind the spine, down to the heart.
    midline = 0.24 * step((thorax.domes[-1] + 5 - y) / 100)[:, None]
    air, outline = frame.zeros(), {}
    for side in SIDES:
        # Each lung keeps to its side but for that little, so half the image is all there is to do.
        half = frame.beside(side, -6, 0.75 * FIELD_MM[1], -1e3, 1e3)
        u = side * frame.x[half]
        lateral, medial = thorax.lateral(y)[:, None], thorax.medial(side, y)[:, None]
        # The rib cage is an elliptic cylinder: its chord falls to nothing at the wall, which draws the bright pleural
        # margin.
        across = (
            chord((u / lateral) ** 2) * (midline + (1 - midline) * step((u - medial) / 16 + 0.5)) * step((u + 4) / 8)
        )
        below = y[:, None] - thorax.diaphragm(side, u)
        # Behind the dome the lung reaches down into the posterior recess, thinning out.
        above = step(0.5 - below / 3)
        path = depth * across * np.maximum(above, 0.16 * np.exp(-np.clip(below, 0, None) / 22))
        air[half] += np.clip(path - displaced[half] * np.minimum(2 * across, 1) * above, 0.04 * path, None)
        outline[side] = np.zeros(frame.size, bool)
        outline[side][half] = (
            (u > medial) & (u < lateral) & (below < 0) & (y > thorax.apex)[:, None] & ~silhouette[half]
        )
    return air, outline


def airways(frame: Frame, thorax: Thorax) -> Image:
    """Air in the trachea and the main bronchi."""
    air = frame.zeros()
    carina = thorax.knob[1] + 34
    window = frame.window(-70, 70, -20, carina + 50)
    x, y = frame.at(window)
    x = x - 0.7 * thorax.rotation + 4 * bump(y - thorax.knob[1], 25)  # the arch pushes the trachea to the right
    below = np.clip(y - carina + 6, 0, None)
    trachea = 15 * chord((x / 8.5) ** 2) * step((carina - y) / 8)
    right = 9 * chord(((x + 0.62 * below) / 6) ** 2) * step((38 - below) / 12) * (below > 0)
    left = 9 * chord(((x - 1.15 * below) / 6.5) ** 2) * step((30 - below) / 12) * (below > 0)
    air[window] = np.maximum(trachea, np.maximum(right, left))
    return air


def stomach(frame: Frame, thorax: Thorax, rng: np.random.Generator) -> Image:
    """Gas under the left dome, in most patients."""
    gas = frame.zeros()
    x, y, r, tilt = rng.normal(64, 9), thorax.domes[1] + rng.normal(34, 4), rng.uniform(13, 24), rng.normal(0, 0.3)
    if rng.random() < 0.7:
        window, r2 = frame.ellipse(Ellipse(x, y, 1.4 * r, r, tilt))
        gas[window] = 46 * chord(r2)
    return gas


def vessels(frame: Frame, thorax: Thorax, rng: np.random.Generator, congestion: float) -> Image:
    """Blood in the hila and the branching pulmonary vessels.

    Each hilum roots eight binary trees of seven levels; daughters are about 0.77 as wide (Murray's law, r^3 shared).
    ``congestion`` (0..1) widens vessels, those of the upper zones most: the redistribution radiologists call
    cephalisation.
    """
    total = frame.zeros()
    # Angles from straight lateral, positive downwards: three to the upper lobe, two to the middle, three to the base.
    fan = np.deg2rad([-74, -48, -22, 6, 28, 47, 62, 76])
    side = np.repeat(SIDES, len(fan))
    angle = np.tile(fan, 2) + rng.normal(0, 0.08, 2 * len(fan))
    hilum = np.array([thorax.hila[s] for s in side])
    x = hilum[:, 0] + rng.normal(0, 2.5, len(side))
    y = hilum[:, 1] + 10 * np.sin(angle) + rng.normal(0, 3, len(side))
    radius = rng.uniform(3.0, 4.4, len(side)) * np.where(angle < -0.2, 0.72, 1.0)
    length = rng.uniform(24, 34, len(side))
    t = np.linspace(0, 1, max(6, int(30 / frame.mm)))
    for _ in range(7):
        t = t[:: max(1, int(len(t) * frame.mm / (1.2 * float(length.max()))))]  # about a point a pixel
        heading = angle[:, None] + rng.normal(0, 0.22, len(x))[:, None] * t
        path_x = x[:, None] + side[:, None] * length[:, None] * np.cumsum(np.cos(heading), 1) / len(t)
        path_y = y[:, None] + length[:, None] * np.cumsum(np.sin(heading), 1) / len(t)
        upper = step((thorax.knob[1] + 60 - path_y) / 60)
        wide = radius[:, None] * (1 - 0.12 * t) * (1 + congestion * (0.25 + 0.55 * upper))
        line = frame.splat(path_x, path_y, np.pi * wide**2 * length[:, None] / len(t))
        # A cylinder's chord is close to a Gaussian of half its radius; one blur gives a level its typical width.
        spread = 0.5 * float(np.median(radius)) * (1 + 0.35 * congestion) / frame.mm
        total += ndimage.gaussian_filter(line, spread, truncate=3) if spread > 0.35 else line
        split, lean = rng.uniform(0.22, 0.60, len(x)), rng.uniform(0.25, 0.75, len(x))
        angle = np.concatenate([heading[:, -1] - split * lean, heading[:, -1] + split * (1 - lean)])
        x, y, side = np.tile(path_x[:, -1], 2), np.tile(path_y[:, -1], 2), np.tile(side, 2)
        length = np.tile(length, 2) * rng.uniform(0.68, 0.92, len(x))
        radius = np.tile(radius, 2) * rng.uniform(0.70, 0.83, len(x))
    # The hilum itself: the pulmonary artery, its branch tapering down the lower lobe, the upper vein.
    grown = 1 + 0.35 * congestion
    for s, (x0, y0) in thorax.hila.items():
        for du, dy, a, b, tilt, depth in (
            (0, -4, 13, 10, 0.0, 15),
            (6, 16, 6.5, 20, -0.28, 13),
            (6, -20, 5, 13, 0.5, 8),
        ):
            window, r2 = frame.ellipse(Ellipse(x0 + s * du, y0 + dy, a * grown, b * grown, s * tilt))
            total[window] += depth * grown * np.clip(1 - r2, 0, None) ** 0.8
    return total


# ------------------------------------------------------------------------------------------------------------ bones


def ribs(frame: Frame, thorax: Thorax, rng: np.random.Generator) -> Image:
    """Compact bone in ten pairs of ribs.

    A rib is a space curve from the spine around the wall to the front. Its cross-section is everywhere the same
    upright band, so the projection is the curve's, splatted, and then convolved down the columns once. Where the curve
    runs along the beam, at the side walls, its mass piles up by itself, as in a radiograph.
    """
    first, pitch = thorax.apex + 8, (thorax.base - thorax.apex - 40) / 9.6
    theta = np.linspace(
        0.10, 0.84 * np.pi, max(64, int(430 / (0.7 * frame.mm)))
    )  # 0 at the spine, pi at the breast bone
    back = theta < np.pi / 2
    offsets = np.linspace(-1, 1, max(5, int(7 / (0.9 * frame.mm))))
    edges = 0.7 + 0.6 * np.abs(offsets) ** 4
    xs, ys, volumes = [], [], []
    for number in range(10):
        drop = 26 + 66 * float(dome(np.array((number + 0.5) / 7))) - 2.5 * max(0, number - 7)
        top = first + pitch * number + rng.normal(0, 1.0)
        wall = float(thorax.lateral(np.array(top + 0.45 * drop))) + 2.5
        z = -np.cos(theta)
        u = wall * np.sin(theta) ** 0.92 * np.where(back, 1.0, 0.8 + 0.2 * np.sin(theta))
        # Out of the spine a rib first rises; its front end dips towards the cartilage.
        y = top + drop * (1 + z) / 2 - 9 * np.sin(2 * theta) * back + 16 * np.clip(theta / np.pi - 0.62, 0, 1)
        arc = np.sqrt(np.gradient(u) ** 2 + np.gradient(y) ** 2 + np.gradient(0.6 * wall * z) ** 2)
        # The front half is thinner, and fades into cartilage that X-rays hardly see.
        compact = arc * np.where(back, 1.0, 0.72) * step((0.84 * np.pi - theta) / 0.12) * step((theta - 0.08) / 0.16)
        # The band is 6.4 mm thick, away from the chest's axis: sideways at the wall, along the beam in front and
        # behind.
        sideways = 3.2 * np.sin(theta)[:, None] * offsets
        for side in SIDES:
            xs.append((side * u + thorax.rotation * z)[:, None] + sideways)
            ys.append(np.broadcast_to((y + rng.normal(0, 0.6))[:, None], sideways.shape))
            volumes.append(compact[:, None] * edges / edges.sum())
    section = 50.0 * thorax.patient.bone  # mm^2 of compact bone, cut across
    line = frame.splat(np.stack(xs), np.stack(ys), np.stack(volumes) * section)
    # A band 13 mm tall, densest at its upper and lower rim.
    half = 6.6 / frame.mm
    row = np.abs(np.arange(-int(half) - 1, int(half) + 2))
    profile = np.clip(half + 0.5 - row, 0, 1) * (0.75 + 0.9 * np.minimum(row / half, 1) ** 6)
    return ndimage.convolve1d(line, (profile / profile.sum()).astype(np.float32), axis=0, mode="constant")


def spine(frame: Frame, patient: Patient) -> tuple[Window, Image, Image]:
    """Compact and spongy bone of the vertebrae, in their window."""
    window = frame.window(-45, 45, -40, 460)
    x, y = frame.at(window)
    distance = np.abs(x)
    pitch = 21 + 0.018 * np.clip(y, -40, 460)  # vertebrae grow downwards
    phase = np.log(pitch / 21) / 0.018 % 1.0 - 0.5  # the integral of 1 / pitch counts them
    half = 14.5 + 0.012 * np.clip(y, 0, 420)
    centrum = step((half - distance) / 2.5 + 0.5) * step((0.40 - np.abs(phase)) * pitch / 2 + 0.5)
    spongy = 16 * centrum * np.sqrt(np.clip(1 - (x / (half + 3)) ** 2, 0.05, None))
    plates = bump((np.abs(phase) - 0.39) * pitch, 1.3) * (distance < half)
    walls = bump(distance - half + 1, 1.2) * (np.abs(phase) < 0.40)
    pedicle = np.hypot((distance - half + 5) / 4, (phase + 0.12) * pitch / 5.5)
    process = np.hypot(x / 3.0, (phase - 0.22) * pitch / 7)
    wings = step((half + 17 - distance) / 5) * step((distance - half + 2) / 4) * bump((phase + 0.1) * pitch, 4.5)
    compact = 1.5 * plates + 2.0 * walls + 2.6 * bump(pedicle - 1, 0.35) + 3.5 * step(1.4 - process) + 3.0 * wings
    return window, (compact * patient.bone).astype(np.float32), spongy.astype(np.float32)


def clavicle(frame: Frame, thorax: Thorax, side: int) -> tuple[Window, Image, Mask]:
    """Compact bone of one collar bone, and its outline, in its window."""
    window = frame.beside(side, 8.0, 168.0, 25, 125)
    x, y = frame.at(window)
    u = side * (x - 0.9 * thorax.rotation)
    line = thorax.apex + 47 - 0.24 * np.clip(u, 0, 170) + 7 * np.sin((u - 15) / 24)
    half = 5.4 + 2.6 * bump(u - 18, 11) + 1.5 * step((u - 110) / 40)
    r2 = ((y - line) * 0.96 / half) ** 2
    ends = step((u - 10) / 5) * step((160 - u) / 10)
    tube = chord(r2) - 0.70 * chord(r2 / 0.80**2)
    bone = 2.0 * ends * half * tube * thorax.patient.bone
    return window, bone.astype(np.float32), (r2 < 1) & (ends > 0.5)


def scapula(frame: Frame, side: int, outward: float) -> tuple[Window, Image]:
    """Compact bone of one shoulder blade and the head of the upper arm, in their window."""
    window = frame.beside(side, 90.0, 250.0, 35, 260)
    x, y = frame.at(window)
    u = side * x - outward
    inner = 122 + 0.10 * np.abs(y - 110) + 0.10 * np.clip(y - 150, 0, None)
    outer = inner + np.clip(48 - 0.42 * np.clip(y - 95, 0, None), 0, None)
    blade = step((u - inner) / 2) * step((outer - u) / 3) * step((y - 72) / 6) * step((215 - y) / 8)
    rims = (bump(u - inner - 2, 2.0) + 1.6 * bump(u - outer + 3, 3.0)) * (y < 210)
    ridge = bump(y - 88 - 0.10 * (168 - u), 4.5) * step((u - inner) / 10) * (y < 120)
    head = ((u - 186) / 24) ** 2 + ((y - 102) / 25) ** 2
    shell = chord(head) - 0.86 * chord(head * 1.14)
    return window, (blade * (0.7 + 1.7 * rims) + 2.2 * ridge + 14 * shell + 2 * chord(head)).astype(np.float32)
