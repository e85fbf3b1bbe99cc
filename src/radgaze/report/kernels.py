"""The gallery of kernels: a layer's output images on one probe image, grouped into their perceptual clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from radgaze.report import figures
from radgaze.report.values import count, number

__all__ = ["LayerPictures", "kernel_gallery", "thirds"]

Item = TypeVar("Item")

# A page stays small by showing so much of a layer, and says what it leaves out.
MOST_CLUSTERS = 8
MOST_MEMBERS = 24
MOST_ALONE = 24
LARGE, SMALL = 128, 64  # longest side of a picture in pixels: of a distinct kernel, of one that it stands for
SMOOTH = 20  # maps from this side on are photographs and go as JPEG; smaller ones as PNG, to the pixel


@dataclass(frozen=True, eq=False)
class LayerPictures:
    """What the kernels of one layer show on one probe image.

    Attributes:
        name: The layer's.
        outputs: (K, h, w) perceived output images in [0, 1].
        clusters: Numbers of kernels: each distinct kernel, then those it stands for, the most alike first.
        distance: (K,) mean perceived difference over all probe images from the distinct kernel that stands for each.
    """

    name: str
    outputs: NDArray[np.float32]
    clusters: Sequence[NDArray[np.int64]]
    distance: NDArray[np.float32]


def thirds(layers: Sequence[Item]) -> list[Sequence[Item]]:
    """The first, middle and last third of the depth; of fewer than three layers some are empty."""
    ends = [round(len(layers) * part / 3) for part in range(4)]
    return [layers[start:end] for start, end in pairwise(ends)]


def kernel_gallery(shown: Sequence[LayerPictures], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each layer its clusters of several kernels, the distinct kernels without a look-alike, and the dead ones."""
    places = {name: place for place, name in enumerate(report["layers"], 1)}
    found = []
    for layer in shown:
        measured = report["layers"][layer.name]
        several = [cluster for cluster in layer.clusters if len(cluster) > 1]
        alone = [int(cluster[0]) for cluster in layer.clusters if len(cluster) == 1]
        hidden = several[MOST_CLUSTERS:]
        height, width = layer.outputs.shape[1:]
        found.append(
            {
                "name": layer.name,
                "place": places[layer.name],
                "kernels": count(measured["kernels"]),
                "distinct": count(measured["distinct"]),
                "krm": number(measured["krm"]),
                "size": f"{height} × {width}",
                "ratio": f"{width / height:.3f}",
                "clusters": [_cluster(layer, cluster) for cluster in several[:MOST_CLUSTERS]],
                "hidden": (len(hidden), sum(map(len, hidden))) if hidden else None,
                "alone": [_tile(layer, kernel, SMALL) for kernel in alone[:MOST_ALONE]],
                "alone_count": len(alone),
                "dead": measured["dead"],
            }
        )
    return found


def _cluster(layer: LayerPictures, cluster: NDArray[np.int64]) -> dict[str, Any]:
    """A distinct kernel and those it stands for; of many, some from the most to the least alike at equal steps."""
    others = cluster[1:]
    if len(others) > MOST_MEMBERS:
        others = others[np.linspace(0, len(others) - 1, MOST_MEMBERS).round().astype(int)]
    return {
        "distinct": _tile(layer, int(cluster[0]), LARGE),
        "others": [_tile(layer, int(kernel), SMALL) for kernel in others],
        "columns": (len(others) + 1) // 2,
        "size": count(len(cluster) - 1),
        "all": len(others) == len(cluster) - 1,
        "farthest": number(layer.distance[cluster].max(), 2),
    }


def _tile(layer: LayerPictures, kernel: int, longest: int) -> dict[str, Any]:
    picture = figures.to_uint8(layer.outputs[kernel])
    scale = longest / max(picture.shape)
    if scale < 1:
        picture = figures.resized(picture, (round(picture.shape[0] * scale) or 1, round(picture.shape[1] * scale) or 1))
    distance = layer.distance[kernel]
    return {
        "source": figures.data_uri(picture, 80 if min(picture.shape) >= SMOOTH else None),
        "told": f"kernel {kernel}" + (f", difference {number(distance, 2)}" if distance > 0 else ""),
    }
