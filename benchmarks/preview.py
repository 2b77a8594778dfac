"""What previews are worth: how much of a video's pixels they tell, step by step, and a picture of some.

    python -m benchmarks.preview demo/bundle --picture docs/preview.jpg

Videos of prompts are sampled with a preview of every step, and decoded. A preview is compared with the decoded frames
that its latent frame stands for, averaged to its size, by the share of their variance that it explains (R^2).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.contact_sheet import layout, save_picture
from benchmarks.schedules.run import prompts
from flowblending.contracts.graph import PipelineSpec
from flowblending.export.preview.fit import averaged, cells
from flowblending.runtime import api
from flowblending.runtime.api import FramesEvent, LatentsEvent, PreviewEvent, VideoSampler

SHOWN = (1, 4, 8, 16, 24, 40)
"""Steps in the picture."""
CELL = 128
"""Pixels of a picture's cell."""

Picture = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.float64]


def explained(found: Pixels, expected: Pixels) -> float:
    """The share of the variance of pixels [n, 3], over places and colours apart, that others tell."""
    return float(1 - ((found - expected) ** 2).sum() / ((expected - expected.mean(axis=0)) ** 2).sum())


def seen(frames: npt.NDArray[np.float32], pipeline: PipelineSpec) -> Pixels:
    """Frames [3, F, H, W] as previews of all latent frames should be, [f, h, w, 3] from 0 to 255."""
    means = averaged((frames.astype(np.float64).clip(-1, 1) + 1) * 127.5, pipeline)
    count, height, width, _ = means.shape
    side = cells(pipeline.spatial_factor)
    grid = means.reshape(count, height, width, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(count, height * side, width * side, 3).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A video.

    Attributes:
        pictures: its previews by step, from 1 on.
        found: the previews of all latent frames of the result, [f, h, w, 3] from 0 to 255.
        expected: what they should be.
        middle: the middle frame.
    """

    pictures: Mapping[int, Picture]
    found: Pixels
    expected: Pixels
    middle: Picture


def watch(sampler: VideoSampler, prompt: str, seed: int, steps: int) -> Watched:
    """Make a video with a preview of every step."""
    pictures, chunks, latents = {}, [], None
    for event in sampler.generate(prompt, seed=seed, steps=steps, preview_every=1):
        if isinstance(event, PreviewEvent):
            pictures[event.index + 1] = event.picture
        elif isinstance(event, LatentsEvent):
            latents = event.latents.numpy()[0].copy()
        elif isinstance(event, FramesEvent):
            chunks.append(event)
    told = sampler.pipeline.preview_map()
    assert latents is not None
    assert told is not None
    expected = seen(np.concatenate([each.frames for each in chunks], axis=1), sampler.manifest.pipeline)
    found = np.stack([told.picture(latents[:, frame]) for frame in range(latents.shape[1])]).astype(np.float64)
    images = np.concatenate([each.images() for each in chunks])
    return Watched(pictures=pictures, found=found, expected=expected, middle=images[len(images) // 2])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, help="of the shapes pair, such as make demo builds")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--picture", type=Path, help="where to write a picture of the first three")
    given = parser.parse_args(arguments)
    asked = prompts(given.prompts, 6)
    with api.open(given.bundle, threads=1) as sampler:
        videos = [watch(sampler, prompt.text, prompt.seed, given.steps) for prompt in asked]
    whole = explained(_pixels(each.found for each in videos), _pixels(each.expected for each in videos))
    print(f"finished latents, all frames: {whole:.2f} of the variance")
    middles = _pixels(each.expected[len(each.expected) // 2] for each in videos)
    for step in sorted(set.intersection(*(set(each.pictures) for each in videos))):
        early = _pixels(each.pictures[step].astype(np.float64) for each in videos)
        print(f"step {step:3} of {given.steps}: {explained(early, middles):.2f}")
    if given.picture is not None:
        shown = [step for step in SHOWN if step in videos[0].pictures]
        rows = [
            [*(_enlarged(each.pictures[step], smooth=True) for step in shown), _enlarged(each.middle, smooth=False)]
            for each in videos[:3]
        ]
        above = [*(f"step {step}" for step in shown), "decoded"]
        save_picture(given.picture, layout(rows, above=above, left=[each.text for each in asked[:3]]))


def _pixels(pictures: Iterable[Pixels]) -> Pixels:
    return np.concatenate([each.reshape(-1, 3) for each in pictures])


def _enlarged(picture: Picture, *, smooth: bool) -> Picture:
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((CELL, CELL), how))


if __name__ == "__main__":
    main()
