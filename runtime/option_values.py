"""Values of options from outside: names, types and bounds, with one sentence of each front end for what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from flowblending import UsageError
from flowblending.runtime import options
from flowblending.runtime.option import Option
from flowblending.runtime.options import Job

_SHOWN: Final = 60
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """How a way into the program calls options.

    Attributes:
        noun: what it calls one of them.
        name: how one is named; ``{option}`` is the flag and ``{name}`` the field.
        given: how one is given a value.
        here: whether the job is run by this installation, whose packages may have registered names.
        served: whether it is a server's, which offers nothing that names files.
        several: the loop to write for one video of each of several values; empty where there is none to write.
    """

    noun: str
    name: str
    given: str
    here: bool = True
    served: bool = False
    several: str = ""

    def offers(self, option: Option) -> bool:
        """Whether it has the option."""
        return option.served or not self.served

    def call(self, option: Option) -> str:
        """The option's name."""
        return self.name.format(option=option.option, name=option.name)

    def give(self, option: Option) -> str:
        """The option with an example's value, as a user would write it."""
        plain = isinstance(option.example, str) and " " not in option.example
        text = option.example if plain else json.dumps(option.example)
        return self.given.format(
            option=option.option,
            name=option.name,
            text=text,
            json=json.dumps(option.example),
            python=repr(option.example),
        )

    def loop(self, option: Option) -> str:
        """The loop over several values of the option."""
        return self.several.format(name=option.name, before="" if option.name == "prompt" else "prompt, ")


COMMAND_LINE: Final = FrontEnd(noun="option", name="{option}", given="{option} {text}")
CLIENT_LINE: Final = dataclasses.replace(COMMAND_LINE, here=False)
PROMPT_FILE: Final = FrontEnd(noun="option", name="{name}", given='"{name}": {json}')
PYTHON: Final = FrontEnd(
    noun="argument",
    name="{name}",
    given="{name}={python}",
    several="for {name} in {name}s: sampler.generate({before}{name}={name})",
)
TRITON: Final = FrontEnd(noun="input", name="{name}", given='"{name}": {json}', served=True)
HTTP: Final = FrontEnd(noun="field", name="{name}", given='"{name}": {json}', served=True)


def read_options(values: Mapping[str, object], front: FrontEnd, *, beside: Iterable[str] = ()) -> dict[str, Any]:
    """Fields of a job from values by name, each of the field's own type.

    Args:
        values: by the fields' names.
        front: where they come from, for the messages.
        beside: further names that the front end takes, for the message about an unknown one.

    Raises:
        UsageError: a name that is none, or a value of another type or out of bounds.
    """
    known = {option.name: option for option in options.options() if front.offers(option)}
    for name in values:
        if name not in known:
            raise unknown(name, front, (*known, *beside))
    return {name: read_value(value, known[name], front) for name, value in values.items()}


def make_job(fields: Mapping[str, Any]) -> Job:
    """A job of fields that have been read; the others have their defaults."""
    return options.JOB(**fields)


def read_value(value: object, option: Option, front: FrontEnd) -> Any:
    """The value as the option's type.

    Raises:
        UsageError: it is of another type, or out of bounds.
    """
    if value is None and option.nullable:
        return None
    if option.several:
        values = value if isinstance(value, list | tuple) else [value]
        one = dataclasses.replace(option, several=False, blank=f"{front.call(option)} is empty; give a file's name.")
        return tuple(read_value(each, one, front) for each in values)
    found = _converted(os.fspath(value) if option.file and isinstance(value, os.PathLike) else value, option.kind)
    if found is None and front.several and _are_several(value, option.kind):
        raise UsageError(
            f"{front.call(option)} is {shown(value)}, but one {_plain(option)} was expected; write a loop, "
            f"{front.loop(option)}."
        )
    if found is None or not _within(found, option):
        raise UsageError(
            f"{front.call(option)} is {shown(value)}, but {_expected(option)} was expected; "
            f"give {front.give(option)}, for example."
        )
    if isinstance(found, str):
        _check_text(found, option, front)
        if option.registry is not None and front.here:
            option.registry.get(found)
    return found


def unknown(name: str, front: FrontEnd, known: Iterable[str]) -> UsageError:
    """The sentence about a name that is none, with the one that was meant if that can be told."""
    names = tuple(known)
    meant = near(name, names)
    if meant is None:
        return UsageError(f"Unknown {front.noun} {name!r}; known are {', '.join(names)}.")
    unit = next((option.unit for option in options.options() if option.name == meant and option.unit), "")
    return UsageError(
        f"Unknown {front.noun} {name!r}; {meant}{f' (of {unit})' if unit not in ('', meant) else ''} is probably "
        f"what was meant, and known are {', '.join(names)}."
    )


def near(name: str, known: Iterable[str]) -> str | None:
    """The name that is probably meant by another one: what other programs call it, or a misspelling."""
    import difflib

    spellings = {each: each for each in known}
    for option in options.options():
        if option.name in spellings:
            spellings |= dict.fromkeys((*option.aliases, option.option.strip("-").replace("-", "_")), option.name)
    spellings |= {former: "noise" for former in ("latents", "initial_latents") if "noise" in spellings}
    plain = "_".join(name.lower().replace("-", " ").replace("_", " ").split())
    if plain in spellings:
        return spellings[plain]
    closest = difflib.get_close_matches(plain, spellings, n=1, cutoff=0.75)
    return spellings[closest[0]] if closest else None


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def _converted(value: object, kind: type) -> Any:
    """The value as a type, from the types of numpy too; None if it is none."""
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return bool(value) if kind is bool else None
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def _are_several(value: object, kind: type) -> TypeGuard[Collection[object]]:
    """Whether a value is a collection of values of the kind, such as diffusers takes for a prompt."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        return False
    if not getattr(value, "shape", (1,)):  # numpy's arrays of no dimension cannot be looped over
        return False
    return len(value) > 0 and all(_converted(each, kind) is not None for each in value)


def _within(value: Any, option: Option) -> bool:
    if option.choices and value not in option.choices:
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if option.least is not None and value < option.least:
        return False
    return option.most is None or value <= option.most


def _plain(option: Option) -> str:
    return {str: "text", bool: "truth value"}.get(option.kind, "number")


def _expected(option: Option) -> str:
    if option.choices:
        return f"{', '.join(option.choices[:-1])} or {option.choices[-1]}"
    if option.kind is bool:
        return "true or false"
    if option.kind is str:
        return "a text"
    noun = f"{'a whole' if option.kind is int else 'a finite'} number{f' of {option.unit}' if option.unit else ''}"
    if option.most is not None:
        return f"{noun} from {option.least:g} to {option.most if option.kind is int else f'{option.most:g}'}"
    return noun if option.least is None else f"{noun}, at least {option.least:g},"


def shown(value: object) -> str:
    """A wrong value as a message repeats it, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_text(text: str, option: Option, front: FrontEnd) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{front.call(option)} is not valid Unicode; write it in UTF-8.") from None
    if option.blank and is_blank(text):
        raise UsageError(option.blank)
