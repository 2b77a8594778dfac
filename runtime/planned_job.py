"""What a job comes to with the images and clips that it is given: its program, and what that starts from.

A run makes it once (`run`); a calibration starts from it as often as it likes, with other noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowblending.contracts.conditions import takes_control
from flowblending.contracts.manifest import Geometry, Manifest
from flowblending.contracts.program import Program
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.runtime.conditions.given import GivenClip, open_given
from flowblending.runtime.conditions.held import Encode, Floats, Held
from flowblending.runtime.conditions.references import Referenced
from flowblending.runtime.conditions.registry import plan_given
from flowblending.runtime.jobs import check_given, check_one_control, compile_job
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.media.read_clip import shown_size
from flowblending.runtime.media.reference_image import check_reference
from flowblending.runtime.options import Job
from flowblending.runtime.sampler.binding import Given


@dataclass(frozen=True, kw_only=True)
class Start:
    """Initial latents float32 [1, C, F, H, W] of a program, and what its given slots hold."""

    latents: Floats
    slots: Given = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job on a bundle, with its images and clips read.

    Attributes:
        program: the steps, with the latent frames of what is given.
        geometry: of the video.
        clips: at the video's size.
        held: what is given as latent frames; None where nothing is.
    """

    program: Program
    geometry: Geometry
    clips: Sequence[GivenClip]
    held: Held | Referenced | None

    @property
    def extra(self) -> int:
        """How many latent frames are put before the video's own."""
        return 0 if self.held is None else self.held.extra

    @property
    def times(self) -> tuple[float, ...] | None:
        """Of every latent frame, in frames of the video; None where they are those of the video alone."""
        return None if self.held is None else self.held.times

    def start(self, seed: int, encode: Encode) -> Start:
        """What the program starts from with the noise of a seed.

        Args:
            encode: the VAE's encoder, as `Pipeline.encode_frames`.
        """
        noise = TorchNormal(seed)
        if self.held is None:
            return Start(latents=noise.normal((1, *self.program.latent_shape)))
        latents, slots = self.held.make(None, noise, encode)
        return Start(latents=latents, slots=slots)


def plan_job(job: Job, manifest: Manifest, clips: Sequence[GivenClip] = ()) -> PlannedJob:
    """Compile a job, and read the images and clips that it names.

    Args:
        clips: that were given beside them as frames, at the video's size.

    Raises:
        UsageError: a job that makes no program, or images that the bundle does not take, or not so.
        FlowBlendingError: a file cannot be read.
    """
    program = compile_job(job, manifest)
    video = geometry_of(manifest.pipeline, program.latent_shape)
    clips = (*clips, *open_given(job.image, (video.width, video.height), video.frames, fit=job.fit))
    if clips and takes_control(manifest.pipeline.conditions):
        check_one_control(job)
    held = plan_given(manifest, program, clips, references=len(job.reference))
    return PlannedJob(program=program if held is None else held.program, geometry=video, clips=clips, held=held)


def check_files(job: Job, manifest: Manifest) -> None:
    """See that videos and reference images of a job are there and can be read; other images `plan_job` reads.

    Raises:
        FlowBlendingError: one is not.
    """
    for file in (job.video, job.mask):
        if file is not None:
            shown_size(Path(file))
    for each in job.reference:
        check_reference(Path(each), manifest.pipeline.spatial_factor)


def check_prompt(job: Job, manifest: Manifest) -> None:
    """All of a job of a prompt file that can be refused before any work.

    Raises:
        UsageError: it makes no program, or lacks an image without which the bundle makes no video.
        FlowBlendingError: a file cannot be read.
    """
    check_given(job, manifest)
    plan_job(job, manifest)
    check_files(job, manifest)


def begins_from_video(job: Job, manifest: Manifest) -> bool:
    """Whether a run leaves out steps, since it begins from a video; of models that take a control, none does."""
    return job.video is not None and not takes_control(manifest.pipeline.conditions)
