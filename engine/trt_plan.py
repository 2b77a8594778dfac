"""What a plan says about itself: TensorRT-RTX leaves a readable listing of the compiled program in it.

The listing is not documented, so its absence means nothing; where it is there, it tells without a GPU in which types
a layer's product is computed.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path

from flowblending import FlowBlendingError

FP8 = "fp8_e4m3"

_TENSOR = re.compile(rb'tensor=\{ [^\n]{0,800}? name="([^"\n]{1,400})" [^\n]{0,400}? type=(\w+) \}')
_PRODUCT = re.compile(rb'fully_connected=\{ name="([^"]{1,4000})" output=\{[^}]{0,4000}\} input=\{([^}]{0,4000})\}')
_NAME = re.compile(rb'"([^"]+)"')


def product_types(plan: Path) -> Mapping[str, frozenset[str]]:
    """The types of the two operands of every layer, by the name of its node; empty if the plan has no listing.

    Args:
        plan: read through its pages, one after the other.
    """
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        types: dict[bytes, set[str]] = {}
        for tensor in _TENSOR.finditer(content):
            types.setdefault(tensor[1], set()).add(tensor[2].decode())
        found: dict[str, set[str]] = {}
        for product in _PRODUCT.finditer(content):
            kinds = set().union(*(types.get(name, {"unknown"}) for name in _NAME.findall(product[2])[:2]))
            # Layers of one input may have become one product.
            for name in product[1].decode().split("+"):
                found.setdefault(name, set()).update(kinds)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def fp8_products(plan: Path, model: str, expected: int) -> int | None:
    """How many layers a plan computes in fp8; None if it does not tell.

    Args:
        plan: of the model.
        model: for the message.
        expected: how many the graph asks for.

    Raises:
        FlowBlendingError: fewer than that.
    """
    types = product_types(plan)
    if not types:
        return None
    found = sum(kinds == {FP8} for kinds in types.values())
    if found < expected:
        raise FlowBlendingError(
            f"The compiler computes {found} layers of {model} in fp8, where its graph asks for {expected}; "
            "use another --target or another --precision."
        )
    return found
