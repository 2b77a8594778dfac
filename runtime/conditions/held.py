"""Images and clips as latents that are held: LTX-Video's image-to-video.

Sources: ``prepare_latents`` of diffusers' pipeline_ltx_condition.py ("held-frames") and pipeline_ltx_image2video.py
("held-first"). Random numbers are drawn in their order, so that a seed gives their video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import Condition, frame_times
from flowblending.contracts.graph import PipelineSpec
from flowblending.contracts.program import Program
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.media.noise import Normal
from flowblending.runtime.program.held import groups_of, held_slot, hold, noise_slot

Floats = npt.NDArray[np.float32]
Encode = Callable[[npt.NDArray[np.uint8], Floats], Floats]
"""From frames and noise like their latents to latents."""

FIRST = "held-first"
FRAMES = "held-frames"

_PREFIX = 2
"""Latent frames of a clip that begins later which are put before the video's own; the class's default."""

_NOISE_SCALE = 0.15
"""``image_cond_noise_scale``, likewise."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A clip, cut to whole latent frames: which of them are put before the video's own, and which are among them."""

    clip: GivenClip
    latent_frames: int
    before: int
    among: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What was given to a run, as its program and its memory have it.

    Attributes:
        program: with the latent frames that are held.
        times: of every latent frame, in frames of the video.
    """

    program: Program
    times: tuple[float, ...]
    items: tuple[_Item, ...]
    strengths: tuple[float, ...]
    latent_shape: tuple[int, int, int, int]
    first: bool

    @property
    def extra(self) -> int:
        """How many latent frames are put before the video's own."""
        return self.program.extra

    def make(self, given: Floats | None, noise: Normal, encode: Encode) -> tuple[Floats, dict[str, Floats]]:
        """Initial latents [1, C, F, H, W] of the program, and what its given slots hold.

        Args:
            given: the noise of the video's own latent frames; None draws it.
            noise: to draw from.
            encode: the VAE's encoder.
        """
        latents = None if self.first else self._own(given, noise)
        before: list[Floats] = []
        encoded = []
        for item in self.items:
            made = encode(item.clip.frames, noise.normal(self._like(item.latent_frames)))
            encoded.append((item, made))
            if latents is None:
                continue
            start, stop = item.among
            strength = np.float32(item.clip.strength)
            latents[:, :, start:stop] = _lerp(latents[:, :, start:stop], made[:, :, item.before :], strength)
            if item.before:
                drawn = noise.normal(self._like(item.before))
                before.append(_lerp(drawn, made[:, :, : item.before], strength))
        if latents is None:
            latents = self._own(given, noise)
            ((_, made),) = encoded
            latents[:, :, :1] = made
        latents = np.ascontiguousarray(np.concatenate([*before, latents], axis=2))
        return latents, self._slots(latents, noise)

    def _slots(self, latents: Floats, noise: Normal) -> dict[str, Floats]:
        slots = {
            held_slot(number): np.ascontiguousarray(latents[:, :, list(frames)])
            for number, (_, frames) in enumerate(groups_of(self.strengths))
        }
        if self.first:
            return slots
        _, channels, frames, height, width = latents.shape
        for index in range(len(self.program.steps)):
            # The class draws for all tokens, whether they take noise or not.
            drawn = noise.normal((1, frames * height * width, channels))
            name = noise_slot(index)
            if name in self.program.partial:
                by_frame = drawn.reshape(1, frames, height, width, channels).transpose(0, 4, 1, 2, 3)
                slots[name] = np.ascontiguousarray(by_frame[:, :, list(self.program.partial[name])])
        return slots

    def _own(self, given: Floats | None, noise: Normal) -> Floats:
        return noise.normal((1, *self.latent_shape)) if given is None else given.copy()

    def _like(self, frames: int) -> tuple[int, ...]:
        channels, _, height, width = self.latent_shape
        return 1, channels, frames, height, width

    def own(self, latents: Floats) -> Floats:
        """The video's latent frames of a result."""
        return np.ascontiguousarray(latents[:, :, self.extra :])


def plan_held(condition: Condition, pipeline: PipelineSpec, program: Program, clips: Sequence[GivenClip]) -> Held:
    """What becomes of a program where clips are given.

    Raises:
        UsageError: one is out of place, or there are more than the models have room for.
    """
    first = condition.recipe == FIRST
    if first:
        _check_first(clips, pipeline)
    items, own, before, times = [], [0.0] * program.latent_shape[1], list[float](), list[float]()
    for clip in clips:
        item = _item(clip, pipeline, program.latent_shape[1])
        items.append(item)
        start, stop = item.among
        own[start:stop] = [clip.strength] * (stop - start)
        before += [clip.strength] * item.before
        times += [time + clip.frame for time in frame_times(item.before, pipeline.temporal_factor)]
    if len(before) > condition.room:
        raise UsageError(
            f"The images and clips for later frames take {len(before)} latent frames, but the models of this bundle "
            f"have room for {condition.room} (one for an image, two for a clip); give fewer of them."
        )
    strengths = (*before, *own)
    return Held(
        program=hold(
            program,
            strengths,
            noise_scale=0.0 if first else _NOISE_SCALE,
            train_timesteps=pipeline.grid.train_timesteps,
            extra=len(before),
        ),
        times=(*times, *frame_times(len(own), pipeline.temporal_factor)),
        items=tuple(items),
        strengths=strengths,
        latent_shape=program.latent_shape,
        first=first,
    )


def _item(clip: GivenClip, pipeline: PipelineSpec, latent_frames: int) -> _Item:
    """A clip in its place.

    Raises:
        UsageError: it does not begin with a latent frame.
    """
    factor = pipeline.temporal_factor
    if clip.frame % factor:
        near = round(clip.frame / factor) * factor
        raise UsageError(
            f"{clip.name} is given for frame {clip.frame}, but latents of {pipeline.family} begin at every {factor}th "
            f"frame; give @{min(near, (latent_frames - 1) * factor)}."
        )
    count = (len(clip.frames) - 1) // factor + 1
    frames = clip.frames[: (count - 1) * factor + 1]
    cut = GivenClip(name=clip.name, frames=frames, frame=clip.frame, strength=clip.strength, still=clip.still)
    if clip.frame == 0:
        return _Item(clip=cut, latent_frames=count, before=0, among=(0, count))
    start = clip.frame // factor + _PREFIX
    before = min(count, _PREFIX)
    return _Item(clip=cut, latent_frames=count, before=before, among=(start, start + count - before))


def _check_first(clips: Sequence[GivenClip], pipeline: PipelineSpec) -> None:
    wrong = next((clip for clip in clips if clip.frame or clip.strength != 1.0 or not clip.still), None)
    if len(clips) > 1 or wrong is not None:
        what = f"{len(clips)} images were given" if wrong is None else f"{wrong.name} was given otherwise"
        raise UsageError(
            f"{what}, but {pipeline.pipeline} takes one image, whole, as the first frame; give that alone, or build "
            "with --pipeline LTXConditionPipeline if the checkpoint is one of LTX-Video 0.9.5 or later."
        )


def _lerp(start: Floats, end: Floats, weight: np.float32) -> Floats:
    """``torch.lerp``: from whichever end is nearer (aten/src/ATen/native/Lerp.h)."""
    if weight < np.float32(0.5):
        return start + weight * (end - start)
    return end - (end - start) * (np.float32(1.0) - weight)
