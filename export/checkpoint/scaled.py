"""Weights in fp8, and the scales that files keep beside them: which belongs to which, and whether they can be used.

ComfyUI writes ``layer.scale_weight`` and one ``scaled_fp8`` for the file (comfy/ops.py, scaled_fp8_ops), and later
``layer.weight_scale`` and ``layer.comfy_quant``, which names the format in JSON (comfy/quant_ops.py). A weight is what
is stored times its scale.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.fit import FLOATS
from flowblending.export.checkpoint.model_files import read_place
from flowblending.export.checkpoint.naming import listed
from flowblending.export.checkpoint.places import TensorPlace

FP8 = ("F8_E4M3", "F8_E5M2")

_SCALE = re.compile(r"(?P<layer>.+)\.(?:scale_weight|weight_scale)")
_MARKER = re.compile(r"(?:.+\.)?scaled_fp8")
_FORMAT = re.compile(r"(?P<layer>.+)\.comfy_quant")
_INPUT_SCALE = re.compile(r".+\.(?:scale_input|input_scale)")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What is left of a file's tensors when scales are with their weights.

    Attributes:
        tensors: by name.
        formats: what tells the format of a layer, by the layer.
        left_out: names of tensors that are not used, by the reason.
    """

    tensors: Mapping[str, TensorPlace]
    formats: Mapping[str, TensorPlace]
    left_out: Mapping[str, tuple[str, ...]]


def join_scales(tensors: Mapping[str, TensorPlace], where: str) -> Weights:
    """Give fp8 weights their scales, from names, shapes and types alone.

    Args:
        tensors: of a file, by name.
        where: what the user calls the file.

    Raises:
        FlowBlendingError: a scale is missing, or has no weight, or another shape than one number or one for each row.
    """
    scales = {f"{match['layer']}.weight": name for name in tensors if (match := _SCALE.fullmatch(name))}
    formats = {match["layer"]: tensors[name] for name in tensors if (match := _FORMAT.fullmatch(name))}
    inputs = tuple(name for name in tensors if _INPUT_SCALE.fullmatch(name))
    markers = {name for name in tensors if _MARKER.fullmatch(name)}
    beside = {*scales.values(), *inputs, *markers, *(f"{layer}.comfy_quant" for layer in formats)}
    kept = {name: place for name, place in tensors.items() if name not in beside}
    _check_complete(kept, scales, scaled=bool(scales or markers or formats), where=where)
    for weight, name in scales.items():
        place, scale = kept[weight], tensors[name]
        if scale.kind not in FLOATS or (scale.elements != 1 and scale.shape not in _by_row(place)):
            raise FlowBlendingError(
                f"{name} in {where} is {scale.kind} {list(scale.shape)}, but one floating-point number, or one for "
                f"each row of {weight} {list(place.shape)}, was expected; give a file with such scales."
            )
        kept[weight] = replace(place, scale=scale)
    decoded = {
        name: replace(place, decoded=place.decoded or place.kind in FP8 or place.scale is not None)
        for name, place in kept.items()
    }
    reasons = {"ranges of layers' inputs, which a build measures itself": inputs} if inputs else {}
    return Weights(tensors=decoded, formats=formats, left_out=reasons)


def check_scales(weights: Weights, where: str) -> None:
    """Read the scales, which are a few bytes each, and what the file says of its formats.

    Raises:
        FlowBlendingError: a scale is not above 0, or a format is another than fp8.
    """
    for layer, place in weights.formats.items():
        named = _format(place)
        if named not in _FORMATS:
            raise FlowBlendingError(
                f"{where} is quantised with {named} ({layer}.comfy_quant says so), but {' or '.join(_FORMATS)} was "
                "expected; give an fp8 file, or the one that it was made from."
            )
    for name, place in weights.tensors.items():
        values = () if place.scale is None else read_place(place.scale)
        wrong = next((value for value in values if not (math.isfinite(value) and value > 0)), None)
        if wrong is not None:
            raise FlowBlendingError(
                f"The scale of {name} in {where} is {wrong:g}, but a number above 0 was expected; download the file "
                "again, or give another."
            )


def _check_complete(kept: Mapping[str, TensorPlace], scales: Mapping[str, str], *, scaled: bool, where: str) -> None:
    """Refuse a scale without its weight, and fp8 weights without a scale in a file that has scales."""
    alone = [name for weight, name in scales.items() if weight not in kept]
    if alone:
        raise FlowBlendingError(
            f"{where} holds {listed(alone, 10)}, but no weights of these layers; give a whole file."
        )
    bare = [name for name, place in kept.items() if place.kind in FP8 and name not in scales]
    if scaled and bare:
        raise FlowBlendingError(
            f"{where} is an fp8 file with scales, but {listed(bare, 10)} {'has' if len(bare) == 1 else 'have'} none; "
            "give a whole file."
        )


def _by_row(weight: TensorPlace) -> tuple[tuple[int, ...], ...]:
    """Shapes of a scale with a number for each row of a weight."""
    rows = weight.shape[:1]
    return rows, (*rows, *(1 for _ in weight.shape[1:]))


def _format(place: TensorPlace) -> str:
    try:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return str(json.loads(file.read(place.elements))["format"])
    except (ValueError, LookupError, TypeError):
        return "a format that it does not name"
