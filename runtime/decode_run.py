"""Latents to frames, and frames to files: the end of every run, and all of one that decodes saved latents."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.graph import VAE
from flowblending.contracts.manifest import Geometry
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.video_choice import check_latent_shape
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.events import FramesEvent, LoadEvent, WarningEvent
from flowblending.runtime.jobs import job_conditioning
from flowblending.runtime.media.noise import Normal, draw_latents
from flowblending.runtime.media.noise_check import noise_doubts
from flowblending.runtime.media.video import check_output, open_writer
from flowblending.runtime.memory.needs import decode_memory
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.stage_times import LOADING, VIDEO, Clock


class DecodeRun:
    """Saved latents on an open pipeline. Nothing has run yet, and all that can be refused before work has been.

    Args:
        latents: of a finished run: float [1, C, F, H, W] of a video that the bundle makes.
        job: whose seed, frame rate, decode timestep and decode noise scale count; a seed is that of the noise which
            some decoders add.
        out: where to write the video (see `open_writer`).

    Attributes:
        geometry: of the video.

    Raises:
        UsageError: latents that the bundle does not decode, or an output that no video can have.
        FlowBlendingError: a file cannot be written.
    """

    def __init__(self, pipeline: Pipeline, latents: npt.NDArray[np.generic], job: Job, out: Path) -> None:
        self._pipeline = pipeline
        self._job = job
        self._out = out
        manifest = pipeline.bundle.manifest
        if latents.ndim != 5 or latents.shape[0] != 1:
            raise UsageError(
                f"Latents of shape {list(latents.shape)} were given, but one video's [1, C, F, H, W] was expected; "
                "give the file of --save-latents."
            )
        self.geometry: Final[Geometry] = check_latent_shape(manifest, latents.shape[1:])
        self._latents = pipeline.check_latents(latents, latents.shape[1:], option="--decode")
        self._conditioning = job_conditioning(job, manifest)
        self._check_file()

    @property
    def metadata(self) -> dict[str, str]:
        """What the video's file says about how it was made."""
        told = {"decode_timestep": self._job.decode_timestep, "decode_noise_scale": self._job.decode_noise_scale}
        return {
            "decoded_latents_sha256": sha256(self._latents.tobytes()).hexdigest(),
            "seed": str(self._job.seed),
            "bundle": self._pipeline.bundle.manifest.id,
            **{name: f"{value:g}" for name, value in told.items() if value is not None},
            **({} if self._conditioning.tiling is None else {"vae_tiling": str(self._conditioning.tiling)}),
        }

    def events(self) -> Generator[WarningEvent | LoadEvent | FramesEvent, None, None]:
        """Make the video.

        Yields:
            A `WarningEvent` for latents that look like noise, a `LoadEvent` before an engine is opened, and a
            `FramesEvent` for frames that were decoded and written.

        Raises:
            FlowBlendingError: a pixel that is not finite, an engine that failed, or a file that cannot be written.
        """
        clock, pipeline = Clock(), self._pipeline
        self._check_file()
        if not noise_doubts(self._latents):
            yield WarningEvent(
                message="the latents look like noise, which no run has finished; --decode takes what --save-latents "
                "wrote, and --noise takes noise to start from."
            )
        _, generator = draw_latents(self._job.seed, self._latents.shape[1:])
        frames = decoded_alone(pipeline, pipeline.device.upload(self._latents), generator, self._conditioning, clock)
        yield from written(
            frames,
            [self._out],
            geometry=self.geometry,
            frame_rate=pipeline.frame_rate(self._job),
            metadata=self.metadata,
            clock=clock,
        )

    def _check_file(self) -> None:
        check_output(self._out, width=self.geometry.width, height=self.geometry.height)


def written(
    events: Generator[LoadEvent | FramesEvent, None, None],
    outputs: Sequence[Path],
    *,
    geometry: Geometry,
    frame_rate: float,
    metadata: Mapping[str, str],
    clock: Clock,
) -> Generator[LoadEvent | FramesEvent, None, None]:
    """Write what is decoded; outputs appear under their names only when they are whole.

    Args:
        events: of `decoded`; told on, and closed with this generator.
        outputs: see `open_writer`.
        geometry: of the video.
        frame_rate: in frames per second.
        metadata: for files that have some.
    """
    with contextlib.ExitStack() as files:
        decoding = files.enter_context(contextlib.closing(events))
        with clock.measure(VIDEO):
            size = {"width": geometry.width, "height": geometry.height}
            writers = [
                files.enter_context(open_writer(path, **size, frame_rate=frame_rate, metadata=metadata))
                for path in outputs
            ]
        for event in decoding:
            if isinstance(event, FramesEvent):
                with clock.measure(VIDEO):
                    for writer in writers:
                        writer.write(event.images())
            yield event
        with clock.measure(VIDEO):
            files.close()


def decoded_alone(
    pipeline: Pipeline,
    latents: Tensor,
    generator: Normal,
    conditioning: DecodeConditioning,
    clock: Clock | None = None,
    *,
    floats: bool = False,
) -> Generator[LoadEvent | FramesEvent, None, None]:
    """As `decoded`, of what is no phase of a run: other engines are closed where that is the way, or takes it.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    memory = decode_memory(pipeline.bundle.manifest, latents.shape[1:], conditioning.tiling)
    pipeline.engines.alone(memory)
    yield from decoded(pipeline, latents, generator, conditioning, clock, floats=floats)


def decoded(
    pipeline: Pipeline,
    latents: Tensor,
    generator: Normal,
    conditioning: DecodeConditioning,
    clock: Clock | None = None,
    *,
    floats: bool = False,
) -> Generator[LoadEvent | FramesEvent, None, None]:
    """Decode latents [1, C, F, H, W].

    Args:
        generator: that the initial latents were drawn from; a decoder that adds noise draws on.
        conditioning: of a timestep-conditioned decoder.
        floats: whether float32 frames are wanted beside the pictures.

    Raises:
        FlowBlendingError: a pixel that is not finite, or an engine that failed.
    """
    clock = clock or Clock()
    yield from opened(pipeline, pipeline.decoders(), clock)
    first = 0
    with contextlib.closing(pipeline.decode(latents, generator, conditioning, floats=floats)) as chunks:
        for chunk in clock.timed(VAE, chunks):
            yield (event := FramesEvent(first=first, chunk=chunk))
            first += event.count
    pipeline.device.trim()


def opened(pipeline: Pipeline, names: Sequence[str], clock: Clock) -> Generator[LoadEvent, None, None]:
    """Open engines that are not open yet, naming each before."""
    for name in names:
        if not pipeline.engines.is_open(name):
            yield LoadEvent(component=name)
            with clock.measure(LOADING):
                pipeline.engines.get(name)
