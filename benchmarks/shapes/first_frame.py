"""Teaches a trained pair to go on from a given first frame, as LTXImageToVideoPipeline gives it; no new parameters.

The first latent frame is that of the image, at a timestep of 0, and only the others are sampled. Half of the clips of a
batch are learned so, with captions of which half tell motions alone, so that looks have to come from the image. The
other half are learned from text as before.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from torch.nn import functional
from transformers import T5EncoderModel, T5Tokenizer

from benchmarks.shapes.encode import embed, encoded_batches
from benchmarks.shapes.networks import FRAME_RATES, LATENT_CHANNELS, SPATIAL, WIDTH
from benchmarks.shapes.scene import caption, motion_caption
from benchmarks.shapes.tasks import Encoded, FlowTask, Loss, autocast, plain_attention, predict
from benchmarks.shapes.training import Recipe, Session

FIRST_FRAME = 5
"""The first number of a batch's key, after those of `benchmarks.shapes.tasks`."""
TOKENS = (WIDTH // SPATIAL) ** 2
"""Of a latent frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFramePlan:
    """How long both transformers learn, and from how many clips."""

    large: Recipe
    small: Recipe
    clips: int


FULL = FirstFramePlan(
    large=Recipe(steps=400, rate=4e-4, average=0.995),
    small=Recipe(steps=1200, rate=6e-4, average=0.995),
    clips=4096,
)
SMOKE = FirstFramePlan(large=Recipe(steps=3, rate=1e-4), small=Recipe(steps=3, rate=1e-4), clips=64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrames:
    """What is learned from.

    Args:
        encoded: its texts are N captions, N that tell motions alone, and an empty one.
        spread: the standard deviation of the first latent frame that the encoder gives, normalised, [N, 16, 32].
    """

    encoded: Encoded
    spread: torch.Tensor


class FirstFrameTask(FlowTask):
    """Flow matching with the first latent frame given for half of the clips.

    Args:
        name: ``large`` or ``small``.
        module: trained in place.
        frames: what it learns from.
        recipe: of the training.
        seed: of everything random.
    """

    BATCH = 32
    GIVEN = 0.5
    TEXT_ONLY = (0.9, 0.0, 0.1)
    WITH_FRAME = (0.35, 0.5, 0.15)
    """Shares of captions, of captions that tell motions alone, and of none."""

    def __init__(
        self, name: str, module: LTXVideoTransformer3DModel, frames: FirstFrames, recipe: Recipe, seed: int
    ) -> None:
        super().__init__(name, module, frames.encoded, recipe, seed)
        self.frames = frames

    def loss(self, step: int) -> Loss:
        """The mean squared error of the velocity of what is sampled; figures: with a given frame, and without."""
        device = next(self.module.parameters()).device
        generator = torch.Generator().manual_seed(FIRST_FRAME * 1_000_003 + self.seed * 10_007 + step)
        encoded = self.frames.encoded
        known = len(encoded.latents)
        chosen = torch.randint(known, (self.BATCH,), generator=generator)
        given = torch.rand(self.BATCH, generator=generator) < self.GIVEN
        shares = torch.tensor([self.TEXT_ONLY, self.WITH_FRAME])[given.long()]
        kind = torch.multinomial(shares, 1, generator=generator)[:, 0]
        captions = (chosen + kind * known).clamp(max=2 * known)
        uniform = torch.rand(self.BATCH, generator=generator)
        sigmas = self.SHIFT * uniform / (1 + (self.SHIFT - 1) * uniform)
        clean = encoded.latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator)
        levels = sigmas[:, None].expand(-1, clean.shape[1]).clone()
        levels[given, :TOKENS] = 0
        mixed = torch.lerp(clean, noise, levels[..., None])
        # The pipeline draws the latents of the image from what the encoder says.
        drawn = self.frames.spread[chosen] * torch.randn(self.frames.spread[chosen].shape, generator=generator)
        mixed[given, :TOKENS] += drawn[given]
        text, mask = (of[captions].to(device) for of in (encoded.text, encoded.mask))
        rate = FRAME_RATES[step % len(FRAME_RATES)]
        with autocast(device), plain_attention(device):
            velocity = predict(self.forward, mixed.to(device), levels.to(device), text.float(), mask, frame_rate=rate)
        errors = functional.mse_loss(velocity.float(), (noise - clean).to(device), reduction="none").mean(2)
        sampled = (levels > 0).to(device)
        of_clips = (errors * sampled).sum(1) / sampled.sum(1)
        parts = {"given": of_clips[given.to(device)], "text_only": of_clips[~given.to(device)]}
        return of_clips.mean(), {name: values.mean().item() for name, values in parts.items() if len(values)}


def teach(session: Session, plan: FirstFramePlan, pair: Path) -> Path:
    """Train both transformers of a trained pair further; the folder with ``large`` and ``small``, transformers alone.

    Args:
        session: of the command.
        plan: of the training.
        pair: checkpoints that `benchmarks.shapes.train` has written.

    Raises:
        OutOfTimeError: everything is saved, and the next call goes on there.
    """
    frames = _first_frames(session, plan.clips, pair)
    unfinished = session.work / "image.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    for name, folder in (("small", pair / "small"), ("large", pair / "large/transformer")):
        module = LTXVideoTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
        session.new(module)
        task = FirstFrameTask(name, module, frames, getattr(plan, name), session.seed)
        if session.compiled:
            task.compile()
        session.train(task)
        module.half().save_pretrained(unfinished / name, safe_serialization=True)
    finished = session.work / "image"
    shutil.rmtree(finished, ignore_errors=True)
    unfinished.rename(finished)
    return finished


def _first_frames(session: Session, count: int, pair: Path) -> FirstFrames:
    """Clips and captions through the pair's VAE and text encoder, kept in ``first_frames.pt``."""
    file = session.work / "first_frames.pt"
    if not file.exists():
        vae = AutoencoderKLLTXVideo.from_pretrained(pair / "large/vae", torch_dtype=torch.float32)
        text_encoder = T5EncoderModel.from_pretrained(pair / "large/text_encoder", dtype=torch.float32)
        for module in (vae, text_encoder):
            module.to(session.device).eval().requires_grad_(False)
        tokenizer = T5Tokenizer.from_pretrained(pair / "large/tokenizer")
        unfinished = file.with_suffix(".part")
        torch.save(_encode(session, vae, text_encoder, tokenizer, count), unfinished)
        unfinished.replace(file)
    held: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return FirstFrames(spread=held.pop("spread"), encoded=Encoded(**held))


def _encode(
    session: Session, vae: AutoencoderKLLTXVideo, text_encoder: T5EncoderModel, tokenizer: T5Tokenizer, count: int
) -> dict[str, torch.Tensor]:
    mean, std = (value.float().view(1, -1, 1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
    latents, spreads = [], []
    texts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    masks: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for batch, moments in encoded_batches(vae, count, seed=session.seed, progress=session.progress):
        latents.append(_tokens((moments[:, :LATENT_CHANNELS] - mean) / std))
        spreads.append(_tokens((0.5 * moments[:, LATENT_CHANNELS:, :1]).exp() / std))
        for index, tell in enumerate((caption, motion_caption)):
            text, mask = embed(text_encoder, tokenizer, [tell(scene) for scene in batch])
            texts[index].append(text)
            masks[index].append(mask)
    empty, empty_mask = embed(text_encoder, tokenizer, [""])
    mask = torch.cat([*masks[0], *masks[1], empty_mask])
    length = int(mask.sum(1).max())
    return {
        "latents": torch.cat(latents),
        "spread": torch.cat(spreads),
        "text": torch.cat([*texts[0], *texts[1], empty])[:, :length].half(),
        "mask": mask[:, :length],
    }


def _tokens(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, F, H, W] -> fp16 [B, F * H * W, C]."""
    return latents.flatten(2).transpose(1, 2).half()
