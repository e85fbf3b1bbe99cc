"""A real server in a process of its own."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys, time
from radgaze.errors import InputError
from radgaze.inference.server import Settings, create_app
from radgaze.inference.server.running import run
from tests.inference.predictors import formula_predictor

predictor = formula_predictor(("logits", "cams"))
engine = predictor.engine

class Slow:
    name = "slow"
    def __call__(self, images):
        time.sleep(0.5)
        return engine(images)

predictor.engine = Slow()
settings = Settings(port=int(sys.argv[1]), timeout=4, grace=5, max_bytes=64 << 20)
try:
    run(create_app({"slow": predictor}, None, settings), settings, lambda url: print(url, flush=True))
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
Start = Callable[[int], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def begin(port: int = 0) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def picture(side: int = 40) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def test_from_start_to_stop(start: Start, tmp_path: Path) -> None:
    process = start(0)
    url = address(process)
    assert url.startswith("http://127.0.0.1:")

    # a second one on the same port
    port = int(url.rsplit(":", 1)[1])
    second = start(port)
    assert second.wait(60) == 2
    assert second.stderr is not None
    assert f"Cannot listen on '127.0.0.1', port {port}" in second.stderr.read()

    # a large upload: nothing of it reaches a disk, neither a file that stays nor one that is open meanwhile
    opened: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for link in Path(f"/proc/{process.pid}/fd").glob("*"):
                try:
                    opened.add(os.readlink(link))
                except OSError:
                    continue
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = set(tmp_path.rglob("*"))
    answer = httpx.post(
        f"{url}/v1/predict?maps=false&preview=false", files={"image": ("a.png", picture(3000))}, timeout=60
    )
    done.set()
    watcher.join()
    assert answer.status_code == 200, answer.text
    assert set(tmp_path.rglob("*")) == before
    assert not [name for name in opened if "(deleted)" in name or name.startswith((str(tmp_path), "/tmp/"))]

    # an upload that trickles in: told when its time is over, and others are served meanwhile
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 100000\r\n\r\n--b\r\n"
        )
        assert httpx.get(f"{url}/v1/health").json()["ready"] is True
        slow.settimeout(20)
        assert b" 504 " in slow.recv(100)

    # told to stop: what is under way is answered, then it ends well
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/v1/predict", files={"image": ("a.png", picture())}, timeout=30).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.25)
    process.send_signal(signal.SIGTERM)
    asking.join()
    assert answers == [200]
    assert process.wait(30) == 0
    assert process.stderr is not None
    log = process.stderr.read()
    assert "POST /v1/predict 504" in log
    assert "a.png" not in log
    assert "Traceback" not in log
