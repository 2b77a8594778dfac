"""The options of `options` on command lines: argparse's arguments made from the table, and fields read back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final

from flowblending import UsageError
from flowblending.runtime import options
from flowblending.runtime.machine_options import CUDA_GRAPH, DEVICE, MEMORY, THREADS
from flowblending.runtime.option import CLIENT, Option
from flowblending.runtime.option_values import CLIENT_LINE, COMMAND_LINE, read_options, read_value
from flowblending.system.command_line import Group, Parser
from flowblending.system.output import resolve

_FORMER_NOISE: Final = "former_noise"


def command_line(prog: str, description: str, example: str) -> Parser:
    """A program's command line, which knows what others call its options.

    Args:
        example: a command; see `Parser`.
    """
    aliases = {
        f"--{alias.replace('_', '-')}": option.option
        for option in options.options()
        if prog in option.programs
        for alias in option.aliases
    }
    return Parser(prog=prog, description=description, example=example, aliases=aliases)


def add_options(
    group: Group, program: str, sections: Iterable[str], *, required: Sequence[str] = (), leave_out: Sequence[str] = ()
) -> None:
    """Add the job's options that a program offers, of some sections of ``--help``.

    None of them has a default: what was not given is None, and has the job's own default.

    Args:
        required: names of those that must be given.
        leave_out: names of those that the program offers in another way.
    """
    wanted = tuple(sections)
    for option in options.options():
        if option.section in wanted and program in option.programs and option.name not in leave_out:
            _add(group, option, program, required=option.name in required)


def add_machine(group: Group, program: str) -> None:
    """Add ``--device``, ``--threads`` and what else of the machine a program offers."""
    _add(group, DEVICE, program)
    _add(group, THREADS, program)
    for option in (MEMORY, CUDA_GRAPH):
        if program in option.programs:
            _add(group, option, program)


def add_noise(group: Group) -> None:
    """Add ``--noise``, and the name that it had; `take_noise` makes one of both."""
    group.add_argument(
        "--noise",
        type=Path,
        metavar="FILE",
        help="noise to start from in place of the seed's (.npy, fp32 [1, C, F, H, W])",
    )
    group.add_argument("--latents", dest=_FORMER_NOISE, type=Path, help=argparse.SUPPRESS)


def take_noise(arguments: argparse.Namespace, warn: Callable[[str], None]) -> None:
    """Make what was given by the former name ``--noise``.

    Args:
        warn: told of it.

    Raises:
        UsageError: both were given.
    """
    former = getattr(arguments, _FORMER_NOISE)
    if former is None:
        return
    if arguments.noise is not None:
        raise UsageError("--latents is what --noise was called, and both were given; leave out --latents.")
    warn("--latents is called --noise now, because finished latents are given to --decode; use that name.")
    arguments.noise = former
    setattr(arguments, _FORMER_NOISE, None)


def given(arguments: argparse.Namespace, program: str) -> dict[str, Any]:
    """The fields of a job that were given to a program, checked.

    Raises:
        UsageError: a value out of bounds.
    """
    offered = (option.name for option in options.options() if program in option.programs)
    values = {name: getattr(arguments, name) for name in offered}
    return read_options(
        {name: value for name, value in values.items() if value is not None},
        CLIENT_LINE if program == CLIENT else COMMAND_LINE,
    )


def check_distinct(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse files that are named twice, of which the later written would take the place of the other.

    Args:
        outputs: by option; None where one was not given.
        inputs: likewise.

    Raises:
        UsageError: two outputs are one file, or an output is an input; or the name can be no output.
    """
    written = {name: resolve(path) for name, path in outputs.items() if path is not None}
    read = {name: Path(os.path.realpath(path)) for name, path in inputs.items() if path is not None}
    for (one, path), (other, same) in (*combinations(written.items(), 2), *product(written.items(), read.items())):
        if path == same:
            raise UsageError(f"{one} and {other} both name {outputs[one]}; give two files.")


def check_machine(arguments: argparse.Namespace) -> None:
    """Refuse a number of threads that is none.

    Raises:
        UsageError: fewer than one.
    """
    read_value(arguments.threads, THREADS, COMMAND_LINE)


def flag_of(line: argparse.ArgumentParser, name: str) -> str:
    """The flag of a field of parsed arguments, as its user wrote or would have written it."""
    return next(action.option_strings[0] for action in line._actions if action.dest == name)


def _add(group: Group, option: Option, program: str, *, required: bool = False) -> None:
    settings: dict[str, Any] = {"dest": option.name, "help": option.described(program)}
    if required:
        settings["required"] = True
    if option.kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"] = option.kind if option.registry is None or program == CLIENT else option.registry.argument
        if option.choices:
            settings["choices"] = option.choices
        elif option.metavar is not None:
            settings["metavar"] = option.metavar
        if option.several:
            settings["action"] = "append"
    if option in (DEVICE, MEMORY, CUDA_GRAPH):
        settings["default"] = option.default
    group.add_argument(option.option, **settings)
