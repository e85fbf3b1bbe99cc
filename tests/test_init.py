from __future__ import annotations

import subprocess
import sys

import pytest

import radgaze


def test_every_public_name_exists() -> None:
    for name in radgaze.__all__:
        assert getattr(radgaze, name) is not None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        radgaze.train  # noqa: B018


def test_import_is_light() -> None:
    """`radgaze --help` must not wait for torch."""
    code = "import sys, radgaze, radgaze.cli; print([m for m in ('torch', 'polars', 'lightning') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
