"""The whole job on synthetic data: an EGD-CXR tree, its import, MT-UNet, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radgaze.cohort.phantom import make_phantom
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.errors import InputError
from radgaze.files import is_used, read_json, write_json
from radgaze.inference import evaluate
from radgaze.training import fit

__all__ = ["run_demo"]

NAME = "phantom (synthetic)"
SOURCE_SIZE = (512, 428)  # a sixth of a 3056x2544 radiograph, to spare the disk
SIZE = (160, 128)  # a quarter of the papers' 640x512
PRESET_SIGMA, PRESET_HEIGHT = 75.5, 3056  # the papers' blur, and the height of the radiographs it was made for


def run_demo(
    out: Path, *, studies: int = 240, epochs: int = 30, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Make, import, train and evaluate under ``out``; finished steps of an interrupted demo are not repeated.

    Returns:
        The report, as :func:`radgaze.evaluate` gives it.

    Raises:
        InputError: ``out`` holds a demo of other settings, or something else.
    """
    out = Path(out)
    settings = {"studies": studies, "epochs": epochs, "seed": seed}
    check_folder(out, settings)
    tree, cohort, run = out / "data", out / "cohort", out / "run"
    if not tree.exists():
        make_phantom(tree, studies=studies, image_size=SOURCE_SIZE, seed=seed, progress=progress)
    if not cohort.exists():
        import_egd_cxr(
            tree / "egd-cxr" / "1.0.0", tree / "mimic-cxr", cohort, name=NAME, size=SIZE, seed=seed, progress=progress
        )
    fit(
        cohort,
        run,
        "mt-unet",
        resume=True,
        progress=progress,
        model={"width": 16},
        sigma=PRESET_SIGMA * SOURCE_SIZE[0] / PRESET_HEIGHT,
        schedule="one-cycle",
        learning_rate=2e-3,
        optimizer="adamw",
        weight_decay=0.01,
        epochs=epochs,
        seed=seed,
    )
    return evaluate(run, progress=progress)


def check_folder(out: Path, settings: dict[str, int]) -> None:
    marker = out / "demo.json"
    if not is_used(out):
        write_json(marker, settings)
    elif not marker.exists():
        raise InputError(f"{str(out)!r} holds something else than a demo; choose another folder with --out.")
    elif read_json(marker, "a demo") != settings:
        raise InputError(
            f"{str(out)!r} holds a demo of other settings; remove it, or choose another folder with --out."
        )
