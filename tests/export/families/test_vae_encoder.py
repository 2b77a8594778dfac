"""VAE encoders: graphs against the stock classes, and the runtime's steps against a whole clip's encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan, LTXImageToVideoPipeline
from diffusers.video_processor import VideoProcessor

from benchmarks.checkpoints import ltx_vae, wan_vae
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.registry import open_engine
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.families.ltx.vae_encoder import encoder_part
from flowblending.export.families.wan.vae_encoder import encoder_parts
from flowblending.export.verify.verify import export_and_verify
from flowblending.runtime.conditions.encoder import VaeEncoder
from flowblending.runtime.devices.host import HostDevice

CASES = [("wan", 9), ("wan", 1), ("0.9.1", 17), ("0.9.5", 1), ("0.9.5", 17)]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("kind", "frames"), CASES)
def test_a_clip_is_encoded_as_the_stock_class_does(kind: str, frames: int, tmp_path: Path) -> None:
    wan = kind == "wan"
    vae = wan_vae(3) if wan else ltx_vae(3, kind)
    vae.save_pretrained(tmp_path / "vae")
    checkpoint = Checkpoint(folder=tmp_path, pipeline="WanPipeline" if wan else "LTXConditionPipeline")
    parts = encoder_parts(checkpoint) if wan else (encoder_part(checkpoint),)
    graphs = [export_and_verify(part, Precision.FP32, tmp_path, "", lambda _: None)[0] for part in parts]
    engines = {
        each.spec.name: open_engine(backend="onnxruntime", path=each.onnx, spec=each.spec, device="cpu", threads=1)
        for each in graphs
    }

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (frames, 64, 96, 3), np.uint8)
    factors, channels = ((4, 8), 16) if wan else ((8, 32), 8)
    shape = (1, channels, (frames - 1) // factors[0] + 1, 64 // factors[1], 96 // factors[1])
    noise = random.standard_normal(shape).astype(np.float32)
    found = VaeEncoder(engines=engines, device=HostDevice(), factors=factors, channels=channels).encode(pixels, noise)

    values = VideoProcessor(vae_scale_factor=factors[1]).preprocess_video(pixels.astype(np.float32) / 255)
    with torch.no_grad():
        drawn = vae.encode(values).latent_dist
    latents = drawn.mean + drawn.std * torch.from_numpy(noise)
    if isinstance(vae, AutoencoderKLWan):
        statistics = (vae.config.latents_mean, vae.config.latents_std)
        mean, std = (torch.tensor(each)[:, None, None, None] for each in statistics)
        expected = (latents - mean) / std
    else:
        assert isinstance(vae, AutoencoderKLLTXVideo)
        expected = LTXImageToVideoPipeline._normalize_latents(latents, vae.latents_mean, vae.latents_std)
    difference = np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy())
    assert difference < 1e-5
