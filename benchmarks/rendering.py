"""Attention maps by matrix product against the papers' full-resolution OpenCV blur.

    python benchmarks/rendering.py [--rounds N]

Reference: count image of 3056x2544 float32, `cv2.GaussianBlur` of 501 taps with sigma 0 and the default border, zero
padding, then every fifth pixel of 3200x2560 (640x512) min-max scaled, or for a CAM every 64th of 3072x2560 (48x40)
over its maximum. OpenCV uses every core, as it does by default. All ways take turns in every round. The
difference is the largest from the same reference blurred in float64, in a map whose maximum is 1.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from _bench import Floor, Row, alternate, gemm_rate, row, run
from radgaze.gaze import Gaze, Grid, render, render_batch

Image = NDArray[np.floating]

SOURCE = (3056, 2544)
MAP_CANVAS, MAP_STRIDE = (3200, 2560), 5
CAM_CANVAS, CAM_STRIDE = (3072, 2560), 64
STUDIES = 64
POINTS = 1500  # of a study of half a minute at 60 Hz


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


def measure(rounds: int) -> list[Row]:
    studies = [positions(POINTS, seed) for seed in range(STUDIES)]
    gazes = [Gaze(xy[:, 0], xy[:, 1]) for xy in studies]
    xy, gaze = studies[0], gazes[0]
    between = Gaze(xy[:, 0] + 0.25, xy[:, 1] + 0.25)
    map_grid = Grid.strided(SOURCE, MAP_STRIDE, MAP_CANVAS)
    cam_grid = Grid.strided(SOURCE, CAM_STRIDE, CAM_CANVAS)
    # A grid never seen before has no table yet: what the first study of an image shape costs.
    unseen = (Grid(640, 512, -72.0 - 0.01 * i, -8.0 - 0.01 * i, 5.0, 5.0) for i in itertools.count(1))

    def batch() -> Tensor:
        return render_batch(gazes, [SOURCE] * STUDIES, [cam_grid] * STUDIES, preset="gg-cam")[0]

    seconds = alternate(
        {
            "blurred map": lambda: min_max(blur_and_stride(xy, MAP_CANVAS, MAP_STRIDE)),
            "map": lambda: render(gaze, SOURCE, grid=map_grid),
            "first map": lambda: render(gaze, SOURCE, grid=next(unseen)),
            "map of points between pixels": lambda: render(between, SOURCE, grid=map_grid),
            "blurred CAM grid": lambda: blur_and_stride(xy, CAM_CANVAS, CAM_STRIDE),
            "CAM grid": lambda: render(gaze, SOURCE, preset="gg-cam", grid=cam_grid),
            "batch": batch,
        },
        rounds,
    )
    of_batch = [value / STUDIES for value in seconds["batch"]]

    exact_map = min_max(blur_and_stride(xy, MAP_CANVAS, MAP_STRIDE, np.float64))
    exact_cam = blur_and_stride(xy, CAM_CANVAS, CAM_STRIDE, np.float64)
    exact_cam /= exact_cam.max()
    map_error = np.abs(render(gaze, SOURCE, grid=map_grid).numpy() - exact_map).max()
    cam_error = np.abs(render(gaze, SOURCE, preset="gg-cam", grid=cam_grid).numpy() - exact_cam).max()
    batch_error = np.abs(batch()[0].numpy() - exact_cam).max()

    map_blur, cam_blur = "OpenCV's blur, every 5th pixel", "OpenCV's blur, every 64th pixel"
    of_map, of_cam = f"attention map 640x512, {POINTS:,} points", "map on a CAM's grid, 48x40"
    floor = Floor(2 * map_grid.height * map_grid.width * POINTS / gemm_rate(), "one matrix product")
    cam_floor = Floor(2 * cam_grid.height * cam_grid.width * POINTS / gemm_rate(), "one matrix product")
    blurred_map, blurred_cam = seconds["blurred map"], seconds["blurred CAM grid"]
    return [
        row(of_map, map_blur, blurred_map, seconds["map"], target=200, floor=floor, check=f"{map_error:.0e}"),
        row(f"{of_map}, first of an image shape", map_blur, blurred_map, seconds["first map"]),
        row(f"{of_map} between pixels", map_blur, blurred_map, seconds["map of points between pixels"], floor=floor),
        row(of_cam, cam_blur, blurred_cam, seconds["CAM grid"], floor=cam_floor, check=f"{cam_error:.0e}"),
        row(
            f"{of_cam}, one of a batch of {STUDIES}",
            cam_blur,
            blurred_cam,
            of_batch,
            target=2000,
            floor=cam_floor,
            check=f"{batch_error:.0e}",
        ),
    ]


if __name__ == "__main__":
    run(measure, 9, __doc__)
