"""The saliency head alone on real fixations (OSIE: 500 natural images, 15 viewers; Xu et al. 2014, MIT licence).

    python benchmarks/quality/osie.py --data FOLDER --work FOLDER

FOLDER holds fixations.csv and stimuli/. Not radiology: it shows that rendering, training and measures work on real
eye tracking. MT-UNet's saliency-only scheme is trained from scratch at 96x128 on 70 % of the images, selected on 15 %,
and tested on 15 %, beside the centre bias and the mean map of the training images.

Everything is scored on one viewer at a time, so that the inter-observer ceiling (the map of the other 14 viewers,
leave one out) is measured on exactly the fixations that the network is measured on.
"""

from __future__ import annotations

import argparse
import statistics as stats
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from common import markdown, train_and_evaluate
from radgaze.cohort import Cohort
from radgaze.cohort.sources.tables import import_tables
from radgaze.gaze import fixation_map, render_batch
from radgaze.inference.evaluation import FixationCounts, centre_map, mean_attention
from radgaze.inference.predict import predict_studies
from radgaze.measures import saliency, statistics
from radgaze.training import AttentionTarget, Run

FRAME = (800, 600)  # width and height of what the viewers saw, in pixels of fixations.csv
SIGMA = 24 / FRAME[0] * 256  # one degree of visual angle (24 px of the frame) in pixels of the stored 256x192 stimuli
TARGET = AttentionTarget("gaze", "egd-official", SIGMA)
SETTINGS = {
    "objective": {"scheme": "saliency-only"},
    "attention": "gaze",
    "preset": TARGET.preset,
    "sigma": TARGET.sigma,
    "model": {"width": 16},
    "batch_size": 16,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "schedule": "one-cycle",
    "augmentation": {"flip": True},  # natural scenes have no laterality to keep
}
MEASURES = ("nss", "auc_judd", "shuffled_auc", "cc", "information_gain")


def prepare(data: Path, work: Path, size: tuple[int, int]) -> Cohort:
    cohort = work / f"cohort-{size[0]}x{size[1]}"
    if cohort.exists():
        return Cohort.open(cohort)
    work.mkdir(parents=True, exist_ok=True)
    fixations = pl.read_csv(data / "fixations.csv").with_columns(
        pl.col("image").str.replace(r"\.jpg$", "").alias("study_id")
    )
    fixations = fixations.with_columns(
        (pl.col("x") / FRAME[0]).alias("x_norm"),
        (pl.col("y") / FRAME[1]).alias("y_norm"),
        (pl.col("duration_ms") / 1000).alias("duration"),
        pl.format("viewer {}", "subject").alias("reader"),
    )
    images = fixations.select("study_id", pl.col("image")).unique(maintain_order=True)
    images = images.with_columns(pl.format("{}/stimuli/{}", pl.lit(str(data.resolve())), "image").alias("image"))
    images.write_csv(work / "images.csv")
    fixations.select("study_id", "x_norm", "y_norm", "duration", "reader").write_csv(work / "gaze.csv")
    return import_tables(work / "images.csv", cohort, gaze=work / "gaze.csv", name="osie", size=size, split="patient")


def one_viewer_at_a_time(cohort: Cohort, runs: list[Run]) -> dict[str, list[dict[str, Tensor]]]:
    """Predictor to measures, each ``(studies,)``: the mean over viewers. Networks have one entry per seed."""
    studies = cohort.indices("test")
    mean_map = mean_attention(cohort, TARGET)
    counts = FixationCounts(cohort, studies)
    fixed = {"centre": centre_map(mean_map), "mean map": mean_map}
    predicted = [
        torch.cat([output.log_saliency() for _, output in predict_studies(run.network(), cohort, studies.tolist())])
        for run in runs
    ]
    rows: dict[str, list[list[dict[str, Tensor]]]] = {}
    for place, index in enumerate(studies.tolist()):
        study = cohort[index]
        gaze = study.gaze
        viewers = [gaze.select(gaze.reader == code) for code in gaze.reader.unique()]
        others = [gaze.select(gaze.reader != code) for code in gaze.reader.unique()]
        grids, sizes = [study.grid] * len(viewers), [study.source_size] * len(viewers)
        targets, _ = render_batch(viewers, sizes, grids, preset=TARGET.preset, sigma=TARGET.sigma)
        of_others, _ = render_batch(others, sizes, grids, preset=TARGET.preset, sigma=TARGET.sigma)
        given = {
            "target": targets,
            "fixations": torch.stack([fixation_map(viewer, study.grid).long() for viewer in viewers]),
            "other_fixations": counts.of_other_patients(index),
            "baseline": mean_map,
        }
        predictors = {name: [density.log()] for name, density in fixed.items()}
        predictors["MT-UNet, saliency only"] = [maps[place] for maps in predicted]
        predictors["the other 14 viewers (ceiling)"] = [ceiling_map(of_others)]
        for name, maps in predictors.items():
            for seed, log_map in enumerate(maps):
                expanded = log_map.expand(len(viewers), *study.grid.size)
                values = saliency.all_measures(expanded, **given, logits=True, splits=None)
                means = {key: value.nanmean() for key, value in values.items()}
                rows.setdefault(name, [[] for _ in maps])[seed].append(means)
    return {
        name: [{key: torch.stack([row[key] for row in of_seed]) for key in of_seed[0]} for of_seed in of_predictor]
        for name, of_predictor in rows.items()
    }


def ceiling_map(maps: Tensor) -> Tensor:
    """Log densities of rendered maps; a little uniformity keeps an unseen fixation from costing infinite bits."""
    density = maps / maps.sum((1, 2), keepdim=True)
    return (0.95 * density + 0.05 / density[0].numel()).log()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    cohort = prepare(arguments.data, arguments.work, (96, 128))
    runs = []
    for seed in range(arguments.seeds):
        run = arguments.work / "runs" / f"saliency-only-{arguments.epochs}ep-seed{seed}"
        train_and_evaluate(cohort, run, "mt-unet", {**SETTINGS, "epochs": arguments.epochs, "seed": seed})
        runs.append(Run.open(run))
    images = [str(index) for index in cohort.indices("test")]
    table = []
    for name, of_seeds in one_viewer_at_a_time(cohort, runs).items():
        row = [name]
        for key in MEASURES:
            means = [values[key].nanmean().item() for values in of_seeds]
            middle = of_seeds[means.index(stats.median_low(means))][key]
            interval = statistics.bootstrap(statistics.mean(middle), images)
            row.append(f"{stats.median_low(means):.3f} [{float(interval.low):.3f}, {float(interval.high):.3f}]")
        table.append(row)
    print(markdown(["prediction", *MEASURES], table))


if __name__ == "__main__":
    main()
