"""A server process: what reaches the disk, clients that are slow or send too much, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from radgaze.cli import app
from radgaze.errors import InputError
from radgaze.training import Run
from tests.inference.server.conftest import png

TOKEN = "a-token-of-some-length"
FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\ncontent-disposition: form-data; name="image"; filename="Doe^Jane.png"\r\n\r\n'


@dataclass
class Serving:
    process: subprocess.Popen[str]
    port: int
    log: Path
    spool: Path

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def begin(self, length: int | None, token: str = TOKEN) -> socket.socket:
        """A connection on which an upload of ``length`` bytes was announced; None: chunked."""
        size = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        connection = self.connect()
        connection.sendall(f"{head}Content-Type: {FORM}\r\n{size}\r\n\r\n".encode())
        return connection


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(1 << 16)
        assert more, "the connection was closed without an answer"
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
    while len(body) < length:
        more = connection.recv(1 << 16)
        assert more, "the answer was cut short"
        body += more
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def serving(unet: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "spool").mkdir()
    (folder / "token").write_text(TOKEN)
    log = folder / "log"
    command = [sys.executable, "-m", "radgaze.cli", "serve", str(unet.path), "--port", "0", "--timeout", "3"]
    command += ["--token-file", str(folder / "token"), "--max-megabytes", "8", "--threads", "1"]
    environment = {**os.environ, "TMPDIR": str(folder / "spool"), "COLUMNS": "200"}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line + log.read_text()
        yield Serving(process, int(found[1]), log, folder / "spool")
    finally:
        process.kill()
        process.wait()


def upload(image: bytes) -> bytes:
    return PART + image + b"\r\n--x--\r\n"


def test_an_upload_is_answered_and_the_connection_kept(serving: Serving) -> None:
    body = upload(png())
    with serving.begin(len(body)) as connection:
        connection.sendall(body)
        assert answer(connection)[0] == 200
        connection.sendall(
            b"GET /v1/health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
        )
        assert json.loads(answer(connection)[1])["ready"] is True


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the open files of a process are read from /proc")
def test_nothing_of_an_upload_reaches_the_disk(serving: Serving) -> None:
    """Halfway through 6 MB there is no file, not even one without a name, that was not there before."""
    fds = Path(f"/proc/{serving.process.pid}/fd")

    def opened() -> set[str]:
        targets = []
        for fd in fds.iterdir():
            with suppress(FileNotFoundError):  # a connection that has just ended
                targets.append(os.readlink(fd))
        return {target for target in targets if target.startswith("/")}

    before = opened()
    with serving.begin(6_000_000) as connection:
        connection.sendall(PART + bytes(5_000_000))
        time.sleep(0.5)
        assert opened() <= before
        assert list(serving.spool.iterdir()) == []
        assert answer(connection)[0] == 504  # and it never ends
    assert list(serving.spool.iterdir()) == []


def test_a_slow_upload_is_ended(serving: Serving) -> None:
    start = time.monotonic()
    with serving.begin(1_000_000) as connection:
        connection.sendall(PART)
        status, body = answer(connection)
        assert status == 504
        assert "3 seconds" in json.loads(body)["error"]
        assert time.monotonic() - start < 10
        connection.settimeout(10)
        assert connection.recv(1) == b""  # closed: the rest of the body must not be taken for a request


@pytest.mark.parametrize("announced", [True, False])
def test_too_much_is_refused_while_it_arrives(serving: Serving, announced: bool) -> None:
    """The client gets its answer although it goes on sending."""
    with serving.begin(11_000_000 if announced else None) as connection:
        for _ in range(11):
            piece = bytes(1_000_000)
            connection.sendall(piece if announced else b"%x\r\n" % len(piece) + piece + b"\r\n")
        status, body = answer(connection)
        assert status == (413 if announced else 400)
        assert "error" in json.loads(body)


def test_without_the_token_nothing_is_read(serving: Serving) -> None:
    with serving.begin(1_000_000, token="a-token-that-is-wrong") as connection:
        assert answer(connection)[0] == 401


def test_what_is_under_way_is_finished_and_the_code_is_0(serving: Serving) -> None:
    """The last test of this process: SIGTERM in the middle of an upload."""
    body = upload(png())
    with serving.begin(len(body)) as connection:
        connection.sendall(body[:100])
        time.sleep(0.5)
        serving.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError, match="refused"):
            serving.connect()
        connection.sendall(body[100:])
        assert answer(connection)[0] == 200
    assert serving.process.wait(20) == 0
    log = serving.log.read_text()
    assert " POST /v1/predict 200 " in log
    for secret in ("Doe", TOKEN, "Traceback", str(serving.spool)):
        assert secret not in log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--token-file", "none"], "cannot be read"),
        (["--threads", "0"], "threads is 0"),
        (["--queue", "0"], "queue"),
    ],
)
def test_options_that_cannot_be(unet: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str) -> None:
    monkeypatch.delenv("RADGAZE_TOKEN", raising=False)
    with pytest.raises(InputError, match=said):
        app(["serve", str(unet.path), *options], standalone_mode=False)


def test_a_port_that_is_taken(unet: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="Cannot listen"):
            app(["serve", str(unet.path), "--port", str(taken.getsockname()[1])], standalone_mode=False)


def test_a_missing_extra_is_named(unet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("radgaze.inference.server")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"radgaze\[serve\]"):
        app(["serve", str(unet.path)], standalone_mode=False)
