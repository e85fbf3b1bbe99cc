"""Fixtures every test may use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from radgaze.cohort import Cohort
from tests.cohorts import blob_cohort

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a real data set beside the checkout; the test skips where that folder does not exist."""

    def find(name: str) -> Path:
        folder = SHARED_DATA / name
        if not folder.exists():
            pytest.skip(f"real data set {name!r} is not beside this checkout (a plain clone has none)")
        return folder

    return find


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """24 studies in 3 classes with gaze, a mask and a box each, at 48x32. Shared: do not write to it."""
    return blob_cohort(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="session")
def large_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The same at 96x64, for networks of stride 32. Class 0 has no structure to be read from."""
    return blob_cohort(tmp_path_factory.mktemp("blobs"), size=(96, 64))
