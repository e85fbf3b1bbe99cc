"""What the server refuses, and how: every limit, the token, and requests that mean harm."""

from __future__ import annotations

import hmac
import io
import logging
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastapi.testclient import TestClient

from radgaze.errors import InputError
from radgaze.inference import Predictor
from radgaze.inference.server import Settings
from radgaze.inference.server.settings import is_loopback, read_token
from radgaze.inference.server.uploads import base_name
from radgaze.models import Output
from tests.inference.server.conftest import Client, png

TOKEN = "a-token-of-some-length"


class Held:
    """An engine that waits until it is let go."""

    name = "held"

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.go, self.holds = predictor, threading.Event(), False

    def __call__(self, batch: torch.Tensor) -> Output:
        if self.holds:
            self.go.wait(20)
        return self.predictor.engine(batch)


@pytest.fixture
def held(predictors: dict[str, Predictor]) -> Iterator[tuple[Held, dict[str, Predictor]]]:
    engine = Held(predictors["unet"])
    yield engine, {"unet": Predictor(predictors["unet"].card, engine)}
    engine.go.set()


def error(answer: object, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["error"]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def claiming(height: int, width: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_too_many_bytes_by_the_header(serve: Client) -> None:
    answer = serve(max_bytes=5000).post("/v1/predict", files={"image": bytes(6000)})
    assert "5,000 bytes" in error(answer, 413)


def test_too_many_bytes_without_a_header(serve: Client) -> None:
    """The body ends at the limit, whatever comes after it."""
    sent = []

    def body() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for index in range(100):
            sent.append(index)
            yield bytes(1000)

    client = serve(max_bytes=5000)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert "5,000 bytes" in error(client.post("/v1/predict", content=body(), headers=headers), 413)
    headers["content-length"] = "10"  # a lie
    assert "5,000 bytes" in error(client.post("/v1/predict", content=body(), headers=headers), 413)


def test_pixels_are_counted_before_they_are_decoded(serve: Client) -> None:
    client = serve(max_pixels=2999)
    assert "2,999" in error(client.post("/v1/predict", files={"image": png(60, 50)}), 413)
    client = serve()
    for size in [(20_000, 20_000), (8_000, 8_000)]:
        assert "claims" in error(client.post("/v1/predict", files={"image": claiming(*size)}), 413)
    batch = client.post("/v1/predict/batch", files=[("images", claiming(8_000, 8_000)), ("images", png())]).json()
    assert ["error" in one for one in batch["predictions"]] == [True, False]


def test_a_deflated_dicom_file_that_swells_is_refused(serve: Client) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian, DigitalXRayImageStorageForPresentation

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows = dataset.Columns = 8
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = bytes(range(64))
    client = serve(max_pixels=10_000)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    assert client.post("/v1/predict", files={"image": file.getvalue()}).status_code == 200
    dataset.add_new(0x00091010, "OB", bytes(10_000_000))
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    assert len(file.getvalue()) < 50_000
    assert "deflated" in error(client.post("/v1/predict", files={"image": file.getvalue()}), 413)


def test_too_many_files(serve: Client) -> None:
    client = serve(max_files=2)
    assert "more than 2 files" in error(client.post("/v1/predict/batch", files=[("images", png())] * 3), 413)
    assert "more than 1 file" in error(client.post("/v1/predict", files=[("image", png())] * 2), 413)


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", "multipart/form-data; boundary=x", "cut short"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "no file"),
        (b"no form at all", "multipart/form-data; boundary=x", "damaged"),
        (b"--x\r\ncontent-disposition: form-data\r\n\r\nabc", "multipart/form-data; boundary=x", "'image'"),
        (
            b'--x\r\ncontent-disposition: form-data; name="image"\r\n\r\nabc',
            "multipart/form-data; boundary=x",
            "cut short",
        ),
        (b"{}", "application/json", "no form"),
        (b"", "multipart/form-data", "no form"),
        (b"", "multipart/form-data; boundary=" + "y" * 5000, "damaged"),
    ],
)
def test_what_is_no_form_is_refused(client: TestClient, content: bytes, kind: str, said: str) -> None:
    answer = client.post("/v1/predict?model=unet", content=content, headers={"content-type": kind})
    assert said in error(answer, 400)


@pytest.mark.parametrize("content", [b"", b"no image", png()[:40], b"\0" * 128 + b"DICM" + b"\xff" * 200])
def test_what_is_no_image_is_refused(client: TestClient, content: bytes) -> None:
    assert "'x.dat'" in error(client.post("/v1/predict?model=unet", files={"image": ("x.dat", content)}), 400)


def test_an_image_of_one_brightness_is_refused(client: TestClient) -> None:
    from tests.inference.server.test_predict import encoded

    answer = client.post("/v1/predict?model=unet", files={"image": encoded(torch.full((9, 9), 7).byte().numpy())})
    assert "same brightness" in error(answer, 400)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\scan.dcm", "scan.dcm"),
        ("/", "image"),
        ("..", "image"),
        ("", "image"),
        ("a\r\nSet-Cookie: x=1.png", "aSet-Cookie: x=1.png"),
        ("x\u202egnp.exe", "xgnp.exe"),
        ("Ärzte 1.png", "Ärzte 1.png"),
    ],
)
def test_names_are_echoed_without_their_folder(given: str, shown: str) -> None:
    assert base_name(given) == shown


def test_a_name_is_never_a_path(client: TestClient, images: list[Path]) -> None:
    """A file that exists on the server's disk is not what is read."""
    answer = client.post("/v1/predict?model=unet", files={"image": (str(images[0]), b"no image")})
    sentence = error(answer, 400)
    assert repr(images[0].name) in sentence
    assert str(images[0].parent) not in sentence
    assert len(base_name("x" * 1000)) <= 120


def test_no_header_of_an_answer_comes_from_the_request(client: TestClient) -> None:
    name = 'x"\r\nset-cookie: a=b\r\n.png'
    answers = [
        client.post("/v1/predict?model=unet", files={"image": (name, png())}),
        client.get("/v1/models%0d%0aset-cookie:%20a=b"),
        client.get("/v1/health", headers={"x-forwarded-host": "evil.example", "origin": "http://localhost"}),
        client.get("/v1/models/", follow_redirects=False),
    ]
    for answer in answers:
        assert not {"set-cookie", "location", "access-control-allow-origin"} & set(answer.headers)
        assert "evil.example" not in str(answer.headers)


@pytest.mark.parametrize("index", ["-1", "24", "999999999999999999999", "1.5", "..%2f..%2fetc", "s003", "%00"])
@pytest.mark.parametrize("part", ["", "/gaze", "/predict?model=unet"])
def test_study_numbers_that_are_none(client: TestClient, index: str, part: str) -> None:
    answer = client.get(f"/v1/cohort/studies/{index}{part}")
    assert answer.status_code in (404, 422)
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/hosts"]
)
def test_static_files_are_those_of_the_page_alone(client: TestClient, path: str) -> None:
    error(client.get(path), 404)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "offset=-1", "offset=x", "gaze=perhaps", "search=" + "x" * 201]
)
def test_parameters_out_of_range(client: TestClient, query: str) -> None:
    assert query.split("=")[0] in error(client.get(f"/v1/cohort/studies?{query}"), 422)


def test_other_methods_and_places(client: TestClient) -> None:
    assert client.get("/v1/predict").headers["allow"] == "POST"
    error(client.get("/v1/predict"), 405)
    error(client.get("/docs"), 404)
    error(client.get("/nowhere"), 404)


def test_a_full_queue_says_when_to_come_back(serve: Client, held: tuple[Held, dict[str, Predictor]]) -> None:
    engine, models = held
    client = serve(models, queue=3, batch_size=1)
    engine.holds = True
    service = client.app.state.service
    with ThreadPoolExecutor(3) as others:
        waiting = [others.submit(client.post, "/v1/predict", files={"image": png(seed=seed)}) for seed in range(3)]
        until(lambda: service.requests == 3)
        answer = client.post("/v1/predict", files={"image": png()})
        assert "holds 3 requests" in error(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/v1/health").status_code == 200
        until(lambda: len(service.worker.waiting) == 2)
        assert "radgaze_queue_length 2.0" in client.get("/metrics").text
        engine.go.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
    assert service.requests == 0


def test_time_is_up_and_the_image_is_not_run_after_all(serve: Client, held: tuple[Held, dict[str, Predictor]]) -> None:
    engine, models = held
    client = serve(models, timeout=0.5, batch_size=1)
    engine.holds = True
    with ThreadPoolExecutor(2) as others:
        waiting = [others.submit(client.post, "/v1/predict", files={"image": png(seed=seed)}) for seed in range(2)]
        for one in waiting:
            assert "0.5 seconds" in error(one.result(), 504)
    before = predicted(client)
    engine.go.set()
    engine.holds = False
    assert client.post("/v1/predict", files={"image": png()}).status_code == 200
    assert predicted(client) <= before + 2  # the pass under way and this one, not what was given up


def predicted(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("radgaze_predictions_total"))


def test_stopping_refuses_what_is_new_and_bounds_what_is_held(
    serve: Client, held: tuple[Held, dict[str, Predictor]]
) -> None:
    engine, models = held
    client = serve(models, grace=0.3)
    engine.holds = True
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.post, "/v1/predict", files={"image": png()})
        until(lambda: client.app.state.service.requests == 1)

        async def stop() -> None:
            client.app.state.service.stop()

        client.portal.call(stop)
        assert "stopping" in error(client.post("/v1/predict", files={"image": png()}), 503)
        assert client.get("/v1/health").json()["ready"] is False
        assert "stopping" in error(waiting.result(), 503)


def test_the_token_guards_everything_but_the_page(serve: Client) -> None:
    client = serve(token=TOKEN, host="0.0.0.0")
    for path in ["/v1/health", "/v1/models", "/metrics", "/openapi.json", "/nowhere", "/static"]:
        answer = client.get(path)
        error(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        for wrong in [
            "Bearer",
            "Bearer x",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            TOKEN,
            "Bearer \xe4".encode("latin-1"),
        ]:
            assert client.get(path, headers={"authorization": wrong}).status_code == 401
    assert client.get("/").status_code in (200, 404)
    assert client.get("/static/nothing.js").status_code == 404
    good = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/health", headers=good).status_code == 200
    assert client.post("/v1/predict", files={"image": png()}, headers=good).status_code == 200
    error(client.post("/v1/predict", files={"image": png()}), 401)
    assert client.get("/v1/health", headers={**good, "host": "any.example"}).status_code == 200


def test_the_token_is_compared_in_constant_time(serve: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given, and however it is wrong, goes through ``compare_digest``, as bytes."""
    compared = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return hmac.compare_digest(given, right)

    monkeypatch.setattr("radgaze.inference.server.guard.hmac", SimpleNamespace(compare_digest=compare))
    client = serve(token=TOKEN)
    wrong = [
        b"",
        TOKEN[:-1].encode(),
        TOKEN.encode() + b"x",
        b"x" * 100_000,
        TOKEN.upper().encode(),
        b"\xff\xfe",
        b"\x00",
    ]
    for given in wrong:
        assert client.get("/v1/health", headers={"authorization": b"Bearer " + given}).status_code == 401
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert client.get("/v1/health", headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200
    assert len(compared) == len(wrong) + 3
    assert all(isinstance(given, bytes) and right == TOKEN.encode() for given, right in compared)


@pytest.mark.parametrize("others", [[TOKEN[::-1]], [TOKEN]])
def test_several_tokens_are_none(serve: Client, others: list[str]) -> None:
    client = serve(token=TOKEN)
    for given in ([TOKEN, *others], [*others, TOKEN]):
        headers = [("authorization", f"Bearer {one}") for one in given]
        assert client.get("/v1/health", headers=headers).status_code == 401


def test_the_token_is_told_to_nobody(serve: Client, caplog: pytest.LogCaptureFixture) -> None:
    """It is no parameter of an address, which others log, and no answer, metric or line of the log has it."""
    caplog.set_level(logging.DEBUG)
    client = serve(token=TOKEN)
    good = {"authorization": f"Bearer {TOKEN}"}
    answers = [
        client.get("/v1/health", params={"token": TOKEN, "access_token": TOKEN}),
        client.get("/v1/health", headers={"cookie": f"token={TOKEN}"}),
        client.get("/v1/health", headers={"x-token": TOKEN, "proxy-authorization": f"Bearer {TOKEN}"}),
        client.get(f"/{TOKEN}", headers=good),
        client.get("/v1/cohort/studies?limit=0", headers=good),
        client.post("/v1/predict", files={"image": b"no image"}, headers=good),
        client.get("/metrics", headers=good),
        client.get("/openapi.json", headers=good),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 404, 422, 400, 200, 200]
    assert not any(TOKEN in answer.text or TOKEN in str(answer.headers) for answer in answers)
    ours = [record for record in caplog.records if record.name.split(".")[0] not in ("httpx", "httpx2", "httpcore")]
    assert len(ours) >= len(answers)
    assert not any(TOKEN in record.getMessage() for record in ours)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_page_of_this_machine_cannot_use_it_either(client: TestClient, headers: dict[str, str]) -> None:
    error(client.get("/v1/health", headers=headers), 400)
    error(client.post("/v1/predict?model=unet", files={"image": png()}, headers=headers), 400)
    assert client.get("/", headers=headers).status_code == 200  # a link to the page may stand anywhere


def test_no_other_page_is_allowed_in(serve: Client) -> None:
    """A preflight is refused with and without a token, and nothing allows it."""
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    for client in (serve(), serve(token=TOKEN)):
        answer = client.options("/v1/predict", headers={**asked, "access-control-request-headers": "authorization"})
        assert answer.status_code in (400, 401)
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        "C:\\Windows\\win.ini",
        "\\\\host\\share\\x.png",
        "a\x00.png",
        "<img src=x onerror=alert(1)>.png",
        "x" * 3000 + ".png",
        "..",
        "",
    ],
)
def test_a_name_is_no_place(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever an upload is called, it is read from memory and named without a folder; nothing is opened or written."""
    monkeypatch.chdir(tmp_path)
    body = b'--x\r\ncontent-disposition: form-data; name="image"; filename="' + name.encode() + b'"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/predict?model=unet", content=body + png() + b"\r\n--x--\r\n", headers=headers)
    assert answer.status_code == 200
    assert not {"/", "\\", "\0"} & set(answer.json()["image"])
    assert len(answer.json()["image"]) <= 120
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "[::2]"},
        {"host": "[broken"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
    ],
)
def test_a_page_from_elsewhere_cannot_use_a_server_without_a_token(client: TestClient, headers: dict[str, str]) -> None:
    error(client.get("/v1/health", headers=headers), 400)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_this_machine_has_several_names(client: TestClient, host: str) -> None:
    assert client.get("/v1/health", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "--token-file"),
        ({"host": "::"}, "--token-file"),
        ({"host": "radgaze.example"}, "--token-file"),
        ({"port": 70_000}, "port"),
        ({"queue": 0}, "queue"),
        ({"max_pixels": 10**10}, "max_pixels"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(**settings)


def test_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.example"]))


def test_token_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADGAZE_TOKEN", raising=False)
    assert read_token(None) is None
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert read_token(tmp_path / "token") == TOKEN
    monkeypatch.setenv("RADGAZE_TOKEN", TOKEN[::-1])
    assert read_token(None) == TOKEN[::-1]
    for bad in ["", "short", "with a space in the middle", "höchst geheimes Wort ohne Raum"]:
        monkeypatch.setenv("RADGAZE_TOKEN", bad)
        with pytest.raises(InputError, match="RADGAZE_TOKEN") as raised:
            read_token(None)
        assert not bad or bad not in str(raised.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_token(tmp_path / "none")
