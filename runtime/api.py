"""The Python API: a bundle opened as a sampler, which yields typed events, and frames as they are decoded.

What crosses it are other libraries' arrays and streams (see `arrays`); torch is not needed. A sampler and what
comes from it belong to one thread at a time, whichever that is; the thread's current CUDA device stays what it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack

from flowblending import UsageError
from flowblending.contracts.conditions import Source
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import COND, UNCOND, Program
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.engine.bundle.vae_tiling import choose_tiling
from flowblending.engine.bundle.video_choice import check_latent_shape
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.decode_conditioning import decode_conditioning
from flowblending.runtime.decode_run import decoded_alone
from flowblending.runtime.devices.arrays import Array, stream_handle
from flowblending.runtime.devices.foreign import ForeignArray, ForeignStream
from flowblending.runtime.devices.open import AUTO, open_device
from flowblending.runtime.events import (
    Embedding,
    Event,
    FramesEvent,
    LatentsEvent,
    LoadEvent,
    PreviewEvent,
    WarningEvent,
)
from flowblending.runtime.given import given_embedding, given_latents
from flowblending.runtime.given_images import given_image
from flowblending.runtime.jobs import job_geometry
from flowblending.runtime.machine_options import CUDA_GRAPH, DEVICE, MEMORY, THREADS, MachineSettings
from flowblending.runtime.media.noise import draw_latents
from flowblending.runtime.memory.needs import text_memory
from flowblending.runtime.option_values import PYTHON, is_blank, make_job, read_options, read_value, shown
from flowblending.runtime.options import PREVIEW, TEXT, Job, JobOptions
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.previews import Wanted
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.binding import Conditions
from flowblending.runtime.sampler.loop import StepEvent

__all__ = [
    "Embedding",
    "FramesEvent",
    "Generation",
    "LatentsEvent",
    "LoadEvent",
    "PreviewEvent",
    "StepEvent",
    "VideoSampler",
    "open",
]


_BESIDE: Final = ("noise", "preview_every", "first_image", "last_image")
"""Arguments of `VideoSampler.generate` that are no options of a job."""
_ENCODE: Final = dataclasses.replace(PYTHON, several="for text in texts: sampler.encode(text)")


class Generation:
    """A video to be made. Nothing has run yet: iterate over it, or ask for its latents.

    Iterating yields a `LoadEvent` for every engine that is not open yet, a `StepEvent` for every step, a `PreviewEvent`
    for those that are to show what they make, a `LatentsEvent`, and `FramesEvent` until the video is complete. Leaving
    the loop early ends the work; on a GPU the few steps enqueued already are waited for. Every iteration makes the
    video anew.

    Attributes:
        noise: initial latents, if they were given.
        embeddings: per branch, those that were given.
        program: the steps, before any has run.
        frame_rate: of the video, in frames per second.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        job: Job,
        noise: Tensor | None,
        embeddings: Conditions,
        *,
        preview: Wanted | None = None,
        clips: Sequence[GivenClip] = (),
    ) -> None:
        self._planned = functools.partial(
            VideoRun, pipeline, job, latents=noise, embeddings=embeddings, preview=preview, clips=clips
        )
        self._run = self._planned(floats=True)
        self.noise: Final = noise
        self.embeddings: Final = embeddings
        self.program: Final[Program] = self._run.program
        self.frame_rate: Final[float] = self._run.frame_rate

    def __iter__(self) -> Generator[Event, None, None]:
        return _told(self._run)

    def save(self, path: str | os.PathLike[str], on_event: Callable[[Event], object] | None = None) -> None:
        """Make the video and write it, as fb-run would: whole, or not at all.

        Args:
            path: ``video.mp4``, ``frames.npy`` (uint8 [F, H, W, 3]), or a new folder for PNG files.
            on_event: called with every event that iterating would yield.

        Raises:
            UsageError: a path that no video can have.
            FlowBlendingError: as `latents`, or the file cannot be written.
        """
        run = self._planned(outputs=(Path(path),), floats=on_event is not None)
        with contextlib.closing(_told(run)) as events:
            for event in events:
                if on_event is not None:
                    on_event(event)

    def latents(self) -> Array:
        """Sample without decoding: float32 [1, C, F, H, W], normalised as the transformers see them.

        Raises:
            FlowBlendingError: a model gave a non-finite velocity, an engine failed, or the sampler has been closed.
        """
        with contextlib.closing(iter(self)) as events:
            for event in events:
                if isinstance(event, LatentsEvent):
                    return event.latents
        raise AssertionError("sampling ends with its latents")


def _told(run: VideoRun) -> Generator[Event, None, None]:
    """What the API tells of a run's events; warnings become Python's."""
    with contextlib.closing(run.events()) as events:
        for event in events:
            if isinstance(event, WarningEvent):
                _warn(event.message)
            elif isinstance(event, Event):
                yield event


class VideoSampler:
    """An opened bundle: a context manager, made by `open`.

    Engines are opened when they are first needed, and stay open.
    """

    def __init__(self, pipeline: Pipeline, stream: object = None) -> None:
        self._pipeline = pipeline
        self._foreign_stream = stream  # keeps it alive

    @property
    def pipeline(self) -> Pipeline:
        """What is behind it: the engines, and the parts that `Generation` puts together."""
        return self._pipeline

    @property
    def manifest(self) -> Manifest:
        """What the bundle is: the videos that it makes, components, defaults."""
        return self._pipeline.bundle.manifest

    @property
    def stream(self) -> int:
        """Handle of the CUDA stream that everything runs on; 0 on the CPU."""
        return self._pipeline.device.stream

    def encode(self, text: str) -> Embedding:
        """Run the text encoder once, for any number of videos. Warns when the text is too long, and is cut.

        Args:
            text: of a prompt, or of a negative prompt, which may be empty.

        Raises:
            UsageError: it is no text.
        """
        text = read_value(text, TEXT, _ENCODE)
        self._pipeline.engines.alone(text_memory(self.manifest))
        tensors, device = self._pipeline.embed(text, _warn), self._pipeline.device
        device.close()  # waits: what is handed out is complete
        return Embedding(text=Array(tensors[Source.TEXT], device), mask=Array(tensors[Source.TEXT_MASK], device))

    def generate(
        self,
        prompt: str | Embedding,
        *,
        negative_prompt: str | Embedding | None = None,
        noise: ForeignArray | None = None,
        preview_every: int | None = None,
        first_image: Any = None,
        last_image: Any = None,
        **options: Unpack[JobOptions],
    ) -> Generation:
        """A video to be made; see `Generation`. None means the default of the bundle's family.

        Args:
            prompt: what the video shows; one text that is not blank, or its embedding. Several videos are a loop.
            negative_prompt: what it should not show.
            noise: initial latents in place of the seed's, float32 [1, C, F, H, W], of the video's size. They are read
                where they are, when the video is made, and left as they are. What looks like no noise, such as the
                latents of a finished run, is warned about then; those are for `decode`.
            preview_every: so many steps make a `PreviewEvent`, in bundles that have a map for it; None makes none.
            first_image, last_image: an image that the video begins or ends with, of bundles that take images: one of
                Pillow, or an array of numpy or of torch on the CPU, uint8 [H, W, 3] or of floats from 0 to 1,
                [H, W, 3] or [3, H, W]. ``fit`` says how it comes to the size of the video; ``image`` names files.
            options: further fields of a `Job`: seed, size, frames, video, strength, fit, resample_fps, steps, schedule,
                boundaries, shift, guidance, guidance_rescale, batched_guidance, solver, cache, decode_timestep,
                decode_noise_scale, vae_tiling and frame_rate.

        Raises:
            UsageError: an option or an array that does not fit.
        """
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        given = {name: text for name, text in texts.items() if not isinstance(text, Embedding)}
        fields = read_options({**given, **options}, PYTHON, beside=_BESIDE)
        job = make_job({"prompt": "", **fields})
        embeddings = {}
        for branch, text, name in ((COND, prompt, "prompt"), (UNCOND, negative_prompt, "negative prompt")):
            if isinstance(text, Embedding):
                embeddings[branch] = given_embedding(self._pipeline, text, name)
        latents = None
        if noise is not None:
            shape = (1, *job_geometry(job, self.manifest).latent_shape)
            latents = given_latents(self._pipeline, noise, "noise", shape)
        clips = _images(job, self.manifest, first_image, last_image)
        return Generation(self._pipeline, job, latents, embeddings, preview=self._preview(preview_every), clips=clips)

    def _preview(self, every: int | None) -> Wanted | None:
        """Which steps are to show what they make.

        Raises:
            UsageError: a number that is none.
        """
        if every is None:
            return None
        every = read_value(every, PREVIEW, PYTHON)
        if self.manifest.preview is None:
            _warn("This bundle has no map for previews, as an earlier version built it; build it again to see some.")
        return lambda index: (index + 1) % every == 0

    def decode(
        self,
        latents: ForeignArray,
        *,
        seed: int = 0,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
        vae_tiling: str = AUTO,
    ) -> Iterator[LoadEvent | FramesEvent]:
        """Decode latents, float32 [1, C, F, H, W], normalised as the transformers see them.

        Args:
            latents: of a video that the bundle was built for; read where they are.
            seed: of the noise that some decoders add (LTX-Video's); the seed that the latents were made with gives
                the frames that iterating over the generation gives.
            decode_timestep: what a timestep-conditioned decoder is told, from 0 to 1; None for the bundle's.
            decode_noise_scale: the share of noise in the latents that such a decoder sees, likewise.
            vae_tiling: tiles to decode in, such as ``256x256+64``; ``auto`` for the bundle's, or ``off``.

        Raises:
            UsageError: an array that does not fit, or options that the bundle's decoder does not have.
        """
        channels = self.manifest.pipeline.latent_channels
        tensor = given_latents(self._pipeline, latents, "array of latents", (1, channels, None, None, None))
        check_latent_shape(self.manifest, tensor.shape[1:])
        told = {"decode_timestep": decode_timestep, "decode_noise_scale": decode_noise_scale}
        read = read_options({"seed": seed, **told, "vae_tiling": vae_tiling}, PYTHON)
        _, generator = draw_latents(read["seed"], tensor.shape[1:])
        tiling = choose_tiling(self.manifest, read["vae_tiling"])
        conditioning = decode_conditioning(self.manifest.pipeline, *(read[name] for name in told), tiling=tiling)
        return decoded_alone(self._pipeline, tensor, generator, conditioning, floats=True)

    def close(self) -> None:
        """Wait for what is running, and close the engines. Arrays that were handed out stay. Twice is harmless."""
        self._pipeline.device.close()
        self._pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open(
    bundle: str | Path,
    *,
    device: str = AUTO,
    stream: ForeignStream | None = None,
    threads: int | None = None,
    cuda_graph: str = AUTO,
    memory: str = AUTO,
) -> VideoSampler:
    """Open a bundle that fb-build-engines made.

    Args:
        bundle: its folder. Its files are checked against their checksums, once after every change.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where the bundle can use one. The GPU is that of the
            stream, else the first that CUDA shows (``CUDA_VISIBLE_DEVICES``).
        stream: a CUDA stream of a GPU's primary context to run on: its handle, or a stream of cuda.core, torch,
            cupy, numba or pycuda. None makes one.
        threads: of ONNX Runtime on the CPU; None takes one per processor, within a container's limit.
        cuda_graph: ``auto`` launches steps that come again as CUDA graphs, where the engines are TensorRT's and enough
            steps are alike; ``off`` enqueues every step. The bits are the same.
        memory: ``resident`` keeps every engine open for the next video; ``phases`` keeps open only those that a phase
            of a video needs; ``auto`` takes the first of both that fits what is free of the GPU.

    Raises:
        UsageError: a wrong argument.
        FlowBlendingError: the bundle is missing, damaged or altered, or its libraries or its GPU are not here.
    """
    folder = _folder(bundle)
    device = read_value(device, DEVICE, PYTHON)
    given = ((THREADS, threads), (CUDA_GRAPH, cuda_graph), (MEMORY, memory))
    machine = MachineSettings.of({option.name: read_value(value, option, PYTHON) for option, value in given})
    handle = None if stream is None else stream_handle(stream)
    opened = open_bundle(folder)
    opened.verify()
    place = open_device(device, opened.manifest, handle)
    return VideoSampler(Pipeline(bundle=opened, device=place, machine=machine), stream)


def _images(job: Job, manifest: Manifest, first: Any, last: Any) -> tuple[GivenClip, ...]:
    """What a video begins and ends with.

    Raises:
        UsageError: it is no image.
    """
    video = job_geometry(job, manifest)
    given = (("first_image", first, 0), ("last_image", last, video.frames - 1))
    return tuple(
        given_image(image, name, (video.width, video.height), frame=frame, fit=job.fit)
        for name, image, frame in given
        if image is not None
    )


def _folder(bundle: object) -> Path:
    path = os.fspath(bundle) if isinstance(bundle, os.PathLike) else bundle
    if not isinstance(path, str) or is_blank(path) or "\0" in path:
        raise UsageError(
            f"bundle is {shown(bundle)}, but the path of a bundle's folder was expected; give bundle='wan-bundle', for "
            "example."
        )
    return Path(path)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
