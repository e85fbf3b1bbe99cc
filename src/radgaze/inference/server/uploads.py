"""Multipart uploads, read into memory and nowhere else.

Frameworks spool large parts to a temporary file; a radiograph must not reach a disk that nobody thinks of. So the parts
are gathered here, and the body is refused at the limit while it arrives, whatever its header promised. One that hardly
arrives is refused too: it would hold a place that others wait for.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any, Self

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from radgaze.inference.server.refusal import Refusal

__all__ = ["File", "Pace", "base_name", "read_files"]

LONGEST_NAME = 120
SLOWEST = 32 << 10  # bytes a second
PATIENCE, IN_A_HURRY = 5.0, 1.0  # seconds that an upload may lag behind that pace: usually, and when others wait


@dataclass(frozen=True, eq=False)
class File:
    """One uploaded file: what it is called in the answer, and its bytes."""

    name: str
    content: bytearray


def base_name(name: str) -> str:
    """What a file is called in answers: no folder, no character that is not seen, no more than a line of them."""
    last = re.split(r"[/\\]", name)[-1]
    seen = "".join(character for character in last if character.isprintable()).strip()
    if len(seen) > LONGEST_NAME:
        seen = seen[: LONGEST_NAME // 2] + "…" + seen[-LONGEST_NAME // 2 + 1 :]
    return seen if seen.strip(".") else "image"


@dataclass
class _Parts:
    """Gathers the parts of the form field ``wanted``."""

    wanted: str
    most: int
    files: list[File] = field(default_factory=list)
    header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    disposition: bytes = b""
    ended: bool = False

    def on_part_begin(self) -> None:
        self.disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = self.header
        if name.lower() == b"content-disposition":
            self.disposition = bytes(value)
        self.header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        if options.get(b"name", b"").decode("utf-8", "replace") != self.wanted:
            raise Refusal(400, f"The form has a field that is not {self.wanted!r}; send {self.wanted!r} alone.")
        if len(self.files) == self.most:
            raise Refusal(413, f"The form has more than {self.most} files; send at most that many at once.")
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        self.files.append(File(base_name(name), bytearray()))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1].content.extend(memoryview(data)[start:end])

    def on_end(self) -> None:
        self.ended = True


class Pace:
    """Ends an upload that falls too far behind the pace; a context around it. Made in the event loop."""

    def __init__(self) -> None:
        self.start = asyncio.get_running_loop().time()
        self.received, self.patience = 0, PATIENCE
        self.limit = asyncio.timeout_at(self.start + PATIENCE)

    def came(self, size: int) -> None:
        """So many bytes more."""
        self.received += size
        if not self.limit.expired():
            self.limit.reschedule(self.start + self.patience + self.received / SLOWEST)

    def hurry(self) -> None:
        """Others wait for the place."""
        self.patience = IN_A_HURRY
        self.came(0)

    async def __aenter__(self) -> Self:
        await self.limit.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self.limit.__aexit__(*raised)
        except TimeoutError:
            raise Refusal(
                408, f"The upload came at less than {SLOWEST:,} bytes a second; send it over a faster connection."
            ) from None


async def read_files(request: Request, field_name: str, pace: Pace, *, max_files: int, max_bytes: int) -> list[File]:
    """The files of a multipart form's field ``field_name``, in their order.

    Raises:
        Refusal: 413 for too many bytes or files, as soon as that is known; 408 for too slow a body; 400 for anything
            but such a form.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(400, f"The body is no form; send multipart/form-data with the image as {field_name!r}.")
    too_large = Refusal(413, f"The upload has more than {max_bytes:,} bytes; send a smaller one, or fewer images.")
    stated = request.headers.get("content-length") or "0"
    if not re.fullmatch(r"\d{1,20}", stated, re.ASCII):
        raise Refusal(400, "The header Content-Length is no number; leave it to the HTTP client.")
    if int(stated) > max_bytes:
        raise too_large
    parts = _Parts(field_name, max_files)
    names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
    callbacks = {f"on_{name}": getattr(parts, f"on_{name}") for name in names}
    try:
        parser = MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]
        async with pace:
            async for chunk in request.stream():
                pace.came(len(chunk))
                if pace.received > max_bytes:
                    raise too_large
                if chunk:
                    parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "The form is damaged; send it again.") from None
    if not parts.ended:
        raise Refusal(400, "The form was cut short; send it again.")
    if not parts.files:
        raise Refusal(400, f"The form has no file; send the image as {field_name!r}.")
    return parts.files
