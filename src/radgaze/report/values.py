"""Measured values as text: fixed digits, true minus signs, and "n/a" where there is no number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from numbers import Real
from typing import Any

import numpy as np

from radgaze.report.glossary import place

__all__ = [
    "count",
    "date_and_time",
    "estimate",
    "finite",
    "interval",
    "large",
    "listing",
    "number",
    "ordered",
    "p_value",
    "plain",
    "section",
    "signed",
    "storage",
]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finite(value: Any) -> float | None:
    """The value as a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    known = float(value)
    return known if math.isfinite(known) else None


def number(value: Any, digits: int = 3) -> str:
    """A measured value with fixed digits; very small ones by powers of ten, infinities as ∞, anything else "n/a"."""
    if isinstance(value, Real) and math.isinf(float(value)):
        return "∞" if float(value) > 0 else "−∞"
    known = finite(value)
    if known is None:
        return "n/a"
    if known != 0 and abs(known) < 0.5 * 10.0**-digits:
        mantissa, exponent = f"{known:.1e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    return f"{known:,.{digits}f}".replace("-", "−")


def signed(value: Any, digits: int = 3) -> str:
    """A difference: as :func:`number`, with a plus sign before what is above zero."""
    known = finite(value)
    return f"+{number(value, digits)}" if known is not None and known > 0 else number(value, digits)


def p_value(value: Any) -> str:
    """A p-value with three digits, ``< 0.001`` below that."""
    known = finite(value)
    return "< 0.001" if known is not None and known < 0.001 else number(value)


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    known = finite(value)
    return "n/a" if known is None else f"{known:,.0f}".replace("-", "−")


def large(value: Any) -> str:
    """A large number as it is said, ``1.48 million``; below a million as :func:`count`."""
    known = finite(value)
    if known is None or abs(known) < 1e6:
        return count(value)
    power, word = (1e9, "billion") if abs(known) >= 1e9 else (1e6, "million")
    return f"{number(known / power, 2)} {word}"


def storage(value: Any) -> str:
    """Bytes as ``5.96 MB`` or ``92 kB``: by powers of 1,000."""
    known = finite(value)
    if known is None:
        return "n/a"
    return f"{known / 1e6:,.2f} MB" if known >= 1e6 else f"{known / 1e3:,.0f} kB"


def plain(value: Any) -> str:
    """Any value of a configuration, as a person writes it."""
    if value is None:
        return "n/a"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):g}" if math.isfinite(value) else number(float(value))
    if isinstance(value, list | tuple):
        return ", ".join(plain(entry) for entry in value) or "none"
    return str(value)


def estimate(value: Any) -> Mapping[str, Any]:
    """A measure as a mapping with ``value`` (a saliency measure's mean is its value); a bare number has no interval."""
    if isinstance(value, Mapping):
        return {"value": value.get("mean"), **value}
    return {"value": value}


def interval(measured: Mapping[str, Any]) -> str:
    """An estimate's bounds, ``0.584 to 0.630``: "to", because a bound may be negative."""
    low, high = measured.get("low"), measured.get("high")
    if finite(low) is None and finite(high) is None:
        return "n/a"
    return f"{number(low)} to {number(high)}"


def listing(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def ordered(keys: Iterable[str]) -> list[str]:
    """Measures in the glossary's order, unknown ones after them as they came."""
    return sorted(keys, key=place)


def section(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under ``key``, empty where there is none."""
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def date_and_time(created: Any) -> dict[str, str | None] | None:
    """An ISO 8601 moment for machines and for people; other text is passed on as it is."""
    if not created:
        return None
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return {"machine": None, "text": str(created)}
    zone = " UTC" if moment.utcoffset() == timedelta(0) else ""
    return {"machine": moment.isoformat(), "text": f"{moment.day} {moment:%B %Y, %H:%M}{zone}"}
