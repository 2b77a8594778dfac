"""Where to switch: the method's criteria (arXiv 2512.24724) on what was measured, and the cheap proxy.

Pure functions of numbers; what the numbers are is said in `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

SIMILARITY = 0.96
"""What a result has to keep of all-large sampling's at the early boundary."""

PROXY_LEVEL = 0.25
"""Of the way from the lowest divergence to the one at an end of the run: below it, the proxy takes the small model."""


def candidates(steps: int, parts: int) -> list[int]:
    """The boundaries to try: every ``parts``-th part of the run, from none of its steps to all of them."""
    return sorted({round(part * steps / parts) for part in range(parts + 1)})


def early_boundary(similarities: Mapping[int, float], threshold: float = SIMILARITY) -> int:
    """The earliest switch to the small model from which on the similarity stays at or above the threshold.

    Args:
        similarities: to all-large sampling, by the number of steps before the switch; the highest number is all of
            them, whose similarity is 1.
    """
    return _first_that_stays(similarities, lambda value: value >= threshold)


def late_boundary(distances: Mapping[int, float], *, all_large: float, noise: float) -> int:
    """The fewest large steps at the end from which on the distance is no worse than all-large sampling's.

    Args:
        distances: by the number of large steps at the end; the highest number leaves no small step.
        all_large: the same distance of all-large sampling.
        noise: its standard deviation; "no worse" is at most this much above.
    """
    return _first_that_stays(distances, lambda value: value <= all_large + noise)


def proxy_boundaries(divergence: Sequence[float]) -> tuple[int, int]:
    """Boundaries from the divergence alone: early and late, in large steps.

    The divergence is U-shaped. From its lowest step outwards, the small model takes every step until the divergence has
    come a quarter of the way (`PROXY_LEVEL`) to what it is at that end of the run. The paper names divergence as a
    proxy, and no rule for it; this one is ours.
    """
    values = np.asarray(divergence, np.float64)
    lowest = int(values.argmin())
    floor, first, last = values[lowest], values[0], values[-1]
    early = late = lowest
    while early > 0 and values[early - 1] <= floor + PROXY_LEVEL * (first - floor):
        early -= 1
    while late + 1 < len(values) and values[late + 1] <= floor + PROXY_LEVEL * (last - floor):
        late += 1
    return early, len(values) - 1 - late


def three_stages(steps: int, early: int, late: int) -> str:
    """``L14 S26 L10``; stages of no steps are left out."""
    lengths = (("L", early), ("S", steps - early - late), ("L", late))
    if lengths[1][1] == 0:
        return f"L{steps}"
    return " ".join(f"{letter}{length}" for letter, length in lengths if length)


def _first_that_stays(values: Mapping[int, float], good: Callable[[float], bool]) -> int:
    """The lowest key from which on all values are good; the highest key if its own is not."""
    ordered = sorted(values, reverse=True)
    found = ordered[0]
    for key in ordered:
        if not good(values[key]):
            break
        found = key
    return found
