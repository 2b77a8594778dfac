"""EasyCache (arXiv 2507.02860): skip while the change of the velocity that the latents' own change predicts is small.

Source: H-EmbodVis/EasyCache, EasyCache4Wan2.1/easycache_generate.py (``easycache_forward``). At a computed step c, with
b the computed step before,

    k = mean|v_c - v_b| / mean|x_c - x_b|
    prediction at a later step t = k * mean|x_t - x_(t-1)| / mean|v_c|

The predictions add up from c on, and a step is skipped as long as the sum is below the threshold. All of it looks at
the conditional branch, and decides for both. What is reused of either branch is v_c - x_c, so that a skipped step's
velocity is v_c + x_t - x_c. The first 10 steps of a run and its last compute. All of it sees nothing but latents and
velocities, and is here as it is published; only that at a switch everything is forgotten, and the first two steps of
every stage compute.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.contracts.program import COND, LATENTS, VELOCITY, Choice, Distance, Mix, Program
from flowblending.runtime.program.caches.arguments import read_positive, read_whole
from flowblending.runtime.program.caches.cache import Cache, Measurement, View
from flowblending.runtime.program.caches.policy import Decisions, Online, Outline
from flowblending.runtime.program.combination import Combination, slot

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NAME = "easycache"

THRESHOLD = 0.05
FIRST = 10
"""The source's defaults, for 50 steps."""

COMPUTED = "latents_computed"
_BEFORE = "latents_before"
_HISTORY = 2
"""Computed steps of a stage before anything is predicted."""


@dataclass(frozen=True, kw_only=True)
class EasyCache:
    """Decided while the program runs, by the formula above.

    Attributes:
        threshold: of the sum.
        first: steps at the start of the run that compute.
    """

    threshold: float = THRESHOLD
    first: int = FIRST

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave the decision about all other steps to the run.

        Raises:
            UsageError: no step is left to decide about.
        """
        free = _free(outline, self.first, "easycache")
        return dataclasses.replace(decisions, online=Online(threshold=self.threshold, free=free))


@dataclass(frozen=True, kw_only=True)
class EasyMask:
    """Decided beforehand, by predictions that ``fb-calibrate`` measured along a trajectory on which all steps compute.

    They are the formula's, with c the step before t and b the one before that. Another number of steps takes the
    prediction of the nearest position in the run, in proportion to the length of a step.

    Attributes:
        threshold: of the sum.
        first: steps at the start of the run that compute.
    """

    threshold: float = THRESHOLD
    first: int = FIRST

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave out the steps whose sum stays small.

        Raises:
            UsageError: nothing was measured on the bundle, or no step is left to decide about.
        """
        measured = {model: _measured(model, outline) for model in outline.schedule.models}
        free = _free(outline, self.first, "easycache-static")
        computed: list[bool] = []
        total = 0.0
        for step, model in enumerate(outline.schedule.models):
            total = total + _prediction(measured[model], step, outline.steps) if free[step] else math.inf
            computed.append(total >= self.threshold)
            if computed[-1]:
                total = 0.0
        return dataclasses.replace(decisions.only(computed), relative=True)


def predicted_change(*, moved: float, travelled: float, changed: float, size: float) -> float:
    """The formula above; infinite where latents or velocity are 0.

    Args:
        moved: mean|x_t - x_(t-1)|.
        travelled: mean|x_c - x_b|.
        changed: mean|v_c - v_b|.
        size: mean|v_c|.
    """
    return changed * moved / (travelled * size) if travelled * size else math.inf


def reused(velocity: Combination) -> Combination:
    """A skipped step's velocity, from the velocity at the step whose latents are in the slot ``COMPUTED``."""
    return velocity + slot(LATENTS) - slot(COMPUTED)


def observed(
    program: Program, online: Online, *, guided: bool, starts: frozenset[int], reuse: Sequence[Sequence[Mix]]
) -> Program:
    """A program whose steps all compute, with the rule added.

    Args:
        guided: whether the conditional branch is one of two.
        starts: the first steps of stages, from 0 on.
        reuse: the solver's instructions after a skipped step, for every step.
    """
    velocity = COND if guided else VELOCITY
    last = f"{velocity}_computed"
    begin = slot(LATENTS).into(_BEFORE)
    return dataclasses.replace(
        program,
        steps=tuple(dataclasses.replace(step, instructions=(begin, *step.instructions)) for step in program.steps),
        choice=Choice(
            threshold=online.threshold,
            moved=Distance(slot=LATENTS, other=_BEFORE),
            # When a step is over, only the slot of its start still has the latents that its engine saw.
            learned=(
                Distance(slot=_BEFORE, other=COMPUTED),
                Distance(slot=velocity, other=last),
                Distance(slot=velocity),
            ),
            kept=(slot(_BEFORE).into(COMPUTED), slot(velocity).into(last)),
            reuse=tuple((begin, *update) if free else None for free, update in zip(online.free, reuse, strict=True)),
            starts=starts,
        ),
    )


def _free(outline: Outline, first: int, name: str) -> tuple[bool, ...]:
    """The steps that may be skipped: neither at the start nor at the end of the run, nor among a stage's first two."""
    free, since = [], 0
    for step in range(outline.steps):
        since = 0 if step in outline.starts else since + 1
        free.append(since >= _HISTORY and first <= step < outline.steps - 1)
    if not any(free):
        raise UsageError(
            f"EasyCache computes the first {first} steps of a run, the first {_HISTORY} of every stage and the last, "
            f"which leaves none of the {outline.steps} steps of {outline.schedule} to skip; give fewer first steps, as "
            f"in {name}:0.05,3, or another cache."
        )
    return tuple(free)


def _measured(model: str, outline: Outline) -> Sequence[float]:
    measured = outline.constants.get(NAME, {}).get(model)
    if not measured:
        raise UsageError(
            f"EasyCache as a static mask has no constants for the bundle's {model} model; measure them with "
            "fb-calibrate BUNDLE --prompts FILE --cache easycache, or give --cache easycache, which needs none."
        )
    return measured


def _prediction(measured: Sequence[float], step: int, steps: int) -> float:
    position = round(step * (len(measured) - 1) / (steps - 1))
    return measured[position] * len(measured) / steps


class Predictions:
    """The prediction at every step of one model along a trajectory; 0 at its first two, of which nothing follows."""

    def __init__(self) -> None:
        self._before: View | None = None
        self._travelled = 0.0
        self._changed = 0.0

    def look(self, view: View) -> Mapping[str, float]:
        """See `Observer`."""
        before, self._before = self._before, view
        if before is None:
            return {NAME: 0.0}
        moved, travelled = _mean(view.latents, before.latents), self._travelled
        prediction = predicted_change(
            moved=moved, travelled=travelled, changed=self._changed, size=_mean(before.velocity, None)
        )
        self._travelled, self._changed = moved, _mean(view.velocity, before.velocity)
        return {NAME: prediction if travelled else 0.0}


def _mean(array: npt.NDArray[np.float32], other: npt.NDArray[np.float32] | None) -> float:
    import numpy as np

    difference = array if other is None else array - other
    return float(np.abs(difference).mean(dtype=np.float64))


def _threshold_and_first(arguments: str, word: str) -> tuple[float, int]:
    threshold, _, first = arguments.partition(",")
    return (
        read_positive(word, threshold) if arguments else THRESHOLD,
        read_whole(word, first, low=1) if first else FIRST,
    )


def _online(arguments: str, word: str) -> EasyCache:
    threshold, first = _threshold_and_first(arguments, word)
    return EasyCache(threshold=threshold, first=first)


def _static(arguments: str, word: str) -> EasyMask:
    threshold, first = _threshold_and_first(arguments, word)
    return EasyMask(threshold=threshold, first=first)


EASYCACHE_ONLINE = Cache(name=NAME, form=NAME, example=NAME, help="which decides on the way", read=_online, online=True)
EASYCACHE_STATIC = Cache(
    name="easycache-static",
    form="easycache-static",
    example="easycache-static",
    read=_static,
    measurement=Measurement(name=NAME, series=(NAME,), observer=Predictions),
)
