"""A folder in memory for readers that want files."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

__all__ = ["scratch"]

MEMORY = Path("/dev/shm")


@cache
def scratch(name: str) -> Path:
    """The folder ``name``, of this process alone; it goes when the process ends."""
    folder = Path(_root().name, name)
    folder.mkdir()
    return folder


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="radgaze-fuzz-", dir=MEMORY if MEMORY.is_dir() else None)
