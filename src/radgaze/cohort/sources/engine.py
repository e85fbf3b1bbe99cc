"""The import engine: studies that an importer has described in, a cohort on disk out.

Pixels are read into ``OUT.partial`` (``arrays.py``), the tables are written beside them, and the finished folder takes
the name ``OUT`` in one rename: a half-written cohort cannot be opened, and a killed import goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import polars as pl
import rich.console
import rich.progress

from radgaze.cluster import check_engine, cluster_for
from radgaze.cohort.gaze_file import GazeWriter
from radgaze.cohort.sources.arrays import Arrays, Picture
from radgaze.cohort.splits import (
    check_no_patient_overlap,
    normalise_split,
    rarest_labels,
    split_by_image,
    split_by_patient,
    warn_of_leakage,
)
from radgaze.cohort.store import FORMAT, TASKS, Cohort, sha256
from radgaze.cohort.study import Box
from radgaze.errors import InputError, RadgazeError, nearest
from radgaze.files import PLAN, folder_lock, publish, write_sealed
from radgaze.gaze import Frame, Gaze, Grid

__all__ = ["RawStudy", "write_cohort"]

SPLITS_BY = ("patient", "image", "source")


@dataclass
class RawStudy:
    """A study as an importer describes it; nothing of it has been read yet but its boxes.

    Attributes:
        study_id: unique within the cohort.
        patient_id: splits keep a patient on one side.
        image: file to read; studies of one image (with the same masks) share its pixels.
        label: one of the cohort's classes, or None.
        labels: multi-label cohorts: class to 0, 1, a probability, or None (unknown).
        masks: structure to a file, or to several files to unite.
        gaze: in original image pixels; invalid points may be among them. Better than the points is a function that
            reads them: the engine calls it once, in the order of the studies, and lets the points go again. An
            InputError from it leaves the study out; that of a study left out for its image is never called.
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
    gaze: Gaze | Callable[[], Gaze] | None = None
    boxes: Sequence[Box] = ()
    split: str | None = None
    attributes: Mapping[str, str | float | int | None] = field(default_factory=dict)
    source_size: tuple[int, int] | None = None


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
    engine: str = "local",
    address: str | None = None,
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
        fit: ``"letterbox"`` keeps the aspect and pads; ``"stretch"`` fills the size; ``"canvas"`` keeps one scale, as
            the papers do: every image is centred on ``canvas`` (H, W), and that is shrunk to ``size``.
        task: ``"multiclass"`` (one label), ``"multilabel"`` or ``"none"``.
        structures: names of the masks, in stored order.
        class_structures: for localisation: the structures in which a class shows itself.
        gaze_kind: ``"samples"``, ``"fixations"`` or None.
        readers: names behind the codes in ``Gaze.reader``.
        counts, left_out: what the importer has counted and left out so far; the engine adds its own.
        split: ``"patient"``, ``"image"`` (leaks patients, warns) or ``"source"`` (each study's own ``split``).
        fractions, seed: of a split by patient or image.
        workers: processes that read pixels; by default one for each core, fewer for few images. On a cluster, pieces
            of the work that are done at once; by default as many as there is room for.
        engine: ``"local"``, or ``"ray"``: pixels are read on a Ray cluster.
        address: of that cluster, see :func:`~radgaze.cluster.open_cluster`.
        strict: raise on the first broken study instead of leaving it out.
        progress: show a progress bar on standard error.

    A study is left out, by name and with the reason, if its image, a mask or its gaze is missing or unreadable, or if
    the sizes of image and masks disagree with each other or with the source's tables.

    Raises:
        InputError: the arguments contradict each other or the studies, a patient is on two sides of the source's split,
            ``out`` exists or is being written by another process, the disk is full, or no study is left.
    """
    out = Path(out)
    structures, classes, class_structures = list(structures), list(classes), dict(class_structures or {})
    _check_arguments(size, task, classes, structures, class_structures, gaze_kind, split)
    frame = Frame(size, fit, canvas)
    _check_studies(raws, task, classes, structures, split)
    check_engine(engine, address)
    if split == "image":
        warn_of_leakage()  # before hours of reading, not after
    dropped = list(left_out)
    if not raws:
        raise InputError(_nothing_left(out, dropped))
    partial = out.with_name(out.name + ".partial")
    _clear_spent(partial)
    _check_target(out, overwrite)
    with folder_lock(partial, "importing into"):
        _check_target(out, overwrite)  # again: another import may have finished it since
        pictures, picture_of = _pictures(raws, structures)
        arrays = Arrays(partial, pictures, frame, structures)
        arrays.prepare()
        with cluster_for(engine, address, partial) as cluster:
            sizes, failures = arrays.fill(workers=workers, strict=strict, progress=progress, cluster=cluster)

        kept: list[RawStudy] = []
        rows: list[int] = []
        gaze_counts: list[int] = []
        gaze_total: Counter[str] = Counter()
        with GazeWriter(partial / "gaze.parquet") as gaze_writer:
            for raw, row in zip(_shown(raws, progress), picture_of, strict=True):
                reason = failures.get(row) or _size_conflict(raw, sizes[row])
                gaze = None
                if reason is None:
                    try:
                        gaze = raw.gaze() if callable(raw.gaze) else raw.gaze
                    except InputError as error:
                        reason = str(error)
                if reason is not None:
                    if strict:
                        raise InputError(f"Study {raw.study_id!r}: {reason}")
                    dropped.append((raw.study_id, reason))
                    continue
                if gaze is not None and len(gaze):
                    gaze_writer.add(len(kept), gaze)
                    gaze_total.update(_count_gaze(gaze, sizes[row]))
                kept.append(raw)
                rows.append(row)
                gaze_counts.append(0 if gaze is None else len(gaze))
            if not kept:
                raise InputError(_nothing_left(out, dropped))

            finished = partial / "cohort"
            shutil.rmtree(finished, ignore_errors=True)
            finished.mkdir()
            if gaze_writer.points:
                gaze_writer.finish(finished / "gaze.parquet")

        used = sorted(set(rows))
        arrays.put_into(finished, used)
        position = {row: index for index, row in enumerate(used)}
        source_sizes = [sizes[row] for row in rows]
        table = _studies_table(
            kept,
            splits=_splits(kept, split, fractions, seed),
            source_sizes=source_sizes,
            grids=[frame.grid(size) for size in source_sizes],
            image_rows=[position[row] for row in rows],
            gaze_counts=pl.Series(gaze_counts, dtype=pl.Int64),
            label_columns=classes if task == "multilabel" else [],
            structures=structures,
        )
        table.write_parquet(finished / "studies.parquet")
        if any(raw.boxes for raw in kept):
            _boxes_table(kept).write_parquet(finished / "boxes.parquet")

        total = Counter(counts or {})
        total.update(_count(kept, len(used), structures))
        total.update(gaze_total)
        write_sealed(
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
                "class_structures": {key: list(value) for key, value in class_structures.items()},
                "gaze_kind": gaze_kind,
                "readers": list(readers),
                "counts": dict(total) | {"studies left out": len(dropped)},
                "left_out": [{"study_id": study, "reason": reason} for study, reason in dropped],
                "split_by": split,
                "fractions": None if split == "source" else list(fractions),
                "seed": seed,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "version": version("radgaze"),
                "checksums": {file.name: sha256(file) for file in sorted(finished.iterdir())},
            },
        )
        publish(finished, out, partial)
    return Cohort.open(out)


# ---- checks before anything is read


def _check_target(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise InputError(f"{str(out)!r} exists already; choose another folder, or ask to overwrite it.")
    if out.exists() and not (out / "cohort.json").is_file():
        raise InputError(f"{str(out)!r} is no cohort, so it is not overwritten; choose another folder.")


def _clear_spent(partial: Path) -> None:
    """Remove what is left of a folder of work whose import was killed after the cohort had got its name."""
    if partial.is_dir() and not (partial / PLAN).exists():
        with suppress(RadgazeError), folder_lock(partial, "importing into"):
            shutil.rmtree(partial, ignore_errors=True)


def _check_arguments(
    size: tuple[int, int],
    task: str,
    classes: Sequence[str],
    structures: Sequence[str],
    class_structures: Mapping[str, Sequence[str]],
    gaze_kind: str | None,
    split: str,
) -> None:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size is {size}; expected (height, width), whole numbers above zero, for example 640x512.")
    for what, value, options in (("task", task, TASKS), ("split", split, SPLITS_BY)):
        if value not in options:
            raise InputError(f"{what} is {value!r}; {nearest(value, options)}.")
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
        if (raw.label if task == "multilabel" else raw.labels) is not None:
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
    study, reason = dropped[0]
    return f"All {len(dropped)} studies were left out, so {str(out)!r} is not made; the first, {study!r}: {reason}"


def _size_conflict(raw: RawStudy, size: tuple[int, int]) -> str | None:
    if raw.source_size is None or tuple(raw.source_size) == size:
        return None
    return (
        f"image {str(raw.image)!r} is {size[0]}x{size[1]} pixels (height x width) but the source's table says "
        f"{raw.source_size[0]}x{raw.source_size[1]}; expected the original image, at its original size"
    )


def _pictures(raws: Sequence[RawStudy], structures: Sequence[str]) -> tuple[list[Picture], list[int]]:
    """The distinct images in order of first use, and for each study the position of its image among them."""
    position: dict[Picture, int] = {}
    picture_of = []
    for raw in raws:
        files = [raw.masks.get(structure, ()) for structure in structures]
        masks = tuple((str(file),) if isinstance(file, str | Path) else tuple(map(str, file)) for file in files)
        picture_of.append(position.setdefault(Picture(str(raw.image), masks, raw.study_id), len(position)))
    return list(position), picture_of


def _shown(raws: Sequence[RawStudy], progress: bool) -> Iterable[RawStudy]:
    """The studies, with a progress bar where there is gaze to read."""
    hidden = not progress or all(raw.gaze is None for raw in raws)
    return rich.progress.track(raws, "Reading gaze", console=rich.console.Console(stderr=True), disable=hidden)


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


def _studies_table(
    kept: Sequence[RawStudy],
    *,
    splits: Sequence[str],
    source_sizes: Sequence[tuple[int, int]],
    grids: Sequence[Grid],
    image_rows: Sequence[int],
    gaze_counts: pl.Series,
    label_columns: Sequence[str],
    structures: Sequence[str],
) -> pl.DataFrame:
    columns = {
        "study_id": pl.Series([raw.study_id for raw in kept], dtype=pl.String),
        "patient_id": pl.Series([raw.patient_id for raw in kept], dtype=pl.String),
        "label": pl.Series([raw.label for raw in kept], dtype=pl.String),
        "split": pl.Series(splits, dtype=pl.String),
        "source_height": pl.Series([height for height, _ in source_sizes], dtype=pl.Int32),
        "source_width": pl.Series([width for _, width in source_sizes], dtype=pl.Int32),
        "grid_y0": pl.Series([grid.y0 for grid in grids], dtype=pl.Float64),
        "grid_x0": pl.Series([grid.x0 for grid in grids], dtype=pl.Float64),
        "grid_dy": pl.Series([grid.dy for grid in grids], dtype=pl.Float64),
        "grid_dx": pl.Series([grid.dx for grid in grids], dtype=pl.Float64),
        "image_row": pl.Series(image_rows, dtype=pl.Int64),
        "gaze_start": gaze_counts.cum_sum() - gaze_counts,
        "gaze_count": gaze_counts,
    }
    for name in label_columns:
        columns[f"y_{name}"] = pl.Series([(raw.labels or {}).get(name) for raw in kept], dtype=pl.Float32, strict=False)
    for name in structures:
        columns[f"has_mask_{name}"] = pl.Series([bool(raw.masks.get(name)) for raw in kept], dtype=pl.Boolean)
    for name in dict.fromkeys(name for raw in kept for name in raw.attributes):
        columns[f"attr_{name}"] = _attribute([raw.attributes.get(name) for raw in kept])
    return pl.DataFrame(columns)


def _boxes_table(kept: Sequence[RawStudy]) -> pl.DataFrame:
    boxes = [(raw.study_id, box) for raw in kept for box in raw.boxes]
    columns = {
        "study_id": pl.Series([study for study, _ in boxes], dtype=pl.String),
        "name": pl.Series([box.name for _, box in boxes], dtype=pl.String),
    }
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        columns[corner] = pl.Series([getattr(box, corner) for _, box in boxes], dtype=pl.Float64, strict=False)
    columns["shape"] = pl.Series([box.shape for _, box in boxes], dtype=pl.String)
    columns["certainty"] = pl.Series([box.certainty for _, box in boxes], dtype=pl.Float64, strict=False)
    return pl.DataFrame(columns)


def _count(kept: Sequence[RawStudy], images: int, structures: Sequence[str]) -> Counter[str]:
    """What the closing summary says of the studies that were kept, but for their gaze."""
    counted = Counter({"studies": len(kept), "patients": len({raw.patient_id for raw in kept}), "images": images})
    for name in structures:
        counted[f"studies with mask {name}"] = sum(bool(raw.masks.get(name)) for raw in kept)
    for raw in kept:
        if raw.boxes:
            counted["boxes"] += len(raw.boxes)
    return counted


def _count_gaze(gaze: Gaze, source_size: tuple[int, int]) -> dict[str, int]:
    """What one study's points add to the closing summary."""
    usable = gaze.usable
    return {
        "studies with gaze": 1,
        "gaze points": len(gaze),
        "gaze points invalid": int((~usable).sum()),
        "gaze points outside the image": int((usable & ~gaze.inside(source_size)).sum()),
    }


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
