"""Attention in fp8 in a network: asked for by the graph, made one kernel by the compiler or refused.

A graph asks for it by quantising queries, keys and values (`flowblending.export.fp8.attention`). That alone makes
compilers convert them back: the softmax's output has to be quantised as well, inside of the kernel, for which ONNX has
no words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_SCALE = np.full((), 1 / 448, np.float32)
"""The softmax gives at most 1, which becomes the largest number of E4M3. The network refers to this memory."""

_OPERANDS = 3


def quantise_attention(trt: Any, network: Any, attentions: Iterable[Any]) -> int:
    """Have the attention in fp8 that the graph quantises everything for.

    It must not be taken apart: where there is no fused kernel of this kind, the compilation fails.

    Args:
        network: as parsed; constants are added to it.
        attentions: its layers that queries, keys and values (in this order) go into.

    Returns:
        How many there are.
    """
    producers: dict[str, Any] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        producers |= {layer.get_output(each).name: layer for each in range(layer.num_outputs)}
    count = 0
    for layer in attentions:
        if all(_quantised(trt, producers, layer.get_input(each)) for each in range(_OPERANDS)):
            layer.__class__ = trt.IAttentionInputLayer  # get_layer knows the base class only
            layer.attention.normalization_quantize_scale = _scale(trt, network, layer.get_input(0).dtype)
            layer.attention.normalization_quantize_to_type = trt.fp8
            count += 1
    return count


def _quantised(trt: Any, producers: dict[str, Any], tensor: Any) -> bool:
    """Whether a tensor comes from a quantised one. The parser splits heads and scales queries and keys after that."""
    kinds = trt.LayerType
    layer = producers.get(tensor.name)
    while layer is not None and layer.type in (kinds.SHUFFLE, kinds.ELEMENTWISE):
        layer = producers.get(layer.get_input(0).name)
    return layer is not None and layer.type == kinds.DEQUANTIZE


def _scale(trt: Any, network: Any, dtype: Any) -> Any:
    """A constant of the attention's own type, as it has to be."""
    constant = network.add_constant(trt.Dims([]), trt.Weights(trt.float32, _SCALE.ctypes.data, 1))
    return network.add_cast(constant.get_output(0), dtype).get_output(0)
