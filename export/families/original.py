"""What a family says of a transformer in a file of weights; loads neither torch nor diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.naming import listed

Shapes = Mapping[str, tuple[int, ...]]
"""Of tensors, by name."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """A transformer in a file of weights, as diffusers would call it.

    Attributes:
        config: what its ``config.json`` would say.
        names: diffusers' name of each tensor, by that in the file.
        left_out: names of tensors that are no part of the transformer, by the reason to leave them out.
        statistics: names of tensors with mean and standard deviation of the latents that it was trained on, where the
            file has them.
    """

    config: Mapping[str, Any]
    names: Mapping[str, str]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    statistics: tuple[str, str] | None = None


def diffusers_names(
    names: Sequence[str], mark: str, convert: Callable[[dict[str, str]], Mapping[str, str]]
) -> dict[str, str]:
    """Diffusers' name of each tensor: the file's own if it has diffusers' names, or else what a converter makes of it.

    Args:
        names: in the file.
        mark: how names begin that only diffusers has.
        convert: see `renamed`.

    Raises:
        FlowBlendingError: as `renamed` does.
    """
    if any(name.startswith(mark) for name in names):
        return {name: name for name in names}
    return renamed(names, convert)


def renamed(names: Sequence[str], convert: Callable[[dict[str, str]], Mapping[str, str]]) -> dict[str, str]:
    """Names by what a converter of diffusers' makes of them.

    These converters rename the keys of a dictionary, so one of names alone is enough, and no tensor is read.

    Raises:
        FlowBlendingError: two names become one, or one is lost.
    """
    found = {name: new for new, name in convert({name: name for name in names}).items()}
    lost = [name for name in names if name not in found]
    if lost:
        raise FlowBlendingError(f"{listed(lost, 10)} have no names in diffusers' format; give another file.")
    return found


def refuse_parts(names: Sequence[str], parts: Mapping[str, str], supported: str) -> None:
    """Refuse a model with parts that only other models have.

    Args:
        names: in the file.
        parts: what a model is that has names which match an expression.
        supported: what was expected.

    Raises:
        FlowBlendingError: names the parts.
    """
    for pattern, kind in parts.items():
        seen = [name for name in names if re.match(pattern, name)]
        if seen:
            raise FlowBlendingError(f"it holds {kind} ({listed(seen, 10)}), but {supported} was expected; give one")


def shape_of(shapes: Shapes, name: str, axes: int, kind: str) -> tuple[int, ...]:
    """The shape of a tensor that a model cannot be without.

    Args:
        shapes: by diffusers' names.
        name: diffusers' name.
        axes: how many it has.
        kind: what the model should be.

    Raises:
        FlowBlendingError: it is not there, or has another number of axes.
    """
    shape = shapes.get(name)
    if shape is None or len(shape) != axes:
        found = "no" if shape is None else f"{list(shape)} for"
        raise FlowBlendingError(f"it is no {kind}, as it has {found} {name}; give one")
    return shape


def layer_count(shapes: Shapes, blocks: str) -> int:
    """How many blocks there are, from names such as ``blocks.29.ffn.net.2.bias``."""
    numbers = [int(match[1]) for name in shapes if (match := re.match(rf"{blocks}\.(\d+)\.", name))]
    return 1 + max(numbers, default=-1)


def head_width(width: int, heads: int, kind: str) -> int:
    """The width of each of some heads.

    Raises:
        FlowBlendingError: the width of all is no multiple.
    """
    if heads < 1 or width % heads:
        raise FlowBlendingError(f"it is no {kind}, as its width is {width}, which {heads} does not divide; give one")
    return width // heads
