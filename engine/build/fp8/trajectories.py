"""Trajectories for the calibration of fp8: each model meets the latents and timesteps that a schedule gives it.

The runtime samples them, from its own program, in a process that takes much memory and gives it back. The
transformers' graphs tell of each call, in an output of their own, how large the values were that entered their layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import CONTROL_SCALE, is_own
from flowblending.contracts.graph import GraphSpec, PipelineSpec, Precision, TensorSpec
from flowblending.contracts.manifest import BundleFile, Component, Geometry, Manifest, VideoProfile
from flowblending.contracts.models import Model, components_of
from flowblending.contracts.program import TIMESTEP, Program
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.build.fp8.loader import Graph, Loader
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.open import AUTO, open_device
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.given_files import given_files
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import Start, check_prompt, plan_job
from flowblending.runtime.sampler.binding import Conditions
from flowblending.runtime.sampler.loop import Sampler
from flowblending.system.subprocess_call import EndedError, call_in_subprocess

REVISION = 1
"""Raised when the same pair, prompts and options give other ranges: the observed graphs, and all that samples."""

_SAMPLES = 2
"""Prompts of which the conditions are handed back."""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """What to sample.

    Attributes:
        jobs: of the prompts, with the images and controls that are given; each has its number as the seed of its noise.
        schedule: ``LSL`` or ``L20 S20 L10``.
        steps: None is the family's default.
    """

    jobs: tuple[Job, ...]
    schedule: str
    steps: int | None


@dataclass(frozen=True, kw_only=True)
class RangesRequest:
    """What to run.

    Attributes:
        models: of the bundle, for the letters of the schedule.
        graphs: ``text_encoder``, the VAE encoder's where images or videos are given, and the models', which have the
            output ``ranges`` [rows, 2] behind the velocity; without any, the trajectories are planned and that is all.
        hints: of every transformer that takes a control, how many it has.
        tokenizer: ``tokenizer.json``.
        sample: whether to sample; else the prompts are encoded, and nothing more.
    """

    pipeline: PipelineSpec
    models: tuple[Model, ...]
    geometry: Geometry
    graphs: Mapping[str, Graph]
    hints: Mapping[str, int]
    tokenizer: Path
    trajectories: Trajectories
    sample: bool


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The calls of a model: the timestep of each, and its ranges fp32 [calls, rows, 2]."""

    timesteps: tuple[float, ...]
    ranges: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrajectoryRanges:
    """What was found.

    Attributes:
        schedule, steps, solver, guidance: of the program that was run.
        calls: by model, for all prompts together.
        models: those that the schedule runs; empty when nothing was sampled.
        conditions: what the transformers take beside latents and timestep, [samples, ...] by input: both guidance
            branches of the first prompts.
    """

    schedule: str
    steps: int
    solver: str
    guidance: float
    calls: Mapping[str, int]
    models: Mapping[str, Observed]
    conditions: Mapping[str, npt.NDArray[Any]]


def measure(request: RangesRequest, progress: Callable[[str], None]) -> TrajectoryRanges:
    """Run trajectories in a process of its own, with one transformer in memory at a time.

    Raises:
        UsageError: schedule and steps that make no program.
        FlowBlendingError: an engine fails or gives infinite values, or memory runs out.
    """
    try:
        return call_in_subprocess(sample_ranges, request, progress)
    except EndedError as end:
        if end.killed:
            raise FlowBlendingError(
                "The calibration was killed, most likely because memory ran out; use a machine with more memory, "
                "or calibrate there and give the file to --fp8-calibration here."
            ) from None
        raise FlowBlendingError(f"The calibration ended with {end.how} ({end.last}); try fewer prompts.") from None


def sample_ranges(request: RangesRequest, progress: Callable[[str], None]) -> TrajectoryRanges:
    """Encode the prompts, and sample all of them in step; what `measure` calls in its process."""
    manifest = _manifest(request)
    jobs = [
        # One branch a call, so that memory holds one latent's activations; what a branch computes is the same.
        dataclasses.replace(
            job,
            seed=seed,
            schedule=request.trajectories.schedule,
            steps=request.trajectories.steps,
            batched_guidance=False,
        )
        for seed, job in enumerate(request.trajectories.jobs)
    ]
    if request.sample or not request.graphs:
        for job in jobs:
            check_prompt(job, manifest)
    if not request.graphs:
        return _measured([plan_job(job, manifest).program for job in jobs], request.models, {}, {})
    device = open_device(AUTO, manifest)
    loader = Loader(request.graphs, device)
    pipeline = _Encoding(bundle=Bundle(folder=Path("/"), manifest=manifest), device=device, loader=loader)
    progress("encoding the prompts")
    begun = [_begin(job, pipeline, manifest) for job in jobs]
    models = _sample(loader, begun, progress) if request.sample else {}
    loader.close()
    return _measured(
        [each.program for each in begun],
        request.models,
        {name: model.observed() for name, model in models.items()},
        _samples([branch for each in begun[:_SAMPLES] for branch in each.conditions.values()], device),
    )


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A prompt that has been encoded, with all that was given, before its first step."""

    program: Program
    conditions: Conditions
    start: Start


def _begin(job: Job, pipeline: Pipeline, manifest: Manifest) -> _Begun:
    if not given_files(job) and not pipeline.vae_encoders():
        # The ranges are there, and prompts are wanted alone.
        program = compile_job(job, manifest)
        start = Start(latents=TorchNormal(job.seed).normal((1, *program.latent_shape)))
        return _Begun(program=program, conditions=pipeline.encode(job, program, _no_word, shown={}), start=start)
    planned = plan_job(job, manifest)
    # Latents first: what encodes frames is closed when the text encoder is opened.
    start = planned.start(job.seed, pipeline.encode_frames)
    shown = pipeline.shown(job, _no_word, planned.clips)
    conditions = pipeline.encode(job, planned.program, _no_word, times=planned.times, shown=shown)
    return _Begun(program=planned.program, conditions=conditions, start=start)


def _no_word(_: str) -> None:
    """What a user would be told of a file, or of a prompt that is cut."""


def _samples(branches: Sequence[Mapping[str, Tensor]], device: Device) -> dict[str, npt.NDArray[Any]]:
    """What the branches were given, one after the other; of what one model alone is given, the first's."""
    found = {}
    for name, first in branches[0].items():
        if is_own(name):
            found[name] = device.download(first)
            continue
        arrays = [device.download(branch[name]) for branch in branches]
        # Latent frames of what is given may be put before the video's own.
        least = tuple(slice(min(sizes)) for sizes in zip(*(each.shape for each in arrays), strict=True))
        found[name] = np.concatenate([each[least] for each in arrays])
    return found


def _measured(
    programs: Sequence[Program],
    models: Sequence[Model],
    observed: Mapping[str, Observed],
    conditions: Mapping[str, npt.NDArray[Any]],
) -> TrajectoryRanges:
    program = programs[0]
    return TrajectoryRanges(
        schedule=program.schedule,
        steps=len(program.steps),
        solver=program.solver,
        guidance=program.guidance,
        calls={model: sum(each.calls(model) for each in programs) for model in components_of(models)},
        models=observed,
        conditions=conditions,
    )


def _manifest(request: RangesRequest) -> Manifest:
    """As much of a manifest as sampling reads: there is nothing to decode with, and no bundle."""
    components = {
        name: Component.model_construct(
            spec=request.graphs[name].spec if name in request.graphs else _hinted(name, request.hints[name]),
            backend="onnxruntime",
            backend_version="",
            files=(BundleFile.model_construct(path=str(request.graphs[name].onnx), bytes=0, sha256=""),)
            if name in request.graphs
            else (),
            key={},
        )
        for name in dict.fromkeys([*request.graphs, *request.hints])
    }
    return Manifest.model_construct(
        id="",
        pipeline=request.pipeline,
        models=request.models,
        profiles=(VideoProfile.fixed(request.geometry),),
        components=components,
        tokenizer=(BundleFile.model_construct(path=str(request.tokenizer), bytes=0, sha256=""),),
        rebuild=(),
        created_by="",
    )


def _hinted(name: str, hints: int) -> GraphSpec:
    """What is known of a transformer that takes a control, before it has been traced."""
    scale = TensorSpec(name=CONTROL_SCALE, dtype="float32", shape=(hints,))
    return GraphSpec(name=name, precision=Precision.FP32, inputs=(scale,), outputs=())


def _sample(loader: Loader, begun: Sequence[_Begun], progress: Callable[[str], None]) -> dict[str, _Model]:
    """Sample every prompt, all of them step by step, so that each model is loaded once per stage."""
    steps = begun[0].program.steps
    models = {name: _Model(name, loader) for name in dict.fromkeys(step.model for step in steps)}
    sampler = Sampler(models, loader.device)
    runs = [
        sampler.prepare(each.program, each.conditions, each.start.slots).follow(each.start.latents, ahead=0)
        for each in begun
    ]
    total = len(steps)
    for number, step in enumerate(steps, start=1):
        for prompt, run in enumerate(runs, start=1):
            progress(f"step {number} of {total}, {step.model}, prompt {prompt} of {len(runs)}")
            next(run)
    for run in runs:
        next(run, None)
    return models


@dataclass(kw_only=True)
class _Encoding(Pipeline):
    """The part of a pipeline that encodes prompts and frames, with the engines that a loader opens."""

    loader: Loader

    def engine(self, name: str) -> Engine:
        """An engine by its component's name."""
        return self.loader.engine(name)


class _Model:
    """A transformer as the sampler knows it, which keeps what its graph tells of each call."""

    def __init__(self, name: str, loader: Loader) -> None:
        spec, device = loader.graphs[name].spec, loader.device
        *outputs, self._output = spec.outputs
        self._spec = GraphSpec(name=spec.name, precision=spec.precision, inputs=spec.inputs, outputs=tuple(outputs))
        self._name = name
        self._loader = loader
        self._device = device
        self._ranges = device.empty(self._output.resolve({}), np.dtype(np.float32))
        self._timesteps: list[float] = []
        self._found: list[npt.NDArray[np.float32]] = []

    @property
    def spec(self) -> GraphSpec:
        """Without the output that tells."""
        return self._spec

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Run the graph, and keep what it tells."""
        self._loader.engine(self._name).run({**tensors, self._output.name: self._ranges}, stream)
        self._found.append(self._device.download(self._ranges))
        # Latent frames that are held are told a lower one.
        self._timesteps.append(float(self._device.download(tensors[TIMESTEP]).max()))

    def close(self) -> None:
        """The loader closes the engine."""

    def observed(self) -> Observed:
        """Everything that was kept."""
        return Observed(timesteps=tuple(self._timesteps), ranges=np.stack(self._found))
