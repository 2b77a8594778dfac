"""Execution contexts, one for each optimization profile that is used. All of them take turns with one scratch memory.

A profile is not changed while a program runs: a context costs next to nothing without scratch memory of its own.

TensorRT-RTX compiles a plan's kernels for the GPU while it runs, and has to be told how. It would compile the kernels
of a new shape in the background and use slower, other ones until they are there: the same seed would give other bits
from run to run, and a time measured meanwhile would be that of both. And it would compile all of them again in every
process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.backends.tensorrt.kept import Kept
from flowblending.engine.backends.tensorrt.library import Library


class ProfileContext:
    """A context, and what it has been told.

    Attributes:
        context: the library's own.
        scratch_bytes: of memory that a call takes.
        addresses: by tensor, and under an empty name the scratch memory's.
    """

    def __init__(self, context: Any, scratch_bytes: int) -> None:
        self.context = context
        self.scratch_bytes = scratch_bytes
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def take(self, scratch: Tensor) -> None:
        """Tell the context where its scratch memory is, if that is another than before."""
        if self.addresses.get("") != scratch.address:
            self.context.set_device_memory(scratch.address, scratch.nbytes)
            self.addresses[""] = scratch.address


class ContextMaker:
    """Makes the context of a plan, and keeps what was compiled for it.

    Args:
        library: that the plan is of.
        plan: its file.
        architecture: of the GPU.
    """

    def __init__(self, library: Library, plan: Path, architecture: str) -> None:
        self._trt = library.trt
        self._cache: Any = None
        self._kept = Kept("kernels", library.version, architecture, plan)

    def make(self, engine: Any) -> Any:
        """An execution context; None if the library gives none."""
        if not hasattr(self._trt, "IRuntimeCache"):
            return engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config = engine.create_runtime_config()
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            content = self._kept.read()
            if content:
                # False for what another driver or GPU has left: an empty cache is as good.
                self._cache.deserialize(content)
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def for_profile(self, engine: Any, index: int, stream: int) -> ProfileContext | None:
        """A context for an optimization profile; None if the library refuses."""
        context = self.make(engine)
        if context is None:
            return None
        if context.active_optimization_profile != index and not context.set_optimization_profile_async(index, stream):
            return None
        return ProfileContext(context, self.scratch_bytes(engine, index))

    def scratch_bytes(self, engine: Any, index: int) -> int:
        """What a call of a profile takes of scratch memory, as the engine states it."""
        return int(engine.get_device_memory_size_for_profile_v2(index))

    def keep(self) -> None:
        """Write what was compiled since, for the next process."""
        if self._cache is not None:
            written = self._cache.serialize()
            self._kept.write(b"" if written is None else bytes(written))
            self._cache = None
