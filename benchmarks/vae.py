"""What a VAE decoder loses in 16 bits, and in tiles: its frames against those of whole frames in fp32.

    python -m benchmarks.vae                              # the trained shapes pair's
    python -m benchmarks.vae --checkpoint Wan2.1-T2V-1.3B-Diffusers --size 832x480 --tiling 256x256+64

Scenes that no training has seen are rendered and encoded, and decoded by this package's decoder on the CPU. bf16 and
fp16 are computed by torch, module by module, as the graphs for TensorRT are; a plan may round in another order.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import diffusers
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.precision import markdown_table
from benchmarks.shapes import data
from benchmarks.shapes.evaluate import CHECKPOINTS, EVALUATION
from benchmarks.shapes.render import render
from flowblending.contracts.graph import DECODERS, VAE, PipelineSpec, Precision
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.geometry import parse_size
from flowblending.engine.bundle.vae_tiling import read_tiling
from flowblending.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flowblending.export.families.registry import family_of
from flowblending.export.graph.exportable import Exportable
from flowblending.runtime.decode_conditioning import decode_conditioning
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.measures.similarity import psnr
from flowblending.runtime.media.decode import Decoder
from flowblending.runtime.media.noise import TorchNormal
from flowblending.system.console import run_program

Floats = npt.NDArray[np.float32]
COLUMNS = (
    *("decoded in", "PSNR to whole fp32", "least", "largest difference", "values off by more than a level"),
    "PSNR to the scene",
)
SIZE, TILINGS = "192x128", "64x64+32,64x64+16,96x96+32,96x96+48"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Error:
    """How far clips are from a reference.

    Args:
        psnr: in dB, of every clip.
        largest: of all differences, in levels of 255.
        off: the share of values that differ by more than a level.
    """

    psnr: Sequence[float]
    largest: float
    off: float

    @classmethod
    def of(cls, found: Sequence[Floats], expected: Sequence[Floats]) -> Error:
        """Clips in 0..1, [F, H, W, 3]."""
        levels = [255 * np.abs(one - other) for one, other in zip(found, expected, strict=True)]
        return cls(
            psnr=[psnr(one, other) for one, other in zip(found, expected, strict=True)],
            largest=max(float(each.max()) for each in levels),
            off=float(np.mean([np.mean(each > 1) for each in levels])),
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        signal = (f"{float(np.mean(self.psnr)):.1f} dB", f"{min(self.psnr):.1f} dB")
        return (*signal, f"{self.largest:.2f} levels", f"{self.off:.3%}")


class TorchEngine(FunctionEngine):
    """The module that is exported, run by torch."""

    def __init__(self, exportable: Exportable) -> None:
        super().__init__(exportable.spec, self._call)
        self._module = exportable.module

    def _call(self, arrays: Arrays) -> Arrays:
        given = [torch.from_numpy(arrays[spec.name].copy()) for spec in self.spec.inputs]
        with torch.no_grad():
            outputs = self._module(*given)
        return {spec.name: each.float().numpy() for spec, each in zip(self.spec.outputs, outputs, strict=True)}


def engines(checkpoint: Checkpoint, precision: Precision) -> dict[str, TorchEngine]:
    """A checkpoint's decoder."""
    parts = family_of(checkpoint).parts(checkpoint)
    return {part.name: TorchEngine(part.load(precision)) for part in parts if part.name in DECODERS}


def rendered(count: int, size: tuple[int, int], frames: int) -> list[Floats]:
    """Scenes that no training has seen, in 0..1, [F, H, W, 3]."""
    width, height = size
    return [render(scene, frames=frames, width=width, height=height) for scene in data.scenes([EVALUATION, 11], count)]


def encoded(checkpoint: Checkpoint, spec: PipelineSpec, scenes: Sequence[Floats]) -> list[Floats]:
    """Their latents, float32 [1, C, F, H, W], normalised as the decoder takes them."""
    vae = getattr(diffusers, checkpoint.config(VAE)["_class_name"]).from_pretrained(checkpoint.folder / VAE).eval()
    mean, std = (torch.tensor(each).reshape(1, -1, 1, 1, 1) for each in (spec.latents_mean, spec.latents_std))
    found = []
    for scene in scenes:
        clip = torch.from_numpy(scene).permute(3, 0, 1, 2)[None]
        with torch.no_grad():
            found.append((((vae.encode(clip * 2 - 1).latent_dist.mode()) - mean) / std).numpy())
    return found


def decoded(
    made: Mapping[str, TorchEngine], spec: PipelineSpec, clips: Sequence[Floats], tiling: Tiling | None
) -> list[Floats]:
    """Clips in 0..1, [F, H, W, 3], with the same noise for a decoder that adds some."""
    conditioning = decode_conditioning(spec, tiling=tiling)
    decoder = Decoder(engines=made, device=HostDevice(), conditioning=conditioning)
    videos = []
    for latents in clips:
        chunks = decoder.decode(Tensor.of(np.ascontiguousarray(latents)), TorchNormal(0), floats=True)
        frames = np.concatenate([chunk.frames for chunk in chunks], axis=1)
        videos.append(np.ascontiguousarray((frames.transpose(1, 2, 3, 0) / 2 + 0.5).clip(0, 1)))
    return videos


def _signal(found: Sequence[Floats], expected: Sequence[Floats]) -> str:
    return f"{np.mean([psnr(one, other) for one, other in zip(found, expected, strict=True)]):.2f} dB"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vae", description="Measure a VAE decoder in 16 bits and in tiles."
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINTS / "large", metavar="DIR")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="clips (default: %(default)s)")
    parser.add_argument("--size", default=SIZE, metavar="WxH", help="(default: %(default)s)")
    parser.add_argument("--frames", type=int, default=13, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--tiling", default=TILINGS, metavar="WxH+O,...", help="(default: %(default)s)")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.checkpoint, None)
    spec = family_of(checkpoint).describe(checkpoint)
    tilings = [read_tiling(text, spec) for text in arguments.tiling.split(",")]
    scenes = rendered(arguments.count, parse_size(arguments.size), arguments.frames)
    clips = encoded(checkpoint, spec, scenes)
    whole = engines(checkpoint, Precision.FP32)
    reference = decoded(whole, spec, clips, None)
    halves = {each: engines(checkpoint, each) for each in (Precision.BF16, Precision.FP16)}
    found = {str(each): decoded(made, spec, clips, None) for each, made in halves.items()}
    found |= {f"fp32, tiles of {each}": decoded(whole, spec, clips, each) for each in tilings}
    rows: list[tuple[str, ...]] = [("fp32", "-", "-", "-", "-", _signal(reference, scenes))]
    rows += [(name, *Error.of(made, reference).cells, _signal(made, scenes)) for name, made in found.items()]
    notes = [f"{arguments.count} clips of {arguments.size}, {arguments.frames} frames; a level is 1/255."]
    print(markdown_table(COLUMNS, rows, notes), end="")
    return 0


if __name__ == "__main__":
    run_program(main)
