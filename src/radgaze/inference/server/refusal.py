"""What is answered when a request is not: a status and one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ["Refusal"]


class Refusal(Exception):
    """Ends a request.

    Args:
        status: Of HTTP.
        sentence: The value, what was expected, and the fix. It goes to the client, never to the log.
        headers: Beside it.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})

    @property
    def body(self) -> bytes:
        """The answer."""
        return json.dumps({"error": self.sentence}, ensure_ascii=False, separators=(",", ":")).encode()

    @property
    def body_headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"content-type", b"application/json"), (b"content-length", str(len(self.body)).encode())]
