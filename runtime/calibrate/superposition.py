"""Which steps to give the small model, if the errors that they cause in the final latents add up as vectors.

What a block of small steps does to the final latents is measured (`flowblending.runtime.calibrate.propagation`); to
first order the blocks of a schedule do the sum of it. The sum's squared length is a quadratic form: errors that point
the same way count double, and those that cancel count less. Its matrix is the blocks' inner products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BEGINNINGS = 100_000
"""Beginnings of schedules that are kept at a step; all there are for 50 steps and 4 switches."""


@dataclass(frozen=True, kw_only=True)
class Superposition:
    """Everything that a schedule's error is predicted by.

    Attributes:
        gram: inner products of the errors of blocks in the final latents [blocks, blocks], per element.
        weights: which share of each block's error a step causes [steps, blocks].
    """

    gram: Array
    weights: Array

    @classmethod
    def of(cls, gram: Array, starts: Sequence[int], errors: Sequence[float]) -> Superposition:
        """A block's error is shared out among its steps.

        Args:
            gram: see above.
            starts: the first step of every block, from 0 on, ascending.
            errors: of every step on its own, by which it is shared out; see `step_errors`.
        """
        owner = np.searchsorted(starts, np.arange(len(errors)), side="right") - 1
        # Two models that agree everywhere still leave a share to every step.
        of_steps = np.maximum(errors, np.finfo(np.float64).tiny)
        weights = np.zeros((len(errors), len(starts)))
        weights[np.arange(len(errors)), owner] = of_steps / np.bincount(owner, of_steps)[owner]
        return cls(gram=gram, weights=weights)

    def error(self, small: Sequence[bool]) -> float:
        """The predicted mean square of the final latents' error, if these steps are the small model's."""
        total = self.weights[np.asarray(small, bool)].sum(0)
        return _square(total @ self.gram @ total)


def best(law: Superposition, count: int, switches: int) -> list[tuple[str, float]]:
    """The best schedule of ``count`` small steps for every number of switches that makes it better than fewer do.

    All schedules are tried, step by step; where there are more than `BEGINNINGS` beginnings, those with the least error
    so far go on, as many of each number of small steps, number of switches and last model.

    Args:
        count: 0 to the number of steps.
        switches: at least 1, or 0 where ``count`` leaves one model alone.

    Returns:
        Schedules with their predicted mean squares, from the fewest switches to the most.
    """
    steps = len(law.weights)
    kept = _Beginnings(
        small=np.zeros((1, 0), bool),
        error=np.zeros(1),
        slope=np.zeros((1, len(law.gram))),
        switched=np.zeros(1, np.int64),
    )
    for step in range(steps):
        kept = _extended(kept, law, step)
        taken = kept.small.sum(1)
        possible = (taken <= count) & (count - taken < steps - step) & (kept.switched <= switches)
        kept = _pruned(kept.only(possible))
    found: list[tuple[str, float]] = []
    for number in sorted(set(kept.switched.tolist())):
        group = kept.only(kept.switched == number)
        least = int(group.error.argmin())
        if not found or group.error[least] < found[-1][1]:
            found.append((_runs(group.small[least].tolist()), _square(group.error[least])))
    return found


def best_in_one_piece(law: Superposition, count: int) -> tuple[str, float]:
    """The same with the small steps side by side: what more stages have to be better than."""
    steps = len(law.weights)
    tried = [[start <= step < start + count for step in range(steps)] for start in range(steps - count + 1)]
    error, small = min((law.error(small), small) for small in tried)
    return _runs(small), error


@dataclass(frozen=True, kw_only=True)
class _Beginnings:
    """Of many schedules at once: which steps are small, the square so far, half its slope, switches so far."""

    small: npt.NDArray[np.bool_]
    error: Array
    slope: Array
    switched: npt.NDArray[np.int64]

    def only(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> _Beginnings:
        return _Beginnings(**{each.name: getattr(self, each.name)[chosen] for each in dataclasses.fields(self)})


def _extended(kept: _Beginnings, law: Superposition, step: int) -> _Beginnings:
    """Every beginning with one more step: of the large model, and of the small one."""
    weight, before = law.weights[step], len(kept.error)
    with_small = kept.error + 2.0 * kept.slope @ weight + weight @ law.gram @ weight
    model = np.repeat((False, True), before)
    small = np.concatenate((np.tile(kept.small, (2, 1)), model[:, np.newaxis]), axis=1)
    switch = small[:, -1] != small[:, -2] if step else np.zeros(2 * before, bool)
    return _Beginnings(
        small=small,
        error=np.concatenate((kept.error, with_small)),
        slope=np.concatenate((kept.slope, kept.slope + weight @ law.gram)),
        switched=np.tile(kept.switched, 2) + switch,
    )


def _pruned(kept: _Beginnings) -> _Beginnings:
    if len(kept.error) <= BEGINNINGS:
        return kept
    state = np.stack((kept.small.sum(1), kept.switched, kept.small[:, -1]), axis=1)
    _, group, sizes = np.unique(state, axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((kept.error, group))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return kept.only(order[rank < BEGINNINGS // len(sizes)])


def _square(value: float) -> float:
    """Rounding may leave a square a little below zero."""
    return max(0.0, float(value))


def _runs(small: Sequence[bool]) -> str:
    text = "".join("LS"[each] for each in small)
    starts = [step for step in range(len(text)) if step == 0 or text[step] != text[step - 1]]
    return " ".join(f"{text[a]}{b - a}" for a, b in zip(starts, [*starts[1:], len(text)], strict=True))
