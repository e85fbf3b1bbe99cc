"""A cohort with a planted shortcut, to see what a network's decision rests on (shortcut learning: Geirhos et al.,
Nature Machine Intelligence 2020; a hospital's marker that gives the disease away: Zech et al., PLOS Medicine 2018).

A bright square stands in one corner of every image. In the training and validation splits the corner gives the class
away in a share ``rate`` of the studies, as a portable scanner's token may in a hospital; the others have it in a corner
drawn by lot. In the test split that bond is broken. A network that learned the marker does well on validation, where
the marker still helps, and badly on test; one that learned the lungs does not mind.

Images of one patient are marked one by one. Readings of one image share its pixels, and so its marker.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from radgaze.cohort.store import Cohort, sha256
from radgaze.errors import InputError, nearest
from radgaze.files import folder_lock, publish, write_sealed
from radgaze.gaze import Grid

__all__ = ["CORNERS", "TestMarkers", "plant_shortcut"]

TestMarkers = Literal["random", "absent", "swapped"]

CORNERS = ("top left", "top right", "bottom left", "bottom right")
WHITE = 65535
MARGIN = 0.02  # of the image's shorter side, between the marker and the edge


def plant_shortcut(
    cohort: Cohort | Path | str,
    out: Path | str,
    *,
    rate: float = 0.95,
    test: TestMarkers = "random",
    size: float = 0.08,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Cohort:
    """Copy a cohort with a marker in a corner of every image that gives its class away, except in the test split.

    Args:
        cohort: Open cohort or its folder; it is not changed.
        out: Folder of the copy, which must not exist.
        rate: Share of the training and validation images whose marker stands in their own class's corner for certain,
            in [0, 1]. The others' corner is drawn by lot among all classes', their own included: 0 plants no shortcut.
        test: Test images have a corner by lot (``"random"``), no marker (``"absent"``), or that of another class than
            their own (``"swapped"``, the worst case).
        size: Side of the marker, as a share of the image's shorter side.
        classes: The classes that have a corner, in the order of :data:`CORNERS`; by default all of the cohort's. An
            image of another class has no corner of its own: it is marked by lot.
        seed: Of the lots.

    Returns:
        The copy. ``meta["shortcut"]`` keeps these settings, and the column ``attr_marker`` of its studies the class
        whose corner is marked.

    Raises:
        InputError: ``out`` exists, a share is out of range, or there are not two to four classes to give away.
    """
    cohort, out = cohort if isinstance(cohort, Cohort) else Cohort.open(cohort), Path(out)
    chosen = list(cohort.classes if classes is None else classes)
    check_arguments(cohort, out, rate, test, size, chosen)
    markers = draw_markers(cohort, chosen, rate, test, seed)
    _ = cohort.images  # a damaged file is refused before it is copied
    settings = {"rate": rate, "test": test, "size": size, "classes": chosen, "seed": seed, "of": cohort.name}
    partial = out.with_name(out.name + ".partial")
    with folder_lock(partial, "planting a shortcut in"):
        finished = partial / "cohort"
        shutil.rmtree(finished, ignore_errors=True)  # of a try that was killed; seconds of work
        finished.mkdir()
        for name in cohort.meta["checksums"]:
            shutil.copyfile(cohort.path / name, finished / name)
        draw_on_images(cohort, markers, size, finished / "images.npy")
        names = [chosen[markers[row]] if markers[row] >= 0 else None for row in cohort.studies["image_row"]]
        cohort.studies.with_columns(attr_marker=pl.Series(names, dtype=pl.String)).write_parquet(
            finished / "studies.parquet"
        )
        changed = {name: sha256(finished / name) for name in ("images.npy", "studies.parquet")}
        meta = {**cohort.meta, "name": f"{cohort.name}, shortcut", "shortcut": settings}
        write_sealed(finished / "cohort.json", {**meta, "checksums": {**cohort.meta["checksums"], **changed}})
        publish(finished, out, partial)
    return Cohort.open(out)


def check_arguments(cohort: Cohort, out: Path, rate: float, test: str, size: float, classes: Sequence[str]) -> None:
    if out.exists():
        raise InputError(f"{str(out)!r} exists already; choose another folder, or remove it first.")
    if test not in get_args(TestMarkers):
        raise InputError(f"test is {test!r}: {nearest(test, get_args(TestMarkers))}")
    if not 0 <= rate <= 1:
        raise InputError(f"rate is {rate:g}; expected the share of images that the marker gives away, from 0 to 1.")
    if not 0 < size <= 0.25:
        raise InputError(f"size is {size:g}; expected a share of the image's shorter side, above 0 and up to 0.25.")
    for name in classes:
        if name not in cohort.classes:
            raise InputError(f"Cohort {cohort.name!r} has no class {name!r}: {nearest(name, cohort.classes)}")
    if not 2 <= len(set(classes)) == len(classes) <= len(CORNERS):
        raise InputError(
            f"There are {len(classes)} classes to give away ({', '.join(classes) or 'none'}); an image has four "
            "corners, so name two to four different classes."
        )


def draw_markers(
    cohort: Cohort, classes: Sequence[str], rate: float, test: TestMarkers, seed: int
) -> NDArray[np.int64]:
    """For each image the place in ``classes`` whose corner is marked, −1 for no marker."""
    rows = cohort.studies["image_row"].to_numpy()
    images, first = np.unique(rows, return_index=True)  # readings of one image: as its first study says
    lots = np.random.default_rng(seed).random((len(images), 2))
    markers = np.full(int(rows.max()) + 1, -1, dtype=np.int64)
    strata, splits = cohort.strata, cohort.studies["split"].to_list()
    for image, study, (given, corner) in zip(images, first, lots, strict=True):
        own = classes.index(strata[study]) if strata[study] in classes else None
        by_lot = int(corner * len(classes))
        if splits[study] != "test":
            markers[image] = own if own is not None and given < rate else by_lot
        elif test == "swapped" and own is not None:
            others = [place for place in range(len(classes)) if place != own]
            markers[image] = others[int(corner * len(others))]
        elif test != "absent":
            markers[image] = by_lot
    return markers


def draw_on_images(cohort: Cohort, markers: NDArray[np.int64], size: float, path: Path) -> None:
    """Draw the markers into ``path``, a copy of the cohort's ``images.npy``."""
    images = np.lib.format.open_memmap(path, mode="r+")
    for study in cohort:  # readings of one image draw the same marker again
        if markers[study.image_row] >= 0:
            rows, columns = marked_pixels(study.source_size, study.grid, size)[markers[study.image_row]]
            images[study.image_row, rows, columns] = WHITE
    images.flush()


def marked_pixels(source_size: tuple[int, int], grid: Grid, size: float) -> list[tuple[slice, slice]]:
    """Rows and columns of the marker in each corner of the image that ``grid`` shows, padding left out."""
    (top, bottom), (left, right) = (
        visible(start, step, count, extent)
        for start, step, count, extent in zip(
            (grid.y0, grid.x0), (grid.dy, grid.dx), grid.size, source_size, strict=True
        )
    )
    shorter = min(bottom - top, right - left)
    side, margin = max(2, round(size * shorter)), max(1, round(MARGIN * shorter))
    rows = (slice(top + margin, top + margin + side), slice(bottom - margin - side, bottom - margin))
    columns = (slice(left + margin, left + margin + side), slice(right - margin - side, right - margin))
    return [(row, column) for row in rows for column in columns]


def visible(start: float, step: float, count: int, extent: int) -> tuple[int, int]:
    """The range of ``count`` grid pixels (centres ``start + i * step``) whose centre lies on the image."""
    centres = start + step * np.arange(count)
    inside = np.flatnonzero((centres > -0.5) & (centres < extent - 0.5))
    return int(inside[0]), int(inside[-1]) + 1
