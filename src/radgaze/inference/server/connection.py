"""A connection whose client has only so long, and one of only so many.

uvicorn waits for ever for the rest of a request's header, and for a client that does not take its answer; a few hundred
such connections would shut everybody else out. Here each of them has a time. And once there are as many as may be, the
one that has kept the server waiting longest makes room for a new one, so that whoever asks promptly is answered.
"""

from __future__ import annotations

import asyncio
import enum
import http
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from radgaze.inference.server.guard import HEADERS, record
from radgaze.inference.server.metrics import Metrics
from radgaze.inference.server.refusal import Refusal
from radgaze.inference.server.settings import Settings

__all__ = ["Connection"]

PIECE = 16 << 10  # bytes: twice as many may a header have


class _Awaited(enum.Enum):
    """What a client has to do next, in the order in which those who do not do it make room."""

    HEADER = 0
    TAKING = 1  # its answer
    NOTHING = 2


class Connection(H11Protocol):
    """uvicorn's, bounded.

    Args:
        settings: The limits.
        metrics: Told of the requests that do not reach the app.
        given: What uvicorn gives.
    """

    def __init__(self, settings: Settings, metrics: Metrics, **given: Any) -> None:
        super().__init__(**given)
        self.settings, self.metrics = settings, metrics
        self.awaited, self.since = _Awaited.NOTHING, 0.0
        self.limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        others = cast("set[Connection]", set(self.connections))
        super().connection_made(transport)
        self.watch()
        if len(self.connections) > self.settings.connections:
            waiting = [one for one in others if one.awaited is not _Awaited.NOTHING]
            least = min(waiting, key=lambda one: (one.awaited.value, one.since), default=self)
            least.end()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.expect(_Awaited.NOTHING)

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), PIECE):  # h11 refuses a long header only while it is not complete
            if not self.transport.is_closing():
                super().data_received(data[begin : begin + PIECE])
        self.watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.watch()

    def watch(self) -> None:
        """See what the client has to do next."""
        if self.transport.get_write_buffer_size():
            self.expect(_Awaited.TAKING)
        elif self.cycle is None or self.cycle.response_complete:
            self.expect(_Awaited.HEADER)
        elif self.cycle.response_started:  # what is left of a body that was refused
            self.expect(_Awaited.TAKING)
        else:
            self.expect(_Awaited.NOTHING)

    def expect(self, awaited: _Awaited) -> None:
        """Give the client time for it; a part of it, such as a byte of a header, is worth no more."""
        if awaited is self.awaited:
            return
        self.awaited, self.since = awaited, self.loop.time()
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None
        seconds = {_Awaited.HEADER: self.settings.header_timeout, _Awaited.TAKING: self.settings.timeout}.get(awaited)
        if seconds is not None:
            self.limit = self.loop.call_later(seconds, self.end)

    def end(self) -> None:
        """End the connection; a client that began a header is told why."""
        self.connections.discard(self)  # uvicorn does so too, but only once it is closed
        if self.awaited is _Awaited.HEADER and self.conn.trailing_data[0]:
            self.refuse(Refusal(408, "The request's header came too slowly; send it at once."))
        elif self.awaited is _Awaited.HEADER:
            self.transport.close()
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self.refuse(Refusal(400, "This is no HTTP request, or its header is too long."))

    def refuse(self, refusal: Refusal) -> None:
        """Answer in the app's stead, where no answer has begun, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app is not to answer after this
            self.cycle.message_event.set()
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refusal.body
            headers = [*HEADERS, *refusal.body_headers, (b"cache-control", b"no-store"), (b"connection", b"close")]
            reason = http.HTTPStatus(refusal.status).phrase.encode()
            head = h11.Response(status_code=refusal.status, headers=headers, reason=reason)
            for event in (head, h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            record(self.metrics, "", "none", refusal.status, self.loop.time() - self.since)
        self.transport.close()
