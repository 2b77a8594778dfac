"""Fits a VAE's preview map: the pixels of a small picture as linear combinations of a latent's channels.

Clips are encoded and decoded by the checkpoint's own VAE. The map is the least squares solution between the latents and
the decoded pixels, averaged over the frames that a latent frame stands for and over cells of a few pixels. Noise in the
place of encoded clips would be cheaper and is of no use: it is unlike any latents that a model makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flowblending import FlowBlendingError
from flowblending.contracts.graph import (
    VAE,
    VAE_ENCODER,
    VAE_ENCODER_FIRST,
    VAE_ENCODER_NEXT,
    VAE_FIRST,
    VAE_NEXT,
    PipelineSpec,
    Precision,
)
from flowblending.export.graph.exportable import Exportable, Part
from flowblending.export.preview import pictures

REVISION = 2
"""Raised when this package makes other maps."""

CELL = 8
"""Pixels of a decoded frame, in either direction, that become one of a preview's: a latent of a VAE that compresses
more becomes several."""

_FOR_A_CHANNEL = 16
"""Latents, at least."""
_HELD_OUT = 4
"""Every so many clips, one measures the map."""
_LATENTS, _PIXELS = 4, 64
"""What a clip is high and wide at least. It has two latent frames."""
_RIDGE = 1e-3
"""For each sample, added to the variance of every channel, which is about 1."""

Rows = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class PreviewFit:
    """A fitted map.

    Attributes:
        matrix: float32 [channels + 1, cells * cells * 3]: for every channel, and last the constant, what it adds to the
            pixels of a latent, row by row, red, green and blue in [-1, 1].
        explained: the share of the variance of pixels that it explains (R^2), on clips that it was not fitted on.
    """

    matrix: npt.NDArray[np.float32]
    explained: float


def fit_preview(
    pipeline: PipelineSpec, encoder: Sequence[Part], decoder: Sequence[Part], report: Callable[[str], None]
) -> PreviewFit:
    """Fit the map of a VAE, on the CPU in fp32. The same VAE gives the same map on the same machine.

    Args:
        pipeline: that the VAE is of.
        encoder: its encoder's graphs.
        decoder: its decoder's.
        report: told what is done.

    Raises:
        FlowBlendingError: the VAE gives numbers that are not finite.
    """
    side = _side(pipeline)
    frames, size = 1 + pipeline.temporal_factor, side * pipeline.spatial_factor
    count = -(-max(pictures.LATENTS, _FOR_A_CHANNEL * pipeline.latent_channels) // (2 * side**2))
    generator = np.random.default_rng(0)
    clips = [torch.from_numpy(pictures.clip(generator, frames, size, size))[None] for _ in range(count)]
    with torch.no_grad():
        report("encoding clips")
        encode = _encoder({part.name: part.load(Precision.FP32) for part in encoder}, pipeline)
        latents = [encode(each) for each in clips]
        del encode
        report("decoding clips")
        decode = _decoder({part.name: part.load(Precision.FP32) for part in decoder}, pipeline)
        rows = [_rows(each, decode(each).clamp(-1.0, 1.0), pipeline) for each in latents]
    if not all(np.isfinite(each).all() for pair in rows for each in pair):
        raise FlowBlendingError("The VAE gives numbers of plain pictures that are not finite; look at its weights.")
    held_out = rows[::_HELD_OUT]
    fitted = _solve([each for index, each in enumerate(rows) if index % _HELD_OUT])
    return PreviewFit(matrix=_solve(rows).astype(np.float32), explained=explained(fitted, *_joined(held_out)))


def _side(pipeline: PipelineSpec) -> int:
    """Height and width of a clip's latents."""
    return max(_LATENTS, -(-_PIXELS // pipeline.spatial_factor))


def cells(spatial_factor: int) -> int:
    """Pixels of a preview that a latent becomes, in either direction."""
    return max(1, spatial_factor // CELL)


def explained(
    matrix: npt.NDArray[np.floating], latents: npt.NDArray[np.floating], pixels: npt.NDArray[np.floating]
) -> float:
    """The share of the variance of pixels [n, outputs] that a map of latents [n, channels] explains."""
    left = pixels - latents @ matrix[:-1] - matrix[-1]
    return float(1.0 - (left**2).sum() / ((pixels - pixels.mean(axis=0)) ** 2).sum())


def averaged(frames: npt.NDArray[np.floating], pipeline: PipelineSpec) -> npt.NDArray[np.floating]:
    """Frames [3, F, H, W] as a preview should show them: the means that each latent's pixels are.

    Returns:
        [f, h, w, cells * cells * 3].
    """
    time, space, side = pipeline.temporal_factor, pipeline.spatial_factor, cells(pipeline.spatial_factor)
    groups = [frames[:, :1], *(frames[:, start : start + time] for start in range(1, frames.shape[1], time))]
    means = np.stack([group.mean(axis=1) for group in groups])
    count, _, height, width = means.shape
    cell = space // side
    grid = means.reshape(count, 3, height // space, side, cell, width // space, side, cell).mean(axis=(4, 7))
    shape = count, height // space, width // space, side * side * 3
    pixels: npt.NDArray[np.floating] = grid.transpose(0, 2, 4, 3, 5, 1).reshape(shape)
    return pixels


def _rows(latents: torch.Tensor, frames: torch.Tensor, pipeline: PipelineSpec) -> Rows:
    pixels = averaged(frames[0].double().numpy(), pipeline)
    channels: npt.NDArray[np.float64] = latents[0].double().permute(1, 2, 3, 0).flatten(0, 2).numpy()
    return channels, pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)


def _joined(rows: Sequence[Rows]) -> Rows:
    latents, pixels = zip(*rows, strict=True)
    return np.concatenate(latents), np.concatenate(pixels)


def _solve(rows: Sequence[Rows]) -> npt.NDArray[np.float64]:
    latents, pixels = _joined(rows)
    means = latents.mean(axis=0), pixels.mean(axis=0)
    centred = latents - means[0]
    squares = centred.T @ centred + _RIDGE * len(latents) * np.eye(latents.shape[1])
    slopes = np.linalg.solve(squares, centred.T @ (pixels - means[1]))
    return np.concatenate([slopes, (means[1] - means[0] @ slopes)[None]])


def _encoder(parts: Mapping[str, Exportable], pipeline: PipelineSpec) -> Callable[[torch.Tensor], torch.Tensor]:
    """From a clip [1, 3, F, H, W] of two latent frames to its latents, the mode of the encoder's distribution."""
    side = _side(pipeline)

    def noise(frames: int) -> torch.Tensor:
        return torch.zeros(1, pipeline.latent_channels, frames, side, side)

    if VAE_ENCODER in parts:
        whole = parts[VAE_ENCODER].reference
        return lambda pixels: whole(pixels, noise(2))[0]
    first, following = parts[VAE_ENCODER_FIRST].reference, parts[VAE_ENCODER_NEXT].reference

    def stepwise(pixels: torch.Tensor) -> torch.Tensor:
        begun, *caches = first(pixels[:, :, :1], noise(1))
        return torch.cat([begun, following(pixels[:, :, 1:], noise(1), *caches)[0]], dim=2)

    return stepwise


def _decoder(parts: Mapping[str, Exportable], pipeline: PipelineSpec) -> Callable[[torch.Tensor], torch.Tensor]:
    """From latents of two latent frames to frames, without the noise that some decoders add."""
    if VAE in parts:
        part = parts[VAE]
        sizes = {"frames": 2, "height": _side(pipeline), "width": _side(pipeline)}
        others = [torch.zeros(each.resolve(sizes)) for each in part.spec.inputs[1:]]
        for index, each in enumerate(part.spec.inputs[1:]):
            if each.name == "timestep":
                others[index].fill_(pipeline.decode_timestep or 0.0)
        return lambda latents: part.reference(latents, *others)[0]
    first, following = parts[VAE_FIRST].reference, parts[VAE_NEXT].reference

    def stepwise(latents: torch.Tensor) -> torch.Tensor:
        begun, *caches = first(latents[:, :, :1])
        return torch.cat([begun, following(latents[:, :, 1:], *caches)[0]], dim=2)

    return stepwise
