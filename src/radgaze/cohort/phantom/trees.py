"""Write made-up studies as a folder that looks like EGD-CXR or REFLACX beside MIMIC-CXR.

Both data sets are credentialed: nothing here comes from them but what their public documentation says. Every id, name,
date, word and number is invented, so the trees may be shared, and it is the real importers that read them.

``OUT/egd-cxr/1.0.0/...`` or ``OUT/reflacx/{main_data,gaze_data}`` hold the tables, ``OUT/mimic-cxr/files/...`` the
images. Beside them lies what no real data set has: ``OUT/phantom.json`` (how the tree was made) and
``OUT/lesions.csv`` (every lesion drawn, and its visibility).

The gaze presets' sigmas are pixels of a radiograph some 3,000 pixels tall. For these smaller ones scale them by height
/ 3056, or attention maps come out three times too smooth at the default height of 1,024.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.progress import track

from radgaze.cohort.phantom import egd_cxr, reflacx
from radgaze.cohort.phantom.anatomy import check
from radgaze.cohort.phantom.images import ImageFormat, Job, identities
from radgaze.errors import InputError, nearest

__all__ = ["Layout", "make_phantom"]

Layout = Literal["egd-cxr", "reflacx"]

_WRITERS = {"egd-cxr": egd_cxr.write_tree, "reflacx": reflacx.write_tree}


def make_phantom(
    out: str | os.PathLike[str],
    *,
    studies: int = 200,
    layout: Layout = "egd-cxr",
    seed: int = 0,
    image_size: tuple[int, int] = (1024, 852),
    difficulty: float = 0.3,
    image_format: ImageFormat = "dcm",
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a made-up data set in the layout of EGD-CXR or REFLACX.

    Args:
        out: folder to make; it must not exist, or be empty.
        studies: number of images, spread evenly over Normal, CHF and pneumonia. One in twenty is a further study of an
            earlier patient. A REFLACX tree has more readings than images.
        layout: ``"egd-cxr"`` or ``"reflacx"``.
        seed: the same arguments give the same bytes.
        image_size: (height, width) in pixels. The field's radiographs are about (3056, 2544), which works but takes
            some 5 s and 16 MB an image; the default keeps their shape at a third of the side.
        difficulty: 0 (plain disease) to 1 (none shows), see :func:`radgaze.cohort.phantom.expose`.
        image_format: ``"dcm"`` (12-bit DICOM, about a third of them MONOCHROME1) or ``"jpg"`` (8 bits, as
            MIMIC-CXR-JPG).
        workers: processes; default one per core.
        progress: show a progress bar on stderr.

    Returns:
        ``out``. It appears complete or not at all: the work is done in ``OUT.partial`` and then renamed.

    Raises:
        InputError: ``out`` is not empty, ``studies`` or ``workers`` is less than 1, an argument is none of its
            choices, or no image can be drawn at this size or difficulty.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{str(target)!r} exists and is not empty; choose a new folder, or remove that one first.")
    for name, value, choices in (
        ("layout", layout, get_args(Layout)),
        ("image_format", image_format, get_args(ImageFormat)),
    ):
        if value not in choices:
            raise InputError(f"{name} is {value!r}; {nearest(value, choices)}.")
    if studies < 1 or (workers is not None and workers < 1):
        raise InputError(f"studies is {studies} and workers {workers}; expected at least 1 of each.")
    check(image_size, difficulty)
    work = target.with_name(target.name + ".partial")
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    jobs = [Job(work, identity, seed, image_size, difficulty, image_format) for identity in identities(studies, seed)]
    processes = min(workers or os.cpu_count() or 1, studies)

    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        if processes == 1:
            yield from map(function, items)
            return
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            yield from pool.map(function, items, chunksize=2)

    made = track(
        _WRITERS[layout](jobs, work, run),
        "Drawing studies",
        total=studies,
        console=Console(stderr=True),
        disable=not progress,
    )
    with open(work / "lesions.csv", "w", newline="", encoding="utf-8") as file:
        lesions = csv.writer(file, lineterminator="\n")
        lesions.writerow(["dicom_id", "label", "name", "xmin", "ymin", "xmax", "ymax", "visibility"])
        for identity, drawn in made:
            for lesion in drawn:
                edges = (round(edge, 1) for edge in lesion.box)
                lesions.writerow([identity.dicom_id, identity.label, lesion.name, *edges, round(lesion.visibility, 3)])
    recipe = {
        "layout": layout,
        "studies": studies,
        "seed": seed,
        "image_size": list(image_size),
        "difficulty": difficulty,
        "image_format": image_format,
    }
    (work / "phantom.json").write_text(json.dumps(recipe, indent=1) + "\n")
    if target.exists():
        target.rmdir()
    work.rename(target)
    return target
