"""Headers, log, metrics and the description of the API."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.inference.server.conftest import Client, png

PATHS = ["/", "/static/none.js", "/v1/health", "/v1/models", "/metrics", "/openapi.json", "/nowhere", "/v1/predict"]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_guarded(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    page = path in ("/", "/static/none.js")
    assert headers["cache-control"] == ("no-cache" if page else "no-store")
    assert "access-control-allow-origin" not in headers


def test_the_log_names_routes_and_nothing_of_the_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client.post("/v1/predict?model=unet&secret=abc", files={"image": ("Doe^Jane.png", png())})
    client.post("/v1/predict?model=unet", files={"image": ("Doe^Jane.png", b"Doe^Jane")})
    client.get("/v1/cohort/studies/3?x=secret", headers={"x-secret": "secret"})
    client.get("/v1/cohort/studies?search=s003")
    client.get("/secret%0afake%20line")
    own = [record.getMessage() for record in caplog.records if record.name == "radgaze.server"]
    assert [re.sub(r"\d+ ms", "N ms", line) for line in own] == [
        "POST /v1/predict 200 N ms",
        "POST /v1/predict 400 N ms",
        "GET /v1/cohort/studies/{index} 200 N ms",
        "GET /v1/cohort/studies 200 N ms",
        "GET none 404 N ms",
    ]
    others = [record for record in caplog.records if record.name.split(".")[0] not in ("httpx", "httpx2", "httpcore")]
    assert not any("secret" in record.getMessage() or "Doe" in record.getMessage() for record in others)


def test_metrics_count(serve: Client) -> None:
    client = serve()
    for _ in range(3):
        client.post("/v1/predict", files={"image": png()})
    client.post("/v1/predict", files={"image": b"no image"})
    client.get("/nowhere/at/all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in [
        'radgaze_requests_total{method="POST",route="/v1/predict",status="200"} 3.0',
        'radgaze_requests_total{method="POST",route="/v1/predict",status="400"} 1.0',
        'radgaze_requests_total{method="GET",route="none",status="404"} 1.0',
        'radgaze_predictions_total{model="unet"} 3.0',
        'radgaze_request_seconds_count{route="/v1/predict"} 4.0',
        "radgaze_queue_length 0.0",
        "radgaze_requests_held 0.0",
    ]:
        assert line in answer.text.splitlines()
    assert "process_resident_memory_bytes" in answer.text


def test_apps_have_metrics_of_their_own(serve: Client) -> None:
    first, second = serve(), serve()
    first.post("/v1/predict", files={"image": png()})
    assert 'radgaze_predictions_total{model="unet"} 1.0' not in second.get("/metrics").text


def test_every_route_and_answer_is_described(client: TestClient) -> None:
    content = client.get("/openapi.json").json()
    assert set(content["paths"]) == {
        "/v1/health",
        "/metrics",
        "/v1/models",
        "/v1/predict",
        "/v1/predict/batch",
        "/v1/cohort/studies",
        "/v1/cohort/studies/{index}",
        "/v1/cohort/studies/{index}/gaze",
        "/v1/cohort/studies/{index}/predict",
    }
    for path, methods in content["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            assert {"200", "400", "401", "422", "500"} <= set(responses)
            for status, response in responses.items():
                if status != "200":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Error"}
            if "predict" in path:
                assert {"503", "504"} <= set(responses)
    form = content["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["image"]["format"] == "binary"
    assert "HTTPValidationError" not in content["components"]["schemas"]


def test_the_token_is_described_where_there_is_one(serve: Client) -> None:
    token = "a-token-of-some-length"
    content = serve(token=token).get("/openapi.json", headers={"authorization": f"Bearer {token}"}).json()
    assert content["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_nothing_is_fetched_from_elsewhere() -> None:
    import radgaze.inference.server as server

    for path in (Path(server.__file__).parent / "static").rglob("*"):
        if path.is_file() and path.suffix in (".html", ".js", ".css"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
            assert not re.search(r"https?://", text), path.name
