"""The bodies in the beam: coordinates, projected mass, and anatomy that does not depend on the detector."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from radgaze.cohort.phantom.thorax import (
    Ellipse,
    Frame,
    Patient,
    Thorax,
    bspline,
    enlarge,
    lungs,
    ribs,
    spine,
    step,
    vessels,
)


@pytest.fixture(scope="module")
def patient() -> Patient:
    return Patient.draw(seed=1, number=2, difficulty=0.3)


@pytest.fixture(scope="module")
def thorax(patient: Patient) -> Thorax:
    return Thorax(
        patient=patient,
        apex=42.0,
        base=347.0,
        domes={-1: 297.0, 1: 306.0},
        rotation=1.0,
        heart=(40.0, 78.0),
        knob=(25.0, 128.0, 16.5),
        depth=168.0,
    )


def frame(patient: Patient, size: tuple[int, int] = (150, 125)) -> Frame:
    return Frame.build(size, patient, lean=0.01, shift=(3.0, -4.0))


def test_pixels_inverts_the_grid(patient: Patient) -> None:
    grid = frame(patient)
    rows, columns = np.array([0, 40, 149]), np.array([0, 77, 124])
    found_columns, found_rows = grid.pixels(grid.x[rows, columns], grid.y[rows])
    np.testing.assert_allclose(found_columns, columns, atol=1e-3)
    np.testing.assert_allclose(found_rows, rows, atol=1e-3)


def test_the_nominal_field_fits_in_any_shape(patient: Patient) -> None:
    for size in ((400, 333), (300, 900), (900, 200)):
        grid = Frame.build(size, patient, 0.0, (0.0, 0.0))
        assert grid.mm * size[0] * patient.size >= 400 - 1e-6
        assert grid.mm * size[1] * patient.size >= 333 - 1e-6


def test_a_window_holds_every_pixel_of_its_region(patient: Patient) -> None:
    grid = frame(patient)
    window = grid.window(-30, 10, 100, 140)
    wanted = (grid.x >= -30) & (grid.x <= 10) & ((grid.y >= 100) & (grid.y <= 140))[:, None]
    inside = np.zeros(grid.size, bool)
    inside[window] = True
    assert wanted.any()
    assert not (wanted & ~inside).any()
    assert inside.mean() < 0.05
    nothing = np.zeros(grid.size, bool)
    nothing[grid.window(900, 950, 100, 140)] = True
    assert not nothing.any()


def test_ellipse_radius_is_one_on_the_rim(patient: Patient) -> None:
    grid = frame(patient, (1500, 1250))
    shape = Ellipse(12.0, 150.0, 40.0, 20.0, 0.5)
    window, r2 = grid.ellipse(shape)
    area = float((r2 < 1).sum()) * grid.mm**2
    assert area == pytest.approx(np.pi * 40 * 20, rel=0.02)  # the midline bends x a little from row to row
    assert r2.shape == grid.x[window].shape


def test_splat_keeps_mass_and_drops_what_falls_outside(patient: Patient) -> None:
    grid = frame(patient)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-60, 60, 500), rng.uniform(100, 300, 500)
    volume = rng.uniform(0, 2, 500)
    thickness = grid.splat(x, y, volume)
    assert thickness.sum() * grid.mm**2 == pytest.approx(volume.sum(), rel=1e-5)
    assert grid.splat(x + 900, y, volume).sum() == 0
    # The centre of mass stays where it was.
    column, row = grid.pixels(x, y)
    found = ndimage.center_of_mass(thickness)
    assert found[0] == pytest.approx(np.average(row, weights=volume), abs=1e-3)
    assert found[1] == pytest.approx(np.average(column, weights=volume), abs=1e-3)


def test_bspline_weights_reproduce_lines() -> None:
    position = np.linspace(0, 9.9, 57)
    weights = bspline(position, 14)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(weights @ (np.arange(14.0) - 1), position, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_enlarge_restores_a_plane(stride: int) -> None:
    rows, columns = np.mgrid[:40, :31].astype(np.float32)
    plane = 2 * rows - columns
    restored = enlarge(plane[::stride, ::stride], (40, 31), stride)
    assert restored.shape == plane.shape
    inner = slice(2 * stride, -2 * stride - 2)
    np.testing.assert_allclose(restored[inner, inner], plane[inner, inner], atol=1e-4)


def test_cloud_has_unit_deviation_and_is_the_same_at_every_size(patient: Patient) -> None:
    small = frame(patient, (200, 167)).cloud(np.random.default_rng(3), 15, 3)
    large = Frame.build((400, 334), patient, 0.01, (3.0, -4.0)).cloud(np.random.default_rng(3), 15, 3)
    assert abs(float(small.mean())) < 0.2
    assert 0.7 < float(small.std()) < 1.3
    averaged = large.reshape(200, 2, 167, 2).mean((1, 3))
    assert np.corrcoef(small.ravel(), averaged.ravel())[0, 1] > 0.98


def test_lungs_hold_air_only_inside_the_chest(patient: Patient, thorax: Thorax) -> None:
    grid = frame(patient)
    air, outlines = lungs(grid, thorax)
    assert air.min() >= 0
    assert 90 < air.max() < thorax.depth
    assert (np.abs(grid.x[air > 1]) < patient.chest + 1).all()
    for side, outline in outlines.items():
        assert outline.any()
        assert (side * grid.x[outline] > 0).all()
        assert air[outline].mean() > 60
    assert not (outlines[-1] & outlines[1]).any()
    heart = np.zeros(grid.size, bool)
    window, r2 = grid.ellipse(thorax.heart_shapes[0])
    heart[window] = r2 < 0.8
    assert air[heart].mean() < 20


def test_the_heart_is_as_wide_as_asked(patient: Patient, thorax: Thorax) -> None:
    angle = np.linspace(0, 2 * np.pi, 2000)
    x = np.concatenate(
        [
            shape.x + shape.a * np.cos(shape.angle) * np.cos(angle) - shape.b * np.sin(shape.angle) * np.sin(angle)
            for shape in thorax.heart_shapes
        ]
    )
    assert x.min() == pytest.approx(-40, abs=1)
    assert x.max() == pytest.approx(78, abs=1)


def test_ribs_come_in_pairs_and_pile_up_at_the_wall(patient: Patient, thorax: Thorax) -> None:
    grid = frame(patient, (300, 250))
    bone = ribs(grid, thorax, np.random.default_rng(0))
    mass = bone.sum() * grid.mm**2
    left = bone[grid.x > 0].sum() * grid.mm**2
    assert left == pytest.approx(mass / 2, rel=0.05)
    # Ten pairs of curves, 200 to 450 mm long, of 50 mm^2 of compact bone.
    assert 20 * 200 * 50 * 0.5 < mass / patient.bone < 20 * 450 * 50
    middle = (grid.y > 150) & (grid.y < 250)
    wall = bone[middle][(np.abs(grid.x) > patient.chest - 8)[middle] & (np.abs(grid.x) < patient.chest + 6)[middle]]
    field = bone[middle][(np.abs(grid.x) > 50)[middle] & (np.abs(grid.x) < 90)[middle]]
    assert wall.mean() > 1.8 * field.mean()


def test_vertebrae_repeat_along_the_spine(patient: Patient) -> None:
    grid = frame(patient, (600, 500))
    window, compact, spongy = spine(grid, patient)
    assert compact.min() >= 0
    centre = spongy[:, np.abs(grid.x[window]).mean(0) < 8].mean(1)
    discs = np.flatnonzero((centre[1:-1] < centre[:-2]) & (centre[1:-1] <= centre[2:]) & (centre[1:-1] < 4))
    gaps = np.diff(discs[np.insert(np.diff(discs) > 5 / grid.mm, 0, True)]) * grid.mm
    assert len(gaps) >= 12
    assert (gaps > 18).all()
    assert (gaps < 34).all()


def test_congestion_adds_blood_above_all_to_the_upper_zones(patient: Patient, thorax: Thorax) -> None:
    grid = frame(patient)
    healthy, congested = (vessels(grid, thorax, np.random.default_rng(5), degree) for degree in (0.0, 1.0))
    upper = grid.y < thorax.knob[1] + 20
    lower = grid.y > thorax.knob[1] + 110
    assert congested.sum() > 1.5 * healthy.sum()
    assert congested[upper].sum() / healthy[upper].sum() > 1.3 * congested[lower].sum() / healthy[lower].sum()


def test_patients_differ_and_repeat() -> None:
    crowd = [Patient.draw(4, number, 0.3) for number in range(60)]
    assert crowd[7] == Patient.draw(4, 7, 0.3)
    assert len({person.chest for person in crowd}) == 60
    assert {person.sex for person in crowd} == {"F", "M"}
    assert np.mean([person.size for person in crowd if person.sex == "F"]) < np.mean(
        [person.size for person in crowd if person.sex == "M"]
    )


def test_step_is_monotone_from_zero_to_one() -> None:
    values = step(np.linspace(-1, 2, 100))
    assert values[0] == 0
    assert values[-1] == 1
    assert (np.diff(values) >= 0).all()
