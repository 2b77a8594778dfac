"""An opened bundle: prompt -> conditions, latents, frames. What fb-run and embedders call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import Source, frame_times, inputs_from
from flowblending.contracts.graph import DECODERS, IMAGE_ENCODER, TEXT_ENCODER, VAE_ENCODERS
from flowblending.contracts.program import COND, UNCOND, Program
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.bundle.video_choice import check_latent_shape
from flowblending.runtime.conditions.encoder import Frames, VaeEncoder
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.conditions.image_tokens import ImageEncoder
from flowblending.runtime.decode_conditioning import DecodeConditioning, decode_conditioning
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.jobs import job_conditioning, job_geometry
from flowblending.runtime.machine_options import DEFAULTS, MachineSettings
from flowblending.runtime.media.decode import Decoder
from flowblending.runtime.media.noise import Normal, draw_latents
from flowblending.runtime.media.preview import PreviewMap
from flowblending.runtime.media.prompt import Tokenizer
from flowblending.runtime.media.read_ahead import Chunk
from flowblending.runtime.memory.engines import Engines
from flowblending.runtime.memory.needs import run_memory
from flowblending.runtime.memory.plan import MemoryPlan
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
        machine: how they use it.
        engines: those that are open.
    """

    bundle: Bundle
    device: Device
    machine: MachineSettings = DEFAULTS
    engines: Engines = field(init=False)
    _tokenizer: Tokenizer | None = None
    _preview: PreviewMap | None = None

    def __post_init__(self) -> None:
        machine = self.machine
        self.engines = Engines(bundle=self.bundle, device=self.device, threads=machine.threads, memory=machine.memory)

    def close(self) -> None:
        """Close every engine, for good, and give their memory back. Twice is harmless."""
        self.engines.close()

    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, read if it has not been."""
        if self._tokenizer is None:
            pipeline = self.bundle.manifest.pipeline
            path = self.bundle.folder / self.bundle.manifest.tokenizer[0].path
            self._tokenizer = Tokenizer(path, length=pipeline.text_length, clean=pipeline.clean_prompt)
        return self._tokenizer

    def preview_map(self) -> PreviewMap | None:
        """What makes pictures of latents, read if it has not been; None in a bundle that has none.

        Raises:
            FlowBlendingError: its file cannot be read.
        """
        found = self.bundle.manifest.preview
        if self._preview is None and found is not None:
            channels = self.bundle.manifest.pipeline.latent_channels
            self._preview = PreviewMap.read(self.bundle.folder / found.file.path, channels)
        return self._preview

    def plan(
        self, program: Program, *, texts: int, decode: bool, tiling: Tiling | None = None, frames: bool = False
    ) -> MemoryPlan:
        """How a run goes about memory, with what is free now and what the open engines hold.

        Args:
            program: of the run.
            texts: that it encodes.
            decode: whether it decodes.
            tiling: the tiles that it decodes in; None for whole frames.
            frames: whether it encodes images or videos.

        Raises:
            UsageError: the engines cannot go the way that was asked for.
            OutOfMemoryError: it does not fit.
        """
        manifest = self.bundle.manifest
        return self.engines.plan(
            run_memory(manifest, program, texts=texts, decode=decode, tiling=tiling, frames=frames)
        )

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
        shown = self.shown(job, warn) if shown is None else shown
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
            job_geometry(job, manifest),
            self.encode_frames,
            self.image_tokens,
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
        engine = self.engines.get(TEXT_ENCODER)
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
        models, components = sorted({step.model for step in program.steps}), self.bundle.manifest.components
        if stages is None:
            opened = {name: self.engines.get(name) for name in models}
            # Their calls may take memory of their own.
            graphs = self.machine.cuda_graph and not any(components[name].weight_streaming for name in models)
            return Sampler(opened, self.device, cuda_graph=graphs).prepare(program, conditions, given)
        specs = {name: components[name].spec for name in models}
        engines = {name: StagedEngine(spec, partial(self.engines.get, name)) for name, spec in specs.items()}
        # What is captured holds addresses of engines, which go with them.
        sampler = Sampler(engines, self.device, cuda_graph=self.machine.cuda_graph, before=stages.before)
        return sampler.prepare(program, conditions, given)

    def decoders(self) -> list[str]:
        """The components that decoding takes."""
        return [name for name in DECODERS if name in self.bundle.manifest.components]

    def vae_encoders(self) -> list[str]:
        """The components that encoding frames takes; none in bundles without."""
        return [name for name in VAE_ENCODERS if name in self.bundle.manifest.components]

    def image_tokens(self, images: Sequence[GivenClip]) -> npt.NDArray[np.float32]:
        """The tokens of images, float32 [1, N, W], as CLIP's encoder of the bundle sees them."""
        return ImageEncoder(engine=self.engines.get(IMAGE_ENCODER), device=self.device).tokens(images)

    def encode_frames(self, frames: Frames, noise: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """The latents of frames, as `VaeEncoder.encode` takes them, of a video that the bundle makes.

        Args:
            noise: standard normal, like the latents, for a draw from the encoder's distribution; None for its mode.

        Returns:
            float32 [1, C, F, H, W], normalised as the transformers see them.
        """
        pipeline = self.bundle.manifest.pipeline
        encoder = VaeEncoder(
            engines={name: self.engines.get(name) for name in self.vae_encoders()},
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
        engines = {name: self.engines.get(name) for name in self.decoders()}
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
