"""How many bytes a component's graph will have, read from the headers of its checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending.contracts.graph import Precision
from flowblending.export.checkpoint.model_files import tensors_in

BYTES: Mapping[Precision, int] = {
    Precision.FP32: 4,
    Precision.FP16: 2,
    Precision.FP16_MIXED: 2,
    Precision.BF16: 2,
    Precision.FP8: 1,
}
"""Of a weight in a precision; that some stay in fp32 does not matter at the sizes that this is asked for."""

OVERHEAD = 16_000_000
"""Bytes of everything but the weights: the graph itself (11 MB of a 14B model), tables, a plan's kernels."""

_BLOCK = re.compile(r"(?:transformer_)?blocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Fp8Blocks:
    """Which blocks of a transformer are fp8: all of ``count`` but ``keep`` at either end; the rest is in ``base``."""

    count: int
    keep: int
    base: Precision


def graph_bytes(files: Sequence[Path], precision: Precision, fp8: Fp8Blocks | None = None) -> int:
    """What a graph takes, or the plan of it; a little more rather than less: a VAE's encoder is counted, too.

    Args:
        files: those that determine the component; their headers are read.
        precision: of the graph.
        fp8: of a graph in fp8.
    """
    elements = {name: tensor.elements for name, tensor in tensors_in(files).items()}
    return OVERHEAD + weight_bytes(elements, precision, fp8)


def weight_bytes(elements: Mapping[str, int], precision: Precision, fp8: Fp8Blocks | None = None) -> int:
    """What weights take in a precision.

    Args:
        elements: of every tensor, by its name.
        precision: of the graph.
        fp8: of a graph in fp8.
    """
    total = 0
    for name, count in elements.items():
        block = _BLOCK.match(name)
        if precision is not Precision.FP8 or fp8 is None:
            total += count * BYTES[precision]
        elif block and fp8.keep <= int(block[1]) < fp8.count - fp8.keep:
            total += count * BYTES[Precision.FP8]
        else:
            total += count * BYTES[fp8.base]
    return total


def apart_bytes(files: Sequence[Path], changed: Collection[str]) -> int:
    """What weights take in a file of their own that cannot be pages of the checkpoint's: those decoded or changed.

    Args:
        files: those that determine the component.
        changed: names of weights that something is added to.
    """
    sizes = {"F64": 8, "F32": 4}
    return sum(
        place.elements * sizes.get(place.kind, 2)
        for name, place in tensors_in(files).items()
        if place.decoded or name in changed
    )
