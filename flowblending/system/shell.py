"""Commands that are printed to be copied into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def command(*words: str | Path) -> str:
    """The words as one line that a shell takes apart into the same words.

    A path that begins with a dash is written as one in the current folder, so that it is not taken for an option.
    """
    plain = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(plain)
