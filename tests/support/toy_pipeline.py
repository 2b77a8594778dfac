"""A pipeline whose engines are formulas, for what puts the stages together: seconds become milliseconds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.memory.engines import Engines
from flowblending.runtime.pipeline import Pipeline
from tests.support import manifests

NO_TEXT: Mapping[str, Mapping[str, Tensor]] = {"cond": {}, "uncond": {}}
"""Embeddings of models that take no text: the text encoder is never asked."""

FRAMES = 9
_LATENT = (1, 16, 1, "height", "width")
_PIXELS = ("8*height", "8*width")


class CountingDevice(HostDevice):
    """A CPU that knows how many of the arrays it made are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        return self._counted(super().empty(shape, dtype))

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        return self._counted(super().upload(array))

    def _counted(self, tensor: Tensor) -> Tensor:
        self.alive += 1
        weakref.finalize(tensor.numpy(), self._gone)
        return tensor

    def _gone(self) -> None:
        self.alive -= 1


@dataclass(kw_only=True)
class ToyEngines(Engines):
    """Engines that are ``made`` and not opened."""

    made: Callable[[str], FunctionEngine]

    def _opened(self, name: str) -> FunctionEngine:
        return self.made(name)


@dataclass(kw_only=True)
class ToyPipeline(Pipeline):
    """The toy bundle's engines as formulas, and as many of them open as were asked for.

    Attributes:
        spoiled: components whose output is not finite, by the number of the call (from 0) that it begins with.
        precision: that the engines say they have.
    """

    device: CountingDevice = field(default_factory=CountingDevice)
    spoiled: dict[str, int] = field(default_factory=dict)
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        self.engines = ToyEngines(bundle=self.bundle, device=self.device, memory=self.machine.memory, made=self._made)

    def _made(self, name: str) -> FunctionEngine:
        engine = FunctionEngine(_spec(name, self.precision), lambda arrays: self._outputs(engine, arrays))
        return engine

    def embed(self, text: str, warn: Callable[[str], None]) -> dict[str, Tensor]:  # noqa: ARG002 - there is no text
        """Nothing: the formulas take no text."""
        return {}

    def _outputs(self, engine: FunctionEngine, arrays: Arrays) -> Arrays:
        name = engine.spec.name
        latents = arrays["latents"]
        if name.startswith("vae"):
            frame = latents[:, :3].repeat(8, axis=-2).repeat(8, axis=-1)
            outputs = {"frames": np.tanh(np.concatenate([frame] if name == "vae_first" else [frame, -frame] * 2, 2))}
            outputs["cache_00_next"] = latents
        else:
            outputs = {"velocity": latents * np.float32(0.5 if name == "large" else 0.4)}
        if engine.calls > self.spoiled.get(name, 1 << 30):
            outputs = {each: np.full_like(array, np.inf) for each, array in outputs.items()}
        return outputs


def _spec(name: str, precision: Precision) -> GraphSpec:
    def tensor(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=shape)

    inputs, outputs = [tensor("latents", *manifests.LATENT)], [tensor("velocity", *manifests.LATENT)]
    if name.startswith("vae"):
        inputs = [tensor("latents", *_LATENT)] + ([tensor("cache_00", *_LATENT)] if name == "vae_next" else [])
        count = 1 if name == "vae_first" else 4
        outputs = [tensor("frames", 1, 3, count, *_PIXELS), tensor("cache_00_next", *_LATENT)]
    return GraphSpec(name=name, precision=precision, inputs=tuple(inputs), outputs=tuple(outputs))


def toy_pipeline(folder: Path, **options: Any) -> ToyPipeline:
    """A toy pipeline over a toy bundle, of videos of 64x32 pixels and `FRAMES` frames."""
    manifests.write(folder)
    bundle = open_bundle(folder)
    components = dict(bundle.manifest.components)
    components["vae_first"] = components["vae_next"] = components.pop("vae")
    manifest = bundle.manifest.model_copy(update={"components": components})
    return ToyPipeline(bundle=Bundle(folder=folder, manifest=manifest), **options)
