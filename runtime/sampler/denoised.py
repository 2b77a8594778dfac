"""What a video will look like, at a step on the way: an estimate of one latent frame without its noise.

Latents at the noise level sigma are sigma times noise, and the rest the video. A step goes from x at sigma to x' at
sigma' along a velocity v = (x' - x) / (sigma' - sigma), whatever solver, guidance or cache it is of; following it to
the end gives x' - sigma' v. Of the latents before and after a step, one latent frame is copied to the host, on the
step's stream and outside of any CUDA graph; nothing waits for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device, Readback

_MOST: Final = 4
"""Estimates on their way to the host at once: a GPU is a few steps ahead of whoever is told of them."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    before: Readback
    after: Readback


class DenoisedFrames:
    """Reads estimates while a program runs; see `Trajectory.follow`.

    Args:
        device: that the latents are on.
        latents: of the trajectory, float32 [1, C, F, H, W].
        sigmas: the noise level before every step; after the last, it is 0.
        frame: the latent frame to look at.
        wanted: asked before each step by its number, whether its estimate is wanted.
    """

    def __init__(
        self, device: Device, latents: Tensor, sigmas: Sequence[float], frame: int, wanted: Callable[[int], bool]
    ) -> None:
        _, channels, frames, height, width = latents.shape
        size = height * width
        self._shape = (channels, height, width)
        self._rows = [device.view(latents, (channel * frames + frame) * size, (size,)) for channel in range(channels)]
        self._device = device
        self._sigmas = (*sigmas, 0.0)
        self._wanted = wanted
        self._free: list[_Pair] = []
        self._made = 0
        self._now: _Pair | None = None
        self._pending: deque[tuple[int, _Pair]] = deque()

    def before(self, index: int) -> None:
        """A step is enqueued next."""
        self._now = self._pair() if self._wanted(index) else None
        if self._now is not None:
            self._now.before.begin(self._rows)

    def after(self, index: int) -> None:
        """It has been enqueued."""
        if self._now is not None:
            self._now.after.begin(self._rows)
            self._pending.append((index, self._now))

    def take(self) -> tuple[int, npt.NDArray[np.float32]] | None:
        """The newest estimate that has arrived, float32 [C, h, w], and its step; those before it are left out."""
        found = None
        while self._pending and self._pending[0][1].after.reached():
            index, pair = self._pending.popleft()
            before, after = (self._read(each) for each in (pair.before, pair.after))
            self._free.append(pair)
            now, then = self._sigmas[index : index + 2]
            # A step whose noise level does not fall leaves nothing to follow.
            ahead = np.float32(then / (now - then)) if now > then else np.float32(0.0)
            with np.errstate(all="ignore"):  # what is not finite is told of elsewhere
                found = index, after + ahead * (after - before)
        return found

    def _read(self, readback: Readback) -> npt.NDArray[np.float32]:
        return np.concatenate(readback.take()).view(np.float32).reshape(self._shape)

    def _pair(self) -> _Pair | None:
        """Two places to read into; None where all are in use, and this step goes without."""
        if self._free:
            return self._free.pop()
        if self._made == _MOST:
            return None
        self._made += 1
        size = 4 * math.prod(self._shape)
        return _Pair(before=self._device.readback(size), after=self._device.readback(size))
