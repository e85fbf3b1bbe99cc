"""Model cards, and exported programs (.pt2) whose archive, records or JSON were changed."""

from __future__ import annotations

import io
import json
import zipfile
from functools import cache
from typing import Any

import torch

from fuzz.choices import Choices, Harness, altered, edited, refusals
from fuzz.scratch import scratch
from radgaze.inference import pt2
from radgaze.inference.card import ModelCard
from radgaze.models import build

__all__ = ["HARNESSES"]

CARD: dict[str, Any] = {
    "format": 1,
    "method": "mt-unet",
    "classes": ["a", "b"],
    "task": "multiclass",
    "size": [32, 16],
    "fit": "letterbox",
    "canvas": None,
    "attention": "gaze",
    "outputs": ["logits", "saliency_logits"],
    "calibration": {
        "task": "multiclass",
        "studies": 4,
        "patients": 4,
        "log_loss": [0.7, 0.6],
        "slopes": [[1.0, 1.0]] * 3,
        "offsets": [[0.0, 0.1]] * 3,
    },
    "uncalibrated": None,
    "facts": {"weights": "ab"},
}


@cache
def whole() -> tuple[bytes, dict[str, bytes]]:
    """A small program, and its records."""
    network = build({"name": "mt-unet", "num_classes": 2, "in_channels": 1, "width": 1}).eval()
    program, names = pt2.trace(network, torch.rand(2, 1, 16, 16))
    file = scratch("program") / "whole.pt2"
    pt2.write(program, names, "{}", file)
    with zipfile.ZipFile(file) as archive:
        return file.read_bytes(), {name: archive.read(name) for name in archive.namelist()}


def check_program(data: bytes) -> None:
    choices = Choices(data)
    content, records = whole()
    if choices.one_in(3):
        content = edited(content, choices)
    else:
        records = dict(records)
        name = choices.pick(sorted(records))
        if name.endswith(".json") and not choices.one_in(4):
            records[name] = json.dumps(altered(json.loads(records[name]), choices)).encode()
        else:
            records[name] = edited(records[name], choices)
        if choices.one_in(8):
            records[choices.pick((name.replace("models", "data"), f"{name}x", "other/data.pkl"))] = records.pop(name)
        packed = io.BytesIO()
        squeezed = zipfile.ZIP_DEFLATED if choices.one_in(4) else zipfile.ZIP_STORED
        with zipfile.ZipFile(packed, "w", squeezed) as archive:
            for name, record in records.items():
                archive.writestr(name, record)
        content = packed.getvalue()
    file = scratch("program") / "model.pt2"
    file.write_bytes(content)
    with refusals():
        _, names, card = pt2.read(file)
        assert all(isinstance(name, str) for name in names)
        assert isinstance(card, str)


def check_card(data: bytes) -> None:
    choices = Choices(data)
    with refusals():
        card = ModelCard.from_json(altered(CARD, choices, 4))
        assert card.frame.grid((30, 20)).size == card.frame.size
        if card.calibration:
            value, low, high = card.calibration(torch.zeros(1, len(card.classes)))
            assert value.shape == low.shape == high.shape


HARNESSES = {"card": Harness(check_card), "program": Harness(check_program)}
