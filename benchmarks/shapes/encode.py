"""Clips and captions through the trained VAE and text encoder, once: what the transformers learn from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo
from rich.progress import Progress
from transformers import T5EncoderModel, T5Tokenizer

from benchmarks.shapes import data
from benchmarks.shapes.networks import LATENT_CHANNELS
from benchmarks.shapes.scene import Scene, caption
from benchmarks.shapes.tasks import FLOW, Encoded, tokens

BATCH = 64


def encode(
    vae: AutoencoderKLLTXVideo,
    text_encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    *,
    count: int,
    seed: int,
    file: Path,
    progress: Progress,
) -> Encoded:
    """Encode ``count`` training clips, and set the VAE's ``latents_mean`` and ``latents_std`` to theirs.

    Args:
        vae: gets its statistics here.
        text_encoder: as trained.
        tokenizer: its own.
        count: clips; rounded up to whole batches.
        seed: of the scenes.
        file: the result is kept here, and taken from here when it is there.
        progress: a bar is added.
    """
    if not file.exists():
        unfinished = file.with_suffix(".part")
        torch.save(_encode(vae, text_encoder, tokenizer, count, seed=seed, progress=progress), unfinished)
        unfinished.replace(file)
    held: dict[str, torch.Tensor] = torch.load(file, map_location=vae.device, weights_only=True)
    vae.register_buffer("latents_mean", held.pop("mean"))
    vae.register_buffer("latents_std", held.pop("std"))
    return Encoded(**held)


@torch.no_grad()
def encoded_batches(
    vae: AutoencoderKLLTXVideo, count: int, *, seed: int, progress: Progress
) -> Iterator[tuple[list[Scene], torch.Tensor]]:
    """Training clips in batches: the scenes, and what the encoder says of their clips, fp32 [B, 33, F, H, W].

    Those are the means of 32 channels, and the logarithm of the variance that they share.
    """
    steps = -(-count // BATCH)
    bar = progress.add_task("encode", total=steps, note="")
    for step in range(steps):
        batch = data.scenes([FLOW, seed, step], BATCH)
        clips = data.clips(batch).to(vae.device)
        with torch.autocast(vae.device.type, dtype=torch.bfloat16):
            moments = vae.encoder(clips)
        yield batch, moments[:, : LATENT_CHANNELS + 1].float()
        progress.update(bar, advance=1)


@torch.no_grad()
def _encode(
    vae: AutoencoderKLLTXVideo,
    text_encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    count: int,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    latents, texts, masks = [], [], []
    for batch, moments in encoded_batches(vae, count, seed=seed, progress=progress):
        latents.append(moments[:, :LATENT_CHANNELS])
        text, mask = embed(text_encoder, tokenizer, [caption(scene) for scene in batch])
        texts.append(text)
        masks.append(mask)
    empty, empty_mask = embed(text_encoder, tokenizer, [""])
    every = torch.cat(latents)
    mean, std = every.mean((0, 2, 3, 4)), every.std((0, 2, 3, 4))
    normal = (every - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    mask = torch.cat([*masks, empty_mask])
    # Padding is masked in the transformer, so what no caption reaches need not be carried.
    length = int(mask.sum(1).max())
    return {
        "latents": normal.flatten(2).transpose(1, 2).half(),
        "text": torch.cat([*texts, empty])[:, :length].half(),
        "mask": mask[:, :length],
        "mean": mean,
        "std": std,
    }


@torch.no_grad()
def embed(
    text_encoder: T5EncoderModel, tokenizer: T5Tokenizer, captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions -> embeddings [B, 128, 64] and their mask, bool [B, 128]."""
    # LTXPipeline gives its text encoder no mask.
    ids, mask = tokens(tokenizer, captions, text_encoder.device)
    return text_encoder(ids)[0], mask
