"""The papers' way of preparing a study of EGD-CXR, written as plainly as their released code does it.

For each study: the DICOM's pixels over their maximum, centred on 3200x2560; the gaze counted per pixel, blurred with
501 taps, centred likewise, min-max scaled; the two lungs' masks united, and the mediastinum's; then every fifth pixel
of all of them, saved with `torch.save`. The strided views keep their whole base, so a file holds all pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pydicom
import torch
from numpy.typing import NDArray
from torch import Tensor

CANVAS = (3200, 2560)
STRIDE = 5
MASKS = ("left_lung", "right_lung", "mediastanum")

Image = NDArray[np.floating]


def centred(image: NDArray[Any]) -> NDArray[Any]:
    """The image in the middle of a canvas of zeros."""
    padded = np.zeros(CANVAS, image.dtype)
    top, left = (CANVAS[0] - image.shape[0]) // 2, (CANVAS[1] - image.shape[1]) // 2
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded


def gaze_map(gaze: pd.DataFrame, size: tuple[int, int]) -> Image:
    """The blurred counts of the samples on the image, at full resolution, in [0, 1]."""
    counts = np.zeros(size, np.float32)
    x, y = gaze["X_ORIGINAL"].to_numpy(), gaze["Y_ORIGINAL"].to_numpy()
    inside = (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0])
    np.add.at(counts, (y[inside].astype(int), x[inside].astype(int)), 1)
    blurred = cv2.GaussianBlur(counts, (501, 501), 0)
    return (blurred - blurred.min()) / (blurred.max() - blurred.min())


def prepare(dicom: Path, masks: Path, gaze: pd.DataFrame, file: Path) -> None:
    """One study into one file of tensors."""
    pixels = pydicom.dcmread(dicom).pixel_array.astype(np.float32)
    outside = np.zeros(pixels.shape, np.uint8)
    left, right, heart = (cv2.imread(str(masks / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for name in MASKS)
    lungs = (outside if left is None else left) | (outside if right is None else right)
    tensors = {
        "image": torch.from_numpy(centred(pixels / pixels.max())),
        "gaze": torch.from_numpy(centred(gaze_map(gaze, pixels.shape))),
        "lungs": torch.from_numpy(centred((lungs > 0).astype(np.uint8))),
        "heart": torch.from_numpy(centred(((outside if heart is None else heart) > 0).astype(np.uint8))),
    }
    torch.save({name: tensor[None, ::STRIDE, ::STRIDE] for name, tensor in tensors.items()}, file)


class PreparedStudies(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The prepared files, one study an item."""

    def __init__(self, files: list[Path], repeats: int = 1) -> None:
        self.files = files * repeats

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = torch.load(self.files[index], weights_only=True)
        return tensors
