"""What TeaCache looks at, computed by a bundle's small graphs; see `flowblending.runtime.program.caches.teacache`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.registry import open_engine
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.engine.bundle.bundle import Bundle

Floats = npt.NDArray[np.float32]


class Signal(Protocol):
    """A model's signal."""

    def __call__(self, latents: Floats, timestep: float) -> Floats:
        """The signal fp32 [1, ...] at latents fp32 [1, C, F, H, W] and a timestep; it may not depend on both."""
        ...


@dataclass(frozen=True)
class EngineSignal:
    """A signal that an engine on the CPU computes."""

    engine: Engine

    def __call__(self, latents: Floats, timestep: float) -> Floats:
        """Run it."""
        given = {"latents": latents, "timestep": np.array([timestep], np.float32)}
        inputs = {spec.name: given[spec.name] for spec in self.engine.spec.inputs}
        sizes = self.engine.spec.sizes({name: array.shape for name, array in inputs.items()})
        (output,) = self.engine.spec.outputs
        found = np.empty(output.resolve(sizes), np.float32)
        tensors = {name: Tensor.of(array) for name, array in inputs.items()}
        self.engine.run({**tensors, output.name: Tensor.of(found)}, 0)
        return found


def open_signals(bundle: Bundle, threads: int | None) -> Mapping[str, Signal]:
    """The signals of a bundle's models, or none if it was built without.

    Raises:
        FlowBlendingError: ONNX Runtime is missing, or a graph cannot be loaded.
    """
    return {
        model: EngineSignal(
            open_engine(
                backend=component.backend,
                path=bundle.folder / component.files[0].path,
                spec=component.spec,
                device=CPU,
                threads=threads,
            )
        )
        for model, component in bundle.manifest.signals.items()
    }
