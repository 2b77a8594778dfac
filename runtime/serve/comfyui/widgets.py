"""A job's options as ComfyUI's widgets, made from the one table, and back.

A widget always has a value. Where an option may be left to the bundle, a text is empty, a choice is ``default``, and a
number is one that the option cannot have: 0, or -1 where it can be 0. An option that may be given several times is a
text of as many lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flowblending.runtime.option import Option
from flowblending.runtime.options import options

DEFAULT: Final = "default"
FIRST: Final = ("prompt", "negative_prompt", "seed", "schedule", "cache", "steps", "guidance", "size", "frames")
"""Options that every node shows; the others are optional inputs."""

_MOST: Final = 2**31 - 1
"""Of numbers without a bound."""
_MULTILINE: Final = ("prompt", "negative_prompt")
_KINDS: Final = {int: "INT", float: "FLOAT", str: "STRING"}

Widget = tuple[Any, Mapping[str, Any]]


def widgets(*, first: bool) -> dict[str, Widget]:
    """The widgets by the options' names, in the order in which they are shown.

    Args:
        first: those of `FIRST`, or the others.
    """
    known = {each.name: each for each in options()}
    names = [name for name in FIRST if name in known] if first else [name for name in known if name not in FIRST]
    return {name: _widget(known[name]) for name in names}


def job_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options that the widgets' values stand for; those that are left to the bundle are not among them."""
    known = {each.name: each for each in options()}
    found = {name: _read(known[name], value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def _widget(option: Option) -> Widget:
    about: dict[str, Any] = {"tooltip": _tooltip(option)}
    choices = _choices(option)
    if choices:
        return choices, {**about, "default": choices[0]}
    if option.kind is str:
        text = option.default if isinstance(option.default, str) else ""
        return "STRING", {**about, "default": text, "multiline": option.several or option.name in _MULTILINE}
    default: Any = _absent(option) if option.nullable else option.default
    low = min(default, option.least) if option.least is not None else default
    most = _MOST if option.most is None else option.most
    numbers = {"default": default, "min": low, "max": most}
    if option.kind is float:
        numbers["step"] = 0.01
    if option.name == "seed":
        numbers["control_after_generate"] = True
    return _KINDS[option.kind], {**about, **numbers}


def _choices(option: Option) -> list[str]:
    names = option.choices if option.registry is None else option.registry.names()
    if option.kind is bool:
        names = ("true", "false")
    return [*([DEFAULT] if option.nullable else []), *names] if names else []


def _absent(option: Option) -> Any:
    """The number that stands for none."""
    return option.kind(0 if option.least is not None and option.least > 0 else -1)


def _tooltip(option: Option) -> str:
    text = option.help.replace("%%", "%")
    if option.several:
        return f"{text}: one a line"
    usual = option.usual or ("the bundle's" if option.nullable else "")
    if option.nullable and option.kind in (int, float):
        return f"{text} ({_absent(option):g} for the default: {usual})"
    return f"{text} (default: {usual})" if usual else text


def _read(option: Option, value: Any) -> Any:
    if option.several:
        return tuple(line.strip() for line in value.splitlines() if line.strip()) or None
    if option.nullable and (value in ("", DEFAULT) or (option.kind in (int, float) and value == _absent(option))):
        return None
    return value == "true" if option.kind is bool else value
