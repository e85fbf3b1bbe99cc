"""Pieces of work for the nodes of a cluster."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from radgaze.errors import InputError


def trace(log: str, number: int, stuck_on: str = "", seconds: float = 0.1) -> tuple[int, str]:
    """Write down that the piece has begun, and where; on one node it does not end."""
    ray: Any = __import__("ray")
    node = ray.get_runtime_context().get_node_id()
    with Path(log).open("a") as file:
        file.write(f"{number} {node}\n")  # short enough to be written at once
    time.sleep(600 if node == stuck_on else seconds)
    return number, os.environ["OMP_NUM_THREADS"]


def refuse(number: int) -> None:
    raise InputError(f"Number {number} is refused.")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def read(relative: str) -> str:
    return Path(relative).read_text()
