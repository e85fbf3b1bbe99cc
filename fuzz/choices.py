"""Bytes as a row of choices, so that a fuzzer that changes bytes changes decisions and not only the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from radgaze.errors import RadgazeError

__all__ = ["Choices", "Harness", "altered", "edited", "refusals"]

T = TypeVar("T")

NUMBERS = (0, 1, 2, 7, 8, 15, 16, 127, 128, 255, 256, 4095, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 10**30)
REALS = (0.0, -0.0, 0.5, -1.0, 1e-320, 1e300, -1e300, float("inf"), float("-inf"), float("nan"))
WORDS = (
    "",
    " ",
    "0",
    "-1",
    "1e400",
    "nan",
    "\x00",
    "../x",
    "/",
    "é",
    "\ud7ff",
    "a" * 300,
    "{}",
    "null",
    "\n",
    "\u2028",
)


@dataclass(frozen=True)
class Harness:
    """A reader under the fuzzer.

    Attributes:
        check: reads what the bytes stand for; raises only where the reader breaks its contract.
        seeds: bytes to start from.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]] = lambda: [bytes(64), bytes(range(256))]


class Choices:
    """Reads decisions off ``data``; when it has run out, every decision is the first option."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def __bool__(self) -> bool:
        return self.place < len(self.data)

    def bytes(self, count: int) -> bytes:
        taken = self.data[self.place : self.place + count]
        self.place += count
        return taken

    def rest(self) -> bytes:
        return self.bytes(len(self.data))

    def number(self, most: int) -> int:
        """From 0 to ``most``."""
        count = (most.bit_length() + 7) // 8
        return int.from_bytes(self.bytes(count), "little") % (most + 1)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.number(len(options) - 1)]

    def one_in(self, count: int) -> bool:
        """False where the bytes have run out."""
        return self.number(255) % count == 1 % count and self.place <= len(self.data)

    def integer(self) -> int:
        value = self.pick(NUMBERS) if self.one_in(2) else self.number(255)
        return -value if self.one_in(4) else value

    def real(self) -> float:
        if self.one_in(2):
            return self.pick(REALS)
        return struct.unpack("<d", self.bytes(8).ljust(8, b"\0"))[0] if self.one_in(4) else self.number(4000) / 4 - 100

    def text(self) -> str:
        return self.pick(WORDS) if self.one_in(2) else self.bytes(self.number(24)).decode("utf-8", "replace")

    def value(self, depth: int = 0) -> Any:
        """A JSON value."""
        kind = self.number(7 if depth < 3 else 5)
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.number(3))]
        if kind == 7:
            return {self.text(): self.value(depth + 1) for _ in range(self.number(3))}
        return (None, self.one_in(2), self.integer(), self.real(), self.text(), self.number(9))[kind]


def edited(content: bytes, choices: Choices, most: int = 6) -> bytes:
    """Up to ``most`` changes of a file: bytes overwritten, doubled, taken out, put in, or the end cut off."""
    edits = bytearray(content)
    for _ in range(choices.number(most)):
        start = choices.number(max(len(edits) - 1, 0))
        kind, length = choices.number(5), choices.number(16)
        if kind <= 1:
            edits[start : start + length] = choices.bytes(length)
        elif kind == 2:
            number, width = choices.pick(NUMBERS), choices.pick((1, 2, 4, 8))
            order = "big" if choices.one_in(2) else "little"
            edits[start : start + width] = (number % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 3:
            del edits[start : start + length]
        elif kind == 4:
            edits[start:start] = edits[start : start + 4 * length]
        else:
            del edits[start:]
    return bytes(edits)


def altered(value: Any, choices: Choices, most: int = 3) -> Any:
    """A copy of JSON with up to ``most`` values replaced, left out or put in, anywhere in it."""
    copy = json.loads(json.dumps(value))
    for _ in range(choices.number(most)):
        place = copy
        while isinstance(place, dict | list) and place:
            key = choices.pick(sorted(place)) if isinstance(place, dict) else choices.number(len(place) - 1)
            if isinstance(place[key], dict | list) and place[key] and not choices.one_in(3):
                place = place[key]
                continue
            kind = choices.number(7)
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, dict):
                place[choices.text()] = choices.value()
            else:
                place[key] = choices.value()
            break
        else:
            copy = choices.value()
    return copy


@contextmanager
def refusals() -> Iterator[None]:
    """Let a refusal in one sentence pass, as one that says nothing or says it on several lines may not."""
    try:
        yield
    except RadgazeError as error:
        said = str(error)
        assert said.strip(), "a refusal without a word"
        assert len(said.splitlines()) == 1, f"a refusal on several lines: {said!r}"
