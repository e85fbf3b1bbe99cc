"""Names from data that are code elsewhere: pages escape them, pictures draw them, tables and terminals show them."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import radgaze
from radgaze.cli import app
from radgaze.cohort import Cohort
from tests.cohorts import write_tables
from tests.inference.exports import RECIPE
from tests.report.conftest import Page

SCRIPT, IMAGE = '<script>alert("x")</script>', '"><img src=x onerror=alert(1)>'
CLASSES = [SCRIPT, IMAGE + r"$\frac{1}{0}$ $x", "=cmd|' /C calc'!A0 {{7*7}} </style></svg> [/bold] \x1b[31m"]
STUDY, READER, STRUCTURE = "s</title>{}" + IMAGE, "reader" + SCRIPT, "lungs" + SCRIPT
COHORT = "javascript:alert(1)" + SCRIPT
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of such names by way of the importer, a run, and what is made of both."""
    place = tmp_path_factory.mktemp("names")
    tables = write_tables(place / "in")
    for name in ("images", "gaze", "boxes"):
        with (tables / f"{name}.csv").open(newline="") as file:
            heading, *rows = csv.reader(file)
        for row in rows:
            row[0] = STUDY.format(row[0])
            if name == "images":
                index = int(row[3][-1])
                shutil.copyfile(tables / row[1], tables / f"{row[1][:3]}<img src=x onerror=alert(1)>.png")
                row[1] = f"{row[1][:3]}<img src=x onerror=alert(1)>.png"
                row[2], row[3] = f"{row[2]}{SCRIPT}", CLASSES[index]
                row.append(SCRIPT)
                row.append(("train", "train", "val", "test")[int(row[2][1:4]) // 6])
            elif name == "gaze":
                row[-1] += READER
        if name == "images":
            heading = [*heading[:-1], f"mask_{STRUCTURE}", SCRIPT, "split"]
            rows.append(["[/bold]" + ESCAPE + "[31m", "none.png", "p", CLASSES[0], "", "", "test"])
        with (tables / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([heading, *rows])
    cohort = radgaze.import_tables(
        tables / "images.csv",
        place / "cohort",
        gaze=tables / "gaze.csv",
        boxes=tables / "boxes.csv",
        name=COHORT,
        size=(48, 32),
        class_structures={name: [STRUCTURE] for name in CLASSES},
        progress=False,
    )
    run = radgaze.fit(cohort, place / "run", "mt-unet", model={"width": 2}, progress=False, **RECIPE)
    radgaze.evaluate(run, resamples=20, progress=False)
    radgaze.inference.measure_redundancy(run, images=2, progress=False)
    once = {"start": "inherited", "ratio": 2, "target_params": 20000, "max_auc_drop": 1, "settings": {"epochs": 1}}
    radgaze.simplify(run, place / "small", images=2, progress=False, **once)
    radgaze.predict(run, tables, place / "predictions", progress=False)
    return place


def test_the_importer_takes_names_as_they_are(place: Path) -> None:
    cohort = Cohort.open(place / "cohort")
    assert cohort.classes == sorted(CLASSES)
    assert cohort[0].study_id == STUDY.format("s000")
    assert cohort.structures == [STRUCTURE]
    assert READER in cohort.readers[0]


@pytest.mark.parametrize("page", ["run/report.html", "run/redundancy.html", "small/simplification.html"])
def test_pages_show_names_and_obey_none(place: Path, page: str) -> None:
    text = (place / page).read_text(encoding="utf-8")
    read = Page(text)
    read.check_self_contained(re.sub("base64,[A-Za-z0-9+/=]+", "", text))
    read.check_described()
    assert not [attributes for tag, attributes in read.tags if tag == "img" and attributes.get("src") == "x"]
    shown = [COHORT] if page == "small/simplification.html" else [COHORT, STUDY.format("s")[:10]]
    if page == "run/report.html":
        shown += [" ".join(name.split()) for name in CLASSES] + ["{{7*7}}", STRUCTURE]
    for name in shown:
        assert name in read.text, name


def test_tables_for_machines_hold_names_exactly(place: Path) -> None:
    """A spreadsheet must be told to take cells as text: quoting them here would change names that programs compare."""
    with (place / "predictions/predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {f"p_{name}" for name in CLASSES} <= set(rows[0])
    assert {row["predicted"] for row in rows} <= set(CLASSES)
    with (place / "run/studies-test.csv").open(newline="", encoding="utf-8") as file:
        assert STUDY.format("s")[:10] in next(csv.DictReader(file))["study_id"]


def test_file_names_hold_letters_digits_and_strokes(place: Path) -> None:
    made = [path.stem for path in (place / "predictions/overlays").iterdir()]
    assert len(made) > 24
    assert all(letter.isalnum() or letter in "-_" for name in made for letter in name)
    inside = [path.relative_to(place) for folder in ("run", "small", "cohort") for path in (place / folder).rglob("*")]
    assert not [path for path in inside if "script" in str(path) or "cmd" in str(path)]


@pytest.mark.parametrize("command", ["info cohort", "evaluate run --resamples 20 --quiet", "info cohort --json"])
def test_a_terminal_shows_names_and_obeys_none(place: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "400")
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.exception
    assert ESCAPE not in result.output
    if command.startswith("info"):
        assert "[/bold]" in result.output
