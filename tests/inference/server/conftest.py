"""Two models whose networks are formulas, and a small cohort, for the server and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from radgaze.cohort import Cohort
from radgaze.inference import Predictor
from tests.cohorts import blob_cohort
from tests.inference.predictors import formula_predictor


@pytest.fixture(scope="session")
def served_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """24 studies at the models' size, each looked at by two readers."""
    return blob_cohort(tmp_path_factory.mktemp("served"), size=(32, 24))


@pytest.fixture(scope="session")
def radiograph(served_cohort: Cohort) -> Path:
    return served_cohort.path.parent / "tables" / "001.png"


def models(classes: tuple[str, ...]) -> dict[str, Predictor]:
    """One that predicts attention, one with class activation maps and without a calibration."""
    return {
        "unet": formula_predictor(("logits", "saliency_logits"), classes),
        "cam": formula_predictor(("logits", "cams"), classes, calibrated=False),
    }
