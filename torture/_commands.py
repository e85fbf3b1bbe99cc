"""The commands under torture, the small data they work on, and what may differ between two of their results."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radgaze.files import read_sealed

OUT = "out"
"""What every command writes, below the folder it is started in."""

SIZE, STUDIES, IMAGE_SIZE = "48x32", 36, "192x160"
QUIET = ("--quiet",)
SMALL = ("--set", "accelerator=cpu", "--set", "precision=fp32", "--set", "sigma=4.0", "--set", "patience=1")


@dataclass(frozen=True)
class Inputs:
    """What the commands read; made once, by commands that nobody disturbs."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def cohort(self) -> Path:
        return self.folder / "cohort"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def make(self) -> None:
        if self.run.exists():
            return
        undisturbed(["phantom", self.data, "--studies", STUDIES, "--image-size", IMAGE_SIZE, "--workers", 1, *QUIET])
        undisturbed([*import_arguments(self)[:-1], self.cohort])
        undisturbed([*train_arguments(self)[:-1], self.run])


@dataclass(frozen=True)
class Command:
    """A command that writes a folder (or a file) ``out``.

    Attributes:
        name: of the command.
        arguments: for the first start, ending in the name of what is written.
        again: what a later start has besides.
        last: what is written last, below the folder the command is started in: where it is, the work is done.
    """

    name: str
    arguments: Callable[[Inputs], list[Any]]
    again: tuple[str, ...]
    last: str


def import_arguments(inputs: Inputs) -> list[Any]:
    source = ["import", "egd-cxr", inputs.data / "egd-cxr" / "1.0.0", "--images", inputs.data / "mimic-cxr"]
    return [*source, "--size", SIZE, "--workers", 2, *QUIET, "--out", OUT]


def train_arguments(inputs: Inputs) -> list[Any]:
    options = ["--width", 2, "--epochs", 6, "--batch-size", 6]
    return ["train", "mt-unet", inputs.cohort, *options, *SMALL, *QUIET, "--out", OUT]


def simplify_arguments(inputs: Inputs) -> list[Any]:
    options = ["--start", "inherited", "--max-auc-drop", 1, "--ratio", 2, "--target-params", 4000, "--images", 2]
    return ["simplify", inputs.run, *options, "--epochs", 2, *QUIET, "--out", OUT]


def compare_arguments(inputs: Inputs) -> list[Any]:
    options = ["--methods", "mt-unet,other=mt-unet", "--seeds", 1, "--epochs", 2, "--resamples", 20, "--jobs", 2]
    settings = [*SMALL, "--set", "model.width=2", "--set", "batch_size=12", "--set", "other:augmentation.rotate=0.0"]
    return ["compare", inputs.cohort, *options, *settings, *QUIET, "--out", OUT]


def predict_arguments(inputs: Inputs) -> list[Any]:
    images = inputs.data / "mimic-cxr"
    return ["predict", inputs.run, images, "--maps", "--batch-size", 2, *QUIET, "--out", OUT]


def evaluate_arguments(inputs: Inputs) -> list[Any]:
    return ["evaluate", inputs.run, "--resamples", 20, *QUIET, "--out", OUT]


def export_arguments(inputs: Inputs) -> list[Any]:
    return ["export", inputs.run, "--format", "onnx", *QUIET, "--out", f"{OUT}/model.onnx"]


COMMANDS = {
    command.name: command
    for command in (
        Command("import", import_arguments, (), f"{OUT}/cohort.json"),
        Command("train", train_arguments, ("--resume",), f"{OUT}/weights.safetensors"),
        Command("simplify", simplify_arguments, ("--resume",), f"{OUT}/simplification.html"),
        Command("compare", compare_arguments, (), f"{OUT}/comparison.html"),
        Command("predict", predict_arguments, ("--resume",), f"{OUT}/predictions.csv"),
        Command("evaluate", evaluate_arguments, (), f"{OUT}/report.html"),
        Command("export", export_arguments, (), f"{OUT}/model.onnx"),
    )
}


def undisturbed(arguments: list[Any], cwd: Path | None = None) -> None:
    """A command as a user runs it, to its end.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "radgaze.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"radgaze {' '.join(command[3:])} ended with {done.returncode}: {done.stderr.strip()}")


def environment() -> dict[str, str]:
    """One thread and no GPU: what is compared must come out the same to the bit."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


# What may differ -----------------------------------------------------------------------------------------------------

MAY_DIFFER = {
    "seconds": "how long an epoch and a training took",
    "created": "the moment a cohort or report was made",
    "checksum": "of a JSON file with one of these in it; it is checked instead",
    "the working folder": "paths in texts; each attempt chain has a folder of its own",
    ".lock": "empty; its lock is the system's, not the file",
    "jobs/": "a comparison's jobs of the last call and what they printed; a call has only those that were left to do",
    "tensorboard/": "one file for each sitting, with its clock; the numbers in them are compared",
}
"""What is not compared, and why. Everything else is compared byte for byte."""

TIME = re.compile(r"<time .*?</time>", re.DOTALL)
TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
CELL = re.compile(r"<t[hd].*?</t[hd]>", re.DOTALL)
CLOCKS = ("seconds", "created", "Time")
"""Keys, columns and titles under which a clock's reading stands."""


def contents(folder: Path) -> dict[str, str]:
    """File to checksum, of everything a command made below ``folder``, without what may differ."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != ".lock" and not name.startswith(f"{OUT}/jobs/"):
            if path.parent.name != "tensorboard":
                found[name] = hashlib.sha256(comparable(path, folder)).hexdigest()
        elif path.is_dir() and path.name == "tensorboard":
            found[name] = json.dumps(scalars(path), sort_keys=True)
    return found


def comparable(path: Path, folder: Path) -> bytes:
    """What of a file must be the same."""
    if path.suffix not in (".json", ".jsonl", ".csv", ".html"):
        return path.read_bytes()
    if path.suffix == ".json":
        text = json.dumps(without_clocks(read_sealed(path, "it")))
    else:
        text = path.read_text()
    text = text.replace(str(folder), "FOLDER")
    if path.suffix == ".csv":
        rows = [{key: row[key] for key in row if key not in CLOCKS} for row in csv.DictReader(io.StringIO(text))]
        return json.dumps([text.partition("\n")[0], rows]).encode()
    return (TABLE.sub(without_clock_columns, TIME.sub("TIME", text)) if path.suffix == ".html" else text).encode()


def without_clock_columns(table: re.Match[str]) -> str:
    """A page's table without its columns of seconds, counted from the right: on the left a cell may span rows."""
    rows = [CELL.findall(row) for row in table[0].split("<tr>")]
    titles = [re.sub("<[^>]*>", "", cell) for cell in next((row for row in rows if row), [])]
    clocks = {place - len(titles) for place, title in enumerate(titles) if title in CLOCKS}
    if not clocks:
        return table[0]
    return json.dumps([[cell for place, cell in enumerate(row, -len(row)) if place not in clocks] for row in rows])


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clocks(entry) for key, entry in value.items() if key not in CLOCKS}
    return [without_clocks(entry) for entry in value] if isinstance(value, list) else value


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves as TensorBoard shows them: a later sitting replaces the steps that it repeats."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    curves: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_ctime_ns):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag not in CLOCKS:
                    curves.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
    return curves


def left_over(folder: Path) -> list[str]:
    """Half-written files and folders of work that are still there."""
    found = {path for pattern in ("*.partial", ".tmp*") for path in folder.rglob(pattern)}
    return sorted(path.relative_to(folder).as_posix() for path in found)
