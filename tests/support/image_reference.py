"""What diffusers' image-to-video pipelines of Wan make of a job, with a small model where the schedule says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from PIL import Image

from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.options import Job
from flowblending.runtime.program.schedule import StageSchedule
from tests.support.diffusers_reference import Floats

WIDTH, HEIGHT, FRAMES = 32, 48, 9

Reference = tuple[Any, Any]
"""The pipeline, and the small transformer."""


def open_reference(checkpoints: Callable[[str], Path], kind: str) -> Reference:
    """Both of a kind of checkpoint."""
    folder = checkpoints(kind)
    pipe = DiffusionPipeline.from_pretrained(folder / "large", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    small = folder / "small"
    inside = small / "transformer"
    return pipe, type(pipe.transformer).from_pretrained(inside if inside.is_dir() else small)


def reference_latents(reference: Reference, bundle: Bundle, job: Job) -> Floats:
    """The final latents of a job, whose images are stretched to the video's size, as `fit="stretch"` does it."""
    pipe, small = reference
    spec, steps = bundle.manifest.pipeline, job.steps
    assert steps is not None
    experts = {name: pipe.components[name] for name in ("transformer", "transformer_2") if pipe.components.get(name)}
    letters = "".join(StageSchedule.parse(job.schedule, steps, spec.early, spec.late).letters)

    def swap(pipe: Any, step: int, _timestep: Any = None, _values: Any = None) -> dict[str, Any]:
        letter = letters[min(step + 1, len(letters) - 1)]
        for name, expert in experts.items():
            setattr(pipe, name, expert if letter == "L" else small)
        return {}

    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    swap(pipe, -1)
    size = (WIDTH, HEIGHT)
    first, *last = [Image.open(name.partition("@")[0]).resize(size, Image.Resampling.LANCZOS) for name in job.image]
    try:
        found: Floats = pipe(
            image=first,
            last_image=last[0] if last else None,
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            width=WIDTH,
            height=HEIGHT,
            num_frames=FRAMES,
            num_inference_steps=len(letters),
            guidance_scale=spec.guidance if job.guidance is None else job.guidance,
            generator=torch.Generator("cpu").manual_seed(job.seed),
            output_type="latent",
            callback_on_step_end=swap,
        ).frames.numpy()
    finally:
        for name, expert in experts.items():
            setattr(pipe, name, expert)
    return found
