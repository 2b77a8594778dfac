"""Execution contexts: TensorRT-RTX compiles a plan's kernels for the GPU while it runs, and has to be told how.

It would compile the kernels of a new shape in the background and use slower, other ones until they are there: the same
seed would give other bits from run to run, and a time measured meanwhile would be that of both. And it would compile
all of them again in every process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowblending.engine.backends.tensorrt.kept import Kept
from flowblending.engine.backends.tensorrt.library import Library


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
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._cache = config.create_runtime_cache()
        content = self._kept.read()
        if content:
            # False for what another driver or GPU has left: an empty cache is as good.
            self._cache.deserialize(content)
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def keep(self) -> None:
        """Write what was compiled since, for the next process."""
        if self._cache is not None:
            written = self._cache.serialize()
            self._kept.write(b"" if written is None else bytes(written))
            self._cache = None
