"""What each network learns: four losses, each a pure function of the step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5EncoderModel, T5Tokenizer

from benchmarks.shapes import data
from benchmarks.shapes.networks import (
    FRAME_RATES,
    FRAMES,
    LATENT_CHANNELS,
    SPATIAL,
    TEMPORAL,
    TEXT_LENGTH,
    TEXT_WIDTH,
    WIDTH,
    FeatureNetwork,
)
from benchmarks.shapes.scene import caption
from benchmarks.shapes.training import Recipe

Loss = tuple[torch.Tensor, Mapping[str, float]]

VAE, TEXT, FEATURES, FLOW = range(1, 5)
"""The first number of a batch's key: no two tasks see the same scenes. 0 is kept for evaluation."""


def autocast(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """bfloat16 products: eight times as fast as fp32 on CPUs with AMX, and at home on GPUs."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def plain_attention(device: torch.device) -> Iterator[None]:
    """The fused attention of torch for CPUs takes twice as long as products and a softmax in bfloat16, backwards."""
    if device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


class VaeTask:
    """Reconstruction (L1 and L2), and a light pull of the latents towards the normal distribution.

    The decoder's output is not clamped, so that no gradient is lost. Short clips come first: they show more scenes
    per second of training; whole clips, from ``whole_from`` on, then teach the decoder what follows what.

    Args:
        module: trained in place.
        recipe: of the training.
        seed: of everything random.
        whole_from: the share of the steps after which clips are whole.
    """

    name = "vae"
    KL_WEIGHT = 1e-4
    SHORT, SHORT_BATCH, WHOLE_BATCH = 5, 16, 6

    def __init__(self, module: AutoencoderKLLTXVideo, recipe: Recipe, seed: int, *, whole_from: float = 0.3) -> None:
        self.module = module
        self.recipe = recipe
        self.seed = seed
        self.whole_from = whole_from
        self.encoder, self.decoder = module.encoder, module.decoder

    def compile(self) -> None:
        """Use compiled twins of both halves: a quarter less time on a CPU, after a minute of compiling."""
        self.encoder = torch.compile(self.module.encoder, dynamic=False)
        self.decoder = torch.compile(self.module.decoder, dynamic=False)

    def loss(self, step: int) -> Loss:
        """See the class; figures: PSNR in dB, and the standard deviation of the latents."""
        device = next(self.module.parameters()).device
        whole = step >= self.whole_from * self.recipe.steps
        frames, count = (FRAMES, self.WHOLE_BATCH) if whole else (self.SHORT, self.SHORT_BATCH)
        key = [VAE, self.seed, step]
        first = TEMPORAL * np.random.default_rng(key).integers(0, 1 + (FRAMES - frames) // TEMPORAL, count)
        clips = data.clips(data.scenes(key, count), frames=frames, first=first.tolist()).to(device)
        torch.manual_seed(step)
        with autocast(device):
            moments = self.encoder(clips).float()
            mean, log_variance = moments[:, :LATENT_CHANNELS], moments[:, LATENT_CHANNELS : LATENT_CHANNELS + 1]
            log_variance = log_variance.clamp(-30, 20)
            latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            frames_out = self.decoder(latents)
        error = frames_out.float() - clips
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = error.abs().mean() + error.square().mean() + self.KL_WEIGHT * divergence
        squared = (frames_out.detach().float().clamp(-1, 1) - clips).square().mean().item()
        return loss, {"psnr": float(10 * np.log10(4 / squared)), "latent_std": mean.std().item()}


class TextModel(nn.Module):
    """The text encoder with the heads that it is trained through; only the encoder is kept."""

    def __init__(self, encoder: T5EncoderModel, vocabulary: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.word = nn.Linear(TEXT_WIDTH, vocabulary)
        self.attributes = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(names)) for names in data.ATTRIBUTES)


class TextTask:
    """Every token's embedding has to tell its own word and all attributes of the scene that the caption describes.

    So an embedding knows which of two shapes its word belongs to, which cross-attention, blind to order, needs.
    """

    name = "text"
    BATCH = 32

    def __init__(self, module: TextModel, tokenizer: T5Tokenizer, recipe: Recipe, seed: int) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.seed = seed

    def loss(self, step: int) -> Loss:
        """Cross entropies; figure: the share of the attributes that are told rightly."""
        device = next(self.module.parameters()).device
        batch = data.scenes([TEXT, self.seed, step], self.BATCH)
        ids, mask = tokens(self.tokenizer, [caption(scene) for scene in batch], device)
        embeddings = self.module.encoder(ids)[0][mask]
        words = functional.cross_entropy(self.module.word(embeddings), ids[mask])
        wanted = data.class_tensor(batch).to(device)[:, None].expand(-1, TEXT_LENGTH, -1)[mask]
        answers = [head(embeddings) for head in self.module.attributes]
        told = torch.stack([functional.cross_entropy(a, wanted[:, i]) for i, a in enumerate(answers)]).mean()
        right = torch.stack([(a.argmax(1) == wanted[:, i]).float().mean() for i, a in enumerate(answers)])
        return words + told, {"right": right.mean().item()}


class FeatureTask:
    """Reading the attributes from clips with some noise, so that the features know what a clip shows."""

    name = "features"
    BATCH = 16
    NOISE = 0.1

    def __init__(self, module: FeatureNetwork, recipe: Recipe, seed: int) -> None:
        self.module = module
        self.recipe = recipe
        self.seed = seed

    def loss(self, step: int) -> Loss:
        """Cross entropy; figure: the share of the attributes that are read rightly."""
        device = next(self.module.parameters()).device
        batch = data.scenes([FEATURES, self.seed, step], self.BATCH)
        clips = data.clips(batch).to(device)
        torch.manual_seed(step)
        with autocast(device):
            answers = self.module(clips + self.NOISE * torch.randn_like(clips))
        wanted = data.class_tensor(batch).to(device)
        losses = [functional.cross_entropy(a.float(), wanted[:, i]) for i, a in enumerate(answers)]
        right = torch.stack([(a.argmax(1) == wanted[:, i]).float().mean() for i, a in enumerate(answers)])
        return torch.stack(losses).mean(), {"right": right.mean().item()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Clips and captions as the transformers see them.

    Args:
        latents: normalised, [N, tokens, 32]; a token is a latent pixel, frames first.
        text: embeddings, [N + 1, L, 64]; the last one is that of the empty caption.
        mask: bool [N + 1, L], False on padding.
    """

    latents: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor


class FlowTask:
    """Flow matching (Lipman et al. 2022; the velocity of diffusers' flow schedulers: noise - data).

    Args:
        name: ``large`` or ``small``.
        module: trained in place.
        encoded: what it learns from.
        recipe: of the training.
        seed: of everything random.
    """

    BATCH = 64
    NO_CAPTION = 0.1
    SHIFT = 2.0

    def __init__(
        self, name: str, module: LTXVideoTransformer3DModel, encoded: Encoded, recipe: Recipe, seed: int
    ) -> None:
        self.name = name
        self.module = module
        self.encoded = encoded
        self.recipe = recipe
        self.seed = seed
        self.forward: Callable[..., tuple[torch.Tensor]] = module

    def compile(self) -> None:
        """Use a compiled twin: a third less time on a CPU, after two minutes of compiling."""
        self.forward = torch.compile(self.module, dynamic=False)

    def loss(self, step: int) -> Loss:
        """The mean squared error of the velocity, at sigmas that are uniform before a shift."""
        device = next(self.module.parameters()).device
        generator = torch.Generator().manual_seed(FLOW * 1_000_003 + self.seed * 10_007 + step)
        known = len(self.encoded.latents)
        chosen = torch.randint(known, (self.BATCH,), generator=generator)
        captions = chosen.where(torch.rand(self.BATCH, generator=generator) >= self.NO_CAPTION, known)
        uniform = torch.rand(self.BATCH, generator=generator)
        sigmas = (self.SHIFT * uniform / (1 + (self.SHIFT - 1) * uniform)).to(device)
        clean = self.encoded.latents[chosen].to(device, torch.float32)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        mixed = torch.lerp(clean, noise, sigmas[:, None, None])
        text, mask = (of[captions].to(device) for of in (self.encoded.text, self.encoded.mask))
        rate = FRAME_RATES[step % len(FRAME_RATES)]
        with autocast(device), plain_attention(device):
            velocity = predict(self.forward, mixed, sigmas, text.float(), mask, frame_rate=rate)
        return functional.mse_loss(velocity.float(), noise - clean), {}


def predict(
    module: Callable[..., tuple[torch.Tensor]],
    latents: torch.Tensor,
    sigmas: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor,
    *,
    frame_rate: float,
) -> torch.Tensor:
    """The velocity of a clip of 13 frames at 64x64, called as LTXPipeline calls its transformer.

    Args:
        module: ``large`` or ``small``, or its compiled twin.
        latents: [B, 64, 32].
        sigmas: [B] or, for every token, [B, 64]; 0 to 1.
        text: [B, L, 64].
        mask: bool [B, L].
        frame_rate: frames per second, which the rotary coordinates of LTX-Video count in.
    """
    side = WIDTH // SPATIAL
    velocity: torch.Tensor = module(
        hidden_states=latents,
        encoder_hidden_states=text,
        timestep=sigmas * 1000,
        encoder_attention_mask=mask,
        num_frames=1 + (FRAMES - 1) // TEMPORAL,
        height=side,
        width=side,
        rope_interpolation_scale=(TEMPORAL / frame_rate, SPATIAL, SPATIAL),
        return_dict=False,
    )[0]
    return velocity


def tokens(tokenizer: T5Tokenizer, captions: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B, 128] and their mask bool [B, 128], padded as LTXPipeline pads."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids.to(device), encoded.attention_mask.bool().to(device)
