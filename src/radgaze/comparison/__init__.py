"""Several methods, backbones, training sizes and seeds on one cohort, under one protocol."""

from radgaze.comparison.engine import compare

__all__ = ["compare"]
