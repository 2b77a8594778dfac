"""Measuring a pair against torch in fp32 while it is built, and keeping the trajectory for the plans on their GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flowblending.contracts.conditions import (
    CONTROL,
    CONTROL_SCALE,
    IMAGE_CHANNELS,
    Source,
    frame_times,
    images_taken,
    input_key,
    own_input,
    takes_control,
    takes_image_channels,
)
from flowblending.contracts.graph import TEXT_ENCODER, PipelineSpec, Precision
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import COND, TIMESTEP, UNCOND
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.registry import gpu_components, open_engine
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.engine.build.proof.pair import (
    LATENTS,
    Floats,
    ModelCall,
    PairFacts,
    Velocity,
    allowed,
    compare_pair,
    follow,
    unmeasured,
)
from flowblending.engine.bundle.bundle import TRAJECTORY, Bundle
from flowblending.runtime.conditions.image_channels import plain_image
from flowblending.runtime.conditions.image_tokens import plain_tokens
from flowblending.runtime.conditions.vace import plain
from flowblending.runtime.jobs import job_scales
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.media.prompt import Tokenizer
from flowblending.runtime.options import Job

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part

AFFORDABLE = 2e12
"""Operations of a trajectory that a few cores do in well under a minute; it is sampled three times."""

_SEED = 1000
"""One that a calibration has no prompt for: a trajectory that the ranges were measured on would flatter them."""

Arrays = Mapping[str, Mapping[str, npt.NDArray[Any]]]


def measure_pair(
    bundle: Bundle,
    parts: Mapping[str, Part],
    program: Mapping[str, Any],
    prompt: str,
    progress: Callable[[str], None],
) -> PairFacts | None:
    """Compare a pair with torch in fp32 along a program, as far as this machine can compute in its precision.

    Plans run on GPUs. Of their precisions torch computes bf16 and fp16 here; of fp8 it cannot, so the trajectory is
    kept in the bundle's folder, and the GPU will tell.

    Args:
        bundle: its files are there.
        parts: the transformers and the text encoder.
        program: as its JSON.
        prompt: that the trajectory is of, beside the pipeline's negative prompt. Noise in place of a prompt's
            embedding would lead a trained pair to latents that no video has.
        progress: told what is being done.

    Returns:
        None if all are in fp32, which is what they would be compared with.

    Raises:
        FlowBlendingError: the prompt cannot be read or encoded.
    """
    manifest = bundle.manifest
    precisions = {name: manifest.components[name].spec.precision for name in manifest.transformers}
    if set(precisions.values()) == {Precision.FP32}:
        return None
    if _operations(manifest, program) > AFFORDABLE:
        return unmeasured(program, "sampling it in fp32 is too much work for a CPU")
    from flowblending.export.verify.trajectory import TorchPair, encode

    noise, tokens = initial_latents(manifest), tokens_of(bundle, prompt)
    progress("encoding the prompt")
    pipeline, text_encoder = manifest.pipeline, parts[TEXT_ENCODER].load(Precision.FP32)
    shared, shown = plain_conditions(pipeline, noise.shape[1:]), plain_shown(manifest, noise.shape[1:])
    conditions = encode(text_encoder, tokens, pipeline.conditions, shared, shown)
    progress("sampling it in torch in fp32")
    # Where the schedule leaves an engine out, there is nothing to compare it by.
    names = sorted({each["model"] for each in _runs(program)})
    models = {name: parts[name].load(Precision.FP32) for name in names}
    final, calls = follow(program, TorchPair(models, conditions, stock=True), noise)
    arrays = {branch: {name: value.numpy() for name, value in each.items()} for branch, each in conditions.items()}
    progress("sampling it in the bundle's precision")
    if not set(names).intersection(gpu_components(manifest)):
        velocity: Velocity = EnginePair({name: _open(bundle, name) for name in names}, arrays)
    else:
        write_trajectory(bundle.folder / TRAJECTORY, program, calls, final, arrays)
        if Precision.FP8 in precisions.values():
            return unmeasured(program, "fp8 of a plan is computed on a GPU only")
        ours = {name: parts[name].load(precisions[name]) for name in names}
        velocity = TorchPair(ours, conditions, stock=False)
    return compare_pair(program, calls, final, velocity, noise, where="cpu", allowed=allowed(manifest))


def plain_conditions(pipeline: PipelineSpec, latent_shape: Sequence[int]) -> dict[str, Floats]:
    """What is the same for both branches of a run from text alone, by source."""
    return {
        Source.FRAME_RATE: np.array([pipeline.frame_rate], np.float32),
        Source.FRAME_TIMES: np.array(frame_times(latent_shape[1], pipeline.temporal_factor), np.float32),
    }


def plain_shown(manifest: Manifest, latent_shape: Sequence[int]) -> dict[str, Floats]:
    """What transformers that are shown images or videos are given where there are none, by input."""
    if takes_image_channels(manifest.pipeline.conditions):
        wanted = images_taken(manifest.pipeline.conditions)
        return {
            IMAGE_CHANNELS: plain_image(latent_shape, manifest.pipeline.temporal_factor, wanted),
            **plain_tokens(manifest.pipeline.conditions),
        }
    if not takes_control(manifest.pipeline.conditions):
        return {}
    scales = job_scales(Job(prompt=""), manifest)
    return {
        CONTROL: plain(latent_shape, manifest.pipeline.spatial_factor),
        **{own_input(model, CONTROL_SCALE): scale for model, scale in scales.items()},
    }


def initial_latents(manifest: Manifest) -> npt.NDArray[np.float32]:
    """Noise fp32 [1, C, F, H, W], as ``fb-run`` draws it."""
    return TorchNormal(_SEED).normal((1, *manifest.geometry.latent_shape))


def tokens_of(bundle: Bundle, prompt: str) -> dict[str, dict[str, npt.NDArray[np.int64]]]:
    """Tokens of a prompt, and of the pipeline's negative prompt, as ``fb-run`` gives them to the text encoder.

    Returns:
        By guidance branch: ``ids`` and ``mask``, int64 [1, L].

    Raises:
        FlowBlendingError: the tokenizer cannot be read.
    """
    pipeline = bundle.manifest.pipeline
    path = bundle.folder / bundle.manifest.tokenizer[0].path
    tokenizer = Tokenizer(path, length=pipeline.text_length, clean=pipeline.clean_prompt)
    encoded = {COND: tokenizer.encode(prompt), UNCOND: tokenizer.encode(pipeline.negative_prompt)}
    return {branch: {"ids": each.ids, "mask": each.mask} for branch, each in encoded.items()}


def _open(bundle: Bundle, name: str) -> Engine:
    component = bundle.manifest.components[name]
    return open_engine(backend=component.backend, path=bundle.path(name), spec=component.spec, device=CPU)


class EnginePair:
    """Computes velocities with engines on the CPU.

    Args:
        engines: by model.
        conditions: by branch and input.
    """

    def __init__(self, engines: Mapping[str, Engine], conditions: Arrays) -> None:
        self._engines = engines
        self._conditions = conditions

    def __call__(self, model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        """The velocity of latents fp32 [1, C, F, H, W]."""
        engine = self._engines[model]
        timesteps = np.full(engine.spec.timestep_shape(latents.shape[1:], 1), timestep, np.float32)
        given = {LATENTS: latents, TIMESTEP: timesteps, **self._conditions[branch]}
        output = np.empty_like(latents)
        (spec,) = engine.spec.outputs
        tensors = {
            each.name: Tensor.of(np.ascontiguousarray(given[input_key(given, model, each.name)]))
            for each in engine.spec.inputs
        }
        engine.run({**tensors, spec.name: Tensor.of(output)}, 0)
        return output


def write_trajectory(
    path: Path, program: Mapping[str, Any], calls: list[ModelCall], final: Floats, conditions: Arrays
) -> None:
    """Keep a trajectory: its program, its conditions, what every call was given and gave, and the final latents."""
    arrays: dict[str, Any] = {
        f"conditions/{branch}/{name}": value for branch, each in conditions.items() for name, value in each.items()
    }
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            program=np.array(json.dumps(program)),
            steps=np.array([call.step for call in calls]),
            models=np.array([call.model for call in calls]),
            branches=np.array([call.branch for call in calls]),
            timesteps=np.array([call.timestep for call in calls]),
            latents=np.stack([call.latents for call in calls]),
            velocities=np.stack([call.velocity for call in calls]),
            final=final,
            **arrays,
        )


def _operations(manifest: Manifest, program: Mapping[str, Any]) -> float:
    total = 0.0
    for each in _runs(program):
        flops = manifest.components[each["model"]].flops
        tokens = manifest.pipeline.tokens(program["latent_shape"])
        total += len(each["branches"]) * (0 if flops is None else flops.at(tokens))
    return total


def _runs(program: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for step in program["steps"] for each in step["instructions"] if "branches" in each]
