"""Two small trained runs, and the server's app around them."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from radgaze.cohort import Cohort
from radgaze.inference import Predictor, load
from radgaze.inference.server import Settings, create_app
from radgaze.inference.server.running import configured
from radgaze.training import Run, fit
from radgaze.training.attention import AttentionTarget
from tests.cohorts import blob_cohort

RECIPE = {"epochs": 1, "batch_size": 8, "schedule": "one-cycle", "learning_rate": 2e-3, "precision": "fp32"}
Client = Callable[..., TestClient]


@pytest.fixture(scope="package")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return blob_cohort(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="package")
def images(cohort: Cohort) -> list[Path]:
    return sorted(path for path in (cohort.path.parent / "tables").glob("*.png") if "blob" not in path.name)


@pytest.fixture(scope="package")
def unet(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(
        cohort,
        tmp_path_factory.mktemp("run") / "unet",
        "mt-unet",
        model={"width": 4},
        sigma=9.0,
        progress=False,
        **RECIPE,
    )


@pytest.fixture(scope="package")
def predictors(unet: Run, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    model = {"backbone": "resnet10t", "options": {"output_stride": 8}}
    cam = fit(cohort, tmp_path_factory.mktemp("run") / "cam", "gg-cam", model=model, progress=False, **RECIPE)
    return {"unet": load(unet), "cam": load(cam)}


@pytest.fixture(scope="package")
def renderings() -> dict[str, AttentionTarget]:
    return {"unet": AttentionTarget("gaze", "mt-unet", 9.0)}


@pytest.fixture
def serve(predictors: dict[str, Predictor]) -> Iterator[Client]:
    """Start an app with other settings, models or cohort; all end with the test."""
    with ExitStack() as running:

        def start(given: dict[str, Predictor] | None = None, **settings: object) -> TestClient:
            app = create_app(given or {"unet": predictors["unet"]}, settings=Settings(**settings))
            return running.enter_context(TestClient(app, "http://localhost", raise_server_exceptions=False))

        yield start


@pytest.fixture(scope="package")
def client(
    predictors: dict[str, Predictor], cohort: Cohort, renderings: dict[str, AttentionTarget]
) -> Iterator[TestClient]:
    """Both models and the cohort."""
    with TestClient(create_app(predictors, cohort, renderings=renderings), "http://localhost") as client:
        yield client


class Served:
    """A server on a free port of this machine, in a thread."""

    def __init__(
        self,
        predictors: dict[str, Predictor],
        cohort: Cohort | None = None,
        renderings: dict[str, AttentionTarget] | None = None,
        **settings: Any,
    ) -> None:
        limits = Settings(**settings)
        self.app = create_app(predictors, cohort, limits, renderings)
        self.server = uvicorn.Server(configured(self.app, limits))
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))

    def __enter__(self) -> Served:
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def png(height: int = 60, width: int = 50, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)).save(file, "PNG")
    return file.getvalue()
