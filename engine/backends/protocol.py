"""What an engine is, whichever library runs it, and the sizes it is compiled for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flowblending.contracts.graph import GraphSpec, TensorSpec
from flowblending.engine.backends.tensor import Tensor


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


@runtime_checkable
class CapturableEngine(Protocol):
    """An engine whose calls can be captured into a CUDA graph, once a call of the same shapes has been made."""

    def graph_state(self) -> object:
        """What a captured call depends on beside its tensors: the graph may be launched as long as this is equal.

        Raises:
            FlowBlendingError: the engine has been closed.
        """
        ...

    def is_capturable(self, stream: int) -> bool:
        """Whether another call of the shapes of the last one can be captured."""
        ...


@runtime_checkable
class InspectedEngine(Protocol):
    """An engine that also tells what it takes of its device and what its layers are called."""

    def device_bytes(self) -> int:
        """Device memory of one execution context at the largest shapes."""
        ...

    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it runs, or none if it does not tell."""
        ...


class Scratch(Protocol):
    """Memory that the engines of one stream use in turns: what a call leaves there is nobody's."""

    def at_least(self, size: int) -> Tensor:
        """So many bytes or more, the same memory as long as it is large enough.

        Memory that is replaced is freed in the stream's order: calls that were enqueued still have it.

        Raises:
            OutOfMemoryError: there is not so much.
        """
        ...


@runtime_checkable
class ScratchEngine(Protocol):
    """An engine whose calls take memory beside their tensors, which whoever opened it provides.

    All engines that run on one stream may be given one memory, of the size of the largest.
    """

    def use_scratch(self, scratch: Scratch) -> None:
        """Take scratch memory from there, from the first call on."""
        ...

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Have the scratch memory for calls with inputs of these shapes, so that no call has to ask for it.

        Raises:
            OutOfMemoryError: there is not so much.
            FlowBlendingError: a shape is outside what the engine was built for.
        """
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

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, most usual and largest shape of an input."""
        return (
            tensor.resolve({name: size.min for name, size in self.symbols.items()}),
            tensor.resolve({name: size.opt for name, size in self.symbols.items()}),
            tensor.resolve({name: size.max for name, size in self.symbols.items()}),
        )


def ends(profiles: Iterable[ShapeProfile], spec: GraphSpec | None = None) -> tuple[dict[str, int], ...]:
    """The smallest and the largest sizes of every profile, each set once.

    Args:
        profiles: of a component.
        spec: of its graph, whose symbols are told alone; None tells every symbol of the profiles.
    """
    found: list[dict[str, int]] = []
    for profile in profiles:
        names = profile.symbols if spec is None else spec.symbols
        for sizes in (
            {name: profile.symbols[name].min for name in names},
            {name: profile.symbols[name].max for name in names},
        ):
            if sizes not in found:
                found.append(sizes)
    return tuple(found)


def largest(profiles: Iterable[ShapeProfile], spec: GraphSpec) -> dict[str, int]:
    """The sizes of the profiles with the most work, by the product of all."""
    return max(ends(profiles, spec), key=lambda sizes: math.prod(sizes.values()))
