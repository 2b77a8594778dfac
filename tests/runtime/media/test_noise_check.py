"""What tells noise from finished latents."""

from __future__ import annotations

import numpy as np
import pytest

from flowblending.runtime.media.noise import draw_latents
from flowblending.runtime.media.noise_check import noise_doubts

SHAPES = [(1, 1, 1, 1), (2, 1, 2, 2), (16, 1, 6, 4), (16, 3, 6, 4), (16, 21, 60, 104)]
NOISE = draw_latents(3, (16, 5, 12, 20))[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_is_noise_whatever_its_size_and_seed(shape: tuple[int, ...]) -> None:
    for seed in range(3 if np.prod(shape) > 10**5 else 200):
        assert noise_doubts(draw_latents(seed, shape)[0]) == ""


def test_noise_of_other_libraries_is_noise() -> None:
    assert noise_doubts(np.random.default_rng(0).standard_normal((1, 4, 3, 8, 8), dtype=np.float32)) == ""


def smooth(axis: int) -> np.ndarray:
    """Noise whose neighbours along an axis have something in common, of mean 0 and standard deviation 1."""
    return (NOISE + 0.5 * np.roll(NOISE, 1, axis)) / np.float32(1.25**0.5)


@pytest.mark.parametrize(
    ("array", "doubts"),
    [
        (NOISE + np.float32(0.1), ["mean 0.1"]),
        (NOISE * np.float32(0.9), ["standard deviation 0.9"]),
        (NOISE * np.float32(1.1), ["standard deviation 1.1"]),
        (smooth(2), ["correlation of neighbouring frames 0.4"]),
        (smooth(3), ["correlation of neighbouring rows 0.4"]),
        (smooth(4), ["correlation of neighbouring columns 0.4"]),
        (np.zeros_like(NOISE), ["standard deviation 0 "]),
        (np.ones_like(NOISE), ["mean 1 ", "standard deviation 0 "]),
    ],
)
def test_what_is_no_noise_is_told_by_its_figures(array: np.ndarray, doubts: list[str]) -> None:
    found = noise_doubts(array)
    assert all(doubt[:-1] in found for doubt in doubts), found
    assert found.count("noise has") == len(doubts)
