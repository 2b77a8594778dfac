"""How many steps a budget gives to the small model, and the cheap proxy of which ones.

A small step adds about its length in sigma times the root mean square of the velocities' difference to the error of
the latents (one Euler step's worth; that later steps damp or amplify it is left out). With that, the best schedule of
n small steps and at most k switches follows by dynamic programming over (step, small steps so far, switches so far,
model): exact for any measure that is a sum over steps, in steps^2 * k operations. `propagation` has a better one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowblending import UsageError
from flowblending.contracts.graph import TEXT_ENCODER, VAE
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.models import default_schedule
from flowblending.contracts.program import Program
from flowblending.runtime.calibrate.pair import ModelPair, pair_of
from flowblending.runtime.program.cost import flops_at
from flowblending.runtime.program.schedule import StageSchedule

_State = tuple[int, int, str]
"""Small steps so far, switches so far, letter of the last step."""


def step_errors(rms: Sequence[float], sigmas: Sequence[float]) -> list[float]:
    """What a small step in place of a large one adds to the latents' error, per step.

    Args:
        rms: of the velocities' difference at every step.
        sigmas: noise level of every step; the last step goes to 0.
    """
    return [value * (now - after) for value, (now, after) in zip(rms, itertools.pairwise([*sigmas, 0.0]), strict=True)]


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """A budget, and what it comes to.

    Attributes:
        share: of all-large sampling's operations, or of its time.
        seconds: of a whole video, if the budget is one of time.
        small_steps: the least number that keeps a run within the budget.
    """

    share: float
    seconds: float | None
    small_steps: int

    def __str__(self) -> str:
        return words_of_budget(self.share, self.seconds)


def words_of_budget(share: float, seconds: float | None) -> str:
    """A budget as `Allowance` has it, in words."""
    return f"{share:.0%} of all-large sampling's operations" if seconds is None else f"{seconds:g} s a video"


def read_budget(text: str) -> tuple[float, bool]:
    """A number, and whether it is one of seconds: ``0.6``, ``60%`` or ``12.5s``.

    Raises:
        UsageError: neither a share above 0, up to 1, nor a number of seconds above 0.
    """
    text = text.strip()
    in_seconds = text.endswith("s")
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text.removesuffix("s"))
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf and (in_seconds or value <= 1)):
        raise UsageError(
            f"The budget is {text}, but a share above 0, up to 1, or seconds were expected; try 0.6, 60% or 12.5s."
        )
    return value, in_seconds


def allowance(text: str, manifest: Manifest, program: Program, seconds: Mapping[str, float]) -> Allowance:
    """What a budget comes to with a bundle.

    Args:
        text: see `read_budget`.
        program: of the first model alone.
        seconds: per call of both models' engines, and per video of the other components; see `Timings`.

    Raises:
        UsageError: the text is no budget, all-small sampling costs more, or a time is needed and was not measured.
    """
    value, in_seconds = read_budget(text)
    steps = len(program.steps)
    if not in_seconds:
        return Allowance(
            share=value, seconds=None, small_steps=small_steps(steps, small_cost(manifest, program.latent_shape), value)
        )
    large, small = _a_call(manifest, seconds)
    # The same sum as fb-run --dry-run's.
    rest = seconds.get(TEXT_ENCODER, 0.0) + seconds.get(VAE, 0.0)
    calls = sum(program.calls(engine) for engine in manifest.transformers)
    if value < rest + calls * small:
        raise UsageError(
            f"A budget of {value:g} s was given, but an all-small video takes {rest + calls * small:.3g} s as "
            "last measured; give --budget at least that."
        )
    share = min(1.0, (value - rest) / (calls * large))
    count = small_steps(steps, min(small / large, share), share)
    return Allowance(share=share, seconds=value, small_steps=count)


def _a_call(manifest: Manifest, seconds: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of a call of the first model and of the second; of two experts, which are one architecture, the mean."""
    pair, found = pair_of(manifest), list[float]()
    for letter in (pair.first, pair.second):
        engines = manifest.letters[letter].components
        for engine in engines:
            if engine not in seconds:
                raise UsageError(
                    f"A budget in seconds needs both models' times, but {engine} was not measured on this machine yet; "
                    f"run fb-run BUNDLE with --schedule {default_schedule(manifest.models)} once, or give a share such "
                    "as --budget 0.6."
                )
        found.append(sum(seconds[engine] for engine in engines) / len(engines))
    return found[0], found[1]


def small_cost(manifest: Manifest, latent_shape: Sequence[int]) -> float:
    """What a step of the small model costs, as a share of the large one's, in operations."""
    tokens = manifest.pipeline.tokens(latent_shape)
    pair = pair_of(manifest)
    first, second = (manifest.letters[letter].components[0] for letter in (pair.first, pair.second))
    return flops_at(manifest, second, tokens) / flops_at(manifest, first, tokens)


def small_steps(steps: int, small_cost: float, budget: float) -> int:
    """The least number of small steps that keeps a run within a budget.

    Args:
        small_cost: of a small step, as a share of a large one's.
        budget: of the run, as a share of all-large sampling's.

    Raises:
        UsageError: even all-small sampling costs more.
    """
    if budget < small_cost:
        raise UsageError(
            f"A budget of {budget:.1%} of all-large sampling was given, but all-small sampling costs "
            f"{small_cost:.1%}; give --budget at least that."
        )
    saved = 1.0 - small_cost
    return 0 if budget >= 1.0 else min(steps, math.ceil(steps * (1.0 - budget) / saved - 1e-9))


def cheapest(errors: Sequence[float], count: int, switches: int, pair: ModelPair) -> tuple[StageSchedule, float]:
    """The schedule of ``count`` small steps and at most ``switches`` switches whose errors add up to the least.

    Equal sums go to the schedule with fewer switches.

    Args:
        errors: of every step; see `step_errors`, and `propagation.shared_out`.
        count: 0 to the number of steps.
        switches: at least 1, or 0 where ``count`` leaves one model alone.

    Returns:
        The schedule and its sum.
    """
    best: dict[_State, tuple[float, tuple[str, ...]]] = {}
    for step, error in enumerate(errors):
        extended: dict[_State, tuple[float, tuple[str, ...]]] = {}
        for (small, changed, last), (total, letters) in best.items() if step else [((0, 0, ""), (0.0, ()))]:
            for letter in (pair.first, pair.second):
                taken = letter == pair.second
                state = (small + taken, changed + (last not in ("", letter)), letter)
                cost = total + (error if taken else 0.0)
                if state[0] <= count and state[1] <= switches and cost < extended.get(state, (math.inf,))[0]:
                    extended[state] = (cost, (*letters, letter))
        best = extended
    complete = [(cost, changed, letters) for (small, changed, _), (cost, letters) in best.items() if small == count]
    cost, _, letters = min(complete)
    return StageSchedule.of(letters), cost


def three_stage(errors: Sequence[float], count: int, pair: ModelPair) -> tuple[StageSchedule, float]:
    """The same with the small steps in one piece: what `cheapest` is compared with at equal cost."""
    starts = range(len(errors) - count + 1)
    sums = {start: sum(errors[start : start + count]) for start in starts}
    start = min(sums, key=lambda each: sums[each])
    letters = [pair.first] * start + [pair.second] * count + [pair.first] * (len(errors) - count - start)
    return StageSchedule.of(letters), sums[start]
