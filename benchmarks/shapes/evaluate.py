"""What the trained parts can do, on scenes that no training has seen: the figures of README.md here.

python -m benchmarks.shapes.evaluate                                   # the pair of the repository
python -m benchmarks.shapes.evaluate --checkpoints train-shapes/checkpoints
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo

from benchmarks.shapes import data
from benchmarks.shapes.adherence import adherence
from benchmarks.shapes.judge import read
from flowblending.runtime.measures.similarity import psnr, ssim

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EVALUATION = 0
"""The first number of the keys of all scenes that only evaluations draw."""
BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How well clips survive the VAE.

    Args:
        psnr: in dB, mean and least over the clips.
        ssim: mean over the clips.
        right: the share of the clips that the judge reads entirely right: a ceiling for every sampler.
    """

    psnr: float
    least_psnr: float
    ssim: float
    right: float


@torch.no_grad()
def reconstruct(vae: AutoencoderKLLTXVideo, count: int, *, held_out: bool) -> Reconstruction:
    """Encode and decode ``count`` unseen clips of 13 frames at 64x64; the latents are the posterior's means."""
    batch = data.scenes([EVALUATION, 7, held_out], count, held_out=held_out)
    signal, structure, right = [], [], []
    for start in range(0, count, BATCH):
        part = batch[start : start + BATCH]
        clips = data.clips(part)
        decoded = vae.decode(vae.encode(clips).latent_dist.mode()).sample.clamp(-1, 1)
        for scene, *pair in zip(part, clips, decoded, strict=True):
            original, copy = (_frames(clip) for clip in pair)
            signal.append(psnr(original, copy))
            structure.append(ssim(original, copy))
            right.append(adherence(read(copy), scene).all_right)
    return Reconstruction(
        psnr=float(np.mean(signal)),
        least_psnr=min(signal),
        ssim=float(np.mean(structure)),
        right=float(np.mean(right)),
    )


def _frames(clip: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """[3, F, H, W] in [-1, 1] -> [F, H, W, 3] in 0..1."""
    frames: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = ((clip + 1) / 2).permute(1, 2, 3, 0).numpy()
    return frames


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Measure the VAE of the shapes pair on unseen clips.")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, metavar="DIR")
    parser.add_argument("--count", type=int, default=64, help="clips of each kind")
    arguments = parser.parse_args()
    folder: Path = arguments.checkpoints
    vae = AutoencoderKLLTXVideo.from_pretrained(folder / "large/vae", torch_dtype=torch.float32).eval()
    print("| clips | PSNR | least | SSIM | read right |\n|---|---|---|---|---|")
    for name, held_out in (("of known combinations", False), ("of held-out combinations", True)):
        found = reconstruct(vae, arguments.count, held_out=held_out)
        quality = f"{found.psnr:.2f} dB | {found.least_psnr:.2f} dB | {found.ssim:.4f}"
        print(f"| {name} | {quality} | {100 * found.right:.1f} % |")


if __name__ == "__main__":
    main()
