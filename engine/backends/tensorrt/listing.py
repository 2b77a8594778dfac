"""What a plan says about itself: TensorRT-RTX leaves a readable listing of the compiled program in it.

The listing is not documented, so its absence means nothing; where it is there, it tells without a GPU in which types
a layer's product is computed, and which attention became one kernel.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path

from flowblending.engine.backends.backend import Listing

_TYPES: Mapping[str, str] = {"float": "fp32", "half": "fp16", "bf16": "bf16", "fp8_e4m3": "fp8", "int8": "int8"}
"""The listing's names of types, and ours (`flowblending.export.graph.audit`)."""

_TENSOR = re.compile(rb'tensor=\{ [^\n]{0,800}? name="([^"\n]{1,400})" [^\n]{0,400}? type=(\w+) \}')
_PRODUCT = re.compile(rb'fully_connected=\{ name="([^"]{1,4000})" output=\{[^}]{0,4000}\} input=\{([^}]{0,4000})\}')
_NAME = re.compile(rb'"([^"]+)"')
_FUSED = re.compile(rb'function=\{ name=_gemm_mha[^\n]{0,20000}? layers="([^"\n]{1,4000})"')
_KERNEL = re.compile(
    rb"function=\{ name=_gemm_mha[^\n]{0,8000}? input_args=\{([^}\n]{0,8000})\}"
    rb'[^\n]{0,20000}? layers="([^"\n]{1,4000})"'
)
_NODE = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")
_FUNCTION = re.compile(rb"function=\{ name=\w+")
_OPERANDS = 3


def product_types(plan: Path) -> Mapping[str, frozenset[str]]:
    """The types of the two operands of every layer, by the name of its node; empty if the plan has no listing.

    Args:
        plan: read through its pages, one after the other.
    """
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        types = _tensor_types(content)
        found: dict[str, set[str]] = {}
        for product in _PRODUCT.finditer(content):
            kinds = set().union(*(types.get(name, {"unknown"}) for name in _NAME.findall(product[2])[:2]))
            for name in _layers(product):
                found.setdefault(name, set()).update(kinds)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def products(plan: Path) -> frozenset[frozenset[str]]:
    """The matrix products with weights, each as the names of the layers that the compiler made it of.

    Args:
        plan: read through its pages, one after the other.
    """
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return frozenset(frozenset(_layers(product)) for product in _PRODUCT.finditer(content))


def kernel_count(plan: Path) -> int:
    """How many kernels there are; 0 if the plan has no listing.

    Args:
        plan: read through its pages, one after the other.
    """
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return sum(1 for _ in _FUNCTION.finditer(content))


def fused_attention(plan: Path) -> frozenset[str]:
    """The nodes whose work is done in kernels of fused attention, by name; attention stands among them once it is.

    Args:
        plan: read through its pages, one after the other.
    """
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        kernels = {match[1] for match in _FUSED.finditer(content)}
    return frozenset(name.decode() for layers in kernels for name in _NODE.findall(layers))


def fp8_attention(plan: Path) -> frozenset[str]:
    """The nodes whose work is done in kernels of fused attention that read fp8 queries, keys and values, by name.

    Args:
        plan: read through its pages, one after the other.
    """
    fp8, other = set[bytes](), set[bytes]()
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        types = _tensor_types(content)
        for kernel in _KERNEL.finditer(content):
            # Beside the three there are sizes, and a mask that is never in fp8.
            operands = sum(types.get(name) == {"fp8"} for name in _NAME.findall(kernel[1]))
            (fp8 if operands >= _OPERANDS else other).update(_NODE.findall(kernel[2]))
    return frozenset(name.decode() for name in fp8 - other)


def _layers(product: re.Match[bytes]) -> list[str]:
    """Layers of one input may have become one product."""
    return product[1].decode().split("+")


def _tensor_types(content: mmap.mmap) -> dict[bytes, set[str]]:
    types: dict[bytes, set[str]] = {}
    for tensor in _TENSOR.finditer(content):
        types.setdefault(tensor[1], set()).add(_TYPES.get(tensor[2].decode(), tensor[2].decode()))
    return types


LISTING = Listing(product_types=product_types, fused_attention=fused_attention, fp8_attention=fp8_attention)
