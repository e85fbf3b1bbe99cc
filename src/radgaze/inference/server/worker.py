"""The one thread that runs the networks: it gathers images that wait into a batch, so that a crowd costs little more
than the network itself.

It takes what waits, in order of arrival, as far as it is for one model. With less than a full batch it waits a moment,
and only while other images are being decoded: a lone request is never held up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from radgaze.errors import InputError
from radgaze.inference.predictor import Picture, Prediction, Predictor
from radgaze.inference.server.refusal import Refusal

__all__ = ["STOPPING", "Worker"]

STOPPING = Refusal(503, "The server is stopping; send the image again in a moment.", {"Retry-After": "5"})


@dataclass(eq=False)
class _Waiting:
    model: str
    picture: Picture
    answer: Future[Prediction] = field(default_factory=Future)


class Worker(threading.Thread):
    """Use :meth:`submit`.

    Args:
        predictors: By model name.
        batch_size: Most images in a pass.
        window: Seconds to wait for more.
        coming: Whether images are being decoded.
        ran: Told of each pass: model, and images in it.
    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        batch_size: int,
        window: float,
        coming: Callable[[], bool],
        ran: Callable[[str, int], None],
    ) -> None:
        super().__init__(name="radgaze-network", daemon=True)
        self.predictors, self.batch_size, self.window = predictors, batch_size, window
        self.coming, self.ran = coming, ran
        self.waiting: deque[_Waiting] = deque()
        self.changed = threading.Condition()
        self.stopped = False

    def submit(self, model: str, picture: Picture) -> Future[Prediction]:
        """The prediction to be; one that is cancelled before its pass is left out of it.

        Raises:
            Refusal: 503, after :meth:`stop`.
        """
        one = _Waiting(model, picture)
        with self.changed:
            if self.stopped:
                raise STOPPING
            self.waiting.append(one)
            self.changed.notify()
        return one.answer

    def stop(self) -> None:
        """End after the pass under way; what still waits is refused."""
        with self.changed:
            self.stopped = True
            left, self.waiting = list(self.waiting), deque()
            self.changed.notify()
        for one in left:
            if one.answer.set_running_or_notify_cancel():
                one.answer.set_exception(STOPPING)

    def run(self) -> None:
        while batch := self._gather():
            live = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            if live:
                self._predict(live)

    def _gather(self) -> list[_Waiting]:
        """The next batch; empty once stopped."""
        with self.changed:
            while not self.waiting and not self.stopped:
                self.changed.wait()
            if self.stopped:
                return []
            model, end = self.waiting[0].model, time.monotonic() + self.window
            while self._ready(model) < self.batch_size and self.coming() and (left := end - time.monotonic()) > 0:
                self.changed.wait(left)
                if self.stopped:
                    return []
            batch = [one for one in self.waiting if one.model == model][: self.batch_size]
            taken = set(map(id, batch))
            self.waiting = deque(one for one in self.waiting if id(one) not in taken)
            return batch

    def _ready(self, model: str) -> int:
        return sum(one.model == model for one in self.waiting)

    def _predict(self, batch: list[_Waiting]) -> None:
        model = batch[0].model
        try:
            found = self.predictors[model].predict_pictures([one.picture for one in batch])
        except InputError as error:
            if len(batch) > 1:  # one image's output is not finite: the others are not to pay for it
                for one in batch:
                    self._predict([one])
                return
            batch[0].answer.set_exception(Refusal(500, str(error)))
        except Exception as error:  # whatever an engine raises belongs to these requests; the thread must live on
            for one in batch:
                one.answer.set_exception(error)
        else:
            self.ran(model, len(batch))
            for one, prediction in zip(batch, found, strict=True):
                one.answer.set_result(prediction)
