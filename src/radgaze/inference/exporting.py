"""A trained network as one file that runs without radgaze's training code, and mostly without PyTorch.

    input    image            (B, 1, h, w)  float32 in [0, 1], each image divided by its maximum; any B
    outputs  logits           (B, C)        those of radgaze.models.Output that the network has
             saliency_logits  (B, h, w)
             cams             (B, C, h', w')

The graph is torch.export's. ONNX is made from it, OpenVINO's from the ONNX. The model card goes into the file's
metadata as JSON: classes, how an image is brought to the network's size, calibration. Names, paths and stack traces of
the machine that exported do not.

Every file is compared with the network before it gets its name. Full precision must agree with PyTorch to a thousandth
of the largest value of each output: above what the order of float32 sums does to a deep network, well below what a
wrong layer does. Less precision (OpenVINO's bf16 and int8) is judged by what it costs: the validation split's macro
AUC, or CC with the attention target where there are no classes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from radgaze.cohort import Cohort
from radgaze.errors import InputError, RadgazeError
from radgaze.files import make_folder
from radgaze.inference import pt2
from radgaze.inference.card import ModelCard
from radgaze.inference.engine import CARD, FORMATS, INPUT, PRECISION, Engine, TorchEngine, check_format, needed
from radgaze.inference.evaluation import attention_target
from radgaze.inference.predict import probabilities
from radgaze.measures import classification, saliency
from radgaze.models import Output
from radgaze.redundancy.probe import probe_studies
from radgaze.training.data import Batches, CohortDataset, load_images, loader
from radgaze.training.runs import Run

__all__ = ["Exported", "export"]

PRECISIONS = ("fp32", "bf16", "int8")
PARITY = 1e-3  # of an output's largest value
COMPARED = 8  # images
CALIBRATED_ON = 128  # training images that int8's ranges are taken from
BATCH = 16
OPSET = 18


@dataclass(frozen=True)
class Exported:
    """What was written, and how near to the network it is.

    Attributes:
        path: The file; OpenVINO's has its weights beside it, under the same name with ``.bin``.
        format, precision: As asked for.
        bytes: Of all its files.
        differences: For each output the largest difference from PyTorch in float32, as a share of the output's largest
            value.
        images: Which images were compared: ``"validation"``, or ``"synthetic"`` where the cohort is not there.
        measure: ``"auc_macro"`` or ``"cc"``, on the validation split; None in full precision.
        before, after: Its value in float32 and as exported.
    """

    path: Path
    format: str
    precision: str
    bytes: int
    differences: dict[str, float]
    images: str
    measure: str | None = None
    before: float | None = None
    after: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def export(
    run: Run | Path | str,
    out: Path | str,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    tolerance: float = 0.002,
    overwrite: bool = False,
) -> Exported:
    """Write a trained run's network as one file.

    Args:
        run: A finished run or its folder.
        out: The file: ``.onnx``; ``.xml`` (OpenVINO, which puts a ``.bin`` beside it); ``.pt2`` (torch.export).
        format: ``"onnx"``, ``"openvino"`` or ``"torch-export"``.
        precision: ``"fp32"``; with OpenVINO also ``"bf16"`` (the file stays in float32, the processor computes in
            bfloat16 where it can) and ``"int8"`` (quantised by NNCF, ranges from training images).
        tolerance: How much of the validation split's macro AUC (or CC) bf16 and int8 may lose.
        overwrite: Replace a file that is there.

    Returns:
        Where it is and how near.

    Raises:
        InputError: Unknown format or precision, another ending than the format's, a file that is there, a network that
            does not survive the format, or one that loses more than ``tolerance``. Nothing is left behind then.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    check_arguments(out, format, precision, tolerance, overwrite)
    card = ModelCard.of(run)
    cohort = cohort_of(run)
    if cohort is None and precision != "fp32":
        raise InputError(
            f"Precision {precision!r} is judged on the validation split, but the run's cohort cannot be opened; bring "
            "it back to where it was, or export in fp32."
        )
    images, origin = compared_images(cohort, card.frame.size)
    reference = TorchEngine(run.network())
    with finished_in(out) as folder:
        file = folder / out.name
        write(run, card, file, format, precision, cohort, images)
        engine = FORMATS[format][1](file, None)
        differences = compare(reference(images), engine(images))
        measured: dict[str, Any] = {}
        if precision == "fp32":
            for name, difference in differences.items():
                if not difference <= PARITY:
                    raise InputError(
                        f"Exported as {format}, the output {name!r} differs from PyTorch's by {difference:.1e} of its "
                        f"largest value, expected at most {PARITY:g}; export in another format."
                    )
        else:
            assert cohort is not None
            measured = judged(run, cohort, reference, engine, precision, tolerance)
        size = sum(part.stat().st_size for part in folder.iterdir())
    return Exported(out, format, precision, size, differences, origin, **measured)


def check_arguments(out: Path, format: str, precision: str, tolerance: float, overwrite: bool) -> None:
    check_format(format)
    if precision not in PRECISIONS:
        raise InputError(f"Precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if precision != "fp32" and format != "openvino":
        raise InputError(f"Precision {precision!r} is OpenVINO's; give --format openvino, or export {format} in fp32.")
    if not 0 <= tolerance <= 1:
        raise InputError(f"The tolerance is {tolerance}, expected 0 to 1; try 0.002.")
    if out.suffix != FORMATS[format][0]:
        raise InputError(f"{str(out)!r} does not end in {FORMATS[format][0]}, as {format} files do; rename it.")
    if out.exists() and not overwrite:
        raise InputError(f"{str(out)!r} exists already; choose another file, or ask to overwrite it.")


def cohort_of(run: Run) -> Cohort | None:
    try:
        return run.cohort()
    except RadgazeError:
        return None


def compared_images(cohort: Cohort | None, size: tuple[int, int]) -> tuple[Tensor, str]:
    """Images ``(B, 1, h, w)`` to compare the file with the network on, and where they are from."""
    studies = [] if cohort is None else cohort.indices("val").tolist()[:COMPARED]
    if cohort is not None and studies:
        return load_images(cohort, studies), "validation"
    coarse = torch.rand(COMPARED, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size, mode="bilinear"), "synthetic"


@contextmanager
def finished_in(out: Path) -> Iterator[Path]:
    """A folder beside ``out``; its files get their places once the block ends without an error, ``out`` the last."""
    make_folder(out.parent)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial"))
    try:
        yield folder
        for part in sorted(folder.iterdir(), key=lambda part: part.name == out.name):
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if len(list(folder.iterdir())) > 1:
            out.unlink(missing_ok=True)  # of two files only new ones may stand together
        for part in sorted(folder.iterdir(), key=lambda part: part.name == out.name):
            part.replace(out.parent / part.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- writing


def write(
    run: Run, card: ModelCard, file: Path, format: str, precision: str, cohort: Cohort | None, images: Tensor
) -> None:
    metadata = {CARD: json.dumps(card.to_json()), PRECISION: precision}
    program, outputs = pt2.trace(run.network(), images[:2])
    if format == "torch-export":
        pt2.write(program, outputs, metadata[CARD], file)
        return
    model = onnx_model(program, outputs)
    if format == "onnx":
        for key, value in metadata.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
        file.write_bytes(model.SerializeToString())
        return
    openvino = needed("openvino")
    converted = openvino.Core().read_model(model.SerializeToString())
    if precision == "int8":
        assert cohort is not None
        converted = quantised(converted, run, cohort)
    for key, value in metadata.items():
        converted.set_rt_info(value, [key])
    openvino.save_model(converted, file, compress_to_fp16=False)


def onnx_model(program: torch.export.ExportedProgram, outputs: list[str]) -> Any:
    needed("onnxscript")
    with redirect_stdout(io.StringIO()), pt2.silent():
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=outputs, verbose=False
        )
    assert made is not None
    model = made.model_proto
    model.producer_name, model.producer_version = "radgaze", ""
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]  # PyTorch's notes on where each came from
        part.doc_string = ""
    for port in (*graph.input, *graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    return model


def quantised(model: Any, run: Run, cohort: Cohort) -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # it reports its use to its makers otherwise
    nncf = needed("nncf")
    nncf.set_log_level("ERROR")
    learned = run.training_studies(cohort)
    studies = probe_studies(cohort, learned, min(CALIBRATED_ON, len(learned)), run.config.seed)
    seen = [load_images(cohort, [study]).numpy() for study in studies.tolist()]
    with redirect_stdout(io.StringIO()):
        # means of 8-bit maps come out as zero in OpenVINO's CPU plug-in (2026.4); they cost next to nothing
        return nncf.quantize(
            model,
            nncf.Dataset(seen),
            subset_size=len(seen),
            ignored_scope=nncf.IgnoredScope(types=["ReduceMean"], validate=False),
        )


# ---- comparing


def compare(expected: Output, found: Output) -> dict[str, float]:
    differences = {}
    for name, part in expected._asdict().items():
        if part is not None:
            other = found._asdict()[name]
            differences[name] = float((other - part).abs().max() / part.abs().max().clamp(min=1e-12))
    return differences


def judged(
    run: Run, cohort: Cohort, reference: Engine, engine: Engine, precision: str, tolerance: float
) -> dict[str, Any]:
    measure, value = what_counts(run, cohort)
    before, after = value(reference), value(engine)
    if not after >= before - tolerance:
        name = {"auc_macro": "macro AUC", "cc": "CC of its attention"}[measure]
        raise InputError(
            f"In {precision} the validation split's {name} is {after:.4f} instead of {before:.4f}, expected a loss of "
            f"at most {tolerance:g}; allow more with --tolerance, or export in another precision."
        )
    return {"measure": measure, "before": before, "after": after}


def what_counts(run: Run, cohort: Cohort) -> tuple[str, Callable[[Engine], float]]:
    """What a loss of precision is judged by: a measure's name, and its value on the validation split for an engine."""
    studies = cohort.indices("val")
    target = None if run.classes else attention_target(run, cohort, needed=True)
    dataset = CohortDataset(cohort, studies, target)

    def outputs(engine: Engine) -> Iterator[tuple[Output, Any]]:
        for batch in loader(dataset, Batches(len(dataset), BATCH, shuffle=False), workers=0, pin=False):
            yield engine(batch.images), batch

    def auc(engine: Engine) -> float:
        logits = torch.cat([output.logits for output, _ in outputs(engine) if output.logits is not None])
        targets = torch.from_numpy(np.asarray(cohort.targets[studies]))
        return float(classification.auc_macro(probabilities(logits, run.content["task"]), targets))

    def cc(engine: Engine) -> float:
        values = []
        for output, batch in outputs(engine):
            maps = output.saliency()
            assert maps is not None
            assert batch.attention is not None
            values.append(saliency.cc(maps, batch.attention)[batch.has_attention])
        return float(torch.cat(values).nanmean())

    return ("auc_macro", auc) if run.classes else ("cc", cc)


def told(exported: Exported) -> Mapping[str, str]:
    """What the command line tells of an export."""
    lines = {
        "file": str(exported.path),
        "format": f"{exported.format}, {exported.precision}",
        "size": f"{exported.bytes / 1e6:,.2f} MB",
    }
    for name, difference in exported.differences.items():
        lines[f"{name}, largest difference"] = f"{difference:.1e} of its largest value ({exported.images} images)"
    if exported.before is not None and exported.after is not None:
        name = {"auc_macro": "macro AUC", "cc": "CC"}[str(exported.measure)]
        change = exported.after - exported.before
        lines[f"{name}, validation"] = f"{exported.before:.4f} to {exported.after:.4f} ({change:+.4f})"
    return lines
