"""Which of a bundle's videos a run makes, and the nearest that it could make instead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from flowblending import UsageError
from flowblending.contracts.graph import PipelineSpec
from flowblending.contracts.manifest import Geometry, Manifest, VideoProfile, count_frames
from flowblending.engine.bundle.geometry import geometry_of, parse_size, plan_geometry, size_steps


def choose_geometry(manifest: Manifest, size: str | None, frames: int | None) -> Geometry:
    """The geometry of a run.

    Args:
        manifest: of the bundle.
        size: ``832x480``; None takes the default's, or what is nearest to it with these frames.
        frames: of the video; None likewise.

    Raises:
        UsageError: the bundle was built for no such video; the message names the nearest that it makes.
    """
    if not isinstance(size, str | None) or isinstance(frames, bool) or not isinstance(frames, int | None):
        raise UsageError(
            f"Size {size!r} and frames {frames!r} were given, but a text such as '832x480' and a number were expected."
        )
    default = manifest.geometry
    width, height = (None, None) if size is None else parse_size(size, default.size)
    asked = (width, height, frames)
    wanted = tuple(usual if value is None else value for value, usual in zip(asked, _numbers(default), strict=True))
    near = _nearest(manifest, asked, wanted)
    if all(value in (None, got) for value, got in zip(asked, _numbers(near), strict=True)):
        return near
    words = [f"size {width}x{height}"] if size is not None else []
    words += [count_frames(str(frames))] if frames is not None else []
    text, verb = " and ".join(words), "was" if frames in (None, 1) and len(words) == 1 else "were"
    raise UsageError(
        f"{text[0].upper()}{text[1:]} {verb} asked for, but this bundle makes {listed(manifest)}; "
        f"the nearest is --size {near.size} --frames {near.frames}."
    )


def nearest_shape(manifest: Manifest, shown: tuple[int, int], frames: int | None) -> Geometry:
    """The geometry of a run that is nearest in shape to a picture.

    Shape counts first, then the default's number of pixels: of sizes, the one with the least distance between the
    logarithms of width over height, and a quarter of that between the logarithms of their pixels and the default's.

    Args:
        manifest: of the bundle.
        shown: width and height of the picture, in pixels.
        frames: of the video; None for what is nearest to the default's.

    Raises:
        UsageError: the bundle was built for no video of so many frames; the message names the nearest that it makes.
    """
    usual, aspect = manifest.geometry, math.log(shown[0] / shown[1])

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        width, height = size
        area = abs(math.log(width * height / (usual.width * usual.height)))
        return abs(math.log(width / height) - aspect) + area / 4, width

    able = [each for each in manifest.profiles if frames is None or each.min.frames <= frames <= each.max.frames]
    sizes = {size for each in able or manifest.profiles for size in _sizes(manifest.pipeline, each)}
    width, height = min(sizes, key=distance)
    return choose_geometry(manifest, f"{width}x{height}", frames)


def _sizes(pipeline: PipelineSpec, profile: VideoProfile) -> Iterator[tuple[int, int]]:
    """Every width and height of a profile."""
    wide, high = size_steps(pipeline)
    low, most = profile.min, profile.max
    for width in range(low.width, most.width + 1, wide):
        for height in range(low.height, most.height + 1, high):
            yield width, height


def check_latent_shape(manifest: Manifest, latent_shape: Sequence[int]) -> Geometry:
    """The geometry of the video that latents become.

    Args:
        manifest: of the bundle.
        latent_shape: [C, F, H, W].

    Raises:
        UsageError: the bundle makes no such video.
    """
    whole = all(size % step == 0 for size, step in zip(latent_shape[1:], manifest.pipeline.patch, strict=True))
    if not (whole and any(profile.holds(latent_shape) for profile in manifest.profiles)):
        raise UsageError(
            f"Latents of shape {list(latent_shape)} were given, but this bundle makes {listed(manifest)}, "
            f"from latents of shape {' or '.join(map(_shapes, manifest.profiles))}; give such latents."
        )
    return geometry_of(manifest.pipeline, latent_shape)


def listed(manifest: Manifest) -> str:
    """The videos of a bundle, in words: ``832x480 or 480x832 with 49 or 81 frames``."""
    sizes, lengths = (
        dict.fromkeys(spans) for spans in zip(*((e.sizes, e.lengths) for e in manifest.profiles), strict=True)
    )
    text = f"{' or '.join(sizes)} with {count_frames(' or '.join(lengths))}"
    if len(sizes) * len(lengths) > len(manifest.profiles):
        text = " or ".join(f"{each.sizes} with {count_frames(each.lengths)}" for each in manifest.profiles)
    if all(each.min == each.max for each in manifest.profiles):
        return text
    wide, high = size_steps(manifest.pipeline)
    return f"{text}, in steps of {wide}x{high} pixels and {manifest.pipeline.temporal_factor} frames"


def _shapes(profile: VideoProfile) -> str:
    ends = dict.fromkeys((profile.min.latent_shape, profile.max.latent_shape))
    return " to ".join(str(list(shape)) for shape in ends)


def _nearest(manifest: Manifest, asked: Sequence[int | None], wanted: Sequence[int]) -> Geometry:
    """What is nearest in what was asked for, and then in the rest."""
    found = [_within(manifest.pipeline, profile, wanted) for profile in manifest.profiles]
    return min(found, key=lambda each: (_distance(asked, each), _distance(wanted, each)))


def _within(pipeline: PipelineSpec, profile: VideoProfile, wanted: Sequence[int]) -> Geometry:
    """The geometry of a profile that is nearest to a width, a height and a number of frames."""
    low, high = profile.min, profile.max
    ends = ((low.width, high.width), (low.height, high.height), (low.frames, high.frames))
    steps = (*size_steps(pipeline), pipeline.temporal_factor)
    width, height, frames = (
        least + round((min(max(value, least), most) - least) / step) * step
        for value, (least, most), step in zip(wanted, ends, steps, strict=True)
    )
    return plan_geometry(pipeline, (width, height), frames)


def _distance(asked: Sequence[int | None], geometry: Geometry) -> float:
    """How far a geometry is from width, height and frames: by how many powers of e, added up."""
    values = zip(asked, _numbers(geometry), strict=True)
    return sum(abs(math.log(max(value, 1)) - math.log(found)) for value, found in values if value is not None)


def _numbers(geometry: Geometry) -> tuple[int, int, int]:
    return geometry.width, geometry.height, geometry.frames
