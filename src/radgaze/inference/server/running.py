"""Running the app in a process of its own: listening, logging, and ending without breaking a request off."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from typing import cast

import uvicorn
from fastapi import FastAPI

from radgaze.errors import InputError
from radgaze.inference.server.connection import Connection
from radgaze.inference.server.guard import log
from radgaze.inference.server.service import Service
from radgaze.inference.server.settings import Settings

__all__ = ["configured", "run"]


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, started: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self.tell_started = service, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stop()
        await super().shutdown(sockets)


def run(app: FastAPI, settings: Settings, started: Callable[[str], None]) -> None:
    """Serve ``app`` until SIGTERM or SIGINT; what is being answered then is finished within the grace.

    Args:
        app: Made by ``create_app`` with the same settings.
        settings: Where to listen.
        started: Told the URL once requests are taken.

    Raises:
        InputError: The port is taken, the host is not this machine's, or a network's output is not finite.
    """
    listener = _listen(settings)
    config = configured(app, settings)
    _log_plainly()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    service: Service = app.state.service
    service.warm_up()
    server = _Server(config, service, lambda: started(f"http://{shown}:{port}"))
    for one in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once it has ended; there is nothing left to be ended then
        signal.signal(one, lambda *_: None)
    with contextlib.closing(listener):
        server.run([listener])


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to serve ``app``, which was made with the same settings."""
    connection = functools.partial(Connection, settings, app.state.metrics)
    return uvicorn.Config(
        app,
        http=cast("type[Connection]", connection),
        log_config=None,
        access_log=False,
        log_level="error",  # it warns of each request that it cannot read, which have a line in the log already
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=int(settings.grace) + 5,
    )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"Cannot listen on {settings.host!r}, port {settings.port} ({error.strerror or error}); choose another "
            "--port, or a --host of this machine."
        ) from None
    return listener


def _log_plainly() -> None:
    """One line a request on standard error, and nothing of what decoders have to say about a file's header."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    for talkative in ("pydicom", "PIL", "python_multipart", "pylibjpeg"):
        logging.getLogger(talkative).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
