"""Cohorts: studies on disk as open files, how they are split, and the importers that write them.

Names are resolved on first use, so that a pixel worker, which needs only ``cohort.pixels``, starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radgaze.cohort.shortcut import plant_shortcut
    from radgaze.cohort.store import Cohort, resplit
    from radgaze.cohort.study import Box, Study

__all__ = ["Box", "Cohort", "Study", "plant_shortcut", "resplit"]

_HOMES = {"Box": "study", "Study": "study", "Cohort": "store", "plant_shortcut": "shortcut", "resplit": "store"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
