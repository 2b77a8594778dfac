"""What the tests of the shapes share: scenes, their clips, and what a decoder would make of these."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.shapes.adherence import Adherence, adherence
from benchmarks.shapes.judge import read
from benchmarks.shapes.render import render
from benchmarks.shapes.scene import MOTIONS, Scene, Shape, draw

Clip = npt.NDArray[np.float32]


def scenes(seed: int, count: int, *, held_out: bool = False) -> list[Scene]:
    generator = np.random.default_rng(seed)
    return [draw(generator, held_out=held_out) for _ in range(count)]


def one(colour: str = "red", kind: str = "circle", motion: str = "moves right", background: str = "gray") -> Scene:
    x, y = MOTIONS[motion]
    start = (0.5 - 0.2 * x, 0.5 - 0.2 * y)
    shape = Shape(colour=colour, kind=kind, motion=motion, radius=0.16, start=start, travel=0.4)
    return Scene(shapes=(shape,), relation=None, background=(background, background))


def two() -> Scene:
    left = Shape(colour="red", kind="circle", motion="moves up", radius=0.13, start=(0.24, 0.7), travel=0.4)
    right = Shape(colour="blue", kind="cross", motion="stays still", radius=0.13, start=(0.76, 0.5), travel=0.4)
    return Scene(shapes=(left, right), relation="left of", background=("white", "black"))


def film(scene: Scene, size: tuple[int, int, int] = (13, 64, 64)) -> Clip:
    frames, height, width = size
    return render(scene, frames=frames, width=width, height=height)


def judge(clip: npt.NDArray[np.floating], scene: Scene) -> Adherence:
    return adherence(read(clip), scene)


def degrade(clip: Clip, seed: int) -> Clip:
    """Blurred (Gaussian, sigma 0.7 pixels) and noisy (sigma 0.027), at about 30 dB, like a decoder's output."""
    for axis in (1, 2):
        places = np.arange(clip.shape[axis])
        weights = np.exp(-((places[:, None] - places) ** 2) / (2 * 0.7**2)).astype(np.float32)
        weights /= weights.sum(1, keepdims=True)
        clip = np.moveaxis(np.moveaxis(clip, axis, -1) @ weights.T, -1, axis)
    noise = np.random.default_rng(seed).standard_normal(clip.shape, np.float32)
    return np.clip(clip + np.float32(0.027) * noise, 0, 1)
