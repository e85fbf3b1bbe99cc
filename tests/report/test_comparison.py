from __future__ import annotations

import copy
import itertools
import math
import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radgaze.report import comparison as module
from radgaze.report import write_comparison
from radgaze.report.arms import Arm, Pair, read_arms, read_pairs
from radgaze.report.glossary import describe
from radgaze.report.values import interval, number, p_value, signed
from radgaze.report.verdicts import verdict

from .conftest import comparison_of, over_seeds

Compare = Callable[[dict[str, Any]], Any]
HOSTILE = '<script>alert(\'x\')</script>" onload="x" $\\frac{1}{0}$ &amp; _\x00\udcff'
MEASURE = "auc_macro"


@pytest.fixture
def two() -> dict[str, Any]:
    """A classifier and a GG-CAM, three seeds each."""
    return comparison_of()


def set_difference(made: dict[str, Any], key: str = MEASURE, **found: Any) -> dict[str, Any]:
    made["pairs"][0]["measures"][key] |= found
    return made


def fail(made: dict[str, Any], arm: int, run: int, status: str = "failed") -> None:
    """Let one run of a comparison fail."""
    failed = made["arms"][arm]["runs"][run]
    failed |= {"status": status, "values": {}, "best_epoch": None, "error": "InputError: the loss is not finite"}
    made["failed"].append(
        {"arm": made["arms"][arm]["name"], "seed": failed["seed"], "error": failed["error"], "log": "epoch 3 …"}
    )


def test_the_whole_page_reads_from_top_to_bottom(compare: Compare, comparison: Any) -> None:
    page = compare(comparison)
    assert page.sections == list(module.HEADINGS)
    assert [a["href"] for a in page.all("a")][1:] == [f"#{anchor}" for anchor in module.HEADINGS]
    for told in (
        "Classifier, GG-CAM and MT-UNet were compared on Kermany chest X-rays (5,216 studies of 3,654 patients, split "
        "by patient), trained with resnet50, on 378, 756 and 3,655 training studies, from 3 seeds each, and measured "
        "on the test split (1,110 studies of 781 patients).",
        "The attention target is lungs mask (anatomy, not gaze)",
        "3,655 training studies",
        "favours GG-CAM",
        "patients are drawn with replacement 2,000 times",
        "CAM: energy inside",
        "The lung masks come from a segmentation network",
        "radgaze compare COHORT --methods classifier,gg-cam,mt-unet --backbones resnet50 "
        "--train-studies 378,756,3655 --seeds 3 --out AGAIN",
    ):
        assert told in page.text, told


def test_every_number_is_that_of_the_dictionary(compare: Compare, comparison: Any) -> None:
    text = compare(comparison).text
    for arm in comparison["arms"]:
        for key, found in arm["measures"].items():
            spread = interval({"low": found["min"], "high": found["max"]})
            row = f"{arm['name']} {number(found['median'])} {spread} {number(found['mean'])} {interval(found)} 3"
            assert row in text, (arm["name"], key)
        for run in arm["runs"]:
            assert run["path"] in text
    for pair in comparison["pairs"]:
        for key, found in pair["measures"].items():
            seeds = interval({"low": found["seed_low"], "high": found["seed_high"]})
            row = (
                f"{signed(found['value'])} {interval(found)} ; over seeds {seeds} "
                f"{p_value(found['p_adjusted'])} ; p {p_value(found['p_value'])}"
            )
            assert row in text, key
        for found in pair["delong"].values():
            row = f"{signed(found['value'])} {interval(found)} {number(found['z'], 2)} {p_value(found['p_adjusted'])}"
            assert row in text


def test_boxes_are_numpys_quartiles_and_dots_are_the_seeds(compare: Compare) -> None:
    made = comparison_of(seeds=7)
    panel = module._seeds_context(read_arms(made), [MEASURE])[0]
    values = {arm["name"]: [run["values"][MEASURE] for run in arm["runs"]] for arm in made["arms"]}
    ticks = [(float(place), float(text)) for place, text in panel["ticks"]]
    (first, low), (last, high) = ticks[0], ticks[-1]
    for row in panel["groups"][0]["rows"]:
        expected = first + (np.array(values[row["name"]]) - low) * (last - first) / (high - low)
        dots = [float(place) for place in re.findall(r'<circle class="seed" cx="([\d.-]+)%"', row["strip"])]
        np.testing.assert_allclose(dots, expected, atol=0.3)
        left, width = map(float, re.search(r'class="box" x="([\d.-]+)%" width="([\d.]+)%"', row["strip"]).groups())  # type: ignore[union-attr]
        np.testing.assert_allclose([left, left + width], np.percentile(expected, [25, 75]), atol=0.3)
        whisker = re.search(r'class="span" x1="([\d.-]+)%" x2="([\d.-]+)%"', row["strip"]).groups()  # type: ignore[union-attr]
        np.testing.assert_allclose([float(end) for end in whisker], [expected.min(), expected.max()], atol=0.3)
        median = re.search(r'class="median" x="([\d.-]+)%"', row["strip"])[1]  # type: ignore[index]
        assert float(median) == pytest.approx(np.median(expected), abs=0.3)
        assert all(f"<title>seed {seed}: " in row["strip"] for seed in range(7))


def test_a_method_keeps_its_colour_and_its_arms_of_one_size_differ_in_dash(comparison: Any) -> None:
    made = comparison_of(("classifier", "gg-cam"), backbones=("resnet50", "densenet121"), sizes=(378, 756))
    arms = read_arms(made)
    colours = {(arm.method, arm.colour) for arm in arms}
    assert len(colours) == len({method for method, _ in colours}) == 2
    lines = {(arm.colour, arm.dash) for arm in arms}
    assert len(lines) == 4
    assert len({(arm.label, arm.colour, arm.dash) for arm in arms}) == 4  # one line for both sizes


@pytest.mark.parametrize(
    ("found", "told", "shown"),
    [
        ({"low": 0.001, "high": 0.02, "seed_low": 0.001}, "favours GG-CAM", True),
        ({"low": -0.02, "high": -0.001, "seed_high": -0.001}, "favours Classifier", True),
        ({"low": 0.001, "high": 0.02, "seed_low": -0.01}, "favours GG-CAM; not shown across seeds", True),
        (
            {"low": 0.001, "high": 0.02, "seed_low": None, "seed_high": None},
            "favours GG-CAM; one seed, spread unknown",
            True,
        ),
        ({"low": 0.001, "high": 0.02, "p_adjusted": 0.05}, "no difference shown after correction", False),
        ({"low": -0.001, "high": 0.02}, "no difference shown", False),
        ({"low": 0.0, "high": 0.02}, "no difference shown", False),
        ({"low": 0.0, "high": 0.0}, "no difference shown", False),
        ({"low": None, "high": math.nan}, "no interval: no difference shown", False),
        ({"value": math.nan}, "not measured", False),
    ],
)
def test_a_verdict_never_says_more_than_the_interval(found: Any, told: str, shown: bool) -> None:
    classifier, guided = Arm("a", "Classifier", "classifier", "series-1"), Arm("b", "GG-CAM", "gg-cam", "series-2")
    entry = {"value": 0.01, "p_adjusted": 0.01, "seed_low": -0.1, "seed_high": 0.1} | found
    read = verdict(describe(MEASURE), Pair(guided, classifier, None, (), {}, {}), entry)
    assert (read.text, read.shown) == (told, shown)


def test_a_lower_error_favours_the_lower_arm(two: Any) -> None:
    pair = read_pairs(two, read_arms(two))[0]
    found = {"value": -0.01, "low": -0.02, "high": -0.001, "seed_low": -0.03, "seed_high": -0.001}
    assert verdict(describe("ece"), pair, found).text == "favours GG-CAM"
    assert verdict(describe("unheard_of"), pair, found).text == "Classifier higher"
    assert module._sides(describe("ece"), [pair]) == ("favours GG-CAM", "favours Classifier")
    assert module._sides(describe("auc_macro"), [pair]) == ("favours Classifier", "favours GG-CAM")


def test_an_interval_with_zero_in_it_shows_no_difference(compare: Compare, two: Any) -> None:
    text = compare(set_difference(two, value=0.005, low=-0.01, high=0.02)).text
    assert (
        "No difference in macro AUC is shown between GG-CAM and Classifier (+0.005, 95 % interval over patients "
        "−0.010 to 0.020)." in text
    )
    assert "higher macro AUC" not in text


def test_a_loss_is_told_as_plainly_as_a_gain(compare: Compare, two: Any) -> None:
    found = {"value": -0.02, "low": -0.03, "high": -0.01, "seed_low": -0.04, "seed_high": -0.001, "p_adjusted": 4e-4}
    assert (
        "GG-CAM has a lower macro AUC than Classifier (−0.020, 95 % interval over patients −0.030 to −0.010; corrected "
        "p < 0.001), which is worse." in compare(set_difference(two, **found)).text
    )


def test_a_difference_that_seeds_or_the_correction_do_not_bear_out_says_so(compare: Compare, two: Any) -> None:
    found = {"value": 0.02, "low": 0.01, "high": 0.03, "seed_low": -0.01, "seed_high": 0.05, "p_adjusted": 0.01}
    assert "which is better; across seeds it is not shown (interval −0.010 to 0.050)." in (
        compare(set_difference(two, **found)).text
    )
    text = compare(set_difference(two, p_adjusted=0.08)).text
    assert "No difference in macro AUC is shown" in text
    assert "corrected for all comparisons p = 0.080" in text


def test_many_pairs_are_counted(compare: Compare, comparison: Any) -> None:
    for pair in comparison["pairs"]:
        pair["measures"][MEASURE] |= {"value": 0.001, "low": -0.01, "high": 0.012}
    assert "None of the 6 paired comparisons shows a difference in macro AUC." in compare(comparison).text
    for pair, shift in zip(comparison["pairs"][:3], (0.02, 0.03, -0.04), strict=True):
        pair["measures"][MEASURE] |= {
            "value": shift,
            "low": shift - 0.01,
            "high": shift + 0.01,
            "seed_low": shift - 0.01,
            "seed_high": shift + 0.01,
            "p_adjusted": 0.01,
        }
    text = compare(comparison).text
    assert "3 of 6 paired comparisons show a difference in macro AUC: " in text
    assert "1 in favour of Classifier , by 0.040 (intervals over patients within 0.030 to 0.050)" in text
    assert "For the other 3, none is shown." in text


def test_failed_runs_are_cautioned_listed_and_left_out(compare: Compare, two: Any) -> None:
    fail(two, arm=1, run=2)
    page = compare(two)
    assert "1 of 6 runs did not finish and is missing from gg-cam resnet50 (756)." in page.text
    assert "gg-cam resnet50 (756), seed 2 InputError: the loss is not finite" in page.text
    assert "epoch 3 …" in page.text
    assert "2 of 3" in page.text
    assert len(read_arms(two)[1].seeds(MEASURE)) == 2


def test_an_interrupted_run_without_an_entry_of_its_own_is_listed_too(compare: Compare, two: Any) -> None:
    two["arms"][0]["runs"][1] |= {"status": "interrupted", "values": {}}
    assert "classifier resnet50 (756), seed 1 interrupted" in compare(two).text


@pytest.mark.parametrize("seeds", [1, 2, 10])
def test_seeds_from_one_to_ten(seeds: int, compare: Compare) -> None:
    page = compare(comparison_of(seeds=seeds))
    assert f"from {seeds} seed{'' if seeds == 1 else 's'} each" in page.text
    assert ("trained from a single seed" in page.text) == (seeds == 1)
    strips = page.html.count('class="box"')
    assert (strips == 0) == (seeds < 3)


def test_one_arm_is_no_comparison(compare: Compare) -> None:
    page = compare(comparison_of(("classifier",), seeds=1))
    assert {"differences", "delong", "curves"}.isdisjoint(page.sections)
    assert "Classifier was trained on" in page.text
    assert "The only arm was trained from a single seed" in page.text
    assert "a difference" not in page.text.partition("Contents")[0].partition("Seed by seed")[0]


def test_many_arms_with_long_names(compare: Compare) -> None:
    backbones = ("resnet50", "vit_small_patch16_224.augreg_in21k_ft_in1k")
    made = comparison_of(("classifier", "gg-cam", "mt-unet"), backbones, sizes=(378, 756, 3655), seeds=10)
    page = compare(made)
    assert len(made["arms"]) == 15
    assert "378 training studies, vit_small_patch16_224.augreg_in21k_ft_in1k" in page.text
    assert "3,655 training studies, own network" in page.text


def test_equal_values_and_no_values(compare: Compare, two: Any) -> None:
    for arm in two["arms"]:
        for run in arm["runs"]:
            run["values"] = dict.fromkeys(run["values"], 0.5)
        arm["measures"] = {key: over_seeds([0.5] * 3) for key in arm["measures"]}
    assert "0.500 to 0.500" in compare(two).text

    for run in two["arms"][0]["runs"]:
        run |= {"values": {MEASURE: math.nan}, "seconds": None, "best_epoch": math.nan, "path": None}
    two["arms"][0]["measures"] = {MEASURE: {"median": math.nan, "low": None}, "ece": None}
    two["pairs"][0]["measures"] = {MEASURE: {"value": None}, "ece": {"value": math.nan, "low": math.nan, "high": None}}
    two["pairs"][0]["delong"] = {"normal": {}}
    page = compare(two)
    assert not re.search(r"\b(nan|None|inf)\b", page.text)
    assert "No difference in macro AUC could be measured." in page.text


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        ("arms", {"seeds", "curves", "arms", "runs", "intervals"}),
        ("pairs", {"differences", "delong"}),
        ("cohort", {"data"}),
        ("notes", {"notes"}),
        ("protocol", {"commands"}),
    ],
)
def test_an_absent_part_leaves_no_trace(absent: str, gone: set[str], compare: Compare, comparison: Any) -> None:
    for value in (None, type(comparison[absent])()):
        page = compare(comparison | {absent: value})
        assert set(page.sections) == set(module.HEADINGS) - gone
        assert {a["href"] for a in page.all("a")}.isdisjoint(f"#{anchor}" for anchor in gone)
    comparison.pop(absent)
    assert set(compare(comparison).sections) == set(module.HEADINGS) - gone


def test_nothing_at_all_is_a_page_that_says_so(compare: Compare) -> None:
    page = compare({})
    assert page.sections == []
    assert "Nothing was trained." in page.text


@pytest.mark.parametrize("backbones", [("resnet50",), ("resnet50", "densenet121", "convnext_tiny")])
def test_curves_share_one_legend_and_tell_every_median(compare: Compare, backbones: tuple[str, ...]) -> None:
    made = comparison_of(backbones=backbones, sizes=(378, 756))
    context = module._curves_context(read_arms(made), [MEASURE, "saliency:cc"])
    assert context is not None
    assert len(context["legend"]) == 2 * len(backbones)
    assert [panel["measure"].key for panel in context["panels"]] == [MEASURE]  # what nobody measured is not drawn
    for arm in made["arms"]:
        assert f"{number(arm['measures'][MEASURE]['median'])} at {arm['train_studies']}" in context["panels"][0]["plot"]
    assert compare(made).text.count("Medians over seeds") == 1


def test_settings_of_an_arm_stand_once_for_all_sizes(compare: Compare) -> None:
    text = compare(comparison_of(sizes=(378, 756))).text
    assert text.count("GG-CAM: 2 settings apart") == 1


def test_one_size_has_no_curve(compare: Compare, two: Any) -> None:
    assert "curves" not in compare(two).sections


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "val"}, "on the validation split, which chose the best epoch"),
        ({"split": "all"}, "include studies the network was trained on"),
        ({"cohort": {"split_by": "image"}}, "a patient may be on both sides"),
        ({}, "No reader’s gaze is behind the attention target lungs mask (anatomy, not gaze)"),
    ],
)
def test_what_flatters_or_misleads_carries_a_caution(change: Any, told: str, compare: Compare, two: Any) -> None:
    assert told in compare(two | change).text


def test_gaze_needs_no_caution(compare: Compare, two: Any) -> None:
    page = compare(two | {"attention": ["none", "reader's gaze (samples, preset gg-cam)"]})
    assert "Caution" not in page.text
    assert "The attention target is reader's gaze (samples, preset gg-cam)" in page.text


def test_flat_keys_are_named_after_their_base_measure() -> None:
    pointing = describe("cam:pointing_game")
    assert (pointing.name, pointing.better, pointing.phrase) == (
        "CAM: pointing game",
        "higher",
        "pointing game (CAM)",
    )
    assert pointing.definition == describe("pointing_game").definition
    assert describe("grad_cam:energy_inside").name == "Grad-CAM: energy inside"
    assert describe("saliency:kld").better == "lower"
    assert describe("cam:iou").name == "CAM: IoU"
    assert (describe("auc:CHF: left").name, describe("auc:CHF").phrase) == ("AUC: CHF: left", "AUC of CHF")
    assert describe("cam:unheard_of").better is None
    assert describe("place:unheard_of").name == "Place:unheard of"


def test_flat_keys_stand_in_the_glossarys_order(comparison: Any) -> None:
    families = module._arms_context(read_arms(comparison), module.ordered(comparison["arms"][1]["measures"]))
    assert [family["heading"] for family in families] == [
        "Diagnosis",
        "AUC per class",
        "Class activation maps",
        "Grad-CAM",
    ]
    assert [group["measure"].key for group in families[0]["groups"]] == [
        "auc_macro",
        "auc_micro",
        "accuracy",
        "ece",
        "brier",
        "nll",
    ]


def test_it_needs_nothing_from_outside_and_runs_nothing(compare: Compare, comparison: Any) -> None:
    page = compare(comparison)
    page.check_self_contained()
    assert not page.all("img")


def test_every_plot_is_described_and_every_table_headed(compare: Compare, comparison: Any) -> None:
    page = compare(comparison)
    hidden = [svg for svg in page.all("svg") if svg.get("class") != "cut"]  # an arrowhead within a hidden strip
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in hidden)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(cell.get("scope") for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_whatever_comes_from_data_is_escaped(compare: Compare, two: Any) -> None:
    hostile = copy.deepcopy(comparison_of(classes=(HOSTILE, "b"), sizes=(378, 756)))
    hostile |= {"title": HOSTILE, "split": HOSTILE, "attention": [HOSTILE], "notes": [HOSTILE], "created": HOSTILE}
    hostile["cohort"] |= {"name": HOSTILE, HOSTILE: HOSTILE}
    hostile["protocol"] |= {"methods": [HOSTILE], "control": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    fail(hostile, arm=0, run=0)
    hostile["failed"][0] |= {"error": HOSTILE, "log": HOSTILE}
    for index, arm in enumerate(hostile["arms"]):
        arm |= {"name": f"{HOSTILE} {index}", "method": HOSTILE, "backbone": HOSTILE, "attention": HOSTILE}
        arm["settings"] = {HOSTILE: HOSTILE}
        arm["measures"][HOSTILE] = over_seeds([0.1, 0.2])
        for run in arm["runs"]:
            run |= {"path": HOSTILE, "seed": HOSTILE}
    hostile["pairs"][0] |= {"first": HOSTILE, "second": f"{HOSTILE} 2"}
    page = compare(hostile)
    assert page.text.count("<script>alert('x')</script>") > 20  # shown as it is ...
    assert "<script" not in page.html  # ... and never obeyed
    assert not any("onload" in attributes for _, attributes in page.tags)


def test_the_file_is_named_repeatable_and_whole(tmp_path: Path, two: Any) -> None:
    one = write_comparison(two, tmp_path / "one")
    other = write_comparison(two, tmp_path / "other.html")
    assert one == tmp_path / "one" / "comparison.html"
    assert one.read_bytes() == other.read_bytes()
    assert [entry.name for entry in one.parent.iterdir()] == ["comparison.html"]


def test_command_has_everything_that_was_asked_for() -> None:
    asked = {
        "methods": ["classifier", "decision=gg-cam"],
        "backbones": ["resnet50"],
        "train_studies": [756],
        "seeds": [3],
        "settings": {"epochs": 16, "attention": "mask:lungs", "augmentation": {"flip": False}},
        "settings_of": {
            "decision": {"objective": {"supervise": "decision"}},
            "resnet50": {"model": {"options": {"a": 1}}},
        },
        "runs": [],
    }
    (line,) = module._commands({"protocol": {"methods": ["classifier", "decision"], "asked": asked}})
    words = shlex.split(line)
    assert words[:3] == ["radgaze", "compare", "COHORT"]
    assert words[words.index("--methods") + 1] == "classifier,decision=gg-cam"
    assert words[words.index("--seeds") + 1] == "3,"
    assert [word for before, word in pairwise(words) if before == "--set"] == [
        "epochs=16",
        "attention=mask:lungs",
        "augmentation.flip=false",
        "decision:objective.supervise=decision",
        'resnet50:model.options={"a": 1}',
    ]
