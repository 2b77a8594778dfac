"""Small pictures of latents, against a loop over pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowblending import FlowBlendingError
from flowblending.runtime.media.preview import PreviewMap


@pytest.mark.parametrize("side", [1, 2, 4])
def test_every_pixel_is_the_maps(side: int) -> None:
    generator = np.random.default_rng(side)
    latents = generator.standard_normal((5, 3, 7)).astype(np.float32)
    matrix = (0.3 * generator.standard_normal((6, side * side * 3))).astype(np.float32)
    picture = PreviewMap(matrix).picture(latents)
    assert picture.shape == (3 * side, 7 * side, 3)
    for row, column, colour in np.ndindex(picture.shape):
        output = (row % side * side + column % side) * 3 + colour
        value = latents[:, row // side, column // side].astype(np.float64) @ matrix[:-1, output] + matrix[-1, output]
        assert abs(np.clip(value / 2 + 0.5, 0, 1) * 255 - picture[row, column, colour]) < 0.501


def test_a_large_video_has_a_small_picture() -> None:
    latents = np.zeros((4, 90, 320), np.float32)
    latents[0, :, 160:] = 1.0
    matrix = np.zeros((5, 3), np.float32)
    matrix[0], matrix[-1] = 2.0, -1.0
    picture = PreviewMap(matrix).picture(latents)
    assert picture.shape == (45, 160, 3)
    assert (picture[:, :80] == 0).all()
    assert (picture[:, 80:] == 255).all()


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_has_a_picture() -> None:
    latents = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32).reshape(1, 2, 2)
    assert PreviewMap(np.ones((2, 3), np.float32)).picture(latents).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3), np.float64), "float64"),
        (np.zeros((4, 3), np.float32), r"\[4, 3\], but float32 \[5, n \* n \* 3\]"),
        (np.zeros((5, 6), np.float32), r"\[5, 6\]"),
        (np.zeros(5, np.float32), r"\[5\]"),
        (np.float32(1), r"\[\]"),
        (None, "Cannot read"),
    ],
)
def test_a_file_that_holds_something_else(array: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preview.npy"
    if array is None:
        path.write_bytes(b"\x93NUMPY")
    else:
        np.save(path, array)  # type: ignore[arg-type]  # what the check is for
    with pytest.raises(FlowBlendingError, match=message):
        PreviewMap.read(path, 4)
