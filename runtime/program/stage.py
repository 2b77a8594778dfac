"""One stage of a schedule and its notation: ``L20``, ``S20:g1``, ``S20:g1:t981,909,725``, ``L@0.82``, ``L``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from flowblending import UsageError
from flowblending.contracts.model_sampling import read_number, read_timesteps, write_number
from flowblending.runtime.program.boundaries import Boundary, read_boundary

FORMS = "a name such as LSL or runs such as L20 S20 L10"

_RUN = re.compile(r"([A-Z])(?:([0-9]{1,9})|@(.*))?")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive steps with one model.

    Attributes:
        letter: of the model, such as ``L``; what it stands for, the bundle says.
        steps: of the run that it covers, at least one: all of them, or with timesteps of its own, those that it
            stands in for.
        guidance: its own scale of classifier-free guidance, 1 or less for none; None for the model's, else the run's.
        timesteps: its own, falling, above 0, in place of the steps that it covers; empty for the run's; None for the
            model's, else the run's.
    """

    letter: str
    steps: int
    guidance: float | None = None
    timesteps: tuple[float, ...] | None = None

    def __str__(self) -> str:
        text = f"{self.letter}{self.steps}"
        if self.guidance is not None:
            text += f":g{write_number(self.guidance)}"
        if self.timesteps is not None:
            text += f":t{','.join(map(write_number, self.timesteps)) or '*'}"
        return text

    def continues(self, before: Stage) -> bool:
        """Whether this and the stage before it are one: they differ in nothing, and have no timesteps of their own."""
        same = (self.letter, self.guidance, self.timesteps) == (before.letter, before.guidance, before.timesteps)
        return same and not self.timesteps


@dataclass(frozen=True, kw_only=True)
class OpenStage:
    """A stage as it is written, of which only a run tells where it ends.

    Attributes:
        letter: see `Stage`.
        length: its number of steps, where it ends, or None for the rest of the run.
        guidance: likewise.
        timesteps: likewise.
    """

    letter: str
    length: int | Boundary | None
    guidance: float | None = None
    timesteps: tuple[float, ...] | None = None

    def of(self, steps: int) -> Stage:
        """The stage of so many steps."""
        return Stage(letter=self.letter, steps=steps, guidance=self.guidance, timesteps=self.timesteps)

    def __str__(self) -> str:
        """As it is written, without its options."""
        length = f"@{self.length}" if isinstance(self.length, Boundary) else self.length or ""
        return f"{self.letter}{length}"


def read_open_stage(word: str) -> OpenStage:
    """Read a run of a schedule, in upper or lower case, with its options after colons.

    A letter may be followed by a number of steps, by ``@`` and where the stage ends, or by neither. ``g`` and a number
    is a guidance scale; ``t`` and numbers with commas between them are timesteps; ``t*`` are the run's timesteps, for a
    model that has its own.

    Raises:
        UsageError: it is none.
    """
    run, *options = word.split(":")
    match = _RUN.fullmatch(run.upper())
    if match is None:
        raise UsageError(f"{word.upper()} is neither a schedule nor a run of one; give {FORMS}.")
    letter, steps, end = match.groups()
    what = f"The stage {word}"
    if steps is not None and int(steps) == 0:
        raise UsageError(f"The run {word.upper()} has no steps; leave it out or give it at least 1.")
    length = None if steps is None else int(steps)
    stage = OpenStage(letter=letter, length=length if end is None else read_boundary(end, what))
    for option in options:
        stage = _with(stage, option, what)
    return stage


def read_stage(word: str) -> Stage:
    """Read a run that says how many steps it has, such as ``str`` prints.

    Raises:
        UsageError: it is none.
    """
    stage = read_open_stage(word)
    if not isinstance(stage.length, int):
        raise UsageError(f"{word.upper()} does not say how many steps it has; give {FORMS}.")
    return stage.of(stage.length)


def _with(stage: OpenStage, option: str, what: str) -> OpenStage:
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
