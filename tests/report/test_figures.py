from __future__ import annotations

import base64
import io
import warnings
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from radgaze.errors import InputError
from radgaze.report import figures
from radgaze.report.figures import Curve

FLAT = np.full((20, 30), 128, np.uint8)


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[np.nan, -1.0, 7.0]]), [0, 0, 255]),
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
    ],
)
def test_images_of_any_type_become_grey(image: np.ndarray, grey: list[int]) -> None:
    assert figures.to_uint8(image).tolist() == [grey]


def test_an_image_with_channels_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(3, 4, 3\) cannot be shown"):
        figures.to_uint8(np.zeros((3, 4, 3)))


def test_density_is_free_of_scale_and_never_nan() -> None:
    heat = np.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(figures.relative_density(heat), figures.relative_density(heat / 7))
    assert figures.relative_density(heat).mean() == pytest.approx(1)
    np.testing.assert_array_equal(figures.relative_density(np.full((2, 2), np.nan)), np.zeros((2, 2)))
    np.testing.assert_array_equal(figures.relative_density([[np.nan, -3.0, 2.0]]), [[0, 0, 3]])


def test_no_attention_leaves_the_image_and_full_attention_tints_it() -> None:
    untouched = figures.overlay(FLAT, np.zeros((2, 2)))
    np.testing.assert_array_equal(untouched, np.repeat(FLAT[..., None], 3, axis=2))
    full = figures.overlay(FLAT, np.ones((2, 2)), opacity=0.85)
    top = np.array(matplotlib.colormaps["inferno"](1.0)[:3]) * 255
    np.testing.assert_allclose(full[3, 3], 0.15 * 128 + 0.85 * top, atol=1)


def test_opacity_and_brightness_grow_with_attention() -> None:
    ramp = figures.colour_bar(64, 1)[0].astype(float)
    distance = np.abs(ramp - ramp[0]).sum(axis=1)
    assert (np.diff(distance) > -12).all()  # rounding and the colour map's curve, never a fall-back
    assert ramp[-1].sum() > ramp[32].sum()


def test_a_common_scale_keeps_a_weak_map_weak() -> None:
    strong, weak = (figures.overlay(FLAT, np.full((2, 2), level), high=10.0) for level in (10.0, 1.0))
    shift = [np.abs(picture.astype(int) - 128).sum() for picture in (strong, weak)]
    assert shift[0] > 2 * shift[1]


def test_the_heat_lies_where_it_belongs_after_resizing() -> None:
    heat = np.zeros((4, 6))
    heat[3, 0] = 1.0
    picture = figures.overlay(np.zeros((40, 60), np.uint8), heat, size=(80, 120))
    assert picture.shape == (80, 120, 3)
    row, column = np.unravel_index(picture.sum(axis=2).argmax(), (80, 120))
    assert row >= 60
    assert column < 20


@pytest.mark.parametrize("copies", [1, 200])
def test_points_are_marked_where_they_are_and_nowhere_else(copies: int) -> None:
    picture = np.full((100, 200, 3), 128, np.uint8)
    points = np.array([[39.5, 19.5], [np.nan, 1.0], [-1.0, 10.0], [500.0, 10.0]]).repeat(copies, axis=0)
    marked = figures.mark_points(picture, points, (50, 100))  # the picture is the image at twice the size
    rows, columns = np.nonzero((marked != picture).any(axis=2))
    assert rows.mean() == pytest.approx(39.5, abs=0.6)
    assert columns.mean() == pytest.approx(79.5, abs=0.6)
    assert np.ptp(rows) < 12


def test_no_points_change_nothing() -> None:
    picture = np.full((10, 20, 3), 7, np.uint8)
    np.testing.assert_array_equal(figures.mark_points(picture, np.zeros((0, 2)), (10, 20)), picture)


@pytest.mark.parametrize(("quality", "kind"), [(80, "JPEG"), (None, "PNG")])
def test_pictures_come_back_from_their_address(quality: int | None, kind: str) -> None:
    picture = figures.colour_bar(40, 30)
    head, body = figures.data_uri(picture, quality).split(",")
    assert head == f"data:image/{kind.lower()};base64"
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert image.format == kind
    np.testing.assert_allclose(np.asarray(image).astype(int), picture.astype(int), atol=0 if quality is None else 24)


def panel(name: str = "panel", alt: str = "a panel", **options: object) -> str:
    curve = Curve([1, 2, 3], [0.1, np.nan, 0.001], "series-2", "4 2")
    return figures.line_panel(name, [curve], alt=alt, best=3, events=[2], **options)  # type: ignore[arg-type]


def test_plots_carry_the_colours_of_the_page_and_real_text() -> None:
    root = ET.fromstring(panel(log=True, steps=True))
    styles = " ".join(node.get("style", "") for node in root.iter())
    assert "var(--series-2)" in styles
    assert "#" not in styles  # every colour is the page's
    words = [node.text for node in root.iter("text")]
    assert "epoch" in words
    assert any("10⁻" in word for word in words if word)


def test_plots_are_named_apart_described_and_repeatable() -> None:
    hostile = '"><script>'
    one, two = panel("one", alt=hostile), panel("two")
    assert ET.fromstring(one).attrib == {
        "viewBox": "0 0 340 215",
        "class": "plot",
        "role": "img",
        "aria-label": hostile,
    }
    ids = [{node.get("id") for node in ET.fromstring(text).iter() if node.get("id")} for text in (one, two)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
    used = {node.get("href", "#").removeprefix("#") for node in ET.fromstring(one).iter("use")}
    assert used <= ids[0]
    assert one == panel("one", alt=hostile)


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    panel()
    assert dict(matplotlib.rcParams) == before


def test_reliability_of_one_bin_and_roc_of_many_classes() -> None:
    bins = [{"low": 0.9, "high": 1.0, "confidence": 0.95, "accuracy": 1.0, "count": 1}]
    assert "var(--series-1)" in figures.reliability_plot("r", bins, alt="one bin")
    curves = [Curve([0, 1], [0, 1], figures.series_colour(i), figures.series_dash(i)) for i in range(9)]
    assert len({(curve.colour, curve.dash) for curve in curves}) == 9
    assert "stroke-dasharray" in figures.roc_plot("roc", curves, alt="nine classes")


def test_depth_plot_has_a_bar_a_ring_and_a_dot_for_each_layer() -> None:
    """No dot where no kernel is distinct; the lower axis is logarithmic, and down is fewer."""
    colours = ["series-6", "series-3", "series-2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an axis of logarithms has no zero
        drawn = figures.depth_plot("depth", [0.5, 1.0, 0.25], [100, 4, 8], [50, 0, 6], colours, alt="three layers")
    root = ET.fromstring(drawn)
    assert root.get("aria-label") == "three layers"
    shapes = [node for node in root.iter() if "series" in node.get("style", "")]
    bars = [
        node.get("d", "").split() for node in shapes if node.tag == "path" and "stroke" not in node.get("style", "")
    ]
    heights = [float(d[2]) - float(d[8]) for d in bars]
    np.testing.assert_allclose(np.array(heights) / heights[1], [0.5, 1.0, 0.25], atol=0.01)
    marks = [node for node in shapes if node.tag == "use"]
    rings = [node for node in marks if "fill: none" in node.get("style", "")]
    dots = [node for node in marks if node not in rings]
    assert [node.get("style", "").split("var(--")[1].split(")")[0] for node in rings] == colours
    assert [node.get("x") for node in dots] == [rings[0].get("x"), rings[2].get("x")]
    ring, dot = ([float(node.get("y", "nan")) for node in found] for found in (rings, dots))
    assert dot[0] - ring[0] == pytest.approx((ring[2] - ring[0]) * np.log(100 / 50) / np.log(100 / 8), rel=0.02)
    assert (ring[0] < ring[2] < ring[1], dot[1] > ring[2]) == (True, True)


def test_depth_plot_of_dead_layers_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figures.depth_plot("depth", [1.0], [1], [0], ["series-3"], alt="dead")
    filled = [node for node in ET.fromstring(drawn).iter() if "fill: var(--series-3)" in node.get("style", "")]
    assert len(filled) == 1  # the bar of the KRM; no dot


def test_threshold_plot_marks_the_threshold_and_draws_the_network_strongest() -> None:
    layer, network = Curve([0.1, 0.9], [0.2, 0.8], "series-2", emphasis=False), Curve([0.1, 0.9], [0.3, 0.7], "ink")
    root = ET.fromstring(figures.threshold_plot("curves", [layer, network], tau=0.5, alt="two curves"))
    assert root.get("aria-label") == "two curves"
    styles = {node.get("style", ""): node.get("d", "").split() for node in root.iter("path")}
    (faint,) = (d for style, d in styles.items() if "series-2" in style and "stroke-opacity: 0.45" in style)
    (strong,) = (d for style, d in styles.items() if "var(--ink)" in style and "stroke-width: 2.6" in style)
    (tau,) = (d for style, d in styles.items() if "dasharray" in style)
    assert (faint[1], faint[4]) == (strong[1], strong[4])
    assert float(tau[1]) == pytest.approx((float(faint[1]) + float(faint[4])) / 2, abs=0.2)
    assert float(faint[2]) > float(strong[2]) > float(strong[5]) > float(faint[5])


def test_interval_marks_stay_inside_and_show_chance_only_on_their_scale() -> None:
    mark = figures.interval_mark(0.5, -9.0, 9.0, (0.0, 1.0), chance=0.5)
    assert 'd="M6.0 9H144.0"' in mark
    assert 'cx="75.0"' in mark
    assert "chance" in mark
    assert "chance" not in figures.interval_mark(0.7, None, None, (0.6, 1.0), chance=0.5)
    assert "<circle" not in figures.interval_mark(None, None, None, (0.0, 1.0))


def test_the_palette_has_one_light_and_one_dark_colour_each() -> None:
    assert len({light for light, _ in figures.PALETTE.values()}) == len(figures.PALETTE)  # they are told apart by value
    assert {f"series-{index + 1}" for index in range(figures.SERIES_COUNT)} <= set(figures.PALETTE)
