from __future__ import annotations

import copy
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import radgaze
from radgaze import cli, simplification
from radgaze.cohort import Cohort
from radgaze.models import build, macs
from radgaze.models.build import parameters
from radgaze.report import simplification as module
from radgaze.report import write_simplification
from radgaze.report.bars import width_bars
from radgaze.report.figures import Tried, trade_plot
from radgaze.report.steps import Width, chain, read_steps, stages, widths
from radgaze.report.values import large, storage
from radgaze.training import Run

from .conftest import Page

Show = Callable[[dict[str, Any]], Page]
HOSTILE = '<script>alert(\'x\')</script>" onload="x" $\\frac{1}{0}$ &amp; _\x00\udcff'


def group(channels: int, kept: int, dead: int | None = 0, layers: int = 1) -> dict[str, Any]:
    return {"layers": layers, "channels": channels, "kept": kept, "dead": dead}


def step(number: int, start: int | None, size: int, auc: float, accepted: bool, **more: Any) -> dict[str, Any]:
    return {
        "step": f"{number:02d}",
        "from": start and f"{start:02d}",
        "aim": size + 11,
        "tau": 0.3 + 0.005 * number,
        "parameters": size,
        "macs": 40 * size,
        "bytes": 4 * size + 2000,
        "groups": {},
        "dropped": {},
        "auc": auc,
        "accepted": accepted,
        **more,
    }


@pytest.fixture
def log() -> dict[str, Any]:
    """Three steps, of which the second was rejected; blocks went in the first and in the third."""
    first = {
        "backbone.conv1": group(64, 20, layers=1),
        "backbone.layer1.0.conv1": group(16, 9, dead=2),
        "backbone.layer1.0.conv2": group(256, 100, layers=4),
        "backbone.layer1.1.conv1": group(16, 12),  # goes with its block
        "backbone.layer1.2.conv1": group(16, 8, dead=1),
        "backbone.layer1.3.conv1": group(16, 7),
        "backbone.layer1.10.conv1": group(16, 6),
    }
    third = {
        "backbone.conv1": group(20, 5),
        "backbone.layer1.0.conv1": group(9, 3, dead=4),
        "backbone.layer1.0.conv2": group(100, 40, layers=3),
        "backbone.layer1.1.conv1": group(8, 2),  # layer1.2 of the run
        "backbone.layer1.2.conv1": group(7, 7),  # layer1.3 of the run, and its block goes
        "backbone.layer1.9.conv1": group(6, 4),  # layer1.10 of the run
    }
    return {
        "radgaze": "0.1.0",
        "arguments": {
            "run": "runs/first",
            "weights": "f2ba",
            "max_auc_drop": 0.005,
            "target_params": 9000,
            "guide": "krm",
            "start": "fresh",
            "ratio": 8.0,
            "tau": None,
            "block_tau": 0.05,
            "images": 16,
            "difference": "mssim",
            "distill": True,
            "views": 8,
            "settings": {"epochs": 40, "batch_size": 32, "augmentation": {"rotate": 2.5}, "schedule": "one-cycle"},
        },
        "cohort": {
            "name": "Kermany",
            "studies": 5216,
            "patients": 3654,
            "size": [112, 96],
            "split_by": "patient",
            "validation": {"studies": 780, "patients": 578},
        },
        "classes": ["bacterial", "normal", "viral"],
        "base": {"method": "classifier", "parameters": 1_483_011, "macs": 104_840_000, "bytes": 6_020_000, "auc": 0.95},
        "steps": [
            step(1, None, 179_467, 0.9481, True, groups=first, dropped={"backbone.layer1.1": 0.0412}),
            step(2, 1, 22_097, 0.9371, False, groups=third, dropped={}),
            step(3, 1, 8_875, 0.9462, True, groups=third, dropped={"backbone.layer1.2": 0.0021}),
        ],
        "ended": "reached 9,000 parameters",
        "accepted": "03",
    }


@pytest.fixture
def show(tmp_path: Path) -> Show:
    def page(log: dict[str, Any]) -> Page:
        return Page(write_simplification(log, tmp_path).read_text("utf-8"))

    return page


def rejected(log: dict[str, Any]) -> dict[str, Any]:
    """The same, had it accepted nothing."""
    made = copy.deepcopy(log)
    made["steps"] = [{**each, "from": None, "accepted": False, "auc": each["auc"] - 0.01} for each in made["steps"]]
    return made | {"accepted": None, "ended": "smaller networks lose more than 0.005 of the validation AUC"}


# The page -------------------------------------------------------------------------------------------------------------


def test_the_whole_page_reads_from_top_to_bottom(show: Show, log: dict[str, Any]) -> None:
    page = show(log)
    assert page.sections == list(module.HEADINGS)
    assert [a["href"] for a in page.all("a")][1:] == [f"#{anchor}" for anchor in module.HEADINGS]
    for told in (
        "Simplification of first",
        "Classifier (1.48 million parameters), trained on Kermany , was made smaller step by step, guided by",
        "The accepted network has 8,875 parameters: −99.4 % , 167 times fewer.",
        "Its macro AUC on the validation split (780 studies of 578 patients) is 0.9462 , 0.0038 below the run’s "
        "0.9500; it was allowed to fall by up to 0.005 .",
        "The loop tried 3 networks and ended: reached 9,000 parameters.",
        "Only the test split, which nothing here has looked at",
        "104.84 million",
        "38 kB",
        "6.02 MB",
        "at least 0.9450",
        "one image of 112 × 96 pixels",
        "the definition is this project’s own, and its figures are not comparable with the paper’s",
        "780 studies of 578 patients",
    ):
        assert told in page.text, told


def test_it_needs_nothing_from_outside_and_runs_nothing(show: Show, log: dict[str, Any]) -> None:
    page = show(log)
    page.check_self_contained()
    drawings = [each for each in page.all("svg") if each.get("role") == "img"]
    assert len(drawings) == 2
    assert all(each["aria-label"] for each in drawings)


def test_every_network_is_a_row_with_its_numbers(show: Show, log: dict[str, Any]) -> None:
    text = show(log).text
    assert "The run 1,483,011 104.84 million 6.02 MB 0.9500" in text
    assert (
        "Step 1 the run 0.305 179,467 −87.9 % 7.18 million 720 kB 0.9481 −0.0019 accepted "
        "Step 2 step 1 0.31 22,097 −98.5 % 883,880 90 kB 0.9371 −0.0129 rejected "
        "Step 3 step 1 0.315 8,875 −99.4 % 355,000 38 kB 0.9462 −0.0038 accepted, kept"
    ) in text


def test_each_step_says_what_went_and_why(show: Show, log: dict[str, Any]) -> None:
    text = show(log).text
    for told in (
        "Made from the run (1.48 million parameters), aiming at 179,478 or fewer. τ = 0.305 is the least threshold "
        "that gets there; 179,467 are left, 8.26 times fewer. Trained, its validation AUC is 0.9481, 0.0019 below the "
        "run’s 0.9500. A drop of up to 0.005 was allowed: it was accepted. One residual block went, because it passes "
        "on what it gets: the change that is perceived is below 0.05. backbone.layer1.1 0.0412 "
        # without the group that went: 20 + 9 + 100 + 8 + 7 + 6 of 64 + 16 + 256 + 3 * 16
        "150 of 384 channels stay; 6 of 6 groups became narrower; 3 were dead",
        "That is more than the allowed drop of 0.005: it was put aside, and a more careful step was tried from the "
        "same network. No residual block went.",
        "backbone.layer1.3 0.0021 ",  # by its name in the run
        "54 of 143 channels stay; 5 of 5 groups became narrower",
        "backbone.layer1.0.conv2 4 256 100 0 ",  # four layers write it
        "backbone.layer1.1.conv1 1 16 gone 0 ",
    ):
        assert told in text, told


def test_steps_that_could_not_reach_their_aim_or_had_a_fixed_threshold_say_so(show: Show, log: dict[str, Any]) -> None:
    log["steps"][2]["aim"] = 100
    assert "aiming at 100 or fewer. τ = 0.315 is as far as it goes; 8,875" in show(log).text
    log["arguments"]["tau"] = 0.315
    assert "The threshold was fixed at τ = 0.315; 8,875" in show(log).text


@pytest.mark.parametrize(
    ("guide", "ranking", "told"),
    [
        ("uniform", "all", "0.34 of each group’s channels is the largest share that gets there"),
        ("l1", "group", "0.34 of each group’s channels is the largest share that gets there"),
        ("l1", "all", "0.34 of all channels is the largest share that gets there"),
    ],
)
def test_a_rival_is_told_as_itself(show: Show, log: dict[str, Any], guide: str, ranking: str, told: str) -> None:
    log["arguments"] |= {"guide": guide, "ranking": ranking, "start": "inherited", "distill": False}
    for each in log["steps"]:
        each["dropped"] = {}
        each["share"] = each.pop("tau") + 0.025
        for entry in each["groups"].values():
            entry["dead"] = None
    page = show(log)
    assert told in page.text
    assert module.GUIDES[guide][1] in page.text
    assert "2212.00272" not in page.text
    assert "residual block went" not in page.text
    assert "were dead" not in page.text
    assert "weights of the kernels that stay. Everything" in page.text
    assert "run’s scores" not in page.text
    assert shlex.split(page.text[page.text.index("radgaze simplify") :])[:4] == ["radgaze", "simplify", "RUN", "--out"]
    assert "--block-tau" not in page.text
    assert "--distill" not in page.text


def test_nothing_accepted_is_said_and_shown(show: Show, log: dict[str, Any]) -> None:
    page = show(rejected(log))
    for told in (
        "No smaller network was accepted , so the run stays as it is. The best one that was tried, step 1 with 179,467 "
        "parameters, has a macro AUC of 0.9381 on the validation split (780 studies of 578 patients), 0.0119 below the "
        "run’s 0.9500; it was allowed to fall by up to 0.005.",
        "ended: smaller networks lose more than 0.005 of the validation AUC.",
        "Channels of step 3, which was rejected, beside the run’s",
    ):
        assert told in page.text, told
    assert "accepted, kept" not in page.text
    assert not re.findall('class="cards"|mark full', page.html)
    assert "optimistic" not in page.text


def test_nothing_tried(show: Show, log: dict[str, Any]) -> None:
    made = log | {"steps": [], "accepted": None, "ended": "nothing shrinks: the next step would leave 90 of 100"}
    page = show(made)
    assert page.sections == ["networks", "method", "data", "settings", "commands"]
    assert "The loop tried no networks and ended: nothing shrinks: the next step would leave 90 of 100." in page.text
    assert "The run 1,483,011" in page.text


def test_a_floor_that_chance_passes_is_a_caution_and_is_not_drawn(show: Show, log: dict[str, Any]) -> None:
    assert "knows nothing" not in show(log).text
    log["arguments"]["max_auc_drop"] = 0.5
    page = show(log)
    assert "even a network that knows nothing is accepted" in page.text
    assert "0.4500, below the plot" in page.text
    assert 'class="mark floor"' not in page.html


def test_a_split_by_image_is_a_caution(show: Show, log: dict[str, Any]) -> None:
    assert "a patient may be on both sides" not in show(log).text
    log["cohort"]["split_by"] = "image"
    assert "a patient may be on both sides" in show(log).text


def test_an_auc_that_rose_is_above_and_an_equal_one_neither(show: Show, log: dict[str, Any]) -> None:
    log["steps"][2]["auc"] = 0.9534
    assert "is 0.9534 , 0.0034 above the run’s 0.9500" in show(log).text
    log["steps"][2]["auc"] = 0.95001
    assert "is 0.9500 , like the run’s" in show(log).text


def test_almost_everything_is_not_rounded_up_to_everything() -> None:
    assert module._change(23_508_032, 9_000) == "−99.96 %"
    assert module._change(1000, 1100) == "+10.0 %"
    assert module._change(None, 3) == module._change(3, math.nan) == "n/a"


def test_text_from_a_log_is_never_markup(show: Show, log: dict[str, Any]) -> None:
    plain = show(log)
    log["arguments"] |= {"run": HOSTILE, "guide": HOSTILE, "difference": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    log["cohort"]["name"], log["ended"], log["classes"] = HOSTILE, HOSTILE, [HOSTILE]
    log["steps"][0]["groups"] = {HOSTILE: group(4, 2)}
    log["steps"][0]["dropped"] = {f"a.{HOSTILE}": 0.1}
    log["base"]["method"] = HOSTILE
    page = show(log)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("value", [None, math.nan, "text", [], {}])
def test_any_part_may_be_missing_or_no_number(
    show: Show, log: dict[str, Any], value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tree: Any, path: tuple[Any, ...]) -> Any:
        made = copy.deepcopy(tree)
        inner = made
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return made

    def drawn(name: str, tried: list[Tried], floor: float | None, target: float | None, alt: str) -> str:
        places = [floor or 0, target or 1, *(number for one in tried for number in (one.parameters, one.auc))]
        assert all(math.isfinite(place) for place in places)
        return ""

    monkeypatch.setattr(module.figures, "trade_plot", drawn)  # its time would be this test's
    for key in log:
        assert "Simplification of" in show(spoil(log, (key,))).text, key
    paths: list[tuple[Any, ...]] = [(part, key) for part in ("arguments", "base", "cohort") for key in log[part]]
    paths += [("steps", 0, key) for key in log["steps"][0]]
    paths += [("steps", 0, "groups", "backbone.conv1", key) for key in ("layers", "channels", "kept", "dead")]
    for path in paths:
        assert module._context(spoil(log, path))["title"], path
    assert show({}).sections == []


def test_the_command_asks_for_the_same(show: Show, log: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the command line itself, it gives simplify the arguments of the log."""
    log["arguments"]["settings"]["objective"] = {"class_weights": [1, 2.5, 1e-7], "loss": "1-cc"}
    line = next(text for text in show(log).html.splitlines() if "radgaze simplify" in text)
    words = shlex.split(re.sub("<[^>]*>", "", line).replace("&#39;", "'").replace("&#34;", '"'))
    asked: dict[str, Any] = {}

    def record(run: Any, out: Any, **given: Any) -> Any:
        asked.update(given, run=str(run), out=str(out))
        raise typer.Exit(3)

    monkeypatch.setattr(simplification, "simplify", record)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert (asked.pop("run"), asked.pop("out")) == ("RUN", "AGAIN")
    expected = {key: value for key, value in log["arguments"].items() if key not in ("run", "weights")}
    assert {key: asked[key] for key in expected} == expected


# What it is made of ---------------------------------------------------------------------------------------------------


def test_layers_keep_the_run_s_names_where_blocks_went(log: dict[str, Any]) -> None:
    first, second, third = read_steps(log)
    assert (first.start, second.start, third.start) == (None, first, first)
    assert [each.name for each in third.groups] == [
        "backbone.conv1",
        "backbone.layer1.0.conv1",
        "backbone.layer1.0.conv2",
        "backbone.layer1.2.conv1",
        "backbone.layer1.3.conv1",
        "backbone.layer1.10.conv1",
    ]
    assert dict(first.dropped) == {"backbone.layer1.1": 0.0412}
    assert dict(third.dropped) == {"backbone.layer1.3": 0.0021}
    assert [each.gone for each in third.groups] == [False, False, False, False, True, False]
    assert not any(each.name.startswith("backbone.layer1.10") and each.gone for each in first.groups)
    assert chain(third) == [first, third]


def test_names_hold_over_many_steps() -> None:
    """Blocks 1 and 2 of six go, then what are blocks 0 and 2 by then: the run's 0, 4; 3 and 5 are left."""
    groups = {f"a.b.{index}.c": group(9, 4) for index in (0, 1)}
    steps = [
        step(1, None, 10, 0.9, True, dropped={"a.b.2": 0.1, "a.b.1": 0.1}),
        step(2, 1, 10, 0.9, True, dropped={"a.b.2": 0.1, "a.b.0": 0.1}, groups=groups),
        step(3, 2, 10, 0.9, True, groups=groups),
    ]
    read = read_steps({"steps": steps})
    assert list(read[1].dropped) == ["a.b.4", "a.b.0"]
    assert [each.name for each in read[1].groups] == ["a.b.0.c", "a.b.3.c"]
    assert [each.name for each in read[2].groups] == ["a.b.3.c", "a.b.5.c"]


def test_widths_go_from_the_run_to_the_last_step(log: dict[str, Any]) -> None:
    found = {each.name.removeprefix("backbone."): each for each in widths(chain(read_steps(log)[2]))}
    assert {name: (each.before, each.after) for name, each in found.items()} == {
        "conv1": (64, 5),
        "layer1.0.conv1": (16, 3),
        "layer1.0.conv2": (256, 40),
        "layer1.1.conv1": (16, 0),
        "layer1.2.conv1": (16, 2),
        "layer1.3.conv1": (16, 0),
        "layer1.10.conv1": (16, 4),
    }
    assert list(found)[3] == "layer1.1.conv1"  # in the network's order


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["backbone.conv1", "backbone.layer3.2.conv1"], ["conv1", "layer3"]),
        (["body.encoder.0.3", "body.up.1.1", "class_head.0"], ["encoder.0", "up.1", "class_head"]),
        (["backbone.features.conv0", "backbone.features.denseblock1.denselayer2.conv1"], ["conv0", "denseblock1"]),
        (["backbone.blocks.2.0.conv_pw", "backbone.conv_stem"], ["blocks.2", "conv_stem"]),
        (["conv"], ["conv"]),
        (["body", "head"], ["body", "head"]),
        ([], []),
    ],
)
def test_layers_are_grouped_by_the_part_of_the_network_they_are_in(names: list[str], expected: list[str]) -> None:
    assert stages(names) == expected


def test_bars_are_as_tall_as_the_logarithm_of_the_widths() -> None:
    drawn = width_bars([Width("a", 64, 8), Width("b", 64, 0), Width("c", 16, 16, layers=3)], alt="<&>")
    bar = r'class="(before|after|gone)" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"'
    found: dict[str, list[tuple[float, float]]] = {}
    for kind, y, height in re.findall(bar, drawn):
        found.setdefault(kind, []).append((float(y), float(height)))
    assert {kind: len(bars) for kind, bars in found.items()} == {"before": 2, "after": 2, "gone": 1}
    ticks = re.findall(r'class="rule" d="M[\d.]+ ([\d.]+)H\d+"/><text[^>]*>(\d+)<', drawn)
    rules = {int(tick): float(y) for y, tick in ticks}
    assert list(rules) == [1, 4, 16, 64]
    np.testing.assert_allclose(np.diff(list(rules.values())), rules[4] - rules[1], atol=0.11)
    assert found["before"][0][0] == pytest.approx(rules[64], abs=0.11)
    assert found["gone"][0][0] == pytest.approx(rules[64], abs=0.11)
    assert found["after"][0][0] == pytest.approx((rules[4] + rules[16]) / 2, abs=0.11)  # 8 is between them
    assert found["after"][1][0] == pytest.approx(rules[16], abs=0.11)
    assert len({round(y + height, 0) for bars in found.values() for y, height in bars}) == 1  # one foot
    assert "<title>a: 64 → 8</title>" in drawn
    assert "<title>b: 64 → gone with its block</title>" not in drawn
    assert "<title>b: gone with its block</title>" in drawn
    assert 'aria-label="&lt;&amp;&gt;"' in drawn
    assert drawn.count("--series-3") == 2  # what several layers write


def test_points_lie_where_size_and_auc_say() -> None:
    tried = [
        Tried(1e6, 0.95, 0, accepted=True),
        Tried(1e5, 0.94, 1, accepted=True, start=0),
        Tried(1e4, 0.90, 2, accepted=False, start=1),
        Tried(1.001e4, 0.90, 3, accepted=False, start=1),
    ]
    drawn = trade_plot("t", tried, floor=0.93, target=2e4, alt="what it shows")
    places = [(float(x), float(y)) for x, y in re.findall(r'<use[^>]* x="([\d.]+)" y="([\d.]+)"', drawn)][-4:]
    (x0, y0), (x1, y1), (x2, y2), _ = places
    assert x0 - x1 == pytest.approx(x1 - x2, abs=0.3)  # a tenth each time
    assert (y1 - y0) / (y2 - y1) == pytest.approx(0.01 / 0.04, abs=0.01)
    floor = re.findall(r'd="M ([\d.]+) ([\d.]+) L ([\d.]+) \2"[^>]*stroke-dasharray[^>]*--series-2', drawn)
    assert [float(y) for _, y, _ in floor] == pytest.approx([y1 + (y2 - y1) / 4], abs=0.3)
    assert re.findall(r">([\d, ]+)</text>", drawn)[-2:] == ["1", "2, 3"]  # numbers never cover each other
    assert "floor" not in trade_plot("t", tried, floor=None, alt="x")


def test_sizes_in_words() -> None:
    assert [large(value) for value in (999_999, 1_483_011, 4_089_000_000)] == [
        "999,999",
        "1.48 million",
        "4.09 billion",
    ]
    assert large(None) == "n/a"
    assert [storage(value) for value in (94_300_000, 456_789, math.nan)] == ["94.30 MB", "457 kB", "n/a"]


# From the real loop ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = {"model": {"width": 2}, "epochs": 1, "sigma": 6.0, "precision": "fp32", "batch_size": 12}
    return radgaze.fit(cohort, tmp_path_factory.mktemp("small") / "unet", "mt-unet", progress=False, **settings)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["radgaze", "simplify", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_loop_measures_and_writes_its_page(
    small_run: Run, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = (
        "--start",
        "inherited",
        "--max-auc-drop",
        1,
        "--target-params",
        3000,
        "--images",
        2,
        "--views",
        1,
        "--json",
    )
    assert command(monkeypatch, small_run.path, "--out", out, "--quiet", *asked) == 0
    told = json.loads(capfd.readouterr().out)
    assert told.pop("path") == str(out / "simplification.html")
    assert told == json.loads((out / "simplification.json").read_text())
    assert told["steps"]
    for each, folder in [
        (told["base"], small_run.path),
        *((one, out / "steps" / one["step"]) for one in told["steps"]),
    ]:
        network = Run.open(folder).network()
        assert each["parameters"] == parameters(network)
        assert each["macs"] == macs(network, cohort.size)
        assert each["bytes"] == (folder / "weights.safetensors").stat().st_size
    rebuilt = build(told["steps"][0]["network"])
    assert macs(rebuilt, cohort.size) == told["steps"][0]["macs"] < told["base"]["macs"]
    assert {entry["layers"] for entry in told["steps"][0]["groups"].values()} == {1}
    assert told["cohort"]["validation"]["studies"] == len(cohort.indices("val"))
    assert told["classes"] == small_run.classes
    page = Page((out / "simplification.html").read_text("utf-8"))
    assert page.sections == list(module.HEADINGS)
    for each in (told["base"], *told["steps"]):
        assert f"{each['parameters']:,}" in page.text
        assert large(each["macs"]) in page.text


def test_nothing_accepted_has_a_page_too(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(simplification.engine, "validation_auc", lambda run: 0.9 if run.path == small_run.path else 0.5)
    asked = ("--guide", "uniform", "--start", "inherited", "--ratio", 1.3, "--images", 2)
    assert command(monkeypatch, small_run.path, "--out", out, "--quiet", *asked) == 1
    assert f"Simplification: {out / 'simplification.html'}" in capfd.readouterr().out
    page = Page((out / "simplification.html").read_text("utf-8"))
    assert "No smaller network was accepted" in page.text
    assert "step 1 with" in page.text
    assert "0.4000 below the run’s 0.9000" in page.text
    assert not (out / "weights.safetensors").exists()
