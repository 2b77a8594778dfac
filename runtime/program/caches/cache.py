"""What a step cache is: facts about it, how its arguments are read, and what has to be measured for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flowblending.runtime.program.caches.policy import StepCache

    Floats = npt.NDArray[np.float32]

Series = Mapping[str, Mapping[str, Sequence[float]]]
"""By constant and model, a number for every step."""


class Decides(IntEnum):
    """What a cache decides about. Of each there is one at most, and they are applied in this order."""

    STEPS = 0
    """At which steps engines run."""
    EXTRAPOLATION = 1
    """What stands for the velocity of the others."""
    GUIDANCE = 2
    """At which of the remaining steps the unconditional branch runs; it counts the steps that the others leave."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a model shows at a step of a trajectory on which all steps compute.

    Attributes:
        latents: fp32 [1, C, F, H, W], at which
        velocity: of the conditional branch was computed, likewise.
        timestep: what the transformer was told, in [0, 1000].
        signal: what the bundle's signal graph gives there, fp32 [1, ...]; None if the bundle has none.
    """

    latents: Floats
    velocity: Floats
    timestep: float
    signal: Floats | None = None


class Observer(Protocol):
    """Watches one model along one trajectory."""

    def look(self, view: View) -> Mapping[str, float]:
        """A number by the name of each constant, at the next step."""
        ...


def means(prompts: Sequence[Series], mean: Series, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:  # noqa: ARG001 - Constants
    """The means over prompts, as they are."""
    return {name: {model: list(values) for model, values in mean[name].items()} for name in names}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What ``fb-calibrate --cache`` measures for a cache.

    Attributes:
        name: as that option takes it, and of the constants that are shown of it.
        series: names of all that an observer gives at every step.
        observer: makes one.
        needs_signal: whether it needs the bundle's signal graphs (fb-build-engines --teacache).
        constants: what a bundle keeps, by name and model, from the series of every prompt, their means, and the names
            of the series.
    """

    name: str
    series: tuple[str, ...]
    observer: Callable[[], Observer]
    needs_signal: bool = False
    constants: Callable[[Sequence[Series], Series, Sequence[str]], dict[str, dict[str, list[float]]]] = means


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A step cache.

    Attributes:
        name: as ``--cache`` writes it, before its arguments.
        form: its name with its arguments, for --help: ``scm:slow|medium|fast|ultra``.
        example: of it.
        help: what it does, where ``form`` does not say; for --help.
        decides: what about.
        read: makes the policy of the arguments (what follows the colon) and of the whole word, for messages; raises
            UsageError.
        steps: the cache to go with it where none decides about steps, as ``--cache`` writes it.
        measurement: of its constants; None if it has none, or publishes all.
        online: whether it decides while the program runs, which goes into no program file.
    """

    name: str
    form: str
    example: str
    help: str = ""
    decides: Decides = Decides.STEPS
    read: Callable[[str, str], StepCache]
    steps: str | None = None
    measurement: Measurement | None = None
    online: bool = False
