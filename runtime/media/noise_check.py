"""Whether an array is standard normal noise, as initial latents are, and finished latents are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_SIGMAS: Final = 6.0
"""How far noise may lie from what is expected of it, in standard deviations: one array in 10^8 lies beyond."""
_FIRST_AXIS: Final = 2
"""Of those along which neighbours are compared: frames, rows and columns of [1, C, F, H, W]."""


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """A statistic: what it is called, what was found, what noise has, and its standard deviation there."""

    name: str
    found: float
    expected: float
    deviation: float

    @property
    def usual(self) -> bool:
        return abs(self.found - self.expected) <= _SIGMAS * self.deviation

    def __str__(self) -> str:
        return f"{self.name} {self.found:.3g} (noise has {self.expected:g} within {_SIGMAS * self.deviation:.2g})"


def noise_doubts(array: npt.NDArray[np.floating[Any]]) -> str:
    """What speaks against an array [1, C, F, H, W] being independent standard normal numbers; empty for nothing.

    Its mean, its standard deviation and the correlation of neighbours along every axis of the video are compared with
    those of as many such numbers: 0, 1 and 0 with standard deviations of 1/sqrt(n), 1/sqrt(2n) and 1/sqrt(pairs).
    """
    values = np.asarray(array, np.float64)
    spread = float(values.std())
    figures = [
        _Figure(name="mean", found=float(values.mean()), expected=0.0, deviation=values.size**-0.5),
        _Figure(name="standard deviation", found=spread, expected=1.0, deviation=(2 * values.size) ** -0.5),
        *(_neighbours(values, axis) for axis in range(_FIRST_AXIS, values.ndim) if spread and values.shape[axis] > 1),
    ]
    return ", ".join(str(figure) for figure in figures if not figure.usual)


def _neighbours(values: npt.NDArray[np.float64], axis: int) -> _Figure:
    """The correlation of neighbours along an axis."""
    moved = np.moveaxis(values, axis, 0)
    first, second = moved[:-1].ravel(), moved[1:].ravel()
    scale = math.sqrt(float(first @ first) * float(second @ second))
    name = ("frames", "rows", "columns")[axis - _FIRST_AXIS]
    found = float(first @ second) / scale if scale else 0.0
    return _Figure(name=f"correlation of neighbouring {name}", found=found, expected=0.0, deviation=first.size**-0.5)
