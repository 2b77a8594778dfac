"""A call's arrays, as torch or another library has them, on the bundle's device: noise and embeddings of each video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowblending import UsageError
from flowblending.contracts.program import COND, UNCOND
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.diffusers.classes import class_of
from flowblending.runtime.diffusers.latents import as_type, rows_of, unpacked
from flowblending.runtime.diffusers.noise import draw_noise
from flowblending.runtime.events import Embedding
from flowblending.runtime.given import given_embedding, given_latents
from flowblending.runtime.given_images import given_image
from flowblending.runtime.jobs import job_geometry
from flowblending.runtime.media.noise import Normal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.sampler.binding import Conditions


def count_embedded(given: Mapping[str, Any]) -> int:
    """How many prompts a call gives as embeddings; 0 where it gives texts.

    Raises:
        UsageError: it gives a text twice, or a mask without the embedding that it is of.
    """
    for name in ("prompt", "negative_prompt"):
        embeds, mask = given[f"{name}_embeds"], given[f"{name}_attention_mask"]
        if given[name] is not None and embeds is not None:
            raise UsageError(f"{name} and {name}_embeds were both given; give one of them.")
        if embeds is None and mask is not None:
            raise UsageError(f"{name}_attention_mask was given without {name}_embeds; give both, or neither.")
    embeds = given["prompt_embeds"]
    if embeds is None:
        return 0
    shape = tuple(getattr(embeds, "shape", ()))
    if len(shape) != 3 or shape[0] < 1:
        raise UsageError(
            f"prompt_embeds has the shape {list(shape)}, but [prompts, tokens, width] was expected; give what "
            "encode_prompt of diffusers gives, for example."
        )
    return int(shape[0])


def read_embeddings(pipeline: Pipeline, given: Mapping[str, Any], prompts: int, repeats: int) -> list[Conditions]:
    """The embeddings of each video of a call, by branch; of a branch whose text is encoded there is none.

    Args:
        given: the call's arguments.
        prompts: that it has.
        repeats: videos for each of them.

    Raises:
        UsageError: arrays that do not fit.
    """
    found: list[dict[str, dict[str, Tensor]]] = [{} for _ in range(prompts)]
    for branch, name in ((COND, "prompt"), (UNCOND, "negative_prompt")):
        embeds, mask = given[f"{name}_embeds"], given[f"{name}_attention_mask"]
        if embeds is None:
            continue
        texts = rows_of(embeds, prompts, f"{name}_embeds")
        masks = [None] * prompts if mask is None else rows_of(mask, prompts, f"{name}_attention_mask")
        for each, text, padding in zip(found, texts, masks, strict=True):
            embedding = Embedding(
                text=as_type(text, "float32"), mask=None if padding is None else as_type(padding, "int64")
            )
            each[branch] = given_embedding(pipeline, embedding, name.replace("_", " "))
    return [each for each in found for _ in range(repeats)]


def read_images(
    pipeline: Pipeline, given: Mapping[str, Any], jobs: Sequence[Job], prompts: int
) -> list[tuple[GivenClip, ...]]:
    """The images of each video of a call: one for all, or one for each prompt.

    Raises:
        UsageError: what is no image, or not so many.
    """
    video = job_geometry(jobs[0], pipeline.bundle.manifest)
    found: list[tuple[GivenClip, ...]] = [()] * len(jobs)
    for name, frame in (("image", 0), ("last_image", video.frames - 1)):
        images = given[name]
        if images is None:
            continue
        several = list(images) if isinstance(images, list | tuple) else [images] * prompts
        if len(several) != prompts:
            raise UsageError(
                f"{name} is a list of {len(several)}, but there are {prompts} prompts; give one, or as many."
            )
        made = [given_image(each, name, (video.width, video.height), frame=frame, fit=jobs[0].fit) for each in several]
        found = [(*clips, made[index * prompts // len(jobs)]) for index, clips in enumerate(found)]
    return found


def read_noise(
    pipeline: Pipeline, jobs: Sequence[Job], latents: Any, streams: Sequence[Normal], *, drawn: bool = True
) -> Sequence[Tensor | None]:
    """What each video's sampling starts from: latents that were given, else what is drawn.

    Args:
        drawn: whether noise is drawn here; else it is None, and drawn after what the encoder of an image draws.

    Raises:
        UsageError: a video that the bundle does not make, latents that do not fit, or for which its class of
            diffusers has no use.
    """
    manifest = pipeline.bundle.manifest
    shape = job_geometry(jobs[0], manifest).latent_shape
    if latents is None and not drawn:
        return [None] * len(jobs)
    if latents is None:
        return [pipeline.device.upload(each) for each in draw_noise(streams, shape)]
    if not class_of(manifest.pipeline.pipeline).takes_latents:
        raise UsageError(
            f"latents cannot be honoured: {manifest.pipeline.pipeline}, which this bundle stands in for, starts from "
            "noise of its generator unless they hold an image or a video; give a generator."
        )
    videos = rows_of(latents, len(jobs), "latents")
    return [
        given_latents(pipeline, as_type(unpacked(each, shape, "latents"), "float32"), "array of latents", (1, *shape))
        for each in videos
    ]
