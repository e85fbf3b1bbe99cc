"""The radiograph: what disease does to it, what is known about it, and what it depends on."""

from __future__ import annotations

import numpy as np
import pytest

from radgaze.cohort.phantom.anatomy import ANATOMIES, BITS, CLASSES, MASKS, Label, Radiograph, expose
from radgaze.errors import InputError

SIZE = (192, 160)


def draw(
    label: Label, patient: int, difficulty: float = 0.2, seed: int = 3, size: tuple[int, int] = SIZE
) -> Radiograph:
    return expose(label, seed=seed, patient=patient, size=size, difficulty=difficulty)


@pytest.fixture(scope="module")
def crowd() -> dict[Label, list[Radiograph]]:
    """The same eight patients in every state."""
    return {label: [draw(label, patient) for patient in range(8)] for label in CLASSES}


def test_same_numbers_same_image() -> None:
    first, again = draw("CHF", 5), draw("CHF", 5)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.lesions == again.lesions
    assert first.anatomies == again.anatomies
    assert (draw("CHF", 6).pixels != first.pixels).mean() > 0.5
    assert (draw("CHF", 5, seed=4).pixels != first.pixels).mean() > 0.5
    assert (expose("CHF", seed=3, patient=5, study=1, size=SIZE, difficulty=0.2).pixels != first.pixels).mean() > 0.5


def test_pixels_use_their_bits(crowd: dict[Label, list[Radiograph]]) -> None:
    for image in crowd["Normal"]:
        assert image.pixels.dtype == np.uint16
        assert image.pixels.shape == image.size == SIZE
        assert image.pixels.max() < 2**BITS
        assert np.ptp(np.percentile(image.pixels, (2, 98))) > 2000


def test_bones_bright_lungs_dark_outside_black(crowd: dict[Label, list[Radiograph]]) -> None:
    for image in crowd["Normal"]:
        lungs = image.masks["left_lung"] | image.masks["right_lung"]
        assert image.pixels[image.masks["mediastinum"]].mean() > 1.4 * image.pixels[lungs].mean()
        assert image.pixels[lungs].mean() > 3 * image.pixels[:6, :12].mean()


def test_noise_is_that_of_the_same_photons_on_more_pixels() -> None:
    """A detector with pixels half the size counts a quarter of the photons in each."""

    def grain(size: tuple[int, int]) -> float:
        """Deviation of the difference between two exposures of one scene, in the abdomen."""
        images = [expose("Normal", seed=3, patient=1, study=0, size=size).pixels.astype(float)]
        h, w = size
        patch = images[0][int(0.9 * h) : int(0.97 * h), int(0.3 * w) : int(0.4 * w)]
        return float(np.std(patch[1:] - patch[:-1]))

    assert grain((1024, 852)) > 1.1 * grain((512, 426))  # the console's smoothing takes the rest


def test_left_is_on_the_images_right(crowd: dict[Label, list[Radiograph]]) -> None:
    for image in crowd["Normal"]:
        assert tuple(image.masks) == MASKS
        columns = {name: np.flatnonzero(mask.any(0)).mean() for name, mask in image.masks.items()}
        assert columns["right_lung"] < columns["mediastinum"] < columns["left_lung"]
        assert columns["aortic_knob"] > columns["mediastinum"] - 0.02 * SIZE[1]
        assert image.anatomies["right lung"][2] <= image.anatomies["left lung"][0] + 0.05 * SIZE[1]


def test_masks_do_not_overlap_where_they_should_not(crowd: dict[Label, list[Radiograph]]) -> None:
    for image in crowd["Normal"]:
        left, right, middle, knob = (image.masks[name] for name in MASKS)
        assert not (left & right).any()
        assert (middle & (left | right)).sum() < 0.02 * middle.sum()
        assert (knob & middle).sum() > 0.9 * knob.sum()
        for mask, least, most in ((left, 0.06, 0.3), (right, 0.06, 0.3), (middle, 0.04, 0.3), (knob, 0.0005, 0.02)):
            assert least < mask.mean() < most


def test_boxes_agree_with_the_masks(crowd: dict[Label, list[Radiograph]]) -> None:
    for image in crowd["CHF"]:
        assert tuple(image.anatomies) == ANATOMIES
        for side in ("left", "right"):
            lung = image.masks[f"{side}_lung"]
            rows, columns = np.flatnonzero(lung.any(1)), np.flatnonzero(lung.any(0))
            whole = image.anatomies[f"{side} lung"]
            assert whole == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            zones = [image.anatomies[f"{side} {zone} lung zone"] for zone in ("upper", "mid", "lower")]
            assert zones[0][1] == whole[1]
            assert zones[2][3] == whole[3]
            assert zones[0][3] == zones[1][1]
            assert zones[1][3] == zones[2][1]
        for xmin, ymin, xmax, ymax in image.anatomies.values():
            assert 0 <= xmin < xmax <= SIZE[1]
            assert 0 <= ymin < ymax <= SIZE[0]


def test_failing_hearts_are_larger(crowd: dict[Label, list[Radiograph]]) -> None:
    ratios = {label: np.array([image.cardiothoracic_ratio for image in images]) for label, images in crowd.items()}
    assert (ratios["CHF"] > ratios["Normal"] + 0.05).all()
    assert (ratios["CHF"] > 0.5).mean() > 0.8
    assert (ratios["Normal"] < 0.5).mean() > 0.8
    np.testing.assert_array_equal(ratios["Normal"], ratios["pneumonia"])
    for healthy, failing in zip(crowd["Normal"], crowd["CHF"], strict=True):
        width = [
            image.anatomies["cardiac silhouette"][2] - image.anatomies["cardiac silhouette"][0]
            for image in (healthy, failing)
        ]
        assert width[1] > width[0]
        assert failing.masks["mediastinum"].sum() > healthy.masks["mediastinum"].sum()


def test_the_ratio_is_that_of_the_silhouette() -> None:
    image = draw("CHF", 2, size=(768, 640))
    heart, lungs = (
        image.anatomies["cardiac silhouette"],
        [image.anatomies[f"{side} lung"] for side in ("right", "left")],
    )
    measured = (heart[2] - heart[0]) / (lungs[1][2] - lungs[0][0])
    assert image.cardiothoracic_ratio == pytest.approx(measured, rel=0.05)


def test_consolidations_lie_in_a_lung_and_are_brighter(crowd: dict[Label, list[Radiograph]]) -> None:
    for healthy, ill in zip(crowd["Normal"], crowd["pneumonia"], strict=True):
        patches = [lesion for lesion in ill.lesions if lesion.name == "consolidation"]
        assert 1 <= len(patches) <= 3
        chest = [ill.anatomies[f"{side} lung"] for side in ("right", "left")]
        for patch in patches:
            xmin, ymin, xmax, ymax = patch.box
            x, y = (xmin + xmax) / 2, (ymin + ymax) / 2
            assert any(box[0] < x < box[2] and box[1] < y < box[3] for box in chest)
            where = slice(int(ymin), int(ymax)), slice(int(xmin), int(xmax))
            assert ill.pixels[where].mean() > healthy.pixels[where].mean() + 60
        assert not any(lesion.name == "consolidation" for lesion in healthy.lesions)


def test_failure_shows_haze_and_effusions(crowd: dict[Label, list[Radiograph]]) -> None:
    names = [{lesion.name for lesion in image.lesions} for image in crowd["CHF"]]
    assert all({"enlarged_cardiac_silhouette", "pulmonary_edema__hazy_opacity"} <= found for found in names)
    assert any("pleural_effusion_or_thickening" in found for found in names)
    for image in crowd["CHF"]:
        for lesion in image.lesions:
            if lesion.name == "pleural_effusion_or_thickening":  # fluid lies at the bottom of the chest
                assert lesion.box[3] > image.anatomies["left mid lung zone"][3]


def test_difficulty_hides_disease() -> None:
    visible, bright, excess = [], [], []
    for difficulty in (0.0, 0.4, 0.8, 1.0):
        images = [draw("pneumonia", patient, difficulty) for patient in range(6)]
        healthy = [draw("Normal", patient, difficulty) for patient in range(6)]
        failing = [draw("CHF", patient, difficulty) for patient in range(6)]
        found = [
            max((x.visibility for x in image.lesions if x.name == "consolidation"), default=0.0) for image in images
        ]
        visible.append(np.mean(found))
        bright.append(
            np.mean([np.abs(a.pixels.astype(float) - b.pixels).mean() for a, b in zip(images, healthy, strict=True)])
        )
        excess.append(
            np.mean([a.cardiothoracic_ratio - b.cardiothoracic_ratio for a, b in zip(failing, healthy, strict=True)])
        )
    assert visible == sorted(visible, reverse=True)
    assert bright == sorted(bright, reverse=True)
    assert excess == sorted(excess, reverse=True)
    assert visible[0] > 0.8
    assert visible[-1] == 0
    assert bright[-1] == 0  # nothing but the label is left
    assert excess[-1] == 0


def test_the_same_scene_at_any_size() -> None:
    small, large = draw("pneumonia", 4, size=(256, 214)), draw("pneumonia", 4, size=(1024, 856))
    shrunk = large.pixels.reshape(256, 4, 214, 4).mean((1, 3))
    assert np.corrcoef(shrunk.ravel(), small.pixels.ravel())[0, 1] > 0.99
    for coarse, fine in zip(small.lesions, large.lesions, strict=True):
        assert coarse.name == fine.name
        np.testing.assert_allclose(np.array(fine.box) / 4, coarse.box, atol=4)
    assert small.cardiothoracic_ratio == pytest.approx(large.cardiothoracic_ratio, abs=0.02)


@pytest.mark.parametrize("size", [(33, 57), (101, 32), (64, 300)])
def test_odd_sizes_work(size: tuple[int, int]) -> None:
    for label in CLASSES:
        image = draw(label, 1, size=size)
        assert image.pixels.shape == size
        assert all(mask.shape == size for mask in image.masks.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "flu"}, "flu"),
        ({"difficulty": 1.5}, "1.5"),
        ({"difficulty": float("nan")}, "nan"),
        ({"size": (31, 64)}, "31x64"),
    ],
)
def test_refuses_what_it_cannot_draw(change: dict, words: str) -> None:
    arguments = {"label": "CHF", "size": SIZE, "difficulty": 0.3} | change
    with pytest.raises(InputError, match=words):
        expose(arguments.pop("label"), **arguments)
