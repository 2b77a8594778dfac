"""What a calibration takes on a machine without a GPU, said before anything is exported.

With `build`, one of the files of this package that call the exporter: its part that reads headers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import PipelineSpec
from flowblending.contracts.manifest import Geometry
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.onnxruntime.run import cuda_available
from flowblending.engine.bundle.geometry import parse_size, plan_geometry

SLOW = 1e16
"""Operations that a few cores compute in about a day."""

_SCORES = 3
"""Matrices of attention scores that ONNX Runtime holds in memory, fp32 [heads, tokens, tokens]."""

_ACTIVATIONS = 12
"""Other activations that are held, of fp32 [tokens, width] each; a feed-forward layer's are four or six of them."""

_WEIGHTS = 1_000_000_000
"""Bytes for the weights of the layer that computes, cast and turned, and for the program."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What sampling a calibration's trajectories takes.

    Attributes:
        calls: by model.
        operations: of all calls.
        memory: bytes of the largest call on a CPU, a little more rather than less. Weights are pages of their files.
    """

    calls: Mapping[str, int]
    operations: float
    memory: int


def calibration_load(
    models: Mapping[str, Sequence[Path]], calls: Mapping[str, int], pipeline: PipelineSpec, geometry: Geometry
) -> Load:
    """What it takes, from configurations and the headers of weights.

    Args:
        models: the files of each transformer.
        calls: by model.
    """
    from flowblending.export.checkpoint.model_files import read_json, tensors_in

    tokens = pipeline.tokens(geometry.latent_shape)
    operations, memory = 0.0, 0
    for name, files in models.items():
        config = read_json(next(path for path in files if path.name == "config.json"))
        heads, layers = int(config["num_attention_heads"]), int(config["num_layers"])
        width = heads * int(config["attention_head_dim"])
        weights = sum(tensor.elements for tensor in tensors_in(files).values())
        operations += calls[name] * (2.0 * weights * tokens + 4.0 * layers * width * tokens**2)
        activations = 4 * tokens * (_SCORES * heads * tokens + _ACTIVATIONS * width)
        memory = max(memory, activations + _WEIGHTS if calls[name] else 0)
    return Load(calls=calls, operations=operations, memory=memory)


def sampled_geometry(pipeline: PipelineSpec, own: Geometry, size: str | None, frames: int | None) -> Geometry:
    """The geometry of the videos to sample.

    Args:
        own: the bundle's, which is taken where nothing else was given.
        size: ``WIDTHxHEIGHT``.
        frames: of a video.

    Raises:
        UsageError: one that the family cannot make.
    """
    try:
        chosen = (own.width, own.height) if size is None else parse_size(size)
        return plan_geometry(pipeline, chosen, own.frames if frames is None else frames)
    except UsageError as error:
        raise UsageError(str(error).replace("try --", "try --fp8-")) from None


def on_gpu() -> bool:
    """Whether a calibration will run on a GPU."""
    return gpu_architecture() is not None and cuda_available()


def check_load(load: Load, geometry: Geometry, available: int) -> str:
    """A line about what is needed.

    Args:
        geometry: that is sampled at.
        available: bytes of memory.

    Raises:
        FlowBlendingError: there is not so much.
    """
    if load.memory > available:
        raise FlowBlendingError(
            f"Calibrating at {geometry} takes up to {load.memory / 1e9:.1f} GB of memory without a GPU, but "
            f"{available / 1e9:.1f} GB are available; calibrate at a smaller --fp8-size or with fewer --fp8-frames, or "
            "give --fp8-calibration FILE of a machine that has more. Nothing was written."
        )
    calls = " and ".join(f"{name} {count} times" for name, count in load.calls.items() if count)
    day = (
        ", which takes a few cores a day or more: less with a smaller --fp8-size or fewer --fp8-steps or --fp8-prompts"
    )
    slow = day if load.operations > SLOW else ""
    return (
        f"calibration: calls {calls} at {geometry}: {load.operations / 1e12:.3g} TFLOPs and up to "
        f"{load.memory / 1e9:.1f} GB of memory on the CPU{slow}"
    )
