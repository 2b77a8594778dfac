"""What an engine is, whichever library runs it, and the sizes it is compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flowblending.engine.tensor import Tensor
from flowblending.export.spec import GraphSpec, TensorSpec


class Engine(Protocol):
    """One compiled graph, ready to run.

    ``run`` never allocates outputs, never chooses a stream and never synchronises: the caller owns
    the memory (outputs included), the stream, and the moment to wait.
    """

    @property
    def spec(self) -> GraphSpec:
        """Inputs, outputs and precision."""
        ...

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Enqueue one call.

        Args:
            tensors: every input and every output of ``spec``, by name, of the shapes that ``spec`` gives.
                Their memory must live until the stream has passed the call.
            stream: handle of the CUDA stream to enqueue on; 0 on the CPU, where the call has
                finished when ``run`` returns.

        Raises:
            FlowBlendingError: a shape is outside what the engine was built for, or the back end failed.
        """
        ...

    def close(self) -> None:
        """Release the engine's memory. Calling it twice is harmless."""
        ...


@dataclass(frozen=True, kw_only=True)
class Range:
    """Smallest, most usual and largest size of a symbol: one axis of an optimization profile."""

    min: int
    opt: int
    max: int

    @classmethod
    def fixed(cls, size: int) -> Range:
        """One size only."""
        return cls(min=size, opt=size, max=size)


@dataclass(frozen=True)
class ShapeProfile:
    """TensorRT's optimization profile, told by symbol (``batch``, ``frames``, ``height``, ...) instead of by input."""

    symbols: Mapping[str, Range]

    def smallest(self, spec: GraphSpec) -> dict[str, int]:
        """The smallest size of every symbol that a graph has."""
        return {name: self.symbols[name].min for name in spec.symbols}

    def largest(self, spec: GraphSpec) -> dict[str, int]:
        """The largest size of every symbol that a graph has."""
        return {name: self.symbols[name].max for name in spec.symbols}

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, most usual and largest shape of an input."""
        return (
            tensor.resolve({name: size.min for name, size in self.symbols.items()}),
            tensor.resolve({name: size.opt for name, size in self.symbols.items()}),
            tensor.resolve({name: size.max for name, size in self.symbols.items()}),
        )
