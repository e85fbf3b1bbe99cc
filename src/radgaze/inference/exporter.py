"""A trained run as one file for another engine: ONNX, OpenVINO or torch.export, with the model card inside it.

What is written is compared with PyTorch on real images before it gets its name. In 32 bits an output may differ by
``PARITY`` of its scale: float32 sums in another order differ by 1e-6 to 1e-5 of it, a wrong operator or a silent
fall to 16 bits by 1e-3 or more. In fewer bits outputs do differ, so the validation split decides: the macro AUC (the
CC of the predicted attention, for networks without classes) may fall by so much and no more.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radgaze.cohort import Cohort
from radgaze.errors import InputError, RadgazeError, nearest
from radgaze.files import folder_lock
from radgaze.inference import pt2
from radgaze.inference.calibration import calibrate
from radgaze.inference.card import ModelCard
from radgaze.inference.engine import IMAGE, KEY, SUFFIXES, Engine, TorchEngine, open_model, require
from radgaze.inference.evaluation import attention_target
from radgaze.inference.predict import probabilities
from radgaze.inference.seals import seal
from radgaze.measures import classification, saliency
from radgaze.models import Network
from radgaze.redundancy import probe_studies
from radgaze.training.data import load_images
from radgaze.training.runs import Run

__all__ = ["PRECISIONS", "export", "exported_for"]

PRECISIONS = ("fp32", "bf16", "int8")
OPSET = 18  # the oldest that the exporter writes natively: the most runtimes read it
PARITY = 1e-4
LEAST_SCALE = 0.1  # outputs near zero everywhere are compared as if they were of this scale
COMPARED = 8  # images
CALIBRATING = 300  # images for int8, as nncf suggests
BATCH = 16


def export(
    run: Run | Path | str,
    out: Path | str,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    tolerance: float = 0.002,
    cohort: Cohort | Path | str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a run's network for another engine, with its card, and check it against PyTorch.

    The file takes float32 images ``image`` (B, 1, h, w) in [0, 1], of the run's size and any B, and gives those of
    ``logits``, ``saliency_logits`` and ``cams`` that the network has. It appears whole or not at all.

    Args:
        run: A trained run or its folder.
        out: The file: .onnx, .xml (its .bin is written beside it) or .pt2.
        format: ``"onnx"``, ``"openvino"`` or ``"torch-export"``.
        precision: ``"fp32"``; for OpenVINO also ``"bf16"``, or ``"int8"``, which is calibrated on images of the
            training split.
        tolerance: In bf16 and int8: by how much the macro AUC on the validation split may fall (without classes: the
            CC of the predicted attention).
        cohort: Where images are taken from; by default the cohort the run was trained on. Without one, ``"fp32"`` is
            compared on synthetic images, and other precisions are refused.
        progress: Show nncf's progress bars.

    Returns:
        ``path``, ``format``, ``precision``, ``bytes``, ``compared_on``, ``parity`` (output to ``difference``, the
        largest, and ``scale``, the largest value), and ``change``: None, or measure to ``before``, ``after`` and
        ``change`` on ``studies`` validation studies.

    Raises:
        InputError: An unknown format or precision, a name that does not fit the format, a run that is not finished, a
            cohort that is needed and cannot be opened, a missing package, or a check that failed.
    """
    run, out = run if isinstance(run, Run) else Run.open(run), Path(out)
    check(out, format, precision, tolerance)
    images, compared_on, opened = sample(run, cohort, needed=precision != "fp32")
    own = opened is not None and opened.meta["checksums"] == run.content["cohort"]["checksums"]
    card = ModelCard.of(run, opened if own else None)
    network = run.network()
    reference = TorchEngine(run.network())
    card = replace(card, facts={**card.facts, "exported": {"format": format, "precision": precision}})
    change: dict[str, Any] | None = None
    with staging(out) as file:
        model = convert(network, images[:2], format, file.parent)
        if precision == "int8":
            assert opened is not None  # needed above
            model = quantised(model, run, opened, progress)
        save(model, card, format, precision, file)
        engine = open_model(file)[1]
        parity = compared(engine, reference, images)
        if precision == "fp32":
            check_parity(parity, format)
        else:
            assert opened is not None
            before, after = (measure(run, opened, one) for one in (reference, engine))
            change = changes(before, after)
            check_change(change, precision, tolerance)
            card = recalibrated(card, run, opened, after)
            card.facts["exported"]["change"] = change
            save(model, card, format, precision, file)
            open_model(file)
        size = publish(file, out)
    return {
        "path": str(out),
        "format": format,
        "precision": precision,
        "bytes": size,
        "compared_on": compared_on,
        "parity": parity,
        "change": change,
    }


def exported_for(run: Run, engine: str, anew: bool = False) -> Path:
    """The run's network for another engine, in its folder ``exported``; made where it is missing or out of date.

    Args:
        run: A trained run.
        engine: ``"onnx"``, ``"openvino"`` or ``"torch-export"``.
        anew: Make it even where it is there.

    Raises:
        InputError: An unknown engine, a folder that cannot be written, and whatever :func:`export` refuses.
    """
    if engine not in SUFFIXES:
        raise InputError(f"There is no engine {engine!r}: {nearest(engine, ['torch', *SUFFIXES])}")
    folder = run.path / "exported"
    path = folder / f"{run.digest[:16]}{SUFFIXES[engine]}"
    if anew or not path.is_file():
        try:
            export(run, path, format=engine, progress=False)
        except OSError as error:
            raise InputError(
                f"The run in {str(run.path)!r} cannot be exported into its own folder ({error}); write the file "
                f"elsewhere with radgaze export --format {engine} and load that."
            ) from error
        for old in folder.glob(f"*{path.suffix}"):
            if old != path:
                old.unlink()
                old.with_suffix(".bin").unlink(missing_ok=True)
    return path


def check(out: Path, format: str, precision: str, tolerance: float) -> None:
    if format not in SUFFIXES:
        raise InputError(f"There is no format {format!r}: {nearest(format, SUFFIXES)}")
    if precision not in PRECISIONS:
        raise InputError(f"There is no precision {precision!r}: {nearest(precision, PRECISIONS)}")
    if precision != "fp32" and format != "openvino":
        raise InputError(f"Format {format!r} is written in fp32 only, not {precision}; use --format openvino for that.")
    if out.suffix != SUFFIXES[format]:
        raise InputError(f"{out.name!r} does not end in {SUFFIXES[format]}, as format {format!r} does; name it so.")
    if out.is_dir():
        raise InputError(f"{str(out)!r} is a folder, expected the name of a file to write; choose another name.")
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance is {tolerance}, a difference of AUCs between 0 and 1; try 0.002.")


# Images --------------------------------------------------------------------------------------------------------------


def sample(run: Run, cohort: Cohort | Path | str | None, needed: bool) -> tuple[Tensor, str, Cohort | None]:
    """Images to compare on, what they are, and the cohort, None if it cannot be opened."""
    try:
        opened = run.cohort(cohort)
    except RadgazeError as error:
        if needed:
            raise InputError(
                "In fewer bits a network is measured on its cohort's validation split before it is written, and that "
                f"cannot be opened ({error}); give --cohort, or use --precision fp32."
            ) from error
        if cohort is not None:
            raise
        return synthetic(run.size), f"{COMPARED} synthetic images, as the cohort cannot be opened: {error}", None
    rows = opened.indices("val")
    if len(rows) == 0:
        return synthetic(run.size), f"{COMPARED} synthetic images, as the cohort has no validation study", opened
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, COMPARED).round().astype(int))].tolist()
    images = load_images(opened, chosen)
    if len(images) == 1:
        images = images.expand(2, -1, -1, -1)  # a batch of one would be taken for the only size
    return images, f"{len(chosen)} image{'s' * (len(chosen) > 1)} of the validation split", opened


def synthetic(size: tuple[int, int]) -> Tensor:
    """Shades of several scales, from a fixed seed: ``(COMPARED, 1, h, w)`` in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    shades = torch.zeros(COMPARED, 1, *size)
    for cells in (2, 6, 20, 60):
        coarse = torch.rand(COMPARED, 1, cells, cells, generator=generator)
        shades += torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return shades / shades.flatten(1).amax(1).view(-1, 1, 1, 1)


# Writing -------------------------------------------------------------------------------------------------------------


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A file of ``out``'s name in a folder beside it, which one process holds and which is gone afterwards."""
    folder = out.parent / f".{out.name}.partial"
    with folder_lock(folder, "exporting into"):
        try:
            yield folder / out.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(file: Path, out: Path) -> int:
    """Give a checked file its name, and tell its bytes. Of OpenVINO's two files the .xml, without which there is no
    model, goes first and comes last: a kill in between leaves no model, not half of one.
    """
    parts = [file.with_suffix(".bin"), file] if out.suffix == ".xml" else [file]
    for part in parts:
        with part.open("rb+") as opened:
            os.fsync(opened.fileno())  # the bytes reach the disk before the name does
    size = sum(part.stat().st_size for part in parts)
    if len(parts) > 1:
        out.unlink(missing_ok=True)
    for part in parts:
        part.replace(out.with_suffix(part.suffix))
    return size


def convert(network: Network, images: Tensor, format: str, folder: Path) -> Any:
    """The network as the format's own object: (program, names), an ONNX model, or an OpenVINO one."""
    if format != "torch-export":
        require("onnx", "The export")
        require("onnxscript", "The export")
    runtime = require("openvino", "The export") if format == "openvino" else None
    program, names = pt2.trace(network, images)
    if format == "torch-export":
        return program, names
    with warnings.catch_warnings(), pt2.silent():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[IMAGE], output_names=names, verbose=False
        )
    assert written is not None  # with dynamo
    model = written.model_proto
    forget(model)
    if runtime is None:
        return model
    graph = folder / "graph.onnx"
    graph.write_bytes(model.SerializeToString())
    converted = runtime.Core().read_model(graph)
    for output, name in zip(converted.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return converted


def forget(model: Any) -> None:
    """Take out what an ONNX model tells of the machine and the code it comes from."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in model.functions:
        for part in (function, *function.node):
            del part.metadata_props[:]
            part.doc_string = ""


def save(model: Any, card: ModelCard, format: str, precision: str, file: Path) -> None:
    text = json.dumps(card.to_json(), ensure_ascii=False, allow_nan=False)
    if format == "torch-export":
        program, names = model
        pt2.write(program, names, text, file)
    elif format == "onnx":
        del model.metadata_props[:]
        model.metadata_props.add(key=KEY, value=text)
        model.producer_name = "radgaze"
        file.write_bytes(model.SerializeToString())
    else:
        model.set_rt_info(text, [KEY])
        # 16 bits hold all that bf16 computes with, and halve the file
        require("openvino", "The export").save_model(model, file, compress_to_fp16=precision == "bf16")
    seal(file)


def quantised(model: Any, run: Run, cohort: Cohort, progress: bool) -> Any:
    """An OpenVINO model with 8-bit weights and activations, whose ranges come from images of the training split.

    The layers that write the outputs keep 32 bits: they are a few hundred weights, decide how fine scores and maps
    are, and OpenVINO 2026.4 computes zeros for an 8-bit convolution to three class maps when the batch size is free.
    """
    nncf = require("nncf", "int8")
    rows = run.training_studies(cohort)
    count = min(CALIBRATING, len(np.unique(cohort.studies["image_row"].to_numpy()[rows])))
    chosen = probe_studies(cohort, rows, count) if count > 1 else rows
    with redirect_stdout(sys.stderr if progress else io.StringIO()):  # standard output is for results
        nncf.set_log_level(40)
        data = nncf.Dataset(chosen.tolist(), lambda row: load_images(cohort, [row]).numpy())
        kept = nncf.IgnoredScope(names=last_layers(model))
        return nncf.quantize(model, data, subset_size=len(chosen), ignored_scope=kept)


def last_layers(model: Any) -> list[str]:
    """Names of the convolutions and matrix products of an OpenVINO model that its outputs come from."""
    names = set()
    for output in model.outputs:
        node = output.get_node()
        while node.get_type_name() not in ("Convolution", "MatMul"):
            node = node.input_value(0).get_node()  # the first input is the data; others are biases, axes, shapes
        names.add(node.get_friendly_name())
    return sorted(names)


# Checking ------------------------------------------------------------------------------------------------------------


def compared(engine: Engine, reference: Engine, images: Tensor) -> dict[str, dict[str, float]]:
    """Output to its largest difference and its scale."""
    parity = {}
    expected, found = reference(images), engine(images)
    for name, value in expected._asdict().items():
        other = getattr(found, name)
        if (value is None) != (other is None) or (value is not None and value.shape != other.shape):
            raise RadgazeError(f"The exported network's output {name!r} is not the network's; please report this.")
        if value is not None:
            parity[name] = {"difference": float((value - other).abs().max()), "scale": float(value.abs().max())}
    return parity


def check_parity(parity: dict[str, dict[str, float]], format: str) -> None:
    for name, entry in parity.items():
        limit = PARITY * max(entry["scale"], LEAST_SCALE)
        if not entry["difference"] <= limit:  # NaN too
            raise InputError(
                f"In format {format!r} the network's {name} differ from PyTorch's by {entry['difference']:.3g}, "
                f"expected at most {limit:.3g}; nothing was written: use another format."
            )


@dataclass(frozen=True)
class Measured:
    """What an engine says of the validation split."""

    logits: Tensor | None
    values: dict[str, float]
    studies: int


def measure(run: Run, cohort: Cohort, engine: Engine) -> Measured:
    """Macro AUC and CC of the predicted attention, those that the network has.

    Raises:
        InputError: An output is not finite.
    """
    rows = cohort.indices("val")
    attention = attention_target(run, cohort, needed=False)
    logits, agreement = [], []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH].tolist()
        output = engine(load_images(cohort, some))
        for name, part in output._asdict().items():
            if part is not None and not part.isfinite().all():
                raise InputError(
                    f"In engine {engine.name!r} the network's {name} are not finite on the validation split; nothing "
                    "was written: use --precision fp32, or train the run again."
                )
        if output.logits is not None:
            logits.append(output.logits)
        seen = output.saliency()
        if seen is not None and attention is not None:
            target, present = attention.maps(cohort, some)
            agreement.append(saliency.cc(seen[present], target[present]))
    values = {}
    if logits and run.classes:
        targets = torch.from_numpy(cohort.targets[rows])
        values["auc_macro"] = float(
            classification.auc_macro(probabilities(torch.cat(logits), run.content["task"]), targets)
        )
    if agreement:
        values["cc"] = float(torch.cat(agreement).nanmean())
    return Measured(torch.cat(logits) if logits else None, values, len(rows))


def changes(before: Measured, after: Measured) -> dict[str, Any]:
    told: dict[str, Any] = {"studies": before.studies}
    for name, value in before.values.items():
        new = after.values[name]
        if not (np.isfinite(value) and np.isfinite(new)):
            continue
        told[name] = {"before": value, "after": new, "change": new - value}
    return told


def check_change(change: dict[str, Any], precision: str, tolerance: float) -> None:
    deciding = "auc_macro" if "auc_macro" in change else "cc"
    if deciding not in change:
        raise InputError(
            f"What {precision} costs cannot be measured: the validation split of {change['studies']} studies gives no "
            "AUC (a class is absent) and no attention to compare with; use --precision fp32 or another --cohort."
        )
    entry, name = change[deciding], {"auc_macro": "macro AUC", "cc": "CC of the attention"}[deciding]
    if entry["change"] < -tolerance:
        raise InputError(
            f"In {precision} the {name} on the validation split falls from {entry['before']:.4f} to "
            f"{entry['after']:.4f}, by {-entry['change']:.4f} where {tolerance:g} is allowed; nothing was written: "
            "allow more with --tolerance, or use another --precision."
        )


def recalibrated(card: ModelCard, run: Run, cohort: Cohort, measured: Measured) -> ModelCard:
    """The card with the calibration of the scores in fewer bits, where the run's own scores have one."""
    if card.calibration is None or measured.logits is None:
        return card
    rows: NDArray[np.int64] = cohort.indices("val")
    targets = torch.from_numpy(cohort.targets[rows])
    patients = cohort.studies["patient_id"][rows].to_list()
    return replace(card, calibration=calibrate(measured.logits, targets, patients, run.content["task"]))
