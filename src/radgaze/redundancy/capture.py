"""A convolution's output as the next layer sees it: what leaves its chain of normalisation and activation.

The chain starts at a convolution's output and grows as long as that value goes into exactly one operation, and that
operation is a normalisation or an activation (identity and dropout are stepped over). It ends

- where the value is added, concatenated, pooled, reshaped or convolved: in a ResNet block, the last convolution's chain
  ends before the residual addition, at the normalisation's output, because the sum mixes the kernels of two layers;
- where the value goes into several operations, as in networks that normalise before they convolve (pre-activation
  ResNets, DenseNet), because no single one of them is "the" next layer.

The chain is read off a real run on the first image: a ``TorchFunctionMode`` sees every operation, called from a module
or as a function, in place or not, under any control flow, where symbolic tracing would stop at the first shape check.
Each later run hands over the value at the same operation as soon as it exists, before anything can overwrite it, so no
feature map outlives its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from radgaze.errors import InputError

__all__ = ["After", "Chain", "read_chains", "watch"]

After = Literal["conv", "norm", "activation"]
Kind = Literal["conv", "norm", "activation", "pass", "other"]

ACTIVATION_CLASSES = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin", "GLU")
)
PASS_CLASSES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NORM_FUNCTIONS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm"}
ACTIVATION_FUNCTIONS = {
    *(
        "relu",
        "relu6",
        "leaky_relu",
        "rrelu",
        "prelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "tanh",
    ),
    *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "softplus", "softsign"),
    *("logsigmoid", "threshold", "clamp", "clamp_min"),
}
PASS_FUNCTIONS = {"dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "contiguous"}


@dataclass(frozen=True)
class Operation:
    """One call in a run: its place in the order of calls, and which values went in and came out."""

    number: int
    name: str
    kind: Kind
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Chain:
    """What is taken for one call of a convolution.

    Attributes:
        conv: the module's name.
        operations: names of the convolution and of the operations up to the value taken: of modules as in the model,
            of functions as in ``torch.nn.functional``.
        number: the operation whose output is taken, in the order of calls.
    """

    conv: str
    operations: tuple[str, ...]
    number: int


def read_chains(model: nn.Module, image: Tensor, convs: Mapping[str, nn.Module], after: After) -> list[Chain]:
    """Run ``model`` on ``image`` and follow the output of every call of ``convs``, in the order of calls.

    A convolution that the model never calls has no chain; one called several times has several.
    """
    operations: list[Operation] = []
    with _Recorder(model, convs, lambda operation, _: operations.append(operation)):
        model(image)
    readers: dict[int, list[Operation]] = {}
    for operation in operations:
        for value in set(operation.inputs):
            readers.setdefault(value, []).append(operation)
    return [_follow(start, readers, after) for start in operations if start.kind == "conv"]


def watch(
    model: nn.Module,
    image: Tensor,
    convs: Mapping[str, nn.Module],
    chains: list[Chain],
    take: Callable[[str, Tensor], None],
) -> None:
    """Run ``model`` on ``image``; ``take(conv name, output)`` is called for every chain as soon as its value exists.

    Raises:
        InputError: the model called other operations than when the chains were read.
    """
    waiting = {chain.number: chain for chain in chains}

    def look(operation: Operation, output: Tensor | None) -> None:
        chain = waiting.pop(operation.number, None)
        if chain is None:
            return
        if output is None or operation.name != chain.operations[-1]:
            raise _changed(chain)
        take(chain.conv, output)

    with _Recorder(model, convs, look):
        model(image)
    for chain in waiting.values():
        raise _changed(chain)


def _changed(chain: Chain) -> InputError:
    return InputError(
        f"The model runs other operations after {chain.conv!r} on one image than on another, expected the same ones: "
        "give images of one size to a model without random branches"
    )


def _follow(start: Operation, readers: Mapping[int, list[Operation]], after: After) -> Chain:
    wanted = {"conv": (), "norm": ("norm",), "activation": ("norm", "activation")}[after]
    path, taken = [start], 1
    while len(following := readers.get(path[-1].output, [])) == 1 and following[0].kind in (*wanted, "pass"):
        path.append(following[0])
        if path[-1].kind != "pass":
            taken = len(path)
    path = path[:taken]
    return Chain(start.name, tuple(step.name for step in path if step.kind != "pass"), path[-1].number)


class _Recorder(TorchFunctionMode):
    """Reports every operation of the run inside its block.

    A convolution, normalisation or activation module is one operation under its own name; the functions it calls
    within are not reported. The hooks go when the block ends.
    """

    def __init__(
        self, model: nn.Module, convs: Mapping[str, nn.Module], look: Callable[[Operation, Tensor | None], None]
    ) -> None:
        super().__init__()
        self.look = look
        self.values = WeakIdKeyDictionary()  # which value a tensor holds at this moment; keeps no tensor alive
        self.operations = self.last_value = self.depth = 0
        self.modules: dict[nn.Module, tuple[str, Kind]] = {module: (name, "conv") for name, module in convs.items()}
        for name, module in model.named_modules():
            kind = _kind_of_module(module)
            if kind is not None:
                self.modules.setdefault(module, (name, kind))
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for module in self.modules:
            self.hooks.append(module.register_forward_pre_hook(self._module_starts))
            self.hooks.append(module.register_forward_hook(self._module_ends, with_kwargs=True))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self.hooks:
            hook.remove()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.depth:
            return function(*args, **kwargs)
        inputs = self._read(args, kwargs)
        output = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        self._record(name, _kind_of_function(name), inputs, output)
        return output

    def _module_starts(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.depth += 1

    def _module_ends(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Functions inside were not recorded, so an argument changed in place still has the number it came with.
        self.depth -= 1
        name, kind = self.modules[module]
        super().__exit__(None, None, None)  # what the observer computes is no part of the model
        try:
            self._record(name, kind, self._read(args, kwargs), output)
        finally:
            super().__enter__()

    def _read(self, *arguments: Any) -> tuple[int, ...]:
        return tuple(self.values[tensor] for tensor in _tensors(arguments) if tensor in self.values)

    def _record(self, name: str, kind: Kind, inputs: tuple[int, ...], output: Any) -> None:
        outputs = list(_tensors(output))
        if not outputs:  # a question about a tensor, such as its shape
            return
        for tensor in outputs:
            self.last_value += 1
            self.values[tensor] = self.last_value
        operation = Operation(self.operations, name, kind, inputs, self.last_value)
        self.operations += 1
        self.look(operation, output if isinstance(output, Tensor) else None)


def _kind_of_module(module: nn.Module) -> Kind | None:
    """None for modules that are read by the functions and modules inside them."""
    if any(module.children()):
        return None
    if isinstance(module, PASS_CLASSES):
        return "pass"
    if isinstance(module, ACTIVATION_CLASSES) or type(module).__module__.startswith("timm.layers.activations"):
        return "activation"
    return "norm" if "Norm" in type(module).__name__ else None


def _kind_of_function(name: str) -> Kind:
    plain = name.removesuffix("_")  # in place or not
    if plain in NORM_FUNCTIONS:
        return "norm"
    if plain in ACTIVATION_FUNCTIONS:
        return "activation"
    return "pass" if plain in PASS_FUNCTIONS else "other"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
