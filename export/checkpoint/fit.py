"""Whether the tensors of a checkpoint are those that its class has: names, shapes and types, from headers alone.

A tensor that the class has no place for is a part of the model that would be lost: a learned gate, a block too many,
the scale of a quantised weight. So it is refused, unless it is known to change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.naming import listed
from flowblending.export.checkpoint.places import TensorPlace
from flowblending.export.checkpoint.quantised import quantised_by_name, quantised_by_type

FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "U8", "BOOL")
"""Types as safetensors names them: of weights, and of what else a class may keep."""

_LISTED = 10
"""Names in a message about tensors of a file that are not accounted for."""

_HARMLESS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)_extra_state$", "notes of Transformer Engine's layers beside their weights"),
    (r"(^|\.)inv_freq$|(^|\.)rope\.freqs(_cos|_sin)?$", "positions, which the class computes"),
    (r"(^|\.)position_ids$", "positions, which the class computes"),
)
"""Names that may be left out of any model, and why."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A tensor that a class has: its shape, and whether it holds floating-point numbers."""

    shape: tuple[int, ...]
    floating: bool


def check_tensors(
    expected: Mapping[str, Expected],
    found: Mapping[str, TensorPlace],
    *,
    model: str,
    where: str,
    ignored: Sequence[tuple[str, str]] = (),
) -> tuple[str, ...]:
    """Compare what a checkpoint holds with what its class has.

    Args:
        expected: by name, of the class.
        found: by name, of the checkpoint.
        model: the name of the class.
        where: what the user calls the checkpoint.
        ignored: regular expressions of names that this class can do without, each with the reason.

    Returns:
        A line for each reason to leave tensors out.

    Raises:
        FlowBlendingError: a tensor is missing, or has no place, or another shape, or no type that weights have.
    """
    missing = [name for name in expected if name not in found]
    left_out, surplus = _sort_out([name for name in found if name not in expected], (*_HARMLESS, *ignored))
    method = quantised_by_name(surplus)
    if method is not None:
        raise quantised(where, method, f"{listed(surplus)} among its tensors")
    _check_types(expected, found, where)
    if missing or surplus:
        file = any(place.key for place in found.values())
        described, most = ("of these shapes", _LISTED) if file else ("of this config.json", 3)
        keys = [found[name].key or name for name in surplus]
        lacks = f"lack {listed(missing, most)}" if missing else ""
        holds = f"hold {listed(keys, most)}, for which a {model} {described} has no place" if surplus else ""
        complete = "give a checkpoint that is a whole" if missing else "give a checkpoint that is a plain"
        raise FlowBlendingError(
            f"The weights in {where} {' and '.join(filter(None, (lacks, holds)))}; {complete} {model}."
        )
    _check_shapes(expected, found, where)
    return tuple(
        f"{where}: {listed(names)} {'is' if len(names) == 1 else 'are'} left out ({reason})."
        for reason, names in left_out.items()
    )


def quantised(where: str, method: str, seen: str) -> FlowBlendingError:
    """The refusal of a checkpoint that is not made of weights."""
    return FlowBlendingError(
        f"{where} is quantised with {method} ({seen}), but weights in {', '.join(FLOATS)} were expected; give the "
        "checkpoint that it was made from, and choose --precision fp8 where less memory is wanted."
    )


def _sort_out(
    names: Iterable[str], harmless: Sequence[tuple[str, str]]
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The names that may be left out, by reason, and the others."""
    left_out: dict[str, list[str]] = {}
    surplus = []
    for name in names:
        reason = next((reason for pattern, reason in harmless if re.search(pattern, name)), None)
        if reason is None:
            surplus.append(name)
        else:
            left_out.setdefault(reason, []).append(name)
    return left_out, tuple(surplus)


def _check_types(expected: Mapping[str, Expected], found: Mapping[str, TensorPlace], where: str) -> None:
    wrong = [
        name
        for name, tensor in expected.items()
        if name in found
        and not (found[name].decoded and tensor.floating)
        and found[name].kind not in (FLOATS if tensor.floating else FLOATS + INTEGERS)
    ]
    if not wrong:
        return
    kind = found[wrong[0]].kind
    method = quantised_by_type(kind)
    if method is not None:
        raise quantised(where, method, f"{kind} is the type of {listed(wrong)}")
    raise FlowBlendingError(
        f"{listed(wrong)} in {where}: of type {kind}, but one of {', '.join(FLOATS)} was expected; "
        "give a checkpoint of a published type."
    )


def _check_shapes(expected: Mapping[str, Expected], found: Mapping[str, TensorPlace], where: str) -> None:
    wrong = [name for name, tensor in expected.items() if found[name].shape != tensor.shape]
    if not wrong:
        return
    name, others = wrong[0], f" ({len(wrong) - 1} more differ, too)" if len(wrong) > 1 else ""
    key = found[name].key
    asks = "the shapes of the others ask" if key else "config.json asks"
    raise FlowBlendingError(
        f"The weight {key or name} in {where} has shape {list(found[name].shape)}, but {asks} for "
        f"{list(expected[name].shape)}{others}; give a complete {'file' if key else 'diffusers checkpoint'}."
    )
