"""Measure a run on one split of a cohort, and write ``report.json``, ``report.html`` and a table of studies.

Attention is measured against the run's own attention target; where that is gaze, also at fixations (METHODS: NSS at
fixations, never on the blurred map). Two predictions that need no network stand beside the model: the mean attention
map of the training split, and a Gaussian with that map's centre and spread. Class activation maps, and the Grad-CAM of
any network with a class head, are measured where the cohort says their class shows itself, and against the reader's
gaze. Intervals are percentile bootstraps over patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from radgaze import __version__
from radgaze.cohort import Cohort, Study
from radgaze.errors import InputError
from radgaze.files import atomic_path, folder_lock, read_json, write_json
from radgaze.gaze import Gaze, detect_fixations, fixation_map
from radgaze.inference.grad_cam import grad_cam as explain
from radgaze.inference.localisation import MAPS, Measured, cam_measures, localisation_section, per_study, true_classes
from radgaze.inference.predict import predict_studies, probabilities
from radgaze.inference.summaries import number, over_studies, with_interval
from radgaze.measures import classification, saliency, statistics
from radgaze.models import Network, decision_map
from radgaze.report import GalleryItem, write_report
from radgaze.training.attention import AttentionTarget
from radgaze.training.runs import Run
from radgaze.training.trainer import auto_precision, make_objective

__all__ = ["evaluate"]

DEGREES_PER_HEIGHT = 26.0  # an image filling the height of a 24-inch 16:9 screen, seen from 65 cm
GALLERY_PER_GROUP = 3


@dataclass
class Evaluation:
    """What the forward passes leave behind: a row per study, no maps.

    Attributes:
        studies: ``(N,)`` rows of the cohort.
        probabilities: ``(N, C)``, empty without a class head.
        saliency: predictor (``"model"``, ``"mean map"``, ``"centre"``) to measure to ``(N,)`` values.
        localisation: map (``"model"``, ``"uniform"``, ...) to measure to ``(N, C)`` values; empty without
            either kind of map.
    """

    studies: NDArray[np.int64]
    probabilities: Tensor
    saliency: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    localisation: Measured = field(default_factory=dict)


def evaluate(
    run: Run | Path | str,
    cohort: Cohort | Path | str | None = None,
    *,
    split: str = "test",
    out: Path | str | None = None,
    resamples: int = 2000,
    batch_size: int = 16,
    grad_cam: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure ``run`` and write its report.

    Args:
        run: A trained run or its folder.
        cohort: The cohort to measure on; by default the one it was trained on.
        split: ``"test"``, ``"val"``, ``"train"`` or ``"all"``.
        out: Folder of the report; by default the run's own for its test split, else a folder inside it.
        resamples: Bootstrap resamples over patients, for 95 % intervals.
        batch_size: Studies per forward pass.
        grad_cam: Also measure where the true class's Grad-CAM lies: one forward and backward pass more for each study,
            and none where the cohort has neither structures of its classes nor gaze to measure it against.
        progress: Show a progress bar.

    Returns:
        The content of ``report.json``, with the page's path under ``"path"``.

    Raises:
        InputError: Not a finished run, a cohort that does not fit it or is damaged, an empty split, or a folder that
            another process is writing.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    home = cohort is None
    cohort = run.cohort(cohort)
    cohort.check()
    studies = cohort.indices(split)
    if len(studies) == 0:
        raise InputError(f"Cohort {cohort.name!r} has no study in its {split!r} split; choose another split.")
    folder = Path(out) if out else run.path if home and split == "test" else run.path / f"{cohort.name}-{split}"
    network = run.network()
    attention = attention_target(run, cohort, needed=network.predicts_attention)
    gaze = AttentionTarget("gaze", run.config.preset, run.config.sigma) if cohort.gaze_kind else None

    compared = attention if network.predicts_attention else None
    explained = grad_cam and network.explained_layer is not None and is_locatable(cohort)
    with folder_lock(folder, "writing a report into"):
        result = measure(run, network.to(run.device), cohort, studies, compared, gaze, batch_size, explained, progress)
        patients = cohort.studies["patient_id"][studies].to_list()
        report: dict[str, Any] = {
            "radgaze": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "title": f"{run.config.method} on {cohort.name}",
            "run": {
                "method": run.config.method,
                **scheme(run),
                "seed": run.config.seed,
                "parameters": run.content["parameters"],
                "weights": run.digest,
                "train_studies": len(run.training_studies(cohort)) if home else run.content.get("train_studies"),
                "best_epoch": run.state.best_epoch,
                "epochs": run.state.epoch,
                "precision": auto_precision(run.config),
                "config": run.config.dump(),
                "environment": read_json(run.path / "environment.json", "a run"),
            },
            "cohort": {
                "name": cohort.name,
                "source": cohort.meta["source"],
                "studies": len(cohort),
                "patients": cohort.studies["patient_id"].n_unique(),
                "size": list(cohort.size),
                "gaze_kind": cohort.gaze_kind,
                "counts": cohort.meta["counts"],
                "split_by": cohort.meta["split_by"],
                "splits": studies_per_split(cohort),
            },
            "split": split,
            "options": {"resamples": resamples, "batch_size": batch_size, "grad_cam": grad_cam},
            "studies": len(studies),
            "patients": len(set(patients)),
            "attention": run.content["attention"],
            "classes": run.classes,
            "notes": notes(run, cohort, compared, gaze if result.localisation else None),
        }
        if result.probabilities.numel():
            report["classification"] = classification_section(run, cohort, result, patients, resamples)
        if result.saliency:
            report["saliency"] = saliency_section(result, patients, resamples)
        if result.localisation:
            told = gaze.describe(cohort) if gaze is not None else None
            report["localisation"] = localisation_section(cohort, result.localisation, told, patients, resamples)
        ranked_by, ranking = gallery_ranking(cohort, result)
        gallery = make_gallery(run, network, cohort, result, attention, ranked_by, ranking)
        if gallery:
            report["gallery"] = {"ranked_by": ranked_by}
        write_json(folder / "report.json", report)
        write_table(result, run, cohort, folder / f"studies-{split}.csv")
        page = write_report(report, run.history, gallery, folder)
        return {**report, "path": str(page)}


def studies_per_split(cohort: Cohort) -> dict[str, dict[str, int]]:
    """``{"train": {"studies": n, class: n, ...}, ...}``."""
    table = {}
    for split in ("train", "val", "test"):
        rows = cohort.indices(split)
        targets = cohort.targets[rows]
        positive = targets[:, None] == np.arange(len(cohort.classes)) if targets.ndim == 1 else targets >= 0.5
        of_class = {name: int(positive[:, index].sum()) for index, name in enumerate(cohort.classes)}
        table[split] = {"studies": len(rows), **of_class}
    return table


def scheme(run: Run) -> dict[str, str]:
    """The learning scheme, for a method that has a choice of them."""
    chosen = getattr(make_objective(run.config), "scheme", None)
    return {} if chosen is None else {"scheme": chosen}


def attention_target(run: Run, cohort: Cohort, *, needed: bool) -> AttentionTarget | None:
    """The target the run was trained with. A cohort without it is refused only where it is ``needed``: to measure."""
    if run.content["attention"] == "none":
        return None
    target = AttentionTarget(run.config.attention, run.config.preset, run.config.sigma)
    if not needed and not target.is_in(cohort):
        return None
    target.check(cohort)
    return target


def is_locatable(cohort: Cohort) -> bool:
    """Whether there is anything to measure the map of a class against."""
    return cohort.gaze_kind is not None or any(cohort.class_structures.values())


def measure(
    run: Run,
    network: Network,
    cohort: Cohort,
    studies: NDArray[np.int64],
    attention: AttentionTarget | None,
    gaze: AttentionTarget | None,
    batch_size: int,
    grad_cam: bool,
    progress: bool,
) -> Evaluation:
    predictors: dict[str, Tensor] = {}
    fixated = attention is not None and attention.kind == "gaze"
    if attention is not None:
        mean_map = mean_attention(cohort, attention, run.training_studies(cohort))
        predictors = {"mean map": mean_map, "centre": centre_map(mean_map)}
    fixations = FixationCounts(cohort, studies) if fixated else None
    scores: list[Tensor] = []
    columns: dict[str, dict[str, list[Tensor]]] = {}
    located: dict[str, dict[str, list[Tensor]]] = {}
    batches = predict_studies(
        network,
        cohort,
        studies.tolist(),
        attention=attention,
        batch_size=batch_size,
        precision=auto_precision(run.config),
    )
    count = math.ceil(len(studies) / batch_size)
    at_once = min(batch_size, run.config.batch_size)  # a backward pass holds its maps: no more than training could
    shown = Console(stderr=True)  # standard output is for results
    for batch, output in track(batches, "evaluating", total=count, console=shown, disable=not progress):
        if output.logits is not None and run.classes and run.content["task"] != "none":
            scores.append(probabilities(output.logits, run.content["task"]).cpu())
        rows = batch.studies.tolist()
        explained = true_class_grad_cams(network, cohort, rows, batch.images, at_once) if grad_cam else None
        add_batch(located, cam_measures(cohort, rows, output.cams, gaze, explained))
        if attention is None or output.saliency_logits is None:
            continue
        assert batch.attention is not None
        given: dict[str, Any] = {"target": batch.attention.cpu()}
        if fixations is not None:
            given["fixations"] = torch.stack([fixations.own(row) for row in rows])
            given["other_fixations"] = torch.stack([fixations.of_other_patients(row) for row in rows])
            given["baseline"] = predictors["mean map"]
        maps = {"model": output.saliency_logits.float().cpu()}
        maps |= {name: fixed.log().expand_as(maps["model"]) for name, fixed in predictors.items()}
        measured = {}
        for name, prediction in maps.items():
            values = saliency.all_measures(prediction, logits=True, splits=None, **given)
            # a study without attention has nothing to compare with
            here = batch.has_attention.cpu()
            measured[name] = {key: torch.where(here, value, torch.nan) for key, value in values.items()}
        add_batch(columns, measured)
    return Evaluation(
        studies,
        torch.cat(scores) if scores else torch.empty(0),
        joined(columns),
        joined(located),
    )


def true_class_grad_cams(
    network: Network, cohort: Cohort, studies: Sequence[int], images: Tensor, batch_size: int
) -> Tensor:
    """``(P, h, w)``: Grad-CAM at each place of :func:`true_classes`, ``batch_size`` places at a time."""
    places = zip(*(each.split(batch_size) for each in true_classes(cohort.targets[list(studies)])), strict=True)
    return torch.cat([explain(network, images[rows], classes) for rows, classes in places])


def add_batch(columns: dict[str, dict[str, list[Tensor]]], batch: dict[str, dict[str, Tensor]]) -> None:
    for name, measures in batch.items():
        for key, values in measures.items():
            columns.setdefault(name, {}).setdefault(key, []).append(values)


def joined(columns: dict[str, dict[str, list[Tensor]]]) -> dict[str, dict[str, Tensor]]:
    return {name: {key: torch.cat(parts) for key, parts in keys.items()} for name, keys in columns.items()}


def mean_attention(
    cohort: Cohort, attention: AttentionTarget, studies: NDArray[np.int64] | None = None, batch_size: int = 64
) -> Tensor:
    """Mean attention map of some studies (the training split), each with sum 1; nowhere quite zero: a density."""
    studies = cohort.indices("train") if studies is None else studies
    total, count = torch.zeros(cohort.size, dtype=torch.float64), 0
    for start in range(0, len(studies), batch_size):
        maps, present = attention.maps(cohort, [int(study) for study in studies[start : start + batch_size]])
        maps = maps[present].double()
        total += (maps / maps.sum((1, 2), keepdim=True)).sum(0)
        count += len(maps)
    if count == 0:
        raise InputError(f"No training study of cohort {cohort.name!r} has an attention map; import it with gaze.")
    uniform = 1 / total.numel()
    return (0.999 * total / count + 0.001 * uniform).float()


def centre_map(mean_map: Tensor) -> Tensor:
    """A Gaussian with the mean and the standard deviations of ``mean_map`` along both axes, sum 1."""
    axes = []
    for axis, extent in enumerate(mean_map.shape):
        share = mean_map.sum(1 - axis).double()
        place = torch.arange(extent, dtype=torch.float64)
        mean = (share * place).sum() / share.sum()
        variance = (share * (place - mean) ** 2).sum() / share.sum()
        axes.append(torch.exp(-((place - mean) ** 2) / (2 * variance)))
    gaussian = axes[0][:, None] * axes[1][None, :]
    return (gaussian / gaussian.sum()).clamp_min(1e-12).float()


def fixations_of(study: Study) -> Gaze | None:
    """A study's fixations; raw samples become fixations by I-DT at 1 degree."""
    gaze = study.gaze
    if gaze is None or study.cohort.gaze_kind != "samples" or gaze.t is None:
        return gaze
    scale = None if gaze.px_per_degree is not None else study.source_size[0] / DEGREES_PER_HEIGHT
    return detect_fixations(gaze, method="i-dt", px_per_degree=scale)


class FixationCounts:
    """Fixations on the working grid: a study's own, and those on other patients' studies (negatives of shuffled AUC).

    Holds, of each study, the pixels that have any and how many they have, and one summed map: memory grows with the
    number of fixations, not of pixels or samples.
    """

    def __init__(self, cohort: Cohort, studies: NDArray[np.int64]) -> None:
        self.size = cohort.size
        self.cells: dict[int, tuple[NDArray[np.int32], NDArray[np.int32]]] = {}
        self.patient: dict[int, str] = {}
        self.rows_of: dict[str, list[int]] = {}
        self.total = torch.zeros(cohort.size, dtype=torch.int64)
        for row in map(int, studies):
            study = cohort[row]
            fixations = fixations_of(study)
            cells, counts = np.empty((2, 0), np.int32)
            if fixations is not None:
                found = fixation_map(fixations, study.grid).numpy().ravel()
                cells = np.flatnonzero(found).astype(np.int32)
                counts = found[cells].astype(np.int32)
            self.cells[row] = cells, counts
            self.patient[row] = study.patient_id
            self.rows_of.setdefault(study.patient_id, []).append(row)
            self.total += self.own(row)

    def own(self, row: int) -> Tensor:
        """``(h, w)`` int64 number of this study's fixations on each pixel."""
        cells, counts = self.cells[row]
        own = torch.zeros(self.size, dtype=torch.int64)
        own.view(-1)[torch.from_numpy(cells).long()] = torch.from_numpy(counts).long()
        return own

    def of_other_patients(self, row: int) -> Tensor:
        """``(h, w)`` int64 number of fixations on each pixel over the studies of all other patients."""
        return self.total - sum(
            (self.own(same) for same in self.rows_of[self.patient[row]]), torch.zeros_like(self.total)
        )


def classification_section(
    run: Run, cohort: Cohort, result: Evaluation, patients: Sequence[str], resamples: int
) -> dict[str, Any]:
    scores, targets = result.probabilities.double(), torch.from_numpy(cohort.targets[result.studies])
    section: dict[str, Any] = {}
    names = list(classification.all_measures(scores, targets))
    together = statistics.bootstrap(
        lambda weights: torch.stack(list(classification.all_measures(scores, targets, weights).values()), -1),
        patients,
        resamples=resamples,
    )
    for index, name in enumerate(names):
        section[name] = with_interval(together, index)
    per_class = statistics.bootstrap(
        lambda weights: classification.auc(scores, targets, weights), patients, resamples=resamples
    )
    section["auc"], section["roc"] = {}, {}
    for index, name in enumerate(run.classes):
        ranked, positive = classification.one_against_rest(scores, targets, index)
        section["auc"][name] = {**with_interval(per_class, index), "n_positive": int(positive.sum())}
        if positive.any() and not positive.all():
            curve = classification.roc_curve(ranked, positive)
            section["roc"][name] = {"fpr": curve.fpr.tolist(), "tpr": curve.tpr.tolist()}
    if targets.ndim == 1:
        section["confusion"] = classification.confusion_matrix(scores, targets).int().tolist()
    bins = classification.reliability(scores, targets)
    section["reliability"] = [
        {
            "low": bins.edges[b].item(),
            "high": bins.edges[b + 1].item(),
            "confidence": number(bins.confidence[b]),
            "accuracy": number(bins.outcome[b]),
            "count": int(bins.number[b]),
        }
        for b in range(len(bins.number))
    ]
    return section


def saliency_section(result: Evaluation, patients: Sequence[str], resamples: int) -> dict[str, Any]:
    return {predictor: over_studies(columns, patients, resamples) for predictor, columns in result.saliency.items()}


def notes(run: Run, cohort: Cohort, attention: AttentionTarget | None, located_by: AttentionTarget | None) -> list[str]:
    """What to know of the figures: ``attention`` was measured against, ``located_by`` compared with CAMs."""
    said = []
    if attention is not None and attention.kind == "gaze" and cohort.gaze_kind == "samples":
        said.append(
            "NSS, AUC-Judd, shuffled AUC and information gain are taken at fixations detected from the raw samples "
            f"(I-DT, 1 degree; {DEGREES_PER_HEIGHT:g} degrees per image height unless the source states its scale)."
        )
    if run.content["attention"] != "none" and not run.config.attention.startswith("gaze"):
        said.append(f"The attention target is the {run.content['attention']}; no reader's gaze was used in training.")
    if located_by is not None:
        said.append(f"The true class's maps are compared with the {located_by.describe(cohort)}, on their own grid.")
    if attention is not None:
        said.append(
            "Baselines use the training split alone: its mean attention map, and a Gaussian of the same spread."
        )
    if shortcut := cohort.meta.get("shortcut"):
        said.append(
            f"A shortcut is planted in the images: a corner marker tells the class of {shortcut['rate']:.0%} of the "
            f"training and validation images, and is {shortcut['test']} in the test split."
        )
    if cohort.meta["split_by"] == "image":
        said.append("The split is by image: patients are on both sides, so these figures are too good.")
    return said


def write_table(result: Evaluation, run: Run, cohort: Cohort, path: Path) -> None:
    """One row per study: who, what is true, what was predicted, how close the attention came."""
    table = cohort.studies[result.studies].select("study_id", "patient_id", "split", "label")
    columns: dict[str, NDArray[Any]] = {}
    if result.probabilities.numel():
        for index, name in enumerate(run.classes):
            columns[f"probability_{name}"] = result.probabilities[:, index].numpy()
    for name, values in result.saliency.get("model", {}).items():
        columns[name] = values.numpy()
    for kind, prefix in MAPS.items():
        for name, values in result.localisation.get(kind, {}).items():
            columns[f"{prefix}_{name}"] = per_study(values).numpy()
    with atomic_path(path) as partial:
        table.with_columns(**{name: pl.Series(values) for name, values in columns.items()}).write_csv(partial)


def gallery_ranking(cohort: Cohort, result: Evaluation) -> tuple[str, Tensor]:
    """What the gallery is sorted by, and its ``(N,)`` values: CC of the attention, else probability of the truth."""
    if result.saliency:
        return "cc", result.saliency["model"]["cc"]
    targets = torch.from_numpy(cohort.targets[result.studies])
    if targets.ndim == 1:
        truth = result.probabilities.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        return "probability of the true class", torch.where(targets >= 0, truth, torch.nan)
    of_truth = torch.where(targets >= 0.5, result.probabilities, 1 - result.probabilities)
    return "mean probability of the true labels", torch.where(targets.isnan(), torch.nan, of_truth).nanmean(1)


def make_gallery(
    run: Run,
    network: Network,
    cohort: Cohort,
    result: Evaluation,
    attention: AttentionTarget | None,
    ranked_by: str,
    ranking: Tensor,
) -> list[GalleryItem]:
    """The best, middle and worst studies of the ranking."""
    order = [
        int(place) for place in ranking.nan_to_num(-torch.inf).argsort(descending=True) if ranking[place].isfinite()
    ]
    each = min(GALLERY_PER_GROUP, len(order) // 3)
    middle = (len(order) - each) // 2
    chosen = [("best", order[:each]), ("median", order[middle : middle + each]), ("worst", order[len(order) - each :])]
    items = []
    for group, places in chosen:
        rows = [int(result.studies[place]) for place in places]
        shown = predict_studies(network, cohort, rows, attention=attention, batch_size=1)
        for place, row, (batch, output) in zip(places, rows, shown, strict=True):
            study, predicted = cohort[row], output.saliency()
            fixations = fixations_of(study) if attention is not None and attention.kind == "gaze" else None
            points = None
            if fixations is not None and len(fixations):
                points = torch.stack(study.grid.to_grid(fixations.x, fixations.y), 1).numpy()
            scores = {ranked_by: ranking[place].item()}
            located = result.localisation.get("model", {})
            scores |= {name: per_study(values[place : place + 1]).item() for name, values in located.items()}
            scores |= {name: values[place].item() for name, values in result.saliency.get("model", {}).items()}
            items.append(
                GalleryItem(
                    study_id=study.study_id,
                    group=group,  # type: ignore[arg-type]
                    image=batch.images[0, 0].cpu().numpy(),
                    attention=batch.attention[0].cpu().numpy() if batch.attention is not None else None,
                    prediction=predicted[0].cpu().numpy() if predicted is not None and attention is not None else None,
                    cams=dict(zip(run.classes, output.cams[0].float().cpu().numpy(), strict=True))
                    if output.cams is not None
                    else None,
                    decision=decision_map(output.cams)[0].cpu().numpy()
                    if output.cams is not None and cohort.task == "multiclass" and len(run.classes) > 1
                    else None,
                    probabilities=dict(zip(run.classes, result.probabilities[place].tolist(), strict=True))
                    if result.probabilities.numel()
                    else None,
                    label=true_labels(study, cohort),
                    scores=scores,
                    fixations=points,
                )
            )
    return items


def true_labels(study: Study, cohort: Cohort) -> str | tuple[str, ...] | None:
    if cohort.task == "multilabel":
        return tuple(name for name, value in study.labels.items() if value is not None and value >= 0.5)
    return study.label
