"""The server against its own description: schemathesis asks what the description allows, and what it does not.

    RADGAZE_EXAMPLES=1000 python -m pytest tests/inference/server/test_description.py

asks that many questions of each route, other ones every time; without the variable it is a few, always the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema

from radgaze.cohort import Cohort
from radgaze.inference import Predictor
from tests.inference.server.conftest import Served, png

TOKEN = "a-token-of-some-length"
ROUTES = [
    "GET /v1/health",
    "GET /metrics",
    "GET /v1/models",  # these three have no parameter that could be wrong
    "POST /v1/predict",
    "POST /v1/predict/batch",
    "GET /v1/cohort/studies",
    "GET /v1/cohort/studies/{index}",
    "GET /v1/cohort/studies/{index}/gaze",
    "GET /v1/cohort/studies/{index}/predict",
]
EXAMPLES = os.environ.get("RADGAZE_EXAMPLES")


schemathesis.openapi.format("binary", st.sampled_from([png(), png(30, 20)]))


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["open", "with a token"])
def described(
    request: pytest.FixtureRequest, predictors: dict[str, Predictor], cohort: Cohort
) -> Iterator[tuple[BaseSchema, dict[str, str]]]:
    """The description of a running server, and the headers that it asks for."""
    with Served({"unet": predictors["unet"]}, cohort, token=request.param) as server:
        headers = {"Authorization": f"Bearer {TOKEN}"} if request.param else {}
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers), headers


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_allowed_is_answered_as_described(described: tuple[BaseSchema, dict[str, str]], route: str) -> None:
    ask(described, route, GenerationMode.POSITIVE)


@pytest.mark.parametrize("route", ROUTES[3:])
@pytest.mark.parametrize("described", [None], ids=["open"], indirect=True)
def test_what_is_not_allowed_is_refused_as_described(described: tuple[BaseSchema, dict[str, str]], route: str) -> None:
    ask(described, route, GenerationMode.NEGATIVE)


def ask(described: tuple[BaseSchema, dict[str, str]], route: str, mode: GenerationMode) -> None:
    schema, headers = described
    method, path = route.split()
    # in a batch, what is no image is no failure of the request
    excluded = [schemathesis.checks.negative_data_rejection] if route.endswith("batch") else []

    @settings(
        max_examples=int(EXAMPLES or 8),
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def one(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers, excluded_checks=excluded)

    one()
