"""What all of MIMIC-CXR (377,110 images) would take, from what one image takes here at full size.

    python benchmarks/whole_data_set.py [--rounds N]

Synthetic radiographs as uncompressed DICOM of about 3056x2544 pixels: imported at 640x512 by one process, then by all
cores; predicted from their files, pictures and maps left out, by MT-UNet of width 64 and by a ResNet shrunk to about
125,000 parameters at 224x224, both in int8; and a training step for each. Seconds are medians over rounds, for one
image; hours are 377,110 times that, on this one machine. Reading is what the system's cache gives, so a disk or network
that is slower than the importer is told by the bytes: their number over its rate is the least that an import takes.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import torch

from _bench import alternate, digits, markdown, run
from inference import SHRUNK, trained
from radgaze.cohort.phantom import make_phantom
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.cohort.sources.tables import import_tables
from radgaze.inference import export
from radgaze.inference.folder import predict
from radgaze.training import Run
from training import radgaze_step, random_batch

WHOLE = 377_110
IMAGES = 16
BATCH = 2  # studies of a training step
RATES = {"1 Gbit/s": 117e6, "10 Gbit/s": 1.17e9}  # bytes per second of a network share, without its overhead


@dataclass(frozen=True)
class Cost:
    """What one image takes: seconds, and bytes read or written where they matter."""

    work: str
    seconds: float
    read: int = 0
    written: int = 0


def importing(files: list[Path], folder: Path, workers: int) -> None:
    table = folder / "images.csv"
    pl.DataFrame({"study_id": [file.stem for file in files], "image": [str(file) for file in files]}).write_csv(table)
    import_tables(table, folder / "cohort", size=(640, 512), workers=workers, overwrite=True, progress=False)


def predicting(model: Path, files: list[Path], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        predict(model, files, out, overlays=False, progress=False)


def measure(rounds: int) -> list[Cost]:
    torch.manual_seed(0)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_phantom(folder / "data", studies=IMAGES, image_size=(3056, 2544), progress=False)
        files = sorted((data / "mimic-cxr").rglob("*.dcm"))
        models: dict[str, tuple[Path, Run]] = {}
        for title, size, method, model in (
            ("MT-UNet, width 64, 640x512, int8", (640, 512), "mt-unet", {"width": 64}),
            ("shrunk ResNet, 224x224, int8", (224, 224), "gg-cam", SHRUNK),
        ):
            cohort = import_egd_cxr(
                data / "egd-cxr", data / "mimic-cxr", folder / f"{size[0]}", size=size, progress=False
            )
            made = trained(cohort, folder / method, method, model)
            file = folder / f"{method}.xml"
            export(made, file, format="openvino", precision="int8", tolerance=1.0, progress=False)
            models[title] = file, made
        ways: dict[str, Callable[[], object]] = {
            "import, one process": partial(importing, files, folder, 1),
            f"import, {cores} processes": partial(importing, files, folder, cores),
        }
        for title, (file, _) in models.items():
            ways[f"predict, {title}"] = partial(predicting, file, files, folder)
        seconds = {what: statistics.median(times) / len(files) for what, times in alternate(ways, rounds).items()}
        read = sum(file.stat().st_size for file in files) // len(files)
        stored = sum(file.stat().st_size for file in (folder / "cohort").iterdir()) // len(files)
        costs = [Cost(what, value, read, stored if "import" in what else 0) for what, value in seconds.items()]
        return [*costs, *(trained_step(title, made, rounds) for title, (_, made) in models.items())]


def trained_step(title: str, made: Run, rounds: int) -> Cost:
    """Of an epoch, what one study takes."""
    network = made.network().train()
    batch = random_batch(BATCH, made.size, network.attention_size(made.size))
    times = alternate({"step": partial(radgaze_step(network, made.config.method), batch)}, rounds)["step"]
    return Cost(f"train, {title.rpartition(',')[0]}, one epoch", statistics.median(times) / BATCH)


def table(costs: list[Cost]) -> str:
    header = ("work", "one image", "all, hours", "reads, TB", *(f"at {rate}, hours" for rate in RATES), "writes, GB")

    def cells(cost: Cost) -> tuple[str, ...]:
        through = (digits(WHOLE * cost.read / rate / 3600) if cost.read else "" for rate in RATES.values())
        return (
            cost.work,
            f"{digits(1000 * cost.seconds)} ms",
            digits(WHOLE * cost.seconds / 3600),
            digits(WHOLE * cost.read / 1e12) if cost.read else "",
            *through,
            digits(WHOLE * cost.written / 1e9) if cost.written else "",
        )

    return markdown(header, [cells(cost) for cost in costs])


if __name__ == "__main__":
    run(measure, 3, __doc__, table)
