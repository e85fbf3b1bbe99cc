from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.inference import Predictor
from radgaze.inference.server import Settings, create_app
from radgaze.inference.server.settings import read_token
from radgaze.inference.server.uploads import base_name
from radgaze.measures import saliency
from radgaze.models import Output
from radgaze.training.attention import AttentionTarget
from tests.inference.predictors import CLASSES, formula_predictor
from tests.inference.server.conftest import models

BASE = "http://127.0.0.1"
TOKEN = "a-token-of-some-length"


def serve(cohort: Cohort | None = None, predictors: dict[str, Predictor] | None = None, **settings: Any) -> TestClient:
    app = create_app(predictors or models(CLASSES), cohort, Settings(**settings))
    return TestClient(app, base_url=BASE, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(served_cohort: Cohort) -> Iterator[TestClient]:
    with serve(served_cohort) as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def ramp(height: int = 40, width: int = 30, top: int = 255) -> bytes:
    return png(np.linspace(0, top, height * width).reshape(height, width).astype(np.uint8))


def values(part: dict[str, Any], kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(part["data"]), kind).reshape(part["height"], part["width"])


class TestPredict:
    def test_it_is_what_the_library_says(self, client: TestClient, radiograph: Path) -> None:
        found = client.post("/v1/predict?model=unet", files={"image": ("scan.png", radiograph.read_bytes())}).json()
        predictor = models(CLASSES)["unet"]
        expected = predictor.predict(radiograph)
        assert {key: found[key] for key in expected.to_json()} == {**expected.to_json(), "image": "scan.png"}
        assert expected.attention is not None
        assert values(found["maps"]["attention"], "<f4") == pytest.approx(expected.attention, abs=1e-6)
        grid = expected.grid_of(expected.attention)
        assert [found["maps"]["attention"][key] for key in ("y0", "x0", "dy", "dx")] == [
            grid.y0, grid.x0, grid.dy, grid.dx,
        ]  # fmt: skip

    def test_the_preview_is_the_image(self, client: TestClient) -> None:
        found = client.post("/v1/predict?model=cam", files={"image": ("a.png", ramp())}).json()
        preview = found["preview"]
        shown = values(preview, "<u2")
        brightness = preview["low"] + shown / 65535 * (preview["high"] - preview["low"])
        assert brightness == pytest.approx(np.asarray(Image.open(io.BytesIO(ramp()))), abs=0.01)
        large = client.post("/v1/predict?model=cam", files={"image": ("a.png", ramp(2100, 900))}).json()["preview"]
        assert (large["height"], large["width"]) == (1024, 439)
        assert large["scale_y"] == pytest.approx(2100 / 1024)

    def test_only_what_is_asked_for_travels(self, client: TestClient) -> None:
        found = client.post("/v1/predict?model=cam&maps=false&preview=false", files={"image": ("a.png", ramp())}).json()
        assert "maps" not in found
        assert "preview" not in found

    def test_dicom(self, client: TestClient, shared_data: Callable[[str], Path]) -> None:
        file = shared_data("dicom") / "derived_cr_chest_mono1_15bit_rle.dcm"
        found = client.post("/v1/predict?model=unet", files={"image": ("chest.dcm", file.read_bytes())}).json()
        assert (found["height"], found["width"]) == (1955, 1841)
        assert found["classes"].keys() == set(CLASSES)

    def test_several_with_a_broken_one_between(self, client: TestClient) -> None:
        images = [("images", (f"{top}.png", ramp(top=top))) for top in range(100, 200, 10)]
        images.insert(3, ("images", ("broken.png", b"no image")))
        found = client.post("/v1/predict/batch?model=unet", files=images).json()["predictions"]
        assert [entry["image"] for entry in found] == [name for _, (name, _) in images]
        assert "PNG, JPEG, TIFF or DICOM" in found[3]["error"]
        alone = client.post("/v1/predict?model=unet", files={"image": images[5][1]}).json()
        assert found[5]["classes"] == alone["classes"]

    def test_a_crowd_is_answered_right(self, client: TestClient) -> None:
        tops = list(range(60, 92))
        expected = [models(CLASSES)["cam"].predict(np.asarray(Image.open(io.BytesIO(ramp(20 + t, 30))))) for t in tops]

        def ask(top: int) -> Any:
            return client.post(
                "/v1/predict?model=cam&maps=false&preview=false", files={"image": ("a.png", ramp(20 + top, 30))}
            ).json()

        with ThreadPoolExecutor(32) as crowd:
            found = list(crowd.map(ask, tops))
        for one, other in zip(found, expected, strict=True):
            assert {name: entry["probability"] for name, entry in one["classes"].items()} == pytest.approx(
                other.probabilities, abs=1e-6
            )

    @pytest.mark.parametrize(
        ("given", "called"),
        [
            ("../../etc/passwd.png", "passwd.png"),
            ("C:\\patients\\name.dcm", "name.dcm"),
            ("a\r\nSet-Cookie: x", "aSet-Cookie: x"),
            ("..", "image"),
            ("", "image"),
        ],
    )
    def test_a_name_is_no_path(self, given: str, called: str) -> None:
        assert base_name(given) == called

    @pytest.mark.parametrize(
        ("query", "files", "status", "said"),
        [
            ("?model=unet", {"image": ("a.png", b"no image")}, 400, "PNG, JPEG, TIFF or DICOM"),
            ("?model=unet", {"image": ("a.png", png(np.full((9, 9), 7, np.uint8)))}, 400, "same brightness"),
            ("?model=unet", {"other": ("a.png", ramp())}, 400, "not 'image'"),
            ("?model=unet", None, 400, "no form"),
            ("", {"image": ("a.png", ramp())}, 400, "unet, cam"),
            ("?model=../unet", {"image": ("a.png", ramp())}, 404, "No such model"),
            ("?model=unet&maps=perhaps", {"image": ("a.png", ramp())}, 422, "maps"),
        ],
    )
    def test_what_cannot_be_used_is_one_sentence(
        self, client: TestClient, query: str, files: Any, status: int, said: str
    ) -> None:
        answer = client.post(f"/v1/predict{query}", files=files)
        assert answer.status_code == status
        assert said in answer.json()["error"]
        assert answer.json().keys() == {"error"}


class TestLimits:
    def test_bytes(self) -> None:
        with serve(max_bytes=2000) as client:
            answer = client.post("/v1/predict?model=unet", files={"image": ("a.png", b"x" * 3000)})
            assert answer.status_code == 413

            def endless() -> Iterator[bytes]:  # without a length, and without an end
                yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
                for _ in range(1000):
                    yield b"x" * 100

            headers = {"content-type": "multipart/form-data; boundary=b"}
            answer = client.post("/v1/predict?model=unet", content=endless(), headers=headers)
            assert answer.status_code == 413
            assert "2,000 bytes" in answer.json()["error"]

    def test_pixels_are_counted_before_they_are_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serve(max_pixels=1000) as client:
            monkeypatch.setattr(Predictor, "read", lambda *_: pytest.fail("was decoded"))
            answer = client.post("/v1/predict?model=unet", files={"image": ("a.png", ramp(40, 30))})
            assert answer.status_code == 413
            assert "40x30" in answer.json()["error"]

    def test_files(self) -> None:
        with serve(max_files=2) as client:
            answer = client.post("/v1/predict/batch?model=unet", files=[("images", ("a.png", ramp()))] * 3)
            assert answer.status_code == 413

    def test_queue_and_time(self) -> None:
        """While a network is stuck one more request waits, the next is sent away, and both of them end in time."""
        free = threading.Event()

        class Stuck:
            name = "stuck"

            def __call__(self, images: torch.Tensor) -> Output:
                if len(images) == 1 and float(images.max()) == 1 and self.armed:
                    free.wait(20)
                return Output(torch.zeros(len(images), 3))

            armed = False

        stuck = Stuck()
        predictor = Predictor(formula_predictor(("logits",)).card, stuck)
        with serve(predictors={"stuck": predictor}, queue=2, timeout=1.0, batch_size=1) as client:
            stuck.armed = True
            with ThreadPoolExecutor(3) as crowd:
                asked = [crowd.submit(client.post, "/v1/predict", files={"image": ("a.png", ramp())}) for _ in range(2)]
                while client.app.state.service.requests < 2:  # type: ignore[attr-defined]
                    time.sleep(0.01)
                away = client.post("/v1/predict", files={"image": ("a.png", ramp())})
                assert away.status_code == 503
                assert away.headers["retry-after"] == "1"
                assert client.get("/v1/health").json()["ready"] is True
                assert [one.result().status_code for one in asked] == [504, 504]
            free.set()
            stuck.armed = False
            assert client.post("/v1/predict", files={"image": ("a.png", ramp())}).status_code == 200

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"host": "0.0.0.0"}, "token is needed"),
            ({"host": "scanner.local"}, "token is needed"),
            ({"port": 70000}, "expected 0"),
            ({"queue": 0}, "at least 1"),
            ({"max_pixels": 10**12}, "at most"),
            ({"timeout": 0}, "above zero"),
        ],
    )
    def test_settings_that_make_no_server(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            Settings(**settings)


class TestGuard:
    def test_token(self, radiograph: Path) -> None:
        with serve(host="0.0.0.0", token=TOKEN) as client:
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
                for path in ("/v1/models", "/metrics", "/v1/health", "/nothing"):
                    answer = client.get(path, headers=header)
                    assert answer.status_code == 401
                    assert answer.headers["www-authenticate"].startswith("Bearer")
            assert client.get("/").status_code == 200  # the page itself holds no data
            right = {"authorization": f"Bearer {TOKEN}"}
            assert client.get("/v1/models", headers=right).status_code == 200
            assert (
                client.get("/v1/models", headers={"authorization": "Bearer \xff".encode("latin-1")}).status_code == 401
            )

    def test_token_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        assert read_token(tmp_path / "token") == TOKEN
        monkeypatch.delenv("RADGAZE_TOKEN", raising=False)
        assert read_token(None) is None
        monkeypatch.setenv("RADGAZE_TOKEN", TOKEN)
        assert read_token(None) == TOKEN
        (tmp_path / "token").write_text("short")
        with pytest.raises(InputError, match="5 characters"):
            read_token(tmp_path / "token")
        with pytest.raises(InputError, match="cannot be read"):
            read_token(tmp_path / "absent")

    def test_another_hosts_page_is_kept_out(self, client: TestClient) -> None:
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400
        assert client.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 400
        assert client.get("/v1/models", headers={"host": "localhost:8000"}).status_code == 200

    def test_headers(self, client: TestClient) -> None:
        for path in ("/", "/v1/models", "/nothing"):
            headers = client.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
        assert client.get("/v1/models").headers["cache-control"] == "no-store"

    def test_the_log_tells_nothing_of_a_request(
        self, client: TestClient, served_cohort: Cohort, caplog: pytest.LogCaptureFixture
    ) -> None:
        logging.getLogger("radgaze.server").propagate = True
        with caplog.at_level(logging.INFO, "radgaze.server"):
            client.post("/v1/predict?model=unet", files={"image": ("SECRET.png", ramp())}, headers={"x": "SECRET"})
            client.get("/v1/cohort/studies?search=SECRET")
            client.get("/SECRET")
        assert "POST /v1/predict 200" in caplog.text
        assert "SECRET" not in caplog.text

    def test_paths_lead_nowhere(self, client: TestClient) -> None:
        for path in (
            "/static/../app.py",
            "/static/%2e%2e/app.py",
            "/static/..%2fapp.py",
            "/static//etc/passwd",
            "/docs",
        ):
            answer = client.get(path)
            assert answer.status_code == 404, path
            assert "import" not in answer.text

    def test_a_network_that_fails_tells_only_the_log(self, radiograph: Path) -> None:
        class Failing:
            name, armed = "failing", False

            def __call__(self, images: torch.Tensor) -> Output:
                if self.armed:
                    raise RuntimeError("SECRET")
                return Output(torch.zeros(len(images), 3))

        engine = Failing()
        with serve(predictors={"x": Predictor(formula_predictor(("logits",)).card, engine)}) as client:
            engine.armed = True
            answer = client.post("/v1/predict", files={"image": ("a.png", ramp())})
            assert answer.status_code == 500
            assert "SECRET" not in answer.text
            engine.armed = False
            assert client.post("/v1/predict", files={"image": ("a.png", ramp())}).status_code == 200


class TestCohort:
    def test_studies_and_filters(self, client: TestClient, served_cohort: Cohort) -> None:
        def ask(**query: Any) -> Any:
            return client.get("/v1/cohort/studies", params=query).json()

        everything = ask(limit=500)
        assert everything["total"] == len(served_cohort)
        assert [entry["study_id"] for entry in everything["studies"]] == served_cohort.studies["study_id"].to_list()
        test = ask(split="test", limit=500)
        assert [entry["index"] for entry in test["studies"]] == served_cohort.indices("test").tolist()
        assert {entry["label"] for entry in ask(label="class1")["studies"]} == {"class1"}
        assert ask(search="s00")["total"] == 10
        assert ask(gaze=False)["total"] == 0
        assert len(ask(limit=5, offset=20)["studies"]) == 4
        assert client.get("/v1/cohort/studies?limit=0").status_code == 422

    def test_a_study_and_its_gaze(self, client: TestClient, served_cohort: Cohort) -> None:
        study = served_cohort[3]
        found = client.get("/v1/cohort/studies/3").json()
        assert (found["study_id"], found["height"], found["width"]) == (study.study_id, *study.source_size)
        gaze = client.get("/v1/cohort/studies/3/gaze").json()
        assert study.gaze is not None
        assert gaze["points"]["x"] == pytest.approx(study.gaze.x.tolist())
        assert gaze["readers"] == served_cohort.readers
        assert set(gaze["points"]["reader"]) == {0, 1}
        assert gaze["fixations"]["duration"]

    @pytest.mark.parametrize("index", [24, -1, 10**12])
    def test_no_such_study(self, client: TestClient, index: int) -> None:
        for path in ("", "/gaze", "/predict?model=unet"):
            assert client.get(f"/v1/cohort/studies/{index}{path}").status_code in (404, 422)
        assert client.get("/v1/cohort/studies/..%2f1").status_code in (404, 422)

    @pytest.mark.parametrize("model", ["unet", "cam"])
    def test_agreement_is_that_of_the_measures(self, client: TestClient, served_cohort: Cohort, model: str) -> None:
        found = client.get(f"/v1/cohort/studies/5/predict?model={model}").json()
        for name, entry in found["agreement"].items():
            predicted = torch.from_numpy(values(found["maps"][name], "<f4").copy()).clamp(min=0)[None]
            human, _ = AttentionTarget("gaze").maps(served_cohort, [5], size=tuple(predicted.shape[1:]))
            for measure in ("cc", "kld", "sim"):
                expected = float(getattr(saliency, measure)(predicted, human))
                assert entry[measure] == pytest.approx(expected, rel=1e-4), (name, measure)
        human_map = values(found["human"], "<f4")
        assert human_map.max() == pytest.approx(1, abs=1e-6)

    def test_without_a_cohort(self) -> None:
        with serve() as client:
            assert client.get("/v1/cohort/studies").status_code == 404
            assert client.get("/v1/models").json()["cohort"] is None

    def test_of_another_size(self, cohort: Cohort) -> None:
        with serve(cohort) as client:
            answer = client.get("/v1/cohort/studies/0/predict?model=unet")
            assert answer.status_code == 400
            assert "48x32" in answer.json()["error"]


def test_models_and_their_cards(client: TestClient) -> None:
    found = client.get("/v1/models").json()
    assert [one["name"] for one in found["models"]] == ["unet", "cam"]
    unet, cam = (one["card"] for one in found["models"])
    assert unet["calibration"]["patients"] == 30
    assert "slopes" not in json.dumps(unet)
    assert cam["calibration"] is None
    assert cam["uncalibrated"] == "the test wants it so"


def test_metrics_count(client: TestClient) -> None:
    def passed() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("radgaze_predictions_total{"))

    before = passed()
    client.post("/v1/predict?model=unet", files={"image": ("a.png", ramp())})
    assert passed() == before + 1
    assert 'route="/v1/predict"' in client.get("/metrics").text


def test_the_description_is_whole(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    routes = {(path, method) for path, item in description["paths"].items() for method in item}
    assert ("/v1/predict", "post") in routes
    assert ("/v1/cohort/studies/{index}/predict", "get") in routes
    for path, item in description["paths"].items():
        for operation in item.values():
            assert operation["summary"]
            assert "401" in operation["responses"], path
    upload = description["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert upload["properties"]["image"]["format"] == "binary"


def test_no_model_is_no_server() -> None:
    with pytest.raises(InputError, match="no model"):
        create_app({})


def test_one_image_that_overflows_does_not_fail_its_neighbours() -> None:
    inner = formula_predictor(("logits",))

    class Picky:
        name = "picky"

        def __call__(self, images: torch.Tensor) -> Output:
            output = inner.engine(images)
            assert output.logits is not None
            dark = images.mean((1, 2, 3)) < 0.2
            return replace_logits(output, torch.where(dark[:, None], torch.nan, output.logits))

    def replace_logits(output: Output, logits: torch.Tensor) -> Output:
        return output._replace(logits=logits)

    dark = np.zeros((40, 30), np.uint8)
    dark[0, 0] = 255
    card = replace(inner.card)
    with serve(predictors={"picky": Predictor(card, Picky())}, window=0.2) as client, ThreadPoolExecutor(4) as crowd:
        files = [ramp(), png(dark), ramp(), ramp()]
        asked = [crowd.submit(client.post, "/v1/predict", files={"image": ("a.png", file)}) for file in files]
        assert [one.result().status_code for one in asked] == [200, 500, 200, 200]
        assert "not finite" in asked[1].result().json()["error"]
