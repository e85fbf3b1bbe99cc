"""A cohort on disk: open files that any tool reads, memory-mapped here, opened in milliseconds.

cohort.json       what it is, where it came from, what was left out, checksums
studies.parquet   a row for each study: ids, label, split, source size, grid, image row, gaze slice, attributes
gaze.parquet      every gaze point in original image pixels, in study order      (absent: no gaze)
boxes.parquet     named boxes and ellipses in original image pixels              (absent: no boxes)
images.npy        uint16 (N, h, w), the brightest pixel of each image 65535
masks.npy         uint8 (N, S, h, w): 0 outside, 1 inside, 255 unknown           (absent: no masks)
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from radgaze.cohort.gaze_file import PER_POINT, GazeFile
from radgaze.cohort.layout import BOXES, COPY_AGAIN, TASKS, check_meta, read_studies, read_table
from radgaze.cohort.splits import (
    SPLITS,
    check_no_patient_overlap,
    rarest_labels,
    split_by_image,
    split_by_patient,
    warn_of_leakage,
)
from radgaze.cohort.study import Box, Study
from radgaze.errors import InputError, nearest
from radgaze.files import atomic_path, folder_lock, read_sealed, write_sealed
from radgaze.gaze import Frame, Gaze, Grid

__all__ = ["FORMAT", "TASKS", "Cohort", "resplit", "sha256"]

FORMAT = 1


class Cohort:
    """Studies with their images, gaze, boxes and masks; use :meth:`open`. A sequence of :class:`Study`.

    Attributes:
        path: the folder.
        meta: ``cohort.json`` as a dict.
        studies: the studies table, a row for each study.
    """

    def __init__(self, path: Path, meta: dict[str, Any], studies: pl.DataFrame) -> None:
        self.path = path
        self.meta = meta
        self.studies = studies

    @classmethod
    def open(cls, path: str | Path) -> Cohort:
        """Open the folder ``path`` that an import has written. No pixels and no gaze are read.

        Raises:
            InputError: there is no cohort, it is half-written, damaged or of a newer format, or a patient is on two
                sides of its split.
        """
        path = Path(path)
        if not (path / "cohort.json").is_file():
            raise InputError(_why_not_a_cohort(path))
        meta = _read_description(path)
        for name in meta["checksums"]:
            if not (path / name).is_file():
                raise InputError(f"{str(path)!r} lacks its file {name!r}; copy the whole folder, or import it again.")
        if sha256(path / "studies.parquet") != meta["checksums"]["studies.parquet"]:
            raise InputError(
                f"{str(path / 'studies.parquet')!r} is not the table that cohort.json describes (damaged, or a new "
                f"split was interrupted); split the cohort again, or import it again."
            )
        cohort = cls(path, meta, read_studies(path / "studies.parquet", meta))
        if meta["split_by"] == "image":
            warn_of_leakage()
        else:
            check_no_patient_overlap(
                cohort.studies["patient_id"].to_list(),
                cohort.studies["split"].to_list(),
                cohort.studies["study_id"].to_list(),
                "split the cohort again by patient",
            )
        return cohort

    # What it is

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the stored images."""
        height, width = self.meta["size"]
        return height, width

    @property
    def frame(self) -> Frame:
        """How its images were brought to :attr:`size`."""
        canvas = self.meta["canvas"]
        return Frame(self.size, self.meta["fit"], tuple(canvas) if canvas else None)

    @property
    def task(self) -> str:
        """``"multiclass"``, ``"multilabel"`` or ``"none"``."""
        return str(self.meta["task"])

    @property
    def classes(self) -> list[str]:
        return list(self.meta["classes"])

    @property
    def structures(self) -> list[str]:
        """Names of the masks."""
        return list(self.meta["structures"])

    @property
    def class_structures(self) -> dict[str, list[str]]:
        """For localisation: the structures in which a class shows itself."""
        return {name: list(structures) for name, structures in self.meta["class_structures"].items()}

    @property
    def gaze_kind(self) -> str | None:
        """``"samples"``, ``"fixations"``, or None without gaze."""
        kind = self.meta["gaze_kind"]
        return None if kind is None else str(kind)

    @property
    def readers(self) -> list[str]:
        """Names behind the codes in ``Gaze.reader``."""
        return list(self.meta["readers"])

    @property
    def has_boxes(self) -> bool:
        return "boxes.parquet" in self.meta["checksums"]

    # Its studies

    def __len__(self) -> int:
        return self.studies.height

    def __getitem__(self, index: int) -> Study:
        index = range(len(self))[index]
        row = self._row(index)
        height, width = self.size
        return Study(
            index=index,
            study_id=row["study_id"],
            patient_id=row["patient_id"],
            label=row["label"],
            labels={name: row[f"y_{name}"] for name in self.classes} if self.task == "multilabel" else {},
            split=row["split"],
            source_size=(row["source_height"], row["source_width"]),
            grid=Grid(height, width, row["grid_y0"], row["grid_x0"], row["grid_dy"], row["grid_dx"]),
            image_row=row["image_row"],
            gaze_count=row["gaze_count"],
            attributes={key.removeprefix("attr_"): value for key, value in row.items() if key.startswith("attr_")},
            cohort=self,
        )

    def __iter__(self) -> Iterator[Study]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Cohort({self.name!r}, {len(self)} studies, {self.size[0]}x{self.size[1]}, {str(self.path)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Cohort.open, (self.path,)  # another process opens the files itself, no array travels

    def _row(self, index: int) -> dict[str, Any]:
        return self.studies.row(index, named=True)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {study: index for index, study in enumerate(self.studies["study_id"])}

    def by_id(self, study_id: str) -> Study:
        """The study of that name.

        Raises:
            InputError: there is none; close names are offered, and the reason if the import left it out.
        """
        if study_id in self._index_of:
            return self[self._index_of[study_id]]
        for entry in self.meta["left_out"]:
            if entry["study_id"] == study_id:
                raise InputError(f"Study {study_id!r} was left out of cohort {self.name!r}: {entry['reason']}")
        close = difflib.get_close_matches(study_id, self._index_of, n=3) or list(self._index_of)[:3]
        raise InputError(
            f"Cohort {self.name!r} has no study {study_id!r}; it has, for example, {', '.join(map(repr, close))}."
        )

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Rows of a split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``, ascending.

        Raises:
            InputError: another name.
        """
        if split == "all":
            return np.arange(len(self), dtype=np.int64)
        if split not in SPLITS:
            raise InputError(f"split is {split!r}; {nearest(split, (*SPLITS, 'all'))}.")
        return np.flatnonzero((self.studies["split"] == split).to_numpy()).astype(np.int64)

    @cached_property
    def targets(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """Multi-class: (N,) int64, −1 unlabelled. Multi-label: (N, C) float32, NaN unknown. Without a task: all −1."""
        if self.task == "multilabel":
            columns = [self.studies[f"y_{name}"].fill_null(float("nan")).to_numpy() for name in self.classes]
            return np.stack(columns, axis=1).astype(np.float32)
        codes = {name: code for code, name in enumerate(self.classes)}
        return np.array([codes.get(label, -1) for label in self.studies["label"]], dtype=np.int64)

    @property
    def strata(self) -> list[str | None]:
        """What each study is stratified by: its label, or the rarest of its labels."""
        if self.task == "multilabel":
            rows = self.studies.select(f"y_{name}" for name in self.classes).iter_rows()
            return rarest_labels([dict(zip(self.classes, row, strict=True)) for row in rows])
        return self.studies["label"].to_list()

    # Its arrays

    @cached_property
    def images(self) -> npt.NDArray[np.uint16]:
        """(N images, h, w) uint16, memory-mapped."""
        count = int(self.studies["image_row"].max()) + 1  # type: ignore[arg-type]
        return self._array("images.npy", np.dtype(np.uint16), (count, *self.size))

    @cached_property
    def masks(self) -> npt.NDArray[np.uint8] | None:
        """(N images, S, h, w) uint8, memory-mapped: 0 outside, 1 inside, 255 unknown. None without structures."""
        if not self.structures:
            return None
        return self._array("masks.npy", np.dtype(np.uint8), (len(self.images), len(self.structures), *self.size))

    def _array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        path = self.path / name
        try:
            array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # .npy alone: no archive, no pickle
        except Exception as error:  # NumPy parses the header as Python, and raises whatever that raises
            raise InputError(f"{str(path)!r} is damaged ({error}); {COPY_AGAIN}") from error
        if array.dtype != dtype or array.shape != shape:
            raise InputError(f"{str(path)!r} holds {array.dtype} {array.shape}; expected {dtype} {shape}: {COPY_AGAIN}")
        return array

    def has_mask(self, index: int, name: str) -> bool:
        """Whether the source has the mask ``name`` for study ``index``."""
        self._structure(name)
        return bool(self._row(index)[f"has_mask_{name}"])

    def mask(self, index: int, name: str) -> npt.NDArray[np.uint8]:
        """(h, w) uint8 view of a study's mask; all 255 where it has none.

        Raises:
            InputError: the cohort has no structure ``name``.
        """
        structure = self._structure(name)
        assert self.masks is not None
        return self.masks[self._row(index)["image_row"], structure]

    def _structure(self, name: str) -> int:
        if name not in self.structures:
            hint = nearest(name, self.structures) if self.structures else "its source has no masks"
            raise InputError(f"Cohort {self.name!r} has no mask {name!r}; {hint}")
        return self.structures.index(name)

    # Its gaze and boxes

    @cached_property
    def _gaze_file(self) -> GazeFile:
        return GazeFile(self.path / "gaze.parquet", int(self.studies["gaze_count"].sum()))

    def gaze(self, index: int) -> Gaze | None:
        """The gaze of study ``index`` in original image pixels; None where there is none."""
        row = self._row(index)
        if not row["gaze_count"]:
            return None
        own = self._gaze_file.points(row["gaze_start"], row["gaze_count"])
        valid, reader = own.get("valid"), own.get("reader")
        known: dict[str, Any] = {
            name: own[name] for name in ("t", "duration") if name in own and not np.isnan(own[name]).all()
        }
        for name, parts in PER_POINT.items():
            if parts[0] in own and not np.isnan(own[parts[0]]).all():
                known[name] = np.stack([own[part] for part in parts], axis=1)
        return Gaze(
            own["x"],
            own["y"],
            **known,
            reader=None if reader is None or (reader < 0).all() else reader,
            valid=None if valid is None or (valid < 0).all() else valid != 0,
        )

    @cached_property
    def _boxes(self) -> tuple[pl.DataFrame, dict[str, tuple[int, int]]]:
        """The boxes of all studies, and where those of each study_id start and how many they are."""
        table = read_table(self.path / "boxes.parquet", BOXES).select(*BOXES).sort("study_id", maintain_order=True)
        runs = table["study_id"].rle().struct.unnest()
        starts = runs["len"].cum_sum() - runs["len"]
        return table.drop("study_id"), dict(zip(runs["value"], zip(starts, runs["len"], strict=True), strict=True))

    def boxes(self, index: int) -> list[Box]:
        """Boxes and ellipses of study ``index`` in original image pixels."""
        if not self.has_boxes:
            return []
        table, places = self._boxes
        own = table.slice(*places.get(self._row(index)["study_id"], (0, 0)))
        return [Box(**row) for row in own.iter_rows(named=True)]

    def check(self) -> None:
        """Read every file and compare it with its checksum.

        Raises:
            InputError: names the file that differs.
        """
        for name, expected in self.meta["checksums"].items():
            if sha256(self.path / name) != expected:
                raise InputError(
                    f"{str(self.path / name)!r} has changed since it was written (its checksum differs); {COPY_AGAIN}"
                )


def resplit(
    path: str | Path, by: str = "patient", fractions: tuple[float, float, float] = (0.7, 0.15, 0.15), seed: int = 0
) -> Cohort:
    """Give an existing cohort a new split, by ``"patient"`` or ``"image"``. Pixels are not touched.

    Killed half-way, the cohort is refused by :meth:`Cohort.open` until it is split again.

    Raises:
        InputError: there is no cohort, the arguments are no split, or another process splits it.
        StorageError: the disk is full, read-only or broken.
    """
    path = Path(path)
    if by not in ("patient", "image"):
        raise InputError(f"by is {by!r}; {nearest(by, ('patient', 'image'))}.")
    if not (path / "cohort.json").is_file():
        raise InputError(_why_not_a_cohort(path))
    with folder_lock(path, "splitting"):
        meta = _read_description(path)
        # Not Cohort.open: this is the way out of a split that it refuses.
        cohort = Cohort(path, meta, read_studies(path / "studies.parquet", meta))
        if "shortcut" in meta:
            raise InputError(
                f"The shortcut planted in {str(path)!r} belongs to its split (test images are marked otherwise); "
                "split the cohort it was made from, and plant the shortcut again."
            )
        if by == "patient":
            splits = split_by_patient(cohort.studies["patient_id"].to_list(), cohort.strata, fractions, seed)
        else:
            splits = split_by_image([str(row) for row in cohort.studies["image_row"]], cohort.strata, fractions, seed)
        with atomic_path(path / "studies.parquet") as partial:
            cohort.studies.with_columns(pl.Series("split", splits)).write_parquet(partial)
            checksum = sha256(partial)
        meta |= {"split_by": by, "fractions": list(fractions), "seed": seed}
        meta["checksums"]["studies.parquet"] = checksum
        write_sealed(path / "cohort.json", meta)
    return Cohort.open(path)


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_description(path: Path) -> dict[str, Any]:
    meta = read_sealed(path / "cohort.json", "a cohort")
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{str(path)!r} has cohort format {found!r}; this radgaze reads format {FORMAT}: import it again, or "
            f"update radgaze."
        )
    check_meta(meta, path / "cohort.json")
    return dict(meta)


def _why_not_a_cohort(path: Path) -> str:
    unfinished = path if path.suffix == ".partial" else path.with_name(path.name + ".partial")
    if unfinished.is_dir():
        return (
            f"{str(path)!r} is a half-finished import; run the same import command again and it will go on from there."
        )
    if not path.exists():
        return f"{str(path)!r} does not exist; expected a cohort folder, make one with `radgaze import`."
    return f"{str(path)!r} is no cohort (it has no cohort.json); make one with `radgaze import`."
