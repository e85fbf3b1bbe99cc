"""MT-UNet against its two single-task controls on real paediatric chest X-rays (Kermany et al. 2018, CC BY 4.0).

    python benchmarks/quality/kermany.py --data FOLDER --work FOLDER

FOLDER holds images.csv, images.zip and lung_masks.zip. The attention target is the lung mask: anatomy standing in for
gaze. Three seeds of each learning scheme are trained at 112x112, selected on validation, evaluated on the test split
(by patient). Finished steps are kept in the work folder, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import polars as pl
import torch

from common import markdown, over_seeds, train_and_evaluate
from radgaze.cohort import Cohort
from radgaze.cohort.sources.tables import import_tables
from radgaze.measures import classification, statistics

CLASSES = ("normal", "bacterial", "viral")
SCHEMES = ("uncertainty-class", "class-only", "saliency-only")
SETTINGS = {
    "attention": "mask:lungs",
    "model": {"width": 16},
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "schedule": "one-cycle",
}
CLASS_MEASURES = ("auc_macro", "auc_macro_ovo", "auc_micro", "accuracy", "ece")
SALIENCY_MEASURES = ("kld", "cc", "sim")


def prepare(data: Path, work: Path, size: int) -> Cohort:
    cohort = work / f"cohort-{size}"
    if cohort.exists():
        return Cohort.open(cohort)
    unpacked = work / "unpacked"
    for name in ("images", "lung_masks"):
        if not (unpacked / name).exists():
            with zipfile.ZipFile(data / f"{name}.zip") as archive:
                # the archive may hold the folder itself or its files alone
                inside = {Path(member).parts[0] for member in archive.namelist()}
                archive.extractall(unpacked if inside == {name} else unpacked / name)
    (unpacked / "images.csv").write_bytes((data / "images.csv").read_bytes())
    return import_tables(
        unpacked / "images.csv",
        cohort,
        name="kermany",
        size=(size, size),
        split="source",
        class_structures={name: ["lungs"] for name in CLASSES},
    )


def run_folder(arguments: argparse.Namespace, scheme: str, seed: int) -> Path:
    return arguments.work / "runs" / f"{scheme}-{arguments.size}-{arguments.epochs}ep-seed{seed}"


def paired_difference(cohort: Cohort, first: list[Path], second: list[Path], measure: str) -> statistics.Difference:
    """Mean over seeds of one measure, first runs minus second runs, on the same test studies."""
    targets = torch.from_numpy(cohort.targets[cohort.indices("test")])
    patients = cohort.studies["patient_id"][cohort.indices("test")].to_list()

    def over_runs(folders: list[Path]) -> statistics.Statistic:
        tables = [pl.read_csv(folder / "studies-test.csv") for folder in folders]
        if measure == "auc_macro":
            names = [f"probability_{name}" for name in cohort.classes]
            scores = [torch.from_numpy(table.select(names).to_numpy()) for table in tables]
            return lambda weights: torch.stack(
                [classification.auc_macro(score, targets, weights) for score in scores]
            ).mean(0)
        values = torch.stack([torch.from_numpy(table[measure].to_numpy().copy()) for table in tables], 1)
        mean = statistics.mean(values)
        return lambda weights: mean(weights).mean(-1)

    return statistics.paired_bootstrap(over_runs(first), over_runs(second), patients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    cohort = prepare(arguments.data, arguments.work, arguments.size)

    reports: dict[str, list[dict]] = {scheme: [] for scheme in SCHEMES}
    for seed in range(arguments.seeds):
        for scheme in SCHEMES:
            run = run_folder(arguments, scheme, seed)
            settings = {**SETTINGS, "objective": {"scheme": scheme}, "epochs": arguments.epochs, "seed": seed}
            reports[scheme].append(train_and_evaluate(cohort, run, "mt-unet", settings))

    rows = []
    for scheme, of_scheme in reports.items():
        row = [scheme]
        row += [over_seeds(of_scheme, "classification", name) for name in CLASS_MEASURES]
        row += [over_seeds(of_scheme, "saliency", "model", name) for name in SALIENCY_MEASURES]
        rows.append(row)
    for baseline in ("mean map", "centre"):
        row = [f"{baseline} (no network)"] + ["–"] * len(CLASS_MEASURES)
        reference = reports["saliency-only"][:1]
        row += [over_seeds(reference, "saliency", baseline, name) for name in SALIENCY_MEASURES]
        rows.append(row)
    print(markdown(["scheme", *CLASS_MEASURES, *SALIENCY_MEASURES], rows))
    print()
    for control, measure in (("class-only", "auc_macro"), ("saliency-only", "cc")):
        folders = [
            [run_folder(arguments, scheme, seed) for seed in range(arguments.seeds)]
            for scheme in ("uncertainty-class", control)
        ]
        difference = paired_difference(cohort, *folders, measure)
        print(
            f"{measure}, uncertainty-class minus {control}, mean of {arguments.seeds} seeds: "
            f"{float(difference.value):+.4f} [{float(difference.low):+.4f}, {float(difference.high):+.4f}], "
            f"p = {float(difference.p_value):.3f} (paired bootstrap over patients)"
        )


if __name__ == "__main__":
    main()
