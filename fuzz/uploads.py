"""Multipart forms as a server gets them, in chunks: broken, cut short, too large, with names of any kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any, Self

from fuzz.choices import Choices, Harness, edited
from radgaze.inference.server.refusal import Refusal
from radgaze.inference.server.uploads import LONGEST_NAME, File, Pace, read_files

__all__ = ["HARNESSES"]

BOUNDARY = "----b0undary"
MOST_FILES, MOST_BYTES = 2, 600
NAMES = ("a.png", "../../etc/x", "C:\\x\\y.dcm", "", "\r\n", "é", "a" * 300, "\x00", '"', "\u202e.dcm")


class Request:
    """As much of a request as is read."""

    def __init__(self, headers: dict[str, str], chunks: list[bytes]) -> None:
        self.headers = headers
        self.chunks = chunks

    async def stream(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


class Unhurried(Pace):
    """There is no event loop, and no time in it."""

    def __init__(self) -> None:
        self.received = 0

    def came(self, size: int) -> None:
        self.received += size

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: Any) -> None:
        pass


def form(choices: Choices) -> bytes:
    """Parts, whole or broken."""
    body = b""
    for _ in range(choices.number(3)):
        field = "image" if not choices.one_in(8) else choices.text()
        name = choices.pick(NAMES) if choices.one_in(2) else choices.text()
        headers = [f'Content-Disposition: form-data; name="{field}"; filename="{name}"', "Content-Type: image/png"]
        if choices.one_in(8):
            headers.append(choices.text())
        if choices.one_in(8):
            headers.reverse()
        content = choices.bytes(choices.number(300))
        body += f"--{BOUNDARY}\r\n".encode() + "\r\n".join(headers).encode("utf-8", "replace")
        body += b"\r\n\r\n" + content + b"\r\n"
    body += f"--{BOUNDARY}--\r\n".encode()
    return edited(body, choices) if choices.one_in(3) else body


def result(reading: Coroutine[Any, Any, list[File]]) -> list[File]:
    """What a coroutine returns that never waits; an event loop for each would take most of the time."""
    try:
        reading.send(None)
    except StopIteration as end:
        found: list[File] = end.value
        return found
    raise AssertionError("the body was all there, and yet it waited")


def check_uploads(data: bytes) -> None:
    choices = Choices(data)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    headers = {"content-type": kind}
    if choices.one_in(12):
        odd = choices.text().encode().decode("latin-1")  # as headers arrive
        headers["content-type"] = choices.pick(("", "text/plain", "multipart/form-data", kind * 20, odd))
    if choices.one_in(6):
        headers["content-length"] = str(choices.integer()) if choices.one_in(2) else choices.text()
    body = choices.rest() if choices.one_in(6) else form(choices)
    step = choices.number(60) + 1
    chunks = [body[start : start + step] for start in range(0, len(body), step)]
    request: Any = Request(headers, chunks)
    try:
        files = result(read_files(request, "image", Unhurried(), max_files=MOST_FILES, max_bytes=MOST_BYTES))
    except Refusal:
        return
    assert 1 <= len(files) <= MOST_FILES
    assert sum(len(file.content) for file in files) <= MOST_BYTES
    for file in files:
        assert 0 < len(file.name) <= LONGEST_NAME
        assert file.name.isprintable()
        assert not {"/", "\\"} & set(file.name)


HARNESSES = {"uploads": Harness(check_uploads)}
