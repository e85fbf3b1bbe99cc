"""Real connections whose clients are slow, greedy or hostile, beside one that is none of these."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.inference.predictors import formula_predictor
from tests.inference.server.conftest import Served, png

HEADER_TIMEOUT, TIMEOUT, CONNECTIONS, QUEUE = 0.7, 12.0, 12, 4
FORM = b"Host: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
UPLOAD = b"POST /v1/predict HTTP/1.1\r\n" + FORM
PART = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = {"header_timeout": HEADER_TIMEOUT, "timeout": TIMEOUT, "connections": CONNECTIONS, "queue": QUEUE}
    with Served({"unet": formula_predictor()}, max_bytes=1 << 20, **limits) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(server: Served, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After every test the server holds nothing, and nothing went wrong in it that it had to log."""
    yield
    until(lambda: not server.server.server_state.connections)
    assert server.app.state.service.requests == 0
    assert not server.app.state.service.uploads
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert httpx.get(f"{server.url}/v1/health").json()["ready"] is True


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(1 << 20):
            received += more
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


def ask(server: Served, request: bytes) -> bytes:
    with server.connect() as connection:
        connection.sendall(request)
        return everything(connection)


def predict(server: Served) -> int:
    return httpx.post(f"{server.url}/v1/predict", files={"image": ("a.png", png())}).status_code


def trickle(connection: socket.socket, stop: threading.Event) -> None:
    with suppress(OSError):
        while not stop.wait(0.2):
            connection.sendall(b"a")


@pytest.mark.parametrize("begun", [b"GET /v1/he", HEALTH + b"X: ", HEALTH + b"\r\n" + HEALTH])
def test_a_header_has_its_time_however_it_trickles(server: Served, begun: bytes) -> None:
    stop = threading.Event()
    with server.connect() as connection:
        start = time.monotonic()
        connection.sendall(begun)
        other = threading.Thread(target=trickle, args=(connection, stop))
        other.start()
        received = everything(connection)
        stop.set()
        other.join()
    assert HEADER_TIMEOUT - 0.1 < time.monotonic() - start < HEADER_TIMEOUT + 3
    assert statuses(received) == [200, 408] if HEALTH + b"\r\n" in begun else [408]
    assert b"too slowly" in received
    assert b"x-content-type-options: nosniff" in received


def test_a_connection_that_says_nothing_is_closed_without_a_word(server: Served) -> None:
    start = time.monotonic()
    assert ask(server, b"") == b""
    assert time.monotonic() - start < HEADER_TIMEOUT + 3


def test_slow_headers_keep_nobody_out(server: Served) -> None:
    """Four times as many as may be connected, all the time: those longest there make room."""
    stop = threading.Event()

    def occupy() -> None:
        while not stop.is_set():
            with suppress(OSError), server.connect() as connection:
                connection.sendall(HEALTH + b"X: ")
                trickle(connection, stop)

    others = [threading.Thread(target=occupy) for _ in range(4 * CONNECTIONS)]
    for one in others:
        one.start()
    until(lambda: len(server.server.server_state.connections) >= CONNECTIONS)
    took = []
    for _ in range(10):
        start = time.monotonic()
        assert predict(server) == 200
        took.append(time.monotonic() - start)
        assert len(server.server.server_state.connections) <= CONNECTIONS + 1
    stop.set()
    for one in others:
        one.join()
    assert max(took) < 3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radgaze.inference.server.uploads.PATIENCE", 1.0)


@pytest.mark.usefixtures("impatient")
def test_an_upload_that_hardly_arrives_is_refused(server: Served) -> None:
    """Well before the request's time is over."""
    stop = threading.Event()
    with server.connect() as connection:
        start = time.monotonic()
        connection.sendall(UPLOAD + b"Content-Length: 100000\r\n\r\n" + PART)
        other = threading.Thread(target=trickle, args=(connection, stop))
        other.start()
        received = everything(connection)
        stop.set()
        other.join()
    assert statuses(received) == [408]
    assert b"32,768 bytes a second" in received
    assert 0.9 < time.monotonic() - start < TIMEOUT - 5


@pytest.mark.usefixtures("impatient")
def test_an_upload_at_a_fair_pace_may_take_longer_than_that(server: Served) -> None:
    body = PART + png() + bytes(150_000) + b"\r\n--x--\r\n"
    with server.connect() as connection:
        connection.sendall(UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for begin in range(0, len(body), 25_000):
            connection.sendall(body[begin : begin + 25_000])
            time.sleep(0.3)
        assert statuses(everything(connection)) == [200]


def test_slow_uploads_make_room_when_others_wait(server: Served) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(QUEUE)]
        for one in slow:
            one.sendall(UPLOAD + b"Content-Length: 100000\r\n\r\n" + PART)
        until(lambda: server.app.state.service.requests == QUEUE)
        start = time.monotonic()
        assert predict(server) == 503
        until(lambda: predict(server) == 200, seconds=3)
        assert time.monotonic() - start < 3  # and not the five seconds that they have when nobody waits
        assert [statuses(everything(one)) for one in slow] == [[408]] * QUEUE


@pytest.mark.parametrize("requests", [1, 20])
def test_an_answer_that_is_not_taken_is_let_go(requests: int) -> None:
    """Be it more than is written at once or less."""
    with Served({"unet": formula_predictor()}, timeout=1.0) as server, socket.socket() as connection:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * requests)
        open_ = server.server.server_state.connections
        until(lambda: any(one.transport.get_write_buffer_size() for one in open_))
        start = time.monotonic()
        until(lambda: not open_)
        assert 0.5 < time.monotonic() - start < 4  # uvicorn's own limit, after which it waits for ever, is 5


def test_a_client_that_leaves_is_no_failure_of_the_server(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "radgaze.server")
    with server.connect() as connection:
        connection.sendall(UPLOAD + b"Content-Length: 100000\r\n\r\n" + PART)
        until(lambda: server.app.state.service.requests == 1)
    until(lambda: bool(caplog.records))
    assert re.fullmatch(r"POST /v1/predict 499 \d+ ms", caplog.records[0].getMessage())


CHUNKED = UPLOAD + b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\n\r\n",
        HEALTH + b"Host: evil.example\r\n\r\n",
        HEALTH + b"Content-Length : 5\r\n\r\nabcde",
        HEALTH + b"a: b\r\n" * 20_000 + b"\r\n",
        HEALTH + b"a: " + b"b" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        UPLOAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        UPLOAD + b"Content-Length: +5\r\n\r\nabcde",
        UPLOAD + b"Content-Length: -5\r\n\r\nabcde",
        UPLOAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nabcde",
        UPLOAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        CHUNKED + b"\r\nzz\r\n",
        CHUNKED + b"\r\n-1\r\n",
        CHUNKED + b"\r\n" + b"f" * 40 + b"\r\n",
    ],
)
def test_what_is_no_http_is_answered_once_and_closed(server: Served, request_: bytes) -> None:
    received = ask(server, request_)
    assert statuses(received) == [400]
    head, _, body = received.partition(b"\r\n\r\n")
    assert list(json.loads(body)) == ["error"]
    assert b"connection: close" in head
    assert b"default-src 'none'" in head


@pytest.mark.parametrize("first", [b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", b""])
def test_a_request_cannot_be_hidden_in_anothers_body(server: Served, first: bytes) -> None:
    """Two lengths are refused; after an answer to a body that was not read to its end nothing more is answered."""
    hidden = HEALTH + b"\r\n"
    request = UPLOAD + (first or b"Content-Length: %d\r\n" % (len(hidden) + 100)) + b"\r\n0\r\n\r\n" + hidden
    received = ask(server, request.replace(b"multipart/form-data; boundary=x", b"text/plain"))
    assert statuses(received) == [400]
    assert b"connection: close" in received


def test_a_body_that_breaks_after_its_answer_began(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(CHUNKED.replace(b"multipart/form-data; boundary=x", b"text/plain") + b"\r\n5\r\nabcde\r\n")
        time.sleep(0.3)  # the refusal is on its way, and the rest of the body is being thrown away
        connection.sendall(b"zz\r\n")
        assert statuses(everything(connection)) == [400]


@pytest.mark.parametrize("protocol", [b"websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13", b"h2c"])
def test_nothing_is_upgraded(server: Served, protocol: bytes) -> None:
    received = ask(server, HEALTH + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n")
    assert statuses(received) == [200]
    assert b"upgrade" not in received.lower()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"TRACE / HTTP/1.1\r\nHost: localhost\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET http://evil.example/v1/health HTTP/1.1\r\nHost: evil.example\r\n", 400),
        (b"GET /static/%00 HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET /static/" + b"a" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET /static/" + b"%2e%2e%2f" * 9 + b"etc/passwd HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET /static/..\\..\\app.py HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET /static/%ff%ed%a0%80 HTTP/1.1\r\nHost: localhost\r\n", 404),
    ],
)
def test_odd_places_and_methods(server: Served, request_: bytes, status: int) -> None:
    assert statuses(ask(server, request_ + b"Connection: close\r\n\r\n")) == [status]


@pytest.mark.parametrize("way", ["length", "chunked", "lie"])
def test_an_upload_beyond_the_limit_ends_there(server: Served, way: str) -> None:
    size = {
        "length": b"Content-Length: 2000000",
        "chunked": b"Transfer-Encoding: chunked",
        "lie": b"Content-Length: 99",
    }
    with server.connect() as connection:
        connection.sendall(UPLOAD + size[way] + b"\r\n\r\n")
        with suppress(OSError):
            connection.sendall(b"%x\r\n" % (len(PART) + 2_000_000) if way == "chunked" else b"")
            connection.sendall(PART + bytes(2_000_000))
        assert statuses(everything(connection))[0] == (400 if way == "lie" else 413)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (b'content-disposition: form-data; name="' + b"n" * 900_000 + b'"\r\n\r\n', "damaged"),
        (b"a: b\r\n" * 100_000 + b"\r\n", "damaged"),
        (b'content-disposition: form-data; name="image"' + b"; a=b" * 800 + b"\r\n\r\n", "one"),
        (b'content-disposition: form-data; name="other"\r\n\r\n', "'image' alone"),
    ],
)
def test_a_form_that_swells_is_refused_at_once(server: Served, part: bytes, said: str) -> None:
    start = time.monotonic()
    body = b"--x\r\n" + part + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.url}/v1/predict", content=body, headers=headers)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert time.monotonic() - start < 3


def test_thousands_of_parts_end_at_the_limit(server: Served) -> None:
    body = PART.replace(b'"image"', b'"images"') * 10_000
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.url}/v1/predict/batch", content=body, headers=headers)
    assert answer.status_code == 413
    assert "more than 64 files" in answer.json()["error"]


def test_a_compressed_body_is_not_unpacked(server: Served) -> None:
    body = gzip.compress(PART + bytes(50_000_000))
    headers = {"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"}
    answer = httpx.post(f"{server.url}/v1/predict", content=body, headers=headers)
    assert answer.status_code == 400


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the open files of a process are read from /proc")
def test_connections_leave_no_open_file(server: Served) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    predict(server)
    until(lambda: not server.server.server_state.connections)
    before = opened()
    for _ in range(3 * CONNECTIONS):
        with server.connect() as connection:
            connection.sendall(HEALTH + b"X: ")
    predict(server)
    until(lambda: not server.server.server_state.connections)
    until(lambda: opened() <= before)
