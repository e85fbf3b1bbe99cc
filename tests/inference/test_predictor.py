from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import radgaze
from radgaze.cohort import Cohort
from radgaze.cohort.pixels import Upload
from radgaze.errors import InputError
from radgaze.files import read_sealed, write_sealed
from radgaze.inference import Failure, Prediction, Predictor
from radgaze.inference.card import ModelCard, calibration_of
from radgaze.models import Output
from radgaze.training import Run, fit
from tests.cohorts import SOURCE_SIZE, blob_cohort, multilabel_cohort

RECIPE = {"epochs": 2, "batch_size": 4, "schedule": "one-cycle", "learning_rate": 2e-3, "precision": "fp32"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """48 studies: enough patients of each class in the validation split to calibrate on."""
    return blob_cohort(tmp_path_factory.mktemp("blobs"), studies=48)


@pytest.fixture(scope="module")
def images(cohort: Cohort) -> list[Path]:
    return sorted(path for path in (cohort.path.parent / "tables").glob("*.png") if "blob" not in path.name)


@pytest.fixture(scope="module")
def unet(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(cohort, tmp_path_factory.mktemp("run") / "unet", "mt-unet", model={"width": 4}, progress=False, **RECIPE)


@pytest.fixture(scope="module")
def gaze_cam(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = {"backbone": "resnet10t", "options": {"output_stride": 8}}
    return fit(cohort, tmp_path_factory.mktemp("run") / "cam", "gg-cam", model=model, progress=False, **RECIPE)


def test_two_lines_in_python(unet: Run, images: list[Path]) -> None:
    prediction = radgaze.load(unet.path).predict(images[0])
    assert list(prediction.probabilities) == ["class0", "class1", "class2"]
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert prediction.predicted in prediction.probabilities
    assert prediction.attention is not None
    assert prediction.attention.sum() == pytest.approx(1, abs=1e-5)
    assert prediction.cams is None


def test_is_the_network_on_the_cohorts_own_pixels(unet: Run, cohort: Cohort, images: list[Path]) -> None:
    predictor = radgaze.load(unet)
    study = cohort.by_id("s003")
    picture = predictor.read(images[3])
    assert picture.grid == study.grid
    assert np.array_equal((picture.input[0].numpy() * 65535).round().astype(np.uint16), study.image)
    with torch.no_grad():
        expected = unet.network()(picture.input[None])
    found = predictor.predict_pictures([picture])[0]
    assert found.attention == pytest.approx(expected.saliency()[0].numpy(), abs=1e-6)
    assert predictor.card.calibration is not None
    value, low, high = predictor.card.calibration(expected.logits)
    assert list(found.probabilities.values()) == pytest.approx(value[0].tolist(), abs=1e-5)
    assert found.intervals is not None
    assert found.intervals["class1"] == pytest.approx((low[0, 1].item(), high[0, 1].item()), abs=1e-5)


def test_cams_average_to_the_scores(gaze_cam: Run, images: list[Path]) -> None:
    predictor = radgaze.load(gaze_cam)
    found = predictor.predict(images[0])
    assert found.attention is None
    assert found.cams is not None
    assert list(found.cams) == gaze_cam.classes
    output = predictor.engine(predictor.read(images[0]).input[None])
    bias = gaze_cam.network().head.bias.detach()
    means = torch.tensor([float(cam.mean()) for cam in found.cams.values()])
    assert (means + bias).numpy() == pytest.approx(output.logits[0].numpy(), abs=1e-4)


def test_many_images_give_what_each_gives_alone_and_in_order(unet: Run, images: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    predictor = radgaze.load(unet)
    given = [*images[:5], broken, *images[5:7]]
    found = list(predictor.predict_all(given, batch_size=3))
    assert [one.name if isinstance(one, Failure) else one.picture.name for one in found] == [str(p) for p in given]
    assert isinstance(found[5], Failure)
    assert "PNG, JPEG, TIFF or DICOM" in found[5].error
    alone = predictor.predict(images[6])
    last = found[-1]
    assert isinstance(last, Prediction)
    assert list(last.probabilities.values()) == pytest.approx(list(alone.probabilities.values()), abs=1e-5)


def test_file_bytes_and_pixels_say_the_same(unet: Run, images: list[Path]) -> None:
    predictor = radgaze.load(unet)
    from_file = predictor.predict(images[0])
    from_bytes = predictor.predict(Upload(images[0].read_bytes(), "upload.png"))
    from_pixels = predictor.predict(np.asarray(Image.open(images[0])))
    assert from_file.probabilities == from_bytes.probabilities == from_pixels.probabilities
    assert (from_bytes.picture.name, from_pixels.picture.name) == ("upload.png", "array")


def test_json_is_plain(unet: Run, images: list[Path]) -> None:
    content = radgaze.load(unet).predict(images[0]).to_json()
    assert (content["height"], content["width"]) == SOURCE_SIZE
    assert content["calibrated"] is True
    entry = content["classes"]["class0"]
    assert entry["low"] <= entry["probability"] <= entry["high"]
    assert set(content["peaks"]) == {"attention"}
    assert 0 <= content["peaks"]["attention"]["x"] < SOURCE_SIZE[1]


def test_maps_lie_where_they_belong_on_the_image(unet: Run, images: list[Path]) -> None:
    """A linear map over the padded grid comes out as the same plane over the image, whatever the sizes."""
    predictor = radgaze.load(unet)
    pixels = np.tile(np.arange(90, dtype=np.uint16), (40, 1))  # wide: the letterbox pads above and below
    prediction = predictor.predict(pixels)
    rows, columns = 12, 8
    grid = prediction.grid_of(np.zeros((rows, columns)))
    y = grid.y0 + grid.dy * np.arange(rows)[:, None]
    x = grid.x0 + grid.dx * np.arange(columns)[None]
    shown = prediction.on_image(2 * y + x)
    assert shown.shape == (40, 90)
    expected = 2 * np.arange(40)[:, None] + np.clip(np.arange(90), x.min(), x.max())[None]
    assert shown == pytest.approx(expected, abs=1e-3)
    assert prediction.on_image(2 * y + x, (20, 45)).shape == (20, 45)
    peak = np.zeros((rows, columns), np.float32)
    peak[6, 2] = 1
    assert prediction.peak(peak) == pytest.approx((x[0, 2], y[6, 0]))
    assert prediction.peak(np.ones((rows, columns), np.float32)) is None


def test_labels_that_do_not_exclude_each_other(tmp_path: Path) -> None:
    cohort = multilabel_cohort(tmp_path)
    model = {"backbone": "resnet10t", "options": {"output_stride": 8}}
    run = fit(cohort, tmp_path / "run", "classifier", model=model, progress=False, **RECIPE)
    predictor = radgaze.load(run)
    assert predictor.card.calibration is None  # one of its labels is present in a single study
    assert "fewer than two patients" in str(predictor.card.uncalibrated)
    found = predictor.predict(tmp_path / "tables" / "000.png")
    assert found.intervals is None
    assert found.predicted is None
    assert all(0 < value < 1 for value in found.probabilities.values())


@pytest.mark.parametrize("pixels", [np.full((8, 8), 7), np.zeros((8, 8, 3)), np.full((8, 8), np.nan), np.zeros((0, 8))])
def test_pixels_that_show_nothing_are_refused(unet: Run, pixels: np.ndarray) -> None:
    with pytest.raises(InputError):
        radgaze.load(unet).predict(pixels)


def test_a_network_that_overflows_is_named(unet: Run, images: list[Path]) -> None:
    predictor = radgaze.load(unet)

    class Overflowing:
        name = "overflowing"

        def __call__(self, batch: torch.Tensor) -> Output:
            return predictor.engine(batch)._replace(logits=torch.full((1, 3), torch.nan))

    with pytest.raises(InputError, match=r"not finite.*'overflowing'"):
        Predictor(predictor.card, Overflowing()).predict(images[0])


def test_card_survives_json(unet: Run) -> None:
    card = ModelCard.of(unet)
    again = ModelCard.from_json(card.to_json())
    assert again.to_json() == card.to_json()
    assert again.frame == card.frame == unet.frame
    assert str(unet.path.parent) not in str(card.to_json())


@pytest.mark.parametrize("content", [{}, {"format": 99}, {"format": 1, "method": "mt-unet"}])
def test_a_card_that_cannot_be_read_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(InputError, match="model card"):
        ModelCard.from_json(content)


def test_calibration_is_kept_until_the_weights_change(cohort: Cohort, tmp_path: Path) -> None:
    run = fit(cohort, tmp_path / "run", "mt-unet", model={"width": 4}, progress=False, **RECIPE)
    first, _ = calibration_of(run)
    file = run.path / "calibration.json"
    written = file.read_bytes()
    assert first is not None
    calibration_of(run)
    assert file.read_bytes() == written
    again, _ = calibration_of(run, digest="other weights")
    assert again is not None
    assert file.read_bytes() != written


def test_a_run_without_its_cohort_says_why_it_is_not_calibrated(unet: Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(unet.path, tmp_path / "moved")
    (tmp_path / "moved" / "calibration.json").unlink(missing_ok=True)
    content = read_sealed(tmp_path / "moved" / "config.json", "a run")
    content["cohort"]["path"] = str(tmp_path / "gone")
    write_sealed(tmp_path / "moved" / "config.json", content)
    predictor = radgaze.load(tmp_path / "moved")
    assert predictor.card.calibration is None
    assert "cannot be read" in str(predictor.card.uncalibrated)


def test_an_unfinished_run_is_refused(unet: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((unet.path / "config.json").read_bytes())
    with pytest.raises(InputError, match="no weights"):
        radgaze.load(tmp_path)
