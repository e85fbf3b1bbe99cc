"""The benchmarks run by hand; here, that each can be started, and that the suite's page and table are right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILES = sorted([*FOLDER.glob("*.py"), *(FOLDER / "quality").glob("*.py")])


def load(file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file as a module, as if run from its folder."""
    monkeypatch.syspath_prepend(str(file.parent))
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_can_be_started(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(file, monkeypatch)
    assert (module.__doc__ or "").strip()


def test_the_suite_knows_every_benchmark_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load(FOLDER / "suite.py", monkeypatch)
    here = {file.stem for file in FOLDER.glob("[a-z]*.py")} - {"suite", "phantom", "soak"}  # difficulty, endurance
    assert set(suite.BENCHMARKS) == here


def test_ratios_are_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = load(FOLDER / "_bench.py", monkeypatch)
    made = bench.row("work", "other", [4.0, 9.0, 2.0], [2.0, 3.0, 2.0], target=2, floor=bench.Floor(0.5, "memory"))
    assert (made.theirs, made.ours) == (4000, 2000)
    assert (made.ratio, made.least, made.most) == (2.0, 1.0, 3.0)
    assert bench.table([made]).splitlines()[-1] == (
        "| work | other | 4,000 ms | 2,000 ms | 2 (1 to 3) | 2 | 500 ms (memory) |  |"
    )


def test_a_page_keeps_what_stands_around_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load(FOLDER / "suite.py", monkeypatch)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{suite.START}\nold\n{suite.END}\nafter\n")
    suite.put_into(page, "new")
    assert page.read_text() == f"before\n{suite.START}\n\nnew\n{suite.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the lines"):
        suite.put_into(page, "new")
    assert page.read_text() == "no marks"
