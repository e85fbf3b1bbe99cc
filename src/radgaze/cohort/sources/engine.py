"""The import engine: studies that an importer has described in, a cohort on disk out.

Images are read, resampled and written in parallel by child processes (``worker.py``) into arrays in ``OUT.partial``. A journal there
names the rows that are done, so an import that was killed goes on where it stopped. The finished folder takes the name
``OUT`` in one rename: a half-written cohort cannot be opened.

    OUT.partial/plan.json      what the arrays hold: files, their sizes and times, grid; another plan starts over
    OUT.partial/journal.jsonl  one line for each finished row: row, source size, checksum of the row
    OUT.partial/images.npy     a row for each distinct image, those that turn out unreadable included
    OUT.partial/masks.npy
    OUT.partial/cohort/        the finished cohort, until it is renamed to OUT
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import rich.console
import rich.progress

import radgaze
from radgaze.cohort.sources.worker import IMAGES, MASKS, PixelWorker, row_checksum
from radgaze.cohort.splits import (
    check_no_patient_overlap,
    normalise_split,
    rarest_labels,
    split_by_image,
    split_by_patient,
)
from radgaze.cohort.store import FORMAT, TASKS, Cohort, sha256
from radgaze.cohort.study import Box
from radgaze.errors import InputError, nearest
from radgaze.files import folder_lock, write_json
from radgaze.gaze import Gaze, Grid

__all__ = ["FITS", "RawStudy", "write_cohort"]

FITS = ("letterbox", "stretch", "canvas")
SPLITS_BY = ("patient", "image", "source")

_STUDIES_PER_WORKER = 24  # below this a child process costs more than it saves


@dataclass
class RawStudy:
    """A study as an importer describes it; nothing of it has been read yet but its gaze and boxes.

    Attributes:
        study_id: unique within the cohort.
        patient_id: splits keep a patient on one side.
        image: file to read; studies of one image (with the same masks) share its pixels.
        label: one of the cohort's classes, or None.
        labels: multi-label cohorts: class to 0, 1, a probability, or None (unknown).
        masks: structure to a file, or to several files to unite.
        gaze: in original image pixels; invalid points may be among them.
        boxes: in original image pixels.
        split: the source's own split, used with ``split="source"``.
        attributes: anything else worth keeping.
        source_size: (H, W) that the source states; a study whose image has another size is left out.
    """

    study_id: str
    patient_id: str
    image: Path
    label: str | None = None
    labels: Mapping[str, float | None] | None = None
    masks: Mapping[str, Path | tuple[Path, ...]] = field(default_factory=dict)
    gaze: Gaze | None = None
    boxes: Sequence[Box] = ()
    split: str | None = None
    attributes: Mapping[str, str | float | int | None] = field(default_factory=dict)
    source_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Picture:
    """A distinct row of the arrays: an image with its masks, one tuple of files for each structure."""

    image: str
    masks: tuple[tuple[str, ...], ...]


def write_cohort(
    raws: Sequence[RawStudy],
    out: Path,
    *,
    name: str,
    source: str,
    size: tuple[int, int] = (640, 512),
    fit: str = "letterbox",
    canvas: tuple[int, int] | None = None,
    task: str = "multiclass",
    classes: Sequence[str] = (),
    structures: Sequence[str] = (),
    class_structures: Mapping[str, Sequence[str]] | None = None,
    gaze_kind: str | None = None,
    readers: Sequence[str] = (),
    counts: Counter[str] | None = None,
    left_out: Iterable[tuple[str, str]] = (),
    split: str = "patient",
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Cohort:
    """Write the studies to the cohort ``out`` and open it.

    Args:
        raws: the studies, in the order they are to have.
        out: folder to make. Its parent must be writable; ``out`` itself must not exist unless ``overwrite``.
        name, source: for tables and reports ("EGD-CXR", "egd-cxr 1.0.0 samples").
        size: (h, w) of the stored images.
        fit: ``"letterbox"`` keeps the aspect and pads; ``"stretch"`` fills the size; ``"canvas"`` keeps the papers' common scale:
            every image is centred on ``canvas`` (H, W) and that is shrunk to ``size``.
        task: ``"multiclass"`` (one label), ``"multilabel"`` or ``"none"``.
        structures: names of the masks, in stored order.
        class_structures: for localisation: the structures in which a class shows itself.
        gaze_kind: ``"samples"``, ``"fixations"`` or None.
        readers: names behind the codes in ``Gaze.reader``.
        counts, left_out: what the importer has counted and left out so far; the engine adds its own.
        split: ``"patient"``, ``"image"`` (leaks patients, warns) or ``"source"`` (each study's own ``split``).
        fractions, seed: of a split by patient or image.
        workers: processes that read pixels; by default one for each core, fewer for few images.
        strict: raise on the first broken study instead of leaving it out.
        progress: show a progress bar on standard error.

    A study is left out, by name and with the reason, if its image or a mask is missing or unreadable, or their sizes disagree.

    Raises:
        InputError: the arguments contradict each other or the studies, a patient is on two sides of the source's split, ``out`` exists
            or is being written by another process, the disk is full, or no study is left.
    """
    out = Path(out)
    structures, classes = list(structures), list(classes)
    _check_arguments(size, fit, canvas, task, classes, structures, class_structures or {}, gaze_kind, split)
    _check_studies(raws, task, classes, structures, split)
    if out.exists() and not overwrite:
        raise InputError(f"{str(out)!r} exists already; choose another folder, or ask to overwrite it.")
    if overwrite and out.exists() and not (out / "cohort.json").exists():
        raise InputError(f"{str(out)!r} is no cohort, so it is not overwritten; choose another folder.")

    dropped = list(left_out)
    if not raws:
        raise InputError(_nothing_left(out, dropped))
    partial = out.with_name(out.name + ".partial")
    with folder_lock(partial, "importing into"):
        if out.exists() and not overwrite:  # another import has finished it while this one was starting
            raise InputError(f"{str(out)!r} exists already; choose another folder, or ask to overwrite it.")
        pictures, picture_of = _pictures(raws, structures)
        _prepare(partial, pictures, size, fit, canvas, structures)
        sizes, failures = _read_pixels(
            partial, raws, pictures, picture_of, size, fit, canvas, workers, strict, progress
        )

        kept: list[RawStudy] = []
        rows: list[int] = []
        for raw, row in zip(raws, picture_of, strict=True):
            reason = failures.get(row) or _size_conflict(raw, sizes[row])
            if reason is None:
                kept.append(raw)
                rows.append(row)
            elif strict:
                raise InputError(f"Study {raw.study_id!r}: {reason}")
            else:
                dropped.append((raw.study_id, reason))
        if not kept:
            raise InputError(_nothing_left(out, dropped))

        finished = partial / "cohort"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        used = sorted(set(rows))
        _compact(partial, finished, used, len(pictures), bool(structures))
        new_row = {row: position for position, row in enumerate(used)}
        grids = {row: _grid(sizes[row], size, fit, canvas) for row in used}
        splits = _splits(kept, split, fractions, seed)
        stated = _write_tables(finished, kept, rows, new_row, sizes, grids, splits, task, classes, structures)
        total = Counter(counts or {})
        total.update(stated)
        total["studies left out"] = len(dropped)
        write_json(
            finished / "cohort.json",
            {
                "format": FORMAT,
                "name": name,
                "source": source,
                "size": list(size),
                "fit": fit,
                "canvas": list(canvas) if canvas else None,
                "task": task,
                "classes": classes,
                "structures": structures,
                "class_structures": {key: list(value) for key, value in (class_structures or {}).items()},
                "gaze_kind": gaze_kind,
                "readers": list(readers),
                "counts": dict(total),
                "left_out": [{"study_id": study, "reason": reason} for study, reason in dropped],
                "split_by": split,
                "fractions": None if split == "source" else list(fractions),
                "seed": seed,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "version": version("radgaze"),
                "checksums": {file.name: sha256(file) for file in sorted(finished.iterdir())},
            },
        )
        _publish(finished, out, partial)
    shutil.rmtree(partial, ignore_errors=True)
    return Cohort.open(out)


# ---- checks before anything is read


def _check_arguments(
    size: tuple[int, int],
    fit: str,
    canvas: tuple[int, int] | None,
    task: str,
    classes: Sequence[str],
    structures: Sequence[str],
    class_structures: Mapping[str, Sequence[str]],
    gaze_kind: str | None,
    split: str,
) -> None:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size is {size}; expected (height, width), whole numbers above zero, for example 640x512.")
    for what, value, options in (("fit", fit, FITS), ("task", task, TASKS), ("split", split, SPLITS_BY)):
        if value not in options:
            raise InputError(f"{what} is {value!r}; {nearest(value, options)}.")
    if (fit == "canvas") != (canvas is not None):
        raise InputError(
            f"fit is {fit!r} and canvas is {canvas}; a canvas (height, width) goes with fit='canvas' only."
        )
    if gaze_kind not in (None, "samples", "fixations"):
        raise InputError(f"gaze_kind is {gaze_kind!r}; expected 'samples', 'fixations' or None.")
    for what, names in (("classes", classes), ("structures", structures)):
        if len(set(names)) != len(names):
            raise InputError(f"{what} are {list(names)}; expected each name once.")
    if (task == "none") != (not classes):
        raise InputError(
            f"task is {task!r} with the classes {list(classes)}; expected classes unless the task is 'none'."
        )
    for key, values in class_structures.items():
        if key not in classes or not set(values) <= set(structures):
            raise InputError(
                f"class_structures has {key!r}: {list(values)}; expected a class of {list(classes)} and structures of "
                f"{list(structures)}."
            )


def _check_studies(
    raws: Sequence[RawStudy], task: str, classes: Sequence[str], structures: Sequence[str], split: str
) -> None:
    repeated = [study for study, count in Counter(raw.study_id for raw in raws).items() if count > 1]
    if repeated:
        raise InputError(
            f"Study {repeated[0]!r} occurs more than once; expected every study_id once, rename or remove one."
        )
    for raw in raws:
        stated = [raw.label] if raw.label is not None else []
        if raw.labels is not None:
            stated += list(raw.labels)
        unknown = [label for label in stated if label not in classes]
        if unknown:
            raise InputError(f"Study {raw.study_id!r} has label {unknown[0]!r}; expected one of {list(classes)}.")
        if (raw.labels is not None) and task != "multilabel" or (raw.label is not None) and task == "multilabel":
            raise InputError(
                f"Study {raw.study_id!r} has label={raw.label!r}, labels={raw.labels!r}; a {task} cohort takes "
                f"{'labels' if task == 'multilabel' else 'label'}."
            )
        strange = set(raw.masks) - set(structures)
        if strange:
            raise InputError(f"Study {raw.study_id!r} has a mask {min(strange)!r}; expected one of {list(structures)}.")
    if split == "source":
        check_no_patient_overlap(
            [raw.patient_id for raw in raws],
            [normalise_split(raw.split, raw.study_id) for raw in raws],
            [raw.study_id for raw in raws],
            "correct the source's split column, or import with a split by patient",
        )


def _nothing_left(out: Path, dropped: Sequence[tuple[str, str]]) -> str:
    if not dropped:
        return f"The source holds no study to import into {str(out)!r}; check its folder or tables."
    return f"All {len(dropped)} studies were left out, so {str(out)!r} is not made; the first, {dropped[0][0]!r}: {dropped[0][1]}"


def _size_conflict(raw: RawStudy, size: tuple[int, int]) -> str | None:
    if raw.source_size is None or tuple(raw.source_size) == size:
        return None
    return (
        f"image {str(raw.image)!r} is {size[0]}x{size[1]} pixels (height x width) but the source's table says "
        f"{raw.source_size[0]}x{raw.source_size[1]}; expected the original image, at its original size"
    )


# ---- pixels


def _grid(source_size: tuple[int, int], size: tuple[int, int], fit: str, canvas: tuple[int, int] | None) -> Grid:
    if fit == "letterbox":
        return Grid.letterbox(source_size, size)
    if fit == "stretch":
        return Grid.area(source_size, size)
    assert canvas is not None
    return Grid.canvas(source_size, canvas, size)


def _pictures(raws: Sequence[RawStudy], structures: Sequence[str]) -> tuple[list[_Picture], list[int]]:
    """The distinct images in order of first use, and for each study the position of its image among them."""
    position: dict[_Picture, int] = {}
    picture_of = []
    for raw in raws:
        masks = []
        for structure in structures:
            files = raw.masks.get(structure, ())
            masks.append(tuple(str(file) for file in ((files,) if isinstance(files, Path) else files)))
        picture = _Picture(str(raw.image), tuple(masks))
        picture_of.append(position.setdefault(picture, len(position)))
    return list(position), picture_of


def _prepare(
    partial: Path,
    pictures: Sequence[_Picture],
    size: tuple[int, int],
    fit: str,
    canvas: tuple[int, int] | None,
    structures: Sequence[str],
) -> None:
    """Make the arrays and the plan, or keep those of an interrupted import of the very same files."""
    inputs = [[_stamp(file) for file in (picture.image, *sum(picture.masks, ()))] for picture in pictures]
    described = [FORMAT, size, fit, canvas, list(structures), [asdict(picture) for picture in pictures], inputs]
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    plan = partial / "plan.json"
    try:
        if json.loads(plan.read_text())["fingerprint"] == fingerprint:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or torn by the kill: start over
    for entry in partial.iterdir():
        if entry.name == ".lock":
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _allocate(partial / IMAGES, np.uint16, (len(pictures), *size))
    if structures:
        _allocate(partial / MASKS, np.uint8, (len(pictures), len(structures), *size))
    write_json(plan, {"fingerprint": fingerprint, "pictures": len(pictures), "size": list(size), "fit": fit})


def _stamp(file: str) -> tuple[str, int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return file, -1, 0
    return file, status.st_size, status.st_mtime_ns


def _allocate(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    with path.open("rb+") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # A full disk must be noticed now: written through a memory map it would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            raise InputError(
                f"{str(path)!r} needs {size / 1e9:.2f} GB ({error.strerror}); free some space or choose a smaller size."
            ) from None


def _read_pixels(
    partial: Path,
    raws: Sequence[RawStudy],
    pictures: Sequence[_Picture],
    picture_of: Sequence[int],
    size: tuple[int, int],
    fit: str,
    canvas: tuple[int, int] | None,
    workers: int | None,
    strict: bool,
    progress: bool,
) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
    """Fill the arrays. Returns the source size of every row that was read, and why the others were not."""
    sizes = _finished_rows(partial)
    failures: dict[int, str] = {}
    waiting = [row for row in range(len(pictures)) if row not in sizes]
    study_of = {row: raws[index].study_id for index, row in reversed(list(enumerate(picture_of)))}
    if workers is None:
        workers = min(_cores(), len(waiting) // _STUDIES_PER_WORKER)
    lock = threading.Lock()

    with _progress_bar(progress) as bar, (partial / "journal.jsonl").open("a", encoding="utf-8") as journal:
        task = bar.add_task("Reading images", total=len(pictures), completed=len(sizes))

        def handle(row: int, ask: Callable[..., dict[str, Any]]) -> None:
            picture = pictures[row]
            answer = ask("read", image=picture.image, masks=picture.masks)
            if "error" not in answer:
                source_size = (int(answer["size"][0]), int(answer["size"][1]))
                try:
                    grid = _grid(source_size, size, fit, canvas)
                except InputError as error:
                    answer = {"error": str(error)}
                else:
                    answer = ask("place", row=row, grid=asdict(grid))
            with lock:
                if "error" in answer:
                    if strict:
                        raise InputError(f"Study {study_of[row]!r}: {answer['error']}")
                    failures[row] = answer["error"]
                else:
                    sizes[row] = source_size
                    line = {"row": row, "size": source_size, "checksum": answer["checksum"]}
                    journal.write(json.dumps(line) + "\n")
                    journal.flush()
                bar.advance(task)

        if workers <= 1:
            worker = PixelWorker(partial)
            for row in waiting:
                handle(row, lambda do, **message: _ask_here(worker, do, message))
        else:
            _in_child_processes(partial, waiting, handle, workers)
    return sizes, failures


def _ask_here(worker: PixelWorker, do: str, message: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = getattr(worker, do)(**message)
    except InputError as error:
        return {"error": str(error)}
    return answer


def _in_child_processes(
    partial: Path, rows: Sequence[int], handle: Callable[[int, Callable[..., dict[str, Any]]], None], workers: int
) -> None:
    """One thread for each child process hands it rows until none is left; the first exception stops them all."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for row in rows:
        waiting.put(row)
    stop = threading.Event()

    def serve(number: int) -> None:
        with _Child(partial, number) as child:
            while not stop.is_set():
                try:
                    row = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    handle(row, child.ask)
                except BaseException:
                    stop.set()
                    raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            for finished in [pool.submit(serve, number) for number in range(workers)]:
                finished.result()
        finally:
            stop.set()


class _Child:
    """A pixel worker in a process of its own; started again when a damaged file has crashed it."""

    def __init__(self, partial: Path, number: int) -> None:
        self.partial = partial
        self.log = partial / f"worker-{number}.log"
        self._start()

    def _start(self) -> None:
        package_root = str(Path(radgaze.__file__).parents[1])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # One thread each: the processes are the parallelism.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "radgaze.cohort.sources.worker", str(self.partial)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions: IO[str] = self.process.stdin
        self.answers: IO[str] = self.process.stdout
        if not self.answers.readline():
            raise RuntimeError(f"the pixel worker did not start: {self.log.read_text(errors='replace')[-2000:]}")

    def ask(self, do: str, **message: Any) -> dict[str, Any]:
        try:
            self.questions.write(json.dumps({"do": do} | message) + "\n")
            self.questions.flush()
            line = self.answers.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.close()
        last = (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        code = self.process.returncode
        self._start()
        return {"error": f"its image or a mask crashed the reader (exit status {code} {last})".replace(" )", ")")}

    def close(self) -> None:
        for pipe in (self.questions, self.answers):
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        self.process.wait()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _finished_rows(partial: Path) -> dict[int, tuple[int, int]]:
    """Rows of an interrupted import whose pixels are whole on disk, with their source sizes."""
    journal = partial / "journal.jsonl"
    if not journal.exists():
        return {}
    images = np.load(partial / IMAGES, mmap_mode="r", allow_pickle=False)
    masks = np.load(partial / MASKS, mmap_mode="r", allow_pickle=False) if (partial / MASKS).exists() else None
    sizes: dict[int, tuple[int, int]] = {}
    whole = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that the kill tore
        if row_checksum(images, masks, entry["row"]) == entry["checksum"]:
            sizes[entry["row"]] = (entry["size"][0], entry["size"][1])
            whole.append(line)
    journal.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return sizes


def _progress_bar(shown: bool) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not shown,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compact(partial: Path, finished: Path, used: Sequence[int], count: int, with_masks: bool) -> None:
    """Put the arrays into the finished folder without the rows that no study uses.

    Links, not moves: a kill from here on must leave the working arrays where the next attempt looks for them.
    """
    for name in (IMAGES, MASKS) if with_masks else (IMAGES,):
        if len(used) == count:
            try:
                os.link(partial / name, finished / name)
            except OSError:  # a file system without links
                shutil.copyfile(partial / name, finished / name)
            continue
        array = np.load(partial / name, mmap_mode="r", allow_pickle=False)
        _allocate(finished / name, array.dtype.type, (len(used), *array.shape[1:]))
        target = np.load(finished / name, mmap_mode="r+", allow_pickle=False)
        for position, row in enumerate(used):
            target[position] = array[row]
        target.flush()


def _publish(finished: Path, out: Path, partial: Path) -> None:
    for file in finished.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # the bytes reach the disk before the name does
    if out.exists():
        replaced = partial / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    finished.rename(out)


# ---- tables


def _splits(kept: Sequence[RawStudy], split: str, fractions: tuple[float, float, float], seed: int) -> list[str]:
    if split == "source":
        return [normalise_split(raw.split, raw.study_id) for raw in kept]
    if any(raw.labels is not None for raw in kept):
        labels = rarest_labels([raw.labels or {} for raw in kept])
    else:
        labels = [raw.label for raw in kept]
    if split == "image":
        return split_by_image([str(raw.image) for raw in kept], labels, fractions, seed)
    return split_by_patient([raw.patient_id for raw in kept], labels, fractions, seed)


def _write_tables(
    finished: Path,
    kept: Sequence[RawStudy],
    rows: Sequence[int],
    new_row: Mapping[int, int],
    sizes: Mapping[int, tuple[int, int]],
    grids: Mapping[int, Grid],
    splits: Sequence[str],
    task: str,
    classes: Sequence[str],
    structures: Sequence[str],
) -> Counter[str]:
    """Write studies, gaze and boxes; returns what they hold."""
    counted: Counter[str] = Counter()
    gaze_counts = [0 if raw.gaze is None else len(raw.gaze) for raw in kept]
    table: dict[str, Any] = {
        "study_id": pl.Series([raw.study_id for raw in kept], dtype=pl.String),
        "patient_id": pl.Series([raw.patient_id for raw in kept], dtype=pl.String),
        "label": pl.Series([raw.label for raw in kept], dtype=pl.String),
        "split": pl.Series(splits, dtype=pl.String),
        "source_height": pl.Series([sizes[row][0] for row in rows], dtype=pl.Int32),
        "source_width": pl.Series([sizes[row][1] for row in rows], dtype=pl.Int32),
    }
    for part in ("y0", "x0", "dy", "dx"):
        table[f"grid_{part}"] = pl.Series([getattr(grids[row], part) for row in rows], dtype=pl.Float64)
    table["image_row"] = pl.Series([new_row[row] for row in rows], dtype=pl.Int64)
    table["gaze_count"] = pl.Series(gaze_counts, dtype=pl.Int64)
    table["gaze_start"] = table["gaze_count"].cum_sum() - table["gaze_count"]
    if task == "multilabel":
        for name in classes:
            table[f"y_{name}"] = pl.Series(
                [(raw.labels or {}).get(name) for raw in kept], dtype=pl.Float32, strict=False
            )
    for structure in structures:
        table[f"has_mask_{structure}"] = pl.Series([bool(raw.masks.get(structure)) for raw in kept], dtype=pl.Boolean)
    for attribute in dict.fromkeys(key for raw in kept for key in raw.attributes):
        table[f"attr_{attribute}"] = _attribute([raw.attributes.get(attribute) for raw in kept])
    pl.DataFrame(table).write_parquet(finished / "studies.parquet")

    counted["studies"] = len(kept)
    counted["patients"] = len({raw.patient_id for raw in kept})
    counted["images"] = len(new_row)
    for structure in structures:
        counted[f"images with mask {structure}"] = len(
            {row for raw, row in zip(kept, rows, strict=True) if raw.masks.get(structure)}
        )
    if any(gaze_counts):
        counted["studies with gaze"] = sum(count > 0 for count in gaze_counts)
        counted["gaze points"] = sum(gaze_counts)
        for raw, row in zip(kept, rows, strict=True):
            if raw.gaze is not None:
                usable = raw.gaze.usable
                counted["gaze points invalid"] += int((~usable).sum())
                counted["gaze points outside the image"] += int((usable & ~raw.gaze.inside(sizes[row])).sum())
        _gaze_table(kept).write_parquet(finished / "gaze.parquet")
    boxes = [(raw.study_id, box) for raw in kept for box in raw.boxes]
    if boxes:
        counted["boxes"] = len(boxes)
        pl.DataFrame(
            {"study_id": pl.Series([study for study, _ in boxes], dtype=pl.String)}
            | {
                name: pl.Series([getattr(box, name) for _, box in boxes], dtype=dtype)
                for name, dtype in (
                    ("name", pl.String),
                    ("xmin", pl.Float64),
                    ("ymin", pl.Float64),
                    ("xmax", pl.Float64),
                    ("ymax", pl.Float64),
                    ("shape", pl.String),
                    ("certainty", pl.Float64),
                )
            }
        ).write_parquet(finished / "boxes.parquet")
    return counted


def _attribute(values: Sequence[str | float | int | None]) -> pl.Series:
    """Whole numbers, numbers, or text: the narrowest kind that holds all values as they are."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pl.Series(values, dtype=pl.Int64)
    if kinds <= {int, float}:
        return pl.Series(values, dtype=pl.Float64, strict=False)
    if kinds == {bool}:
        return pl.Series(values, dtype=pl.Boolean)
    return pl.Series([None if value is None else str(value) for value in values], dtype=pl.String)


def _gaze_table(kept: Sequence[RawStudy]) -> pl.DataFrame:
    """All gaze in study order. A column is there if any study has it; the others' points are null in it."""
    gazes = [(row, raw.gaze) for row, raw in enumerate(kept) if raw.gaze is not None and len(raw.gaze)]
    lengths = [len(gaze) for _, gaze in gazes]

    def column(field_name: str, dtype: Any, part: int | None = None) -> pl.Series | None:
        parts = [getattr(gaze, field_name) for _, gaze in gazes]
        if all(values is None for values in parts):
            return None
        return pl.concat(
            [
                pl.Series([None], dtype=dtype).new_from_index(0, length)
                if values is None
                else pl.Series((values if part is None else values[:, part]).cpu().numpy().copy(), dtype=dtype)
                for values, length in zip(parts, lengths, strict=True)
            ]
        )

    columns: dict[str, pl.Series | None] = {
        "study_row": pl.Series(np.repeat(np.array([row for row, _ in gazes], np.int32), lengths)),
        "x": column("x", pl.Float64),
        "y": column("y", pl.Float64),
        "t": column("t", pl.Float64),
        "duration": column("duration", pl.Float64),
        "reader": column("reader", pl.Int64),
        "valid": column("valid", pl.Boolean),
    }
    columns |= {f"ppd_{axis}": column("px_per_degree", pl.Float64, part) for part, axis in enumerate("xy")}
    columns |= {
        f"shown_{corner}": column("shown", pl.Float64, part)
        for part, corner in enumerate(("xmin", "ymin", "xmax", "ymax"))
    }
    return pl.DataFrame({name: series for name, series in columns.items() if series is not None})
