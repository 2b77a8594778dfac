"""One stage of a schedule and its notation: ``L20``, ``S20:g1:t981,909,725``, ``S20:lightning4``, ``L@0.82``, ``L``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from flowblending import UsageError
from flowblending.contracts.model_sampling import read_number, read_timesteps, write_number
from flowblending.runtime.program.boundaries import Boundary, read_boundary
from flowblending.runtime.program.presets import PRESETS

EULER = "euler"
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
            preset's, else the model's, else the run's.
        preset: the name of one of `flowblending.runtime.program.presets.PRESETS`, which goes before the model's.
        euler: whether all its steps are Euler's, whatever the solver; those at timesteps of its own always are.
    """

    letter: str
    steps: int
    guidance: float | None = None
    timesteps: tuple[float, ...] | None = None
    preset: str | None = None
    euler: bool = False

    def __str__(self) -> str:
        text = f"{self.letter}{self.steps}"
        if self.guidance is not None:
            text += f":g{write_number(self.guidance)}"
        if self.timesteps is not None:
            text += f":t{','.join(map(write_number, self.timesteps)) or '*'}"
        return text + (f":{self.preset}" if self.preset is not None else "") + (f":{EULER}" if self.euler else "")

    def continues(self, before: Stage) -> bool:
        """Whether this and the stage before it are one: they differ in nothing, and have no timesteps of their own."""
        return replace(self, steps=before.steps) == before and not self.timesteps


@dataclass(frozen=True, kw_only=True)
class OpenStage:
    """A stage as it is written, of which only a run tells where it ends.

    Attributes:
        letter: see `Stage`.
        length: its number of steps, where it ends, or None for the rest of the run.
        guidance: likewise.
        timesteps: likewise.
        preset: likewise.
        euler: likewise.
    """

    letter: str
    length: int | Boundary | None
    guidance: float | None = None
    timesteps: tuple[float, ...] | None = None
    preset: str | None = None
    euler: bool = False

    def of(self, steps: int) -> Stage:
        """The stage of so many steps."""
        return Stage(
            letter=self.letter,
            steps=steps,
            guidance=self.guidance,
            timesteps=self.timesteps,
            preset=self.preset,
            euler=self.euler,
        )

    def __str__(self) -> str:
        """As it is written, without its options."""
        length = f"@{self.length}" if isinstance(self.length, Boundary) else self.length or ""
        return f"{self.letter}{length}"


def read_open_stage(word: str) -> OpenStage:
    """Read a run of a schedule, in upper or lower case, with its options after colons.

    A letter may be followed by a number of steps, by ``@`` and where the stage ends, or by neither. ``g`` and a number
    is a guidance scale; ``t`` and numbers with commas between them are timesteps; ``t*`` are the run's timesteps, for a
    model that has its own; the name of a preset stands for both; ``euler`` asks for Euler's steps.

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
    if stage.preset is not None and stage.timesteps is not None:
        raise UsageError(f"{what} has timesteps, and a preset with its own; leave one out.")
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
    if option.lower() == EULER and not stage.euler:
        return replace(stage, euler=True)
    if option.lower() in PRESETS and stage.preset is None:
        return replace(stage, preset=option.lower())
    if option.lower() in (EULER, *PRESETS):
        raise UsageError(f"{what} has {'two presets' if stage.preset else 'euler twice'}; leave one out.")
    raise UsageError(
        f"{what} has {f'the unknown option {option}' if option else 'an empty option'}; give g and a guidance scale, "
        f"t and timesteps, such as S20:g1:t909,725, {EULER}, or a preset: {', '.join(PRESETS)}."
    )
