"""The convolutional kernel redundancy measure (KRM) of every layer of a network.

    D_ij = mean over probe images x of d(a_i(x), a_j(x))
    KRM(layer) = 1 - K_τ / K                    KRM(network) = Σ_layers P KRM / Σ_layers P,  P the layer's parameters

a_i(x) is kernel i's perceived output image, d the perceived difference (:mod:`radgaze.redundancy.difference`), K_τ the
number of distinct kernels at threshold τ (:mod:`radgaze.redundancy.cover`). A kernel whose output is constant on every
probe image is dead: it counts in K and never in K_τ.

The idea is that of the convolutional kernel redundancy measure, arXiv 2212.00272, of which only the abstract was
available: a quantifiable evaluation of kernel redundancy based on perceived image differences. **The definition above
is this project's own.** Two choices the abstract leaves open:

- A kernel constant on some probe images, not on all, is live. On those images it is perceived as nothing, a map of
  zeros, and compared as such: another kernel that shows next to nothing there is close to it.
- A kernel's output is taken where its chain of normalisation and activation ends, before a residual addition
  (:mod:`radgaze.redundancy.capture`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from radgaze.errors import InputError, nearest
from radgaze.models.network import evaluating
from radgaze.redundancy.capture import After, read_chains, watch
from radgaze.redundancy.cover import check_threshold, count_distinct, distinct_kernels
from radgaze.redundancy.difference import Difference, find_difference, is_constant, perceived

__all__ = [
    "TAUS",
    "LayerRedundancy",
    "Layers",
    "Look",
    "Looking",
    "Looks",
    "RedundancyReport",
    "measure",
    "output_images",
]

Layers = str | type[nn.Module] | Sequence[str | type[nn.Module]]

TAUS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds of the curve over τ: 0.05 to 0.95."""


@dataclass(frozen=True)
class LayerRedundancy:
    """What one convolution's kernels show.

    Attributes:
        name: the module's name in the model.
        kernels: K, all kernels.
        distinct: K_τ at the report's τ.
        krm: 1 - K_τ / K, in [0, 1]; 1 if every kernel is dead.
        dead: (K,) bool, constant on every probe image.
        distinct_at: {τ: K_τ}, the curve, ascending in τ.
        parameters: weights and biases of the convolution.
        size: (h, w) of the output images, of the last call.
        taken: names of the operations from the convolution to the output taken, one tuple per call of the module.
        stands_for: (K,) for each kernel the distinct kernel nearest to it at τ, itself if distinct; -1 if dead.
        difference: (K, K) float32 mean difference D over the probe images, or None if not kept.
    """

    name: str
    kernels: int
    distinct: int
    krm: float
    dead: NDArray[np.bool_]
    distinct_at: dict[float, int]
    parameters: int
    size: tuple[int, int]
    taken: tuple[tuple[str, ...], ...]
    stands_for: NDArray[np.int64]
    difference: NDArray[np.float32] | None

    @property
    def krm_at(self) -> dict[float, float]:
        """{τ: KRM}, the curve."""
        return {tau: 1 - distinct / self.kernels for tau, distinct in self.distinct_at.items()}

    @property
    def clusters(self) -> list[NDArray[np.int64]]:
        """Each distinct kernel followed by the kernels it stands for: every live kernel once, largest cluster first.

        Within a cluster the most alike come first where ``difference`` was kept, else they stand by number.
        """
        found = []
        for kept in np.unique(self.stands_for[~self.dead]):
            others = np.flatnonzero((self.stands_for == kept) & (np.arange(self.kernels) != kept))
            if self.difference is not None:
                others = others[np.argsort(self.difference[kept, others], kind="stable")]
            found.append(np.concatenate([[kept], others]))
        return sorted(found, key=len, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """All but the name and ``difference``; ``dead`` as kernel numbers, ``distinct_at`` as K_τ by rising τ."""
        return {
            "kernels": self.kernels,
            "distinct": self.distinct,
            "dead": np.flatnonzero(self.dead).tolist(),
            "krm": self.krm,
            "parameters": self.parameters,
            "size": list(self.size),
            "taken": [list(operations) for operations in self.taken],
            "distinct_at": list(self.distinct_at.values()),
            "stands_for": self.stands_for.tolist(),
        }


@dataclass(frozen=True)
class RedundancyReport:
    """Kernel redundancy of a network, layer by layer in the order of the forward pass.

    Attributes:
        layers: by module name.
        tau: the threshold of ``krm`` and ``distinct``.
        images: number of probe images.
        left_out: why a chosen layer was not measured, by name: never called, or output of a single pixel.
    """

    layers: dict[str, LayerRedundancy]
    tau: float
    images: int
    left_out: dict[str, str]

    @property
    def parameters(self) -> int:
        """Parameters of the measured layers."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def kernels(self) -> int:
        return sum(layer.kernels for layer in self.layers.values())

    @property
    def distinct(self) -> int:
        return sum(layer.distinct for layer in self.layers.values())

    @property
    def dead(self) -> int:
        return sum(int(layer.dead.sum()) for layer in self.layers.values())

    @property
    def krm(self) -> float:
        """The network's KRM: the mean over layers, weighted by their parameters."""
        return sum(layer.parameters * layer.krm for layer in self.layers.values()) / self.parameters

    @property
    def krm_at(self) -> dict[float, float]:
        """{τ: KRM of the network}, the curve."""
        layers = self.layers.values()
        taus = next(iter(layers)).distinct_at
        return {tau: sum(layer.parameters * layer.krm_at[tau] for layer in layers) / self.parameters for tau in taus}

    def to_json(self) -> dict[str, Any]:
        """The network's figures, and ``layers`` by name in the order of the forward pass."""
        return {
            "tau": self.tau,
            "images": self.images,
            "network": {
                "krm": self.krm,
                "kernels": self.kernels,
                "distinct": self.distinct,
                "dead": self.dead,
                "parameters": self.parameters,
                "krm_at": list(self.krm_at.values()),
            },
            "taus": list(self.krm_at),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "left_out": self.left_out,
        }


def measure(
    model: nn.Module,
    images: Tensor,
    *,
    layers: Layers | None = None,
    after: str = "activation",
    difference: str | Difference = "mssim",
    tau: float = 0.5,
    taus: Sequence[float] = TAUS,
    keep_difference: bool = False,
    progress: bool = False,
    elsewhere: Iterable[Looks] | None = None,
) -> RedundancyReport:
    """Measure how many kernels of ``model`` show the eye something of their own.

    Runs the model in evaluation mode without gradients, one image at a time, on the device it is on; mode and hooks are
    as before afterwards. Memory: one layer's output and a (K, K) matrix per layer.

    Args:
        model: any network called as ``model(images)``.
        images: (N, C, H, W) probe images as the model takes them, N >= 2, none of them constant.
        layers: which modules: names, globs ("layer4.*"), module types, or several of these. None: every ``nn.Conv2d``
            and ``nn.ConvTranspose2d`` whose output has more than one pixel.
        after: where outputs are taken: "activation" as the next layer sees them, after normalisation and activation;
            "norm" after normalisation; "conv" as they leave the convolution.
        difference: a name in :data:`~radgaze.redundancy.difference.DIFFERENCES`, or a function from perceived images
            (K, h, w) in [0, 1] to (K, K) differences, symmetric with zero diagonal.
        tau: threshold in (0, 1) of ``krm`` and ``distinct``. Under MSSIM the useful range is about 0.3 to 0.8.
        taus: thresholds of the curve.
        keep_difference: keep each layer's D in the report.
        progress: show a progress bar.
        elsewhere: what :meth:`Looking.at` gives, image by image in their order, where others look at them.

    Raises:
        InputError: for a model without such layers, with NaN or infinite weights or outputs; for fewer than two images,
            constant, NaN or infinite images; a threshold outside (0, 1); an unknown layer, ``after`` or difference.
    """
    check_images(images)
    check_threshold("tau", tau)  # not after all images have been looked at
    for threshold in taus:
        check_threshold("a value in taus", threshold)
    looking = Looking(model, images[0], layers=layers, after=after, difference=difference)
    sums = {name: MeanDifference(looking.compare) for name in looking.convs}
    shown = Console(stderr=True)  # standard output is for results
    looks: Iterable[Looks | None] = repeat(None, len(images)) if elsewhere is None else elsewhere
    for number, found in enumerate(
        track(looks, "looking at kernels", len(images), console=shown, disable=not progress)
    ):
        if found is None:
            looking.at(images[number], number, lambda name, look: sums[name].include(look))
        else:
            for name, look in found:
                sums[name].include(look)

    taken: dict[str, list[tuple[str, ...]]] = {}
    for chain in looking.chains:
        taken.setdefault(chain.conv, []).append(chain.operations)
    left_out = {name: "the model never calls it" for name in looking.convs if name not in taken}
    left_out |= {name: "its output has a single pixel" for name in taken if sums[name].size == (1, 1)}
    measured = [name for name in taken if name not in left_out]
    if not measured:
        name, reason = next(iter(left_out.items()))
        raise InputError(f"No layer can be measured ({name!r}: {reason}): choose other layers or give larger images")
    return RedundancyReport(
        layers={
            name: _layer(name, looking.convs[name], sums[name], tuple(taken[name]), tau, taus, keep_difference)
            for name in measured
        },
        tau=tau,
        images=len(images),
        left_out=left_out,
    )


def output_images(
    model: nn.Module, image: Tensor, *, layers: Layers | None = None, after: str = "activation"
) -> dict[str, Tensor]:
    """What the kernels of some layers show on one image, as the eye perceives it.

    Args:
        model: as for :func:`measure`, and left as it was alike.
        image: (C, H, W), as the model takes it.
        layers: which modules; None: every convolution.
        after: where outputs are taken.

    Returns:
        {module name: (K, h, w) in [0, 1], on the CPU}, in the order of calls; of a module called several times its last
        output. A kernel constant on this image is zero everywhere.

    Raises:
        InputError: for an unknown layer or ``after``.
    """
    place = _place(after)
    convs = _choose(model, layers)
    like = next(model.parameters())
    probe = image[None].to(like.device, like.dtype)
    seen: dict[str, Tensor] = {}

    def take(name: str, output: Tensor) -> None:
        seen[name] = perceived(output[0]).cpu()

    with evaluating(model), torch.no_grad():
        watch(model, probe, convs, read_chains(model, probe, convs, place), take)
    return seen


@dataclass(frozen=True, eq=False)
class Look:
    """What the kernels of one layer show on one image.

    Attributes:
        size: (h, w) of the output images.
        pairs: for each output image (as a rule one) the kernels' differences (K, K), and which kernels are constant
            (K,); none where it is a single pixel.
    """

    size: tuple[int, int]
    pairs: list[tuple[Tensor, Tensor]]

    @classmethod
    def at(cls, output: Tensor, compare: Difference, name: str, image: int) -> Look:
        """Look at an output (B, K, h, w) of the layer ``name``, of image number ``image``.

        Raises:
            InputError: no such output, or it is not finite; a ``compare`` that gives another shape than (K, K).
        """
        if output.ndim != 4:
            raise InputError(
                f"Layer {name!r} gives an output of shape {tuple(output.shape)}, expected (B, K, h, w): leave it out"
            )
        if not torch.isfinite(output).all():
            raise InputError(
                f"Layer {name!r} gives NaN or infinite values on image {image}, expected finite ones: "
                "mend the weights, or scale the images as in training"
            )
        size = (output.shape[2], output.shape[3])
        pairs = [] if size == (1, 1) else [(compare(perceived(maps)), is_constant(maps)) for maps in output]
        for difference, constant in pairs:
            if difference.shape != (len(constant), len(constant)):
                raise InputError(
                    f"The difference gave shape {tuple(difference.shape)} for {len(constant)} images, "
                    f"expected ({len(constant)}, {len(constant)}): one value per pair"
                )
        return cls(size, pairs)


Looks = Iterable[tuple[str, Look]]
"""Of one image: layer and look for every call of a layer, in the order of calls."""


class Looking:
    """A model whose kernels are looked at: which of its layers, and what of their outputs.

    Args:
        model, layers, after, difference: as for :func:`measure`.
        image: (C, H, W), any that the model takes.

    Attributes:
        convs: the layers by name.
        chains: what is taken of them.
        compare: the difference.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        *,
        layers: Layers | None = None,
        after: str = "activation",
        difference: str | Difference = "mssim",
    ) -> None:
        place = _place(after)
        self.model, self.compare, self.convs = model, find_difference(difference), _choose(model, layers)
        check_weights(model)
        with evaluating(model), torch.no_grad():
            self.chains = read_chains(model, self._probe(image), self.convs, place)

    def at(self, image: Tensor, number: int, take: Callable[[str, Look], None]) -> None:
        """Run the model on an image (C, H, W); ``take(layer, look)`` is called for every call of a layer."""

        def look(name: str, output: Tensor) -> None:
            take(name, Look.at(output, self.compare, name, number))

        with evaluating(self.model), torch.no_grad():
            watch(self.model, self._probe(image), self.convs, self.chains, look)

    def _probe(self, image: Tensor) -> Tensor:
        like = next(self.model.parameters())
        return image[None].to(like.device, like.dtype)


class MeanDifference:
    """Differences of one layer's kernels, added up over its outputs.

    Attributes:
        difference: (K, K) their sum, on the outputs' device.
        dead: (K,) bool, constant on every output so far.
        outputs: how many were added.
        size: (h, w) of the last one.
    """

    def __init__(self, compare: Difference) -> None:
        self.compare = compare
        self.outputs = 0
        self.size = (0, 0)

    def add(self, output: Tensor, name: str, image: int) -> None:
        """Look at an output; see :meth:`Look.at`."""
        self.include(Look.at(output, self.compare, name, image))

    def include(self, look: Look) -> None:
        self.size = look.size
        for difference, constant in look.pairs:
            if self.outputs == 0:
                self.difference, self.dead = difference.float().clone(), constant
            else:
                self.difference += difference
                self.dead &= constant
            self.outputs += 1

    @property
    def mean(self) -> NDArray[np.float32]:
        """(K, K) D, the mean over the outputs."""
        return (self.difference / self.outputs).cpu().numpy()


def _layer(
    name: str,
    module: nn.Module,
    total: MeanDifference,
    taken: tuple[tuple[str, ...], ...],
    tau: float,
    taus: Sequence[float],
    keep_difference: bool,
) -> LayerRedundancy:
    difference = total.mean
    dead = total.dead.cpu().numpy()
    cover = distinct_kernels(difference, tau, dead)
    return LayerRedundancy(
        name=name,
        kernels=len(dead),
        distinct=len(cover),
        krm=1 - len(cover) / len(dead),
        dead=dead,
        distinct_at=count_distinct(difference, taus, dead),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        size=total.size,
        taken=taken,
        stands_for=cover.stands_for,
        difference=difference if keep_difference else None,
    )


def _choose(model: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    convs: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }
    if not convs:
        raise InputError(
            f"{type(model).__name__} has no convolution (nn.Conv2d or nn.ConvTranspose2d), expected one or more: "
            "give a convolutional network"
        )
    if layers is None:
        return convs
    chosen: set[str] = set()
    for wanted in [layers] if isinstance(layers, str | type) else layers:
        if isinstance(wanted, str):
            found = {name for name in convs if fnmatchcase(name, wanted)}
            if not found:
                raise InputError(f"No convolution is named {wanted!r}: {nearest(wanted, convs)}")
        else:
            found = {name for name, module in convs.items() if isinstance(module, wanted)}
            if not found:
                raise InputError(
                    f"{type(model).__name__} has no convolution of type {wanted.__name__}: "
                    "give nn.Conv2d, nn.ConvTranspose2d or a subclass that it uses"
                )
        chosen |= found
    if not chosen:
        raise InputError(
            "layers is empty, expected at least one layer: give names, globs or module types, or None for all"
        )
    return {name: module for name, module in convs.items() if name in chosen}


def _place(after: str) -> After:
    if after not in get_args(After):
        raise InputError(f"after is {after!r}: {nearest(str(after), get_args(After))}")
    return cast(After, after)


def check_weights(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"The model's {name!r} has NaN or infinite values: load weights that were trained without")


def check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.numel() == 0:
        raise InputError(f"images have shape {tuple(images.shape)}, expected (N, C, H, W): stack the probe images")
    if len(images) < 2:
        raise InputError(
            "images holds 1 image, expected at least 2: a difference seen on a single image may be that image's own, "
            "so give several probe images"
        )
    if not torch.isfinite(images).all():
        raise InputError("images have a NaN or infinite pixel, expected finite ones: mend or leave out that image")
    constant = images.flatten(1).amax(1) == images.flatten(1).amin(1)
    if constant.any():
        raise InputError(
            f"Image {int(constant.nonzero()[0, 0])} is constant, expected an image that shows something: leave it out"
        )
