"""What every speed benchmark shares: ways that take turns, rows of one table, the machine and what it can do at most.

A benchmark is a file with ``measure(rounds) -> list[Row]``. Run alone it prints its rows; ``suite.py`` runs them all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from radgaze.training.config import RunConfig
from radgaze.training.trainer import auto_precision

Way = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One piece of work, done in the reference's way and in radgaze's.

    Attributes:
        work, reference: what was done, and by what it was done instead.
        theirs, ours: what both took: medians over rounds, in ``unit``.
        ratio, least, most: theirs over ours: median and extremes of the rounds' own ratios.
        target: the ratio aimed at.
        floor, bound: what the machine cannot go below for this work, and why (measured in the same process).
        check: how far the two results are apart.
    """

    work: str
    reference: str
    theirs: float
    ours: float
    ratio: float
    least: float
    most: float
    unit: str = "ms"
    target: float | None = None
    floor: float | None = None
    bound: str = ""
    check: str = ""


@dataclass(frozen=True)
class Floor:
    """The least time that work can take on this machine, and what bounds it."""

    seconds: float
    bound: str


def alternate(ways: dict[str, Way], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every call. Each round runs every way once, so that a busy moment hurts all of them alike."""
    for _ in range(warm_up):
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(reference: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """How many times faster ``other`` was: median, least and greatest of the rounds' own ratios."""
    ratios = [a / b for a, b in zip(reference, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def row(
    work: str,
    reference: str,
    reference_seconds: Sequence[float],
    seconds: Sequence[float],
    *,
    target: float | None = None,
    floor: Floor | None = None,
    check: str = "",
) -> Row:
    """A row from the seconds of the rounds, in the order in which they took turns."""
    return Row(
        work,
        reference,
        1000 * statistics.median(reference_seconds),
        1000 * statistics.median(seconds),
        *ratio(reference_seconds, seconds),
        target=target,
        floor=None if floor is None else 1000 * floor.seconds,
        bound="" if floor is None else floor.bound,
        check=check,
    )


# What the machine can do ---------------------------------------------------------------------------------------------


@cache
def bandwidth() -> float:
    """Bytes a second, read and written, of a copy that no cache holds; all torch threads, the best of several."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best(lambda: target.copy_(source))


@cache
def gemm_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a square matrix product, all torch threads, the best of several."""
    side = 2048
    a, b = (torch.rand(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / best(lambda: a @ b)


@cache
def conv_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a 3x3 convolution, 256 to 256 channels, 56x56 pixels, channels last."""
    images = torch.rand(4, 256, 56, 56).to(dtype).contiguous(memory_format=torch.channels_last)
    weights = torch.rand(256, 256, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    operations = 2 * 4 * 256 * 256 * 9 * 56 * 56
    with torch.inference_mode():
        return operations / best(lambda: functional.conv2d(images, weights, padding=1))


def fast_types() -> dict[str, torch.dtype]:
    """fp32, and bf16 where the processor computes in it: emulated, it is a thousand times slower."""
    bf16 = auto_precision(RunConfig(accelerator="cpu")) == "bf16"
    return {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if bf16 else {})


def conv_floor(operations: float) -> Floor:
    """The time of so many operations at the rate of a convolution, in the type that is fastest."""
    rate, name = max((conv_rate(dtype), name) for name, dtype in fast_types().items())
    return Floor(operations / rate, f"arithmetic in {name}")


def best(way: Way, rounds: int = 5) -> float:
    """Seconds of the fastest call: a rate's limit is what it reaches when nothing is in the way."""
    return min(alternate({"": way}, rounds)[""])


def bytes_floor(*tensors: Tensor, passes: float = 1) -> Floor:
    """The time to move the tensors once through the memory."""
    moved = passes * sum(tensor.nbytes for tensor in tensors)
    return Floor(moved / bandwidth(), "memory")


def machine() -> str:
    """One line: processor, its vectors, cores, threads, versions, load."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{model}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}{load}"
    )


def limits() -> str:
    """One line: what was measured of the machine."""

    def rates(measure: Callable[[torch.dtype], float]) -> str:
        found = [f"{measure(dtype) / 1e9:,.0f} GFLOP/s in {name}" for name, dtype in fast_types().items()]
        return ", ".join(found)

    return f"memory {bandwidth() / 1e9:.0f} GB/s; matrix product {rates(gemm_rate)}; 3x3 convolution {rates(conv_rate)}"


def peak_mb() -> float:
    """Peak resident size of this process. Not getrusage: its figure starts from that of the process that forked."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


# The table -----------------------------------------------------------------------------------------------------------

HEADER = ("work", "reference", "its", "radgaze's", "ratio (least to most)", "target", "floor", "difference")


def table(rows: Sequence[Row]) -> str:
    """Markdown."""

    def cells(row: Row) -> tuple[str, ...]:
        return (
            row.work,
            row.reference,
            f"{digits(row.theirs)} {row.unit}",
            f"{digits(row.ours)} {row.unit}",
            f"{digits(row.ratio)} ({digits(row.least)} to {digits(row.most)})",
            "" if row.target is None else f"{row.target:,g}",
            "" if row.floor is None else f"{digits(row.floor)} {row.unit} ({row.bound})",
            row.check,
        )

    return markdown(HEADER, [cells(row) for row in rows])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_figures(file: Path | None, started: str, rows: Sequence[dict[str, Any]]) -> None:
    """What the suite collects: the machine as it was at the start, what it can do, and the rows."""
    if file is not None:
        file.write_text(json.dumps({"machine": started, "limits": limits(), "rows": rows}, indent=1) + "\n")


def digits(value: float) -> str:
    """Three of them, and all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def run(
    measure: Callable[[int], list[Any]],
    rounds: int,
    doc: str | None,
    shown: Callable[[Any], str] = table,
) -> None:
    """The command line of a benchmark: its rows (each a :class:`Row` unless ``shown`` says) as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    arguments = parser.parse_args()
    started = machine()
    rows = measure(arguments.rounds)
    print(f"{arguments.rounds} rounds; {started}\n{limits()}\n\n{shown(rows)}")
    write_figures(arguments.json, started, [asdict(row) for row in rows])
