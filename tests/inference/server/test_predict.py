"""Uploads: what comes back is what the library says, for any number of clients."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from fastapi.testclient import TestClient

from radgaze.cohort.pixels import Upload, read_image
from radgaze.errors import InputError
from radgaze.inference import Predictor
from radgaze.inference.server import answers
from radgaze.models import Output
from tests.inference.server.conftest import Client, png


def decoded(content: dict[str, object], kind: str) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(str(content["data"])), kind)
    return values.reshape(content["height"], content["width"])


@pytest.mark.parametrize("model", ["unet", "cam"])
def test_upload_gives_what_the_library_gives(
    client: TestClient, predictors: dict[str, Predictor], images: list[Path], model: str
) -> None:
    answer = client.post(f"/v1/predict?model={model}", files={"image": ("some.png", images[0].read_bytes())})
    assert answer.status_code == 200
    content = answer.json()
    answers.Predicted.model_validate(content)
    expected = predictors[model].predict(Upload(images[0].read_bytes(), "some.png"))
    assert {key: content[key] for key in expected.to_json()} == expected.to_json()
    assert content["model"] == model
    assert set(content["maps"]) == set(expected.maps())
    for name, values in expected.maps().items():
        found, grid = content["maps"][name], expected.grid_of(values)
        assert np.array_equal(decoded(found, "<f4"), values)
        assert (found["x0"], found["y0"], found["dx"], found["dy"]) == (grid.x0, grid.y0, grid.dx, grid.dy)
        assert (found["low"], found["high"]) == (values.min(), values.max())


def test_preview_is_the_image(client: TestClient, images: list[Path]) -> None:
    content = client.post("/v1/predict?model=cam", files={"image": images[0].read_bytes()}).json()["preview"]
    pixels = read_image(images[0])[0].astype(float)
    shown = content["low"] + decoded(content, "<u2") / 65535 * (content["high"] - content["low"])
    assert shown == pytest.approx(pixels, abs=0.01)
    assert (content["scale"], content["x0"], content["y0"]) == (1, 0, 0)


def test_preview_of_a_large_image_is_its_average(client: TestClient) -> None:
    from radgaze.inference.server.answers import preview_of

    pixels = np.add.outer(np.arange(3000), np.zeros(1500)).astype(np.uint16)
    content = preview_of(pixels)
    assert (content["height"], content["width"]) == (1024, 512)
    rows = content["y0"] + content["scale_y"] * np.arange(1024)
    shown = content["low"] + decoded(content, "<u2")[:, 0] / 65535 * (content["high"] - content["low"])
    assert shown == pytest.approx(rows, abs=0.1)


def test_maps_and_preview_can_be_left_out(client: TestClient, images: list[Path]) -> None:
    url = "/v1/predict?model=unet&maps=false&preview=false"
    content = client.post(url, files={"image": images[0].read_bytes()}).json()
    assert "maps" not in content
    assert "preview" not in content
    assert content["peaks"]["attention"] is not None


def test_batch_keeps_the_order_around_a_broken_image(
    client: TestClient, predictors: dict[str, Predictor], images: list[Path]
) -> None:
    files = [("images", (path.name, path.read_bytes())) for path in images[:11]]
    files.insert(4, ("images", ("broken.png", b"no image")))
    answer = client.post("/v1/predict/batch?model=unet", files=files)
    assert answer.status_code == 200
    answers.Batch.model_validate(answer.json())
    found = answer.json()["predictions"]
    assert [one["image"] for one in found] == [name for _, (name, _) in files]
    assert "PNG, JPEG, TIFF or DICOM" in found[4]["error"]
    for one, path in zip(found[:4] + found[5:], images[:11], strict=True):
        alone = predictors["unet"].predict(path).probabilities
        assert {name: each["probability"] for name, each in one["classes"].items()} == pytest.approx(alone, abs=1e-5)


def test_a_real_dicom_file(client: TestClient, shared_data: Callable[[str], Path]) -> None:
    path = shared_data("dicom") / "cr_chest_mono1_15bit_j2k_lossy.dcm"
    header = pydicom.dcmread(path, stop_before_pixels=True)
    url = "/v1/predict?model=unet&maps=false&preview=false"
    answer = client.post(url, files={"image": (path.name, path.read_bytes())})
    assert answer.status_code == 200
    assert (answer.json()["height"], answer.json()["width"]) == (header.Rows, header.Columns)
    for name in ("PatientName", "PatientID", "StudyDate", "StudyInstanceUID"):
        if header.get(name):
            assert str(header[name].value) not in answer.text


def test_many_clients_at_once_each_get_their_own(
    client: TestClient, predictors: dict[str, Predictor], images: list[Path]
) -> None:
    chosen = [(index, "unet" if index % 3 else "cam") for index in range(64)]

    def ask(index: int, model: str) -> dict[str, float]:
        content = images[index % len(images)].read_bytes()
        answer = client.post(f"/v1/predict?model={model}", files={"image": (f"{index}.png", content)})
        assert answer.status_code == 200, answer.text
        assert answer.json()["image"] == f"{index}.png"
        return {name: each["probability"] for name, each in answer.json()["classes"].items()}

    with ThreadPoolExecutor(32) as clients:
        found = list(clients.map(lambda pair: ask(*pair), chosen))
    for (index, model), classes in zip(chosen, found, strict=True):
        expected = predictors[model].predict(images[index % len(images)]).probabilities
        assert classes == pytest.approx(expected, abs=1e-5)
    batches = [line for line in client.get("/metrics").text.splitlines() if line.startswith("radgaze_batch_size_count")]
    predicted = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("radgaze_predictions_tot")
    ]
    assert sum(float(line.split()[-1]) for line in batches) < sum(float(line.split()[-1]) for line in predicted)


def test_models_and_the_choice_between_them(client: TestClient) -> None:
    content = client.get("/v1/models").json()
    answers.Models.model_validate(content)
    assert [model["name"] for model in content["models"]] == ["unet", "cam"]
    assert "slopes" not in str(content)
    assert content["models"][0]["card"]["calibration"] is not None or content["models"][0]["card"]["uncalibrated"]
    nameless = client.post("/v1/predict", files={"image": png()})
    assert (nameless.status_code, "unet, cam" in nameless.json()["error"]) == (400, True)
    unknown = client.post("/v1/predict?model=other", files={"image": png()})
    assert (unknown.status_code, "unet, cam" in unknown.json()["error"]) == (404, True)


def test_one_model_needs_no_name(serve: Client) -> None:
    assert serve().post("/v1/predict", files={"image": png()}).json()["model"] == "unet"


def test_an_output_that_is_not_finite_fails_alone(serve: Client, predictors: dict[str, Predictor]) -> None:
    inner = predictors["unet"]

    class Odd:
        """Overflows for the one image that is bright in its corner."""

        name = "odd"

        def __call__(self, batch: torch.Tensor) -> Output:
            bad = batch[:, 0, 0, :].amax(1) == 1
            output = inner.engine(batch)
            return output._replace(logits=torch.where(bad[:, None], torch.nan, output.logits))

    dark = np.zeros((48, 32), np.uint8)
    dark[20:30, 10:20] = 200
    bright = dark.copy()
    bright[0] = 255
    files = [("images", (f"{index}.png", encoded(bright if index == 2 else dark))) for index in range(5)]
    client = serve({"odd": Predictor(inner.card, Odd())})
    answer = client.post("/v1/predict/batch", files=files)
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]
    assert client.post("/v1/predict/batch", files=files[:2]).status_code == 200


def test_whatever_an_engine_raises_stays_inside(
    serve: Client, predictors: dict[str, Predictor], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        name, fails = "failing", False

        def __call__(self, batch: torch.Tensor) -> Output:
            if self.fails:
                raise RuntimeError("secret of the engine")
            return predictors["unet"].engine(batch)

    engine = Failing()
    client = serve({"failing": Predictor(predictors["unet"].card, engine)})
    engine.fails = True
    answer = client.post("/v1/predict", files={"image": ("secret-name.png", png())})
    assert answer.status_code == 500
    assert answer.json() == {"error": "The server failed at this request; its log says where."}
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    engine.fails = False
    assert client.post("/v1/predict", files={"image": png()}).status_code == 200


def test_no_model_is_refused() -> None:
    from radgaze.inference.server import create_app

    with pytest.raises(InputError, match="no model to serve"):
        create_app({})


def encoded(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
