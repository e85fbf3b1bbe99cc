"""Measure the kernel redundancy of a run on its own training images; write ``redundancy.json`` and ``redundancy.html``.

What is measured is defined in :mod:`radgaze.redundancy`. The probe images come from the training split, so the test
split stays unseen by whatever is decided from this report, such as which kernels to leave out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radgaze import __version__
from radgaze.cluster import check_engine, open_cluster
from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.files import folder_lock, write_json
from radgaze.models import Network
from radgaze.redundancy import TAUS, LayerRedundancy, RedundancyReport, measure, output_images, probe_studies
from radgaze.redundancy.krm import Look, Looking, Looks
from radgaze.report import LayerPictures, thirds, write_redundancy
from radgaze.training.data import load_images
from radgaze.training.runs import Run

__all__ = ["measure_redundancy"]


def measure_redundancy(
    run: Run | Path | str,
    cohort: Cohort | Path | str | None = None,
    *,
    images: int = 16,
    layers: str | Sequence[str] | None = None,
    after: str = "activation",
    difference: str = "mssim",
    tau: float = 0.5,
    taus: Sequence[float] = TAUS,
    seed: int = 0,
    out: Path | str | None = None,
    engine: str = "local",
    address: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure how many kernels of ``run``'s network show the eye something of their own, and write the report.

    Args:
        run: A trained run or its folder.
        cohort: The cohort to take the probe images from; by default the one it was trained on.
        images: How many probe images, at least 2: of the studies the run learned from, spread evenly over the classes
            (:func:`~radgaze.redundancy.probe_studies`). From another cohort: of its training split.
        layers: Names or globs of convolutions, such as ``"*layer4*"``; by default all.
        after: Where outputs are taken: ``"activation"``, ``"norm"`` or ``"conv"``.
        difference: A name in :data:`~radgaze.redundancy.DIFFERENCES`.
        tau: Perceived difference, between 0 and 1, up to which one kernel may stand for another.
        taus: Thresholds of the curves.
        seed: Of the choice of probe images.
        out: Folder of the report; by default the run's own.
        engine: ``"local"``, or ``"ray"``: the nodes of a Ray cluster look at an image each.
        address: Of that cluster; see :func:`radgaze.cluster.open_cluster`.
        progress: Show a progress bar.

    Returns:
        The content of ``redundancy.json``, with the page's path under ``"path"``.

    Raises:
        InputError: Not a finished run, a cohort that does not fit it or has fewer images to look at, and
            whatever :func:`~radgaze.redundancy.measure` refuses.
    """
    check_engine(engine, address)
    run = run if isinstance(run, Run) else Run.open(run)
    folder = Path(out) if out else run.path
    other = cohort is not None
    cohort = run.cohort(cohort)
    cohort.check()
    studies = probe_studies(cohort, run.training_studies(cohort), images, seed)
    probes = load_images(cohort, studies.tolist())
    network = run.network().to(run.device)
    looking: dict[str, Any] = {"layers": layers, "after": after, "difference": difference}
    measured = measure(
        network,
        probes,
        **looking,
        tau=tau,
        taus=taus,
        keep_difference=True,  # the gallery orders each cluster by it
        progress=progress,
        elsewhere=look_on_ray(address, folder, run, cohort, studies.tolist(), looking) if engine == "ray" else None,
    )
    shown = gallery_layers(measured)
    pictures = output_images(network, probes[0], layers=shown, after=after)
    strata = cohort.strata
    ids = cohort.studies["study_id"][studies].to_list()
    report: dict[str, Any] = {
        "radgaze": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": f"Kernel redundancy of {run.config.method} on {cohort.name}",
        "run": {
            "method": run.config.method,
            "network": run.content["network"],
            "seed": run.config.seed,
            "parameters": run.content["parameters"],
            "weights": run.digest,
        },
        "cohort": {"name": cohort.name, "source": cohort.meta["source"], "size": list(cohort.size)},
        "settings": {
            "cohort": "COHORT" if other else None,  # its path is this machine's own
            "images": images,
            "layers": [layers] if isinstance(layers, str) else layers and list(layers),
            "after": after,
            "difference": difference,
            "tau": tau,
            "seed": seed,
        },
        "probe": {
            "split": "train",
            "studies": ids,
            "classes": dict(Counter(strata[row] or "unlabelled" for row in studies)),
        },
        **measured.to_json(),
        "gallery": {"study_id": ids[0], "layers": shown},
    }
    gallery = [layer_pictures(measured.layers[name], pictures[name].numpy()) for name in shown]
    with folder_lock(folder, "writing a report into"):
        page = write_redundancy(report, probes[0, 0].numpy(), gallery, folder)
        write_json(folder / "redundancy.json", report)
    return {**report, "path": str(page)}


def layer_pictures(layer: LayerRedundancy, outputs: NDArray[np.float32]) -> LayerPictures:
    assert layer.difference is not None  # asked to be kept
    distance = layer.difference[np.arange(layer.kernels), layer.stands_for]
    return LayerPictures(layer.name, outputs, layer.clusters, distance)


def gallery_layers(report: RedundancyReport) -> list[str]:
    """The first and the last layer, and of each third of the depth the one with the most redundant parameters."""
    layers = list(report.layers.values())
    chosen = {layers[0].name, layers[-1].name}
    chosen |= {max(third, key=lambda layer: layer.parameters * layer.krm).name for third in thirds(layers) if third}
    return [layer.name for layer in layers if layer.name in chosen]


# ---- on a cluster

Sent = list[tuple[str, tuple[int, int], list[tuple[NDArray[Any], NDArray[np.bool_]]]]]
"""The looks of an image, as arrays."""


def look_on_ray(
    address: str | None, folder: Path, run: Run, cohort: Cohort, studies: Sequence[int], looking: Mapping[str, Any]
) -> Iterator[Looks]:
    """What kernels show on the images of some studies, in their order: so their sums are the same to the last bit."""
    with open_cluster(address, folder) as cluster:
        given = {
            "run": os.path.abspath(run.path),
            "weights": run.digest,
            "cohort": os.path.abspath(cohort.path),
            "call": cluster.token.name,
            "looking": looking,
        }
        pieces = ({**given, "study": study, "number": number} for number, study in enumerate(studies))
        files = [run.path / "weights.safetensors", cohort.path / "images.npy"]
        gpus = int(run.config.accelerator != "cpu" and cluster.gpus > 0)
        for _, sent in cluster.map(look_at_study, pieces, files=lambda piece: files, gpus=gpus, in_order=True):
            yield [
                (name, Look(size, [(tensor(one), tensor(other)) for one, other in pairs])) for name, size, pairs in sent
            ]


def tensor(sent: NDArray[Any]) -> torch.Tensor:
    """A tensor that may be written to: what Ray has brought may only be read."""
    return torch.from_numpy(sent.copy())


def look_at_study(
    run: str, weights: str, cohort: str, call: str, looking: Mapping[str, Any], study: int, number: int
) -> Sent:
    """On a node: what kernels show on the image of a study."""
    network, images = opened(run, weights, cohort, call)
    image = load_images(images, [study])[0]
    sent: Sent = []

    def take(name: str, look: Look) -> None:
        sent.append((name, look.size, [(one.cpu().numpy(), other.cpu().numpy()) for one, other in look.pairs]))

    Looking(network, image, **looking).at(image, number, take)
    return sent


@lru_cache(maxsize=1)
def opened(run: str, weights: str, cohort: str, call: str) -> tuple[Network, Cohort]:
    """This worker's network and cohort, for all images that it gets in one ``call``."""
    found = Run.open(run)
    if found.digest != weights:
        raise InputError(f"The run in {run!r} was changed while it was measured; measure it again.")
    return found.network().to(found.device), Cohort.open(cohort)
