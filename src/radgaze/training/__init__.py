"""Training: methods (network + objective + recipe), the loop, and runs on disk."""

from radgaze.training.attention import AttentionTarget
from radgaze.training.config import Augmentation, RunConfig
from radgaze.training.methods import METHODS
from radgaze.training.runs import Run
from radgaze.training.trainer import fit

__all__ = ["METHODS", "AttentionTarget", "Augmentation", "Run", "RunConfig", "fit"]
