"""Kernel redundancy: how many kernels of a network show the eye something that another kernel does not.

- :mod:`~radgaze.redundancy.difference`: how differently two output images are seen. ``mssim``, ``perceived``,
  ``DIFFERENCES``.
- :mod:`~radgaze.redundancy.cover`: the distinct kernels at a threshold. ``distinct_kernels``.
- :mod:`~radgaze.redundancy.capture`: a convolution's output as the next layer sees it.
- :mod:`~radgaze.redundancy.krm`: the kernel redundancy measure of every layer and of the network. ``measure``,
  ``output_images``.
- :mod:`~radgaze.redundancy.probe`: the images that kernels are looked at on. ``probe_studies``.
"""

from radgaze.redundancy.cover import Cover, distinct_kernels
from radgaze.redundancy.difference import DIFFERENCES, mssim, perceived
from radgaze.redundancy.krm import TAUS, LayerRedundancy, RedundancyReport, measure, output_images
from radgaze.redundancy.probe import probe_studies

__all__ = [
    "DIFFERENCES",
    "TAUS",
    "Cover",
    "LayerRedundancy",
    "RedundancyReport",
    "distinct_kernels",
    "measure",
    "mssim",
    "output_images",
    "perceived",
    "probe_studies",
]
