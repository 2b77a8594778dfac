"""The oracle of the parity tests: unmodified diffusers pipelines, with their transformer swapped between steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline, LTXPipeline, LTXVideoTransformer3DModel, WanPipeline, WanTransformer3DModel

from flowblending.engine.manifest import Manifest
from flowblending.runtime.jobs import Job, compile_job

Floats = npt.NDArray[np.float32]
Reference = tuple[Floats, Floats | None]


def load(checkpoints: Path) -> tuple[Any, dict[str, Any]]:
    """The large model's pipeline, and both transformers."""
    pipe = DiffusionPipeline.from_pretrained(checkpoints / "large", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    kind = WanTransformer3DModel if isinstance(pipe, WanPipeline) else LTXVideoTransformer3DModel
    small = checkpoints / "small"
    whole = (small / "model_index.json").exists()
    return pipe, {"large": pipe.transformer, "small": kind.from_pretrained(small / "transformer" if whole else small)}


def run(checkpoints: Path, manifest: Manifest, job: Job, *, decode: bool = False, latents: Any = None) -> Reference:
    """Final latents [1, C, F, H, W], normalised, and with ``decode`` the frames [3, F, H, W] in [-1, 1].

    The schedule's models are put into ``pipe.transformer`` between the steps, where the pipelines read it anew.
    """
    pipe, transformers = load(checkpoints)
    models = [step.model for step in compile_job(job, manifest).steps]
    geometry = manifest.geometry
    final: list[torch.Tensor] = []

    def swap(pipe: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        final[:] = [values["latents"]]
        pipe.transformer = transformers[models[min(step + 1, len(models) - 1)]]
        return {}

    pipe.transformer = transformers[models[0]]
    output = pipe(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=geometry.width,
        height=geometry.height,
        num_frames=geometry.frames,
        num_inference_steps=len(models),
        guidance_scale=manifest.pipeline.guidance if job.guidance is None else job.guidance,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        latents=latents,
        output_type="pt" if decode else "latent",
        callback_on_step_end=swap,
    )
    (packed,) = final
    if isinstance(pipe, WanPipeline):
        unpacked = packed
    else:
        shape = manifest.geometry.latent_shape[1:]
        unpacked = LTXPipeline._unpack_latents(packed, *shape, 1, 1)
    frames = (2 * output.frames[0].permute(1, 0, 2, 3) - 1).numpy() if decode else None
    return unpacked.numpy(), frames


def relative_error(value: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """L2 norm of the difference over the L2 norm of what was expected."""
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
