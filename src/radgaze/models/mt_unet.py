"""MT-UNet: one U-Net that predicts where a radiologist looks and what is wrong.

    S^ = log-softmax over all pixels of the saliency head,      logits = MLP(GAP(bottleneck) ++ GAP(last decoder map))

Zhu, Rohling, Salcudean, *Multi-task UNet: Jointly Boosting Saliency Prediction and Disease Classification on Chest
X-ray Images*, arXiv 2202.07118 (2022). The layers follow the paper and its released code: five levels of widths
``w * (1, 2, 4, 8, 16)``, two [3x3 conv with bias, BN, ReLU] a level, nearest upsampling followed by a 3x3 convolution,
the skip first in each concatenation, no attention gates. 34,632,836 parameters at ``width=64`` with 3 classes.

Deviations: the base width is an argument (the released code chose 64 or 2 by the working directory), and the same two
heads may sit on any encoder of segmentation-models-pytorch or timm.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from radgaze.errors import InputError, nearest
from radgaze.models.network import Network, as_input, check_multiple
from radgaze.models.output import Output
from radgaze.models.weights import load_encoder_weights

__all__ = ["MTUNet"]

HIDDEN_FEATURES_WITH_ENCODER = 64  # the class head's hidden width where there is no base width to follow


class MTUNet(Network):
    """U-Net with a class head and a saliency head.

    Args:
        num_classes: Classes ``C``; 0 builds no class head (saliency alone).
        in_channels: Image channels: 1 for radiographs; 3 repeats grey images, for weights that want colour.
        width: Base width ``w``; level ``l`` has ``w * 2**l`` channels. Ignored when ``encoder`` is given.
        encoder: Name of a segmentation-models-pytorch encoder (``"resnet34"``) or of a timm network
            (``"tu-convnext_tiny"``); ``None`` is the paper's own encoder.
        weights: For ``encoder`` only: ``"hub"`` downloads its ImageNet weights, a path loads a safetensors file,
            ``None`` starts from scratch. Not part of :attr:`config`: a rebuilt network gets its own trained weights.

    Raises:
        InputError: Unknown encoder, widths or classes that make no network, weights that do not fit.
    """

    name = "mt-unet"
    predicts_attention = True

    def __init__(
        self,
        num_classes: int = 3,
        in_channels: int = 1,
        width: int = 64,
        encoder: str | None = None,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 0 or in_channels < 1 or width < 1:
            raise InputError(
                f"MTUNet got num_classes={num_classes}, in_channels={in_channels}, width={width}; "
                "expected num_classes >= 0 and the others >= 1."
            )
        if weights is not None and encoder is None:
            raise InputError(
                f"weights={str(weights)!r} need an encoder to load into; name one, e.g. encoder='resnet34'."
            )
        self.config: dict[str, Any] = {
            "name": self.name,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "width": width,
            "encoder": encoder,
        }
        self.body: UNetBody | EncoderBody
        if encoder is None:
            self.body = UNetBody(in_channels, width)
            hidden = width
        else:
            self.body = EncoderBody(encoder, in_channels, weights)
            hidden = HIDDEN_FEATURES_WITH_ENCODER
        pooled = self.body.bottleneck_channels + self.body.decoded_channels
        self.class_head = class_head(pooled, hidden, num_classes) if num_classes else None
        self.saliency_head = saliency_head(self.body.decoded_channels)

    def attention_size(self, size: tuple[int, int]) -> tuple[int, int]:
        check_multiple(size, self.body.multiple)
        return size

    @property
    def explained_layer(self) -> nn.Module | None:
        """The bottleneck, the last feature map of the encoder, as is usual for Grad-CAM.

        The class head pools the last decoder map too. That one is computed from the bottleneck, so a logit's gradient
        at the bottleneck has both ways in it; what reaches the decoder through the skips alone is not explained.
        """
        return self.body.bottleneck if self.class_head is not None else None

    def forward(self, images: Tensor) -> Output:
        """Images ``(B, in_channels or 1, H, W)`` in [0, 1] to logits and ``saliency_logits`` ``(B, H, W)``."""
        images = as_input(images, self.config["in_channels"], self.body.multiple)
        bottleneck, decoded = self.body(images)
        logits = None
        if self.class_head is not None:
            logits = self.class_head(torch.cat([bottleneck.mean((-2, -1)), decoded.mean((-2, -1))], dim=1))
        return Output(logits=logits, saliency_logits=self.saliency_head(decoded).squeeze(1))


class UNetBody(nn.Module):
    """The paper's U-Net: images to (bottleneck ``(B, 16w, H/16, W/16)``, last decoder map ``(B, w, H, W)``)."""

    multiple = 16  # four poolings

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.bottleneck_channels, self.decoded_channels = widths[-1], widths[0]
        self.encoder = nn.ModuleList(double_conv(i, o) for i, o in pairwise([in_channels, *widths]))
        self.pool = nn.MaxPool2d(2)
        deepest_first = widths[::-1]
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *conv_bn_relu(i, o))
            for i, o in pairwise(deepest_first)
        )
        # a concatenation of skip and upsampled map has as many channels as the level below
        self.decoder = nn.ModuleList(double_conv(i, o) for i, o in pairwise(deepest_first))

    @property
    def bottleneck(self) -> nn.Module:
        """The layer that ends in the bottleneck."""
        return self.encoder[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = [self.encoder[0](images)]
        for level in self.encoder[1:]:
            maps.append(level(self.pool(maps[-1])))
        bottleneck = decoded = maps.pop()
        for up, level in zip(self.up, self.decoder, strict=True):
            decoded = level(torch.cat([maps.pop(), up(decoded)], dim=1))
        return bottleneck, decoded


class EncoderBody(nn.Module):
    """Any pretrained encoder with segmentation-models-pytorch's U-Net decoder, in the place of :class:`UNetBody`."""

    multiple = 32  # five halvings

    def __init__(self, encoder: str, in_channels: int, weights: str | Path | None) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp  # heavy: only networks with a named encoder pay for it
        import timm
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        known = set(smp.encoders.get_encoder_names())
        if encoder not in known and not (encoder.startswith("tu-") and timm.is_model(encoder.removeprefix("tu-"))):
            options = known | {f"tu-{name}" for name in timm.list_models()}
            raise InputError(f"There is no encoder {encoder!r}: {nearest(encoder, options)}")
        from_hub = str(weights) == "hub"
        try:
            self.encoder = smp.encoders.get_encoder(
                encoder, in_channels=in_channels, depth=5, weights="imagenet" if from_hub else None
            )
        except (OSError, ConnectionError) as error:
            raise InputError(
                f"The weights of encoder {encoder!r} could not be fetched from the hub ({error}); "
                "go online, or pass a local safetensors file as weights."
            ) from error
        if weights is not None and not from_hub:
            load_encoder_weights(self.encoder, Path(weights))
        self.bottleneck = nn.Identity()  # the encoder returns a list of maps: this layer's output is its last
        decoder_channels = (256, 128, 64, 32, 16)
        self.bottleneck_channels, self.decoded_channels = self.encoder.out_channels[-1], decoder_channels[-1]
        self.decoder = UnetDecoder(
            encoder_channels=self.encoder.out_channels, decoder_channels=decoder_channels, n_blocks=5
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        *skips, deepest = self.encoder(images)
        bottleneck = self.bottleneck(deepest)
        return bottleneck, self.decoder([*skips, bottleneck])


def conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn_relu(in_channels, out_channels), *conv_bn_relu(out_channels, out_channels))


def class_head(in_features: int, hidden: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.Dropout(0.25), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes)
    )


def saliency_head(channels: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn_relu(channels, channels), nn.Conv2d(channels, 1, kernel_size=1))
