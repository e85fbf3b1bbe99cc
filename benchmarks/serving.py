"""The server against the predictor behind it: throughput, latency of a crowd, and the first prediction after a start.

    python benchmarks/serving.py [RUN IMAGE...] [--rounds N] [--images N] [--clients N] [--engine NAME]

Without a run it trains an MT-UNet of width 16 for an epoch on synthetic studies of 160x128 pixels, and asks about them.

The server runs in a process of its own (`radgaze serve`), the clients in another, on keep-alive connections; each
client sends its next image when the last one is answered. Every round sends the same images once through the server,
once through the predictor in this process, which reads the same bytes (`predict_all`), and once as forward passes
alone, on inputs that were read before. All take turns, so that a busy machine hurts them alike. A throughput is the
median over rounds, a ratio the median of the rounds' own ratios, with the extremes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from _bench import alternate, machine, ratio, write_figures
from radgaze.cohort.phantom import make_phantom
from radgaze.cohort.pixels import Upload
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.inference import Predictor, load
from radgaze.training import fit

BOUNDARY = "radgaze-benchmark"


def form(image: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="image"; filename="image"\r\n\r\n'
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def crowd(port: int, bodies: list[bytes], clients: int, query: str) -> list[float]:
    """Seconds of each request, in the order of their answers."""
    waiting, seconds, failed = deque(bodies), [], []

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            try:
                body = waiting.popleft()
            except IndexError:
                connection.close()
                return
            start = time.perf_counter()
            headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            connection.request("POST", f"/v1/predict?{query}", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            seconds.append(time.perf_counter() - start)
            if answer.status != 200:
                failed.append(content)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0][:200]!r}")
    return seconds


def client_process(pipe: Any, bodies: list[bytes]) -> None:
    while job := pipe.recv():
        pipe.send(crowd(*job[:1], (bodies * job[1])[: job[1]], *job[2:]))


class Clients:
    """The crowd, in a process of its own."""

    def __init__(self, bodies: list[bytes]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=client_process, args=(theirs, bodies), daemon=True)
        self.process.start()

    def __call__(self, port: int, count: int, clients: int, query: str) -> list[float]:
        self.pipe.send((port, count, clients, query))
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join()


class Server:
    def __init__(self, run: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "radgaze.cli", "serve", str(run), "--port", "0", *options]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "COLUMNS": "200"}
        )
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        if not found:
            raise RuntimeError("the server did not start")
        self.port, self.start_seconds = int(found[1]), time.perf_counter() - start

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(100 * share) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("image", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=96, help="a round; the files are repeated")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    if arguments.run and not arguments.image:
        parser.error("give images beside the run")
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.run:
            arguments.run, arguments.image = synthetic(Path(folder))
        measure(arguments)


def synthetic(folder: Path) -> tuple[Path, list[Path]]:
    data = make_phantom(folder / "data", studies=60, progress=False)
    images = data / "mimic-cxr"
    cohort = import_egd_cxr(data / "egd-cxr", images, folder / "cohort", size=(160, 128), progress=False)
    run = fit(cohort, folder / "run", "mt-unet", model={"width": 16}, epochs=1, progress=False)
    return run.path, sorted(images.rglob("*.dcm"))[:24]


def measure(arguments: argparse.Namespace) -> None:
    started = machine()
    contents = [path.read_bytes() for path in arguments.image]
    chosen = (contents * arguments.images)[: arguments.images]
    options = ["--engine", arguments.engine, "--batch-size", str(arguments.batch_size)]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        options += ["--threads", str(arguments.threads)]
    predictor: Predictor = load(arguments.run, arguments.engine, threads=arguments.threads)
    inputs = torch.stack([predictor.read(Upload(content, "image")).input for content in chosen])

    clients = Clients([form(content) for content in contents])
    first = []
    for _ in range(3):
        server = Server(arguments.run, options)
        first += clients(server.port, 1, 1, "maps=true")
        if len(first) < 3:
            server.stop()

    latencies: list[float] = []

    def through_server() -> None:
        latencies.extend(clients(server.port, arguments.images, arguments.clients, "maps=false&preview=false"))

    def through_predictor() -> None:
        uploads = (Upload(content, "image") for content in chosen)
        found = [one.to_json() for one in predictor.predict_all(uploads, batch_size=arguments.batch_size)]
        json.dumps(found)

    def forward() -> None:
        for batch in inputs.split(arguments.batch_size):
            predictor.engine(batch)

    ways = {"server": through_server, "predictor, with reading": through_predictor, "forward passes alone": forward}
    seconds = alternate(ways, arguments.rounds)
    latencies = latencies[arguments.images :]  # the first round warms up
    with_maps = clients(server.port, arguments.images, arguments.clients, "maps=true&preview=true")
    alone = clients(server.port, 20, 1, "maps=false&preview=false")
    server.stop()
    clients.stop()

    height, width = predictor.card.frame.size
    print(
        f"{predictor.card.method}, {predictor.card.facts['parameters']:,} parameters, {height}x{width}, engine "
        f"{predictor.engine.name}, batches of {arguments.batch_size}; {len(contents)} files of "
        f"{statistics.mean(map(len, contents)) / 1e6:.2f} MB; {arguments.images} images a round, {arguments.rounds} "
        f"rounds, {arguments.clients} clients; {started}\n"
    )
    figures: list[dict[str, Any]] = []
    print("| | images a second | the server's share (least to most) |")
    print("|---|---|---|")
    for name, values in seconds.items():
        rate, share = arguments.images / statistics.median(values), ratio(values, seconds["server"])
        print(f"| {name} | {rate:.1f} | {'' if name == 'server' else '{:.2f} ({:.2f} to {:.2f})'.format(*share)} |")
        figures.append({"work": name, "images a second": rate, "server's share": share})
    print("\n| latency, ms | p50 | p90 | p99 |")
    print("|---|---|---|---|")
    rows = {
        f"{arguments.clients} clients": latencies,
        f"{arguments.clients} clients, maps and preview": with_maps,
        "1 client": alone,
    }
    for name, values in rows.items():
        shown = [1000 * percentile(values, share) for share in (0.5, 0.9, 0.99)]
        print(f"| {name} | {' | '.join(f'{value:,.0f}' for value in shown)} |")
        figures.append({"work": name, "latency ms, p50 p90 p99": shown})
    print(
        f"\nFirst prediction with maps and preview after a start: {1000 * statistics.median(first):,.0f} ms (most of "
        f"three: {1000 * max(first):,.0f} ms); start to first answer possible: {server.start_seconds:.1f} s"
    )
    figures.append({"work": "first prediction after a start", "ms": [1000 * value for value in first]})
    write_figures(arguments.json, started, figures)


if __name__ == "__main__":
    main()
