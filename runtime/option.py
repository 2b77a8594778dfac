"""One option: what is known of it, whoever offers it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flowblending.system.registry import Registry

RUN: Final = "fb-run"
CALIBRATE: Final = "fb-calibrate"
COMPARE: Final = "fb-compare"
CLIENT: Final = "fb-client"
EXPORT_TRITON: Final = "fb-export-triton"
SERVE: Final = "fb-serve"
PROGRAMS: Final = frozenset({RUN, CALIBRATE, COMPARE, CLIENT})
"""Those that have options of a job."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        name: as prompt files, the Python API and Triton say it. Name, kind, nullable and default are read from the
            field that the option annotates.
        kind: of a value: str, int, float or bool.
        nullable: whether None stands for a default that depends on the bundle.
        default: of the field.
        section: of ``--help``.
        help: what it is, for ``--help``.
        usual: the default in words.
        words: help for the programs where it is another, the default included.
        flag: of command lines; made from the name unless told.
        metavar: of its value in ``--help``.
        unit: of a number, in the plural.
        least: the smallest value, itself allowed.
        most: the largest value.
        choices: all values that there are, if they are few.
        registry: of the names that there are, to which installed packages may add.
        example: a value for messages.
        blank: what to say of a text without a visible letter; empty where it may be blank.
        aliases: names that other programs have for it, which messages know.
        programs: the command lines that offer it. Prompt files and the Python API offer all.
        several: whether it may be given several times; its value is a tuple of them.
        file: whether it names a file or a folder of this machine; in prompt files, from where they lie.
        placed: whether a frame and a strength may stand behind the file's name.
        served: whether servers take its value: not what names files of the machine, which are sent to them.
    """

    name: str = ""
    kind: type = str
    nullable: bool = False
    default: object = None
    section: str
    help: str
    usual: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    flag: str = ""
    metavar: str | None = None
    unit: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    registry: Registry[Any] | None = None
    example: object
    blank: str = ""
    aliases: tuple[str, ...] = ()
    programs: frozenset[str] = PROGRAMS
    several: bool = False
    file: bool = False
    placed: bool = False
    served: bool = True

    @property
    def option(self) -> str:
        """As command lines say it."""
        return self.flag or f"--{self.name.replace('_', '-')}"

    def described(self, program: str) -> str:
        """The help of a command line."""
        if program in self.words:
            return self.words[program]
        return " ".join(filter(None, (self.help, f"(default: {self.usual})" if self.usual else "")))
