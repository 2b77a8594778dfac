"""Recognising quantised checkpoints, by their configuration and by names and types of their tensors.

The classes of diffusers and transformers would drop what such a checkpoint has beside its weights (scales, tables),
and compute with numbers that are no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_BY_NAME: tuple[tuple[re.Pattern[str], str], ...] = (
    # bitsandbytes: functional.py, QuantState.as_dict, and nn/modules.py, Linear8bitLt.
    (re.compile(r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.bitsandbytes__\w+$"), "bitsandbytes (4 bits)"),
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes (8 bits)"),
    # optimum-quanto: tensor/weights/qbytes.py and qbits/qbits.py.
    (re.compile(r"\.weight\._(data|scale|shift)$"), "optimum-quanto"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    # Two names each of what ComfyUI, LightX2V and compressed-tensors write.
    (
        re.compile(r"(^|\.)(scaled_fp8|scale_(weight|input)|(weight|input)_scale(_2)?|comfy_quant)$"),
        "scaled fp8 or fp4",
    ),
    (re.compile(r"_quantizer\._|\._?amax$"), "NVIDIA Model Optimizer"),
    (re.compile(r"\.(wscales|smooth_factor(_orig)?)$"), "SVDQuant"),
    (re.compile(r"(\.|:)_?weight_qdata$|:_data(_impl)?\b"), "torchao"),
)
_BY_TYPE: Mapping[str, str] = {
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "F8_E8M0": "fp8",
    "F6_E2M3": "fp6",
    "F6_E3M2": "fp6",
    "F4": "fp4",
    "I8": "int8",
    "U8": "8-bit or packed 4-bit integers",
}
"""As safetensors names them."""


def quantised_by_config(config: Mapping[str, Any]) -> str | None:
    """What a component's ``config.json`` says that it is quantised with; None where it says nothing."""
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method is None:
        return "a quantization_config in its config.json"
    bits = next((str(count) for count in (4, 8) if found.get(f"load_in_{count}bit")), None)
    return f"{method} ({bits} bits)" if bits is not None else str(method)


def quantised_by_name(names: Iterable[str]) -> str | None:
    """What wrote tensors of these names, which no class has; None where none of them tells."""
    for name in names:
        for pattern, method in _BY_NAME:
            if pattern.search(name):
                return method
    return None


def quantised_by_type(kind: str) -> str | None:
    """What a weight of a type is quantised to, as safetensors names that; None for a type of plain weights."""
    return _BY_TYPE.get(kind)
