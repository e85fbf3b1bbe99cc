"""radgaze learns from where radiologists look.

It reads chest X-rays with eye tracking, trains networks that predict attention and diagnose together, and measures them
honestly. Start with :func:`import_egd_cxr` (or :func:`import_tables`, :func:`make_phantom`), then :func:`fit` and
:func:`evaluate`; ``radgaze demo`` does it all.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radgaze import measures, models, redundancy
    from radgaze.cohort import Cohort, Study, plant_shortcut
    from radgaze.cohort.phantom import make_phantom
    from radgaze.cohort.sources.egd_cxr import import_egd_cxr
    from radgaze.cohort.sources.reflacx import import_reflacx
    from radgaze.cohort.sources.tables import import_tables
    from radgaze.comparison import compare
    from radgaze.errors import InputError, RadgazeError
    from radgaze.gaze import Gaze, Grid, detect_fixations, render, render_batch
    from radgaze.inference import evaluate, export, load, measure_redundancy, reproduce
    from radgaze.inference.folder import predict
    from radgaze.simplification import simplify
    from radgaze.training import Run, fit

__version__ = version("radgaze")

__all__ = [
    "Cohort",
    "Gaze",
    "Grid",
    "InputError",
    "RadgazeError",
    "Run",
    "Study",
    "compare",
    "detect_fixations",
    "evaluate",
    "export",
    "fit",
    "import_egd_cxr",
    "import_reflacx",
    "import_tables",
    "load",
    "make_phantom",
    "measure_redundancy",
    "measures",
    "models",
    "plant_shortcut",
    "predict",
    "redundancy",
    "render",
    "render_batch",
    "reproduce",
    "simplify",
]

# Resolved on first use: `radgaze --help` and the pixel workers of an import need no torch.
HOMES = {
    "cohort": ["Cohort", "Study", "plant_shortcut"],
    "cohort.phantom": ["make_phantom"],
    "cohort.sources.egd_cxr": ["import_egd_cxr"],
    "cohort.sources.reflacx": ["import_reflacx"],
    "cohort.sources.tables": ["import_tables"],
    "comparison": ["compare"],
    "errors": ["InputError", "RadgazeError"],
    "gaze": ["Gaze", "Grid", "detect_fixations", "render", "render_batch"],
    "inference": ["evaluate", "export", "load", "measure_redundancy", "reproduce"],
    "inference.folder": ["predict"],
    "simplification": ["simplify"],
    "training": ["Run", "fit"],
}
HOME_OF = {name: home for home, names in HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("measures", "models", "redundancy"):
        return import_module(f"radgaze.{name}")
    if name in HOME_OF:
        return getattr(import_module(f"radgaze.{HOME_OF[name]}"), name)
    raise AttributeError(f"module 'radgaze' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
