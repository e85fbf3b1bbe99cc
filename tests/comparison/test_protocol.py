from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from radgaze.cohort import Cohort, resplit
from radgaze.comparison import compare, engine
from radgaze.comparison.protocol import Arm, Protocol, make_arms, merge, read_protocol, write_protocol
from radgaze.comparison.results import choose_control, make_pairs
from radgaze.errors import InputError
from radgaze.training import Run, fit
from tests.cohorts import blob_cohort

SHARED: dict[str, Any] = {"sigma": 6.0, "precision": "fp32", "epochs": 1}
OWN: dict[str, dict[str, Any]] = {"mt-unet": {"model": {"width": 2}}, "resnet10t": {"batch_size": 3}}


def asked(cohort: Cohort, before: Protocol | None = None, **given: Any) -> Protocol:
    defaults: dict[str, Any] = {
        "methods": [], "backbones": [], "train_studies": [], "seeds": None, "settings": {}, "settings_of": {},
        "runs": [],
    }  # fmt: skip
    return (before or Protocol()).extended(cohort, **{**defaults, **given})


@pytest.fixture(scope="module")
def protocol(large_cohort: Cohort) -> Protocol:
    return asked(
        large_cohort,
        methods=["gg-cam", "classifier", "mt-unet"],
        backbones=["resnet10t", "resnet14t"],
        train_studies=[None, 9],
        seeds=2,
        settings=SHARED,
        settings_of=OWN,
    )


@pytest.fixture(scope="module")
def arms(protocol: Protocol, large_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> list[Arm]:
    return make_arms(protocol, large_cohort, tmp_path_factory.mktemp("comparison"))


def trained(cohort: Cohort, path: Path, **settings: Any) -> Run:
    small = {"sigma": 6.0, "precision": "fp32", "epochs": 1, "model": {"width": 2}, **settings}
    return fit(cohort, path, progress=False, **small)


def test_every_method_with_every_backbone_on_every_size(arms: list[Arm]) -> None:
    assert [arm.name for arm in arms] == [
        "gg-cam resnet10t (9)",
        "gg-cam resnet14t (9)",
        "classifier resnet10t (9)",
        "classifier resnet14t (9)",
        "mt-unet (9)",
        "gg-cam resnet10t (12)",
        "gg-cam resnet14t (12)",
        "classifier resnet10t (12)",
        "classifier resnet14t (12)",
        "mt-unet (12)",
    ]
    assert [run.name for run in arms[0].runs] == ["gg-cam-resnet10t-9-seed0", "gg-cam-resnet10t-9-seed1"]
    assert arms[0].parameters == arms[2].parameters
    assert (arms[2].attention, arms[4].attention[:13]) == ("none", "reader's gaze")


def test_settings_of_a_method_or_a_backbone_are_for_its_runs_alone(arms: list[Arm]) -> None:
    of = {arm.name: arm.config for arm in arms}
    assert of["gg-cam resnet10t (9)"]["batch_size"] == of["classifier resnet10t (12)"]["batch_size"] == 3
    assert of["gg-cam resnet14t (9)"]["batch_size"] == 4  # the method's own
    assert of["mt-unet (9)"]["model"] == {"width": 2}
    assert {config["epochs"] for config in of.values()} == {1}
    assert (of["mt-unet (9)"]["train_studies"], of["mt-unet (12)"]["train_studies"]) == (9, None)
    assert "seed" not in of["mt-unet (9)"]


def test_a_variant_has_settings_of_its_own_on_top_of_its_methods(large_cohort: Cohort, tmp_path: Path) -> None:
    protocol = asked(
        large_cohort,
        methods=["gg-cam", "decision=gg-cam", "classifier"],
        backbones=["resnet10t"],
        seeds=1,
        settings=SHARED,
        settings_of={
            "gg-cam": {"objective": {"loss": "1-cc"}, "learning_rate": 3e-3},
            "decision": {"objective": {"supervise": "decision"}, "learning_rate": 2e-3},
        },
    )
    arms = {arm.method: arm for arm in make_arms(protocol, large_cohort, tmp_path)}
    assert list(arms) == ["gg-cam", "decision", "classifier"]
    assert arms["gg-cam"].config["objective"] == {"loss": "1-cc"}
    assert arms["decision"].config["objective"] == {"loss": "1-cc", "supervise": "decision"}
    assert (arms["gg-cam"].config["learning_rate"], arms["decision"].config["learning_rate"]) == (3e-3, 2e-3)
    assert arms["classifier"].config["learning_rate"] == 1e-3
    assert arms["decision"].name == "decision resnet10t (12)"
    assert arms["decision"].runs[0].name == "decision-resnet10t-12-seed0"
    assert arms["decision"].runs[0].method == "gg-cam"
    pairs = [(first.method, second.method) for first, second in make_pairs(list(arms.values()), "classifier")]
    assert pairs == [("gg-cam", "classifier"), ("decision", "classifier")]


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (["x=gg-cam", "x=classifier"], "'x' is given twice"),
        (["gg-cam", "gg-cam=gg-cam"], "'gg-cam' is given twice"),
        (["classifier=gg-cam"], "has the name of the method 'classifier'"),
        (["a b=gg-cam"], "expected NAME=METHOD"),
        (["x=gg-can"], "'gg-cam'"),
    ],
)
def test_variants_that_cannot_be(methods: list[str], words: str, large_cohort: Cohort) -> None:
    with pytest.raises(InputError, match=words):
        asked(large_cohort, methods=methods)


def test_pairs_are_within_a_size_and_a_backbone(arms: list[Arm]) -> None:
    assert choose_control(None, arms) == "classifier"
    pairs = [(first.name, second.name) for first, second in make_pairs(arms, "classifier")]
    assert pairs[:4] == [
        ("gg-cam resnet10t (9)", "classifier resnet10t (9)"),
        ("gg-cam resnet14t (9)", "classifier resnet14t (9)"),
        ("mt-unet (9)", "classifier resnet10t (9)"),
        ("mt-unet (9)", "classifier resnet14t (9)"),
    ]
    assert len(pairs) == 8
    to_unet = [(first.name, second.name) for first, second in make_pairs(arms, "mt-unet")]
    assert ("classifier resnet14t (12)", "mt-unet (12)") in to_unet
    assert len(to_unet) == 8
    with pytest.raises(InputError, match="control 'krm' is no method of this comparison"):
        choose_control("krm", arms)


def test_a_backbone_that_is_not_named_is_the_methods_own(large_cohort: Cohort) -> None:
    assert asked(large_cohort, methods=["gg-cam", "mt-unet"]).backbones == ["resnet50"]
    given = {"settings": {"model": {"backbone": "resnet10t"}}}
    assert asked(large_cohort, methods=["classifier"], **given).backbones == ["resnet10t"]
    recipe = asked(large_cohort, methods=["gg-cam"], settings_of={"gg-cam": {"recipe": "paper-efficientnetv2-s"}})
    assert recipe.backbones == ["efficientnetv2_s"]
    assert asked(large_cohort, methods=["mt-unet"]).backbones == []


def test_a_later_call_adds_and_drops_nothing(protocol: Protocol, large_cohort: Cohort) -> None:
    more = asked(large_cohort, protocol, seeds=[5], train_studies=[6])
    assert (more.seeds, more.train_studies, more.methods) == ([0, 1, 5], [6, 9, 12], protocol.methods)
    assert more.settings_of == OWN
    assert asked(large_cohort, protocol) == protocol


def test_merge_goes_into_groups() -> None:
    merged = merge({"model": {"a": 1, "b": 2}, "epochs": 1}, {"model": {"b": 3}}, {"epochs": 5})
    assert merged == {"model": {"a": 1, "b": 3}, "epochs": 5}


def test_runs_trained_elsewhere_make_arms_by_their_settings(large_cohort: Cohort, tmp_path: Path) -> None:
    folders = [
        trained(large_cohort, tmp_path / "a" / "run", seed=0).path,
        trained(large_cohort, tmp_path / "b" / "run", seed=4).path,
        trained(large_cohort, tmp_path / "classes", objective={"scheme": "class-only"}).path,
    ]
    protocol = asked(large_cohort, runs=folders)
    arms = make_arms(protocol, large_cohort, tmp_path / "out")
    assert [arm.name for arm in arms] == ["mt-unet (12)", "mt-unet (12), classes"]
    assert [(run.name, run.seed, run.settings) for run in arms[0].runs] == [("run", 0, None), ("run-2", 4, None)]
    assert [(first.name, second.name) for first, second in make_pairs(arms, choose_control(None, arms))] == [
        ("mt-unet (12), classes", "mt-unet (12)")
    ]

    shutil.copytree(folders[0], tmp_path / "copy")
    with pytest.raises(InputError, match="have the same settings and the same seed 0"):
        make_arms(asked(large_cohort, protocol, runs=[tmp_path / "copy"]), large_cohort, tmp_path / "out")
    (folders[0] / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights yet"):
        make_arms(protocol, large_cohort, tmp_path / "out")


def test_runs_that_do_not_fit_the_cohort(cohort: Cohort, large_cohort: Cohort, tmp_path: Path) -> None:
    run = trained(large_cohort, tmp_path / "run").path
    with pytest.raises(InputError, match="import the cohort with --size 96x64"):
        compare(cohort, tmp_path / "out", runs=[run], progress=False)
    other = blob_cohort(tmp_path / "no-gaze", studies=30, gaze=False, size=(96, 64))
    with pytest.raises(InputError, match="has no attention target 'gaze'"):
        compare(other, tmp_path / "out", runs=[run], progress=False)
    assert not (tmp_path / "out").exists()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"methods": []}, "nothing to compare"),
    ({"methods": ["gg-can"]}, "no method 'gg-can'"),
    ({"methods": ["mt-unet", "mt-unet"]}, "The method 'mt-unet' is given twice"),
    ({"seeds": [1, 1]}, "The seed 1 is given twice"),
    ({"seeds": 0}, "seeds is 0"),
    ({"seeds": [-1]}, "seed = -1"),
    ({"backbones": ["resnet10"]}, "no backbone 'resnet10'"),
    ({"methods": ["mt-unet"], "settings_of": {}}, "None of the methods mt-unet takes a backbone"),
    ({"settings": {"epoch": 1}}, "no training setting 'epoch'"),
    ({"settings": {"seed": 1}}, "no setting 'seed': it varies seeds"),
    ({"settings_of": {"gg-cam": {"train_studies": 3}}}, "no setting 'train_studies'"),
    ({"settings_of": {"mt-unet": {"epochs": 1}}}, "neither a method nor a backbone of this comparison"),
    ({"settings": {"attention": "mask:heart"}}, "no attention target 'mask:heart'"),
    ({"settings": {"model": {"width": 2}}}, "takes no setting 'width'"),
    ({"train_studies": [400]}, "train_studies is 400"),
    ({"train_studies": [1]}, "absent from the 'train' split"),
    ({"train_studies": [12, None]}, "The training size 12 is given twice"),
    ({"jobs": 0}, "jobs is 0"),
    ({"resamples": 0}, "resamples is 0"),
    ({"split": "train"}, "compare on test"),
    ({"control": "mt-unet"}, "control 'mt-unet' is no method"),
    ({"runs": ["nowhere"]}, "not a run"),
]


@pytest.mark.parametrize(("given", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_is_refused_before_anything_starts(
    given: dict[str, Any], sentence: str, large_cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_jobs", lambda *_: pytest.fail("a run was started"))
    call = {"methods": ["gg-cam", "classifier"], "backbones": ["resnet10t"], "settings": SHARED, **given}
    with pytest.raises(InputError, match=sentence):
        compare(large_cohort, tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()


def test_images_too_small_for_a_cam(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not divide by 32"):
        compare(cohort, tmp_path, ["classifier"], backbones=["resnet10t"])


def test_class_absent_from_the_test_split(
    large_cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Cohort.indices
    monkeypatch.setattr(Cohort, "indices", lambda self, split: whole(self, split)[: 1 if split == "test" else None])
    with pytest.raises(InputError, match="absent from the 'test' split of cohort 'tables', so its AUC would not exist"):
        compare(large_cohort, tmp_path, ["mt-unet"], settings=SHARED, settings_of={"mt-unet": OWN["mt-unet"]})


def test_folder_remembers_and_refuses_other_settings(
    protocol: Protocol, arms: list[Arm], large_cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_jobs", lambda *_: pytest.fail("a run was started"))
    write_protocol(tmp_path, protocol, large_cohort, arms)
    assert read_protocol(tmp_path, large_cohort)[0] == protocol
    for settings, sentence in (
        ({"epochs": 2}, r"started with epochs = 1 for 'gg-cam resnet10t \(9\)', not 2"),
        ({"learning_rate": 1e-5}, "started with learning_rate"),
    ):
        with pytest.raises(InputError, match=sentence):
            compare(large_cohort, tmp_path, settings=settings)
    content = json.loads((tmp_path / "comparison-protocol.json").read_text())
    (tmp_path / "comparison-protocol.json").write_text(json.dumps({**content, "asked": 3}))
    with pytest.raises(InputError, match="damaged"):
        read_protocol(tmp_path, large_cohort)


def test_cohort_that_has_changed(tmp_path: Path) -> None:
    cohort = blob_cohort(tmp_path / "data")
    write_protocol(tmp_path, Protocol(), cohort, [])
    with pytest.raises(InputError, match="or the cohort has changed since"):
        read_protocol(tmp_path, resplit(cohort.path, seed=1))
