"""The pair's networks, as diffusers and transformers classes at sizes that train on two CPU cores in hours.

The family is LTX-Video and not Wan for one reason: its VAE works on patches of 4x4 pixels and on all frames at
once, and so costs a sixth of Wan's per training step (four clips of 13 frames at 64x64, forward and backward:
0.23 s against 1.2 s on two cores).
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
)
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

FRAMES, HEIGHT, WIDTH = 13, 64, 64
"""The clips that the pair is trained on."""
FRAME_RATES = (8.0, 25.0)
"""Frames per second the transformers are told in turn: a rate to watch the clips at, and LTXPipeline's default."""
TEMPORAL, SPATIAL = 4, 16
"""Frames and pixels per latent frame and pixel."""
LATENT_CHANNELS = 32
TEXT_WIDTH = 64
TEXT_LENGTH = 128
"""Tokens of a prompt after padding, as LTXPipeline pads by default."""

TRANSFORMERS = {
    "large": {"layers": 7, "heads": 6, "head_dim": 32},
    "small": {"layers": 4, "heads": 3, "head_dim": 32},
}


def vae() -> AutoencoderKLLTXVideo:
    """Frames [B, 3, 4k+1, H, W] in [-1, 1] <-> latents [B, 32, k+1, H/16, W/16]; about 4 million parameters."""
    widths = (64, 64, 64)
    # (encoder's field, decoder's field) of each setting that the class takes once per side.
    sides: dict[str, Any] = {
        "block_out_channels": widths,
        "layers_per_block": (1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False),
    }
    return AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        patch_size=4,
        patch_size_t=1,
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        spatial_compression_ratio=SPATIAL,
        temporal_compression_ratio=TEMPORAL,
        **sides,
        **{f"decoder_{name}": value for name, value in sides.items()},
    )


def text_encoder() -> T5EncoderModel:
    """Token ids [B, L] -> embeddings [B, L, 64]."""
    return T5EncoderModel(
        T5Config(
            vocab_size=128,
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
        )
    )


def tokenizer(captions: Iterable[str]) -> T5Tokenizer:
    """A unigram tokenizer of T5's kind whose pieces are the captions' words, and letters for all other text."""
    words = Counter(word for caption in captions for word in caption.split())
    pieces = [f"\u2581{word}" for word, _ in words.most_common()] + ["\u2581", *string.ascii_letters, ",", ".", "-"]
    # With equal scores the fewest pieces win.
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((piece, -1.0) for piece in pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_LENGTH)


def transformer(name: str) -> LTXVideoTransformer3DModel:
    """``large`` or ``small``: tokens [B, 64, 32] -> velocity, one token per latent pixel."""
    size = TRANSFORMERS[name]
    return LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=size["layers"],
        num_attention_heads=size["heads"],
        attention_head_dim=size["head_dim"],
        cross_attention_dim=size["heads"] * size["head_dim"],
        caption_channels=TEXT_WIDTH,
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """LTX-Video's scheduler without a shift of the sigmas.

    A shift makes up for the many tokens of a large video, which show their structure through much noise; LTX's grows
    with their number. 64 tokens show little of it above a sigma of 0.85, and a shift of 3 would spend a third of the
    steps there.
    """
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


class FeatureNetwork(nn.Module):
    """Reads a clip's attributes; the layer before the answers is what `frechet` compares.

    Args:
        answers: the number of classes of each attribute.
    """

    WIDTH = 64

    def __init__(self, answers: tuple[int, ...]) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, self.WIDTH)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv3d(i, o, 3, stride=(1 if i == widths[0] else 2, 2, 2), padding=1),
                    nn.GroupNorm(4, o),
                    nn.SiLU(),
                )
                for i, o in itertools.pairwise(widths)
            )
        )
        self.embed = nn.Linear(self.WIDTH * 16 * 2, self.WIDTH)
        self.heads = nn.ModuleList(nn.Linear(self.WIDTH, count) for count in answers)

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips [B, 3, F, H, W] in [-1, 1] -> features [B, 64]; 4x4 places and 2 times are kept apart."""
        pooled = nn.functional.adaptive_avg_pool3d(self.blocks(clips), (2, 4, 4)).flatten(1)
        return nn.functional.silu(self.embed(pooled))

    def forward(self, clips: torch.Tensor) -> list[torch.Tensor]:
        """The logits of each attribute, [B, classes]."""
        features = self.features(clips)
        return [head(features) for head in self.heads]
