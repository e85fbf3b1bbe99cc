"""One small tree of each layout, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from radgaze.cohort.phantom import make_phantom

STUDIES, SIZE, SEED = 7, (97, 80), 5  # an odd height, which EGD-CXR's viewer pads


@pytest.fixture(scope="session")
def egd_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("egd") / "tree"
    return make_phantom(out, studies=STUDIES, image_size=SIZE, seed=SEED, difficulty=0.1, workers=1, progress=False)


@pytest.fixture(scope="session")
def reflacx_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reflacx") / "tree"
    return make_phantom(
        out, layout="reflacx", studies=STUDIES, image_size=SIZE, seed=SEED, difficulty=0.1, workers=1, progress=False
    )
