"""One run: load, encode, sample, decode, write, as one generator of events.

Everything that makes a video (fb-run, its worker processes, the Python API, the Triton worker, fb-compare) iterates
over `VideoRun.events` and shows or sends what it is told. Closing the generator, at whatever event, is all that
stopping takes: steps under way are waited for, memory is given back, and what is not whole on the disk goes away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending import OutOfMemoryError
from flowblending.contracts.conditions import is_shown, takes_control
from flowblending.contracts.graph import TEXT_ENCODER, VAE_ENCODER
from flowblending.contracts.manifest import Geometry
from flowblending.contracts.program import Program
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.bundle import check_outside
from flowblending.engine.bundle.vae_tiling import other_tilings
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.conditions.start import check_length, doubts, noised
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.decode_run import decoded, opened, written
from flowblending.runtime.devices.arrays import Array
from flowblending.runtime.events import (
    EncodeEvent,
    FinishedEvent,
    LatentsEvent,
    RunEvent,
    SamplingEvent,
    WarningEvent,
)
from flowblending.runtime.jobs import job_conditioning
from flowblending.runtime.machine_options import CUDA_GRAPH, NO_GRAPHS
from flowblending.runtime.media.clip import Clip
from flowblending.runtime.media.latents import save_latents
from flowblending.runtime.media.noise import Normal, TorchNormal, draw_latents
from flowblending.runtime.media.noise_check import noise_doubts
from flowblending.runtime.media.read_clip import read_clip
from flowblending.runtime.media.video import check_output
from flowblending.runtime.memory.describe import tiles_instead
from flowblending.runtime.memory.plan import MemoryPlan
from flowblending.runtime.memory.staged import Stages
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import check_files, plan_job
from flowblending.runtime.previews import Wanted, sampled
from flowblending.runtime.sampler.binding import Conditions, Given
from flowblending.runtime.sampler.loop import AHEAD, SampleResult
from flowblending.runtime.stage_times import LOADING, Clock
from flowblending.runtime.unused import unused_options
from flowblending.runtime.video_metadata import video_metadata
from flowblending.system.output import check_file


class VideoRun:
    """A job on an open pipeline. Nothing has run yet, and all that can be refused before work has been.

    Args:
        latents: initial latents in place of the seed's noise, float32 [1, C, F, H, W]: an array, which is checked, or
            a tensor of the device, which is taken as it is.
        noise: what a decoder that adds noise draws it from where initial latents are given; None for the seed's stream.
        embeddings: as `Pipeline.embed` gives them, of the branches whose text is not to be encoded.
        clips: images and clips that were given, at the video's size; the metadata has their names.
        named: the job as the metadata tells it, where files are called otherwise; None for the job itself.
        outputs: where to write the video (see `open_writer`).
        latents_out: where to write the final latents (.npy).
        decode: whether frames are wanted; there are no outputs without.
        floats: whether events have float32 frames beside pictures.
        open_first: open every engine before the first step, the decoder's too, so that what keeps one from being
            opened is known before the work; otherwise the decoder's are opened when they are needed.
        ahead: steps that may be under way on a GPU beyond the one told; 0 leaves the latents of the step told in the
            trajectory's memory (`SamplingEvent`).
        preview: asked before every step whether a picture of what it makes is wanted; None makes none, and neither does
            a bundle without a map (`Pipeline.preview_map`).

    Attributes:
        program: the steps.
        frame_rate: of the video, in frames per second.
        geometry: of the video.

    Raises:
        UsageError: a job that makes no program, latents that do not fit, or outputs that no video can have.
        FlowBlendingError: a file cannot be written.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        job: Job,
        *,
        latents: npt.NDArray[np.generic] | Tensor | None = None,
        noise: Normal | None = None,
        embeddings: Conditions | None = None,
        clips: Sequence[GivenClip] = (),
        named: Job | None = None,
        outputs: Sequence[Path] = (),
        latents_out: Path | None = None,
        decode: bool = True,
        floats: bool = False,
        open_first: bool = False,
        ahead: int = AHEAD,
        preview: Wanted | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._job = job
        planned = plan_job(job, pipeline.bundle.manifest, clips)
        named = named or job
        self._named = dataclasses.replace(named, image=(*(clip.name for clip in clips), *named.image))
        self._clips, self._held = planned.clips, planned.held
        self.program: Final[Program] = planned.program
        self._conditioning = job_conditioning(job, pipeline.bundle.manifest)
        self._tiling = self._conditioning.tiling
        self.frame_rate: Final[float] = pipeline.frame_rate(job)
        self.geometry: Final[Geometry] = planned.geometry
        if latents is not None and not isinstance(latents, Tensor):
            latents = pipeline.check_latents(latents, planned.geometry.latent_shape)
        self._given = latents
        self._noise = noise
        self._embeddings = embeddings or {}
        self._outputs = tuple(outputs)
        self._latents_out = latents_out
        self._decode = decode
        self._floats = floats
        self._open_first = open_first
        self._ahead = ahead
        self._preview = preview
        self._controlled = takes_control(pipeline.bundle.manifest.pipeline.conditions)
        self._is_shown = is_shown(pipeline.bundle.manifest.pipeline.conditions)
        self._unused = unused_options(
            self._named,
            self.program,
            pipeline.bundle.manifest,
            timed=decode and (not outputs or any(path.suffix.lower() == ".mp4" for path in outputs)),
            latents_given=latents is not None,
        )
        self._check_files()
        check_files(job, pipeline.bundle.manifest)

    @property
    def metadata(self) -> dict[str, str]:
        """What the video's file says about how it was made."""
        tiling = self._conditioning.tiling
        return self._told if tiling is None else {**self._told, "vae_tiling": str(tiling)}

    @cached_property
    def _told(self) -> dict[str, str]:
        given = self._given
        array = self._pipeline.device.download(given) if isinstance(given, Tensor) else given
        return video_metadata(self._pipeline.bundle.manifest, self._named, self.program, array)

    def start(self) -> tuple[npt.NDArray[np.float32] | Tensor, Normal]:
        """The initial latents, and the generator that a decoder draws on from.

        Raises:
            UsageError: a seed that is none.
        """
        if self._given is not None:
            return self._given, self._noise or TorchNormal(self._job.seed)
        return draw_latents(self._job.seed, self.program.latent_shape)

    def _notes(self) -> list[str]:
        """What a user should know of how images and clips were read."""
        return [note for clip in self._clips for note in clip.notes]

    def clip(self) -> Clip | None:
        """The frames of the video that the run begins from, if it does.

        Raises:
            FlowBlendingError: it cannot be read, or is too short.
        """
        job = self._job
        if job.video is None or self._controlled:
            return None
        size = self.geometry.width, self.geometry.height
        clip = read_clip(Path(job.video), size, fit=job.fit, most=self.geometry.frames, resample=job.resample_fps)
        check_length(clip, self.geometry)
        return clip

    def begun(
        self, noise: npt.NDArray[np.float32] | Tensor, clip: Clip, clock: Clock | None = None
    ) -> npt.NDArray[np.float32]:
        """Initial latents of a run that begins from a video: its own, with the noise of the first step's level."""
        pipeline = self._pipeline
        given = pipeline.device.download(noise) if isinstance(noise, Tensor) else noise
        with (clock or Clock()).measure(VAE_ENCODER):
            latents = pipeline.encode_frames(clip.frames)
        return noised(latents, given, self.program.steps[0].sigma)

    def doubts(self) -> list[str]:
        """A sentence if the initial latents given look like no noise: those of a finished run, above all."""
        given = self._given
        if given is None:
            return []
        doubts = noise_doubts(self._pipeline.device.download(given) if isinstance(given, Tensor) else given)
        if not doubts:
            return []
        return [
            f"the noise given does not look like noise: {doubts}; latents of a finished run are for fb-run --decode, "
            "or decode() in Python."
        ]

    def events(self) -> Generator[RunEvent, None, None]:
        """Make the video, anew with every call.

        Yields:
            A `WarningEvent` about every option that does nothing, and about noise that looks like none; a `LoadEvent`
            before an engine is opened; `EncodeEvent`; `WarningEvent` about the prompt; `SamplingEvent`; a `StepEvent`
            for every step that has finished, and a `PreviewEvent` for those of which one is wanted; `LatentsEvent`,
            when those are written too; `FramesEvent` for frames that were decoded and written; `FinishedEvent`, when
            every output is whole.

        Raises:
            FlowBlendingError: a number that is not finite, an engine that failed, a pipeline that has been closed, or
                a file that cannot be written. What was at the outputs before stays as it was.
        """
        clock, pipeline = Clock(), self._pipeline
        self._check_files()  # again: they may have come to be since
        clip = self.clip()
        for line in (
            *self._unused,
            *self.doubts(),
            *([] if clip is None else doubts(clip, self.frame_rate)),
            *self._notes(),
        ):
            yield WarningEvent(message=line)
        plan, self._conditioning = self._planned()
        if self._conditioning.tiling != self._tiling:
            yield WarningEvent(message=tiles_instead(self._conditioning.tiling))
        by_phases = plan.by_phases
        pipeline.engines.begin(plan)
        framing, first, last = plan.framing, plan.first, plan.phases[-1]
        if framing is not None:
            pipeline.engines.enter(framing, alone=by_phases)
            yield from opened(pipeline, framing.runs, clock)
        latents, generator, held = self._initial(clip, clock)
        shown, told = self._shown(clock)
        for line in told:
            yield WarningEvent(message=line)
        pipeline.engines.enter(first, alone=by_phases)
        yield from opened(pipeline, first.runs if by_phases else self._needed(), clock)
        sampled = yield from self._sampled(latents, held, shown, plan, clock)
        result = self._own(sampled)
        pipeline.device.trim()
        if by_phases:
            pipeline.engines.enter(last, alone=True) if self._decode else pipeline.engines.keep_only(())
        if self._latents_out is not None:
            save_latents(self._latents_out, pipeline.device.download(result.latents))
        yield LatentsEvent(latents=Array(result.latents, pipeline.device), seconds=result.loop_seconds)
        if self._decode:
            yield from self._written(result.latents, generator, clock)
        yield FinishedEvent(sample=result, seconds=clock.seconds())

    def start_of_sampling(
        self, warn: Callable[[str], None]
    ) -> tuple[npt.NDArray[np.float32] | Tensor, Conditions, Given]:
        """What the program starts from, for those who run it themselves: latents, conditions, and its given slots.

        Args:
            warn: told what `events` would tell.

        Raises:
            FlowBlendingError: as `events`.
        """
        clip = self.clip()
        told = [] if clip is None else doubts(clip, self.frame_rate)
        for line in (*self.doubts(), *told, *self._notes()):
            warn(line)
        latents, _, held = self._initial(clip, Clock())
        shown, told = self._shown(Clock())
        for line in told:
            warn(line)
        return latents, self._conditions(shown, warn), held

    def _conditions(self, shown: Mapping[str, Tensor], warn: Callable[[str], None]) -> Conditions:
        """What the models take beside latents and timestep."""
        times = None if self._held is None else self._held.times
        return self._pipeline.encode(self._job, self.program, warn, self._embeddings, times, shown=shown)

    def _check_files(self) -> None:
        for path in self._outputs:
            check_outside(Path(path))
            check_output(path, width=self.geometry.width, height=self.geometry.height)
        if self._latents_out is not None:
            check_outside(self._latents_out)
            check_file(self._latents_out)

    def _texts(self) -> list[str]:
        """The branches whose text is encoded."""
        return [branch for branch in self.program.branches() if branch not in self._embeddings]

    def plan(self) -> MemoryPlan:
        """How it goes about memory, with what is free now.

        Raises:
            UsageError: the engines cannot go the way that was asked for.
            OutOfMemoryError: it does not fit.
        """
        return self._planned()[0]

    def _planned(self) -> tuple[MemoryPlan, DecodeConditioning]:
        """The plan, and how it decodes: in tiles where nothing else fits, and nobody has said how."""
        begins = self._job.video is not None and not self._controlled
        others = other_tilings(self._pipeline.bundle.manifest, self._job.vae_tiling) if self._decode else ()
        refusals: list[OutOfMemoryError] = []
        for tiling in (self._tiling, *others):
            try:
                plan = self._pipeline.plan(
                    self.program,
                    texts=len(self._texts()),
                    decode=self._decode,
                    tiling=tiling,
                    frames=begins or self._held is not None or self._is_shown,
                )
            except OutOfMemoryError as error:
                refusals.append(error)
            else:
                return plan, dataclasses.replace(self._conditioning, tiling=tiling)
        raise refusals[0]

    def _needed(self) -> list[str]:
        """The components that are opened at first, in the order in which they are used."""
        models = sorted({step.model for step in self.program.steps})
        decoders = self._pipeline.decoders() if self._decode and self._open_first else []
        return [*([TEXT_ENCODER] if self._texts() else []), *models, *decoders]

    def _initial(self, clip: Clip | None, clock: Clock) -> tuple[npt.NDArray[np.float32] | Tensor, Normal, Given]:
        """The latents to start from, the generator that a decoder draws on from, and what the program's slots hold."""
        if self._held is None:
            latents, drawn = self.start()
            return latents if clip is None else self.begun(latents, clip, clock), drawn, {}
        given = self._pipeline.device.download(self._given) if isinstance(self._given, Tensor) else self._given
        generator = self._noise or TorchNormal(self._job.seed)
        with clock.measure(VAE_ENCODER):
            made, slots = self._held.make(given, generator, self._pipeline.encode_frames)
        return made, generator, slots

    def _shown(self, clock: Clock) -> tuple[dict[str, Tensor], list[str]]:
        """What models are given that are shown images or videos, and what to tell of these."""
        if not self._is_shown:
            return {}, []
        told: list[str] = []
        with clock.measure(VAE_ENCODER):
            return self._pipeline.shown(self._job, told.append, self._clips), told

    def _own(self, result: SampleResult) -> SampleResult:
        """A result without the latent frames that were put before the video's own."""
        if self._held is None or not self._held.extra:
            return result
        device = self._pipeline.device
        return dataclasses.replace(result, latents=device.upload(self._held.own(device.download(result.latents))))

    def _sampled(
        self,
        latents: npt.NDArray[np.float32] | Tensor,
        held: Given,
        shown: Mapping[str, Tensor],
        plan: MemoryPlan,
        clock: Clock,
    ) -> Generator[RunEvent, None, SampleResult]:
        """Encode and sample. Conditions and slots are this generator's, and go before anything is decoded."""
        pipeline, device = self._pipeline, self._pipeline.device
        warnings: list[str] = []
        if self._texts():
            yield EncodeEvent()
        # Marks and not the clock: on a GPU, encoding has only been enqueued when it returns.
        began, ended = device.mark(), device.mark()
        began.record()
        conditions = self._conditions(shown, warnings.append)
        ended.record()
        for line in warnings:
            yield WarningEvent(message=line)
        stages = None
        if plan.by_phases:
            stages = Stages(pipeline.engines, self.program, plan, partial(clock.measure, LOADING))
            pipeline.engines.enter(plan.stages[0], alone=True)
            yield from opened(pipeline, plan.stages[0].runs, clock)
        trajectory = pipeline.prepare(self.program, conditions, stages, held)
        yield SamplingEvent(trajectory=trajectory)
        extra = 0 if self._held is None else self._held.extra
        result = yield from sampled(
            pipeline, self.program, trajectory, latents, ahead=self._ahead, wanted=self._preview, extra=extra
        )
        if result.graphs.failed:
            yield WarningEvent(
                message=f"no CUDA graph could be made ({result.graphs.failed}), so that every step was enqueued by "
                f"itself; report it, and give {CUDA_GRAPH.option} {NO_GRAPHS} to do without."
            )
        if self._texts():
            clock.add(TEXT_ENCODER, device.seconds(began, ended))
        for model, seconds in result.model_seconds.items():
            clock.add(model, seconds)
        return result

    def _written(self, latents: Tensor, generator: Normal, clock: Clock) -> Generator[RunEvent, None, None]:
        """Decode, and write what is decoded."""
        yield from written(
            decoded(self._pipeline, latents, generator, self._conditioning, clock, floats=self._floats),
            self._outputs,
            geometry=self.geometry,
            frame_rate=self.frame_rate,
            metadata=self.metadata if self._outputs else {},
            clock=clock,
        )
