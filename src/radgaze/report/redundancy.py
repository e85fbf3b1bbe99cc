"""``redundancy.html``: how many kernels of a network show the eye something of their own, in one self-contained file.

:func:`write_redundancy` turns the content of ``redundancy.json`` and some pictures into finished text and drawings and
has ``templates/redundancy.html.j2`` place them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from radgaze.report import figures
from radgaze.report.data import flat
from radgaze.report.figures import Curve
from radgaze.report.kernels import LayerPictures, kernel_gallery, thirds
from radgaze.report.page import write_page
from radgaze.report.values import count, date_and_time, number, plain

__all__ = ["write_redundancy"]

HEADINGS = {
    "gallery": "What the kernels show",
    "depth": "Layer by layer",
    "curves": "Other thresholds",
    "dead": "Dead kernels",
    "layers": "All layers",
    "definition": "How it is measured",
    "notes": "Notes",
    "settings": "Settings",
    "commands": "Reproduce",
}
"""The sections in page order: the context's key, which is also the anchor, and the heading."""

DEPTHS = {"first third": "series-6", "middle third": "series-3", "last third": "series-2"}
"""The layers by depth, in the colours of both drawings."""

AFTER = {
    "activation": "after normalisation and activation, as the next layer sees them",
    "norm": "after normalisation",
    "conv": "as they leave the convolution",
}
DIFFERENCES = {
    "mssim": "1 − MSSIM",
    "pearson": "1 − |Pearson r|",
    "rmse": "the root mean square difference",
    "rmse-z": "the root mean square difference of standardised images",
}
MOST_DEAD = 24  # kernel numbers told in a row


def write_redundancy(
    report: Mapping[str, Any], probe: NDArray[np.float32], gallery: Sequence[LayerPictures], out: Path
) -> Path:
    """Write the page and return its path.

    ``report`` is the content of ``redundancy.json``, ``probe`` (h, w) in [0, 1] the probe image that the ``gallery``'s
    outputs are of. ``out`` is the file to write (``.html``), or a folder to write ``redundancy.html`` into. The file
    appears complete or not at all.
    """
    return write_page("redundancy", HEADINGS, _context(report, probe, gallery), out)


def _context(report: Mapping[str, Any], probe: NDArray[np.float32], gallery: Sequence[LayerPictures]) -> dict[str, Any]:
    settings = report["settings"]
    return {
        "title": report["title"],
        "version": report["radgaze"],
        "created": date_and_time(report["created"]),
        "split": f"{count(report['images'])} probe images of the training split",
        "summary": _summary(report),
        "cautions": [],
        "cards": _cards(report),
        "tau": f"{report['tau']:g}",
        "images": count(report["images"]),
        "after": AFTER[settings["after"]],
        "difference": DIFFERENCES.get(settings["difference"], settings["difference"]),
        "probe": _probe(report, probe),
        "gallery": kernel_gallery(gallery, report),
        "depth": _depth(report),
        "curves": _curves(report) if report["taus"] else None,
        "dead": _dead(report),
        "layers": _layers(report),
        "definition": True,
        "notes": [f"Not measured: {name}, because {reason}." for name, reason in report["left_out"].items()],
        "settings": flat({key: report[key] for key in ("run", "cohort", "settings", "probe")}, whole=count),
        "commands": [_command(settings)],
    }


def _summary(report: Mapping[str, Any]) -> Markup:
    network, layers = report["network"], len(report["layers"])
    kernels, distinct, dead = network["kernels"], network["distinct"], network["dead"]
    spared = kernels - distinct - dead
    buried = f", and {_counted(dead, 'kernel')} {_are(dead)} dead: constant on every probe image" if dead else ""
    return Markup(
        "{} of this network {} {}. Looked at on {} probe images, <strong>{} of them {} own</strong>; another {} {} "
        "like one of these{}. Its kernel redundancy measure (KRM) is <strong>{}</strong>: the share of kernels that "
        "could go without the eye missing an image, averaged over the layers by their parameters."
    ).format(
        f"The {count(layers)} measured convolutions" if layers > 1 else "The measured convolution",
        "have" if layers > 1 else "has",
        _counted(kernels, "kernel"),
        count(report["images"]),
        count(distinct),
        "shows something of its" if distinct == 1 else "show something of their",
        count(spared),
        "look" if spared != 1 else "looks",
        buried,
        number(network["krm"]),
    )


def _are(number_of: int) -> str:
    return "is" if number_of == 1 else "are"


def _counted(number_of: int, noun: str) -> str:
    return f"{count(number_of)} {noun}{'s' if number_of != 1 else ''}"


def _cards(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    network = report["network"]
    kernels = network["kernels"]
    return [
        ("KRM of the network", number(network["krm"]), f"at τ = {report['tau']:g}"),
        ("Kernels, K", count(kernels), f"in {_counted(len(report['layers']), 'layer')}"),
        ("Distinct kernels, Kτ", count(network["distinct"]), f"{network['distinct'] / kernels:.1%} of all"),
        ("Dead kernels", count(network["dead"]), f"{network['dead'] / kernels:.1%} of all"),
        ("Parameters", count(network["parameters"]), "in the measured layers"),
    ]


def _probe(report: Mapping[str, Any], probe: NDArray[np.float32]) -> dict[str, Any]:
    pixels = figures.to_uint8(probe)
    scale = min(1.0, 320 / max(pixels.shape))
    pixels = figures.resized(pixels, (round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)))
    return {"source": figures.data_uri(pixels), "study": report["gallery"]["study_id"]}


def _by_depth(report: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """(name, colour, layers) of each third of the depth."""
    parts = thirds(list(report["layers"].values()))
    return [(name, colour, list(part)) for (name, colour), part in zip(DEPTHS.items(), parts, strict=True) if part]


def _depth(report: Mapping[str, Any]) -> dict[str, Any]:
    layers = list(report["layers"].values())
    colours = [colour for _, colour, part in _by_depth(report) for _ in part]
    krm = [layer["krm"] for layer in layers]
    alt = (
        f"KRM of {len(layers)} layers in the order of the forward pass, from {number(krm[0], 2)} in the first to "
        f"{number(krm[-1], 2)} in the last; below, each layer's number of kernels and of distinct kernels."
    )
    kernels, distinct = ([layer[key] for layer in layers] for key in ("kernels", "distinct"))
    return {"plot": figures.depth_plot("depth", krm, kernels, distinct, colours, alt=alt), "legend": _legend(report)}


def _legend(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(colour, name) for name, colour, _ in _by_depth(report)]


def _curves(report: Mapping[str, Any]) -> dict[str, Any]:
    taus, network = report["taus"], report["network"]["krm_at"]
    curves = [
        Curve(taus, 1 - np.array(layer["distinct_at"]) / layer["kernels"], colour, emphasis=False)
        for _, colour, part in _by_depth(report)
        for layer in part
    ]
    told = f"KRM from {number(network[0], 2)} at τ = {taus[0]:g} to {number(network[-1], 2)} at τ = {taus[-1]:g}"
    return {
        "plot": figures.threshold_plot("curves", [*curves, Curve(taus, network, "ink")], tau=report["tau"], alt=told),
        "legend": _legend(report),
        "rows": [(f"{tau:g}", number(krm)) for tau, krm in zip(taus, network, strict=True)],
    }


def _dead(report: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: layer for name, layer in report["layers"].items() if layer["dead"]}
    rows = []
    for name, layer in found.items():
        dead = layer["dead"]
        more = f" and {count(len(dead) - MOST_DEAD)} more" if len(dead) > MOST_DEAD else ""
        rows.append((name, count(len(dead)), count(layer["kernels"]), ", ".join(map(str, dead[:MOST_DEAD])) + more))
    return {"rows": rows}


def _layers(report: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "place": str(place),
            "name": name,
            "kernels": count(layer["kernels"]),
            "dead": count(len(layer["dead"])),
            "distinct": count(layer["distinct"]),
            "krm": number(layer["krm"]),
            "parameters": count(layer["parameters"]),
            "size": " × ".join(map(str, layer["size"])),
            "taken": "; ".join(dict.fromkeys(_chain(operations) for operations in layer["taken"])),
        }
        for place, (name, layer) in enumerate(report["layers"].items(), 1)
    ]


def _chain(operations: Sequence[str]) -> str:
    """``conv1 → bn1 → act1``: without the module path that they share with the convolution."""
    home = operations[0].rpartition(".")[0]
    return " → ".join(name.removeprefix(f"{home}.") for name in operations)


def _command(settings: Mapping[str, Any]) -> str:
    given = {key: value for key, value in settings.items() if value is not None}
    words = [part for key, value in given.items() for part in (f"--{key}", _option(value))]
    return shlex.join(["radgaze", "redundancy", "RUN", *words])


def _option(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else plain(value)
