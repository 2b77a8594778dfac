"""Where to switch: the method's criteria (arXiv 2512.24724) on what was measured, and the cheap proxy.

Pure functions of numbers; what the numbers are is said in `measure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowblending.contracts.graph import PipelineSpec
from flowblending.runtime.calibrate.pair import ModelPair
from flowblending.runtime.program.schedule import StageSchedule

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


def late_boundary(distances: Mapping[int, float], *, all_large: float, spread: float) -> int | None:
    """The fewest large steps at the end from which on the distance is no worse than all-large sampling's.

    Args:
        distances: by the number of large steps at the end, from 0 on; the highest number leaves no small step.
        all_large: the same distance of all-large sampling.
        spread: standard deviation over prompts of the difference that leaving out the late stage makes; "no worse" is
            at most this much above.

    Returns:
        None where that difference is not larger than its spread: these prompts do not tell whether a late stage is
        worth its steps.
    """
    if not abs(distances[0] - all_large) > spread:
        return None
    return _first_that_stays(distances, lambda value: value <= all_large + spread)


def prompts_needed(prompts: int, difference: float, spread: float) -> int | None:
    """How many prompts would make a difference as large as its spread, which falls with the root of their number.

    Returns:
        None where no number can be told: there is no difference, or one prompt, which has no spread.
    """
    if prompts < 2 or difference == 0.0:
        return None
    return max(prompts + 1, math.ceil(prompts * (spread / difference) ** 2))


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


def by_proxy(proxy: tuple[int, int], family: int, steps: int) -> tuple[int, int]:
    """The boundaries that the proxy's become: an early one of no steps is the family's.

    What structure a video gets is decided there, and the divergence does not know it.

    Args:
        family: large steps at the start of the family's own schedule.
    """
    early, late = proxy
    return (early or min(family, steps - late)), late


def family_boundaries(pipeline: PipelineSpec, steps: int) -> tuple[int, int]:
    """Large steps at the start and at the end of the model family's own schedule of so many steps."""
    # Any two letters: what they stand for does not matter.
    letters = StageSchedule.parse("LSL", steps, pipeline.early, pipeline.late).letters
    early = next((index for index, letter in enumerate(letters) if letter != "L"), steps)
    late = next((index for index, letter in enumerate(reversed(letters)) if letter != "L"), steps)
    return early, min(late, steps - early)


def by_sigma(runs: str, sigmas: Sequence[float]) -> str:
    """Runs with the noise levels at which they end: ``L14 S26 L10`` becomes ``L@0.9012 S@0.5304 L``.

    A boundary lies in the middle between the last step before it and the first one behind it, in as few digits as keep
    it between them.

    Args:
        sigmas: noise level of every step.
    """
    *stages, last = StageSchedule.runs(runs).stages
    words, end = [], 0
    for stage in stages:
        end += stage.steps
        words.append(f"{stage.letter}@{_between(sigmas[end], sigmas[end - 1])}")
    return " ".join([*words, last.letter]) if words else runs


def _between(low: float, high: float) -> str:
    middle = (low + high) / 2
    texts = (f"{middle:.{digits}f}" for digits in range(4, 17))
    return next(text for text in texts if low < float(text) < high)


def three_stages(steps: int, early: int, late: int, pair: ModelPair) -> str:
    """``L14 S26 L10``; stages of no steps are left out."""
    lengths = ((pair.first, early), (pair.second, steps - early - late), (pair.first, late))
    if lengths[1][1] == 0:
        return f"{pair.first}{steps}"
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
