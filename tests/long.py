"""The mark of tests that are left out unless they are asked for: what they try is tried by shorter ones, too."""

from __future__ import annotations

import os

import pytest

__all__ = ["LONG"]

LONG = pytest.mark.skipif("RADGAZE_LONG" not in os.environ, reason="takes long; RADGAZE_LONG=1 runs it too")
