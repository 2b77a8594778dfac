"""Reading the arguments of step caches: ``magcache:0.12,4``."""

from __future__ import annotations

import math

from flowblending import UsageError


def read_whole(word: str, text: str, *, low: int, high: int | None = None) -> int:
    """A whole number.

    Args:
        word: the cache that it stands in, for the message.

    Raises:
        UsageError: it is none, or out of bounds.
    """
    # Nine digits are enough for anything, and int() refuses thousands of them with an error of its own.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= (high or int(text))):
        wanted = f"from {low} on" if high is None else f"from {low} to {high}"
        raise UsageError(f"The cache {word} has {text or 'nothing'} where a whole number {wanted} was expected.")
    return int(text)


def read_positive(word: str, text: str) -> float:
    """A finite number above 0.

    Args:
        word: the cache that it stands in, for the message.

    Raises:
        UsageError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"The cache {word} has {text or 'nothing'} where a number above 0 was expected.")
    return value
