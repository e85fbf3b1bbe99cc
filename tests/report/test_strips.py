from __future__ import annotations

import re

import numpy as np
import pytest

from radgaze.report.glossary import describe
from radgaze.report.strips import box_of, box_scale, box_strip, difference_scale, difference_strip


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_a_box_is_numpys_percentiles(count: int) -> None:
    values = np.random.default_rng(count).random(count).tolist()
    box = box_of(values)
    assert [box.low, box.lower, box.median, box.upper, box.high] == pytest.approx(
        np.percentile(values, [0, 25, 50, 75, 100])
    )


def test_scales_hold_every_value_and_stay_within_the_measure() -> None:
    scale = box_scale([0.0, 0.4, 1.0], describe("auc_macro"))
    assert (scale.low, scale.high) == (0.0, 1.0)
    narrow = box_scale([0.9, 0.9001], describe("auc_macro"))
    assert narrow.high - narrow.low == pytest.approx(0.02)  # noise is not blown up
    assert box_scale([250.0, 250.0], describe("nll")).low < 250 < box_scale([250.0], describe("nll")).high
    assert [text for _, text in box_scale([0.8, 0.93], describe("auc_macro")).labels] == ["0.80", "0.85", "0.90"]


def test_a_difference_scale_has_zero_in_the_middle_and_is_not_swamped_by_seeds() -> None:
    scale = difference_scale([-0.01, 0.02], [-1.5, 1.6])
    assert scale.at(0.0) == 50
    assert scale.high == pytest.approx(0.02 * 2.5 * 1.08)
    assert scale.ticks == pytest.approx((-0.05, 0.0, 0.05))
    assert difference_scale([], []).high == 0.01


def test_cut_lines_end_in_arrowheads_and_hollow_dots_show_nothing() -> None:
    scale = difference_scale([0.01, 0.02], [])
    cut = difference_strip(0.01, (0.005, 0.02), (-1.0, 1.0), scale, "series-1", filled=True)
    assert cut.count('class="cut"') == 2
    assert "fill:var(--series-1)" in cut
    inside = difference_strip(0.01, (0.005, 0.02), (0.004, 0.011), scale, "series-1", filled=False)
    assert 'class="cut"' not in inside
    assert "fill:var(--card)" in inside
    nothing = difference_strip(None, (None, None), (None, 1.0), scale, "series-1", filled=False)
    assert "<circle" not in nothing
    assert 'class="span"' not in nothing


def test_equal_seeds_stay_apart_and_names_are_escaped() -> None:
    strip = box_strip([("<b>", 0.5), ("b", 0.5)], box_scale([0.5], describe("auc_macro")), "series-2")
    drops = re.findall(r'r="3.4" transform="translate\(0 (-?[\d.]+)\)"', strip)
    assert drops == ["-5.5", "5.5"]
    assert "<title>&lt;b&gt;</title>" in strip
