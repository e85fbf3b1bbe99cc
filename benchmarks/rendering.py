"""Attention maps by matrix product against the papers' full-resolution OpenCV blur.

    python benchmarks/rendering.py [--rounds N] [--points N]

Reference: count image of 3056x2544 float32, `cv2.GaussianBlur` of 501 taps with sigma 0 and the default border, zero
padding, then every fifth pixel of 3200x2560 (640x512) min-max scaled, or for a CAM every 64th of 3072x2560 (48x40)
over its maximum. OpenCV uses every core, as it does by default. All ways take turns in every round; a time is the
median over rounds, a ratio the median of the rounds' own ratios, with the extremes. The error is the largest
difference from the same reference blurred in float64, in a map whose maximum is 1.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import cv2
import numpy as np
from numpy.typing import NDArray

from _timing import alternate, machine, ratio
from radgaze.gaze import Gaze, Grid, render, render_batch

Image = NDArray[np.floating]

SOURCE = (3056, 2544)
MAP_CANVAS, MAP_STRIDE = (3200, 2560), 5
CAM_CANVAS, CAM_STRIDE = (3072, 2560), 64
STUDIES = 64


def positions(points: int, seed: int) -> NDArray[np.int64]:
    """(N, 2) whole x, y on the image: most samples over the two lungs, some anywhere."""
    rng = np.random.default_rng(seed)
    lungs = np.array([[850, 1300], [1700, 1300]])[rng.integers(0, 2, points)]
    anywhere = rng.random((points, 2)) * SOURCE[::-1]
    drawn = np.where(rng.random((points, 1)) < 0.8, rng.normal(lungs, [300, 550]), anywhere)
    return np.clip(drawn, 0, np.array(SOURCE[::-1]) - 1).astype(np.int64)


def blur_and_stride(xy: NDArray[np.int64], canvas: tuple[int, int], stride: int, dtype: type = np.float32) -> Image:
    """The papers' map, unscaled."""
    image = np.zeros(SOURCE, dtype)
    np.add.at(image, (xy[:, 1], xy[:, 0]), 1)
    padded = np.zeros(canvas, dtype)
    top, left = (canvas[0] - SOURCE[0]) // 2, (canvas[1] - SOURCE[1]) // 2
    padded[top : top + SOURCE[0], left : left + SOURCE[1]] = cv2.GaussianBlur(image, (501, 501), 0)
    return padded[::stride, ::stride]


def min_max(image: Image) -> Image:
    return (image - image.min()) / (image.max() - image.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--points", type=int, default=1500)
    arguments = parser.parse_args()

    studies = [positions(arguments.points, seed) for seed in range(STUDIES)]
    gazes = [Gaze(xy[:, 0], xy[:, 1]) for xy in studies]
    xy, gaze = studies[0], gazes[0]
    between = Gaze(xy[:, 0] + 0.25, xy[:, 1] + 0.25)
    map_grid = Grid.strided(SOURCE, MAP_STRIDE, MAP_CANVAS)
    cam_grid = Grid.strided(SOURCE, CAM_STRIDE, CAM_CANVAS)
    # A grid never seen before has no table yet: what the first study of an image shape costs.
    unseen = (Grid(640, 512, -72.0 - 0.01 * i, -8.0 - 0.01 * i, 5.0, 5.0) for i in itertools.count(1))

    map_blur, cam_blur = "blur, pad, every 5th pixel, min-max", "blur, pad, every 64th pixel, over maximum"
    ways = {
        map_blur: lambda: min_max(blur_and_stride(xy, MAP_CANVAS, MAP_STRIDE)),
        "640x512": lambda: render(gaze, SOURCE, grid=map_grid),
        "640x512, first of an image shape": lambda: render(gaze, SOURCE, grid=next(unseen)),
        "640x512, points between pixels": lambda: render(between, SOURCE, grid=map_grid),
        cam_blur: lambda: blur_and_stride(xy, CAM_CANVAS, CAM_STRIDE),
        "48x40": lambda: render(gaze, SOURCE, preset="gg-cam", grid=cam_grid),
        f"48x40, one of a batch of {STUDIES}": lambda: render_batch(
            gazes, [SOURCE] * STUDIES, [cam_grid] * STUDIES, preset="gg-cam"
        ),
    }
    seconds = alternate(ways, arguments.rounds)
    seconds = {
        name: [value / STUDIES for value in values] if "batch" in name else values for name, values in seconds.items()
    }

    exact_map = min_max(blur_and_stride(xy, MAP_CANVAS, MAP_STRIDE, np.float64))
    exact_cam = blur_and_stride(xy, CAM_CANVAS, CAM_STRIDE, np.float64)
    exact_cam /= exact_cam.max()
    cam_batch = render_batch(gazes, [SOURCE] * STUDIES, [cam_grid] * STUDIES, preset="gg-cam")[0]
    error = {
        "640x512": np.abs(render(gaze, SOURCE, grid=map_grid).numpy() - exact_map).max(),
        "48x40": np.abs(render(gaze, SOURCE, preset="gg-cam", grid=cam_grid).numpy() - exact_cam).max(),
        f"48x40, one of a batch of {STUDIES}": np.abs(cam_batch[0].numpy() - exact_cam).max(),
    }

    print(f"{arguments.points} points, image {SOURCE[0]}x{SOURCE[1]}, {arguments.rounds} rounds; {machine()}\n")
    print("| attention map | median ms | times faster (least to most) | error |")
    print("|---|---|---|---|")
    for name, values in seconds.items():
        reference = cam_blur if name.startswith("48x40") else map_blur
        faster = (
            "reference"
            if name.startswith("blur")
            else "{:,.0f} ({:,.0f} to {:,.0f})".format(*ratio(seconds[reference], values))
        )
        shown = f"{error[name]:.1e}" if name in error else ""
        print(f"| {name} | {1000 * statistics.median(values):,.2f} | {faster} | {shown} |")


if __name__ == "__main__":
    main()
