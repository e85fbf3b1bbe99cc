"""The reader: timing, noise, and eyes drawn to what can be seen and to nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from radgaze.cohort.phantom.anatomy import CLASSES, Radiograph, expose
from radgaze.cohort.phantom.reader import Recording, Session, read
from radgaze.errors import InputError

SIZE = (192, 160)
PPD = 41 * SIZE[0] / 1080


def look(image: Radiograph, seed: int = 0, reader: int = 0, **changes: float) -> Recording:
    settings = {"pixels_per_degree": PPD} | changes
    return read(image, Session.draw(7, reader), np.random.default_rng([seed, 1]), **settings)


@pytest.fixture(scope="module")
def images() -> list[Radiograph]:
    return [expose(CLASSES[patient % 3], seed=2, patient=patient, size=SIZE, difficulty=0.2) for patient in range(15)]


@pytest.fixture(scope="module")
def recordings(images: list[Radiograph]) -> list[Recording]:
    return [look(image, seed, reader=seed % 3) for seed, image in enumerate(images)]


def test_samples_come_at_sixty_hertz(recordings: list[Recording]) -> None:
    for recording in recordings:
        assert (np.diff(recording.t) > 0).all()
        assert 1 / np.mean(np.diff(recording.t)) == pytest.approx(60, rel=0.01)
        assert 7 < recording.t[-1] < 41
    assert 12 < np.mean([recording.t[-1] for recording in recordings]) < 30


def test_other_rates_and_starts(images: list[Radiograph]) -> None:
    recording = look(images[0], rate=250, start=-1.5, longest=9)
    assert recording.t[0] == pytest.approx(-1.5, abs=0.01)
    assert 1 / np.mean(np.diff(recording.t)) == pytest.approx(250, rel=0.01)
    assert recording.t[-1] < 9
    with pytest.raises(InputError, match="0 Hz"):
        look(images[0], rate=0)


def test_fixation_durations_are_plausible(recordings: list[Recording]) -> None:
    durations = np.concatenate([recording.durations for recording in recordings])
    assert (durations >= 0.06).all()
    assert 0.22 < np.median(durations) < 0.35
    assert 0.25 < durations.mean() < 0.40
    assert durations.mean() > np.median(durations)  # skewed to the right


def test_fixations_describe_their_samples(recordings: list[Recording]) -> None:
    for recording in recordings:
        assert len(recording.starts) == recording.fixation.max() + 1
        for index in range(len(recording.starts)):
            member = recording.fixation == index
            assert recording.last[index] == np.flatnonzero(member)[-1]
            assert recording.starts[index] == recording.t[member][0]
            assert recording.durations[index] == pytest.approx(np.ptp(recording.t[member]))
            assert recording.centre_x[index] == pytest.approx(recording.x[member].mean())
            assert recording.centre_y[index] == pytest.approx(recording.y[member].mean())
            assert np.hypot(recording.x[member].std(), recording.y[member].std()) < 0.6 * PPD


def test_the_eye_is_lost_in_blinks_and_only_briefly(recordings: list[Recording]) -> None:
    blinks = np.concatenate([recording.blink for recording in recordings])
    lost = np.concatenate([np.isnan(recording.x) for recording in recordings])
    fixating = np.concatenate([recording.fixation >= 0 for recording in recordings])
    assert 0.01 < blinks.mean() < 0.08
    assert lost[blinks].all()
    assert blinks.mean() < lost.mean() < blinks.mean() + 0.01
    assert not (fixating & lost).any()


def test_some_gaze_leaves_the_image(recordings: list[Recording]) -> None:
    x = np.concatenate([recording.x for recording in recordings])
    outside = (x < 0)[np.isfinite(x)].mean()
    assert 0.001 < outside < 0.06


def test_the_search_covers_the_chest(images: list[Radiograph], recordings: list[Recording]) -> None:
    for image, recording in zip(images, recordings, strict=True):
        visited = 0
        for side in ("left", "right"):
            for zone in ("upper", "mid", "lower"):
                xmin, ymin, xmax, ymax = image.anatomies[f"{side} {zone} lung zone"]
                inside = (recording.centre_x > xmin) & (recording.centre_x < xmax)
                visited += bool((inside & (recording.centre_y > ymin) & (recording.centre_y < ymax)).any())
        assert visited >= 4


def dwell(image: Radiograph, lesion_box: tuple[float, ...], count: int) -> float:
    """Share of valid samples in a box, the mean of several readings."""
    xmin, ymin, xmax, ymax = lesion_box
    shares = []
    for seed in range(count):
        recording = look(image, seed)
        inside = (recording.x >= xmin) & (recording.x < xmax) & (recording.y >= ymin) & (recording.y < ymax)
        shares.append(inside[np.isfinite(recording.x)].mean())
    return float(np.mean(shares))


def test_lesions_draw_the_eye_and_labels_do_not() -> None:
    gains = []
    for patient in range(4):
        ill, healthy = (
            expose(label, seed=6, patient=patient, size=SIZE, difficulty=0.0) for label in ("pneumonia", "Normal")
        )
        lesion = max((x for x in ill.lesions if x.name == "consolidation"), key=lambda x: x.visibility)
        area = (lesion.box[2] - lesion.box[0]) * (lesion.box[3] - lesion.box[1]) / (SIZE[0] * SIZE[1])
        found = dwell(ill, lesion.box, 6)
        assert found > 2 * area  # chance
        gains.append(found / max(dwell(healthy, lesion.box, 6), 1e-9))
    assert np.median(gains) > 2
    # With nothing to see, an ill patient is read exactly as a healthy one.
    hidden, healthy = (expose(label, seed=6, patient=1, size=SIZE, difficulty=1.0) for label in ("CHF", "Normal"))
    np.testing.assert_array_equal(look(hidden).x, look(healthy).x)


def test_attraction_falls_with_difficulty() -> None:
    means = []
    for difficulty in (0.0, 0.6, 0.9):
        shares = []
        for patient in range(5):
            plain = expose("pneumonia", seed=6, patient=patient, size=SIZE, difficulty=0.0)
            lesion = max((x for x in plain.lesions if x.name == "consolidation"), key=lambda x: x.visibility)
            image = expose("pneumonia", seed=6, patient=patient, size=SIZE, difficulty=difficulty)
            shares.append(dwell(image, lesion.box, 5))
        means.append(np.mean(shares))
    assert means[0] > means[1] > means[2]


def test_calibration_drifts_through_a_session(images: list[Radiograph]) -> None:
    session = Session.draw(7, 0)
    early, late = (
        read(images[0], session, np.random.default_rng(1), pixels_per_degree=PPD, minutes_into_session=minutes)
        for minutes in (0, 10)
    )
    seen = np.isfinite(early.x)
    np.testing.assert_array_equal(np.isfinite(late.x), seen)
    np.testing.assert_allclose((late.x - early.x)[seen], 10 * session.drift[0] * PPD, atol=1e-9)
    np.testing.assert_allclose((late.y - early.y)[seen], 10 * session.drift[1] * PPD, atol=1e-9)


def test_readers_have_habits_of_their_own() -> None:
    orders = {Session.draw(7, reader).order for reader in range(6)}
    assert len(orders) > 3
    first, second = Session.draw(7, 0, session=0), Session.draw(7, 0, session=1)
    assert first.order == second.order
    assert first.offset != second.offset
    assert all(len(set(order)) == len(order) == 15 for order in orders)


def test_the_same_chance_reads_the_same(images: list[Radiograph]) -> None:
    one, two, other = look(images[1], 5), look(images[1], 5), look(images[1], 6)
    np.testing.assert_array_equal(one.x, two.x)
    assert len(one.t) != len(other.t)


def test_saccades_are_fast_and_monotone(images: list[Radiograph]) -> None:
    """Between fixations samples move towards the next one; long flights take longer (the main sequence)."""
    recording = look(images[1], 3, rate=1000)
    ends, starts = recording.starts[:-1] + recording.durations[:-1], recording.starts[1:]
    gaps = starts - ends
    jumps = np.hypot(np.diff(recording.centre_x), np.diff(recording.centre_y)) / PPD
    clean = gaps < 0.15  # no blink in between
    assert clean.sum() > 20
    assert 0.02 < np.median(gaps[clean]) < 0.08
    assert np.corrcoef(gaps[clean], jumps[clean])[0, 1] > 0.8
