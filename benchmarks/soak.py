"""The server in a crowd for as long as you like: does it answer everything, and is its memory flat?

    python benchmarks/soak.py [--minutes 10] [--clients 32]

It trains an MT-UNet of width 16 for an epoch on synthetic studies of 160x128 pixels, and serves it with its cohort in a
process of its own. In another, each client goes on asking, one request after the other, in an order drawn by chance:
predictions of DICOM, PNG and JPEG files with and without maps, batches, the studies' pages, health, cards and metrics;
and, one in seven, requests that cannot be answered and uploads that are broken off. Every answer must have the status
that its request deserves. Resident memory, open files and threads of the server are read every ten seconds; the slope
is a least-squares line through the memory after the first two minutes (a fifth of a shorter run), in which caches fill
and the allocator finds its size.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
from PIL import Image

from _bench import machine, markdown, write_figures
from serving import BOUNDARY, Server, form, synthetic

EVERY = 10.0  # seconds between two looks at the server
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
Connection = http.client.HTTPConnection


@dataclass(frozen=True)
class Kind:
    """A request that clients make.

    Attributes:
        weight: how often, beside the others'.
        status: what its answer must have.
        ask: sends it; a request that has no answer returns its status itself.
    """

    weight: int
    status: int
    ask: Callable[[Connection, random.Random], int | None]


def kinds(files: dict[str, list[bytes]], studies: int) -> dict[str, Kind]:
    """What is asked.

    Args:
        files: Images by their format.
        studies: How many the cohort has.
    """

    def get(path: str, **headers: str) -> Callable[[Connection, random.Random], None]:
        return lambda connection, chance: connection.request(
            "GET", path.format(chance.randrange(studies)), headers=headers
        )

    def predict(kind: str, query: str) -> Callable[[Connection, random.Random], None]:
        bodies = [form(content) for content in files[kind]]
        return lambda connection, chance: connection.request(
            "POST", f"/v1/predict?{query}", chance.choice(bodies), FORM
        )

    def batch(connection: Connection, chance: random.Random) -> None:
        parts = [form(chance.choice(chance.choice(list(files.values())))) for _ in range(4)]
        end = f"--{BOUNDARY}--\r\n".encode()
        body = b"".join(part.removesuffix(end).replace(b'"image";', b'"images";') for part in parts) + end
        connection.request("POST", "/v1/predict/batch", body, FORM)

    def leave(connection: Connection, chance: random.Random) -> int:
        """Break off in the middle of an upload."""
        body = form(chance.choice(files["DICOM"]))
        connection.putrequest("POST", "/v1/predict")
        connection.putheader("Content-Type", FORM["Content-Type"])
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[: chance.randrange(len(body))])
        connection.close()
        return 0

    def post(body: bytes, headers: dict[str, str]) -> Callable[[Connection, random.Random], None]:
        return lambda connection, _: connection.request("POST", "/v1/predict", body, headers)

    return {
        "predict DICOM, maps and preview": Kind(10, 200, predict("DICOM", "maps=true")),
        "predict DICOM": Kind(10, 200, predict("DICOM", "maps=false&preview=false")),
        "predict PNG": Kind(10, 200, predict("PNG", "maps=false&preview=false")),
        "predict JPEG": Kind(10, 200, predict("JPEG", "maps=true&preview=false")),
        "batch of 4": Kind(4, 200, batch),
        "health": Kind(4, 200, get("/v1/health")),
        "models": Kind(4, 200, get("/v1/models")),
        "metrics": Kind(4, 200, get("/metrics")),
        "OpenAPI": Kind(1, 200, get("/openapi.json")),
        "page": Kind(2, 200, get("/static/main.js")),
        "studies": Kind(4, 200, get("/v1/cohort/studies?limit=20&offset={}")),
        "study": Kind(4, 200, get("/v1/cohort/studies/{}")),
        "gaze": Kind(4, 200, get("/v1/cohort/studies/{}/gaze")),
        "predict study": Kind(6, 200, get("/v1/cohort/studies/{}/predict")),
        "no image": Kind(2, 400, post(form(b"no image at all"), FORM)),
        "cut image": Kind(2, 400, post(form(files["DICOM"][0][: len(files["DICOM"][0]) // 2]), FORM)),
        "no form": Kind(2, 400, post(b"{}", {"Content-Type": "application/json"})),
        "another host": Kind(1, 400, get("/v1/health", Host="elsewhere.example")),
        "nowhere": Kind(2, 404, get("/v1/nowhere/{}")),
        "out of range": Kind(2, 422, get("/v1/cohort/studies?limit=0")),
        "broken off": Kind(2, 0, leave),
    }


def crowd(pipe: Any, files: dict[str, list[bytes]], port: int, studies: int, clients: int, seconds: float) -> None:
    """Ask until the time is over; then send (kind, seconds, what was wrong or None) of every request."""
    asked, end = kinds(files, studies), time.monotonic() + seconds
    names, weights = list(asked), [kind.weight for kind in asked.values()]
    found: list[tuple[str, float, str | None]] = []

    def work(seed: int) -> None:
        chance, connection = random.Random(seed), Connection("127.0.0.1", port, timeout=120)
        while time.monotonic() < end:
            (name,) = chance.choices(names, weights)
            start, wrong = time.perf_counter(), None
            try:
                status = asked[name].ask(connection, chance)
                content = b""
                if status is None:
                    answer = connection.getresponse()
                    status, content = answer.status, answer.read()
                if status != asked[name].status:
                    wrong = f"{status} {content[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                wrong = repr(error)
            found.append((name, time.perf_counter() - start, wrong))
        connection.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(found)


def encoded(file: Path, kind: str) -> bytes:
    """A radiograph's pixels, 8 bits of them, in another format."""
    pixels = pydicom.dcmread(file).pixel_array.astype(np.float64)
    content = io.BytesIO()
    scaled = (255 * (pixels - pixels.min()) / max(np.ptp(pixels), 1)).astype(np.uint8)
    Image.fromarray(scaled).save(content, kind)
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    started = machine()
    with tempfile.TemporaryDirectory() as folder:
        run, images = synthetic(Path(folder))
        files = {"DICOM": [image.read_bytes() for image in images[:8]]}
        files |= {kind: [encoded(image, kind) for image in images[8:12]] for kind in ("PNG", "JPEG")}
        server = Server(run, ["--cohort", str(Path(folder) / "cohort"), "--threads", "1"])
        found, looks = soak(server, files, arguments.clients, 60 * arguments.minutes)
        server.stop()
    print(f"{arguments.clients} clients for {arguments.minutes:g} minutes; {started}\n")
    figures = [*answers(found), *memory(looks)]
    write_figures(arguments.json, started, figures)
    wrong = [(kind, why) for kind, _, why in found if why]
    if wrong or server.process.returncode:
        raise SystemExit(f"{len(wrong)} requests were not answered as they should be: {wrong[:5]}")


def soak(
    server: Server, files: dict[str, list[bytes]], clients: int, seconds: float
) -> tuple[list[tuple[str, float, str | None]], list[tuple[float, float, int, int]]]:
    """What the crowd found, and (minute, MB, open files, threads) of the server meanwhile."""
    connection = Connection("127.0.0.1", server.port)
    connection.request("GET", "/v1/models")
    studies = json.loads(connection.getresponse().read())["cohort"]["studies"]
    connection.close()
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=crowd, args=(theirs, files, server.port, studies, clients, seconds), daemon=True)
    process.start()
    watched, looks, start = psutil.Process(server.process.pid), [], time.monotonic()
    while not pipe.poll(EVERY):
        with watched.oneshot():
            size, opened, threads = watched.memory_info().rss / 1e6, watched.num_fds(), watched.num_threads()
        looks.append(((time.monotonic() - start) / 60, size, opened, threads))
        print(f"minute {looks[-1][0]:4.1f}: {size:,.0f} MB, {opened} files, {threads} threads", flush=True)
    found = pipe.recv()
    process.join()
    return found, looks


def answers(found: list[tuple[str, float, str | None]]) -> list[dict[str, Any]]:
    """Print the table of requests."""
    rows, figures = [], []
    for name in [*sorted({name for name, *_ in found}), "all"]:
        mine = [(seconds, wrong) for kind, seconds, wrong in found if name in (kind, "all")]
        shown = [1000 * float(value) for value in np.percentile([seconds for seconds, _ in mine], (50, 95, 99))]
        errors = sum(wrong is not None for _, wrong in mine)
        rows.append([name, f"{len(mine):,}", str(errors), *(f"{value:,.0f}" for value in shown)])
        figures.append({"work": name, "requests": len(mine), "errors": errors, "latency ms, p50 p95 p99": shown})
    print("\n" + markdown(["request", "count", "errors", "p50, ms", "p95", "p99"], rows) + "\n")
    return figures


def memory(looks: list[tuple[float, float, int, int]]) -> list[dict[str, Any]]:
    """Print how memory, open files and threads went after the beginning."""
    settled = [look for look in looks if look[0] >= min(2.0, looks[-1][0] / 5)]
    minutes, sizes, opened, threads = (list(column) for column in zip(*settled, strict=True))
    slope = 60 * statistics.linear_regression(minutes, sizes).slope
    print(
        f"Memory {sizes[0]:,.0f} MB at minute {minutes[0]:.1f}, {sizes[-1]:,.0f} MB at minute {minutes[-1]:.1f} (least "
        f"{min(sizes):,.0f}, most {max(sizes):,.0f}); slope {slope:+,.0f} MB an hour; open "
        f"files {min(opened)} to {max(opened)}, threads {min(threads)} to {max(threads)}"
    )
    return [
        {"work": "memory", "MB": sizes, "minute": minutes, "MB an hour": slope, "files": opened, "threads": threads}
    ]


if __name__ == "__main__":
    main()
