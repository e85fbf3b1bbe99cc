"""From a run to redundancy.json and its page: what is measured, on which images, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.inference import measure_redundancy, redundancy
from radgaze.models import parameters
from radgaze.redundancy import RedundancyReport, measure, output_images
from radgaze.training import Run, fit
from radgaze.training.data import load_images
from tests.cohorts import blob_cohort, multilabel_cohort
from tests.runs import replace_weights
from tests.simplification.networks import narrow

STAGES = [{"width": 8, "blocks": [[6, 6], [6, 6]]}, {"width": 12, "blocks": [[8, 8]]}]
MODEL = {key: value for key, value in narrow(STAGES, stem=6, output_stride=8).items() if key in ("backbone", "options")}
SETTINGS: dict[str, Any] = {
    "batch_size": 6,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "epochs": 1,
    "progress": False,
    "model": MODEL,
}
QUICK: dict[str, Any] = {"images": 3, "layers": "backbone.conv1", "progress": False}


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(cohort, tmp_path_factory.mktemp("redundancy") / "run", "classifier", **SETTINGS)


@pytest.fixture(scope="module")
def report(run: Run) -> dict[str, Any]:
    return measure_redundancy(run, images=7, progress=False)


def rows(cohort: Cohort, report: dict[str, Any]) -> list[int]:
    """Of the probe studies, in the order of the report."""
    ids = cohort.studies["study_id"].to_list()
    return [ids.index(study) for study in report["probe"]["studies"]]


def measured(run: Run, report: dict[str, Any], **settings: Any) -> RedundancyReport:
    return measure(run.network(), load_images(run.cohort(), rows(run.cohort(), report)), **settings)


class TestReport:
    def test_it_is_what_the_measure_finds_on_the_probe_images(self, run: Run, report: dict[str, Any]) -> None:
        expected = measured(run, report).to_json()
        assert len(expected["layers"]) == 12
        assert {key: report[key] for key in expected} == expected

    def test_settings_reach_the_measure(self, run: Run, tmp_path: Path) -> None:
        asked: dict[str, Any] = {
            "layers": ["*layer1*", "backbone.conv1"],
            "after": "conv",
            "difference": "pearson",
            "tau": 0.2,
        }
        found = measure_redundancy(run, images=2, taus=(0.9, 0.2), seed=5, out=tmp_path, progress=False, **asked)
        expected = measured(run, found, taus=(0.9, 0.2), **asked).to_json()
        assert {key: found[key] for key in expected} == expected
        assert found["settings"] == {"cohort": None, "images": 2, "seed": 5, **asked}
        assert found["taus"] == [0.2, 0.9]
        assert next(iter(found["layers"])) == "backbone.conv1"
        assert all("layer2" not in name for name in found["layers"])

    def test_it_is_written_with_its_page(self, run: Run, report: dict[str, Any]) -> None:
        written = json.loads((run.path / "redundancy.json").read_text())
        assert written == {key: value for key, value in report.items() if key != "path"}
        assert Path(report["path"]) == run.path / "redundancy.html"
        page = Path(report["path"]).read_text()
        assert f"{report['network']['krm']:.3f}" in page
        assert all(name in page for name in report["layers"])

    def test_it_says_where_it_comes_from(self, run: Run, cohort: Cohort, report: dict[str, Any]) -> None:
        assert report["title"] == f"Kernel redundancy of classifier on {cohort.name}"
        assert report["cohort"] == {"name": cohort.name, "source": "tables images.csv", "size": [48, 32]}
        assert report["run"]["method"] == "classifier"
        assert report["run"]["network"]["backbone"] == "narrow_resnet"
        assert report["run"]["parameters"] == parameters(run.network())
        assert str(run.path) not in json.dumps({key: value for key, value in report.items() if key != "path"})

    def test_a_folder_of_its_own(self, run: Run, report: dict[str, Any], tmp_path: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
        found = measure_redundancy(run.path, out=tmp_path / "new" / "folder", **QUICK)
        assert found["path"] == str(tmp_path / "new" / "folder" / "redundancy.html")
        written = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
        assert written == {".lock", "redundancy.html", "redundancy.json"}
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before

    def test_the_gallery_shows_what_the_kernels_show(
        self, run: Run, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first, the last, and of each third the one with most redundant parameters; on the first probe image."""
        given: dict[str, Any] = {}

        def write(report: Any, probe: Any, gallery: Any, out: Path) -> Path:
            given.update(probe=probe, gallery={layer.name: layer for layer in gallery})
            return out

        monkeypatch.setattr(redundancy, "write_redundancy", write)
        measure_redundancy(run, images=7, out=tmp_path, progress=False)
        probes = load_images(run.cohort(), rows(run.cohort(), report))
        np.testing.assert_array_equal(given["probe"], probes[0, 0])
        assert report["gallery"]["study_id"] == report["probe"]["studies"][0]

        names = list(report["layers"])
        spared = {name: layer["krm"] * layer["parameters"] for name, layer in report["layers"].items()}
        wanted = {names[0], names[-1], *(max(names[i : i + 4], key=spared.__getitem__) for i in (0, 4, 8))}
        assert list(given["gallery"]) == report["gallery"]["layers"] == [name for name in names if name in wanted]

        kept = measured(run, report, keep_difference=True)
        pictures = output_images(run.network(), probes[0])
        for name, shown in given["gallery"].items():
            np.testing.assert_array_equal(shown.outputs, pictures[name])
            assert [c.tolist() for c in shown.clusters] == [c.tolist() for c in kept.layers[name].clusters]
            for cluster in shown.clusters:
                expected = kept.layers[name].difference[cluster, cluster[0]]
                np.testing.assert_array_equal(shown.distance[cluster], expected)

    @pytest.mark.parametrize("layers", ["backbone.conv1", "*layer2*conv2", "backbone.layer1.0.conv?"])
    def test_few_layers(self, layers: str, run: Run, tmp_path: Path) -> None:
        found = measure_redundancy(run, **{**QUICK, "layers": layers}, out=tmp_path)
        assert found["settings"]["layers"] == [layers]
        assert found["gallery"]["layers"] == list(found["layers"])

    def test_dead_kernels(self, run: Run, tmp_path: Path) -> None:
        """A layer of which some are dead, and one of which all are."""
        spoilt = copied(
            run, tmp_path / "run", {"backbone.layer2.0.conv1.weight": 3, "backbone.layer1.0.conv2.weight": 99}
        )
        found = measure_redundancy(spoilt, images=3, after="conv", progress=False)
        assert found["layers"]["backbone.layer2.0.conv1"]["dead"] == [0, 1, 2]
        gone = found["layers"]["backbone.layer1.0.conv2"]
        assert (gone["krm"], gone["distinct"], set(gone["stands_for"])) == (1.0, 0, {-1})
        assert found["layers"]["backbone.layer1.0.conv3"]["distinct"] == 0  # its inputs are dead
        assert found["network"]["dead"] == sum(len(layer["dead"]) for layer in found["layers"].values()) == 17


class TestProbes:
    def test_they_are_spread_over_the_classes_of_the_training_split(
        self, cohort: Cohort, report: dict[str, Any]
    ) -> None:
        chosen = rows(cohort, report)
        assert len(set(chosen)) == 7
        assert set(chosen) <= set(cohort.indices("train").tolist())
        assert sorted(report["probe"]["classes"].values()) == [2, 2, 3]
        labels = cohort.studies["label"][chosen].to_list()
        assert report["probe"]["classes"] == {name: labels.count(name) for name in cohort.classes}
        assert report["probe"]["split"] == "train"

    def test_nothing_else_is_looked_at(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        indices, get = Cohort.indices, Cohort.__getitem__
        seen = set(run.cohort().indices("train").tolist())

        def training_split(cohort: Cohort, split: str) -> Any:
            assert split == "train"
            return indices(cohort, split)

        def training_study(cohort: Cohort, row: int) -> Any:
            assert int(row) in seen
            return get(cohort, row)

        monkeypatch.setattr(Cohort, "indices", training_split)
        monkeypatch.setattr(Cohort, "__getitem__", training_study)
        measure_redundancy(run, **{**QUICK, "images": 12}, out=tmp_path)

    def test_a_part_of_the_training_split(self, cohort: Cohort, tmp_path: Path) -> None:
        """Only what the run has learned from."""
        few = fit(cohort, tmp_path / "run", "classifier", **SETTINGS, train_studies=6)
        learned = few.training_studies(cohort).tolist()
        assert len(learned) == 6
        assert rows(cohort, measure_redundancy(few, **{**QUICK, "images": 6})) == sorted(learned)
        with pytest.raises(InputError, match=r"has 6 images .* expected 7; ask for fewer"):
            measure_redundancy(few, **{**QUICK, "images": 7})

    def test_the_seed_chooses_them(self, run: Run, tmp_path: Path) -> None:
        def found(seed: int) -> dict[str, Any]:
            made = measure_redundancy(run, **QUICK, seed=seed, out=tmp_path)
            return {key: value for key, value in made.items() if key != "created"}

        first = found(0)
        assert found(0) == first
        assert any(found(seed)["probe"]["studies"] != first["probe"]["studies"] for seed in (1, 2))

    def test_another_cohort(self, run: Run, tmp_path: Path) -> None:
        other = blob_cohort(tmp_path, studies=18)
        found = measure_redundancy(run, other.path, **{**QUICK, "images": len(other.indices("train"))}, out=tmp_path)
        assert rows(other, found) == sorted(other.indices("train").tolist())
        with pytest.raises(InputError, match="same classes in the same order"):
            measure_redundancy(run, blob_cohort(tmp_path / "two", studies=12, classes=2), **QUICK)

    def test_several_labels(self, tmp_path: Path) -> None:
        cohort = multilabel_cohort(tmp_path)
        settings = {**SETTINGS, "model": {"width": 2}, "attention": "mask:blob"}
        found = measure_redundancy(fit(cohort, tmp_path / "run", **settings), images=4, progress=False)
        assert sum(found["probe"]["classes"].values()) == 4
        assert len(found["layers"]) == 24

    def test_studies_without_a_label(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Cohort, "strata", property(lambda cohort: [None] * len(cohort)))
        assert measure_redundancy(run, **QUICK, out=tmp_path)["probe"]["classes"] == {"unlabelled": 3}


def copied(run: Run, to: Path, zeroed: dict[str, int], value: float = 0.0) -> Path:
    """The run with the weights of so many first kernels replaced."""
    shutil.copytree(run.path, to)
    weights = load_file(to / "weights.safetensors")
    for name, count in zeroed.items():
        weights[name][:count] = value
    replace_weights(to, weights)
    return to


class TestRefused:
    def refused(self, match: str, run: Run | Path, out: Path, **settings: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            measure_redundancy(run, **{**QUICK, **settings}, out=out)
        assert "\n" not in str(error.value)
        assert not out.exists()  # nothing was written

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"images": 1}, "number of probe images is 1, expected at least 2: .* ask for more, such as 16"),
            ({"images": 0}, "number of probe images is 0"),
            ({"images": 13}, "has 12 images to probe a network with that are not blank, expected 13; ask for fewer"),
            ({"tau": 0.0}, r"tau is 0\.0, expected a difference between 0 and 1, both excluded: try 0\.5"),
            ({"tau": 1.0}, r"tau is 1\.0"),
            ({"tau": math.nan}, "tau is nan"),
            ({"taus": (0.5, 2.0)}, r"a value in taus is 2\.0"),
            ({"layers": "backbone.conv2"}, "No convolution is named 'backbone.conv2': did you mean 'backbone.conv1'"),
            ({"layers": ["backbone.conv1", "*layer9*"]}, r"No convolution is named '\*layer9\*': "),
            ({"layers": []}, "layers is empty, expected at least one layer"),
            ({"after": "activaton"}, "after is 'activaton': did you mean 'activation'"),
            ({"difference": "msim"}, "no difference 'msim': did you mean 'mssim'"),
        ],
    )
    def test_arguments(self, settings: dict[str, Any], match: str, run: Run, tmp_path: Path) -> None:
        self.refused(match, run, tmp_path / "out", **settings)

    def test_not_a_finished_run(self, run: Run, tmp_path: Path) -> None:
        self.refused("not a run", tmp_path, tmp_path / "out")
        (tmp_path / "config.json").write_text((run.path / "config.json").read_text())
        self.refused("no weights file", tmp_path, tmp_path / "out")

    def test_nan_weights(self, run: Run, tmp_path: Path) -> None:
        spoilt = copied(run, tmp_path / "run", {"backbone.layer1.0.conv1.weight": 1}, math.nan)
        self.refused("'backbone.layer1.0.conv1.weight' has NaN or infinite values: load", spoilt, tmp_path / "out")

    def test_constant_images(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        blank = np.full_like(np.asarray(run.cohort().images), 7)
        monkeypatch.setattr(Cohort, "images", blank)
        self.refused("has 0 images to probe a network with that are not blank, expected 3", run, tmp_path / "out")

    def test_a_failed_page_leaves_nothing_new(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        measure_redundancy(run, **QUICK, out=tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def full_disk(path: Path, content: bytes) -> int:
            raise OSError("No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space left"):
            measure_redundancy(run, **QUICK, seed=3, out=tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
