"""Frames laid out in one picture."""

from __future__ import annotations

import numpy as np

from benchmarks.contact_sheet import layout, strip


def test_a_layout_keeps_its_cells_and_makes_room_for_text() -> None:
    red, blue = (np.full((5, 7, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    small = layout([[red, blue]], above=["", ""], left=[""], scale=3)
    assert small.shape[0] % 2 == small.shape[1] % 2 == 0
    for colour in ([255, 0, 0], [0, 0, 255]):
        assert (small == colour).all(-1).sum() == 15 * 21
    text = layout([[red, blue]], above=["a", "b"], left=["a text of more words than fit in one line"], scale=3)
    assert text.shape[0] > small.shape[0]
    assert text.shape[1] > small.shape[1]
    assert (text < 100).all(-1).any()


def test_a_strip_shows_the_first_and_the_last_frame() -> None:
    clip = np.arange(13, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert strip(clip, 3)[0, :, 0].tolist() == [0, 0, 255, 6, 6, 255, 12, 12]
