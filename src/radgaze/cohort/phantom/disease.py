"""What heart failure and pneumonia do to the air in the lungs.

Nothing is painted: a finding is a share of the air path that fluid takes, so it is as bright as the lung behind it is
deep and hides behind ribs, heart and diaphragm as it would in a patient. Severity 1 is plain disease, 0 is none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from radgaze.cohort.phantom.thorax import SIDES, Frame, Image, Thorax, Window, bump, step

Label = Literal["Normal", "CHF", "pneumonia"]


class Finding(NamedTuple):
    """``name`` in EGD-CXR's words; ``share`` (0..1) of the air path lost, per pixel of ``window``."""

    name: str
    window: Window
    share: Image


def severity(rng: np.random.Generator, difficulty: float) -> float:
    """How pronounced a disease is: about 1 in an easy cohort, 0 at difficulty 1."""
    return (1 - difficulty) * rng.uniform(0.7, 1.15)


def findings(
    label: Label,
    frame: Frame,
    thorax: Thorax,
    degree: float,
    difficulty: float,
    rng: np.random.Generator,
    chance: np.random.Generator,
) -> list[Finding]:
    """A study's findings. ``chance`` draws what has nothing to do with the label, ``rng`` the disease."""
    found = []
    if chance.random() < 0.12 + 0.2 * difficulty:
        found.append(_plate(frame, thorax, chance))
    if label == "CHF":
        found += [_oedema(frame, thorax, side, degree * rng.uniform(0.6, 1.2), rng) for side in SIDES]
        # Effusions of failure are on both sides or on the right; seldom on the left alone.
        sides = ((-1, 1), (-1,), (1,), ())[int(rng.choice(4, p=[0.45, 0.25, 0.1, 0.2]))]
        found += [_effusion(frame, thorax, side, degree, rng) for side in sides]
    elif label == "pneumonia":
        for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))):
            found.append(_consolidation(frame, thorax, degree * rng.uniform(0.75, 1.1), rng))
        if rng.random() < 0.12:
            found.append(_effusion(frame, thorax, int(rng.choice(SIDES)), 0.4 * degree, rng))
    return found


def _oedema(frame: Frame, thorax: Thorax, side: int, degree: float, rng: np.random.Generator) -> Finding:
    """Interstitial haze around a hilum, denser towards the base, with short Kerley B lines at the side wall."""
    x0, y0 = thorax.hila[side]
    window = frame.beside(side, 0.0, thorax.patient.chest + 4, thorax.apex, thorax.base + 10)
    x, y = frame.at(window)
    r = np.hypot(x - x0 - side * 14, (y - y0 - 24) / 1.35) / rng.uniform(42, 58)
    mottle = np.clip(1 + 0.25 * frame.cloud(rng, 9, 3)[window], 0.3, None)
    share = 0.48 * degree * np.exp(-0.5 * r**2) * mottle
    wall = thorax.lateral(y) - side * x
    for _ in range(int(rng.integers(3, 8))):
        line = bump(y - rng.uniform(thorax.base - 95, thorax.base - 45) - rng.normal(0, 0.06) * wall, 0.8)
        share = share + 0.16 * degree * line * step((rng.uniform(10, 18) - wall) / 5)
    return Finding("pulmonary_edema__hazy_opacity", window, np.clip(share, 0, 0.75).astype(np.float32))


def _effusion(frame: Frame, thorax: Thorax, side: int, degree: float, rng: np.random.Generator) -> Finding:
    """Fluid that fills the costophrenic angle, with a meniscus that climbs the side wall."""
    chest = thorax.patient.chest
    window = frame.beside(side, 15.0, chest + 12, thorax.base - 170, thorax.base + 30)
    x, y = frame.at(window)
    height = degree * rng.uniform(38, 90)
    across = np.clip((side * x - 30) / (chest - 30), 0, 1)
    surface = thorax.base - 8 - height * (0.55 + 0.75 * across**3.5 + 0.08 * (1 - across) ** 2)
    # Fluid wraps the lung, so the path through it grows over some centimetres below the surface.
    share = (1 - np.exp(-np.clip(y - surface, 0, None) / 13)) * min(1.0, 1.4 * degree)
    return Finding("pleural_effusion_or_thickening", window, share.astype(np.float32))


def _consolidation(frame: Frame, thorax: Thorax, degree: float, rng: np.random.Generator) -> Finding:
    """Fluid in the air spaces: a ragged patch, or part of a lobe cut straight by its fissure; bronchi stay open."""
    side, lobar = int(rng.choice(SIDES)), bool(rng.random() < 0.4)
    level = rng.uniform(0.24, 0.78)
    y0 = thorax.apex + level * (thorax.base - thorax.apex)
    # Behind the heart little shows, so patches in the left lung sit further out.
    u0 = float(thorax.lateral(np.array(y0))) * rng.uniform(0.45 if side < 0 else 0.58, 0.76)
    radius = (rng.uniform(24, 38) if lobar else rng.uniform(18, 34)) * (0.75 + 0.25 * degree)
    window = frame.window(side * u0 - 2.2 * radius, side * u0 + 2.2 * radius, y0 - 2.2 * radius, y0 + 2.2 * radius)
    x, y = frame.at(window)
    du, dy = (side * x - u0) / 1.15, y - y0
    share = step((1.3 - np.hypot(du, dy) / radius + 0.24 * frame.cloud(rng, 28, 4)[window]) / 1.0)
    if lobar:
        # Upper lobes end below at their fissure, lower ones above.
        direction = 1 if level < 0.5 else -1
        share = share * step(direction * (y0 + direction * 0.55 * radius - 0.08 * du - y) / 3 + 0.5)
    open_bronchi = 1 - 0.28 * np.clip(frame.cloud(rng, 7, 2)[window], 0, 2)
    share = 0.80 * degree * share * open_bronchi
    return Finding("consolidation", window, np.clip(share, 0, 0.92).astype(np.float32))


def _plate(frame: Frame, thorax: Thorax, rng: np.random.Generator) -> Finding:
    """A band of linear atelectasis or scar at a base: common in any class and a sign of neither disease."""
    side = int(rng.choice(SIDES))
    u0, y0 = rng.uniform(55, 95), thorax.domes[side] - rng.uniform(8, 50)
    tilt, half, strength = rng.normal(0, 0.15), rng.uniform(14, 28), rng.uniform(0.10, 0.26)
    window = frame.window(side * u0 - 40, side * u0 + 40, y0 - 16, y0 + 16)
    x, y = frame.at(window)
    du = side * x - u0
    share = strength * bump(y - y0 - tilt * du, 1.6) * step((half - np.abs(du)) / 8)
    return Finding("linear__patchy_atelectasis", window, share.astype(np.float32))
