"""Clips that stand in for real ones where a VAE is looked at: coloured discs that hide one another and move.

The dead leaves model: discs of random places whose radii have a density of 1/r^3, which gives pictures the edges and
the spectrum of photographs (Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 41, 2001). The smallest
are left out: a preview has no place for them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LATENTS = 1536
"""That a map is fitted on, at least: places of clips."""

_LEAVES = 8
_SMALLEST, _LARGEST = 1 / 8, 1 / 2
"""Radii, as shares of a picture's height."""
_SPEED = 1 / 40
"""Standard deviation of what a disc moves in a frame, as a share of the picture's height."""


def clip(generator: np.random.Generator, frames: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """A clip of discs before a gradient, float32 [3, frames, height, width] in [-1, 1]."""
    rows, columns = (np.arange(size, dtype=np.float32) + 0.5 for size in (height, width))
    angle = generator.uniform(0.0, 2.0 * np.pi)
    along = np.sin(angle) * rows[:, None] / height + np.cos(angle) * columns[None] / width
    along = (along - along.min()) / np.ptp(along)
    first, last = (_colour(generator)[:, None, None, None] for _ in range(2))
    found = np.broadcast_to(first + (last - first) * along[None, None], (3, frames, height, width)).copy()
    times = np.arange(frames)[:, None, None]
    for _ in range(int(generator.integers(1, _LEAVES + 1))):
        radius = height * _radius(generator)
        row, column = generator.uniform(0, height), generator.uniform(0, width)
        down, right = generator.normal(0.0, _SPEED * height, 2)
        inside = (rows[None, :, None] - row - down * times) ** 2 + (
            columns[None, None] - column - right * times
        ) ** 2 < radius**2
        found = np.where(inside[None], _colour(generator)[:, None, None, None], found)
    made: npt.NDArray[np.float32] = np.clip(found, -1.0, 1.0).astype(np.float32)
    return made


def _radius(generator: np.random.Generator) -> float:
    """Of a density of 1/r^3 between the smallest and the largest."""
    low, high = _SMALLEST**-2, _LARGEST**-2
    return float((low + (high - low) * generator.random()) ** -0.5)


def _colour(generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Red, green and blue in [-1, 1]: alike more often than not, as in photographs."""
    saturation = generator.random() ** 2
    grey, own = generator.uniform(-1.0, 1.0), generator.uniform(-1.0, 1.0, 3)
    colour: npt.NDArray[np.float64] = (1.0 - saturation) * grey + saturation * own
    return colour
