"""An opened bundle: prompt -> conditions, latents, frames. What fb-run and embedders call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from flowblending import DeviceError, FlowBlendingError, UsageError
from flowblending.contracts.conditions import Source, frame_times, inputs_from
from flowblending.contracts.graph import DECODERS, ENCODERS, TEXT_ENCODER
from flowblending.contracts.program import COND, UNCOND, Program
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.protocol import Engine, ScratchEngine
from flowblending.engine.backends.registry import open_engine
from flowblending.engine.backends.tensor import CUDA, Tensor
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.engine.bundle.video_choice import check_latent_shape
from flowblending.runtime.conditions.encoder import Frames, VaeEncoder
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.decode_conditioning import DecodeConditioning, decode_conditioning
from flowblending.runtime.devices.arena import Arena
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.jobs import job_conditioning
from flowblending.runtime.media.decode import Decoder
from flowblending.runtime.media.noise import Normal, draw_latents
from flowblending.runtime.media.prompt import Tokenizer
from flowblending.runtime.media.read_ahead import Chunk
from flowblending.runtime.memory.choose import choose_plan
from flowblending.runtime.memory.needs import run_memory
from flowblending.runtime.memory.plan import AUTO, PHASES, SLACK, MemoryPlan, Phase
from flowblending.runtime.memory.staged import StagedEngine, Stages
from flowblending.runtime.options import Job
from flowblending.runtime.sampler.binding import Conditions, Given
from flowblending.runtime.sampler.loop import Sampler, SampleResult, StepEvent, Trajectory
from flowblending.runtime.shown_inputs import shown_inputs


@dataclass(kw_only=True)
class Pipeline:
    """The engines of a bundle on a device, each opened when it is first needed.

    They are kept until ``close``, or until a run that goes by phases (`plan`) closes them.

    Attributes:
        bundle: verified by the caller.
        device: where everything runs; its stream carries all engines.
        threads: of ONNX Runtime on the CPU; None leaves the choice to it.
        cuda_graph: whether steps that come again are launched as CUDA graphs, where that can be.
        memory: ``auto``, ``resident`` or ``phases``; see `flowblending.runtime.memory.plan`.
    """

    bundle: Bundle
    device: Device
    threads: int | None = None
    cuda_graph: bool = True
    memory: str = AUTO
    _engines: dict[str, Engine] = field(default_factory=dict)
    _arena: Arena = field(init=False)
    _tokenizer: Tokenizer | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        self._arena = Arena(self.device)

    def is_open(self, name: str) -> bool:
        """Whether a component's engine is open."""
        return name in self._engines

    def engine(self, name: str) -> Engine:
        """An engine of the bundle by its component's name, opened if it is not yet.

        Raises:
            DeviceError: the engine cannot be opened.
            FlowBlendingError: the pipeline has been closed.
        """
        if self._closed:
            raise FlowBlendingError(f"The bundle {self.bundle.folder} has been closed; open it again.")
        if name not in self._engines:
            component = self.bundle.manifest.components[name]
            try:
                with self.device.current():
                    engine = open_engine(
                        backend=component.backend,
                        path=self.bundle.path(name),
                        spec=component.spec,
                        device=self.device.kind,
                        stream=self.device.stream,
                        threads=self.threads,
                    )
                if isinstance(engine, ScratchEngine):
                    engine.use_scratch(self._arena)
                self._engines[name] = engine
            except FlowBlendingError as error:
                raise DeviceError(str(error)) from None
        return self._engines[name]

    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, read if it has not been."""
        if self._tokenizer is None:
            pipeline = self.bundle.manifest.pipeline
            path = self.bundle.folder / self.bundle.manifest.tokenizer[0].path
            self._tokenizer = Tokenizer(path, length=pipeline.text_length, clean=pipeline.clean_prompt)
        return self._tokenizer

    def plan(self, program: Program, *, texts: int, decode: bool, tiling: Tiling | None = None) -> MemoryPlan:
        """How a run goes about memory, with what is free now and what the open engines hold.

        Args:
            program: of the run.
            texts: that it encodes.
            decode: whether it decodes.
            tiling: the tiles that it decodes in; None for whole frames.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        run = run_memory(self.bundle.manifest, program, texts=texts, decode=decode, tiling=tiling)
        free = free_memory(self.device.index) if self.device.kind == CUDA else None
        if free is not None:
            free += self._arena.size + sum(run.engines[name].weights for name in self._engines)
        return choose_plan(run, self.memory, free, tuple(self._engines))

    def enter(self, phase: Phase, *, alone: bool) -> None:
        """Have a phase's scratch memory, and with ``alone`` no engine open that it does not need."""
        if alone:
            self.keep_only(phase.resident)
        if self._arena.size < phase.arena or (alone and self._arena.size > phase.arena):
            # Freed, and given back, before what takes its place comes.
            self._arena.release()
            self.device.trim()
        if phase.arena:
            self._arena.at_least(phase.arena)

    def make_room(self, names: Collection[str]) -> None:
        """Close all engines but these where they go by phases, or do not fit beside the others.

        For what runs by itself, and not as a phase of a run that was planned.
        """
        components = self.bundle.manifest.components
        new = [name for name in names if name not in self._engines]
        weights = sum(components[name].weights_bytes or components[name].engine_bytes for name in new)
        stated = [each.scratch_bytes or 0 for name in names for each in components[name].profiles]
        needed = weights + max(0, max(stated, default=0) - self._arena.size)
        free = free_memory(self.device.index) if self.device.kind == CUDA else None
        tight = self.memory == AUTO and free is not None and round(needed * (1 + SLACK)) > free
        if self.memory == PHASES or tight:
            self.keep_only(names)

    def keep_only(self, names: Collection[str]) -> None:
        """Close all engines but these, when what they were given has finished."""
        others = [name for name in self._engines if name not in names]
        if not others:
            return
        self.device.close()
        with self.device.current():
            for name in others:
                self._engines.pop(name).close()

    def close(self) -> None:
        """Close every engine, for good, and give their memory back. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        with self.device.current():
            while self._engines:
                self._engines.popitem()[1].close()
        self._arena.release()
        self.device.trim()

    def frame_rate(self, job: Job) -> float:
        """Frames per second of a job's video."""
        return self.bundle.manifest.pipeline.frame_rate if job.frame_rate is None else job.frame_rate

    def encode(
        self,
        job: Job,
        program: Program,
        warn: Callable[[str], None],
        given: Conditions | None = None,
        times: Sequence[float] | None = None,
        *,
        shown: Mapping[str, Tensor] | None = None,
    ) -> Conditions:
        """What the transformers take beside latents and timestep, for every branch that the program has.

        Args:
            warn: told when a prompt is longer than the text encoder takes, and is cut.
            given: embeddings as `embed` gives them, of the branches whose text is not to be encoded.
            times: of the latent frames, where they are not those of the video alone.
            shown: what `shown` gives, if that has been asked already.
        """
        shown = self.shown(job, program, warn) if shown is None else shown
        given, pipeline = given or {}, self.bundle.manifest.pipeline
        negative = pipeline.negative_prompt if job.negative_prompt is None else job.negative_prompt
        prompts = {COND: job.prompt, UNCOND: negative}
        if times is None:
            times = frame_times(program.latent_shape[1], pipeline.temporal_factor)
        shared: dict[str, Tensor] = {
            Source.FRAME_RATE: self.device.upload(np.array([self.frame_rate(job)], np.float32)),
            Source.FRAME_TIMES: self.device.upload(np.array(times, np.float32)),
        }
        return {
            branch: inputs_from(
                pipeline.conditions,
                {**(given.get(branch) or self.embed(prompts[branch], warn)), **shared},
            )
            | dict(shown)
            for branch in program.branches()
        }

    def shown(
        self,
        job: Job,
        program: Program,
        warn: Callable[[str], None],
        clips: Sequence[GivenClip] | None = None,
    ) -> dict[str, Tensor]:
        """What transformers are given of images or videos, by input; nothing for those that take text alone.

        Args:
            warn: told what a user should know of how a control's files are taken.
            clips: images at the video's size; None for those that the job names.

        Raises:
            FlowBlendingError: a file cannot be read, or does not fit the video.
        """
        manifest = self.bundle.manifest
        made = shown_inputs(
            job,
            manifest,
            geometry_of(manifest.pipeline, program.latent_shape),
            self.encode_frames,
            frame_rate=self.frame_rate(job),
            warn=warn,
            clips=clips,
        )
        return {name: self.device.upload(value) for name, value in made.items()}

    def embed(self, text: str, warn: Callable[[str], None]) -> dict[str, Tensor]:
        """Run the text encoder: ``text`` float32 [1, tokens, width] and ``text_mask`` int64 [1, tokens].

        Args:
            warn: told when the text is longer than the text encoder takes, and is cut.
        """
        pipeline = self.bundle.manifest.pipeline
        tokens = self.tokenizer().encode(text)
        if tokens.dropped:
            warn(
                f"the prompt is {pipeline.text_length + tokens.dropped} tokens long, but the text encoder takes "
                f"{pipeline.text_length}; the last {tokens.dropped} were left out."
            )
        engine = self.engine(TEXT_ENCODER)
        inputs = {"ids": self.device.upload(tokens.ids), "mask": self.device.upload(tokens.mask)}
        # Some reference pipelines do not tell the text encoder what is padding.
        taken = {spec.name: inputs[spec.name] for spec in engine.spec.inputs}
        (output,) = engine.spec.outputs
        embedding = self.device.empty(output.resolve({"batch": 1}), np.dtype(output.dtype))
        with self.device.current():
            engine.run({**taken, output.name: embedding}, self.device.stream)
        return {Source.TEXT: embedding, Source.TEXT_MASK: inputs["mask"]}

    def check_latents(
        self, latents: npt.NDArray[np.generic], latent_shape: Sequence[int], *, option: str = "--noise"
    ) -> npt.NDArray[np.float32]:
        """Latents given by the user, as float32.

        Args:
            latents: float32 [1, C, F, H, W].
            latent_shape: [C, F, H, W] of the program that they are for.
            option: of command lines that they were given to.

        Raises:
            UsageError: of another shape, no floating-point numbers, or not finite.
        """
        expected = (1, *latent_shape)
        if latents.shape != expected or latents.dtype.kind != "f":
            raise UsageError(
                f"Latents of shape {list(latents.shape)} and type {latents.dtype} were given, but this run "
                f"expects float32 of shape {list(expected)} [B, C, F, H, W]; give such a file to {option}"
                f"{self._or_their_video(latents.shape, expected)}."
            )
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(latents, np.float32)
        if not np.isfinite(values).all():
            raise UsageError(f"The latents given contain infinite or undefined numbers; give finite ones to {option}.")
        return values

    def _or_their_video(self, given: tuple[int, ...], expected: tuple[int, ...]) -> str:
        """What else there is to do with latents of another video that the bundle makes."""
        if given == expected or given[:1] != (1,) or len(given) != len(expected):
            return ""
        try:
            geometry = check_latent_shape(self.bundle.manifest, given[1:])
        except UsageError:
            return ""
        return f", or make their video with --size {geometry.size} --frames {geometry.frames}"

    def sample(
        self,
        program: Program,
        latents: npt.NDArray[np.float32],
        conditions: Conditions,
        on_step: Callable[[StepEvent], None] | None = None,
    ) -> SampleResult:
        """Run a program from initial latents float32 [1, C, F, H, W]."""
        return self.prepare(program, conditions).run(latents, on_step=on_step)

    def prepare(
        self, program: Program, conditions: Conditions, stages: Stages | None = None, given: Given | None = None
    ) -> Trajectory:
        """Bind a program to the engines that it runs and to memory of its own.

        Args:
            program: to run.
            conditions: see `encode`.
            stages: opens and closes the engines while it runs; None has all of them open.
            given: what the program's given slots hold.
        """
        models = sorted({step.model for step in program.steps})
        if stages is None:
            opened = {name: self.engine(name) for name in models}
            return Sampler(opened, self.device, cuda_graph=self.cuda_graph).prepare(program, conditions, given)
        specs = {name: self.bundle.manifest.components[name].spec for name in models}
        engines = {name: StagedEngine(spec, partial(self.engine, name)) for name, spec in specs.items()}
        # What is captured holds addresses of engines, which go with them.
        sampler = Sampler(engines, self.device, cuda_graph=self.cuda_graph, before=stages.before)
        return sampler.prepare(program, conditions, given)

    def decoders(self) -> list[str]:
        """The components that decoding takes."""
        return [name for name in DECODERS if name in self.bundle.manifest.components]

    def vae_encoders(self) -> list[str]:
        """The components that encoding frames takes; none in bundles without."""
        return [name for name in ENCODERS if name in self.bundle.manifest.components]

    def encode_frames(self, frames: Frames, noise: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """The latents of frames, as `VaeEncoder.encode` takes them, of a video that the bundle makes.

        Args:
            noise: standard normal, like the latents, for a draw from the encoder's distribution; None for its mode.

        Returns:
            float32 [1, C, F, H, W], normalised as the transformers see them.
        """
        pipeline = self.bundle.manifest.pipeline
        encoder = VaeEncoder(
            engines={name: self.engine(name) for name in self.vae_encoders()},
            device=self.device,
            factors=(pipeline.temporal_factor, pipeline.spatial_factor),
            channels=pipeline.latent_channels,
        )
        return encoder.encode(frames, noise)

    def decode(
        self,
        latents: Tensor,
        generator: Normal,
        conditioning: DecodeConditioning | None = None,
        *,
        floats: bool = False,
    ) -> Generator[Chunk, None, None]:
        """Chunks of frames; see `Decoder`.

        Args:
            conditioning: of a timestep-conditioned decoder, and the tiles; None for the bundle's.
            floats: whether float32 frames are wanted beside the pictures.
        """
        engines = {name: self.engine(name) for name in self.decoders()}
        manifest = self.bundle.manifest
        told = conditioning or decode_conditioning(manifest.pipeline, tiling=manifest.vae_tiling)
        decoder = Decoder(engines=engines, device=self.device, conditioning=told)
        return decoder.decode(latents, generator, floats=floats)

    def pixels(self, latents: npt.NDArray[np.float32], job: Job) -> npt.NDArray[np.uint8]:
        """The whole video of a job's latents, [F, H, W, 3].

        Raises:
            FlowBlendingError: the decoder gave a non-finite pixel.
        """
        _, generator = draw_latents(job.seed, latents.shape[1:])
        chunks = self.decode(self.device.upload(latents), generator, job_conditioning(job, self.bundle.manifest))
        return np.concatenate([chunk.images for chunk in chunks])
