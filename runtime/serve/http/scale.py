"""``--workers``: how many videos are made at a time."""

from __future__ import annotations

import re
from typing import Final

from flowblending import UsageError

_MOST: Final = 1024


def read_workers(text: str | None) -> tuple[int, int] | None:
    """The fewest and the most of ``8`` or ``1..8``; None where nothing was given.

    Raises:
        UsageError: it says something else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d{1,5})\.\.)?(\d{1,5})", text.strip())
    if match is not None:
        most = int(match[2])
        fewest = most if match[1] is None else int(match[1])
        if fewest <= most and 1 <= most <= _MOST:
            return fewest, most
    raise UsageError(
        f"--workers is {text}, but a number from 1 to {_MOST} was expected, or with --ray the fewest and the most; "
        "give 4, or 1..8."
    )
