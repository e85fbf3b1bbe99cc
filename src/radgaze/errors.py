"""Errors that a user can act on: one sentence with the value, what was expected, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "RadgazeError", "StorageError", "nearest"]


class RadgazeError(Exception):
    """Base of every error radgaze raises on purpose: one line, whatever the file or library says that it quotes."""

    def __init__(self, sentence: str = "") -> None:
        super().__init__(" ".join(line.strip() for line in sentence.splitlines()))


class InputError(RadgazeError, ValueError):
    """The input cannot be used as it is. The command line prints the sentence and exits with code 2."""


class StorageError(RadgazeError, OSError):
    """The disk did not take what was written: it is full, read-only or broken."""


def nearest(name: str, options: Iterable[str], count: int = 3) -> str:
    """A hint listing the ``options`` closest to a misspelt ``name``: ``"did you mean a, b or c?"``.

    Falls back to the whole list when nothing is close, so the sentence always names a way out.
    """
    known = sorted(set(options))
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if not close:
        return f"choose one of {', '.join(option if option.isprintable() else repr(option) for option in known)}"
    quoted = [repr(option) for option in close]
    return "did you mean " + (quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}") + "?"
