"""Does guidance help? GG-CAM against the same classifier without it, and MT-UNet, over seeds.

    python benchmarks/quality/guidance.py --work FOLDER [--data FOLDER] [--only kermany,shortcut,...]

    kermany      real chest X-rays, 756 training studies, two backbones; the target is the lung mask, not gaze
    kermany-all  the same, all 3,655 training studies
    shortcut     the same images with a corner marker that gives the class away, except in the test split
    phantom      synthetic chest X-rays with simulated gaze, 756 training studies (needs no data)

--data holds the images.csv, images.zip and lung_masks.zip of Kermany et al. Every part is one `radgaze compare` in the
work folder: finished runs are kept, so an interrupted benchmark goes on where it stopped. Prints the tables of
docs/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import RECIPE, markdown
from kermany import prepare
from radgaze.cohort import Cohort, plant_shortcut
from radgaze.cohort.phantom import make_phantom
from radgaze.cohort.sources.egd_cxr import import_egd_cxr
from radgaze.comparison import compare
from radgaze.report.glossary import describe
from radgaze.report.values import number, signed

SIZE = 112
PHANTOM_HEIGHT = 512
LUNGS = {**RECIPE, "attention": "mask:lungs"}
# a quarter of the width, so that some 50 trainings fit two cores; stride 16, so that the CAM has 7x7 cells at 112 px
RESNET = {"model": {"options": {"channels": [16, 32, 64, 128], "stem_width": 16, "output_stride": 16}}}
EFFICIENTNET = {
    "model": {"options": {"channel_multiplier": 0.25, "depth_multiplier": 0.5, "output_stride": 16}},
    "precision": "fp32",  # depthwise convolutions are slower in bf16 here
}
MT_UNET = {"model": {"width": 8}}
METHODS = ["classifier", "gg-cam", "mt-unet"]
BACKBONES = ["resnet50", "efficientnetv2_s"]
SHOWN = {
    "kermany": (
        "auc_macro",
        "ece",
        "cam:energy_inside",
        "decision:energy_inside",
        "grad_cam:energy_inside",
        "cam:pointing_game",
        "saliency:cc",
    ),
    "shortcut": ("auc_macro", "ece", "cam:energy_inside", "decision:energy_inside"),
    "phantom": ("auc_macro", "ece", "cam:cc", "decision:cc", "decision:energy_inside"),
}


def kermany(data: Path, work: Path) -> dict[str, Any]:
    return compare(
        prepare(data, work / "kermany", SIZE),
        work / "compare" / "kermany",
        METHODS,
        backbones=BACKBONES,
        train_studies=[756],
        seeds=5,
        settings={**LUNGS, "epochs": 16},
        settings_of={
            "resnet50": RESNET,
            "efficientnetv2_s": {**EFFICIENTNET, "epochs": 12},
            "mt-unet": MT_UNET,
        },
    )


def kermany_all(data: Path, work: Path) -> dict[str, Any]:
    return compare(
        prepare(data, work / "kermany", SIZE),
        work / "compare" / "kermany-all",
        METHODS,
        backbones=BACKBONES,
        seeds=2,
        settings={**LUNGS, "epochs": 3},  # nearly as many steps as 16 epochs of 756 studies
        settings_of={"resnet50": RESNET, "efficientnetv2_s": EFFICIENTNET, "mt-unet": MT_UNET},
    )


def shortcut(data: Path, work: Path) -> dict[str, Any]:
    planted = work / "kermany" / f"shortcut-{SIZE}"
    cohort = (
        Cohort.open(planted)
        if planted.exists()
        else plant_shortcut(prepare(data, work / "kermany", SIZE), planted, rate=0.95)
    )
    return compare(
        cohort,
        work / "compare" / "shortcut",
        ["classifier", "gg-cam", "decision=gg-cam"],
        backbones=["resnet50"],
        train_studies=[756],
        seeds=3,
        settings={**LUNGS, "epochs": 16},
        settings_of={
            "resnet50": RESNET,
            "gg-cam": {"objective": {"log_sigma_attention": -2}},
            "decision": {"objective": {"supervise": "decision"}},
        },
    )


def phantom(data: Path, work: Path) -> dict[str, Any]:
    tree, cohort = work / "phantom", work / "phantom-cohort"
    if not cohort.exists():
        if not tree.exists():
            size = (PHANTOM_HEIGHT, 428)
            make_phantom(tree, studies=2400, image_size=size, image_format="jpg", difficulty=0.84, seed=1)
        import_egd_cxr(tree / "egd-cxr", tree / "mimic-cxr", cohort, size=(160, 128), name="phantom 0.84")
    return compare(
        cohort,
        work / "compare" / "phantom",
        ["classifier", "gg-cam", "decision=gg-cam"],
        backbones=["resnet50"],
        train_studies=[756],
        seeds=3,
        settings={**RECIPE, "epochs": 20, "sigma": 12.6},  # 75.5 px of 3056 rows, in an image of 512
        settings_of={
            "resnet50": RESNET,
            "decision": {"objective": {"supervise": "decision", "log_sigma_attention": -2}},
        },
    )


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "kermany": kermany,
    "kermany-all": kermany_all,
    "shortcut": shortcut,
    "phantom": phantom,
}


def over_seeds(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return f"{number(entry['median'])} ({number(entry['min'])} to {number(entry['max'])})"


def pair_row(pair: dict[str, Any], key: str) -> list[str] | None:
    entry = pair["measures"].get(key)
    if entry is None or entry["low"] is None:
        return None
    seeds = "–" if entry["seed_low"] is None else f"[{signed(entry['seed_low'])}, {signed(entry['seed_high'])}]"
    return [
        f"{pair['first']} − {pair['second']}",
        describe(key).name,
        signed(entry["value"]),
        f"[{signed(entry['low'])}, {signed(entry['high'])}]",
        "–" if entry["p_adjusted"] is None else f"{entry['p_adjusted']:.3f}",
        seeds,
    ]


def tables(comparison: dict[str, Any], measures: Sequence[str]) -> str:
    """Median and range over seeds of every arm, and the paired differences."""
    keys = [key for key in measures if any(key in arm["measures"] for arm in comparison["arms"])]
    arms = [
        [arm["name"], f"{arm['parameters']:,}", *(over_seeds(arm["measures"].get(key)) for key in keys)]
        for arm in comparison["arms"]
    ]
    differences = [row for pair in comparison["pairs"] for key in keys if (row := pair_row(pair, key))]
    return "\n\n".join(
        [
            markdown(["arm", "parameters", *(describe(key).name for key in keys)], arms),
            markdown(["difference", "measure", "value", "over patients", "p, corrected", "over seeds"], differences),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="all parts but phantom need it")
    parser.add_argument("--only", default=",".join(PARTS), help="which parts")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if arguments.data is None and wanted != ["phantom"]:
        parser.error("--data is needed for all parts but phantom")
    for name in wanted:
        print(
            f"## {name}\n\n{tables(PARTS[name](arguments.data, arguments.work), SHOWN[name.removesuffix('-all')])}\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
