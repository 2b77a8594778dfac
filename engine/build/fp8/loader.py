"""Engines of ONNX Runtime over exported graphs whose weights stay in the checkpoint's files, one open at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowblending.contracts.graph import ENCODERS, GraphSpec
from flowblending.engine.backends.onnxruntime.run import BoundWeight, OrtEngine
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.runtime.devices.protocol import Device


@dataclass(frozen=True, kw_only=True)
class HeldWeight:
    """A weight in a file of the checkpoint.

    Attributes:
        name: of the graph's input that it is.
        path: absolute, of the file.
        offset: of its first byte.
        shape: in the file.
        itemsize: bytes of a number.
        kind: ONNX's number of its type.
    """

    name: str
    path: Path
    offset: int
    shape: tuple[int, ...]
    itemsize: int
    kind: int


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph for ONNX Runtime, with absolute path, and the weights that it takes as inputs."""

    onnx: Path
    spec: GraphSpec
    weights: tuple[HeldWeight, ...] = ()


class Loader:
    """Opens engines, one at a time; the steps of a VAE encoder, which take turns, together."""

    def __init__(self, graphs: Mapping[str, Graph], device: Device) -> None:
        self.graphs = graphs
        self.device = device
        self._open: dict[str, Engine] = {}

    def engine(self, name: str) -> Engine:
        """The engine of a model; others are closed first."""
        if name not in self._open:
            if not {name, *self._open} <= set(ENCODERS):
                self.close()
            graph = self.graphs[name]
            self._open[name] = OrtEngine(
                graph.onnx,
                graph.spec,
                device=self.device.kind,
                stream=self.device.stream,
                weights=[self._bound(weight) for weight in graph.weights],
            )
        return self._open[name]

    def _bound(self, weight: HeldWeight) -> BoundWeight:
        """A weight as pages of its file, which the system reads when they are needed and drops when it needs room."""
        pages = np.memmap(weight.path, np.uint8, "r", weight.offset, (math.prod(weight.shape) * weight.itemsize,))
        held = pages.view(f"u{weight.itemsize}").reshape(weight.shape)
        # On a GPU they are there, in the checkpoint's type.
        tensor = Tensor.of(held) if self.device.kind == CPU else self.device.upload(held)
        return BoundWeight(name=weight.name, tensor=tensor, kind=weight.kind)

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.popitem()[1].close()
