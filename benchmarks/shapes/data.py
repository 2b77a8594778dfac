"""Batches: scenes drawn from a seed and a step, their clips and their attributes as class numbers.

A batch depends on (seed, task, step) alone, so that an interrupted training goes on with the very numbers that an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.shapes.networks import FRAMES, HEIGHT, WIDTH
from benchmarks.shapes.render import render
from benchmarks.shapes.scene import BACKGROUNDS, COLOURS, KINDS, MOTIONS, RELATIONS, Scene, draw

_LOOK = (("none", *COLOURS), ("none", *KINDS), ("none", *MOTIONS))
ATTRIBUTES: tuple[tuple[str, ...], ...] = (*_LOOK, *_LOOK, ("none", *RELATIONS), tuple(BACKGROUNDS), tuple(BACKGROUNDS))
"""The classes of every attribute: colour, kind and motion of both shapes, relation, background's top and bottom."""


def scenes(key: Sequence[int], count: int, *, held_out: bool = False) -> list[Scene]:
    """``count`` random scenes; equal keys give equal scenes."""
    generator = np.random.default_rng(list(key))
    return [draw(generator, held_out=held_out) for _ in range(count)]


def clips(batch: Sequence[Scene], *, frames: int = FRAMES, first: Sequence[int] | None = None) -> torch.Tensor:
    """The scenes' clips, fp32 in [-1, 1], [B, 3, frames, 64, 64].

    Args:
        batch: the scenes.
        frames: how many of each clip's frames to take.
        first: the first frame taken of each clip; 0 by default.
    """
    starts = [0] * len(batch) if first is None else first
    whole = (render(scene, frames=FRAMES, width=WIDTH, height=HEIGHT) for scene in batch)
    taken = np.stack([clip[start : start + frames] for clip, start in zip(whole, starts, strict=True)])
    return torch.from_numpy(taken).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1


def classes(scene: Scene) -> tuple[int, ...]:
    """The scene's class of each of `ATTRIBUTES`."""
    words: list[str] = []
    for index in range(2):
        shape = scene.shapes[index] if index < len(scene.shapes) else None
        words += [shape.colour, shape.kind, shape.motion] if shape else ["none"] * 3
    words += [scene.relation or "none", *scene.background]
    return tuple(names.index(word) for names, word in zip(ATTRIBUTES, words, strict=True))


def class_tensor(batch: Sequence[Scene]) -> torch.Tensor:
    """`classes` of every scene, int64 [B, 9]."""
    return torch.tensor([classes(scene) for scene in batch])
