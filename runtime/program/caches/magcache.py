"""MagCache (arXiv 2506.09045): skip while the magnitude of a model's residual has hardly changed, known beforehand.

Source: Zehong-Ma/MagCache, MagCache4Wan2.1/magcache_generate.py. The ratios are measured once per model; with them
the decisions follow without running it. The published method adds the residual of the block stack to what enters it;
an engine shows nothing of its inside, and so the velocity of the last computed step is reused here instead. There
each guidance branch decides by ratios of its own, which differ little and at 50 steps decide alike; here both follow
the conditional branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.contracts.graph import WAN_T2V_1_3B, WAN_T2V_14B
from flowblending.runtime.program.caches.arguments import read_positive, read_whole
from flowblending.runtime.program.caches.cache import Cache, Measurement, View
from flowblending.runtime.program.caches.policy import Decisions, Outline

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NAME = "magcache"

RETENTION = 0.2
"""Share of the run, at its start, in which every step computes."""


@dataclass(frozen=True, kw_only=True)
class MagCacheConstants:
    """What is known of a model.

    Attributes:
        ratios: mean magnitude of the residual at a step over the one at the step before, at each of 50 steps (or as
            many as ``fb-calibrate`` measured), conditional branch.
        threshold: the accumulated error at which a step computes again.
        most: steps in a row that may be skipped. Both are dials, and have the more careful of the published settings
            where nothing is published for a model.
    """

    ratios: tuple[float, ...]
    threshold: float = 0.12
    most: int = 4


# fmt: off
CONSTANTS: Mapping[str, MagCacheConstants] = {
    WAN_T2V_1_3B: MagCacheConstants(threshold=0.12, most=4, ratios=(
        1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535,
        0.99552, 0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388, 0.99349,
        0.99309, 0.9927, 0.99228, 0.99171, 0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504,
        0.9836, 0.98202, 0.97977, 0.97717, 0.9741, 0.97003, 0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241,
        0.86821, 0.81838,
    )),
    WAN_T2V_14B: MagCacheConstants(threshold=0.24, most=6, ratios=(
        1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468,
        0.99438, 0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313, 0.99215,
        0.99218, 0.99216, 0.99163, 0.99138, 0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573, 0.98501, 0.9838,
        0.98177, 0.98037, 0.97678, 0.97546, 0.97184, 0.96711, 0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693,
        0.8796, 0.86111,
    )),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class MagCache:
    """With r the product of the ratios since the last computed step, |1 - r| adds up over the steps since then.

    A step is skipped as long as that sum is below the threshold and not too many were skipped in a row. At a switch
    all of it starts anew. Another number of steps than the ratios' takes the ratio of the nearest position in the run.

    Attributes:
        threshold: in place of the published one.
        most: in place of the published one.
    """

    threshold: float | None = None
    most: int | None = None

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave out the steps whose error stays small.

        Raises:
            UsageError: a model of the run has no constants, published or measured.
        """
        constants = {model: _constants(model, outline) for model in outline.schedule.models}
        computed: list[bool] = []
        product, error, skipped = 1.0, 0.0, 0
        for step, model in enumerate(outline.schedule.models):
            own = constants[model]
            # The source counts both branches in one sequence, hence the two.
            settled = 2 * step >= int(2 * outline.steps * RETENTION)
            if settled:
                product *= own.ratios[_position(step, outline.steps, len(own.ratios))]
                error += abs(1.0 - product)
                skipped += 1
            threshold = own.threshold if self.threshold is None else self.threshold
            most = own.most if self.most is None else self.most
            skip = settled and step not in outline.starts and error < threshold and skipped <= most
            if not skip:
                product, error, skipped = 1.0, 0.0, 0
            computed.append(not skip)
        return decisions.only(computed)


def _constants(model: str, outline: Outline) -> MagCacheConstants:
    """What was measured on the bundle itself, or else what is published."""
    name = outline.architectures.get(model)
    measured = outline.constants.get(NAME, {}).get(model)
    if measured:
        published = CONSTANTS.get(name or "")
        return (
            MagCacheConstants(ratios=tuple(measured))
            if published is None
            else replace(published, ratios=tuple(measured))
        )
    if name is None or name not in CONSTANTS:
        raise UsageError(
            f"MagCache has published constants for {' and '.join(CONSTANTS)} only, and the bundle's {model} model is "
            f"{name or 'not known as one of them'}; measure its own with fb-calibrate BUNDLE --prompts FILE --cache "
            "magcache, choose another cache, such as taylor, or rebuild an older bundle."
        )
    return CONSTANTS[name]


def _position(step: int, steps: int, length: int) -> int:
    """Nearest neighbour, half to even: the source's ``nearest_interp``. A single step takes the last ratio."""
    return length - 1 if steps == 1 else round(step * ((length - 1) / (steps - 1)))


class Magnitudes:
    """The ratios of one model along a trajectory; 1 at its first step."""

    def __init__(self) -> None:
        self._before: npt.NDArray[np.float32] | None = None

    def look(self, view: View) -> Mapping[str, float]:
        """See `Observer`."""
        before, self._before = self._before, view.velocity
        return {NAME: 1.0 if before is None else ratio(view.velocity, before)}


def ratio(velocity: npt.NDArray[np.float32], before: npt.NDArray[np.float32]) -> float:
    """MagCache's magnitude ratio (arXiv 2506.09045): the norm of every position over the one before, averaged.

    The source takes the residual of the block stack and its tokens; an engine shows its velocity, whose positions are
    those of the latents [1, C, F, H, W].
    """
    import numpy as np

    now, then = (np.linalg.norm(each.astype(np.float64), axis=1) for each in (velocity, before))
    return float(np.mean(now / np.maximum(then, float(np.finfo(np.float32).tiny))))


def _read(arguments: str, word: str) -> MagCache:
    if not arguments:
        return MagCache()
    threshold, _, most = arguments.partition(",")
    return MagCache(threshold=read_positive(word, threshold), most=read_whole(word, most, low=1) if most else None)


MAGCACHE = Cache(
    name=NAME,
    form=NAME,
    example=NAME,
    read=_read,
    measurement=Measurement(name=NAME, series=(NAME,), observer=Magnitudes),
)
