"""How what is given to a job becomes what the models of a bundle take: the recipe of its conditions."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending import UsageError
from flowblending.contracts.conditions import (
    PIXELS,
    Condition,
    Source,
    images_taken,
    pixel_sources,
    takes_control,
    takes_image_channels,
)
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import Program
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.conditions.held import FIRST, FRAMES, Held, plan_held
from flowblending.runtime.conditions.image_channels import check_places
from flowblending.runtime.conditions.references import Referenced, with_references
from flowblending.runtime.conditions.vace import check_frames

_PLANS = {FIRST: plan_held, FRAMES: plan_held}
"""By recipe."""


def check_taken(manifest: Manifest, source: Source) -> None:
    """Refuse a kind of image or video that a bundle does not take.

    Raises:
        UsageError: it does not; the message lists those that it does, or says how to build them in.
    """
    able = pixel_sources(manifest.pipeline.conditions)
    if source in able:
        return
    article = "an" if source is Source.IMAGE else "a"
    if able:
        raise UsageError(
            f"{article.capitalize()} {source} was given, but this bundle takes {' and '.join(able)} beside text; leave "
            "it out."
        )
    raise UsageError(
        f"{article.capitalize()} {source} was given, but this bundle takes text alone (of {', '.join(PIXELS)} nothing "
        f"is built in); build it again with --conditions {source}, where its models take that."
    )


def plan_given(
    manifest: Manifest, program: Program, clips: Sequence[GivenClip], references: int = 0
) -> Held | Referenced | None:
    """What becomes of a program where images and clips are given; None where it stays as it is.

    Args:
        references: how many reference images are given.

    Raises:
        UsageError: the bundle does not take them, or not so, or makes no video without.
    """
    pipeline = manifest.pipeline
    frames = (program.latent_shape[1] - 1) * pipeline.temporal_factor + 1
    if takes_image_channels(pipeline.conditions):
        check_places(clips, frames, images_taken(pipeline.conditions))
        return None
    if takes_control(pipeline.conditions):
        if clips:
            check_taken(manifest, Source.IMAGE)
        check_frames(clips, frames)
        return Referenced(program=with_references(program, references)) if references else None
    if not clips:
        return None
    for clip in clips:
        check_taken(manifest, Source.IMAGE if clip.still else Source.VIDEO)
    condition = next(each for each in manifest.pipeline.conditions if _made(each))
    return _PLANS[condition.recipe](condition, manifest.pipeline, program, clips)


def _made(condition: Condition) -> bool:
    return condition.recipe in _PLANS
