"""Smaller networks, guided by the redundancy of a trained network's kernels.

- :mod:`~radgaze.simplification.perception`: what groups of tied channels show, and what residual blocks change.
- :mod:`~radgaze.simplification.structure`: which channels and blocks stay; ``apply`` makes the smaller network.
- :mod:`~radgaze.simplification.guides`: what decides that: kernel redundancy, or one of its rivals.
- :mod:`~radgaze.simplification.engine`: the loop of shrinking, training and accepting. ``simplify``.
"""

from radgaze.simplification.engine import simplify

__all__ = ["simplify"]
