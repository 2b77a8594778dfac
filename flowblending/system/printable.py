"""Text of others, such as names of files, on one line and in UTF-8."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

_ESCAPED = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters (the newline is one), of surrogates, and of line and paragraph ends."""


def printable(text: str | Path) -> str:
    r"""The text, with escapes for what no line holds: ``\n`` for a newline, ``\xff`` for a byte that is no UTF-8."""
    whole = os.fsencode(text).decode("utf-8", "backslashreplace") if isinstance(text, Path) else text
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _ESCAPED else each for each in whole
    )
