"""A run that begins from a video: the video is read, encoded, and brought to the noise level of the first step.

Sources: ``prepare_latents`` of diffusers' pipeline_wan_video2video.py and, for latents that are given with a
``denoise_strength``, of pipeline_ltx_condition.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.manifest import Geometry
from flowblending.runtime.media.clip import Clip

Floats = npt.NDArray[np.float32]

_SAME = 0.01
"""Share by which frame rates differ before it is told."""


def check_length(clip: Clip, geometry: Geometry) -> None:
    """Refuse a video of fewer frames than are made; of one with more, the first are taken, which `doubts` tells.

    Raises:
        UsageError: it is shorter.
    """
    if clip.count < geometry.frames:
        have = f"{clip.count} frame{'s' * (clip.count != 1)}"
        raise UsageError(
            f"{clip.name} has {have}, but the video that is made has {geometry.frames}; give a longer one, ask for "
            "fewer frames if the bundle makes such videos, or resample it to a higher frame rate."
        )


def doubts(clip: Clip, frame_rate: float) -> list[str]:
    """What a user should know of how a video is taken, in sentences."""
    found = list(clip.notes)
    if clip.more:
        found.append(f"{clip.name} is longer than {clip.count} frames; its first {clip.count} are taken.")
    if clip.frame_rate is not None and abs(clip.frame_rate / frame_rate - 1) > _SAME:
        found.append(
            f"{clip.name} has {clip.frame_rate:.4g} frames per second and the video that is made {frame_rate:g}, so "
            f"that it moves at {frame_rate / clip.frame_rate:.2f} of its speed; resample it to {frame_rate:g}, or make "
            f"the video at {clip.frame_rate:.4g}."
        )
    return found


def noised(latents: Floats, noise: Floats, sigma: float) -> Floats:
    """``sigma * noise + (1 - sigma) * latents``, in float32: what flow matching has at a noise level."""
    level = np.float32(sigma)
    return level * noise + (np.float32(1) - level) * latents
