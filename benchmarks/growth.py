"""How time and memory grow with size, over at least a hundredfold range, up to a cohort of 100,000 studies.

    python benchmarks/growth.py [--rounds N] [--largest N]

Every size runs in a process of its own. Seconds are the least of the rounds, without imports; memory is what the work
added at its peak to what the process held before it. An exponent is the slope of a straight line through the logarithms
of all sizes (least squares): 1 is proportional, 2 quadratic. Time that does not depend on size lowers it.

Cohorts are made of generic tables: images of 32x32 pixels, 40 gaze points and a label for each study, 1.1 studies a
patient. They are imported (two reader processes where there are many), opened and read once from end to end, and
evaluated with an MT-UNet of width 4 that learned from 64 of them: attention, fixations, classes, and the bootstrap over
patients, without Grad-CAM.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from _bench import digits, limits, machine, markdown, peak_mb, write_figures
from radgaze.cohort import Cohort
from radgaze.cohort.sources.tables import import_tables
from radgaze.gaze import Gaze, render
from radgaze.inference import evaluate
from radgaze.measures import classification, saliency
from radgaze.measures.statistics import bootstrap
from radgaze.redundancy import mssim
from radgaze.training import fit

POINTS = 40
SIDE = 32
Work = Callable[[], object]


# Each job makes its input and returns the work on it -----------------------------------------------------------------


def rendered_points(points: int, folder: Path) -> Work:
    xy = np.random.default_rng(0).integers(0, 2500, (2, points))
    gaze = Gaze(*xy)
    render(Gaze([5], [5]), (3056, 2544), size=(640, 512))  # the table of an image shape is not part of this
    return lambda: render(gaze, (3056, 2544), size=(640, 512))


def rendered_map(pixels: int, folder: Path) -> Work:
    side = math.isqrt(pixels)
    gaze = Gaze(*np.random.default_rng(0).integers(0, 2500, (2, 1500)))
    render(Gaze([5], [5]), (3056, 2544), size=(side, side))
    return lambda: render(gaze, (3056, 2544), size=(side, side))


def compared_kernels(kernels: int, folder: Path) -> Work:
    maps = torch.rand(kernels, 14, 14)
    return lambda: mssim(maps)


def compared_pixels(pixels: int, folder: Path) -> Work:
    side = math.isqrt(pixels)
    maps = torch.rand(64, side, side)
    return lambda: mssim(maps)


def measured_maps(studies: int, folder: Path) -> Work:
    maps = torch.rand(2, studies, 64, 64)
    return lambda: saliency.all_measures(maps[0], maps[1], maps[1] > 0.99)


def bootstrapped(studies: int, folder: Path) -> Work:
    probabilities = torch.rand(studies, 3, dtype=torch.float64).softmax(1)
    targets = torch.arange(studies) % 3
    return lambda: bootstrap(
        lambda weights: classification.auc_macro(probabilities, targets, weights), range(studies), resamples=2000
    )


def imported(studies: int, folder: Path) -> Work:
    if not (folder / "tables").exists():
        write_tables(folder / "tables", studies)
    return lambda: import_tables(
        folder / "tables" / "images.csv",
        folder / "cohort",
        gaze=folder / "tables" / "gaze.csv",
        size=(SIDE, SIDE),
        overwrite=True,
        progress=False,
    )


def read_through(studies: int, folder: Path) -> Work:
    def work() -> None:
        for study in Cohort.open(folder / "cohort"):
            assert study.gaze is not None
            assert study.image.any()

    return work


def evaluated(studies: int, folder: Path) -> Work:
    if not (folder / "run").exists():
        settings = {"model": {"width": 4}, "sigma": 2.0, "epochs": 1, "train_studies": 64}
        fit(folder / "cohort", folder / "run", "mt-unet", progress=False, **settings)
    return lambda: evaluate(folder / "run", split="all", batch_size=64, grad_cam=False, progress=False)


def write_tables(folder: Path, studies: int) -> None:
    """Images of noise with a bright disc, gaze near the disc, a label that says where it is."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    centres = rng.integers(8, SIDE - 8, (studies, 2))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number, (y, x) in enumerate(centres):
        pixels = rng.integers(0, 120, (SIDE, SIDE)) + 120 * ((rows - y) ** 2 + (columns - x) ** 2 < 16)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png", compress_level=1)
    names = [f"s{number}" for number in range(studies)]
    pl.DataFrame(
        {
            "study_id": names,
            "image": [f"images/{number}.png" for number in range(studies)],
            "patient_id": [f"p{number * 10 // 11}" for number in range(studies)],
            "label": np.where(centres[:, 1] < SIDE // 2, "left", "right"),
        }
    ).write_csv(folder / "images.csv")
    points = centres.repeat(POINTS, 0) + rng.normal(0, 2, (studies * POINTS, 2))
    pl.DataFrame(
        {
            "study_id": np.repeat(names, POINTS),
            "x": points[:, 1].round(2),
            "y": points[:, 0].round(2),
            "t": np.tile(np.arange(POINTS) / 60, studies).round(3),
        }
    ).write_csv(folder / "gaze.csv")


# Sizes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """A job over sizes; ``expected`` is the exponent of time that its algorithm has."""

    name: str
    job: Callable[[int, Path], Work]
    of: str
    sizes: tuple[int, ...]
    expected: str


SERIES = (
    Series("attention map 640x512", rendered_points, "points", (150, 1_500, 15_000, 150_000), "1"),
    Series("attention map of 1,500 points", rendered_map, "pixels", (32**2, 128**2, 512**2, 1024**2), "1"),
    Series("all-pairs MSSIM, maps 14x14", compared_kernels, "kernels", (16, 64, 256, 2048), "2"),
    Series("all-pairs MSSIM, 64 kernels", compared_pixels, "pixels", (11**2, 28**2, 56**2, 112**2), "1"),
    Series("saliency measures, maps 64x64", measured_maps, "studies", (100, 1_000, 10_000), "1"),
    Series("bootstrap of macro AUC, 2,000 resamples", bootstrapped, "studies", (100, 1_000, 10_000, 100_000), "1"),
)
COHORT = (
    Series("import of tables", imported, "studies", (1_000, 10_000, 100_000), "1"),
    Series("reading a cohort through", read_through, "studies", (1_000, 10_000, 100_000), "1"),
    Series("evaluation", evaluated, "studies", (1_000, 10_000, 100_000), "1"),
)
JOBS = {series.job.__name__: series.job for series in (*SERIES, *COHORT)}


@dataclass(frozen=True)
class Growth:
    """What a series came to: a value for each size, and the fitted exponents."""

    work: str
    of: str
    sizes: list[int]
    seconds: list[float]
    added_mb: list[float]
    exponent: float
    memory_exponent: float
    expected: str


def exponent(sizes: list[int], values: list[float]) -> float:
    slope, _ = np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)
    return float(slope)


def run_job(name: str, size: int, folder: Path, rounds: int) -> None:
    work = JOBS[name](size, folder)
    before, seconds = peak_mb(), []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(seconds), "added": peak_mb() - before}))


def grown(series: Series, folders: dict[int, Path], rounds: int) -> Growth:
    seconds, added = [], []
    for size, folder in folders.items():
        command = [sys.executable, __file__, "--job", series.job.__name__, str(size), str(folder), str(rounds)]
        answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        seconds.append(answer["seconds"])
        added.append(answer["added"])
    sizes = list(folders)
    return Growth(
        series.name,
        series.of,
        sizes,
        seconds,
        added,
        exponent(sizes, seconds),
        exponent(sizes, [max(value, 1.0) for value in added]),  # below a megabyte nothing is told from noise
        series.expected,
    )


def table(results: list[Growth]) -> str:
    header = ("work", "size", "seconds", "exponent (expected)", "memory added, MB", "its exponent")

    def cells(one: Growth) -> tuple[str, ...]:
        return (
            one.work,
            f"{' → '.join(f'{size:,}' for size in one.sizes)} {one.of}",
            " → ".join(digits(value) for value in one.seconds),
            f"{one.exponent:.2f} ({one.expected})",
            " → ".join(digits(value) for value in one.added_mb),
            f"{one.memory_exponent:.2f}",
        )

    return markdown(header, [cells(one) for one in results])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of all but the cohorts, which run once")
    parser.add_argument("--largest", type=int, default=100_000, help="studies of the largest cohort")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    arguments = parser.parse_args()
    started = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [grown(series, dict.fromkeys(series.sizes, folder), arguments.rounds) for series in SERIES]
        folders = {}
        for size in COHORT[0].sizes:
            if size <= arguments.largest:
                folders[size] = folder / str(size)
                folders[size].mkdir()
        results += [grown(series, folders, 1) for series in COHORT]
    print(f"{started}\n{limits()}\n\n{table(results)}")
    write_figures(arguments.json, started, [asdict(one) for one in results])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        run_job(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
