"""Command lines: argparse with examples that can be pasted, and one sentence for an option that there is not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

_PREFIX = "--"


class _Help(argparse.HelpFormatter):
    """Folds every text but those that have lines of their own, as examples have."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "".join(f"{indent}{line}\n" for line in text.splitlines())


class Group(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """As argparse has it."""
        ...


def add_console(group: Group) -> None:
    """Add ``--quiet`` and ``--json``, which every program has; `flowblending.system.console.Console` takes them."""
    group.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    group.add_argument(
        "--json", action="store_true", help="print the result as one JSON document; progress goes to standard error"
    )


class Parser(argparse.ArgumentParser):
    """A program's command line.

    Args:
        example: a command, in lines of which a shell makes one; shown under the options as it is.
        aliases: options by the names that other programs have for them, which messages know.
    """

    def __init__(self, *, example: str = "", aliases: Mapping[str, str] | None = None, **settings: Any) -> None:
        epilog = {"epilog": f"example:\n  {example.replace(chr(10), chr(10) + '  ')}"} if example else {}
        super().__init__(**{"formatter_class": _Help, **epilog, **settings})
        self._aliases = dict(aliases or {})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]  # the overloads say no more
        """As argparse has it, but unknown options are told before whatever else is missing or too much."""
        import sys

        words = sys.argv[1:] if args is None else list(args)
        for word in words[: words.index(_PREFIX)] if _PREFIX in words else words:
            name = word.partition("=")[0]
            if name.startswith(_PREFIX) and " " not in name and not self._knows(name):
                self._refuse(name)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """One sentence in place of argparse's usage and half a sentence, which no script can read."""
        sentence = _sentence(message)
        advice = "" if ";" in sentence else f"; {self.prog} --help lists all"
        self.exit(2, f"error: {sentence}{advice}.\n")

    def _knows(self, name: str) -> bool:
        known = self._option_string_actions
        return name in known or (self.allow_abbrev and any(each.startswith(name) for each in known))

    def _refuse(self, name: str) -> NoReturn:
        import difflib

        shown = [word for action in self._actions if action.help != argparse.SUPPRESS for word in action.option_strings]
        spellings = {word: word for word in shown if word.startswith(_PREFIX)}
        spellings |= {word: option for word, option in self._aliases.items() if option in spellings}
        plain = name.lower().replace("_", "-")
        near = [word for word in spellings if word.startswith(plain)]
        near = near or difflib.get_close_matches(plain, spellings, n=1, cutoff=0.6)
        advice = f"{spellings[near[0]]} is probably what was meant" if near else f"{self.prog} --help lists all"
        self.exit(2, f"error: There is no option {name}; {advice}.\n")


_NUMBERS = {"int": "a whole number", "float": "a number"}
_SAID = (
    (r"argument (?P<name>\S+): invalid (?P<kind>\w+) value: (?P<got>.*)", "{name} is {got}, but {kind} was expected"),
    (
        r"argument (?P<name>\S+): invalid choice: (?P<got>.*) \(choose from (?P<kind>.*)\)",
        "{name} is {got}, but one of {kind} was expected",
    ),
    (r"argument (?P<name>\S+): expected (?:at least )?one argument", "{name} has no value, but one was expected"),
    # What an option's own type says is a sentence.
    (r"argument (?P<name>\S+): (?P<got>[A-Z].*)", "{got}"),
)
"""What argparse says, and the same as a sentence of what was got and what was expected."""


def _sentence(message: str) -> str:
    import re

    for pattern, said in _SAID:
        found = re.fullmatch(pattern, message, re.DOTALL)
        if found:
            words = {"kind": "", **found.groupdict()}
            message = said.format(**words | {"kind": _NUMBERS.get(words["kind"], words["kind"])})
    message = message.removeprefix("argument ").removesuffix(".")
    return message[:1].upper() + message[1:]
