"""Gaze as points: stored in original image pixels, rendered to an attention map at whatever grid is asked for."""

from radgaze.gaze.fixations import GazeStatistics, detect_fixations, fixation_map, statistics
from radgaze.gaze.grid import Frame, Grid
from radgaze.gaze.points import Gaze
from radgaze.gaze.render import PRESETS, Preset, render, render_batch

__all__ = [
    "PRESETS",
    "Frame",
    "Gaze",
    "GazeStatistics",
    "Grid",
    "Preset",
    "detect_fixations",
    "fixation_map",
    "render",
    "render_batch",
    "statistics",
]
