"""Tables of docs/results.md from the comparison.json that `radgaze compare` leaves.

python benchmarks/quality/tables.py FOLDER/comparison.json [--measures auc_macro,cam:energy_inside,...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import markdown
from radgaze.files import read_json
from radgaze.report.glossary import describe
from radgaze.report.values import signed

MEASURES = (
    "auc_macro,accuracy,ece,cam:energy_inside,cam:pointing_game,cam:iou,cam:cc,grad_cam:energy_inside,saliency:cc"
)


def arm_row(arm: dict[str, Any], keys: list[str]) -> list[str]:
    return [f"{arm['name']}", f"{arm['parameters']:,}", *(over_seeds(arm["measures"].get(key)) for key in keys)]


def over_seeds(entry: dict[str, Any] | None) -> str:
    return "–" if entry is None else f"{entry['median']:.3f} ({entry['min']:.3f}–{entry['max']:.3f})"


def pair_row(pair: dict[str, Any], key: str) -> list[str] | None:
    entry = pair["measures"].get(key)
    if entry is None:
        return None
    seeds = "–" if entry["seed_low"] is None else f"[{signed(entry['seed_low'])}, {signed(entry['seed_high'])}]"
    adjusted = entry["p_adjusted"]
    return [
        f"{pair['first']} − {pair['second']}",
        describe(key).name,
        signed(entry["value"]),
        f"[{signed(entry['low'])}, {signed(entry['high'])}]",
        "–" if adjusted is None else f"{adjusted:.3f}",
        seeds,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--measures", default=MEASURES, help="those of comparison.json to show")
    arguments = parser.parse_args()
    comparison = read_json(arguments.comparison, "a comparison")
    wanted = arguments.measures.split(",")
    keys = [key for key in wanted if any(key in arm["measures"] for arm in comparison["arms"])]
    header = ["arm", "parameters", *(describe(key).name for key in keys)]
    print(markdown(header, [arm_row(arm, keys) for arm in comparison["arms"]]) + "\n")
    rows = [row for pair in comparison["pairs"] for key in keys if (row := pair_row(pair, key))]
    header = ["difference", "measure", "value", "over patients", "p, corrected", "over seeds"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
