"""Latents and embeddings as diffusers has them: tensors of torch, in LTX's pipelines as a list of tokens."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.option_values import shown


def rows_of(array: Any, count: int, name: str) -> list[Any]:
    """An array for each of some videos, with a first dimension of 1.

    Args:
        array: of torch, numpy or another library, [count, ...].
        name: of the argument.

    Raises:
        UsageError: it is no array, or has another first dimension.
    """
    shape = getattr(array, "shape", None)
    if shape is None or len(shape) < 1:
        raise UsageError(f"{name} is {shown(array)}, but an array was expected; give a tensor of torch, for example.")
    if shape[0] != count:
        raise UsageError(
            f"{name} has the shape {list(shape)}, but {count} video{'s were' if count > 1 else ' was'} asked for; give "
            "a first dimension of that size."
        )
    return [array[i : i + 1] for i in range(count)]


def as_type(array: Any, dtype: str) -> Any:
    """An array in another element type, where its library is torch's or numpy's; contiguous."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return array.detach().to(getattr(torch, dtype)).contiguous()
    return np.ascontiguousarray(array, dtype) if isinstance(array, np.ndarray) else array


def unpacked(array: Any, latent_shape: Sequence[int], name: str) -> Any:
    """One video's latents [1, C, F, H, W] from those, or from tokens [1, F * H * W, C].

    Raises:
        UsageError: tokens of another number or width.
    """
    if len(array.shape) != 3:
        return array
    channels, *sizes = latent_shape
    if tuple(array.shape) != (1, math.prod(sizes), channels):
        raise UsageError(
            f"{name} has the shape {list(array.shape)}, but {[1, math.prod(sizes), channels]} or "
            f"{[1, *latent_shape]} was expected for each video; give one of these."
        )
    tokens = array.reshape(1, *sizes, channels)
    order = (0, 4, 1, 2, 3)
    return tokens.permute(*order) if hasattr(tokens, "permute") else tokens.transpose(order)


def packed(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Tokens [B, F * H * W, C] of latents [B, C, F, H, W]."""
    batch, channels = latents.shape[:2]
    return np.ascontiguousarray(latents.transpose(0, 2, 3, 4, 1)).reshape(batch, -1, channels)


def as_torch(array: npt.NDArray[Any]) -> Any:
    """A tensor of torch on the CPU over an array's memory.

    Raises:
        UsageError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UsageError(
            "Tensors of torch were asked for, but torch is not installed; install it, or take output_type='np'."
        ) from None
    return torch.from_numpy(array)
