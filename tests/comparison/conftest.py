from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def write_comparison(comparison: Mapping[str, Any], out: Path) -> Path:
    """In place of the page, which has tests of its own; what it gets must be plain JSON."""
    page = out / "comparison.html"
    page.write_text(json.dumps(comparison, allow_nan=False))
    return page


@pytest.fixture(autouse=True, scope="session")
def page() -> Any:
    module: Any = ModuleType("radgaze.report.comparison")
    module.write_comparison = write_comparison
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        yield
