"""Networks. Each is rebuilt from a plain dictionary and returns an :class:`Output`."""

from radgaze.models.build import build, load_weights, parameters, save_weights
from radgaze.models.mt_unet import MTUNet
from radgaze.models.output import Output

__all__ = ["MTUNet", "Output", "build", "load_weights", "parameters", "save_weights"]
