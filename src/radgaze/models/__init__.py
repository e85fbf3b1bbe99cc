"""Networks. Each is rebuilt from a plain dictionary and returns an :class:`Output`."""

from radgaze.models.build import build, load_weights, parameters, save_weights
from radgaze.models.gaze_cam import GazeCAM
from radgaze.models.mt_unet import MTUNet
from radgaze.models.network import Network
from radgaze.models.output import Output, decision_map
from radgaze.models.size import macs

__all__ = [
    "GazeCAM",
    "MTUNet",
    "Network",
    "Output",
    "build",
    "decision_map",
    "load_weights",
    "macs",
    "parameters",
    "save_weights",
]
