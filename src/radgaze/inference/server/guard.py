"""The outermost layer: who may ask, what browsers may do with the answers, and one line in the log for each request.

It also ends requests that are answered before their body was read: closing such a connection at once would take the
answer away from a client that is still sending, so what is on its way is thrown away for a moment first.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from radgaze.inference.server.metrics import METHODS, Metrics
from radgaze.inference.server.refusal import Refusal
from radgaze.inference.server.settings import Settings

__all__ = ["CONTENT_SECURITY_POLICY", "HEADERS", "Guard", "log", "record"]

log = logging.getLogger("radgaze.server")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
LINGER_SECONDS, LINGER_BYTES = 2.0, 16 << 20


class Guard:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = _Exchange(scope, receive, send)
        try:
            refusal = self.refusal(scope)
            if refusal is None:
                await self.app(scope, exchange.receive, exchange.send)
            else:
                await exchange.refuse(refusal)
        except ClientDisconnect:  # in the middle of its upload; nobody is left to be answered
            pass
        except Exception as error:  # a bug: say where, and nothing that a request could have put into it
            at = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s at %s:%s", type(error).__name__, at.filename.rsplit("/radgaze/", 1)[-1], at.lineno)
            if exchange.status is None:
                await exchange.refuse(Refusal(500, "The server failed at this request; its log says where."))
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", None) or "none"
            status = exchange.status or 499  # 499: the client went away before an answer
            record(self.metrics, scope["method"], route, status, seconds)

    def refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        names = self.settings.own_names
        if names is not None:
            host = _host(b"//" + headers.get(b"host", b""))
            if host not in names:
                return Refusal(
                    400, "The request is addressed to another host; use http://localhost or http://127.0.0.1."
                )
            if not _is_page(scope["path"]) and _is_elsewhere(headers):
                return Refusal(400, "The request comes from a page of another host, which may not use this server.")
        if b"transfer-encoding" in headers and b"content-length" in headers:  # a proxy may have read it otherwise
            return Refusal(400, "The request says in two ways how long it is; send Content-Length alone.")
        if self.settings.token is None or _is_page(scope["path"]):
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.settings.token.encode()):
            return None
        sentence = "This needs the server's token; send it as `Authorization: Bearer TOKEN`."
        return Refusal(401, sentence, {"WWW-Authenticate": 'Bearer realm="radgaze"'})


class _Exchange:
    """One request and its answer, on their way through the guard."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self.unread = length != b"0" or b"transfer-encoding" in headers
        self.expects = b"expect" in headers  # such a client sends nothing before it is told to
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self.unread = self.unread and message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kept = "no-cache" if _is_page(self.scope["path"]) else "no-store"
            headers = [*message.get("headers", ()), *HEADERS, (b"cache-control", kept.encode())]
            if self.unread:
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
        elif self.unread and not self.expects and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self.linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def linger(self) -> None:
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while self.unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass

    async def refuse(self, refusal: Refusal) -> None:
        own = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        headers = [*refusal.body_headers, *own]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": refusal.body, "more_body": False})


def record(metrics: Metrics, method: str, route: str, status: int, seconds: float) -> None:
    """One request in the metrics and in the log, where no method is written that only this request knows."""
    metrics.answered(method, route, status, seconds)
    log.info("%s %s %d %.0f ms", method if method in METHODS else "other", route, status, 1000 * seconds)


def _is_page(path: str) -> bool:
    return path == "/" or path.startswith("/static/")


def _is_elsewhere(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says that another page asks, be it of this machine and only of another port."""
    origin = headers.get(b"origin")
    own = origin is None or origin.lower().partition(b"://")[2] == headers[b"host"].lower()
    return not own or headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none")


def _host(url: bytes) -> str | None:
    """The host name of a URL, in lower case; None where it has none."""
    try:
        return urlsplit(url.decode("latin-1")).hostname
    except ValueError:
        return None
