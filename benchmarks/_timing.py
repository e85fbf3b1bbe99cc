"""Timing two or more ways of doing one thing on a machine that is never quite idle."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def alternate(ways: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
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


def ratio(reference: list[float], other: list[float]) -> tuple[float, float, float]:
    """How many times faster ``other`` was: median, least and greatest of the rounds' own ratios."""
    ratios = [a / b for a, b in zip(reference, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def machine() -> str:
    """One line: processor, cores, threads, versions, load."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}{load}"
    )
