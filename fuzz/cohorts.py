"""Cohorts whose files were changed, and their checksums set right again: everything a cohort gives is asked for."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from fuzz.choices import Choices, Harness, altered, edited, refusals
from fuzz.scratch import scratch
from radgaze.cohort.sources.engine import RawStudy, write_cohort
from radgaze.cohort.store import Cohort
from radgaze.cohort.study import Box
from radgaze.gaze import Gaze

__all__ = ["HARNESSES"]

TABLES = ("studies.parquet", "gaze.parquet", "boxes.parquet")
SIZE = (6, 4)


@cache
def whole() -> dict[str, bytes]:
    """The files of a small cohort."""
    source = scratch("cohort-source")
    raws = []
    for index in range(4):
        Image.fromarray(np.full(SIZE, 40 + index, np.uint8)).save(source / f"{index}.png")
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(source / "mask.png")
        raws.append(
            RawStudy(
                study_id=f"s{index}",
                patient_id=f"p{index}",
                image=source / f"{index}.png",
                label="ab"[index % 2],
                masks={"lungs": source / "mask.png"} if index else {},
                gaze=Gaze([1.0, 2.0], [1.0, 3.0], t=[0.0, 1.0], reader=[0, 0]) if index % 2 else None,
                boxes=[Box("heart", 0, 1, 2, 3)] if index > 1 else [],
                attributes={"age": index},
            )
        )
    write_cohort(raws, source / "cohort", name="made up", source="fuzz", size=SIZE, classes=["a", "b"],
                 structures=["lungs"], gaze_kind="samples", readers=["ann"], workers=1, progress=False)  # fmt: skip
    return {file.name: file.read_bytes() for file in sorted((source / "cohort").iterdir())}


def table(choices: Choices, content: bytes) -> bytes:
    """A Parquet file with cells, columns or types of its table changed, or its bytes."""
    if choices.one_in(3):
        return edited(content, choices)
    frame = pl.read_parquet(io.BytesIO(content))
    for _ in range(1 + choices.number(2)):
        name = choices.pick(frame.columns)
        kind = choices.number(5)
        if kind == 0:
            frame = frame.drop(name)
        elif kind == 1:
            frame = frame.with_columns(pl.lit(choices.pick((None, 0, -1, 2**40, 1e300, "x", True))).alias(name))
        elif kind == 2:
            frame = frame.with_columns(frame[name].cast(choices.pick((pl.String, pl.Int8, pl.Float32)), strict=False))
        elif kind == 3:
            frame = frame.head(choices.number(frame.height)) if choices.one_in(2) else pl.concat([frame, frame])
        else:
            values = frame[name].to_list()
            if values:
                values[choices.number(len(values) - 1)] = choices.pick((None, values[0], values[-1]))
            frame = frame.with_columns(pl.Series(name, values, frame.schema[name], strict=False))
        if not frame.columns:
            break
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def check_cohort(data: bytes) -> None:
    choices = Choices(data)
    files = dict(whole())
    meta: Any = json.loads(files.pop("cohort.json"))
    for name in sorted(files):
        if choices.one_in(4):
            files[name] = table(choices, files[name]) if name in TABLES else edited(files[name], choices)
    if not choices.one_in(8):
        meta["checksums"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if choices.one_in(2):
        meta = altered(meta, choices)
    text = json.dumps(meta).encode()
    folder = scratch("cohort")
    (folder / "cohort.json").write_bytes(edited(text, choices) if choices.one_in(12) else text)
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)  # a memory map of the last one may still be open
        if not choices.one_in(40):
            (folder / name).write_bytes(content)
    with warnings.catch_warnings(), refusals():
        warnings.simplefilter("ignore")  # of a split by image
        cohort = Cohort.open(folder)
        ask_everything(cohort)


def ask_everything(cohort: Cohort) -> None:
    assert cohort.task in ("multiclass", "multilabel", "none")
    assert all(isinstance(name, str) for name in (*cohort.classes, *cohort.structures, *cohort.readers))
    assert repr(cohort), cohort.frame
    for by in ("train", "val", "test", "all"):
        cohort.indices(by)
    assert len(cohort.targets) == len(cohort.strata) == len(cohort)
    for study in cohort:
        with refusals():
            if study.gaze is not None:
                study.gaze.inside(study.source_size)
        with refusals():
            assert all(box.xmin < box.xmax for box in study.boxes)
        with refusals():
            assert study.image.shape == cohort.size
        for name in cohort.structures:
            with refusals():
                assert study.has_mask(name) in (True, False)
                assert study.mask(name).shape == cohort.size


HARNESSES = {"cohort": Harness(check_cohort)}
