"""Measures of many clips: their names, and their means with standard errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Samples = Mapping[str, Values]
"""Measure -> a value for each prompt, [N]; not a number where a prompt has none."""

REFERENCE = "LLL"
RENDERED = "rendered"
"""The prompts' scenes as drawn: what a perfect model would make of them."""
ATTRIBUTES = ("number", "colour", "kind", "motion", "relation", "background")
"""What the judge reads: each is a measure, the share of a clip's attributes of that name that are right."""
FLOPS = "flops"
"""Of the transformers' calls; a step cache may decide about them while it samples."""
TIMES = ("loop", "engines", "total")
"""Seconds of the sampling loop, of the engine calls in it, and from the prompt's text to the frames."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over prompts.

    Args:
        value: not a number without any sample.
        error: its standard error; not a number with less than two samples.
        count: of samples.
    """

    value: float
    error: float
    count: int


def mean(values: Values) -> Mean:
    """Mean and standard error of the values that are there."""
    there = values[~np.isnan(values)]
    count = len(there)
    # Equal clips have an infinite PSNR, and infinity has no spread.
    spread = float(there.std(ddof=1)) if count > 1 and np.isfinite(there).all() else math.nan
    return Mean(
        value=float(there.mean()) if count else math.nan,
        error=spread / math.sqrt(count) if count else math.nan,
        count=count,
    )


def table(rows: Sequence[Mapping[str, float]]) -> Samples:
    """One mapping of measures for each prompt, as columns."""
    return {name: np.asarray([row[name] for row in rows], np.float64) for name in rows[0]}
