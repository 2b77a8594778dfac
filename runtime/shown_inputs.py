"""What transformers are shown of images and videos, beside latents and text: VACE's control, or image channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending.contracts.conditions import (
    CONTROL,
    CONTROL_SCALE,
    IMAGE_CHANNELS,
    IMAGE_TOKENS,
    images_taken,
    is_shown,
    own_input,
    takes_control,
    takes_image_channels,
    takes_image_tokens,
)
from flowblending.contracts.manifest import Geometry, Manifest
from flowblending.runtime.conditions.control_clip import read_control
from flowblending.runtime.conditions.encoder import Frames
from flowblending.runtime.conditions.given import GivenClip, open_given
from flowblending.runtime.conditions.image_channels import check_places, image_channels
from flowblending.runtime.conditions.vace import control, frames_given
from flowblending.runtime.jobs import job_scales
from flowblending.runtime.media.reference_image import read_reference
from flowblending.runtime.options import Job

Floats = npt.NDArray[np.float32]
Inputs = dict[str, Floats]
"""By input, the same for every branch."""


def shown_inputs(
    job: Job,
    manifest: Manifest,
    video: Geometry,
    encode: Callable[[Frames], Floats],
    see: Callable[[Sequence[GivenClip]], Floats],
    *,
    frame_rate: float,
    warn: Callable[[str], None],
    clips: Sequence[GivenClip] | None = None,
) -> Inputs:
    """The inputs of images and videos that a bundle's transformers take; nothing for those that take text alone.

    Args:
        video: that is made.
        encode: gives the latents float32 [1, C, F, H, W] of frames; see `VaeEncoder.encode`.
        see: gives the tokens float32 [1, N, W] of images, as CLIP has them; see `ImageEncoder.tokens`.
        frame_rate: of the video.
        warn: told what a user should know of how a control's files are taken.
        clips: images at the video's size; None for those that the job names.

    Raises:
        FlowBlendingError: a file cannot be read, or does not fit the video.
    """
    pipeline = manifest.pipeline
    factors = pipeline.temporal_factor, pipeline.spatial_factor
    size = video.width, video.height
    if clips is None and is_shown(pipeline.conditions):
        clips = open_given(job.image, size, video.frames, fit=job.fit)
    if takes_control(pipeline.conditions):
        if clips:
            values, mask = frames_given(clips, video.frames, *size)
        else:
            values, mask = read_control(
                job.video, job.mask, video, fit=job.fit, resample=job.resample_fps, frame_rate=frame_rate, warn=warn
            )
        references = _references(job, size, factors[1], warn)
        scales = {own_input(model, CONTROL_SCALE): scale for model, scale in job_scales(job, manifest).items()}
        return {CONTROL: control(values, mask, references, encode, factors), **scales}
    if takes_image_channels(pipeline.conditions):
        clips = clips or ()
        check_places(clips, video.frames, images_taken(pipeline.conditions))
        seen = {IMAGE_TOKENS: see(clips)} if takes_image_tokens(pipeline.conditions) else {}
        return {IMAGE_CHANNELS: image_channels(clips, video.frames, encode, factors), **seen}
    return {}


def _references(job: Job, size: tuple[int, int], factor: int, warn: Callable[[str], None]) -> list[Floats]:
    """The reference images of a job on white, float32 [3, H, W] each."""
    found = []
    for each in job.reference:
        image, notes = read_reference(Path(each), size, factor)
        found.append(image)
        for note in notes:
            warn(note)
    return found
