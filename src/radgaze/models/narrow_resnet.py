"""A ResNet of any widths and depths, read off a plain dictionary: what simplification leaves of a large one.

Layers, names and start are those of timm's plain ResNets (He et al. 2016, stride in the 3x3 convolution; BatchNorm
scale 0 at the end of each residual branch), so weights move from one to the other as they are. There the width of a
stage decides all widths in it; here every convolution has its own, except that all blocks of a stage add to the same
channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.models.projection import Projection

__all__ = ["NarrowResNet", "ResidualBlock", "Stage", "read_resnet"]

Width = Annotated[int, Field(ge=1)]
STEM_STRIDE = 4


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Stage(Strict):
    """One stage.

    Attributes:
        width: Channels that its blocks add to.
        blocks: Inner widths of each block: two for a bottleneck (1x1, 3x3, then 1x1 to ``width``), one for a basic
            block (3x3, then 3x3 to ``width``).
        projection: Whether the first block's shortcut is a 1x1 convolution. False needs as many channels coming in as
            ``width``, and a stride of 1.
    """

    width: Width
    blocks: Annotated[list[Annotated[list[Width], Field(min_length=1, max_length=2)]], Field(min_length=1)]
    projection: bool = True


class Options(Strict):
    stem: Width
    stages: Annotated[list[Stage], Field(min_length=1)]
    output_stride: int = 32


class NarrowResNet(nn.Module):
    """Images ``(B, in_channels, H, W)`` to the last feature map ``(B, K, H / s, W / s)``.

    Args:
        in_channels: Image channels.
        stem: Kernels of the first convolution (7x7, stride 2, then a max-pooling of stride 2).
        stages: Fields of :class:`Stage`, one dictionary a stage.
        output_stride: Greatest stride; later stages dilate their convolutions instead of striding.

    Raises:
        InputError: Options that make no network.
    """

    name: ClassVar[str] = "narrow_resnet"

    def __init__(self, in_channels: int, stem: int, stages: list[Mapping[str, Any]], output_stride: int = 32) -> None:
        super().__init__()
        options = self.check({"stem": stem, "stages": stages, "output_stride": output_stride})
        self.conv1 = nn.Conv2d(in_channels, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        total_stride, dilation, incoming = STEM_STRIDE, 1, stem
        self.stages: list[str] = []
        for number, stage in enumerate(Stage(**fields) for fields in options["stages"]):
            stride = 1 if number == 0 else 2
            first_dilation = dilation  # the first block still reads the map of the stage before
            if total_stride >= output_stride:
                dilation, stride = dilation * stride, 1
            total_stride *= stride
            blocks: list[nn.Module] = []
            for inner in stage.blocks:
                first = not blocks
                blocks.append(
                    ResidualBlock(
                        [incoming, *inner, stage.width],
                        stride=stride if first else 1,
                        dilations=(first_dilation if first else dilation, dilation),
                        projection=stage.projection and first,
                    )
                )
                incoming = stage.width
            self.stages.append(f"layer{number + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.num_features = incoming
        self.output_stride = output_stride
        self.start()

    def start(self) -> None:
        """He's start for convolutions, and residual branches that begin as nothing."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, ResidualBlock):
                nn.init.zeros_(module.norms[-1].weight)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            maps = getattr(self, stage)(maps)
        return maps

    @property
    def options(self) -> dict[str, Any]:
        """What rebuilds this network, read off its layers as they are now."""
        stages = []
        for stage in self.stages:
            blocks: list[ResidualBlock] = list(getattr(self, stage))
            stages.append(
                {
                    "width": blocks[0].convs[-1].out_channels,
                    "blocks": [[conv.out_channels for conv in block.convs[:-1]] for block in blocks],
                    "projection": blocks[0].downsample is not None,
                }
            )
        return {"stem": self.conv1.out_channels, "stages": stages, "output_stride": self.output_stride}

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with their defaults.

        Raises:
            InputError: A missing or unknown option, or widths that make no network.
        """
        try:
            checked = Options(**options)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise InputError(
                f"Option {where!r} of {cls.name} cannot be used: {problem['msg'].lower()}; give stem, stages (each "
                "with width, blocks and projection) and output_stride."
            ) from None
        if checked.output_stride not in (8, 16, 32):
            raise InputError(f"output_stride of {cls.name} is {checked.output_stride}, expected 8, 16 or 32; use 32.")
        incoming, total_stride = checked.stem, STEM_STRIDE
        for number, stage in enumerate(checked.stages):
            strides = number > 0 and total_stride < checked.output_stride
            total_stride *= 2 if strides else 1
            if not stage.projection and (strides or stage.width != incoming):
                raise InputError(
                    f"Stage {number + 1} of {cls.name} has no projection, so its width must be the {incoming} channels "
                    f"that come in and its stride 1, not width {stage.width} and stride {2 if strides else 1}; "
                    "set projection to true."
                )
            incoming = stage.width
        return checked.model_dump()


class ResidualBlock(nn.Module):
    """``relu(x' + branch(x))``: a bottleneck of three convolutions or a basic block of two, each with BatchNorm.

    Args:
        widths: Channels in, after each convolution but the last, and out: four for a bottleneck, three for a basic
            block.
        stride: Of the first 3x3 convolution and of the projection.
        dilations: Of the first 3x3 convolution and of the second.
        projection: Whether ``x'`` is a 1x1 convolution of ``x``, and not ``x`` itself.
    """

    def __init__(self, widths: list[int], stride: int, dilations: tuple[int, int], projection: bool) -> None:
        super().__init__()
        self.dilations = dilations
        bottleneck = len(widths) == 4
        spatial = iter(zip(dilations, (stride, 1), strict=True))
        for number, (ins, outs) in enumerate(pairwise(widths), start=1):
            if bottleneck and number != 2:
                conv = nn.Conv2d(ins, outs, kernel_size=1, bias=False)
            else:
                dilation, step = next(spatial)
                conv = nn.Conv2d(ins, outs, kernel_size=3, stride=step, padding=dilation, dilation=dilation, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(outs))
        self.downsample = (
            nn.Sequential(Projection(widths[0], widths[-1], 1, stride=stride, bias=False), nn.BatchNorm2d(widths[-1]))
            if projection
            else None
        )

    @property
    def convs(self) -> list[nn.Conv2d]:
        return [module for name, module in self.named_children() if name.startswith("conv")]  # type: ignore[misc]

    @property
    def norms(self) -> list[nn.BatchNorm2d]:
        return [module for name, module in self.named_children() if name.startswith("bn")]  # type: ignore[misc]

    @property
    def is_removable(self) -> bool:
        """Whether the network fits together without this block: its shortcut is its input itself.

        A block that leads over to a larger dilation stays too: whichever took its place would have to change.
        """
        same = self.dilations[0] == self.dilations[1]
        return self.downsample is None and same and all(conv.stride == (1, 1) for conv in self.convs)

    def forward(self, maps: Tensor) -> Tensor:
        branch = maps
        *inner, last = zip(self.convs, self.norms, strict=True)
        for conv, norm in inner:
            branch = F.relu(norm(conv(branch)), inplace=True)
        conv, norm = last
        shortcut = maps if self.downsample is None else self.downsample(maps)
        return F.relu(norm(conv(branch)) + shortcut, inplace=True)


def read_resnet(backbone: nn.Module) -> dict[str, Any] | None:
    """Options of the :class:`NarrowResNet` that is this very network, or None if there is none.

    There is one for timm's plain ResNets of any depth and width: no other stem, no squeeze-and-excitation, no grouped
    convolutions, no anti-aliasing.
    """
    if isinstance(backbone, NarrowResNet):
        return backbone.options
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet  # heavy: only networks of timm pay for it

    if type(backbone) is not ResNet or not isinstance(backbone.conv1, nn.Conv2d):
        return None
    stages, dilated = [], 1
    for number in range(1, 1 + sum(name.startswith("layer") for name, _ in backbone.named_children())):
        blocks = list(getattr(backbone, f"layer{number}"))
        if any(type(block) not in (BasicBlock, Bottleneck) for block in blocks):
            return None
        first = blocks[0]
        convs = [[block.conv1, block.conv2, *([block.conv3] if hasattr(block, "conv3") else [])] for block in blocks]
        stages.append(
            {
                "width": convs[0][-1].out_channels,
                "blocks": [[conv.out_channels for conv in inner[:-1]] for inner in convs],
                "projection": first.downsample is not None,
            }
        )
        dilated = max(dilated, *(conv.dilation[0] for inner in convs for conv in inner))
    options = {
        "stem": backbone.conv1.out_channels,
        "stages": stages,
        "output_stride": STEM_STRIDE * 2 ** (len(stages) - 1) // dilated,
    }
    try:
        twin = NarrowResNet(backbone.conv1.in_channels, **options)
    except InputError:
        return None
    return options if layers(twin) == layers(backbone) else None


def layers(network: nn.Module) -> dict[str, str]:
    """Every layer by name, as torch prints it, but for ReLUs, which are functions here."""
    leaves = {name: module for name, module in network.named_modules() if not any(module.children())}
    shown = {name: repr(module) for name, module in leaves.items() if not isinstance(module, nn.ReLU | nn.Identity)}
    return {name: text.replace("Projection(", "Conv2d(") for name, text in shown.items()}
