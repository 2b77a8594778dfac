"""The words that all three stages share: precisions, tensor and graph descriptions, the pipeline's constants.

Standard library only, so that the runtime can import it without torch. Everything here is plain,
frozen data. ``ExportedGraph`` is file contract 1: an ONNX file, its external data and this description
as JSON beside it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from flowblending import FlowBlendingError
from flowblending.contracts import upgrade
from flowblending.contracts.conditions import Condition

LARGE = "large"
SMALL = "small"
"""What the options --large and --small call their models; nothing but them, and bundles from before there were others,
takes these names for granted."""

TEXT_ENCODER = "text_encoder"
VAE = "vae"
VAE_FIRST = "vae_first"
VAE_NEXT = "vae_next"
DECODERS = (VAE, VAE_FIRST, VAE_NEXT)

VAE_ENCODER = "vae_encoder"
VAE_ENCODER_FIRST = "vae_encoder_first"
VAE_ENCODER_NEXT = "vae_encoder_next"
VAE_ENCODERS = (VAE_ENCODER, VAE_ENCODER_FIRST, VAE_ENCODER_NEXT)
"""A clip at once, or its first frame and then one latent frame's worth of frames at a time."""

IMAGE_ENCODER = "image_encoder"
"""CLIP's, of models that look at an image through it, too."""

ENCODERS = (*VAE_ENCODERS, IMAGE_ENCODER)
"""What images and videos go through before the transformers; only where a bundle takes them."""

_OTHERS = frozenset({TEXT_ENCODER, *DECODERS, *ENCODERS})

EXTERNAL_DATA = ".onnx.data"
"""How the name of a graph's weights ends, which lie beside ``NAME.onnx``."""

WAN_T2V_1_3B = "wan2.1-t2v-1.3b"
WAN_T2V_14B = "wan2.1-t2v-14b"
LTX_2B = "ltx-video-2b"
"""Published architectures of which more is published than their weights: constants of step caches."""


def is_transformer(component: str) -> bool:
    """Whether a component is what schedules choose between: no encoder and no decoder."""
    return component not in _OTHERS


def streams_weights(component: str) -> bool:
    """Whether a component has so many weights that leaving some in the host's memory can be worth it."""
    return is_transformer(component) or component == TEXT_ENCODER


class Precision(StrEnum):
    """The type of a graph's weights and matrix products. Inputs and outputs are fp32 in every precision.

    ``fp16-mixed`` is for the transformers: weights, matrix products and attention are fp16, and what lies between
    them (the sums that run through all blocks, modulation, gates, norms) is fp32, where it may exceed fp16's 65504.
    ``fp8`` is for them too: the linear layers of their blocks are E4M3, and everything else is bf16 for TensorRT and
    fp32 for ONNX Runtime, which has no bf16.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    FP16_MIXED = "fp16-mixed"
    BF16 = "bf16"
    FP8 = "fp8"


Dim = int | str
"""A fixed size, or an expression of one symbol: ``height``, ``8*height``, ``8*frames-7``."""

_EXPRESSION = re.compile(r"(?:(?P<factor>\d+)\*)?(?P<symbol>[a-z_]+)(?P<offset>[+-]\d+)?")


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The size of ``dim`` when each symbol has the size given.

    Raises:
        KeyError: a symbol of the expression has no size.
        ValueError: ``dim`` is not of the form ``[factor*]symbol[+offset]``.
    """
    if isinstance(dim, int):
        return dim
    match = _EXPRESSION.fullmatch(dim)
    if match is None:
        raise ValueError(f"{dim!r} is not of the form [factor*]symbol[+offset]")
    return int(match["factor"] or 1) * sizes[match["symbol"]] + int(match["offset"] or 0)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph: name, numpy dtype name, and shape with symbolic sizes."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape when each symbol has the size given."""
        return tuple(evaluate(dim, sizes) for dim in self.shape)


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """What a graph takes and gives. The same for its ONNX file and for every engine compiled from it.

    Attributes:
        name: the component that the graph is: a model's, such as ``large`` and ``small``; ``text_encoder``, ``vae``,
            ``vae_first`` or ``vae_next``.
        precision: of weights and matrix products.
        inputs: in the graph's order. Each symbol stands alone as a dimension of some input.
        outputs: in the graph's order; their sizes follow from the symbols of the inputs.
    """

    name: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every symbol, in the order in which the inputs name them."""
        dims = (dim for tensor in self.inputs for dim in tensor.shape)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str) and dim.isidentifier()))

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The size of every symbol, read from the shapes of the inputs.

        Raises:
            FlowBlendingError: an input is missing, or a shape contradicts the specification.
        """
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            if spec.name not in shapes:
                raise FlowBlendingError(f"Engine {self.name} was not given its input {spec.name}; pass every input.")
            if len(shapes[spec.name]) != len(spec.shape):
                raise self._mismatch(spec, shapes[spec.name])
            for dim, size in zip(spec.shape, shapes[spec.name], strict=True):
                if isinstance(dim, str) and dim.isidentifier():
                    sizes.setdefault(dim, size)
        for spec in self.inputs:
            if spec.resolve(sizes) != shapes[spec.name]:
                raise self._mismatch(spec, shapes[spec.name])
        return sizes

    def timestep_shape(self, latent_shape: Sequence[int], batch: int) -> tuple[int, ...]:
        """Of the input ``timestep`` for latents [C, F, H, W]: one for each row, or for each latent frame of it."""
        shape = next((each.shape for each in self.inputs if each.name == "timestep"), ("batch",))
        return tuple(evaluate(dim, {"batch": batch, "frames": latent_shape[1]}) for dim in shape)

    def _mismatch(self, spec: TensorSpec, shape: tuple[int, ...]) -> FlowBlendingError:
        return FlowBlendingError(
            f"Input {spec.name} of engine {self.name} has shape {list(shape)}, "
            f"but {list(spec.shape)} was expected; give a tensor of that shape."
        )


@dataclass(frozen=True, kw_only=True)
class SigmaGrid:
    """Which noise levels a sampler visits. Read from the checkpoint's scheduler; ``runtime.sigmas`` computes it.

    Attributes:
        kind: ``shifted``: a uniform grid under the static shift s -> shift*s / (1 + (shift-1)*s);
            ``dynamic-shift``: the shift grows with the number of latent tokens, and the last sigma is
            stretched to ``shift_terminal``; ``linear-quadratic``: LTX-Video 0.9.5 and later.
        base_tokens, max_tokens: the token counts at which the dynamic shift is ``base_shift`` and ``max_shift``.
    """

    kind: Literal["shifted", "dynamic-shift", "linear-quadratic"]
    shift: float = 1.0
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    shift_terminal: float | None = None
    train_timesteps: int = 1000


@dataclass(frozen=True, kw_only=True)
class AuthorsSampling:
    """How the authors of a model sample with it, which its diffusers checkpoint does not tell.

    Attributes:
        model: its name, for messages.
        shift: of the noise levels.
        guidance: one scale, or one for each expert, that of high noise first.
        source: where they say so.
    """

    model: str
    shift: float
    steps: int
    guidance: tuple[float, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """What the runtime must know of the reference pipeline beside its engines.

    Attributes:
        family: ``wan`` or ``ltx``; for messages only, nothing branches on it.
        pipeline: the diffusers class that defines the expected behaviour.
        latent_channels: C of the latents [B, C, F, H, W].
        temporal_factor, spatial_factor: video frames and pixels per latent frame and pixel
            (frames = temporal_factor * (F - 1) + 1).
        patch: latent (frames, height, width) that make one token.
        latents_mean, latents_std: statistics by which the VAE's latents are normalised, one per channel.
        text_length: tokens of a prompt, after truncation and padding.
        clean_prompt: whether the reference mends the prompt with ftfy, HTML unescaping and white space folding.
        decode_noise_scale, decode_timestep: of a timestep-conditioned VAE decoder, else None.
        guidance_rescale: phi of guidance rescale (arXiv 2305.08891), 0 for none.
        early, late: default shares of the steps that the large model takes at the start and at the end.
        batched_guidance: whether the reference runs both guidance branches in one call.
        conditions: what the transformers take beside latents and timestep, and where it comes from.
        authors: how the large model's authors sample, if it is a known one; for messages. No video depends on it, and
            so it is no part of ``repr``, by which bundles are told apart.
    """

    family: str
    pipeline: str
    latent_channels: int
    temporal_factor: int
    spatial_factor: int
    patch: tuple[int, int, int]
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    text_length: int
    clean_prompt: bool
    decode_noise_scale: float | None = None
    decode_timestep: float | None = None
    grid: SigmaGrid
    solver: str
    steps: int
    guidance: float
    batched_guidance: bool
    negative_prompt: str
    frame_rate: float
    width: int
    height: int
    frames: int
    early: float
    late: float
    guidance_rescale: float = 0.0
    conditions: tuple[Condition, ...] = ()
    authors: AuthorsSampling | None = field(default=None, repr=False)

    def tokens(self, latent_shape: Sequence[int]) -> int:
        """How many tokens the transformers make of latents [C, F, H, W]."""
        return math.prod(latent_shape[1:]) // math.prod(self.patch)


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """File contract 1: ``NAME.onnx``, its weights ``NAME.onnx.data`` and this description ``NAME.json``.

    Attributes:
        spec: inputs, outputs, precision.
        onnx: path of the ONNX file; the external data and the JSON lie beside it.
        opset: of the ONNX default domain.
        weights_sha256: of the checkpoint that the weights came from.
        versions: of the packages that made the graph; part of the key under which an engine is reused.
    """

    FORMAT = upgrade.GRAPH.number

    spec: GraphSpec
    onnx: Path
    opset: int
    weights_sha256: str
    versions: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> ExportedGraph:
        """Read the JSON beside an ONNX file, given the path of either.

        Raises:
            FlowBlendingError: the JSON is missing, damaged, or of a later format.
        """
        path = path.with_suffix(".json")
        try:
            content = upgrade.GRAPH.upgrade(json.loads(path.read_text()), path, "export it again")
            del content["format"]
        except (OSError, ValueError) as error:
            raise FlowBlendingError(f"{path} does not describe an exported graph ({error}); export it again.") from None
        spec = content.pop("spec")
        return cls(
            spec=GraphSpec(
                name=spec["name"],
                precision=Precision(spec["precision"]),
                inputs=tuple(_tensor(each) for each in spec["inputs"]),
                outputs=tuple(_tensor(each) for each in spec["outputs"]),
            ),
            **content | {"onnx": path.with_name(content["onnx"])},
        )

    @property
    def data(self) -> Path:
        """The external data: every weight of the graph."""
        return self.onnx.with_name(self.onnx.stem + EXTERNAL_DATA)

    def write(self) -> None:
        """Write the JSON beside the ONNX file."""
        content = dataclasses.asdict(self) | {"format": self.FORMAT, "onnx": self.onnx.name}
        self.onnx.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")


def _tensor(content: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=content["name"], dtype=content["dtype"], shape=tuple(content["shape"]))
