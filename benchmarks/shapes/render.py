"""Draws a scene as frames: analytic signed distances, anti-aliased over one pixel, no image library."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from benchmarks.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, Scene, Shape

Plane = npt.NDArray[np.float32]


def _circle(x: Plane, y: Plane) -> Plane:
    return np.hypot(x, y) - 1


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(np.sqrt(np.pi) / 2)


def _triangle(x: Plane, y: Plane) -> Plane:
    # Equilateral, pointing up: the distance to the farthest of three lines, all `inner` from the centre.
    inner = np.float32(np.sqrt(np.pi / (3 * np.sqrt(3))))
    slope = np.float32(np.sqrt(3) / 2)
    return np.maximum(y, np.maximum(slope * x - y / 2, -slope * x - y / 2)) - inner


def _cross(x: Plane, y: Plane) -> Plane:
    # Two bars, three times as long as wide: five squares of side 2 * half.
    half = np.float32(np.sqrt(np.pi / 20))
    wide, high = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(wide - 3 * half, high - half), np.maximum(wide - half, high - 3 * half))


DISTANCES: Mapping[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
"""Signed distance (negative inside) to each kind, of the unit disk's area, from coordinates in radii, y down."""


def centre(shape: Shape, time: float) -> tuple[float, float]:
    """Where the shape is at ``time`` in 0..1, in units of the frame."""
    x, y = MOTIONS[shape.motion]
    return shape.start[0] + x * shape.travel * time, shape.start[1] + y * shape.travel * time


def coverage(kind: str, at: tuple[float, float], radius: float, size: tuple[int, int]) -> Plane:
    """How much of each pixel a shape covers, 0..1, [H, W].

    Args:
        kind: a key of `DISTANCES`.
        at: centre in units of the frame.
        radius: in units of the frame's width.
        size: (width, height) in pixels.
    """
    width, height = size
    x = (np.arange(width, dtype=np.float32) + 0.5) / width - at[0]
    y = (np.arange(height, dtype=np.float32) + 0.5) / height - at[1]
    across, down = (axis.astype(np.float32) for axis in np.meshgrid(x / radius, y * height / (radius * width)))
    covered: Plane = np.clip(0.5 - DISTANCES[kind](across, down) * radius * width, 0, 1).astype(np.float32)
    return covered


def render(scene: Scene, *, frames: int, width: int, height: int) -> npt.NDArray[np.float32]:
    """The clip, sRGB in 0..1, [frames, height, width, 3], fp32."""
    top, bottom = (np.asarray(BACKGROUNDS[name], np.float32) for name in scene.background)
    down = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None, None]
    ground = np.broadcast_to(top + (bottom - top) * down, (height, width, 3))
    clip = np.empty((frames, height, width, 3), np.float32)
    for index in range(frames):
        picture = ground
        for shape in scene.shapes:
            at = centre(shape, index / max(frames - 1, 1))
            covered = coverage(shape.kind, at, shape.radius, (width, height))[..., None]
            picture = picture + (np.asarray(COLOURS[shape.colour], np.float32) - picture) * covered
        clip[index] = picture
    return clip / np.float32(255)
