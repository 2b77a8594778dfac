"""What is refused of files of images and videos before anything is decoded: no files, and sizes that are not taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flowblending import UsageError
from flowblending.system.printable import printable

MOST_PIXELS: Final = 1 << 27
"""Of one picture: 134 million, 400 MB when it is decoded; phones of 108 megapixels stay below it."""
LONGEST_SIDE: Final = 16384
SHORTEST_SIDE: Final = 8
"""Pixels; with fewer there is nothing to see, and no VAE has a smaller cell."""


def check_picture_size(name: str, width: int, height: int) -> None:
    """Refuse pictures that are too large to be decoded, or too small to show anything.

    Args:
        name: of the file, as a message tells it.
        width, height: in pixels, as its header says.

    Raises:
        UsageError: they are.
    """
    if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
        raise UsageError(
            f"{name} is {width}x{height} pixels, but at most {LONGEST_SIDE} a side and {MOST_PIXELS // 10**6} million "
            "altogether are taken; give it smaller."
        )
    if min(width, height) < SHORTEST_SIDE:
        raise UsageError(
            f"{name} is {width}x{height} pixels, but at least {SHORTEST_SIDE} a side were expected; give it larger."
        )


def check_is_file(path: Path, noun: str) -> None:
    """Refuse a name that is no file.

    Args:
        noun: what was expected, such as ``image``.

    Raises:
        UsageError: there is nothing of that name, or a folder or a pipe.
    """
    name = printable(path)
    # Of os.path, to which a name that is too long is no error.
    if os.path.isfile(path):  # noqa: PTH113
        return
    if not os.path.exists(path):  # noqa: PTH110
        raise UsageError(f"There is no {noun} {name}; give the name of a file that is there.")
    kind = "a folder" if os.path.isdir(path) else "no plain file"  # noqa: PTH112
    raise UsageError(f"{name} is {kind}, but the file of one {noun} was expected; give its name.")
