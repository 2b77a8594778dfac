"""How a model asks to be sampled, and the notation for it: ``1000,993.7,975`` and ``3.5``.

A step-distilled model is trained for few timesteps and without guidance; a bundle remembers both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, field_validator

from flowblending import UsageError

MOST = 1000
"""The timestep of pure noise, in every family."""

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,18})?")


class ModelSampling(BaseModel):
    """What a model was trained for, where it differs from the run that it takes part in.

    Attributes:
        timesteps: the noise levels that it knows, times 1000: falling, above 0; empty if it knows all.
        guidance: its scale of classifier-free guidance, 1 for none; None if it takes the run's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timesteps: tuple[float, ...] = ()
    guidance: float | None = None

    @field_validator("timesteps")
    @classmethod
    def _falling(cls, timesteps: tuple[float, ...]) -> tuple[float, ...]:
        if not is_falling(timesteps):
            raise ValueError("timesteps fall, and end above 0")
        return timesteps

    def __str__(self) -> str:
        guidance = "the run's" if self.guidance is None else write_number(self.guidance)
        timesteps = ",".join(map(write_number, self.timesteps)) or "the run's"
        return f"guidance {guidance}, timesteps {timesteps}"


def is_falling(timesteps: Iterable[float]) -> bool:
    """Whether each is smaller than the one before, and the last above 0."""
    return all(before > after for before, after in itertools.pairwise([*timesteps, 0.0]))


def is_number(text: str) -> bool:
    """Whether ``read_number`` reads it."""
    return _NUMBER.fullmatch(text) is not None


def read_number(text: str, what: str) -> float:
    """A decimal number, not negative and without an exponent.

    Args:
        what: what gives it, for the message: ``The stage S20:gx``.

    Raises:
        UsageError: it is none.
    """
    if not is_number(text):
        raise UsageError(f"{what} has {text or 'nothing'} where a number was expected; give one such as 5 or 3.5.")
    return float(text)


def read_timesteps(text: str, what: str) -> tuple[float, ...]:
    """Timesteps with commas between them.

    Raises:
        UsageError: they are no numbers, do not fall, or reach 0.
    """
    timesteps = tuple(read_number(each, what) for each in text.split(","))
    if not is_falling(timesteps):
        raise UsageError(f"{what} has timesteps that do not fall to the end, above 0; give them as 1000,975,725.")
    return timesteps


def read_sampling(model: str, timesteps: str | None, guidance: str | None) -> ModelSampling | None:
    """What the options ``--MODEL-timesteps`` and ``--MODEL-guidance`` say; None where neither is given.

    Raises:
        UsageError: they are no numbers, or timesteps that do not fall from 1000 at most.
    """
    if timesteps is None and guidance is None:
        return None
    own = () if timesteps is None else read_timesteps(timesteps, f"--{model}-timesteps")
    if own and own[0] > MOST:
        raise UsageError(f"--{model}-timesteps begins at {write_number(own[0])}, but timesteps end at {MOST}.")
    return ModelSampling(
        timesteps=own, guidance=None if guidance is None else read_number(guidance, f"--{model}-guidance")
    )


def write_number(value: float) -> str:
    """The shortest text that ``read_number`` reads as ``value``."""
    return f"{Decimal(repr(value)):f}".removesuffix(".0")
