from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from radgaze.report.values import count, date_and_time, interval, listing, number, plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8736, "0.874"),
        (np.float32(0.5), "0.500"),
        (-0.41, "−0.410"),
        (0, "0.000"),
        (0.0004, "4.0×10⁻⁴"),
        (-2e-12, "−2.0×10⁻¹²"),
        (1234.5, "1,234.500"),
        (math.nan, "n/a"),
        (None, "n/a"),
        ("0.5", "n/a"),
        (True, "n/a"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_counts_and_lists() -> None:
    assert count(1512345) == "1,512,345"
    assert count(math.nan) == "n/a"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_an_interval_with_one_bound_still_tells_it() -> None:
    assert interval({"low": -0.1, "high": math.nan}) == "−0.100 to n/a"
    assert interval({"low": None, "high": None}) == "n/a"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "n/a"), (True, "yes"), (1e-4, "0.0001"), (16, "16"), ([], "none"), ([1, "a", None], "1, a, n/a")],
)
def test_settings_as_a_person_writes_them(value: Any, text: str) -> None:
    assert plain(value) == text


def test_dates() -> None:
    assert date_and_time("2026-11-03T04:05:06+00:00") == {
        "machine": "2026-11-03T04:05:06+00:00",
        "text": "3 November 2026, 04:05 UTC",
    }
    assert date_and_time("yesterday") == {"machine": None, "text": "yesterday"}
    assert date_and_time(None) is None
