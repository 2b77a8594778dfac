"""From pixels and frames to latents and back: which videos a family can make, and the nearest when it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from flowblending import UsageError
from flowblending.contracts.graph import (
    DECODERS,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    VAE_ENCODER,
    VAE_ENCODER_FIRST,
    VAE_ENCODER_NEXT,
    VAE_FIRST,
    VAE_NEXT,
    PipelineSpec,
    is_transformer,
)
from flowblending.contracts.manifest import Geometry, VideoProfile
from flowblending.contracts.tiling import Span, Tiling
from flowblending.engine.backends.protocol import Range, ShapeProfile

_Value = TypeVar("_Value")

Size = tuple[int, int]
"""Width and height."""

_SPAN = ".."
_NUMBER = r"[0-9]{1,5}"


def plan_profiles(pipeline: PipelineSpec, sizes: str | None, frames: str | int | None) -> tuple[VideoProfile, ...]:
    """The videos of a bundle: every size that was asked for, with every number of frames.

    Args:
        pipeline: of the family.
        sizes: ``832x480``, several with commas between them, and ranges among them: ``480x288..832x480``, or with what
            the engines are to be fastest at in the middle, ``480x288..640x384..832x480``; that is the largest unless
            it is said. None takes the family's default.
        frames: likewise, such as ``17..81``.

    Raises:
        UsageError: what cannot be read, a size that the VAE and the transformer's patches do not divide, frames other
            than ``temporal_factor * k + 1``, or a range that does not go from the smallest to the largest. The message
            names the nearest that works.
    """
    default = (pipeline.width, pipeline.height)
    size_spans = [(default,) * 3] if sizes is None else _spans(sizes, "--size", parse_size)
    frame_spans = [(pipeline.frames,) * 3] if frames is None else _spans(str(frames), "--frames", _parse_frames)
    profiles = dict.fromkeys(
        _profile(pipeline, size_span, frame_span) for size_span in size_spans for frame_span in frame_spans
    )
    return tuple(profiles)


def plan_geometry(pipeline: PipelineSpec, size: Size, frames: int) -> Geometry:
    """The geometry of a video.

    Raises:
        UsageError: see `plan_profiles`.
    """
    width, height = size
    wide, high = size_steps(pipeline)
    if width < 1 or height < 1 or width % wide or height % high:
        near = f"{_nearest(width, wide)}x{_nearest(height, high)}"
        raise UsageError(
            f"Size {width}x{height} was given, but {pipeline.family} needs a width divisible by {wide} "
            f"and a height divisible by {high}; try --size {near}."
        )
    factor = pipeline.temporal_factor
    if frames < 1 or (frames - 1) % factor:
        raise UsageError(
            f"{frames} frames were given, but {pipeline.family} makes {factor}k+1 frames; "
            f"try --frames {max(0, round((frames - 1) / factor)) * factor + 1}."
        )
    return Geometry(
        width=width,
        height=height,
        frames=frames,
        latent_shape=(
            pipeline.latent_channels,
            (frames - 1) // factor + 1,
            height // pipeline.spatial_factor,
            width // pipeline.spatial_factor,
        ),
    )


def geometry_of(pipeline: PipelineSpec, latent_shape: Sequence[int]) -> Geometry:
    """The geometry of the video that latents [C, F, H, W] become."""
    channels, frames, height, width = latent_shape
    return Geometry(
        width=width * pipeline.spatial_factor,
        height=height * pipeline.spatial_factor,
        frames=(frames - 1) * pipeline.temporal_factor + 1,
        latent_shape=(channels, frames, height, width),
    )


def size_steps(pipeline: PipelineSpec) -> Size:
    """What widths and heights are multiples of."""
    return pipeline.spatial_factor * pipeline.patch[2], pipeline.spatial_factor * pipeline.patch[1]


def shape_profiles(
    component: str,
    pipeline: PipelineSpec,
    profiles: Sequence[VideoProfile],
    *,
    any_size: bool = False,
    tiling: Tiling | None = None,
) -> tuple[ShapeProfile, ...]:
    """The sizes that a component is compiled for: one optimization profile each.

    Transformers take one latent or, where guidance is batched, both of its branches in one call. The number of latents
    is fixed in each profile: scratch memory is that of the largest sizes of a profile, and fixed sizes have the faster
    kernels. A text encoder does not depend on the video, and decoders that go from latent frame to latent frame not on
    its length, so that they may have fewer profiles.

    Args:
        component: its name.
        pipeline: of the family.
        profiles: the videos.
        any_size: the engine takes every size: one profile has both numbers of latents.
        tiling: the tiles that videos are decoded in; None for whole frames.
    """
    found: list[ShapeProfile] = []
    for each in profiles:
        for batch in _batches(component, pipeline, any_size):
            shapes = ShapeProfile({**batch, **_symbols(component, pipeline, each, tiling)})
            if shapes not in found:
                found.append(shapes)
    # The same plan, whichever of its videos comes first.
    return tuple(sorted(found, key=lambda each: [(size.max, size.opt, size.min) for size in each.symbols.values()]))


def _batches(component: str, pipeline: PipelineSpec, any_size: bool) -> list[dict[str, Range]]:
    """How many latents a call takes: one profile each."""
    if not is_transformer(component):
        return [{}]
    if any_size:
        return [{"batch": Range(min=1, opt=2 if pipeline.batched_guidance else 1, max=2)}]
    return [{"batch": Range.fixed(size)} for size in ((1, 2) if pipeline.batched_guidance else (1,))]


def _symbols(component: str, pipeline: PipelineSpec, profile: VideoProfile, tiling: Tiling | None) -> dict[str, Range]:
    ranges = [
        Range(min=low, opt=usual, max=high)
        for low, usual, high in zip(*(end.latent_shape for end in (profile.min, profile.opt, profile.max)), strict=True)
    ]
    _, frames, height, width = ranges
    if component in DECODERS and tiling is not None:
        factor, (_, rows, columns) = pipeline.spatial_factor, pipeline.patch
        height = _of_tiles(height, rows, lambda size: tiling.rows(size, factor))
        width = _of_tiles(width, columns, lambda size: tiling.columns(size, factor))
    if component in (TEXT_ENCODER, IMAGE_ENCODER):
        return {"batch": Range.fixed(1)}
    if component in (VAE_FIRST, VAE_NEXT, VAE_ENCODER_FIRST, VAE_ENCODER_NEXT):
        return {"height": height, "width": width}
    if is_transformer(component):
        # Latent frames of what is given may be put before the video's own.
        room = max((each.room for each in pipeline.conditions), default=0)
        frames = Range(min=frames.min, opt=frames.opt, max=frames.max + room)
    if component == VAE_ENCODER:
        # An image is a clip of one frame.
        frames = Range(min=1, opt=1, max=frames.max)
    return {"frames": frames, "height": height, "width": width}


def _of_tiles(sizes: Range, step: int, spans: Callable[[int], Sequence[Span]]) -> Range:
    """What the tiles of videos measure in one direction, in latent pixels; the larger ones are the most usual.

    Args:
        sizes: of the videos.
        step: between two of them.
        spans: where the tiles of one lie.
    """
    lengths = [span.length for size in range(sizes.min, sizes.max + 1, step) for span in spans(size)]
    usual = max(span.length for span in spans(sizes.opt))
    return Range(min=min(lengths), opt=usual, max=max(lengths))


def parse_size(text: str, example: str = "832x480") -> Size:
    """Read ``832x480``.

    Args:
        text: to be read.
        example: a size that would do, for the message.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(rf"({_NUMBER})[xX]({_NUMBER})", text.strip())
    if match is None:
        raise UsageError(
            f"Size {_short(text)} was given, but WIDTHxHEIGHT in pixels was expected, each below 100000; "
            f"try --size {example}."
        )
    return int(match[1]), int(match[2])


def _parse_frames(text: str) -> int:
    match = re.fullmatch(rf"-?{_NUMBER}", text.strip())
    if match is None:
        raise UsageError(
            f"Frames {_short(text)} were given, but a whole number below 100000 was expected; try --frames 81."
        )
    return int(match[0])


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _spans(text: str, option: str, parse: Callable[[str], _Value]) -> list[tuple[_Value, _Value, _Value]]:
    """The ranges that a text asks for: the smallest, the most usual and the largest of each."""
    spans = []
    for item in text.split(","):
        ends = [parse(end) for end in item.split(_SPAN)]
        if len(ends) > 3:
            raise UsageError(
                f"{option} {item.strip()} names {len(ends)} values, but MIN..MAX or MIN..OPT..MAX was expected."
            )
        spans.append((ends[0], ends[len(ends) // 2], ends[-1]))
    return spans


def _profile(pipeline: PipelineSpec, sizes: tuple[Size, Size, Size], frames: tuple[int, int, int]) -> VideoProfile:
    least, usual, most = (plan_geometry(pipeline, size, count) for size, count in zip(sizes, frames, strict=True))
    for low, high in ((least, usual), (usual, most)):
        if low.width > high.width or low.height > high.height or low.frames > high.frames:
            raise UsageError(
                f"The range from {low} to {high} was asked for, but width, height and frames must not become smaller; "
                "name the smallest first, and separate sizes that stand alone with commas."
            )
    return VideoProfile(min=least, opt=usual, max=most)


def _nearest(value: int, step: int) -> int:
    return max(1, round(value / step)) * step
