"""The fuzzers run by hand; here, that every harness works, on its seeds and on a few inputs at random."""

from __future__ import annotations

import importlib
import pkgutil
import random
import warnings
from pathlib import Path

import pytest

import fuzz
from fuzz.__main__ import MODULES
from fuzz.choices import Choices, Harness, altered, edited, refusals
from fuzz.tables import imported, written
from radgaze.cohort import pixels
from radgaze.errors import InputError

# The slow ones; of the others, the usual number.
INPUTS = {"network": 3, "program": 0, "cohort": 10, "tables": 10, "run": 20, "weights": 20, "egd-cxr": 20,
          "reflacx": 20, "dicom": 40, "mask": 40}  # fmt: skip
USUAL = 100


def harness(name: str) -> Harness:
    return importlib.import_module(f"fuzz.{MODULES[name]}").HARNESSES[name]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODULES)
def test_it_reads_or_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "MAX_PIXELS", pixels.MAX_PIXELS)  # harnesses lower it
    one, source = harness(name), random.Random(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers near the end of their range overflow
        for seed in one.seeds():
            one.check(seed)
        for number in range(INPUTS.get(name, USUAL)):
            one.check(source.randbytes(number % 7 * 40 + 8))


def test_every_harness_is_run() -> None:
    modules = {module.name for module in pkgutil.iter_modules([str(Path(fuzz.__file__).parent)])}
    found = {
        name
        for module in modules - {"__main__"}
        for name in getattr(importlib.import_module(f"fuzz.{module}"), "HARNESSES", {})
    }
    assert found == set(MODULES)


def test_bytes_decide() -> None:
    choices = Choices(bytes([3, 1, 2, 255]))
    assert choices.pick("abcd") == "d"
    assert choices.one_in(2)
    assert choices.number(1000) == 65282 % 1001
    assert not choices
    assert (choices.pick("abcd"), choices.one_in(2), choices.number(9), choices.text()) == ("a", False, 0, "")
    assert edited(b"unchanged", Choices(b"")) == b"unchanged"
    assert altered({"a": [1, 2]}, Choices(b"")) == {"a": [1, 2]}
    assert any(edited(b"content", Choices(bytes([1, 0, kind, 3, 65, 66, 67]))) != b"content" for kind in range(6))


class Torn(InputError):
    def __str__(self) -> str:
        return "one\ntwo"


def test_a_fault_is_seen() -> None:
    with pytest.raises(KeyError), refusals():
        raise KeyError("a")
    with pytest.raises(AssertionError, match="several lines"), refusals():
        raise Torn
    with refusals():
        raise InputError("one sentence.")


def test_what_spreadsheets_write_is_what_the_harness_writes() -> None:
    rows = [["study_id", "image", "age"], ["007", "0.png", "1.5"], ["b", "1.png", "2"]]
    for habit in ({}, {"separator": ";", "comma": True, "sep_line": True}, {"end": "\r"}, {"encoding": "utf-16"}):
        read = imported({"images": written(rows, **habit)})  # type: ignore[arg-type]
        assert [(raw.study_id, raw.attributes["age"]) for raw in read] == [("007", 1.5), ("b", 2.0)]
