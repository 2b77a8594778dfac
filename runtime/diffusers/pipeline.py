"""A bundle that is called as diffusers' video pipelines are."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import takes_image_channels
from flowblending.contracts.program import Program
from flowblending.runtime import api
from flowblending.runtime.decode_run import decoded_alone
from flowblending.runtime.devices.foreign import ForeignStream
from flowblending.runtime.devices.open import AUTO
from flowblending.runtime.diffusers.arguments import read_call
from flowblending.runtime.diffusers.attributes import refused
from flowblending.runtime.diffusers.callback import StepCallback, StepCaller, check_callback
from flowblending.runtime.diffusers.classes import class_of
from flowblending.runtime.diffusers.frames import LATENT, VideoOutput, as_output_type, check_output_type
from flowblending.runtime.diffusers.inputs import count_embedded, read_embeddings, read_images, read_noise
from flowblending.runtime.diffusers.latents import as_torch, packed
from flowblending.runtime.diffusers.noise import noise_streams
from flowblending.runtime.events import FramesEvent, LatentsEvent, SamplingEvent, WarningEvent
from flowblending.runtime.jobs import job_conditioning
from flowblending.runtime.media.noise import Normal
from flowblending.runtime.option_values import shown
from flowblending.runtime.options import Job
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.loop import AHEAD, StepEvent
from flowblending.system.console import Console

Floats = npt.NDArray[np.float32]

_OWN: Final = ("_interrupt", "_program", "_quiet", "_sampler", "_timestep")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A video of a call: its job, what its decoder draws noise from, and its run."""

    job: Job
    noise: Normal
    run: VideoRun


class FlowBlendingPipeline:
    """A bundle in place of one of diffusers' pipelines of Wan and LTX. Made by `from_bundle`.

    Which of them it stands in for is the bundle's. Arguments that this class does not have are refused by name, and so
    is what no bundle can honour. What is not given is the bundle's default. A context manager; belongs to one thread
    at a time.
    """

    __slots__ = _OWN

    def __init__(self, sampler: api.VideoSampler) -> None:
        self._sampler = sampler
        self._program: Program | None = None
        self._timestep: float | None = None
        self._interrupt = False
        self._quiet = False

    @classmethod
    def from_bundle(
        cls, bundle: str | Path, *, device: str = AUTO, stream: ForeignStream | None = None, threads: int | None = None
    ) -> Self:
        """Open a bundle that fb-build-engines made; arguments and errors are those of `flowblending.open`."""
        return cls(api.open(bundle, device=device, stream=stream, threads=threads))

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        *,
        frame_rate: float | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        guidance_rescale: float | None = None,
        num_videos_per_prompt: int | None = None,
        generator: Any = None,
        latents: Any = None,
        prompt_embeds: Any = None,
        prompt_attention_mask: Any = None,
        negative_prompt_embeds: Any = None,
        negative_prompt_attention_mask: Any = None,
        decode_timestep: float | list[float] | None = None,
        decode_noise_scale: float | list[float] | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        max_sequence_length: int | None = None,
        image: Any = None,
        last_image: Any = None,
        **options: Any,
    ) -> Any:
        """Make videos, one after the other.

        Args:
            prompt: one, or a list: a video for each.
            negative_prompt: one for all, or as many.
            height, width, num_frames: of videos that the bundle makes.
            generator: a ``torch.Generator``, the seed of one on the CPU, or a list with one for each video. Noise is
                what diffusers draws from it; None draws from torch's own on the CPU.
            latents: initial noise in place of the generator's, [B, C, F, H, W], or LTX's tokens [B, F * H * W, C].
            prompt_embeds, prompt_attention_mask: what the text encoder makes of the prompts, in place of them.
            negative_prompt_embeds, negative_prompt_attention_mask: likewise.
            output_type: ``np``, ``pt``, ``pil`` or ``latent``, see `VideoOutput`; None for that of diffusers' class.
            return_dict: False returns the tuple ``(frames,)``.
            callback_on_step_end: called after every step with this pipeline, the step, its timestep and
                ``{"latents": tensor}``. It may set ``pipeline._interrupt = True``, which ends sampling there, and
                with a solver of first order (Euler's) return other latents.
            image: that the video begins with: one of Pillow, or an array of numpy or torch on the CPU, of floats from 0
                to 1, [H, W, 3] or [3, H, W], or uint8 [H, W, 3]; or a list with one for each prompt. It is stretched to
                the video's size, unless ``fit="crop"`` or ``"letterbox"`` is given.
            last_image: that it ends with, likewise (Wan's).
            options: fields of a job that diffusers has no word for: schedule, boundaries, shift, solver, cache,
                batched_guidance. The other arguments are diffusers' own.

        Returns:
            A `VideoOutput`, or the tuple.

        Raises:
            UsageError: an argument that is wrong or cannot be honoured; no work has been done.
            FlowBlendingError: a number that is not finite, or an engine that failed.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "options")}
        engines = self._sampler.pipeline
        call = read_call(engines.bundle.manifest, given, options, embedded=count_embedded(given))
        count = len(call.jobs)
        check_output_type(call.output_type)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, count)
        embeddings = read_embeddings(engines, given, call.prompts, count // call.prompts)
        streams = noise_streams(generator, count)
        images = read_images(engines, given, call.jobs, call.prompts)
        held = image is not None and not takes_image_channels(engines.bundle.manifest.pipeline.conditions)
        noise = read_noise(engines, call.jobs, latents, streams, drawn=not held)
        plans = [
            _Plan(
                job=job,
                noise=stream,
                run=VideoRun(
                    engines,
                    job,
                    latents=start,
                    noise=stream,
                    embeddings=texts,
                    clips=clips,
                    decode=call.output_type != LATENT,
                    floats=True,
                    ahead=AHEAD if callback_on_step_end is None else 0,
                ),
            )
            for job, start, stream, texts, clips in zip(call.jobs, noise, streams, embeddings, images, strict=True)
        ]
        made = [self._made(plan, call.output_type, callback_on_step_end) for plan in plans]
        output = VideoOutput(self._output(made, call.output_type))
        return output if return_dict else output.to_tuple()

    @property
    def guidance_scale(self) -> float | None:
        """Of the last call."""
        return None if self._program is None else self._program.guidance

    @property
    def num_timesteps(self) -> int | None:
        """Steps of the last call."""
        return None if self._program is None else len(self._program.steps)

    @property
    def current_timestep(self) -> float | None:
        """Of the step that ended last, while a call is running."""
        return self._timestep

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended sampling early, by setting ``_interrupt``."""
        return self._interrupt

    def to(self, *places: object) -> Self:
        """The pipeline itself, where the device is that on which it runs.

        Raises:
            UsageError: another device, or a type of numbers: both are chosen before.
        """
        kind = self._sampler.pipeline.device.kind
        for place in places:
            if str(place).partition(":")[0] != kind:
                raise UsageError(
                    f"to({shown(place)}) cannot be honoured: this pipeline runs on {kind}, in the precision that its "
                    "bundle was built in; give device= to from_bundle, and --precision to fb-build-engines."
                )
        return self

    def set_progress_bar_config(self, *, disable: bool = False) -> None:
        """Whether a terminal shows the steps."""
        self._quiet = bool(disable)

    def close(self) -> None:
        """Wait for what is running, and close the engines. Twice is harmless."""
        self._sampler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise refused(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _OWN:
            raise refused(name, changed=True)
        object.__setattr__(self, name, value)

    def _made(self, plan: _Plan, output_type: str, callback: StepCallback | None) -> Floats:
        """Frames [3, F, height, width] in [-1, 1], or latents [1, C, F, H, W]."""
        engines, program = self._sampler.pipeline, plan.run.program
        self._program, self._interrupt = program, False
        kind = class_of(engines.bundle.manifest.pipeline.pipeline)
        caller = callback and StepCaller(self, callback, kind.packed, program, engines.device)
        latents: Floats | None = None
        chunks: list[Floats] = []
        bar = Console(quiet=self._quiet).steps(len(program.steps))
        with contextlib.closing(plan.run.events()) as events, bar as show:
            for event in events:
                match event:
                    case WarningEvent():
                        warnings.warn(event.message, stacklevel=4)
                    case SamplingEvent():
                        trajectory = event.trajectory
                    case StepEvent():
                        show(event.index + 1, event.model, event.seconds)
                        self._timestep = program.steps[event.index].timestep
                        latents = caller(event.index, trajectory) if caller else None
                        if self._interrupt:
                            break
                    case LatentsEvent():
                        latents = event.latents.numpy().copy()
                    case FramesEvent():
                        chunks.append(event.frames)
        self._timestep = None
        assert latents is not None, "sampling ends with its latents, and is interrupted by who was shown some"
        if output_type == LATENT:
            return latents
        if not chunks:  # interrupted
            conditioning = job_conditioning(plan.job, engines.bundle.manifest)
            late = decoded_alone(engines, engines.device.upload(latents), plan.noise, conditioning, floats=True)
            chunks = [event.frames for event in late if isinstance(event, FramesEvent)]
        return np.concatenate(chunks, axis=1)

    def _output(self, made: Sequence[Floats], output_type: str) -> Any:
        if output_type != LATENT:
            return as_output_type(made, output_type)
        latents = np.concatenate(made)
        name = self._sampler.manifest.pipeline.pipeline
        return as_torch(packed(latents) if class_of(name).packed_output else latents)
