from __future__ import annotations

import base64
import copy
import io
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from radgaze import cli, inference
from radgaze.redundancy import TAUS
from radgaze.report import LayerPictures, thirds, write_redundancy
from radgaze.report import redundancy as module
from radgaze.report.kernels import MOST_ALONE, MOST_CLUSTERS, MOST_MEMBERS

from .conftest import Page

Show = Callable[..., Page]
HOSTILE = '<script>alert(\'x\')</script>" onload="x" $\\frac{1}{0}$ &amp; _\x00\udcff'


def layer(clusters: Sequence[int], dead: int = 0, size: tuple[int, int] = (6, 5), **more: Any) -> dict[str, Any]:
    """A layer as in ``redundancy.json``: the dead kernels come first, then cluster after cluster of these sizes."""
    kernels = dead + sum(clusters)
    starts = dead + np.cumsum([0, *clusters[:-1]]) if clusters else []
    stands_for = [-1] * dead + [int(start) for start, n in zip(starts, clusters, strict=True) for _ in range(n)]
    distinct_at = np.linspace(kernels - dead, min(1, len(clusters)), len(TAUS)).round().astype(int).tolist()
    return {
        "kernels": kernels,
        "distinct": len(clusters),
        "dead": list(range(dead)),
        "krm": 1 - len(clusters) / kernels,
        "parameters": 9 * kernels,
        "size": list(size),
        "taken": [["a.conv", "a.bn", "relu"]],
        "distinct_at": distinct_at,
        "stands_for": stands_for,
        **more,
    }


def report_of(layers: dict[str, dict[str, Any]], shown: Sequence[str] | None = None) -> dict[str, Any]:
    parameters = sum(each["parameters"] for each in layers.values())
    krm_at = [
        sum(each["parameters"] * (1 - each["distinct_at"][i] / each["kernels"]) for each in layers.values())
        / parameters
        for i in range(len(TAUS))
    ]
    network = {key: sum(each[key] for each in layers.values()) for key in ("kernels", "distinct", "parameters")}
    network["dead"] = sum(len(each["dead"]) for each in layers.values())
    network["krm"] = sum(each["parameters"] * each["krm"] for each in layers.values()) / parameters
    return {
        "radgaze": "0.1.0",
        "created": "2026-11-25T09:12:00+00:00",
        "title": "Kernel redundancy of classifier on Kermany",
        "run": {"method": "classifier", "network": {"name": "gaze-cam"}, "parameters": 1_483_011, "weights": "f2ba"},
        "cohort": {"name": "Kermany", "source": "tables images.csv", "size": [112, 96]},
        "settings": {
            "images": 16,
            "layers": ["*conv1", "last"],
            "after": "activation",
            "difference": "mssim",
            "tau": 0.45,
            "seed": 3,
        },
        "probe": {"split": "train", "studies": ["P1/s1", "P2/s2"], "classes": {"normal": 8, "viral": 8}},
        "tau": 0.45,
        "images": 16,
        "network": {**network, "krm_at": krm_at},
        "taus": list(TAUS),
        "layers": layers,
        "left_out": {},
        "gallery": {"study_id": "P1/s1", "layers": list(layers) if shown is None else list(shown)},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """Seven layers: a large cluster, many clusters, no redundancy, many dead, all dead, and small ones."""
    return report_of(
        {
            "conv1": layer([30, *[1] * 28], dead=2, size=(40, 30), taken=[["conv1", "bn1", "act1"]]),
            "layer1.0.conv1": layer([3] * 10, taken=[["layer1.0.conv1", "layer1.0.bn1", "layer1.0.act1"]]),
            "layer1.0.conv2": layer([1] * 4, taken=[["layer1.0.conv2", "layer1.0.bn2"]]),
            "layer2.0.conv1": layer([1] * 14, dead=26),
            "layer2.0.conv2": layer([], dead=5),
            "layer2.0.conv3": layer([2000, 1]),
            "last": layer([2, 1, 1, 1], dead=1),
        },
        shown=["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2", "last"],
    )


def pictures(report: dict[str, Any]) -> list[LayerPictures]:
    """Of the layers in the report's gallery: noise, and members ever farther from the first of their cluster."""
    rng = np.random.default_rng(0)
    made = []
    for name in report["gallery"]["layers"]:
        found = report["layers"][name]
        stands_for = np.array(found["stands_for"])
        numbers = np.arange(found["kernels"])
        clusters = [np.flatnonzero(stands_for == kept) for kept in np.unique(stands_for[stands_for >= 0])]
        distance = np.where(stands_for < 0, 0.99, (numbers - stands_for) / 100).astype(np.float32)
        outputs = rng.random((found["kernels"], *found["size"])).astype(np.float32)
        made.append(LayerPictures(name, outputs, sorted(clusters, key=len, reverse=True), distance))
    return made


@pytest.fixture
def show(tmp_path: Path) -> Show:
    def page(report: dict[str, Any], gallery: list[LayerPictures] | None = None) -> Page:
        probe = np.linspace(0, 1, 112 * 96, dtype=np.float32).reshape(112, 96)
        gallery = pictures(report) if gallery is None else gallery
        return Page(write_redundancy(report, probe, gallery, tmp_path).read_text("utf-8"))

    return page


# The page -------------------------------------------------------------------------------------------------------------


def test_the_whole_page_reads_from_top_to_bottom(show: Show, report: dict[str, Any]) -> None:
    report["left_out"] = {"se.fc1": "its output has a single pixel", "idle": "the model never calls it"}
    page = show(report)
    assert page.sections == list(module.HEADINGS)
    assert [a["href"] for a in page.all("a") if a.get("class") != "skip"][: len(module.HEADINGS)] == [
        f"#{anchor}" for anchor in module.HEADINGS
    ]
    for told in (
        "Kernel redundancy of classifier on Kermany",
        "16 probe images of the training split",
        "25 November 2026, 09:12 UTC",
        "to within τ = 0.45 on average over the 16 probe images",
        "Probe image P1/s1",
        "after normalisation and activation, as the next layer sees them",
        "1 − MSSIM. MSSIM is the mean structural similarity",
        "The definition below is this project’s own , and its figures are not comparable with the paper’s.",
        "Not measured: se.fc1, because its output has a single pixel.",
        "Not measured: idle, because the model never calls it.",
        "run.parameters 1,483,011",
        "cohort.size 112, 96",
        "probe.studies P1/s1, P2/s2",
    ):
        assert told in page.text, told


def test_it_needs_nothing_from_outside_and_runs_nothing(show: Show, report: dict[str, Any]) -> None:
    page = show(report)
    page.check_self_contained(re.sub('"data:image/[a-z]+;base64,[^"]*"', "", page.html))


def test_every_picture_is_described_and_every_table_headed(show: Show, report: dict[str, Any]) -> None:
    page = show(report)
    page.check_described()
    drawings = [each for each in page.all("svg") if each.get("role") == "img"]
    assert [each["aria-label"] for each in drawings] == [
        "KRM of 7 layers in the order of the forward pass, from 0.52 in the first to 0.33 in the last; below, each "
        "layer's number of kernels and of distinct kernels.",
        f"KRM from {report['network']['krm_at'][0]:.2f} at τ = 0.05 to {report['network']['krm_at'][-1]:.2f} at "
        "τ = 0.95",
    ]


def test_the_headline_is_that_of_the_json(show: Show, report: dict[str, Any]) -> None:
    text, network = show(report).text, report["network"]
    assert (network["kernels"], network["distinct"], network["dead"]) == (2146, 63, 34)
    krm = f"{network['krm']:.3f}"
    assert (
        "The 7 measured convolutions of this network have 2,146 kernels. Looked at on 16 probe images, 63 of them show "
        "something of their own ; another 2,049 look like one of these, and 34 kernels are dead: constant on every "
        f"probe image. Its kernel redundancy measure (KRM) is {krm} :"
    ) in text
    assert (
        f"KRM of the network {krm} at τ = 0.45 Kernels, K 2,146 in 7 layers Distinct kernels, Kτ 63 2.9% of all "
        "Dead kernels 34 1.6% of all Parameters 19,314 in the measured layers"
    ) in text


def test_every_layer_is_a_row_with_its_numbers(show: Show, report: dict[str, Any]) -> None:
    text = show(report).text
    for place, (name, found) in enumerate(report["layers"].items(), 1):
        numbers = f"{found['kernels']:,} {len(found['dead'])} {found['distinct']} {found['krm']:.3f}"
        size = " × ".join(map(str, found["size"]))
        assert f" {place} {name} {numbers} {found['parameters']:,} {size} " in text
    assert "40 × 30 conv1 → bn1 → act1 2 layer1.0.conv1 30 0 10 0.667 270 6 × 5 conv1 → bn1 → act1 3 " in text


def test_every_threshold_is_a_row(show: Show, report: dict[str, Any]) -> None:
    rows = " ".join(f"{tau:g} {krm:.3f}" for tau, krm in zip(TAUS, report["network"]["krm_at"], strict=True))
    assert f"τ KRM {rows} " in show(report).text


def test_a_single_threshold_of_ones_own(show: Show, report: dict[str, Any]) -> None:
    """Curves of one point, or none at all."""
    for taus in ([0.3], []):
        report["taus"] = taus
        report["network"]["krm_at"] = [0.25 for _ in taus]
        for found in report["layers"].values():
            found["distinct_at"] = [1 for _ in taus]
        page = show(report)
        assert ("curves" in page.sections) == bool(taus)
        assert ('href="#curves"' in page.html) == bool(taus)
    assert "0.3 0.250" not in page.text


# The gallery ----------------------------------------------------------------------------------------------------------


def tiles(html: str) -> list[str]:
    return re.findall('<img[^>]*alt="(kernel [^"]*)"', html)


def articles_of(page: Page) -> dict[str, str]:
    found = re.findall("<article.*?</article>", page.html, re.DOTALL)
    return {re.findall("<h3>(.*?)</h3>", html)[0]: html for html in found}


def test_the_gallery_has_the_chosen_layers_with_their_numbers(show: Show, report: dict[str, Any]) -> None:
    page = show(report)
    assert list(articles_of(page)) == report["gallery"]["layers"]
    assert "layer1.0.conv1 Layer 2; images of 6 × 5 pixels 30 kernels → 10 distinct, KRM 0.667" in page.text
    assert "last Layer 7; images of 6 × 5 pixels 6 kernels → 4 distinct, KRM 0.333" in page.text


def test_a_large_cluster_shows_some_from_the_nearest_to_the_farthest(show: Show, report: dict[str, Any]) -> None:
    html = articles_of(show(report))["conv1"]
    assert "1 distinct kernel stands for 29 others; 24 of them shown; difference up to 0.29" in html
    found = tiles(html)
    assert len(found) == 1 + MOST_MEMBERS + MOST_ALONE
    assert found[0] == "kernel 2"  # the distinct one
    members = found[1 : 1 + MOST_MEMBERS]
    assert (members[0], members[-1]) == ("kernel 3, difference 0.01", "kernel 31, difference 0.29")
    steps = [float(told.split()[-1]) for told in members]
    assert steps == sorted(set(steps))
    assert found[1 + MOST_MEMBERS :] == [f"kernel {number}" for number in range(32, 32 + MOST_ALONE)]
    assert f"28 distinct kernels like no other; {MOST_ALONE} shown" in html
    assert "2 dead: constant on every probe image" in html
    assert html.count('class="dead"') == 2


def test_many_clusters_are_bounded_and_the_others_counted(show: Show, report: dict[str, Any]) -> None:
    html = articles_of(show(report))["layer1.0.conv1"]
    assert html.count("1 distinct kernel stands for 2 others; difference up to 0.02") == MOST_CLUSTERS
    assert len(tiles(html)) == 3 * MOST_CLUSTERS
    assert "Not shown: 2 more clusters with 6 kernels in all." in html
    assert "like no other" not in html
    assert "dead" not in html


def test_a_small_layer_is_shown_whole(show: Show, report: dict[str, Any]) -> None:
    html = articles_of(show(report))["last"]
    assert "1 distinct kernel stands for 1 other; difference up to 0.01" in html
    assert "3 distinct kernels like no other<" in html
    assert tiles(html) == ["kernel 1", "kernel 2, difference 0.01", "kernel 3", "kernel 4", "kernel 5"]
    assert "Not shown" not in html


def test_dead_kernels_are_told_in_the_gallery(show: Show, report: dict[str, Any]) -> None:
    shown = articles_of(show(report))
    assert "26 dead: constant on every probe image; 12 shown" in shown["layer2.0.conv1"]
    assert shown["layer2.0.conv1"].count('class="dead"') == 12
    gone = shown["layer2.0.conv2"]
    assert tiles(gone) == []
    assert "5 dead: constant on every probe image<" in gone
    assert re.findall('title="(.*?)"', gone) == [f"kernel {n}, dead" for n in range(5)]


def test_each_picture_is_that_of_its_kernel(show: Show, report: dict[str, Any]) -> None:
    """Small maps to the pixel, those of photographs as JPEG."""
    given = {each.name: each for each in pictures(report)}
    shown = articles_of(show(report))
    found = re.findall('src="data:image/png;base64,([^"]*)" alt="kernel ([0-9]+)', shown["last"])
    assert len(found) == 5
    for data, kernel in found:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
        np.testing.assert_allclose(pixels / 255, given["last"].outputs[int(kernel)], atol=0.5 / 255 + 1e-6)
    assert 'src="data:image/jpeg' in shown["conv1"]


def test_pictures_keep_their_shape_and_stay_small(show: Show, report: dict[str, Any]) -> None:
    report["layers"]["conv1"]["size"] = [512, 256]
    html = articles_of(show(report))["conv1"]
    assert "--ratio:0.500" in html
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(data))).size
        for data in re.findall('src="data:image/jpeg;base64,([^"]*)" alt="kernel', html)
    ]
    assert sizes[0] == (64, 128)
    assert set(sizes[1:]) == {(32, 64)}


# Dead kernels and left out layers -------------------------------------------------------------------------------------


def test_dead_kernels_have_a_table(show: Show, report: dict[str, Any]) -> None:
    text = show(report).text
    many = ", ".join(map(str, range(24)))
    assert (
        f"conv1 2 60 0, 1 layer2.0.conv1 26 40 {many} and 2 more layer2.0.conv2 5 5 0, 1, 2, 3, 4 last 1 6 0 All layers"
    ) in text


def test_no_dead_kernel_is_said(show: Show) -> None:
    text = show(report_of({"a": layer([2, 1]), "b": layer([1])})).text
    assert "None: every kernel changes with the image on at least one of the 16 probe images." in text
    assert "Dead kernels 0 0.0% of all" in text
    assert "dead: constant" not in text


def test_one_dead_kernel(show: Show) -> None:
    text = show(report_of({"a": layer([2, 1], dead=1), "b": layer([1])})).text
    assert "another 1 looks like one of these, and 1 kernel is dead: constant" in text


@pytest.mark.parametrize("kernels", [1, 7])
def test_one_layer(kernels: int, show: Show) -> None:
    page = show(report_of({"conv": layer([kernels])}))
    assert page.sections == [name for name in module.HEADINGS if name != "notes"]
    noun = "1 kernel" if kernels == 1 else "7 kernels"
    assert f"The measured convolution of this network has {noun}." in page.text
    assert f"Kernels, K {kernels} in 1 layer Distinct" in page.text
    assert "1 of them shows something of its own" in page.text


def test_all_dead(show: Show) -> None:
    page = show(report_of({"conv": layer([], dead=3), "other": layer([], dead=1)}))
    assert "0 of them show something of their own" in page.text
    assert "4 kernels are dead" in page.text
    assert "KRM of the network 1.000" in page.text
    assert len(page.all("img")) == 2  # the probe image beside each layer


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (1, ["middle third"]),
        (2, ["first third", "last third"]),
        (3, ["first third", "middle third", "last third"]),
        (8, ["first third", "middle third", "last third"]),
    ],
)
def test_the_depths_of_shallow_networks(layers: int, names: list[str], show: Show) -> None:
    made = report_of({f"conv{number}": layer([2, 1]) for number in range(layers)})
    parts = module._by_depth(made)
    assert [name for name, _, _ in parts] == names
    assert sum(len(part) for _, _, part in parts) == layers
    text = show(made).text
    assert all((name in text) == (name in names) for name in module.DEPTHS if layers > 1)


def test_thirds_are_in_order_and_whole() -> None:
    for length in range(1, 20):
        parts = [part for part in thirds(range(length)) if part]
        assert [item for part in parts for item in part] == list(range(length))
        if length >= 3:
            assert len(parts) == 3
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


# What it must not do --------------------------------------------------------------------------------------------------


def test_text_from_a_report_is_never_markup(show: Show, report: dict[str, Any]) -> None:
    plain = show(report)
    made = copy.deepcopy(report)
    made["layers"] = {f"{HOSTILE}{name}": found for name, found in made["layers"].items()}
    made["layers"][f"{HOSTILE}last"]["taken"] = [[f"{HOSTILE}.conv", HOSTILE]]
    made["gallery"] = {"study_id": HOSTILE, "layers": [f"{HOSTILE}{name}" for name in made["gallery"]["layers"]]}
    made["left_out"] = {HOSTILE: HOSTILE}
    made |= {"title": HOSTILE, "radgaze": HOSTILE, "created": HOSTILE}
    made["settings"] |= {"difference": HOSTILE, "layers": [HOSTILE]}
    made["run"] |= {"method": HOSTILE, "network": {HOSTILE: HOSTILE}}
    made["cohort"]["name"] = HOSTILE
    made["probe"] |= {"studies": [HOSTILE], "classes": {HOSTILE: 3}}
    page = show(made)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert('x')</script>") > 20
    assert "<script" not in page.html


@pytest.mark.parametrize("after", ["activation", "norm", "conv"])
@pytest.mark.parametrize("difference", ["mssim", "pearson", "rmse", "rmse-z"])
def test_the_definition_is_that_of_the_settings(
    after: str, difference: str, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    report["settings"] |= {"after": after, "difference": difference}
    for drawing in ("depth_plot", "threshold_plot"):  # their time would be this test's
        monkeypatch.setattr(module.figures, drawing, lambda *_, **__: "")
    context = module._context(report, np.zeros((4, 4), np.float32), [])
    assert (context["after"], context["difference"]) == (module.AFTER[after], module.DIFFERENCES[difference])


def test_another_difference_is_not_told_as_mssim(show: Show, report: dict[str, Any]) -> None:
    report["settings"] |= {"after": "norm", "difference": "pearson"}
    text = show(report).text
    assert "Each kernel’s output, after normalisation, is scaled" in text
    assert "of two kernels on one image: 1 − |Pearson r|." in text
    assert "MSSIM" not in text


def test_the_command_asks_for_the_same(show: Show, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the command line itself, it gives measure_redundancy the settings of the report."""
    asked: dict[str, Any] = {}

    def record(run: Any, cohort: Any, **given: Any) -> Any:
        asked.update(given, run=str(run), cohort=cohort)
        raise typer.Exit(3)

    monkeypatch.setattr(inference, "measure_redundancy", record)
    for layers, cohort in ((["*conv1", "last"], None), (None, "COHORT")):
        report["settings"] |= {"layers": layers, "cohort": cohort}
        line = next(text for text in show(report).html.splitlines() if "radgaze redundancy" in text)
        words = shlex.split(re.sub("<[^>]*>", "", line).replace("&#39;", "'").replace("&#34;", '"'))
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 3
        assert (asked["run"], asked["out"]) == ("RUN", None)
        asked["cohort"] = asked["cohort"] and str(asked["cohort"])
        assert {key: asked[key] for key in report["settings"]} == report["settings"]


def test_a_page_appears_complete_or_not_at_all(
    show: Show, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(report)
    before = (tmp_path / "redundancy.html").read_bytes()

    def full_disk(path: Path, content: bytes) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        show(report | {"title": "another"})
    assert (tmp_path / "redundancy.html").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["redundancy.html"]
