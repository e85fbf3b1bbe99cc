"""Files that run code when a careless reader opens them. What they would run makes a folder, and nothing else."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Trap", "traps"]


class Trap:
    """Unpickling it makes the folder ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.makedirs, (str(self.marker),)


def traps(marker: Path) -> dict[str, bytes]:
    """Every form that a pickle is found in, by name."""
    trap = Trap(marker)
    state = {"weight": torch.zeros(2), "trap": trap}
    forms = {f"pickle {protocol}": pickle.dumps(trap, protocol) for protocol in (0, 2, 5)}
    forms["gzip"] = gzip.compress(pickle.dumps(trap))
    forms["torch zip"] = _written(lambda file: torch.save(state, file))
    forms["torch legacy"] = _written(lambda file: torch.save(state, file, _use_new_zipfile_serialization=False))
    forms["npy"] = _written(lambda file: np.save(file, np.array([trap], object), allow_pickle=True))
    forms["npz"] = _written(lambda file: np.savez(file, images=np.array([trap], object)))
    forms["zip slip"] = _zip({"../../../trap.py": b"raise SystemExit", "data.pkl": pickle.dumps(trap)})
    return forms


def _written(write: Any) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
