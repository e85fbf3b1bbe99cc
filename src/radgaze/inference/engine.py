"""Engines: what runs a network. All take the same images and return the same :class:`~radgaze.models.Output`.

The others than PyTorch run a file that :func:`radgaze.export` wrote. It holds its model card, so it needs neither the
run nor the cohort. Nothing in such a file is pickled, and opening one runs nothing that was put there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from radgaze.errors import InputError, nearest
from radgaze.inference import pt2
from radgaze.inference.card import ModelCard
from radgaze.models import Network, Output

__all__ = ["FORMATS", "Engine", "ExportedEngine", "OnnxEngine", "OpenVINOEngine", "TorchEngine", "open_model"]

CARD, PRECISION = "radgaze", "radgaze_precision"  # keys of a file's metadata
INPUT = "image"


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
    """ONNX Runtime on the CPU.

    Args:
        path: A file of :func:`radgaze.export`.
        threads: Of one forward pass; the cores by default.

    Raises:
        InputError: Not such a file, or damaged.
    """

    name = "onnx"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.session = opened(path, lambda: runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        self.card = read_card(self.session.get_modelmeta().custom_metadata_map.get(CARD), path)
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: Tensor) -> Output:
        found = self.session.run(self.outputs, {INPUT: images.contiguous().numpy()})
        return Output(**{name: torch.from_numpy(part) for name, part in zip(self.outputs, found, strict=True)})


class OpenVINOEngine:
    """OpenVINO on the CPU, in the precision that the file was exported for.

    Args:
        path: The ``.xml`` of :func:`radgaze.export`, its ``.bin`` beside it.
        threads: Of one forward pass; the cores by default.

    Raises:
        InputError: Not such a file, or damaged.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        openvino = needed("openvino")
        model = opened(path, lambda: openvino.Core().read_model(path))
        card = model.get_rt_info([CARD]).value if model.has_rt_info([CARD]) else None
        self.card = read_card(card, path)
        self.compiled = compiled(model, model.get_rt_info([PRECISION]).value, threads)

    def __call__(self, images: Tensor) -> Output:
        return run_compiled(self.compiled, images)


def compiled(model: Any, precision: str, threads: int | None = None) -> Any:
    """An OpenVINO model ready to run; ``precision`` is what its floating-point layers compute in."""
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    return needed("openvino").Core().compile_model(model, "CPU", settings)


def run_compiled(model: Any, images: Tensor) -> Output:
    found = model.create_infer_request().infer({INPUT: images.contiguous().numpy()})
    parts = {port.get_any_name(): torch.from_numpy(part.copy()) for port, part in found.items()}
    return Output(**{name: part.float() for name, part in parts.items()})


class ExportedEngine:
    """PyTorch, running the graph of a ``.pt2`` file: no code of radgaze's networks.

    Args:
        path: A file of :func:`radgaze.export`.
        threads: PyTorch's threads are the whole process's, so they are not this engine's to set; see
            ``torch.set_num_threads``.

    Raises:
        InputError: Not such a file, or damaged.
    """

    name = "torch-export"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.module, self.outputs, card = pt2.read(path)
        self.card = read_card(card, path)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Output:
        return Output(**dict(zip(self.outputs, self.module(images.contiguous()), strict=True)))


FORMATS: Mapping[str, tuple[str, Callable[[Path, int | None], Any]]] = {
    "onnx": (".onnx", OnnxEngine),
    "openvino": (".xml", OpenVINOEngine),
    "torch-export": (".pt2", ExportedEngine),
}


def open_model(path: Path, threads: int | None = None) -> tuple[ModelCard, Engine]:
    """An exported file's card, and the engine that runs it.

    Raises:
        InputError: No file, another kind of file, one that radgaze has not exported, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}; give a run's folder or a file of radgaze export.")
    for suffix, engine in FORMATS.values():
        if path.suffix == suffix:
            made = engine(path, threads)
            return made.card, made
    known = ", ".join(suffix for suffix, _ in FORMATS.values())
    raise InputError(f"{str(path)!r} is no exported model; expected a file that ends in {known}, or a run's folder.")


def check_format(name: str) -> None:
    if name not in FORMATS:
        raise InputError(f"There is no format {name!r}: {nearest(name, FORMATS)}")


def needed(package: str) -> Any:
    """An optional package.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise InputError(
            f"This needs the package {package!r}, which is not installed; run: pip install 'radgaze[deploy]'."
        ) from None


def opened(path: Path, reading: Callable[[], Any]) -> Any:
    try:
        return reading()
    except Exception as error:  # each library has its own kinds for a file it cannot read
        reason = str(error).strip().splitlines()
        raise InputError(
            f"The exported model {str(path)!r} cannot be read ({type(error).__name__}: {reason[0] if reason else ''}); "
            "export the run again."
        ) from error


def read_card(text: str | None, path: Path) -> ModelCard:
    if not text:
        raise InputError(f"{str(path)!r} holds no model card, so it is not of radgaze export; export the run again.")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The model card in {str(path)!r} is damaged ({error}); export the run again.") from error
    return ModelCard.from_json(content)
