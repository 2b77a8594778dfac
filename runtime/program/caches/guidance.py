"""Guidance skipping: the unconditional branch is left out at some steps, and its distance to the other one reused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from flowblending import UsageError
from flowblending.runtime.program.caches.arguments import read_positive, read_whole
from flowblending.runtime.program.caches.cache import Cache, Decides
from flowblending.runtime.program.caches.policy import Decisions, Outline


@dataclass(frozen=True, kw_only=True)
class GuidanceSkip:
    """The CFG-Cache of FasterCache (arXiv 2410.19355) with both frequency weights 1.

    Where the unconditional branch does not run, uncond = cond + (uncond - cond) of the last step at which it ran.
    FasterCache weights low and high frequencies of that difference by 1.1 in some part of the run, for which it takes a
    Fourier transform; with weights of 1 nothing but the sum remains. ``every`` and ``below`` have the defaults of
    diffusers/hooks/faster_cache.py, FasterCacheConfig (``unconditional_batch_skip_range``,
    ``unconditional_batch_timestep_skip_range``). Steps are counted anew in every stage, and those that another policy
    skips are not counted.

    Attributes:
        every: the branch runs at every N-th computed step of a stage, from the first on; at least 1.
        below: it is left out at timesteps smaller than this only.
    """

    every: int = 5
    below: float = 641.0

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave out the unconditional branch.

        Raises:
            UsageError: guidance is off.
        """
        if not any(outline.uncond):
            raise UsageError(
                "The cache skips the unconditional branch of guidance, but guidance is off; leave guidance out of "
                "--cache, or give a guidance scale above 1."
            )
        uncond, count = [], 0
        for step, (computed, timestep) in enumerate(zip(decisions.uncond, outline.timesteps, strict=True)):
            if step in outline.starts:
                count = 0
            uncond.append(computed and (count % self.every == 0 or timestep >= self.below))
            count += computed
        return dataclasses.replace(decisions, uncond=tuple(uncond))


def _read(arguments: str, word: str) -> GuidanceSkip:
    if not arguments:
        return GuidanceSkip()
    every, _, below = arguments.partition(",")
    number = read_whole(word, every, low=2)
    return GuidanceSkip(every=number, below=read_positive(word, below)) if below else GuidanceSkip(every=number)


GUIDANCE = Cache(
    name="guidance",
    form="guidance:N",
    example="guidance:5",
    help="for the unconditional branch",
    decides=Decides.GUIDANCE,
    read=_read,
)
