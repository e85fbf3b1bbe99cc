from __future__ import annotations

from typing import Any

import pytest

from radgaze.report import figures
from radgaze.report.training import training_context


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """How each panel is drawn, by the text that describes it."""
    seen = {}
    draw = figures.line_panel

    def keep(name: str, curves: Any, *, alt: str, **options: Any) -> Any:
        seen[alt.split(" over ")[0]] = options
        return draw(name, curves, alt=alt, **options)

    monkeypatch.setattr(figures, "line_panel", keep)
    return seen


def test_curriculum_is_drawn_on_logarithmic_axes(history: Any, drawn: dict[str, dict[str, Any]]) -> None:
    context = training_context(history, {"best_epoch": 6})
    legends = {panel["heading"]: [entry["name"] for entry in panel["legend"]] for panel in context["panels"]}
    assert legends["Weights of the loss terms"] == ["class", "attention"]
    assert legends["Learned σ"] == ["class", "attention"]
    assert legends["Scale k of the CAMs"] == ["k"]
    assert drawn["Weights of the loss terms"]["log"]
    assert drawn["Learned σ"]["log"]  # over more than two powers of ten
    assert not drawn["Scale k of the CAMs"]["log"]
    assert drawn["Learning rate"]["steps"]
    assert not drawn["Learned σ"]["steps"]


def test_a_narrow_sigma_keeps_a_linear_axis(history: Any, drawn: dict[str, dict[str, Any]]) -> None:
    training_context([{**row, "sigma_attention": 0.5} for row in history], {})
    assert not drawn["Learned σ"]["log"]


def test_events_stand_on_the_learning_rate_alone(history: Any) -> None:
    panels = training_context(history, {})["panels"]
    assert [panel["heading"] for panel in panels if panel["events"]] == ["Learning rate"]
