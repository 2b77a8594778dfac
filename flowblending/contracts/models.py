"""The models of a bundle: a name, the letter that schedules write for it, and the engines behind it.

Most models are one engine. A checkpoint with two experts (Wan 2.2 A14B) is one model to its user and two engines, for
high noise and for low, each with a letter of its own for schedules that want it alone.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flowblending import UsageError
from flowblending.contracts.model_sampling import ModelSampling

NAME = r"[a-z][a-z0-9]{0,30}"
"""Of a model: its engines' files begin with it, and nothing else in a bundle has such a name."""

EXPERTS = ("_high", "_low")
"""How the components of two experts end, that of high noise first."""

RESERVED = frozenset({"manifest", "report", "tokenizer", "vae"})
"""Names that other files and components of a bundle begin with."""


class Model(BaseModel):
    """A model, as schedules know it.

    Attributes:
        name: such as ``large``.
        letter: such as ``L``.
        components: its engine; or its two experts' engines, that of high noise first.
        boundary: of experts: the share of the largest timestep from which on the first runs, and below which the second
            does; ``boundary_ratio`` of diffusers' WanPipeline.
        letters: of the experts, in the order of ``components``.
        sampling: the timesteps and the guidance that it asks for, if it was distilled to few steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=rf"^{NAME}({'|'.join(EXPERTS)})?$")
    letter: str = Field(pattern=r"^[A-Z]$")
    components: tuple[str, ...] = Field(min_length=1, max_length=2)
    boundary: float | None = Field(default=None, ge=0.0, le=1.0)
    letters: tuple[str, ...] = ()
    sampling: ModelSampling | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        experts = len(self.components) == 2
        if (self.boundary is not None) != experts or len(self.letters) != (2 if experts else 0):
            raise ValueError("two experts have a boundary and two letters, and a single engine has neither")
        return self

    def component(self, timestep: float, train_timesteps: int) -> str:
        """The engine that runs at a timestep.

        Args:
            timestep: as the transformer is told it, a float32 value.
            train_timesteps: the largest that there is.
        """
        if self.boundary is None:
            return self.components[0]
        # diffusers compares a float32 tensor with the product, which rounds it likewise.
        (boundary,) = struct.unpack("f", struct.pack("f", self.boundary * train_timesteps))
        return self.components[0 if timestep >= boundary else 1]

    @property
    def experts(self) -> tuple[Model, ...]:
        """Its experts as models of one engine each; none of a model that has none."""
        return tuple(
            Model(name=component, letter=letter, components=(component,), sampling=self.sampling)
            for component, letter in zip(self.components, self.letters, strict=False)
        )


def by_letter(models: Iterable[Model]) -> dict[str, Model]:
    """Every model that a schedule may name, experts behind the models that they are of."""
    models = tuple(models)
    every = (*models, *(expert for model in models for expert in model.experts))
    return {model.letter: model for model in every}


def components_of(models: Iterable[Model]) -> tuple[str, ...]:
    """The engines of all models, in their order."""
    return tuple(component for model in models for component in model.components)


def check_models(models: Sequence[Model]) -> None:
    """Refuse models that cannot be told apart.

    Raises:
        ValueError: none, two of one name or letter, or of one engine.
    """
    letters = [letter for model in models for letter in (model.letter, *model.letters)]
    for what, found in (
        ("names", [model.name for model in models]),
        ("letters", letters),
        ("components", list(components_of(models))),
    ):
        if not found or len(set(found)) < len(found):
            raise ValueError(f"the {what} of a bundle's models differ, and there is at least one, got {found}")


def default_schedule(models: Sequence[Model]) -> str:
    """The schedule of runs that say none: the second model between two stages of the first, if there is a second."""
    first, *others = (model.letter for model in models)
    return f"{first}{others[0]}{first}" if others else first


def listed(models: Iterable[Model]) -> str:
    """``L (large), S (small)``, for messages."""
    return ", ".join(f"{letter} ({model.name})" for letter, model in by_letter(models).items())


def check_letters(letters: Iterable[str], models: Sequence[Model], schedule: str) -> None:
    """Refuse letters that no model has.

    Args:
        letters: of
        schedule: for the message.

    Raises:
        UsageError: names the letter, and those that there are.
    """
    known = by_letter(models)
    for letter in letters:
        if letter not in known:
            one = len(models) == 1
            have = f"has one model, {listed(models)}" if one else f"has the models {listed(models)}"
            remedy = f"such as --schedule {default_schedule(models)}, or build a bundle of more models" if one else ""
            raise UsageError(
                f"The schedule {schedule} has the letter {letter}, but this bundle {have}; "
                f"use {'its letter' if one else 'their letters'}{remedy and ', '}{remedy}."
            )


def is_name(text: str) -> bool:
    """Whether a model can be called so."""
    return re.fullmatch(NAME, text) is not None and text not in RESERVED
