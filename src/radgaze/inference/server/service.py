"""What stands between the routes and the networks: how many requests are held, for how long, and on which thread each
part of the work is done. The event loop only moves bytes; decoding, encoding and the networks have threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request

from radgaze.cohort.pixels import TooManyPixels, Upload, image_size
from radgaze.errors import InputError
from radgaze.inference.predictor import Failure, Picture, Prediction, Predictor
from radgaze.inference.server.answers import encode, maps_of, preview_of
from radgaze.inference.server.metrics import Metrics
from radgaze.inference.server.refusal import Refusal
from radgaze.inference.server.settings import Settings
from radgaze.inference.server.studies import StudyRoom
from radgaze.inference.server.uploads import File, Pace, read_files
from radgaze.inference.server.worker import STOPPING, Worker

__all__ = ["Service"]

T = TypeVar("T")


class Service:
    """Use :meth:`running` around its life, and :meth:`held` around each request's."""

    def __init__(self, predictors: Mapping[str, Predictor], settings: Settings, metrics: Metrics) -> None:
        self.predictors, self.settings = predictors, settings
        self.requests, self.decoding = 0, 0  # touched by the event loop alone
        self.ready = False
        self.warm = False
        self.time_limits: set[asyncio.Timeout] = set()
        self.uploads: set[Pace] = set()  # that have not come in full
        self.readers = ThreadPoolExecutor(settings.readers, "radgaze-reader")
        self.worker = Worker(predictors, settings.batch_size, settings.window, lambda: self.decoding > 0, metrics.ran)
        metrics.watch(lambda: self.requests, lambda: len(self.worker.waiting))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the threads, warm up, and end them afterwards."""
        try:
            await self.in_thread(self.warm_up)
            self.worker.start()
            self.ready = True
            yield
        finally:
            self.ready = False
            self.worker.stop()
            self.readers.shutdown(wait=False, cancel_futures=True)

    def warm_up(self) -> None:
        """Run every network once with one image and once with a full batch: the first pass of a size is slow.

        Raises:
            InputError: The output of a network is not finite.
        """
        if self.warm:
            return
        for predictor in self.predictors.values():
            height, width = predictor.card.frame.size
            ramp = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint16)
            picture = predictor.read(ramp)
            for count in sorted({1, self.settings.batch_size}):
                found = predictor.predict_pictures([picture] * count)
            encode(found[0].to_json() | {"maps": maps_of(found[0]), "preview": preview_of(ramp)})
        self.warm = True

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold a request: count it, and end it when its time is over.

        Raises:
            Refusal: 503 where too many are held or the server is stopping, 504 when the time is over.
        """
        if not self.ready:
            raise STOPPING
        if self.requests >= self.settings.queue:
            for upload in self.uploads:
                upload.hurry()
            raise Refusal(
                503,
                f"The server holds {self.settings.queue} requests, as many as it may; send the image again in a "
                "moment.",
                {"Retry-After": "1"},
            )
        self.requests += 1
        limit = asyncio.timeout(self.settings.timeout)
        try:
            async with limit:
                self.time_limits.add(limit)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            if not self.ready:
                raise STOPPING from None
            raise Refusal(
                504,
                f"The request took more than {self.settings.timeout:g} seconds, its upload included; send a smaller "
                "image, or again when the server is less busy.",
            ) from None
        finally:
            self.time_limits.discard(limit)
            self.requests -= 1

    async def files(self, request: Request, field_name: str, most: int = 1) -> list[File]:
        """The uploaded files, ``most`` at most.

        Raises:
            Refusal: For another form, or one that is too large or too slow.
        """
        pace = Pace()
        self.uploads.add(pace)
        try:
            return await read_files(request, field_name, pace, max_files=most, max_bytes=self.settings.max_bytes)
        finally:
            self.uploads.discard(pace)

    def stop(self) -> None:
        """Take nothing new; what is held ends within the grace."""
        self.ready = False
        end = asyncio.get_running_loop().time() + self.settings.grace
        for limit in self.time_limits:
            if not limit.expired():  # else its request is ending just now
                limit.reschedule(min(limit.when() or end, end))

    async def in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.readers, call, *arguments)

    def predictor(self, model: str | None) -> tuple[str, Predictor]:
        """The model of that name; without a name, the only one.

        Raises:
            Refusal: 404 for another name, 400 for none where there are several.
        """
        if model is None:
            if len(self.predictors) > 1:
                raise Refusal(400, f"Several models are served; add ?model= and one of {', '.join(self.predictors)}.")
            model = next(iter(self.predictors))
        if model not in self.predictors:
            raise Refusal(404, f"No such model is served; choose one of {', '.join(self.predictors)}.")
        return model, self.predictors[model]

    async def predict(self, model: str | None, file: File, maps: bool, preview: bool) -> bytes:
        """One upload to the JSON of its prediction.

        Raises:
            Refusal: As the image or the model demands.
        """
        name, predictor = self.predictor(model)
        start = time.perf_counter()
        picture, shown = await self.decoded(self.read, predictor, file, preview)
        prediction = await self.through_network(name, picture)
        extra: dict[str, Any] = {"model": name, "seconds": time.perf_counter() - start}

        def content() -> bytes:
            more = extra | ({"maps": maps_of(prediction)} if maps else {}) | ({"preview": shown} if shown else {})
            return encode(prediction.to_json() | more)

        return await self.in_thread(content)

    async def predict_batch(self, model: str | None, files: Sequence[File]) -> bytes:
        """Several uploads to the JSON of their predictions, in their order; a broken one becomes its error."""
        name, predictor = self.predictor(model)

        async def one(file: File) -> Prediction | Failure:
            try:
                picture, _ = await self.decoded(self.read, predictor, file, False)
                file.content.clear()
            except Refusal as refusal:
                return Failure(file.name, refusal.sentence)
            return await self.through_network(name, picture)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(file)) for file in files]
        except* Refusal as refused:
            raise next(each for each in refused.exceptions if isinstance(each, Refusal)) from None
        found = [task.result() for task in tasks]

        def content() -> bytes:
            return encode(
                {
                    "predictions": [
                        {"image": each.name, "error": each.error} if isinstance(each, Failure) else each.to_json()
                        for each in found
                    ]
                }
            )

        return await self.in_thread(content)

    async def decoded(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run something that makes a picture for the network, which waits a moment for it."""
        self.decoding += 1
        try:
            return await self.in_thread(call, *arguments)
        finally:
            self.decoding -= 1

    async def through_network(self, model: str, picture: Picture) -> Prediction:
        return await asyncio.wrap_future(self.worker.submit(model, picture))

    def read(self, predictor: Predictor, file: File, preview: bool) -> tuple[Picture, dict[str, Any] | None]:
        """The picture without its pixels, of which only the size is needed from here on, and its preview."""
        upload = Upload(bytes(file.content), file.name)
        try:
            image_size(upload, self.settings.max_pixels)
            picture = predictor.read(upload)
        except TooManyPixels as error:
            raise Refusal(413, str(error)) from None
        except InputError as error:
            raise Refusal(400, str(error)) from None
        shown = preview_of(picture.pixels) if preview else None
        return replace(picture, pixels=np.broadcast_to(np.uint16(0), picture.pixels.shape)), shown

    async def predict_study(self, room: StudyRoom, index: int, model: str | None) -> bytes:
        """A study of the cohort to the JSON of its prediction, compared with its readers' attention."""
        name, predictor = self.predictor(model)
        start = time.perf_counter()
        try:
            picture = await self.decoded(room.picture, index, predictor)
            prediction = await self.through_network(name, picture)
            extra = {"model": name, "seconds": time.perf_counter() - start}
            return await self.in_thread(lambda: encode(room.compared(index, name, prediction) | extra))
        except InputError as error:
            raise Refusal(400, str(error)) from None
