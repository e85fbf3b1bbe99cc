"""Preparing studies of EGD-CXR for training, and loading them again, against the papers' way of both.

    python benchmarks/studies.py [--rounds N]

Studies are synthetic, at EGD-CXR's sizes: DICOM of about 3056x2544 pixels, 1,500 gaze samples, masks of the lungs and
the mediastinum. Preparing is `radgaze.import_egd_cxr` of all of them, tables and checksums included, at 640x512 on the
papers' canvas, divided by their number; the papers' way (`_papers.py`) is timed without its tables. The floor is the
decoding of the same files, which no way can leave out: pydicom, and OpenCV for three masks. Of the masks radgaze stores
more than the papers (each lung, both, the mediastinum, the aortic knob), so the size is told for two of them too.

Loading is an epoch in batches of 6 with two workers (the papers' are processes, radgaze's threads), attention maps as
training needs them.
The papers' way reads saved maps; radgaze's renders them from gaze points, which is what lets it augment them, and so
there is a row without them too. The floor copies the images' bytes once.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cv2
import pandas as pd
import pydicom
import torch
from torch.utils.data import DataLoader

from _bench import Floor, Row, Way, alternate, bandwidth, ratio, row, run
from _papers import MASKS, PreparedStudies, prepare
from radgaze.cohort import Cohort
from radgaze.cohort.phantom import make_phantom
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.training.attention import AttentionTarget
from radgaze.training.data import Batches, CohortDataset, Loader

STUDIES = 8
REPEATS = 12  # of the studies in an epoch of loading, so that starting the processes counts for little
BATCH, WORKERS = 6, 2
SIZE, CANVAS = (640, 512), (3200, 2560)


class Source:
    """A synthetic EGD-CXR and where its pieces lie."""

    def __init__(self, folder: Path) -> None:
        made = make_phantom(folder / "data", studies=STUDIES, image_size=(3056, 2544), progress=False)
        self.egd, self.mimic, self.cohort = made / "egd-cxr", made / "mimic-cxr", folder / "cohort"
        (tables,) = {path.parent for path in self.egd.rglob("master_sheet.csv")}
        sheet = pd.read_csv(tables / "master_sheet.csv")
        self.dicoms = {name: self.mimic / path for name, path in zip(sheet["dicom_id"], sheet["path"], strict=True)}
        self.masks = {name: tables / "audio_segmentation_transcripts" / name for name in self.dicoms}
        self.gaze = dict(list(pd.read_csv(tables / "eye_gaze.csv").groupby("DICOM_ID")))

    def import_all(self) -> Cohort:
        return import_egd_cxr(
            self.egd,
            self.mimic,
            self.cohort,
            size=SIZE,
            fit="canvas",
            canvas=CANVAS,
            workers=1,
            overwrite=True,
            progress=False,
        )

    def decode(self, name: str) -> None:
        pydicom.dcmread(self.dicoms[name]).pixel_array.sum()
        for mask in MASKS:
            cv2.imread(str(self.masks[name] / f"{mask}.png"), cv2.IMREAD_GRAYSCALE)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def preparing(rounds: int, source: Source, folder: Path) -> list[Row]:
    prepared = folder / "prepared"
    prepared.mkdir()

    def papers() -> None:
        for name, dicom in source.dicoms.items():
            prepare(dicom, source.masks[name], source.gaze[name], prepared / f"{name}.pt")

    def decoders() -> None:
        for name in source.dicoms:
            source.decode(name)

    ways: dict[str, Way] = {"papers": papers, "radgaze": source.import_all, "decoders": decoders}
    seconds = {name: [value / STUDIES for value in values] for name, values in alternate(ways, rounds).items()}
    reference = "the papers' preparation"
    prepared_row = row(
        "one study of EGD-CXR prepared, one process",
        reference,
        seconds["papers"],
        seconds["radgaze"],
        target=20,
        floor=Floor(statistics.median(seconds["decoders"]), "its files decoded"),
    )
    stored, masks = size_of(source.cohort), (source.cohort / "masks.npy").stat().st_size
    five = len(Cohort.open(source.cohort).structures)
    sizes = {
        "its image, gaze and two masks": stored - masks * (five - 2) / five,
        f"all of it, {five} masks": stored,
    }

    def stored_row(what: str, size: float) -> Row:
        theirs, ours = size_of(prepared) / STUDIES / 1e6, size / STUDIES / 1e6
        return Row(
            f"one study of EGD-CXR stored, {what}",
            reference,
            theirs,
            ours,
            *ratio([theirs], [ours]),
            unit="MB",
            target=50,
        )

    return [prepared_row, *(stored_row(what, size) for what, size in sizes.items())]


def loading(rounds: int, folder: Path) -> list[Row]:
    cohort = Cohort.open(folder / "cohort")
    files = sorted((folder / "prepared").glob("*.pt"))
    studies = cohort.indices("all").repeat(REPEATS)

    def epoch(batches: Iterable[object]) -> None:
        for _ in batches:
            pass

    def ours(attention: AttentionTarget | None) -> Loader:
        dataset = CohortDataset(cohort, studies, attention)
        return Loader(dataset, Batches(len(dataset), BATCH, shuffle=True), workers=WORKERS, pin=False)

    loaders: dict[str, Iterable[object]] = {
        "papers": DataLoader(
            PreparedStudies(files, REPEATS), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
        ),
        "maps": ours(AttentionTarget("gaze")),
        "images": ours(None),
    }
    ways = {name: partial(epoch, made) for name, made in loaders.items()}
    seconds = {name: [value / len(studies) for value in values] for name, values in alternate(ways, rounds).items()}
    copied = Floor(2 * SIZE[0] * SIZE[1] * 4 / bandwidth(), "memory")
    reference = f"the papers' saved tensors, {WORKERS} workers"
    return [
        row("one study loaded, image and attention map", reference, seconds["papers"], seconds["maps"], target=10),
        row("one study loaded, image alone", reference, seconds["papers"], seconds["images"], floor=copied),
    ]


def measure(rounds: int) -> list[Row]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = Source(folder)
        return [*preparing(rounds, source, folder), *loading(rounds, folder)]


if __name__ == "__main__":
    run(measure, 3, __doc__)
