"""Training curves of a run: which columns of the history share a panel, and the table of every epoch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from radgaze.report import figures
from radgaze.report.figures import Curve
from radgaze.report.glossary import describe, is_bounded
from radgaze.report.values import finite, number, plain

__all__ = ["training_context"]

LOSSES = {
    "": "Total loss",
    "_class": "Classification loss",
    "_saliency": "Saliency loss",
    "_attention": "Attention loss of the CAMs",
}
RATE, SIGMAS, WEIGHTS = "Learning rate", "Learned σ", "Weights of the loss terms"
SPREAD = 100.0  # σ that differ by more than this need a logarithmic axis


def training_context(history: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Panels, events and the epoch table of a run's ``history``; None where there is no epoch."""
    if not history:
        return None
    columns = list(dict.fromkeys(key for row in history for key in row))
    epochs = [float(index) if (e := finite(row.get("epoch"))) is None else e for index, row in enumerate(history)]
    best = finite(run.get("best_epoch"))
    events = [(epoch, str(row["event"])) for epoch, row in zip(epochs, history, strict=True) if row.get("event")]
    panels = []
    for index, (heading, wanted) in enumerate(_panels(columns)):
        rate = heading == RATE
        log = rate or heading == WEIGHTS or (heading == SIGMAS and _spread(history, wanted.values()) > SPREAD)
        curves: list[Curve] = []
        legend = []
        for name, column in wanted.items():
            y = [math.nan if (value := finite(row.get(column))) is None else value for row in history]
            if not any(value > 0 if log else math.isfinite(value) for value in y):
                continue
            trains = name == "training"  # the quieter curve: validation is what counts
            colour = "series-7" if trains else figures.series_colour(sum(curve.emphasis for curve in curves))
            curves.append(Curve(epochs, y, colour, "4 2.5" if trains else "", emphasis=not trains))
            legend.append({"name": name, "colour": colour, "dash": curves[-1].dash, "last": number(y[-1], 4)})
        if not curves:
            continue
        ends = "; ".join(f"{entry['name']} ends at {entry['last']}" for entry in legend)
        plot = figures.line_panel(
            f"curve-{index}",
            curves,
            alt=f"{heading} over {len(history)} epochs: {ends}.",
            steps=rate,
            log=log,
            best=best,
            events=[epoch for epoch, _ in events] if rate else (),
        )
        panels.append({"heading": heading, "legend": legend, "plot": plot, "events": rate and bool(events)})
    return {
        "panels": panels,
        "best": None if best is None else f"{best:g}",
        "events": [(f"{epoch:g}", text) for epoch, text in events],
        "columns": columns,
        "rows": [[_cell(column, row.get(column)) for column in columns] for row in history],
    }


def _panels(columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Headings with their curves {name: column}: each loss term over both splits, scores bounded by 1 together."""
    terms = dict.fromkeys(found[1] for name in columns if (found := re.fullmatch(r"(?:train|val)_loss(|_\w+)", name)))
    for term in terms:
        both = {"validation": f"val_loss{term}", "training": f"train_loss{term}"}
        heading = LOSSES.get(term, f"{term.strip('_').replace('_', ' ').capitalize()} loss")
        yield heading, {name: column for name, column in both.items() if column in columns}
    scores = [name.removeprefix("val_") for name in columns if re.fullmatch(r"val_(?!loss).+", name)]
    yield "Validation scores", {describe(key).name: f"val_{key}" for key in scores if is_bounded(key)}
    for key in scores:
        if not is_bounded(key):
            yield f"Validation {describe(key).name}", {"validation": f"val_{key}"}
    yield RATE, {"rate": "lr"}
    yield WEIGHTS, {name.removeprefix("weight_"): name for name in columns if name.startswith("weight_")}
    yield SIGMAS, {name.removeprefix("sigma_"): name for name in columns if name.startswith("sigma_")}
    yield "Scale k of the CAMs", {"k": "cam_scale"} if "cam_scale" in columns else {}


def _spread(history: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> float:
    """The largest of some columns' positive values, divided by the smallest."""
    known = [value for name in columns for row in history if (value := finite(row.get(name))) is not None and value > 0]
    return max(known) / min(known) if known else 1.0


def _cell(column: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, str) or column == "epoch":
        return plain(value)
    return number(value, 1 if column == "seconds" else 4)
