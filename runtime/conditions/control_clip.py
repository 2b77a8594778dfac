"""The video and the mask that a control is made of, read from their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending.contracts.manifest import Geometry
from flowblending.runtime.conditions.start import check_length, doubts
from flowblending.runtime.conditions.vace import free_frames, given
from flowblending.runtime.media.clip import check_mask
from flowblending.runtime.media.read_clip import read_clip

Floats = npt.NDArray[np.float32]


def read_control(
    video: str | None,
    mask: str | None,
    geometry: Geometry,
    *,
    fit: str,
    resample: float | None,
    frame_rate: float,
    warn: Callable[[str], None],
) -> tuple[Floats, Floats]:
    """Pixels [1, 3, F, H, W] in [-1, 1] and mask [1, 1, F, H, W], 1 where pixels are made anew.

    Args:
        video: its file, or a folder of images; None for a video of which nothing is given.
        mask: likewise, white where the video is made anew; None for everywhere.
        geometry: of the video that is made.
        fit: how pictures come to its size.
        resample: frames per second at which they are taken.
        frame_rate: of the video that is made.
        warn: told what a user should know of how they are taken.

    Raises:
        FlowBlendingError: a file is missing or cannot be read, has too few frames, or the mask does not fit.
    """
    size = geometry.width, geometry.height
    if video is None:
        return free_frames(geometry.frames, *size)
    clip = read_clip(Path(video), size, fit=fit, most=geometry.frames, resample=resample)
    check_length(clip, geometry)
    for line in doubts(clip, frame_rate):
        warn(line)
    if mask is None:
        return given(clip.frames, None)
    grey = read_clip(Path(mask), size, fit=fit, most=geometry.frames, resample=resample, grey=True)
    return given(clip.frames, check_mask(grey, clip).frames)
