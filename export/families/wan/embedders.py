"""Embedders of Wan transformers written so that they compile well."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2ImageEmbedding, SkyReelsV2Timesteps
from diffusers.models.transformers.transformer_wan import WanImageEmbedding


class ImageEmbedding(torch.nn.Module):
    """WanImageEmbedding for the tokens of all images of a video side by side, as the blocks take them.

    The stock module has the two images of a first and a last frame as two rows of its batch.

    Args:
        stock: whose layers are taken.
    """

    def __init__(self, stock: WanImageEmbedding | SkyReelsV2ImageEmbedding) -> None:
        super().__init__()
        self.norm1, self.ff, self.norm2, self.pos_embed = stock.norm1, stock.ff, stock.norm2, stock.pos_embed

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """From fp [B, N, W] to [B, N, D]."""
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        found: torch.Tensor = self.norm2(self.ff(self.norm1(tokens)))
        return found


class Timesteps(torch.nn.Module):
    """SkyReelsV2Timesteps in fp32: cosines and sines of frequencies that fall from 1 to 1/10000.

    Args:
        stock: whose width is taken.
    """

    frequencies: torch.Tensor

    def __init__(self, stock: SkyReelsV2Timesteps) -> None:
        super().__init__()
        half = stock.num_channels // 2
        frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """From fp32 [B] to fp32 [B, W]."""
        angles = timestep.float()[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)
