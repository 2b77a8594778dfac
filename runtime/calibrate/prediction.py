"""EasyCache's prediction at every step, for a static mask; see `flowblending.runtime.program.caches.easycache`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowblending.runtime.calibrate.trajectory import Floats
from flowblending.runtime.program.caches.easycache import predicted_change


@dataclass(frozen=True, kw_only=True)
class PreviousStep:
    """What a model's last step leaves to predict the next change from.

    Attributes:
        latents: at that step.
        velocity: conditional, of the model, at that step.
        travelled: mean distance of its latents from those of the step before.
        changed: the same of its velocity. Both are 0 at the first step, from which nothing follows.
    """

    latents: Floats
    velocity: Floats
    travelled: float = 0.0
    changed: float = 0.0


def look(before: PreviousStep | None, latents: Floats, velocity: Floats) -> tuple[float, PreviousStep]:
    """The prediction at a step, 0 if it is one of the first two, and what the next one follows from."""
    if before is None:
        return 0.0, PreviousStep(latents=latents, velocity=velocity)
    moved = _mean(latents, before.latents)
    prediction = predicted_change(
        moved=moved, travelled=before.travelled, changed=before.changed, size=_mean(before.velocity, None)
    )
    seen = PreviousStep(latents=latents, velocity=velocity, travelled=moved, changed=_mean(velocity, before.velocity))
    return prediction if before.travelled else 0.0, seen


def _mean(array: Floats, other: Floats | None) -> float:
    difference = array if other is None else array - other
    return float(np.abs(difference).mean(dtype=np.float64))
