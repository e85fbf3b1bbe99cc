"""The server's limits, and the token that guards it."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from radgaze.cohort.pixels import MAX_PIXELS
from radgaze.errors import InputError

__all__ = ["TOKEN_VARIABLE", "Settings", "is_loopback", "read_token"]

TOKEN_VARIABLE = "RADGAZE_TOKEN"
LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class Settings:
    """Where the server listens, and what it takes.

    Attributes:
        host: Address or name. One that other machines can reach needs a token.
        port: 0 takes a free one.
        token: What a client must present; None asks for none.
        max_bytes: Of a request's body.
        max_pixels: Of an image, read from its header before it is decoded.
        max_files: Images in one request.
        queue: Requests held at once, from their first byte to their answer; further ones are told to come back.
        connections: Open at once; a further one takes the place of the one that keeps the server waiting longest.
        header_timeout: Seconds in which a request's header must be complete.
        timeout: Seconds from a request's header to its answer, its upload included; and those to take the answer.
        batch_size: Most images in one pass of the network.
        window: Seconds that the network waits for images being decoded before it runs with those it has.
        readers: Threads that decode images and encode answers.
        grace: Seconds that requests may still take once the server was told to stop.

    Raises:
        InputError: A value out of range, or a host that others can reach without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_bytes: int = 64 << 20
    max_pixels: int = 50_000_000
    max_files: int = 64
    queue: int = 64
    connections: int = 256
    header_timeout: float = 10.0
    timeout: float = 60.0
    batch_size: int = 8
    window: float = 0.005
    readers: int = 2
    grace: float = 10.0

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"Host {self.host!r} can be reached from other machines, so a token is needed: write one into a file "
                f"and give --token-file FILE, or set {TOKEN_VARIABLE}."
            )
        if not 0 <= self.port < 65536:
            raise InputError(f"port is {self.port}; expected 0 (any free one) to 65535.")
        for name in ("max_bytes", "max_pixels", "max_files", "queue", "connections", "batch_size", "readers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.max_pixels > MAX_PIXELS:
            raise InputError(f"max_pixels is {self.max_pixels:,}; expected at most {MAX_PIXELS:,}.")
        if not (self.timeout > 0 and self.header_timeout > 0 and self.grace >= 0 and self.window >= 0):
            raise InputError(
                f"timeout, header_timeout, grace and window are {self.timeout:g}, {self.header_timeout:g}, "
                f"{self.grace:g} and {self.window:g} s; expected time-outs above zero and no negative time."
            )

    @property
    def own_names(self) -> frozenset[str] | None:
        """Host names that a request may be addressed to; None for any. Without a token they are all that keeps a page
        from elsewhere, whose name was pointed at this machine (DNS rebinding), from reading the answers.
        """
        return None if self.token else frozenset({"localhost", "127.0.0.1", "::1", self.host.strip("[]").lower()})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; a name other than ``localhost`` is taken to be reachable."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None) -> str | None:
    """The token in a file, or in the environment; None where there is neither. Never on a command line, where other
    users of the machine could read it.

    Raises:
        InputError: A file that cannot be read, or a token that is too short or that a header cannot carry.
    """
    if file is not None:
        try:
            text, where = file.read_text(encoding="utf-8"), f"The token in {str(file)!r}"
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Token file {str(file)!r} cannot be read ({error}); check the path.") from error
    elif TOKEN_VARIABLE in os.environ:
        text, where = os.environ[TOKEN_VARIABLE], f"The token in {TOKEN_VARIABLE}"
    else:
        return None
    token = text.strip()
    if len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(
            f"{where} has {len(token)} characters; expected at least {LEAST_TOKEN} printable ASCII ones without a "
            "space, for example from `openssl rand -hex 32`."
        )
    return token
