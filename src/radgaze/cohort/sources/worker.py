"""The pixel worker: reads an image, resamples it and its masks, writes its row into the arrays.

The import engine runs this file as a child process (``python -m radgaze.cohort.sources.worker FOLDER [--shared]``) and
talks to it in lines of JSON. A plain child process rather than a pool of forks: it starts without torch, needs no guard
around the caller's script, pickles nothing, and a decoder that crashes on a damaged file takes down one study, not the
import.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from radgaze.cohort.pixels import UNKNOWN, read_image, read_mask, resample, resample_mask, unite_masks
from radgaze.errors import InputError, StorageError
from radgaze.files import storing

__all__ = ["IMAGES", "MASKS", "PixelWorker", "row_checksum"]

IMAGES, MASKS = "images.npy", "masks.npy"


class PixelWorker:
    """Reads one image at a time and places it in the arrays of ``folder``.

    Reading and placing are two steps because the grid follows from the size of the image that was read.

    Args:
        folder: The folder of work.
        shared: Other machines write to it too.
    """

    def __init__(self, folder: Path, shared: bool = False) -> None:
        self.images = _Rows(folder / IMAGES, shared)
        self.masks = _Rows(folder / MASKS, shared) if (folder / MASKS).exists() else None

    def answer(self, do: str, **message: Any) -> dict[str, Any]:
        """Do what a message asks. What cannot be done is an answer too: ``{"error": sentence}`` for a file that cannot
        be used, ``{"storage": sentence}`` for a disk that does not take the row.
        """
        try:
            return self.read(**message) if do == "read" else self.place(**message)
        except InputError as error:
            return {"error": str(error)}
        except StorageError as error:
            return {"storage": str(error)}

    def read(self, image: str, masks: list[list[str]]) -> dict[str, Any]:
        """Read the image and its masks (a list of files for each structure, empty where there is none)."""
        self._pixels, _ = read_image(Path(image))
        # a file may serve several structures: each lung is one, and both are the lungs
        read = {path: read_mask(Path(path)) for path in dict.fromkeys(chain.from_iterable(masks))}
        self._inside = [unite_masks([read[path] for path in paths]) if paths else None for paths in masks]
        for paths, inside in zip(masks, self._inside, strict=True):
            if inside is not None and inside.shape != self._pixels.shape:
                raise InputError(
                    f"Mask {paths[0]!r} is {inside.shape[0]}x{inside.shape[1]} pixels (height x width) but its image "
                    f"{image!r} is {self._pixels.shape[0]}x{self._pixels.shape[1]}; a mask must have its image's size."
                )
        return {"size": list(self._pixels.shape)}

    def place(self, row: int, grid: dict[str, Any]) -> dict[str, Any]:
        """Resample what was read last onto ``grid`` and write it to ``row``."""
        cells: Any = SimpleNamespace(**grid)
        image = resample(self._pixels, cells)
        self.images.write(row, image)
        masks = None
        if self.masks is not None:
            unknown = np.full(image.shape, UNKNOWN, np.uint8)
            masks = np.stack([unknown if inside is None else resample_mask(inside, cells) for inside in self._inside])
            self.masks.write(row, masks)
        return {"checksum": row_checksum(image, masks)}


class _Rows:
    """A ``.npy`` file written by rows; not through a memory map, whose pages would all count as this process's own."""

    def __init__(self, path: Path, shared: bool) -> None:
        array = np.lib.format.open_memmap(path, mode="r")
        self.row_shape, self.dtype = array.shape[1:], array.dtype
        self.row_bytes = array.nbytes // len(array)
        self.start = path.stat().st_size - array.nbytes
        self.path = path
        # On a network's file system, a row must be there for all before it is said to be, and no more than the row may
        # be written: without O_DSYNC a client may fill up the page with what it believes another's row to be.
        self.file = os.fdopen(os.open(path, os.O_RDWR | (os.O_DSYNC if shared else 0)), "rb+")

    def write(self, row: int, values: npt.NDArray[Any]) -> None:
        assert (values.shape, values.dtype) == (self.row_shape, self.dtype)
        # Its space is reserved, but a file system that copies on write, a quota or a network can refuse it even so.
        with storing(self.path):
            self.file.seek(self.start + row * self.row_bytes)
            self.file.write(values.tobytes())
            self.file.flush()


def row_checksum(image: npt.NDArray[Any], masks: npt.NDArray[Any] | None) -> int:
    """CRC-32 of a row, by which a resumed import knows that the row had reached the disk whole."""
    checksum = zlib.crc32(image.tobytes())
    return checksum if masks is None else zlib.crc32(masks.tobytes(), checksum)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it closes our input
    # Decoders written in C may print to standard output; the answers go to a private copy of it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = PixelWorker(Path(sys.argv[1]), shared="--shared" in sys.argv)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
