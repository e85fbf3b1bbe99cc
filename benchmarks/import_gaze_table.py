"""The gaze of EGD-CXR: 1.5 million rows of 37 columns (about 400 MB) read and cut into studies.

    python benchmarks/import_gaze_table.py [--rounds N]

Reference: pandas.read_csv of the whole file, then groupby("DICOM_ID"), as the papers' code does it. Every run is a
fresh process. Time excludes imports. Memory is what the work added at its peak to what the imports took. The last rows
are the whole import of the same file with 1,083 tiny images, so that pixels cost next to nothing. The values of the
file are invented.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from _bench import Floor, Row, peak_mb, ratio, row, run

IMAGES = 1083
ROWS = 1_500_000
PANDAS = "pandas.read_csv and groupby"
HEADER = (
    "SESSION_ID,MEDIA_ID,DICOM_ID,CNT,Time (in secs),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,BPOGX,"
    "BPOGY,BPOGV,LPCX,LPCY,LPD,LPS,LPV,RPCX,RPCY,RPD,RPS,RPV,BKID,BKDUR,BKPMIN,LPMM,LPMMV,RPMM,RPMMV,SACCADE_MAG,"
    "SACCADE_DIR,VID_FRAME,X_ORIGINAL,Y_ORIGINAL"
)


def image_ids() -> list[str]:
    rng = np.random.default_rng(0)
    return ["-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 5)) for _ in range(IMAGES)]


def write_gaze(path: Path, rows: int) -> None:
    import polars as pl

    flags = ("FPOGV", "BPOGV", "LPV", "RPV", "LPMMV", "RPMMV")
    names = HEADER.split(",")
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(f"{HEADER}\n".encode())
        for number, image in enumerate(image_ids()):
            count = rows * (number + 1) // IMAGES - rows * number // IMAGES
            columns = {name: np.round(rng.random(count), 5) for name in names}
            columns |= {name: (rng.random(count) < 0.9).astype(int) for name in flags}
            columns |= {"SESSION_ID": np.full(count, number // 30 + 1), "MEDIA_ID": np.full(count, number % 30)}
            columns |= {"DICOM_ID": np.full(count, image), "CNT": np.arange(count), "FPOGID": np.arange(count) // 20}
            columns |= {"Time (in secs)": np.round(np.arange(count) / 60, 5)}
            columns |= {"BKID": np.maximum(rng.integers(-50, 9, count), 0)}
            columns |= {"TIMETICK(f=10000000)": rng.integers(10**11, 10**12, count)}
            columns |= {name: np.round(10 + 5 * rng.random(count), 5) for name in ("LPD", "RPD")}
            columns |= {name: np.round(300 * rng.random(count), 5) for name in ("SACCADE_MAG", "SACCADE_DIR")}
            columns |= {"X_ORIGINAL": rng.integers(-100, 2544, count), "Y_ORIGINAL": rng.integers(-100, 3056, count)}
            file.write(pl.DataFrame(columns).write_csv(include_header=False).encode())


def write_tree(folder: Path) -> None:
    """The rest of an EGD-CXR tree around ``eye_gaze.csv``: the sheet and images of 32x26 pixels."""
    from PIL import Image

    lines = ["dicom_id,path,patient_id,Normal,CHF,pneumonia"]
    for number, image in enumerate(image_ids()):
        one_hot = ",".join("1" if number % 3 == position else "0" for position in range(3))
        lines.append(f"{image},files/{image}.dcm,{10_000_000 + number},{one_hot}")
        Image.fromarray(np.full((32, 26), 1 + number % 200, np.uint8)).save(folder / f"{image}.png")
    (folder / "master_sheet.csv").write_text("\n".join(lines) + "\n")


# ---- the work, each in a process of its own; a function imports first and returns the work


def pandas_groupby(file: Path) -> Callable[[], tuple[int, float]]:
    import pandas as pd

    def work() -> tuple[int, float]:
        groups = pd.read_csv(file).groupby("DICOM_ID")
        points = {name: (rows["X_ORIGINAL"].to_numpy(), rows["Y_ORIGINAL"].to_numpy()) for name, rows in groups}
        return len(points), float(sum(x.sum() + y.sum() for x, y in points.values()))

    return work


def radgaze_table(file: Path) -> Callable[[], tuple[int, float]]:
    from radgaze.cohort.sources.gaze_table import read_gaze_table

    images = image_ids()

    def work() -> tuple[int, float]:
        table = read_gaze_table(file, images)
        points = {name: (rows.x, rows.y) for name in images if (rows := table.of(name)) is not None}
        return len(points), float(sum(x.sum() + y.sum() for x, y in points.values()))

    return work


def radgaze_import(file: Path) -> Callable[[], tuple[int, float]]:
    from radgaze.cohort.sources.egd_cxr import import_egd_cxr

    def work() -> tuple[int, float]:
        with tempfile.TemporaryDirectory() as out:
            cohort = import_egd_cxr(file.parent, file.parent, Path(out) / "cohort", size=(32, 26), progress=False)
            gazes = [study.gaze for study in cohort]
            return len(gazes), float(sum((gaze.x + gaze.y).sum() for gaze in gazes if gaze is not None))

    return work


JOBS = {job.__name__: job for job in (pandas_groupby, radgaze_table, radgaze_import)}


def run_job(name: str, file: Path) -> None:
    work = JOBS[name](file)
    before, start = peak_mb(), time.perf_counter()
    studies, total = work()
    figures = {"seconds": time.perf_counter() - start, "added": peak_mb() - before}
    print(json.dumps(figures | {"studies": studies, "total": total}))


def measure(rounds: int) -> list[Row]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in JOBS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "eye_gaze.csv"
        write_gaze(file, ROWS)
        write_tree(file.parent)
        size = file.stat().st_size
        reading = []
        for _ in range(rounds):  # in turns: another load of the machine meets all of them
            start = time.perf_counter()
            file.read_bytes()
            reading.append(time.perf_counter() - start)
            for name in JOBS:
                command = [sys.executable, __file__, "--job", name, str(file)]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                runs[name].append(json.loads(answer))
    answers = {(one["studies"], one["total"]) for several in runs.values() for one in several}
    assert len(answers) == 1, f"the ways disagree: {answers}"

    table = f"eye_gaze.csv, {ROWS / 1e6:g} M rows, {size / 1e6:.0f} MB"
    floor = Floor(min(reading), "reading its bytes")
    figures = {
        key: {name: [one[key] for one in several] for name, several in runs.items()} for key in ("seconds", "added")
    }
    rows = []
    for work, job, faster, smaller in (
        (table, "radgaze_table", 8, 4),
        (f"{table}: the whole import", "radgaze_import", None, None),
    ):
        seconds, memory = (figures[key]["pandas_groupby"] for key in ("seconds", "added"))
        rows.append(row(work, PANDAS, seconds, figures["seconds"][job], target=faster, floor=floor, check="0"))
        rows.append(
            Row(
                f"{work}, memory",
                PANDAS,
                statistics.median(memory),
                statistics.median(figures["added"][job]),
                *ratio(memory, figures["added"][job]),
                unit="MB",
                target=smaller,
            )
        )
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        run_job(sys.argv[2], Path(sys.argv[3]))
    else:
        run(measure, 3, __doc__)
