"""Masks: which steps run their engine, from the step's number alone. The others reuse the last velocity."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from flowblending import UsageError
from flowblending.runtime.program.caches.arguments import read_whole
from flowblending.runtime.program.caches.cache import Cache
from flowblending.runtime.program.caches.policy import Decisions, Outline

SCM_TABLES = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}
"""Step computation masking: lengths of the runs of computed steps, and of the skipped ones between them, for
``SCM_STEPS`` steps, the slowest mask first. Source: vipshop/cache-dit, src/cache_dit/caching/cache_interface.py,
``steps_mask``."""

SCM_STEPS = 28


@dataclass(frozen=True, kw_only=True)
class StaticMask:
    """The user's own mask.

    Attributes:
        digits: one for each step: 1 computes, 0 reuses.
    """

    digits: str

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave out the steps marked 0."""
        if len(self.digits) != outline.steps:
            raise UsageError(
                f"The mask has {len(self.digits)} digits, but the run has {outline.steps} steps; give one digit per "
                "step, 1 to compute and 0 to reuse."
            )
        return decisions.only([digit == "1" for digit in self.digits])


@dataclass(frozen=True, kw_only=True)
class Scm:
    """A mask of cache-dit: many computed steps at first, then ever longer pauses; the last step computes.

    The tables are for 28 steps. For another number their bounds move in proportion, and no run of computed steps gets
    shorter than one (cache-dit stretches them otherwise, and not alike in all its versions). The first step after a
    switch computes as well. A stage in which all this would leave fewer steps than the next faster mask has there gets
    that mask's: at few steps, the bounds of one mask may round down where those of the other round up.

    Attributes:
        name: ``slow``, ``medium``, ``fast`` or ``ultra``.
    """

    name: str

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave out the steps between the table's runs."""
        return decisions.only(_scm_steps(self.name, outline))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Every N-th step of a stage, from its first on.

    So TaylorSeer (arXiv 2503.06923) decides: Shenyi-Z/TaylorSeer, TaylorSeer-Wan2.1, with N = 5 (``fresh_threshold``).

    Attributes:
        every: N, at least 1.
    """

    every: int

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave out the steps between."""
        computed, since = [], 0
        for step in range(outline.steps):
            since = 0 if step in outline.starts else since + 1
            computed.append(since % self.every == 0)
        return decisions.only(computed)


def _scm_steps(name: str, outline: Outline) -> list[bool]:
    """Whether each step computes: in every stage at least as many as with the masks further down the tables."""
    computed = _scaled(name, outline)
    names = list(SCM_TABLES)
    if name == names[-1]:
        return computed
    faster = _scm_steps(names[names.index(name) + 1], outline)
    bounds = [*sorted(outline.starts), outline.steps]
    for start, end in itertools.pairwise(bounds):
        if sum(computed[start:end]) < sum(faster[start:end]):
            computed[start:end] = faster[start:end]
    return computed


def _scaled(name: str, outline: Outline) -> list[bool]:
    """A table's runs in proportion, and the first step of every stage."""
    computed = [step in outline.starts for step in range(outline.steps)]
    start = 0
    for length, pause in itertools.zip_longest(*SCM_TABLES[name], fillvalue=0):
        first = start * outline.steps // SCM_STEPS
        end = (start + length) * outline.steps // SCM_STEPS
        for step in range(first, max(end, first + 1)):
            computed[step] = True
        start += length + pause
    return computed


def _mask(arguments: str, word: str) -> StaticMask:
    if not arguments or set(arguments) - {"0", "1"}:
        raise UsageError(f"The cache {word} has no mask; write a digit for every step, 1 to compute and 0 to reuse.")
    return StaticMask(digits=arguments)


def _scm(arguments: str, word: str) -> Scm:
    if arguments not in SCM_TABLES:
        raise UsageError(f"The cache {word} is no mask that is published; give scm: and {', '.join(SCM_TABLES)}.")
    return Scm(name=arguments)


def _interval(arguments: str, word: str) -> Interval:
    return Interval(every=read_whole(word, arguments, low=2))


MASK = Cache(name="mask", form="mask:1101...", example="mask:1101...", help="a digit a step", read=_mask)
SCM = Cache(name="scm", form=f"scm:{'|'.join(SCM_TABLES)}", example="scm:fast", read=_scm)
INTERVAL = Cache(name="interval", form="interval:N", example="interval:5", read=_interval)
