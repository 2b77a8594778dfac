"""The noise that diffusers would draw: from torch's generators, or without torch from a seed."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.media.noise import Normal, TorchNormal
from flowblending.runtime.option_values import shown
from flowblending.runtime.options import MOST_SEED


class TorchStream:
    """What a generator of torch draws next, as diffusers' ``randn_tensor`` draws it.

    Args:
        generator: a ``torch.Generator`` of any device; None for torch's own on the CPU, which ``torch.manual_seed``
            seeds.
    """

    def __init__(self, generator: Any) -> None:
        self._generator: Final = generator

    def normal(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """The next values, float32."""
        import torch

        device = "cpu" if self._generator is None else self._generator.device
        drawn = torch.randn(tuple(shape), generator=self._generator, device=device, dtype=torch.float32)
        values: npt.NDArray[np.float32] = drawn.cpu().numpy()
        return values


def noise_streams(generator: object, count: int) -> list[Normal]:
    """For each video of a call what its noise is drawn from; one and the same object where they share it.

    Args:
        generator: a ``torch.Generator``, the seed of one on the CPU, or a list of these, one for each video; None for
            torch's own, and where torch is not installed for another seed every time.
        count: of videos.

    Raises:
        UsageError: it is none of these, or there are not as many as videos.
    """
    if isinstance(generator, list | tuple):
        if len(generator) not in (1, count):
            raise UsageError(
                f"generator is a list of {len(generator)}, but {count} video{'s were' if count > 1 else ' was'} asked "
                "for; give a generator for each of them, or one for all."
            )
        if len(generator) == count:
            return [_stream(each) for each in generator]
        (generator,) = generator
    return [_stream(generator)] * count


def draw_noise(streams: Sequence[Normal], shape: Sequence[int]) -> list[npt.NDArray[np.float32]]:
    """Initial latents [1, C, F, H, W] of every video, drawn in their order before anything else is.

    Args:
        shape: [C, F, H, W].
    """
    if len(streams) > 1 and all(each is streams[0] for each in streams):
        together = streams[0].normal((len(streams), *shape))
        return [together[i : i + 1] for i in range(len(streams))]
    return [each.normal((1, *shape)) for each in streams]


def _stream(generator: object) -> Normal:
    if generator is None:
        there = "torch" in sys.modules or importlib.util.find_spec("torch") is not None
        return TorchStream(None) if there else TorchNormal(secrets.randbits(64))
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(generator, torch.Generator):
        return TorchStream(generator)
    if isinstance(generator, int) and not isinstance(generator, bool) and 0 <= generator <= MOST_SEED:
        return TorchNormal(generator)
    raise UsageError(
        f"generator is {shown(generator)}, but a torch.Generator, the seed of one, or a list of these was expected; "
        "give torch.Generator().manual_seed(7), or 7."
    )
