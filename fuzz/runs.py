"""A run's config.json and state.json, settings of a training, networks as dicts; weights files."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from typing import Any

from safetensors.torch import save

from fuzz.choices import Choices, Harness, altered, edited, refusals
from fuzz.scratch import scratch
from radgaze.files import parse_json, read_json
from radgaze.models import Network, build, load_weights
from radgaze.training.config import RunConfig
from radgaze.training.runs import Run, TrainingState

__all__ = ["HARNESSES"]

MT_UNET: dict[str, Any] = {"name": "mt-unet", "num_classes": 2, "in_channels": 1, "width": 1, "encoder": None}
NARROW: dict[str, Any] = {
    "name": "gaze-cam",
    "backbone": "narrow_resnet",
    "num_classes": 2,
    "in_channels": 1,
    "options": {"stem": 2, "stages": [{"width": 2, "blocks": [[2]], "projection": True}], "output_stride": 32},
}
CONFIG: dict[str, Any] = {
    "radgaze": 1,
    "run": RunConfig().dump() | {"epochs": 2},
    "network": MT_UNET,
    "classes": ["a", "b"],
    "task": "multiclass",
    "attention": "gaze",
    "parameters": 100,
    "train_studies": 4,
    "cohort": {
        "path": "nowhere",
        "name": "made up",
        "size": [32, 16],
        "fit": "letterbox",
        "canvas": None,
        "checksums": {"images.npy": "0" * 64, "studies.parquet": "0" * 64},
    },
}
MOST_PARAMETERS = 1 << 24  # of a network, so that memory shows what slips past that check

STATE: dict[str, Any] = {"last": "epoch-0002", "best": "epoch-0001"} | TrainingState(
    epoch=2, best_epoch=1, best_value=0.5, finished="all epochs", history=[{"epoch": 1}, {"epoch": 2, "val_loss": 0.4}]
).to_json()


def check_config(data: bytes) -> None:
    """Settings of a training: whatever is taken comes back from its own dump."""
    choices = Choices(data)
    try:
        settings = parse_json(json.dumps(altered(RunConfig().dump(), choices, 4)))
    except ValueError:  # NaN or infinity, which no file of settings can hold
        return
    with refusals():
        if isinstance(settings, dict):
            config = RunConfig.parse(settings)
            assert RunConfig.parse(config.dump()) == config


def check_json(data: bytes) -> None:
    """Any bytes as a JSON file."""
    file = scratch("json") / "a.json"
    choices = Choices(data)
    deep = choices.number(5)
    if deep == 5:
        opening = choices.pick((b"[", b'{"a":', b"[[], "))
        file.write_bytes(opening * choices.number(200_000))
    else:
        file.write_bytes(edited(json.dumps(CONFIG).encode(), choices) if deep > 2 else choices.rest())
    with refusals():
        read_json(file, "a test")


def check_run(data: bytes) -> None:
    choices = Choices(data)
    folder = scratch("run")
    for name, content in (("config.json", CONFIG), ("state.json", STATE)):
        text = json.dumps(altered(content, choices)).encode()
        (folder / name).write_bytes(edited(text, choices) if choices.one_in(16) else text)
    with refusals():
        run = Run.open(folder)
        height, width = run.size
        assert height > 0
        assert width > 0
        assert all(isinstance(name, str) for name in run.classes)
        for ask in ("frame", "state", "history", "is_trained", "digest"):
            with refusals():
                getattr(run, ask)
        if choices.one_in(16):  # the rest is a hundred times faster
            with refusals():
                run.network()
        with refusals():
            run.cohort()


def check_network(data: bytes) -> None:
    choices = Choices(data)
    import_module("radgaze.models.build").MOST_PARAMETERS = MOST_PARAMETERS  # type: ignore[attr-defined]
    config = altered(choices.pick((NARROW, MT_UNET)), choices)
    with refusals():
        if isinstance(config, dict):
            network = build({key: value for key, value in config.items() if key != "weights"})
            assert network.config["name"] == config["name"]


@cache
def small_network() -> Network:
    return build(MT_UNET)


@cache
def weights() -> bytes:
    return save(small_network().state_dict())


def check_weights(data: bytes) -> None:
    file = scratch("weights") / "weights.safetensors"
    choices = Choices(data)
    file.write_bytes(edited(weights(), choices) if choices.one_in(2) else head(choices))
    with refusals():
        load_weights(small_network(), file)


def head(choices: Choices) -> bytes:
    """A safetensors file whose JSON header was changed, its length set right again."""
    content = weights()
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(altered(json.loads(content[8 : 8 + length]), choices)).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


HARNESSES = {
    "config": Harness(check_config),
    "json": Harness(check_json),
    "run": Harness(check_run),
    "network": Harness(check_network),
    "weights": Harness(check_weights),
}
