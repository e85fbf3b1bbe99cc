"""Exported programs of PyTorch (.pt2), written without a pickle and read without running anything that was put there.

``torch.export.load`` trusts its file: it unpickles records, evaluates symbols of shapes as Python and finds operators
by any name under ``torch``. What radgaze writes needs none of it. :func:`read` looks at the archive first and opens it
only if it holds plain tensors, a graph of ATen operators and names, and nothing more.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from radgaze.errors import InputError
from radgaze.models import Network, Output

__all__ = ["read", "trace", "write"]

CARD = "radgaze.json"
GRAPH, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
TENSORS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
RECORDS = re.compile(
    rf"{re.escape(GRAPH)}|{re.escape(SAMPLES)}|{'|'.join(map(re.escape, TENSORS))}|data/weights/weight_\d+"
    rf"|data/constants/tensor_\d+|extra/{re.escape(CARD)}|archive_format|archive_version|version|byteorder|\.data/\w+"
)
NAME = re.compile(r"[\w.]*")
OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.getitem")
SHAPE = re.compile(
    r"(?:Symbol\('s\d+', positive=True, integer=True\)|Integer\(-?\d+\)|-?\d+|Mul\(|Add\(|s\d+|[), ])+"
)  # with no other call in it there is nothing to run
TREE = re.compile(r'(?:"(?:type|context|children_spec|null|\[\]|builtins\.(?:tuple|list|dict))"|null|\d|[\[\]{}:, ])*')


class Parts(torch.nn.Module):
    """A network whose output is the tuple of the parts it has."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part for part in self.network(image) if part is not None)


def trace(network: Network, images: torch.Tensor) -> tuple[ExportedProgram, list[str]]:
    """The graph of a network for images of one size in batches of any, and the names of its outputs.

    Args:
        network: In evaluation mode, on the CPU; its parameters stop asking for gradients.
        images: ``(B, 1, h, w)`` with B > 1, of the size that the graph shall take.
    """
    network = network.requires_grad_(False)
    with torch.no_grad():
        output = network(images)
        names = [name for name in Output._fields if getattr(output, name) is not None]
        with silent():
            program = torch.export.export(
                Parts(network), (images,), dynamic_shapes={"image": {0: Dim("batch", min=1)}}
            ).run_decompositions({})  # regions of autocasting dissolve
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta = {key: value for key, value in node.meta.items() if key == "val"}  # no lines of source files
    program.example_inputs = None  # the only part that would be pickled
    return program, names


def write(program: ExportedProgram, names: list[str], card: str, path: Path) -> None:
    """Write a program with its outputs' names and the card's JSON."""
    archive = io.BytesIO()
    extra = {CARD: json.dumps({"outputs": names, "card": json.loads(card)}, ensure_ascii=False)}
    torch.export.save(program, archive, extra_files=extra)
    path.write_bytes(archive.getvalue())


def read(path: Path) -> tuple[torch.nn.Module, list[str], str]:
    """The program in a file, ready to be called with ``image``, its outputs' names and the card's JSON.

    Raises:
        InputError: Not a .pt2 that radgaze wrote, damaged, with something in it that could run code, or from a
            PyTorch whose files this one cannot read.
    """
    content = path.read_bytes()
    try:
        extra = json.loads(checked(content, path))
        with silent():
            program = torch.export.load(io.BytesIO(content))
        return program.module(), list(extra["outputs"]), json.dumps(extra["card"])
    except InputError:
        raise
    except Exception as error:  # torch raises anything from RuntimeError to AssertionError
        raise InputError(
            f"{str(path)!r} is damaged, or was written by a PyTorch that {torch.__version__} cannot read "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); export the run again."
        ) from error


def checked(content: bytes, path: Path) -> str:
    """The text beside the graph in an archive, once nothing in it can run code."""
    from torch.export.pt2_archive import PT2ArchiveReader

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        listed = archive.namelist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise refused(path, "compressed records")
    records = [name.partition("/")[2] for name in listed]
    if len({name.partition("/")[0] for name in listed}) != 1 or len(set(listed)) != len(listed):
        raise refused(path, "more than one archive")
    for record in records:
        if not RECORDS.fullmatch(record):
            raise refused(path, f"a record {record!r}")
    if f"extra/{CARD}" not in records:
        raise InputError(
            f"{str(path)!r} has no model card in it, so it is no model that radgaze exported; export the run again."
        )
    reader = PT2ArchiveReader(io.BytesIO(content))
    if reader.read_bytes(SAMPLES):
        raise refused(path, "pickled sample inputs")
    for name in TENSORS:
        for tensor in json.loads(reader.read_string(name))["config"].values():
            if tensor["use_pickle"] or not NAME.fullmatch(tensor["path_name"]):
                raise refused(path, "pickled tensors")
    for place, text in strings(json.loads(reader.read_string(GRAPH))):
        if not allowed(place, text):
            raise refused(path, f"{place} {text[:60]!r}")
    return reader.read_string(f"extra/{CARD}")


def allowed(place: str, text: str) -> bool:
    """Whether a string of the graph is a plain name, an ATen operator, a shape or a tree of tuples."""
    if place == "target":
        return OPERATOR.fullmatch(text) is not None
    if place == "expr_str":
        return SHAPE.fullmatch(text) is not None
    if place in ("in_spec", "out_spec"):
        return TREE.fullmatch(text) is not None
    return place == "torch_version" or (place != "guards_code" and NAME.fullmatch(text) is not None)


def strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every string in JSON, keys too, with the key it stands under."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry, place)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield "a key", key
            yield from strings(entry, key)


def refused(path: Path, what: str) -> InputError:
    return InputError(
        f"{str(path)!r} holds {what}, which radgaze does not write and which could run code when opened or fill the "
        "memory; use a file that radgaze export wrote."
    )


@contextmanager
def silent() -> Iterator[None]:
    """Without what torch says to its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch._export.serde.serialize")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
