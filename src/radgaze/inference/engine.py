"""Engines: what runs a network. All take the same images and return the same :class:`~radgaze.models.Output`.

An exported file is opened by :func:`open_model`, which needs neither the run nor its cohort: the model card is in it.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from radgaze.errors import InputError
from radgaze.files import parse_json
from radgaze.inference import pt2
from radgaze.inference.card import ModelCard
from radgaze.inference.seals import is_sealed
from radgaze.models import Network, Output

__all__ = [
    "SUFFIXES",
    "Engine",
    "ExportedEngine",
    "OnnxEngine",
    "OpenVINOEngine",
    "TorchEngine",
    "is_exported",
    "open_model",
    "require",
]

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
IMAGE = "image"  # the input's name in every exported file
KEY = "radgaze"  # of the card in a file's metadata


class Engine(Protocol):
    """Runs a network over images."""

    name: str

    def __call__(self, images: Tensor) -> Output:
        """Images ``(B, 1, h, w)`` float32 in [0, 1] on the CPU to the network's output, float32 on the CPU."""


class TorchEngine:
    """PyTorch itself, on the CPU or a GPU.

    Args:
        network: Any radgaze network.
        device: Where it runs.
        precision: ``"fp32"`` or ``"bf16"``.
    """

    name = "torch"

    def __init__(self, network: Network, device: torch.device | None = None, precision: str = "fp32") -> None:
        self.device, self.precision = device or torch.device("cpu"), precision
        self.network = network.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.network(images)
        return Output(*(None if part is None else part.float().cpu() for part in output))


class OnnxEngine:
    """ONNX Runtime on the CPU. Calls from several threads at once are safe.

    Args:
        file: A .onnx that radgaze exported.
        threads: How many it computes with; all cores by default.

    Raises:
        InputError: onnxruntime is not installed; the file is missing, changed since, or has no model card.
    """

    name = "onnx"

    def __init__(self, file: Path | str, threads: int | None = None) -> None:
        runtime = require("onnxruntime", self.name)
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what is wrong with a file is said in our sentence
        options.intra_op_num_threads = checked_threads(threads) or 0
        sealed = is_sealed(exists(file))
        try:
            self.session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own errors share no class
            raise damaged(file, error) from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.card = read_card(metadata.get(KEY), file, sealed)
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: Tensor) -> Output:
        values = self.session.run(self.outputs, {IMAGE: images.contiguous().numpy()})
        return Output(**{name: torch.from_numpy(value) for name, value in zip(self.outputs, values, strict=True)})


class OpenVINOEngine:
    """OpenVINO on the CPU, in the precision that the file was exported for. Calls from several threads are safe.

    Args:
        file: A .xml that radgaze exported, its .bin beside it.
        threads: How many it computes with; all cores by default.

    Raises:
        InputError: openvino is not installed; the file is missing, changed since, or has no model card; or it is in
            bf16 and this processor does not compute in bf16.
    """

    name = "openvino"

    def __init__(self, file: Path | str, threads: int | None = None) -> None:
        openvino = require("openvino", self.name)
        core = openvino.Core()
        sealed = is_sealed(exists(file))
        with Path(file).open("rb") as content:
            if content.read(5) != b"<?xml":  # else OpenVINO tries what it knows of other frameworks' files on it
                raise damaged(file, ValueError("it is no XML"))
        try:
            model = core.read_model(str(file))
        except RuntimeError as error:
            raise damaged(file, error) from error
        stored = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        self.card = read_card(stored, file, sealed)
        self.precision = self.card.facts.get("exported", {}).get("precision", "fp32")
        if self.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InputError(
                f"{str(file)!r} was exported for bf16, in which this processor does not compute; export the run with "
                "--precision fp32 or int8."
            )
        # without the hint OpenVINO takes bf16 wherever the processor has it, and maps are no longer the network's
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32"}
        if checked_threads(threads):
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            self.compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise damaged(file, error) from error
        self.outputs = [output.get_any_name() for output in self.compiled.outputs]
        self.own = threading.local()  # a request holds one image batch at a time

    def __call__(self, images: Tensor) -> Output:
        if not hasattr(self.own, "request"):
            self.own.request = self.compiled.create_infer_request()
        found = self.own.request.infer({IMAGE: images.contiguous().numpy()})
        return Output(**{name: torch.from_numpy(found[index]) for index, name in enumerate(self.outputs)})


class ExportedEngine:
    """A program of torch.export, run by PyTorch on the CPU: no code of the network's is needed.

    Args:
        file: A .pt2 that radgaze exported; see :mod:`radgaze.inference.pt2` for how it is read.
        threads: Of PyTorch, for the whole process.

    Raises:
        InputError: The file is missing, changed since, holds what radgaze does not write, or has no model card.
    """

    name = "torch-export"

    def __init__(self, file: Path | str, threads: int | None = None) -> None:
        if checked_threads(threads):
            torch.set_num_threads(threads)  # type: ignore[arg-type]  # not None
        sealed = is_sealed(exists(file))
        self.program, self.outputs, card = pt2.read(Path(file))
        self.card = read_card(card, file, sealed)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        return Output(**dict(zip(self.outputs, self.program(images.contiguous()), strict=True)))


ENGINES: dict[str, type[OnnxEngine] | type[OpenVINOEngine] | type[ExportedEngine]] = {
    engine.name: engine for engine in (OnnxEngine, OpenVINOEngine, ExportedEngine)
}


def is_exported(path: Path | str) -> bool:
    """Whether a path names an exported file, or a folder with one, by its name alone."""
    path = Path(path)
    if path.is_dir():
        return not (path / "config.json").is_file() and any(path.glob("*.xml"))
    return path.suffix in SUFFIXES.values()


def open_model(path: Path | str, threads: int | None = None) -> tuple[ModelCard, Engine]:
    """An exported file, ready to run: ``.onnx``, ``.xml`` (or the folder that holds it) or ``.pt2``.

    Args:
        path: The file.
        threads: How many the engine computes with; all cores by default.

    Raises:
        InputError: Another kind of file, and whatever the engine refuses.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.xml"))
        if len(found) != 1:
            raise InputError(
                f"The folder {str(path)!r} holds {len(found)} OpenVINO models; expected one, so give the .xml itself."
            )
        path = found[0]
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            engine = ENGINES[name](path, threads)
            return engine.card, engine
    raise InputError(f"{str(path)!r} is no exported model; expected a file ending in .onnx, .xml or .pt2.")


def require(package: str, engine: str) -> Any:
    """Import a package of the extra ``deploy``. Nothing that it would tell its makers leaves the machine.

    Raises:
        InputError: It is not installed.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # openvino and nncf then send nothing
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f"{engine} needs the package {package}, which is not there ({error}); install it with "
            'pip install "radgaze[deploy]".'
        ) from error


def checked_threads(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, expected 1 or more; leave it out for all cores.")
    return threads


def exists(file: Path | str) -> Path:
    if not Path(file).is_file():
        raise InputError(f"There is no model {str(file)!r}; check the path, or export a run to it.")
    return Path(file)


def damaged(file: Path | str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"{str(file)!r} cannot be opened as a model ({reason[-1][:200]}); export the run again.")


def read_card(text: str | None, file: Path | str, sealed: bool) -> ModelCard:
    if not text:
        raise InputError(
            f"{str(file)!r} has no model card in it, so it is no model that radgaze exported; export the run again."
        )
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InputError(f"The model card in {str(file)!r} is damaged ({error}); export the run again.") from error
    card = ModelCard.from_json(content)
    if not sealed:
        raise InputError(
            f"{str(file)!r} has no checksum at its end, so it was changed by another program, or exported before there "
            "were checksums; export the run again."
        )
    return card
