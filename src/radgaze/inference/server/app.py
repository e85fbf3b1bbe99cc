"""The HTTP application: predictions of uploads, and of a cohort's studies beside where their readers looked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles

from radgaze import __version__
from radgaze.cohort import Cohort
from radgaze.errors import InputError
from radgaze.inference.predictor import Predictor
from radgaze.inference.server import answers
from radgaze.inference.server.guard import Guard
from radgaze.inference.server.metrics import CONTENT_TYPE, Metrics
from radgaze.inference.server.refusal import Refusal
from radgaze.inference.server.service import Service
from radgaze.inference.server.settings import Settings
from radgaze.inference.server.studies import StudyRoom
from radgaze.training.attention import AttentionTarget

__all__ = ["create_app"]

STATIC = Path(__file__).parent / "static"
LARGEST_INDEX = 2**31 - 1

ModelName = Annotated[str | None, Query(description="Which model; not needed where one is served.", max_length=200)]
Index = Annotated[int, "A study's place in the cohort."]


def create_app(
    predictors: Mapping[str, Predictor],
    cohort: Cohort | None = None,
    settings: Settings | None = None,
    renderings: Mapping[str, AttentionTarget] | None = None,
) -> FastAPI:
    """The application that ``radgaze serve`` runs.

    Args:
        predictors: By the name each is asked for.
        cohort: Whose studies may be browsed and predicted.
        settings: Limits and token.
        renderings: By model, how the gaze that it was trained on was drawn.

    Returns:
        The app. Its threads start and end with its lifespan; ``app.state.service`` holds them.

    Raises:
        InputError: No model.
    """
    if not predictors:
        raise InputError("There is no model to serve; give at least one run.")
    settings = settings or Settings()
    metrics = Metrics()
    service = Service(predictors, settings, metrics)
    room = StudyRoom(cohort, renderings or {}) if cohort is not None else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="radgaze",
        version=__version__,
        description="Predictions of chest X-ray networks, with their attention and class activation maps.",
        docs_url=None,  # FastAPI's page loads its scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the request's Host header
        lifespan=lifespan,
        dependencies=[Depends(HTTPBearer(auto_error=False, description="The server's token."))]
        if settings.token
        else [],
    )
    app.state.service, app.state.metrics = service, metrics
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    app.add_exception_handler(Refusal, refused)  # type: ignore[arg-type]
    app.add_exception_handler(StarletteHTTPException, not_served)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, not_understood)  # type: ignore[arg-type]

    def study_of(index: int) -> StudyRoom:
        """The room that has a study of that number."""
        if room is None:
            raise Refusal(404, "No cohort is served; start the server with --cohort.")
        if not 0 <= index < len(room.cohort):
            raise Refusal(404, f"The cohort has no study {index}; it has 0 to {len(room.cohort) - 1}.")
        return room

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (STATIC / "index.html").is_file():
            raise Refusal(404, "This installation has no viewer page; the API is described at /openapi.json.")
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), "static")

    @app.get("/v1/health", response_model=answers.Health, responses=errors())
    async def health() -> dict[str, Any]:
        """Whether the server takes requests."""
        return {"status": "ok", "version": __version__, "ready": service.ready}

    @app.get("/metrics", responses={**errors(), 200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def prometheus() -> Response:
        """Counts and times, for Prometheus."""
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/v1/models", response_model=answers.Models, responses=errors())
    async def models() -> dict[str, Any]:
        """The models that are served, and the cohort."""
        cards = [{"name": name, "card": answers.card_of(one.card)} for name, one in predictors.items()]
        return {"models": cards, "cohort": room.summary() if room else None}

    @app.post(
        "/v1/predict",
        response_model=answers.Predicted,
        responses=errors(404, 408, 413, 503, 504),
        openapi_extra=form("image", several=False),
    )
    async def predict(
        request: Request,
        model: ModelName = None,
        maps: Annotated[bool, Query(description="With the attention and class activation maps.")] = True,
        preview: Annotated[bool, Query(description="With the image, at most 1024 pixels a side.")] = True,
    ) -> Response:
        """Predict one image: PNG, JPEG, TIFF or DICOM."""
        async with service.held():
            service.predictor(model)
            file = (await service.files(request, "image"))[0]
            return as_json(await service.predict(model, file, maps, preview))

    @app.post(
        "/v1/predict/batch",
        response_model=answers.Batch,
        responses=errors(404, 408, 413, 503, 504),
        openapi_extra=form("images", several=True),
    )
    async def predict_batch(request: Request, model: ModelName = None) -> Response:
        """Predict several images, without maps, in their order; one that cannot be read becomes its error."""
        async with service.held():
            service.predictor(model)
            files = await service.files(request, "images", settings.max_files)
            return as_json(await service.predict_batch(model, files))

    @app.get("/v1/cohort/studies", response_model=answers.Studies, responses=errors(404, 503, 504))
    async def studies(
        offset: Annotated[int, Query(ge=0, le=LARGEST_INDEX)] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        split: Annotated[str | None, Query(max_length=200)] = None,
        label: Annotated[str | None, Query(max_length=200)] = None,
        gaze: Annotated[bool | None, Query(description="Only studies with, or without, gaze.")] = None,
        search: Annotated[str | None, Query(description="Part of a study's id.", max_length=200)] = None,
    ) -> Response:
        """The cohort's studies."""
        found = study_of(0).listed
        async with service.held():
            content = await service.in_thread(found, offset, limit, split, label, gaze, search)
            return as_json(await service.in_thread(answers.encode, content))

    @app.get("/v1/cohort/studies/{index}", response_model=answers.StudyDetail, responses=errors(404, 503, 504))
    async def study(index: Index) -> Response:
        """One study and its image."""
        here = study_of(index)
        async with service.held():
            return as_json(await service.in_thread(lambda: answers.encode(here.detail(index))))

    @app.get("/v1/cohort/studies/{index}/gaze", response_model=answers.GazePoints, responses=errors(404, 503, 504))
    async def gaze_points(index: Index) -> Response:
        """Where the readers of a study looked, in source pixels and seconds."""
        here = study_of(index)
        async with service.held():
            content = await service.in_thread(here.gaze, index)
            if content is None:
                raise Refusal(404, f"Study {index} has no gaze; list those that have with ?gaze=true.")
            return as_json(await service.in_thread(answers.encode, content))

    @app.get(
        "/v1/cohort/studies/{index}/predict", response_model=answers.CohortPrediction, responses=errors(404, 503, 504)
    )
    async def predict_study(index: Index, model: ModelName = None) -> Response:
        """Predict a study, and compare with where its readers looked."""
        here = study_of(index)
        async with service.held():
            return as_json(await service.predict_study(here, index, model))

    return app


def as_json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of the errors that a route may answer with, beside those that all may."""
    told = {
        400: "The request or its image cannot be used.",
        401: "The token is missing or wrong.",
        404: "There is no such model or study.",
        408: "The upload came too slowly.",
        413: "Too many bytes, pixels or files.",
        422: "A parameter is out of range.",
        500: "The server failed.",
        503: "Too many requests, or the server is stopping: see Retry-After.",
        504: "The request took too long.",
    }
    chosen = sorted({400, 401, 422, 500, *statuses})
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": answers.Error, "description": told[status]} for status in chosen
    }
    if 503 in found:
        found[503]["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}}
    return found


def form(field: str, several: bool) -> dict[str, Any]:
    """The description of an upload, which FastAPI cannot derive from a body that is read by hand."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    value = {"type": "array", "items": file, "minItems": 1} if several else file
    schema = {"type": "object", "required": [field], "properties": {field: value}, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def refused(_: Request, refusal: Refusal) -> Response:
    return JSONResponse({"error": refusal.sentence}, refusal.status, refusal.headers)


async def not_served(_: Request, error: HTTPException) -> Response:
    sentences = {
        404: "There is nothing here; the API is described at /openapi.json.",
        405: "This does not take that method; the API is described at /openapi.json.",
    }
    sentence = sentences.get(error.status_code, "The request cannot be used; the API is described at /openapi.json.")
    return JSONResponse({"error": sentence}, error.status_code, dict(error.headers or {}))


async def not_understood(_: Request, error: RequestValidationError) -> Response:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"][1:]) or str(problem["loc"][0])
    return JSONResponse({"error": f"Parameter {where!r}: {problem['msg'].lower()}."}, 422)
