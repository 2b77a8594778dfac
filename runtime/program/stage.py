"""One stage of a schedule and its notation: ``L20``, ``S20:g1``, ``S20:g1:t981,909,725``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL
from flowblending.contracts.model_sampling import read_number, read_timesteps, write_number

MODELS = {"L": LARGE, "S": SMALL}
LETTERS = {model: letter for letter, model in MODELS.items()}
FORMS = "a name such as LSL or runs such as L20 S20 L10"

_RUN = re.compile(r"([A-Z])([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive steps with one model.

    Attributes:
        model: ``large`` or ``small``.
        steps: of the run that it covers, at least one: all of them, or with timesteps of its own, those that it
            stands in for.
        guidance: its own scale of classifier-free guidance, 1 or less for none; None for the model's, else the run's.
        timesteps: its own, falling, above 0, in place of the steps that it covers; empty for the run's; None for the
            model's, else the run's.
    """

    model: str
    steps: int
    guidance: float | None = None
    timesteps: tuple[float, ...] | None = None

    def __str__(self) -> str:
        text = f"{LETTERS[self.model]}{self.steps}"
        if self.guidance is not None:
            text += f":g{write_number(self.guidance)}"
        if self.timesteps is not None:
            text += f":t{','.join(map(write_number, self.timesteps)) or '*'}"
        return text

    def continues(self, before: Stage) -> bool:
        """Whether this and the stage before it are one: they differ in nothing, and have no timesteps of their own."""
        same = (self.model, self.guidance, self.timesteps) == (before.model, before.guidance, before.timesteps)
        return same and not self.timesteps


def read_stage(word: str) -> Stage:
    """Read a run of a schedule, in upper or lower case, with its options after colons.

    ``g`` and a number is a guidance scale; ``t`` and numbers with commas between them are timesteps; ``t*`` are the
    run's timesteps, for a model that has its own.

    Raises:
        UsageError: it is none.
    """
    run, *options = word.split(":")
    match = _RUN.fullmatch(run.upper())
    if match is None:
        raise UsageError(f"{word.upper()} is neither a schedule nor a run of one; give {FORMS}.")
    letter, length = match[1], int(match[2])
    if length == 0:
        raise UsageError(f"The run {word.upper()} has no steps; leave it out or give it at least 1.")
    stage = Stage(model=model_of(letter), steps=length)
    for option in options:
        stage = _with(stage, option, f"The stage {word}")
    return stage


def model_of(letter: str) -> str:
    """``large`` for L, ``small`` for S.

    Raises:
        UsageError: another letter.
    """
    if letter not in MODELS:
        raise UsageError(f"The stage letter {letter} is unknown; use L for the large model and S for the small one.")
    return MODELS[letter]


def _with(stage: Stage, option: str, what: str) -> Stage:
    """The stage with an option, such as ``g1``."""
    kind, text = option[:1].lower(), option[1:]
    if kind == "g" and stage.guidance is None:
        return replace(stage, guidance=read_number(text, what))
    if kind == "t" and stage.timesteps is None:
        return replace(stage, timesteps=() if text == "*" else read_timesteps(text, what))
    if kind in ("g", "t"):
        raise UsageError(f"{what} has two {'guidance scales' if kind == 'g' else 'lists of timesteps'}; leave one out.")
    raise UsageError(
        f"{what} has {f'the unknown option {option}' if option else 'an empty option'}; give g and a guidance scale, "
        "or t and timesteps, such as S20:g1:t909,725."
    )
