"""File contract 2: ``manifest.json``, the one file that tells what a bundle is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from flowblending.export.spec import GraphSpec, PipelineSpec

FORMAT = 1
MANIFEST = "manifest.json"

Backend = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Frozen):
    """A file of the bundle: its name in the folder, size in bytes, and SHA-256."""

    path: str
    bytes: int
    sha256: str


class Flops(_Frozen):
    """Floating-point operations of one call with batch 1 at the bundle's geometry (a multiply-add is two)."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Linear layers, convolutions and attention products together."""
        return self.linear + self.attention


class Component(_Frozen):
    """One engine: what it computes, what runs it, its files, and the key under which it may be reused.

    Attributes:
        spec: inputs, outputs, precision.
        backend: the library that runs it.
        backend_version: the version that compiled it.
        targets: the GPU architectures (``sm89``) it was compiled for; empty where any device will do.
        files: the engine's own file first.
        key: everything that determines the engine (weights, graph, precision, shapes, back end, versions).
        flops: of one call, where they were counted.
    """

    spec: GraphSpec
    backend: Backend
    backend_version: str
    targets: tuple[str, ...] = ()
    files: tuple[BundleFile, ...]
    key: dict[str, str]
    flops: Flops | None = None


class Geometry(_Frozen):
    """The videos a bundle makes: pixels, frames, and the latents [C, F, H, W] behind them."""

    width: int
    height: int
    frames: int
    latent_shape: tuple[int, int, int, int]


class Manifest(_Frozen):
    """Everything about a bundle.

    Attributes:
        id: first 16 digits of the SHA-256 over all component keys, pipeline and geometry.
        pipeline: what the reference pipeline prescribes beside its engines.
        tokenizer: files of the tokenizer, ``tokenizer.json`` first.
        rebuild: the command that makes this bundle again.
        created_by: version of FlowBlending.
    """

    format: int = FORMAT
    id: str
    pipeline: PipelineSpec
    geometry: Geometry
    components: dict[str, Component]
    tokenizer: tuple[BundleFile, ...]
    rebuild: tuple[str, ...]
    created_by: str
