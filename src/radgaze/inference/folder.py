"""Predict any number of images into a folder that is whole at every moment.

    predict.json        what was asked: the model's card, the engine, the outputs
    predictions.jsonl   a line for each image, as it is done: its prediction, or {"image", "error"}
    predictions.csv     the predictions as a table, written at the end
    failures.csv        what failed and why; absent where nothing did
    overlays/, maps/, dicom/

The lines of a batch are appended once all its files have their names, so a line that is there is true. A line that a
kill tore is dropped when the call is resumed, and its image done again. Nothing grows with the number of images but
the list of their paths.

On a Ray cluster the nodes write the files and this process the lines: as the batches come, and at the end in the order
of the images, so that the folder is the same as without Ray.

What comes from a DICOM header goes into the files under ``dicom/`` and nowhere else.
"""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import save_file

from radgaze import __version__
from radgaze.cluster import Cluster, check_engine, cluster_for
from radgaze.errors import InputError
from radgaze.files import atomic_path, check_fields, clear_half_written, folder_lock, is_used, read_json, write_json
from radgaze.inference.card import ModelCard
from radgaze.inference.engine import TorchEngine
from radgaze.inference.overlays import draw
from radgaze.inference.predictor import Failure, Prediction, Predictor, load
from radgaze.inference.sources import Source, find_images
from radgaze.training.runs import Run

__all__ = ["DICOM_KINDS", "predict", "split_engine"]

DICOM_KINDS = ("sc", "sr", "pm")
FORMAT = 1
WRITERS = 2  # threads that draw and write what was predicted
NAMED = 5  # failures that the summary tells of

SETTINGS, JOURNAL, TABLE, FAILURES = "predict.json", "predictions.jsonl", "predictions.csv", "failures.csv"


@dataclass(frozen=True)
class Outputs:
    """What is written beside the predictions themselves."""

    overlays: bool
    maps: bool
    dicom: tuple[str, ...]


@overload
def predict(
    model: Predictor | Run | Path | str,
    images: Path | str | Iterable[Path | str],
    out: None = None,
    *,
    engine: str | None = None,
    address: None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> list[Prediction | Failure]: ...


@overload
def predict(
    model: Predictor | Run | Path | str,
    images: Path | str | Iterable[Path | str],
    out: Path | str,
    *,
    engine: str | None = None,
    address: str | None = None,
    batch_size: int = 16,
    overlays: bool = True,
    maps: bool = False,
    dicom: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]: ...


def predict(
    model: Predictor | Run | Path | str,
    images: Path | str | Iterable[Path | str],
    out: Path | str | None = None,
    *,
    engine: str | None = None,
    address: str | None = None,
    batch_size: int = 16,
    overlays: bool = True,
    maps: bool = False,
    dicom: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> list[Prediction | Failure] | dict[str, Any]:
    """Predict images. An image that cannot be read does not stop the others.

    Args:
        model: Whatever :func:`radgaze.load` takes, or what it returned.
        images: Files, folders searched at any depth, and globs, as :func:`~radgaze.inference.sources.find_images`
            reads them.
        out: Folder to write; must be absent or empty, unless ``resume``. Without one nothing is written, and the
            predictions are returned with their maps and pixels.
        engine: What runs the network; see :func:`radgaze.load`. With ``"ray"`` PyTorch runs it on a Ray cluster, with
            ``"ray:onnx"`` and so on another engine does.
        address: Of that cluster; see :func:`radgaze.cluster.open_cluster`.
        batch_size: Images per forward pass; also how many are lost at most when the process is killed.
        overlays: Write a picture of each prediction.
        maps: Write each map's numbers.
        dicom: DICOM objects to write for images that are DICOM: ``"sc"``, ``"sr"``, ``"pm"``; see
            :mod:`radgaze.inference.dicom`.
        resume: Go on in a folder that an earlier call with the same model and outputs left; what failed there is
            tried again.
        progress: Show a progress bar on standard error.

    Returns:
        Without ``out`` the predictions, with a :class:`~radgaze.inference.Failure` for each image that failed. With it
        a summary: ``path``, ``images``, ``predicted``, ``failed`` (images), ``failed_outputs``, ``skipped`` (done by
        an earlier call), ``failures`` (the first few, each with ``image``, ``output`` and ``error``), ``calibrated``
        and ``uncalibrated`` (why not).

    Raises:
        InputError: A model that cannot be used, outputs it does not have, or a folder that holds something else.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is below 1; give a whole number of images.")
    on_ray, runtime = split_engine(engine)
    check_engine("ray" if on_ray else "local", address)
    predictor = model if isinstance(model, Predictor) else load(model, runtime)
    if on_ray and (out is None or predictor.origin is None):
        raise InputError(
            "A Ray cluster predicts into a folder, with a network that is in one; give out, and a run or what "
            "radgaze export wrote."
        )
    given = [images] if isinstance(images, str | Path) else list(images)
    if out is None:
        sources = find_images(given)
        with _bar(sources, progress) as bar, _quiet():
            return list(_results(predictor, sources, batch_size, bar))
    outputs = Outputs(overlays, maps, tuple(kind for kind in DICOM_KINDS if kind in dicom))
    _check(predictor.card, outputs, dicom)
    folder = Path(out)
    sources = find_images(given, leave_out=folder)
    settings = {
        "format": FORMAT,
        "radgaze": __version__,
        "engine": predictor.engine.name,
        "overlays": overlays,
        "maps": maps,
        "dicom": list(outputs.dicom),
        "model": predictor.card.to_json(),
    }
    if not resume and is_used(folder):
        raise InputError(f"{str(folder)!r} is not empty; choose another --out, or go on in it with --resume.")
    with folder_lock(folder, "predicting into"):
        finished = _open(folder, settings, {source.name for source in sources})
        todo = [source for source in sources if source.name not in finished]
        with cluster_for("ray" if on_ray else "local", address, folder) as cluster, _bar(todo, progress) as bar:
            if cluster is None:
                with _quiet():
                    _run(predictor, todo, folder, outputs, batch_size, bar)
            else:
                _run_on(cluster, predictor, todo, folder, outputs, batch_size, bar)
                _put_in_order(folder / JOURNAL, sources)
                clear_half_written(folder)  # by nodes that died
        counts = _write_tables(folder, predictor.card)
    return {
        "path": str(folder),
        **counts,
        "skipped": len(sources) - len(todo),
        "calibrated": predictor.card.calibration is not None,
        "uncalibrated": predictor.card.uncalibrated,
    }


def _run(
    predictor: Predictor, todo: Sequence[Source], folder: Path, outputs: Outputs, batch_size: int, bar: Progress
) -> None:
    results = _results(predictor, todo, batch_size, bar)
    pairs = zip(todo, results, strict=True)
    with (folder / JOURNAL).open("ab") as journal, ThreadPoolExecutor(WRITERS) as writers:
        while batch := list(islice(pairs, batch_size)):
            _append(journal, writers.map(partial(_entry, folder=folder, outputs=outputs), *zip(*batch, strict=True)))


def _append(journal: IO[bytes], entries: Iterable[Mapping[str, Any]]) -> None:
    """The lines of a batch, on the disk when this returns."""
    journal.write(b"".join(json.dumps(entry, allow_nan=False).encode() + b"\n" for entry in entries))
    journal.flush()
    os.fsync(journal.fileno())


def _results(
    predictor: Predictor, sources: Sequence[Source], batch_size: int, bar: Progress | None = None
) -> Iterator[Prediction | Failure]:
    """One for each source, in their order."""
    predicted = predictor.predict_all(
        (source.path for source in sources if source.problem is None), batch_size=batch_size
    )
    for source in sources:
        yield next(predicted) if source.problem is None else Failure(source.name, source.problem)
        if bar is not None:
            bar.advance(bar.task_ids[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings: those of pydicom and highdicom quote values of headers, and both run in threads here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---- on a cluster


def split_engine(engine: str | None) -> tuple[bool, str | None]:
    """Whether the network runs on Ray, and what runs it: ``"ray:onnx"`` to True and ``"onnx"``."""
    if engine == "ray":
        return True, None
    where, colon, runtime = (engine or "").partition(":")
    return (True, runtime) if colon and where == "ray" else (False, engine)


def _run_on(
    cluster: Cluster,
    predictor: Predictor,
    todo: Sequence[Source],
    folder: Path,
    outputs: Outputs,
    batch_size: int,
    bar: Progress,
) -> None:
    origin, batches = str(predictor.origin), list(_batches(todo, batch_size))
    on_gpu = isinstance(predictor.engine, TorchEngine) and Run.open(origin).config.accelerator != "cpu"
    pieces = (
        {
            "origin": origin,
            "card": json.dumps(predictor.card.to_json()),
            "sources": batch,
            "folder": os.path.abspath(folder),
            "outputs": outputs,
            "batch_size": batch_size,
        }
        for batch in batches
    )
    with (folder / JOURNAL).open("ab") as journal:
        for position, entries in cluster.map(
            _predict_batch,
            pieces,
            files=lambda piece: [origin, *(source.path for source in piece["sources"])],
            gpus=int(on_gpu and cluster.gpus > 0),
        ):
            _append(journal, entries)
            bar.advance(bar.task_ids[0], len(batches[position]))


def _batches(sources: Iterable[Source], batch_size: int) -> Iterator[list[Source]]:
    """As many as one forward pass takes: the very batches that they are predicted in without Ray."""
    batch: list[Source] = []
    tried = 0
    for source in sources:
        batch.append(source)
        tried += source.problem is None
        if tried == batch_size:
            yield batch
            batch, tried = [], 0
    if batch:
        yield batch


def _predict_batch(
    origin: str, card: str, sources: Sequence[Source], folder: str, outputs: Outputs, batch_size: int
) -> list[dict[str, Any]]:
    """On a node: the images' lines, once their files are written."""
    with _quiet():
        results = _results(_predictor(origin, card), sources, batch_size)
        return [_entry(*pair, Path(folder), outputs) for pair in zip(sources, results, strict=True)]


@lru_cache(maxsize=1)
def _predictor(origin: str, card: str) -> Predictor:
    """This worker's predictor, for all batches that it gets."""
    loaded, asked = load(origin, threads=1), ModelCard.from_json(json.loads(card))
    if loaded.card.facts["weights"] != asked.facts["weights"]:
        raise InputError(f"{origin!r} was changed while it predicted; predict into another --out.")
    return Predictor(asked, loaded.engine)


def _put_in_order(journal: Path, sources: Iterable[Source]) -> None:
    """The lines in the order of the images; those of other images, of earlier calls, stay before them."""
    place = {source.name: number for number, source in enumerate(sources)}
    with journal.open("rb") as lines:
        found, start = [], 0
        for line in lines:
            found.append((place.get(json.loads(line)["image"], -1), start, len(line)))
            start += len(line)
        ordered = sorted(found, key=lambda entry: entry[0])
        if ordered == found:
            return
        with atomic_path(journal) as part, part.open("wb") as file:
            for _, start, length in ordered:
                lines.seek(start)
                file.write(lines.read(length))


# ---- what is written of one image


def _entry(source: Source, result: Prediction | Failure, folder: Path, outputs: Outputs) -> dict[str, Any]:
    """The image's line, once its files are written."""
    if isinstance(result, Failure):
        return {"image": source.name, "error": result.error}
    files: dict[str, str] = {}
    failed: dict[str, str] = {}
    drawn = draw(result) if outputs.overlays or "sc" in outputs.dicom else None
    if outputs.overlays and drawn is not None:
        files["overlay"] = f"overlays/{source.stem}.png"
        with atomic_path(folder / files["overlay"]) as part:
            Image.fromarray(drawn).save(part, "PNG", compress_level=4)
    if outputs.maps:
        files["maps"] = f"maps/{source.stem}.safetensors"
        _write_maps(result, folder / files["maps"])
    if outputs.dicom:
        _write_dicom(source, result, drawn, folder, outputs.dicom, files, failed)
    line = result.to_json() | {"image": source.name}
    return line | ({"files": files} if files else {}) | ({"failed": failed} if failed else {})


def _write_maps(prediction: Prediction, path: Path) -> None:
    """All maps, float32, on the network's own grid; where its cells sit in the image is in the metadata, as JSON."""
    grids = {name: prediction.grid_of(values) for name, values in prediction.maps().items()}
    places = {
        name: {key: getattr(grid, key) for key in ("height", "width", "y0", "x0", "dy", "dx")}
        for name, grid in grids.items()
    }
    tensors = {name: np.ascontiguousarray(values) for name, values in prediction.maps().items()}
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={name: json.dumps(place) for name, place in places.items()})


def _write_dicom(
    source: Source,
    prediction: Prediction,
    drawn: NDArray[np.uint8] | None,
    folder: Path,
    kinds: Sequence[str],
    files: dict[str, str],
    failed: dict[str, str],
) -> None:
    from radgaze.inference import dicom

    try:
        header = dicom.Header.read(source.path)
    except InputError as error:
        failed.update(dict.fromkeys(kinds, str(error)))
        return
    for kind in kinds:
        try:
            made = dicom.make(kind, header, prediction, drawn)
        except InputError as error:
            failed[kind] = str(error)
            continue
        files[kind] = f"dicom/{source.stem}-{kind}.dcm"
        with atomic_path(folder / files[kind]) as part:
            made.save_as(part, enforce_file_format=True)


# ---- the folder


def _check(card: ModelCard, outputs: Outputs, dicom: Sequence[str]) -> None:
    for kind in dicom:
        if kind not in DICOM_KINDS:
            raise InputError(f"--dicom {kind!r} is no DICOM output; choose from {','.join(DICOM_KINDS)}.")
    if dicom and find_spec("highdicom") is None:
        raise InputError("--dicom needs the package highdicom; install it with: pip install 'radgaze[dicom-out]'.")
    has_maps = bool({"saliency_logits", "cams"} & set(card.outputs))
    for asked, has, what in (
        ("--maps", has_maps or not outputs.maps, "predicts no attention and has no class activation maps"),
        ("--dicom pm", has_maps or "pm" not in dicom, "predicts no attention and has no class activation maps"),
        ("--dicom sr", bool(card.classes) or "sr" not in dicom, "scores no classes"),
    ):
        if not has:
            raise InputError(f"{asked} has nothing to write: the network ({card.method}) {what}; leave it away.")


def _open(folder: Path, settings: Mapping[str, Any], wanted: set[str]) -> set[str]:
    """Make a new folder, or take up one that an earlier call left; returns the names of images that are done."""
    if not is_used(folder):
        write_json(folder / SETTINGS, settings)
        return set()
    earlier = read_json(folder / SETTINGS, "a folder of predictions")
    check_fields(earlier, dict[str, Any], folder / SETTINGS, "a folder of predictions")
    differing = [key for key in settings if key != "radgaze" and earlier.get(key) != settings[key]]
    if differing:
        raise InputError(
            f"{str(folder)!r} was begun with other settings ({', '.join(differing)}); give the same model and options "
            "again, or choose another --out."
        )
    return _finished(folder / JOURNAL, wanted)


def _finished(journal: Path, wanted: set[str]) -> set[str]:
    """Drop lines that a kill tore and those of wanted images that failed, which are tried again; names of the rest."""
    names: set[str] = set()
    if not journal.is_file():
        return names
    with atomic_path(journal) as part, part.open("wb") as kept, journal.open("rb") as lines:
        for line in lines:
            entry = _parsed(line)
            if entry is None or (entry["image"] in wanted and ("error" in entry or "failed" in entry)):
                continue
            names.add(entry["image"])
            kept.write(line)
    return names


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "image" in entry else None


def _write_tables(folder: Path, card: ModelCard) -> dict[str, Any]:
    """``predictions.csv`` and ``failures.csv`` from the lines, one by one; returns the counts."""
    counts = {"images": 0, "predicted": 0, "failed": 0, "failed_outputs": 0}
    first: list[dict[str, str]] = []
    table, failures = folder / TABLE, folder / FAILURES
    with (
        atomic_path(table) as part,
        atomic_path(failures) as failed_part,
        part.open("w", newline="", encoding="utf-8") as file,
        failed_part.open("w", newline="", encoding="utf-8") as failed_file,
        (folder / JOURNAL).open("rb") as lines,
    ):
        rows, failed_rows = csv.writer(file, lineterminator="\n"), csv.writer(failed_file, lineterminator="\n")
        rows.writerow(_columns(card))
        failed_rows.writerow(["image", "output", "error"])
        for line in lines:
            entry = json.loads(line)
            counts["images"] += 1
            problems = {"prediction": entry["error"]} if "error" in entry else entry.get("failed", {})
            counts["failed" if "error" in entry else "predicted"] += 1
            counts["failed_outputs"] += 0 if "error" in entry else len(problems)
            if "error" not in entry:
                rows.writerow(_row(entry, card))
            for output, error in problems.items():
                failed_rows.writerow([entry["image"], output, error])
                if len(first) < NAMED:
                    first.append({"image": entry["image"], "output": output, "error": error})
    if not first:
        failures.unlink()
    return {**counts, "failures": first}


def _columns(card: ModelCard) -> list[str]:
    columns = ["image", "height", "width", "predicted"]
    for name in card.classes:
        columns += [f"p_{name}", f"low_{name}", f"high_{name}"]
    for name in _peaks(card):
        columns += [f"{name}_x", f"{name}_y"]
    return columns


def _row(entry: Mapping[str, Any], card: ModelCard) -> list[Any]:
    row = [entry["image"], entry["height"], entry["width"], entry.get("predicted")]
    for name in card.classes:
        row += [entry["classes"][name][key] for key in ("probability", "low", "high")]
    for name in _peaks(card):
        peak = entry["peaks"].get(name) or {}
        row += [peak.get("x"), peak.get("y")]
    return row


def _peaks(card: ModelCard) -> list[str]:
    attention = ["attention"] if "saliency_logits" in card.outputs else []
    return attention + [f"cam:{name}" for name in card.classes if "cams" in card.outputs]


def _bar(sources: Sequence[Source], shown: bool) -> Progress:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
    bar.add_task("predict", total=len(sources))
    return bar
