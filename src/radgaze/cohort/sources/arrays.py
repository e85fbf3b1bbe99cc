"""Images and masks into arrays on disk: in parallel, and going on where a killed import stopped.

Rows are read by child processes of this one or, on a Ray cluster, of its workers; they are entered in the journal here.

A folder of work, ``OUT.partial``, holds

    plan.json      a fingerprint of the files, their sizes and times, and the grid; another plan starts everything over
    images.npy     a row for each distinct image, those that turn out unreadable included
    masks.npy      likewise
    journal.jsonl  a line for each finished row: its source size and the checksum of its pixels
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
import rich.console
import rich.progress

from radgaze.cluster import Cluster, import_environment
from radgaze.cohort.sources.worker import IMAGES, MASKS, PixelWorker, row_checksum
from radgaze.errors import InputError, StorageError
from radgaze.files import PLAN, write_json
from radgaze.gaze import Frame

__all__ = ["Arrays", "Picture"]

_LAYOUT = 1  # of the folder of work; a change makes older ones start over
_PICTURES_PER_WORKER = 24  # below this a child process costs more than it saves
_PICTURES_PER_PIECE = 8  # that a node of a cluster is given at a time, and takes with it when it dies

_Answer = dict[str, Any]
_Ask = Callable[..., _Answer]


@dataclass(frozen=True)
class Picture:
    """One row of the arrays: an image and, for each structure, the mask files to unite (none: unknown)."""

    image: str
    masks: tuple[tuple[str, ...], ...]
    study_id: str = field(compare=False)  # the first study that shows it, for messages


class Arrays:
    """The arrays of one import in its folder of work."""

    def __init__(self, folder: Path, pictures: Sequence[Picture], frame: Frame, structures: Sequence[str]) -> None:
        self.folder = folder
        self.pictures = pictures
        self.frame = frame
        self.structures = structures

    def prepare(self) -> None:
        """Make empty arrays, or keep those of an interrupted import of the very same files.

        Raises:
            InputError: the disk is too full.
        """
        plan = self.folder / PLAN
        fingerprint = self._fingerprint()
        arrays = [self.folder / name for name in ((IMAGES, MASKS) if self.structures else (IMAGES,))]
        try:
            same = json.loads(plan.read_text(encoding="utf-8"))["fingerprint"] == fingerprint
            if same and all(array.is_file() for array in arrays):
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or the kill tore it: start over
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()
        allocate(self.folder / IMAGES, np.dtype(np.uint16), (len(self.pictures), *self.frame.size))
        if self.structures:
            shape = (len(self.pictures), len(self.structures), *self.frame.size)
            allocate(self.folder / MASKS, np.dtype(np.uint8), shape)
        write_json(plan, {"fingerprint": fingerprint, "pictures": len(self.pictures)} | asdict(self.frame))

    def fill(
        self, *, workers: int | None, strict: bool, progress: bool, cluster: Cluster | None = None
    ) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
        """Read whatever is not in the arrays yet, with ``workers`` processes or, on a cluster, pieces at once.

        Returns:
            the source size (H, W) of each row that was read, and for each other row the reason why it was not.

        Raises:
            InputError: ``strict``, and a picture could not be read.
            StorageError: the disk does not take a row.
        """
        sizes = self._finished_rows()
        failures: dict[int, str] = {}
        waiting = [row for row in range(len(self.pictures)) if row not in sizes]
        lock = threading.Lock()

        with _progress_bar(progress) as bar, (self.folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
            task = bar.add_task("Reading images", total=len(self.pictures), completed=len(sizes))

            def enter(row: int, answer: _Answer) -> None:
                if "storage" in answer:
                    raise StorageError(answer["storage"])
                if "error" in answer:
                    if strict:
                        raise InputError(f"Study {self.pictures[row].study_id!r}: {answer['error']}")
                    failures[row] = answer["error"]
                else:
                    sizes[row] = answer["size"]
                    journal.write(json.dumps({"row": row} | answer) + "\n")
                    journal.flush()
                bar.advance(task)

            def handle(row: int, ask: _Ask) -> None:
                answer = read_one(self.pictures[row], self.frame, row, ask)
                with lock:
                    enter(row, answer)

            if cluster is not None:
                for row, answer in self._on_cluster(cluster, waiting, workers):
                    enter(row, answer)
                return sizes, failures
            if workers is None:
                workers = min(_cores(), len(waiting) // _PICTURES_PER_WORKER)
            if workers <= 1:
                worker = PixelWorker(self.folder)
                for row in waiting:
                    handle(row, worker.answer)
            else:
                _in_child_processes(self.folder, waiting, handle, workers)
        return sizes, failures

    def put_into(self, finished: Path, rows: Sequence[int]) -> None:
        """Put the arrays into the finished folder, reduced to ``rows``.

        Links, not moves: a kill after this must leave the arrays where the next attempt looks for them.
        """
        for name in (IMAGES, MASKS) if self.structures else (IMAGES,):
            if len(rows) == len(self.pictures):
                try:
                    os.link(self.folder / name, finished / name)
                except OSError:  # a file system without links
                    shutil.copyfile(self.folder / name, finished / name)
                continue
            array = np.lib.format.open_memmap(self.folder / name, mode="r")
            target = allocate(finished / name, array.dtype, (len(rows), *array.shape[1:]))
            for position, row in enumerate(rows):
                target[position] = array[row]
            target.flush()

    def _fingerprint(self) -> str:
        files = sorted({file for picture in self.pictures for file in (picture.image, *sum(picture.masks, ()))})
        described = [
            _LAYOUT,
            asdict(self.frame),
            list(self.structures),
            [[picture.image, picture.masks] for picture in self.pictures],
            [_stamp(file) for file in files],
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def _on_cluster(self, cluster: Cluster, rows: Sequence[int], at_once: int | None) -> Iterator[tuple[int, _Answer]]:
        """Each row and its answer, as they come."""
        folder = os.path.abspath(self.folder)
        pieces = (
            {
                "folder": folder,
                "call": cluster.token.name,
                "frame": self.frame,
                "pictures": {row: self.pictures[row] for row in rows[start : start + _PICTURES_PER_PIECE]},
            }
            for start in range(0, len(rows), _PICTURES_PER_PIECE)
        )
        for _, answers in cluster.map(_read_rows, pieces, files=_files_of, at_once=at_once):
            yield from answers.items()

    def _finished_rows(self) -> dict[int, tuple[int, int]]:
        """Rows of an interrupted import whose pixels are whole on disk, with their source sizes."""
        journal = self.folder / "journal.jsonl"
        if not journal.exists():
            return {}
        images = np.lib.format.open_memmap(self.folder / IMAGES, mode="r")
        masks = np.lib.format.open_memmap(self.folder / MASKS, mode="r") if self.structures else None
        sizes: dict[int, tuple[int, int]] = {}
        whole = []
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that the kill tore
            row = entry["row"]
            if row_checksum(images[row], None if masks is None else masks[row]) == entry["checksum"]:
                sizes[row] = (entry["size"][0], entry["size"][1])
                whole.append(line)
        journal.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
        return sizes


def allocate(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new memory-mapped array of zeros, its space on the disk reserved.

    Raises:
        InputError: the disk is too full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A full disk should be noticed now rather than hours later.
        size = path.stat().st_size
        try:
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            raise InputError(
                f"{str(path)!r} needs {size / 1e9:.2f} GB ({error.strerror}); free some space or choose a smaller size."
            ) from None
    return array


def read_one(picture: Picture, frame: Frame, row: int, ask: _Ask) -> _Answer:
    read = ask("read", image=picture.image, masks=picture.masks)
    if "error" in read:
        return read
    size = (int(read["size"][0]), int(read["size"][1]))
    try:
        grid = frame.grid(size)
    except InputError as error:
        return {"error": f"image {picture.image!r}: {error}"}
    return {"size": size} | ask("place", row=row, grid=asdict(grid))


def _stamp(file: str) -> tuple[str, int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return file, -1, 0
    return file, status.st_size, status.st_mtime_ns


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress_bar(shown: bool) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not shown,
    )


# ---- child processes


def _in_child_processes(folder: Path, rows: Sequence[int], handle: Callable[[int, _Ask], None], workers: int) -> None:
    """One thread for each child process hands it rows until none is left; the first exception stops them all."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for row in rows:
        waiting.put(row)
    stop = threading.Event()

    def serve(number: int) -> None:
        with contextlib.closing(_Child(folder, str(number))) as child:
            while not stop.is_set():
                try:
                    handle(waiting.get_nowait(), child.ask)
                except queue.Empty:
                    return
                except BaseException:
                    stop.set()
                    raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            serving = {pool.submit(serve, number) for number in range(workers)}
            while serving:
                # In short waits: with Polars loaded, Ctrl-C does not interrupt a long one.
                finished, serving = wait(serving, timeout=0.2)
                for service in finished:
                    service.result()
        finally:
            stop.set()


class _Child:
    """A pixel worker in a process of its own; started again when a damaged file has crashed it."""

    def __init__(self, folder: Path, name: str, shared: bool = False) -> None:
        self.command = [sys.executable, "-m", "radgaze.cohort.sources.worker", str(folder)]
        if shared:
            self.command.append("--shared")
        self.log = folder / f"worker-{name}.log"
        self._start()

    def _start(self) -> None:
        # One thread in each: the processes are the parallelism.
        settings = import_environment() | {"OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | settings,
                text=True,
                encoding="utf-8",
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions: IO[str] = self.process.stdin
        self.answers: IO[str] = self.process.stdout
        if not self.answers.readline():
            self.close()
            raise RuntimeError(f"the pixel worker did not start: {self.log.read_text(errors='replace')[-2000:]}")

    def ask(self, do: str, **message: Any) -> _Answer:
        try:
            self.questions.write(json.dumps({"do": do} | message) + "\n")
            self.questions.flush()
            line = self.answers.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: _Answer = json.loads(line)
            return answer
        self.close()
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        reason = " ".join([f"exit status {self.process.returncode}", *last])
        self._start()
        return {"error": f"its image or a mask crashed the reader ({reason})"}

    def close(self) -> None:
        for pipe in (self.questions, self.answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.process.wait()


# ---- on a node of a cluster


def _read_rows(folder: str, call: str, frame: Frame, pictures: dict[int, Picture]) -> dict[int, _Answer]:
    """A piece of an import: rows, and what :func:`read_one` says of each."""
    child = _child_of(folder, call)
    return {row: read_one(picture, frame, row, child.ask) for row, picture in pictures.items()}


def _files_of(piece: Mapping[str, Any]) -> Iterator[str]:
    for picture in piece["pictures"].values():
        yield from (picture.image, *chain.from_iterable(picture.masks))


@lru_cache(maxsize=1)
def _child_of(folder: str, call: str) -> _Child:
    """This worker's child in an import, for all pieces that it gets; ``call`` tells imports into one folder apart.

    It ends when nothing holds its pipes any more: with this process at the latest, however that ends.
    """
    return _Child(Path(folder), uuid4().hex, shared=True)
