"""Names of others on one line: escapes for what no line holds, and everything else as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowblending.system.printable import printable


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain name.mp4", "plain name.mp4"),
        ("a\nb\tc\x1b[31m\x7f\x85", "a\\nb\\tc\\x1b[31m\\x7f\\x85"),
        ("影片\u3000é 👩\u200d🚀", "影片\u3000é 👩\u200d🚀"),
        ("line\u2028paragraph\u2029", "line\\u2028paragraph\\u2029"),
        ("half \ud800", "half \\ud800"),
        (Path(os.fsdecode(b"\xff \xc3\xa9")), "\\xff é"),
    ],
)
def test_what_is_printed_is_one_line_of_utf8(given: str | Path, shown: str) -> None:
    assert printable(given) == shown
    assert printable(given).encode().decode().splitlines() == [shown]
