"""File contract 2: ``manifest.json``, the one file that tells what a bundle is."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flowblending.contracts import upgrade
from flowblending.contracts.conditions import pixel_sources, takes_image_tokens
from flowblending.contracts.graph import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    VAE,
    VAE_ENCODER,
    VAE_ENCODER_FIRST,
    VAE_ENCODER_NEXT,
    VAE_FIRST,
    VAE_NEXT,
    GraphSpec,
    PipelineSpec,
    is_transformer,
)
from flowblending.contracts.models import Model, by_letter, check_models, components_of
from flowblending.contracts.tiling import Tiling

FORMAT = upgrade.MANIFEST.number
MANIFEST = "manifest.json"
PREVIEW = "preview.npy"
EVIDENCE = re.compile(r"calibration-[0-9]+\.json")
"""Names of what ``fb-calibrate`` measured."""

PROOFS = (".proof.json", ".golden.npz")
"""How the names of files end that prove a component."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Frozen):
    """A file of the bundle: its name in the folder, size in bytes, and SHA-256."""

    path: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    bytes: int = Field(ge=0)
    sha256: str


class Flops(_Frozen):
    """Floating-point operations of one call of a transformer with batch 1 (a multiply-add is two).

    Polynomials in the number of the latents' tokens, their coefficients from the constant one on: what is done for the
    text and the timestep, for every token, and for every pair of tokens.

    Attributes:
        linear: of the layers with weights.
        attention: of the products between activations.
    """

    linear: tuple[int, int]
    attention: tuple[int, int, int]

    def linear_at(self, tokens: int) -> int:
        """Operations of the layers with weights."""
        return _polynomial(self.linear, tokens)

    def attention_at(self, tokens: int) -> int:
        """Operations of the products between activations."""
        return _polynomial(self.attention, tokens)

    def at(self, tokens: int) -> int:
        """Operations of one call on so many tokens."""
        return self.linear_at(tokens) + self.attention_at(tokens)


def _polynomial(coefficients: Sequence[int], value: int) -> int:
    return sum(coefficient * value**power for power, coefficient in enumerate(coefficients))


class FusedLora(_Frozen):
    """A LoRA file that is part of a component's weights: its name, strength and SHA-256."""

    file: str
    strength: float
    sha256: str

    def __str__(self) -> str:
        """Such as ``style.safetensors:0.8``."""
        return f"{self.file}:{self.strength:g}"


class CompiledProfile(_Frozen):
    """An optimization profile of a plan.

    Attributes:
        sizes: by symbol, the smallest, the most usual and the largest.
        scratch_bytes: memory on the device for a call at the largest, as the compiler states it; None if it did not.
    """

    sizes: dict[str, tuple[int, int, int]]
    scratch_bytes: int | None = None

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it takes these sizes; symbols that it does not have make no difference."""
        return all(low <= sizes.get(name, low) <= high for name, (low, _, high) in self.sizes.items())


class Component(_Frozen):
    """One engine: what it computes, what runs it, its files, and the key under which it may be reused.

    Attributes:
        spec: inputs, outputs, precision.
        backend: the library that runs it.
        backend_version: the version that compiled it.
        targets: the GPU architectures (``sm89``) it was compiled for; empty where any device will do.
        files: the engine's own file first.
        key: everything that determines the engine (weights, graph, precision, shapes, back end, versions).
        flops: of a call of a transformer.
        architecture: of a transformer: its published name, if it is one of `flowblending.contracts.graph`'s.
        loras: of a transformer: what was fused into its weights, in this order.
        profiles: of a plan, in its order; empty where the engine takes every size, or an earlier version compiled it.
        weights_bytes: memory of a plan's weights on the device, as the compiler states it; None if it did not.
        weight_streaming: whether weights can be left in the host's memory, from which every call streams them.
    """

    spec: GraphSpec
    backend: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    backend_version: str
    targets: tuple[str, ...] = ()
    files: tuple[BundleFile, ...] = Field(min_length=1)
    key: dict[str, str]
    flops: Flops | None = None
    architecture: str | None = None
    loras: tuple[FusedLora, ...] = ()
    profiles: tuple[CompiledProfile, ...] = ()
    weights_bytes: int | None = None
    weight_streaming: bool = False

    @property
    def engine_bytes(self) -> int:
        """Size of the files that are loaded to run it, those that prove it aside."""
        return sum(file.bytes for file in self.files if not file.path.endswith(PROOFS))


class PreviewFile(_Frozen):
    """What latents look like: float32 [channels + 1, n * n * 3] in a ``.npy`` file.

    For every channel, and last the constant, it has what that adds to the n x n pixels of a latent, row by row, red,
    green and blue in [-1, 1].

    Attributes:
        key: everything that determines it: the VAE's weights, its graphs, versions.
    """

    file: BundleFile
    key: dict[str, str]


class Geometry(_Frozen):
    """A video's pixels and frames, and the latents [C, F, H, W] behind them."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    frames: int = Field(gt=0)
    latent_shape: tuple[int, int, int, int]

    @property
    def size(self) -> str:
        """Such as ``832x480``."""
        return f"{self.width}x{self.height}"

    def __str__(self) -> str:
        """Such as ``832x480, 81 frames``."""
        return f"{self.size}, {count_frames(str(self.frames))}"


def count_frames(number: str) -> str:
    """``1 frame``, ``81 frames``, ``17 to 81 frames``."""
    return f"{number} frame{'' if number == '1' else 's'}"


class VideoProfile(_Frozen):
    """A range of videos that engines were compiled for; one video only if all three are the same.

    Attributes:
        min: the smallest, in pixels of either direction and in frames.
        opt: that for which the engines are fastest.
        max: the largest, likewise; what memory it takes is reserved.
    """

    min: Geometry
    opt: Geometry
    max: Geometry

    @classmethod
    def fixed(cls, geometry: Geometry) -> VideoProfile:
        """One video only."""
        return cls(min=geometry, opt=geometry, max=geometry)

    def holds(self, latent_shape: Sequence[int]) -> bool:
        """Whether latents [C, F, H, W] are within it."""
        ends = zip(self.min.latent_shape, latent_shape, self.max.latent_shape, strict=True)
        return all(low <= size <= high for low, size, high in ends)

    @property
    def sizes(self) -> str:
        """Such as ``832x480``, or ``480x288 to 832x480``."""
        return " to ".join(dict.fromkeys((self.min.size, self.max.size)))

    @property
    def lengths(self) -> str:
        """Such as ``81``, or ``17 to 81``."""
        return " to ".join(dict.fromkeys((str(self.min.frames), str(self.max.frames))))

    def __str__(self) -> str:
        """Such as ``832x480, 81 frames``, or ``480x288 to 832x480, 17 to 81 frames``."""
        return f"{self.sizes}, {count_frames(self.lengths)}"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not (self.holds(self.opt.latent_shape) and self.holds(self.min.latent_shape)):
            raise ValueError("a profile goes from the smallest video to the largest")
        return self


class CalibratedSchedule(_Frozen):
    """The schedule that a run takes unless told otherwise.

    Attributes:
        runs: such as ``L14 S26 L10``, of which another number of steps takes the same shares; or with the noise levels
            at which its stages end, ``L@0.9012 S@0.5304 L``, which are the same for any number of steps.
        evidence: name of the file that says why.
        shift: of the noise levels that it was measured at; None for the bundle's own.
    """

    runs: str = Field(pattern=r"^([A-Z][1-9][0-9]{0,5}( [A-Z][1-9][0-9]{0,5})*|([A-Z]@0\.[0-9]{1,17} )+[A-Z])$")
    evidence: str
    shift: float | None = None

    @property
    def by_sigma(self) -> bool:
        """Whether its stages end at noise levels."""
        return "@" in self.runs

    def holds_at(self, shift: float | None) -> bool:
        """Whether it holds at a shift: steps only at that at which they were measured, noise levels at any."""
        return self.by_sigma or self.shift == shift


class Calibration(_Frozen):
    """What ``fb-calibrate`` added to a bundle.

    Attributes:
        evidence: the files that the schedule and the constants rest on, the oldest first.
        schedule: chosen by the last time that chose one.
        caches: by the name of a step cache's constants and by model: one for each step of a run, from the first on,
            or the coefficients of a polynomial.
        shifts: by the same names, the shift of the noise levels that they were measured at, if it is not the bundle's
            own. They hold for no other.
    """

    evidence: tuple[BundleFile, ...] = Field(min_length=1)
    schedule: CalibratedSchedule | None = None
    caches: dict[str, dict[str, tuple[float, ...]]] = {}
    shifts: dict[str, float] = {}


class Manifest(_Frozen):
    """Everything about a bundle.

    Attributes:
        id: first 16 digits of the SHA-256 over all component keys, pipeline and profiles.
        pipeline: what the reference pipeline prescribes beside its engines.
        models: what schedules choose between; the first is what operations, comparisons and calibrations are measured
            by.
        profiles: the videos that it makes; a run that does not say which makes ``geometry``.
        tokenizer: files of the tokenizer, ``tokenizer.json`` first.
        fp8_calibration: how large the values are that enter the layers of the transformers, if one is in fp8.
        rebuild: the command that makes this bundle again.
        created_by: version of FlowBlending.
        signals: by model: a small graph for ONNX Runtime on the CPU, which fb-calibrate takes to measure TeaCache's
            distances; only if they were asked for. Videos do not depend on them, and neither does ``id``.
        calibration: what was measured on this bundle, if anything was.
        vae_tiling: the tiles that the VAE decoder was compiled for; None for whole frames.
        preview: what latents look like; None in bundles of earlier versions. Videos do not depend on it, and neither
            does ``id``.
    """

    format: int = FORMAT
    id: str
    pipeline: PipelineSpec
    models: tuple[Model, ...] = Field(min_length=1)
    profiles: tuple[VideoProfile, ...] = Field(min_length=1)
    components: dict[str, Component]
    tokenizer: tuple[BundleFile, ...] = Field(min_length=1)
    fp8_calibration: BundleFile | None = None
    rebuild: tuple[str, ...]
    created_by: str
    signals: dict[str, Component] = {}
    calibration: Calibration | None = None
    vae_tiling: Tiling | None = None
    preview: PreviewFile | None = None

    @property
    def geometry(self) -> Geometry:
        """The videos of runs that do not say otherwise."""
        return self.profiles[0].opt

    @property
    def checkpoints(self) -> dict[str, str]:
        """By model, the folder or the hub's repository that it was built from."""
        found = {}
        for option, value in itertools.pairwise(self.rebuild):
            asked, _, source = value.partition("=")
            name, source = (asked.partition(":")[0], source) if option == "--model" else (option[2:], value)
            found[name] = source
        return {model.name: found[model.name] for model in self.models if model.name in found}

    @property
    def letters(self) -> dict[str, Model]:
        """What each letter of a schedule stands for, experts included."""
        return by_letter(self.models)

    @property
    def transformers(self) -> tuple[str, ...]:
        """The models' components, in their order."""
        return components_of(self.models)

    @property
    def loras(self) -> str:
        """What was fused into which model: ``large=style.safetensors:0.8``; empty if nothing was."""
        return ",".join(f"{name}={lora}" for name, each in self.components.items() for lora in each.loras)

    @property
    def edition(self) -> str:
        """Changes when the engines change, and also when defaults and constants do, which come from a calibration.

        It is made from what they are: the same one comes back with the same defaults and constants, and never with
        others, however often a bundle is calibrated and its calibration is taken back.
        """
        if self.calibration is None:
            return self.id
        settled = self.calibration.model_dump(include={"schedule": {"runs", "shift"}, "caches": True, "shifts": True})
        return f"{self.id}-{hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()[:8]}"

    def _encoders(self) -> set[str]:
        """Components that a bundle which takes images or videos has to have."""
        if not pixel_sources(self.pipeline.conditions):
            return set()
        seen = {IMAGE_ENCODER} if takes_image_tokens(self.pipeline.conditions) else set()
        return seen | ({VAE_ENCODER} if VAE_ENCODER in self.components else {VAE_ENCODER_FIRST, VAE_ENCODER_NEXT})

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Everything that a run needs is there, so that no run finds out half-way that it is not."""
        decoder = {VAE} if VAE in self.components else {VAE_FIRST, VAE_NEXT}
        missing = {*self.transformers, TEXT_ENCODER, *decoder, *self._encoders()} - self.components.keys()
        if missing:
            raise ValueError(f"component {min(missing)} is missing")
        check_models(self.models)
        for component in self.transformers:
            flops = self.components[component].flops
            if not is_transformer(component) or flops is None or flops.at(1) < 1:
                raise ValueError(f"component {component} does not say what it costs")
        if min(*self.pipeline.patch, *(size for each in self.profiles for size in each.min.latent_shape)) < 1:
            raise ValueError("sizes of latents and patches are positive")
        return self
