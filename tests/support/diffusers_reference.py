"""The oracle of the parity tests: unmodified diffusers pipelines, with their transformer swapped between steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from flowblending.contracts.manifest import Manifest
from flowblending.runtime.jobs import compile_job, job_geometry
from flowblending.runtime.options import Job

Floats = npt.NDArray[np.float32]
Reference = tuple[Floats, Floats | None]


def load(checkpoints: Path) -> tuple[Any, dict[str, Any]]:
    """The large model's pipeline, and all transformers by component."""
    pipe = DiffusionPipeline.from_pretrained(checkpoints / "large", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    kind = WanTransformer3DModel if isinstance(pipe, WanPipeline) else LTXVideoTransformer3DModel
    small = checkpoints / "small"
    whole = (small / "model_index.json").exists()
    transformers = {"large": pipe.transformer, "small": kind.from_pretrained(small / "transformer" if whole else small)}
    if getattr(pipe, "transformer_2", None) is not None:
        transformers |= {"large_high": pipe.transformer, "large_low": pipe.transformer_2}
    if (checkpoints / "draft").is_dir():
        transformers["draft"] = kind.from_pretrained(checkpoints / "draft")
    return pipe, transformers


def run(checkpoints: Path, manifest: Manifest, job: Job, *, decode: bool = False, latents: Any = None) -> Reference:
    """Final latents [1, C, F, H, W], normalised, and with ``decode`` the frames [3, F, H, W] in [-1, 1].

    A job with the solver ``dpm++`` takes diffusers' own in place of the pipeline's scheduler; one with a shift takes
    the scheduler with that setting, and without dynamic shifting.

    The schedule's models are put into ``pipe.transformer`` between the steps, where the pipelines read it anew.
    """
    pipe, transformers = load(checkpoints)
    if job.solver == "dpm++":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    if job.shift is not None:
        name = "flow_shift" if isinstance(pipe, WanPipeline) else "shift"
        settings = {name: job.shift, "use_dynamic_shifting": False}
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **settings)
    models = [step.model for step in compile_job(job, manifest).steps]
    geometry = job_geometry(job, manifest)
    final: list[torch.Tensor] = []
    options: dict[str, Any] = {}
    if not isinstance(pipe, WanPipeline):
        # diffusers' own defaults are others than a bundle's.
        spec = manifest.pipeline
        told = {"decode_timestep": spec.decode_timestep, "decode_noise_scale": spec.decode_noise_scale}
        told |= {"guidance_rescale": spec.guidance_rescale}
        asked = {name: getattr(job, name) for name in told if getattr(job, name) is not None}
        options = {name: value for name, value in (told | asked).items() if value is not None}

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
        **options,
    )
    (packed,) = final
    if isinstance(pipe, WanPipeline):
        unpacked = packed
    else:
        unpacked = LTXPipeline._unpack_latents(packed, *geometry.latent_shape[1:], 1, 1)
    frames = (2 * output.frames[0].permute(1, 0, 2, 3) - 1).numpy() if decode else None
    return unpacked.numpy(), frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visit:
    """A step of a run: which model, at which noise level, how guided, and whether a solver's history ends before it.

    With ``euler`` it is a step of FlowMatchEulerDiscreteScheduler.
    """

    model: str
    sigma: float
    timestep: float
    guidance: float
    fresh: bool = False
    euler: bool = False


class ScriptedScheduler:
    """UniPC's or Euler's schedulers in turn, in place of a pipeline's own; a new one where a visit is fresh.

    A fresh visit that is followed by another one (or by the end) is thereby a single step of first order.
    """

    order = 1

    def __init__(self, visits: Sequence[Visit]) -> None:
        self.visits = visits
        self.timesteps = torch.tensor([visit.timestep for visit in visits])
        self.sigmas = torch.tensor([*(visit.sigma for visit in visits), 0.0])
        self.index = 0
        self.current: Any = None

    def set_timesteps(self, steps: int, device: Any = None) -> None:  # noqa: ARG002 - a scheduler's
        assert steps == len(self.visits)

    def set_begin_index(self, index: int) -> None:
        self.index = index

    def step(self, velocity: Any, timestep: Any, latents: Any, return_dict: bool = True) -> Any:
        if self.visits[self.index].fresh or self.current is None:
            if self.visits[self.index].euler:
                self.current = FlowMatchEulerDiscreteScheduler()
            else:
                self.current = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
            self.current.set_timesteps(len(self.visits))
            timestep = self.current.timesteps[self.index] if self.visits[self.index].euler else timestep
            self.current.sigmas = self.sigmas
            self.current.set_begin_index(self.index)
        self.index += 1
        return self.current.step(velocity, timestep, latents, return_dict=return_dict)


def run_visits(checkpoints: Path, manifest: Manifest, job: Job, visits: Sequence[Visit]) -> Floats:
    """Final latents of a run whose steps are told one by one: Wan with `ScriptedScheduler`, or LTXConditionPipeline."""
    pipe, transformers = load(checkpoints)
    wan = isinstance(pipe, WanPipeline)
    if wan:
        pipe.scheduler = ScriptedScheduler(visits)
    final: list[torch.Tensor] = []

    def prepare(pipe: Any, visit: Visit) -> None:
        pipe.transformer = transformers[visit.model]
        # WanPipeline guides by the scale it was called with, or not at all. The LTX pipeline joins its text conditions
        # before the loop, and has to go on guiding: just above 1, uncond has no weight left.
        pipe._guidance_scale = visit.guidance if wan or visit.guidance > 1 else 1.0 + 1e-9

    def swap(pipe: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        final[:] = [values["latents"]]
        prepare(pipe, visits[min(step + 1, len(visits) - 1)])
        return {}

    pipe.transformer = transformers[visits[0].model]
    pipe(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=manifest.geometry.width,
        height=manifest.geometry.height,
        num_frames=manifest.geometry.frames,
        num_inference_steps=len(visits),
        guidance_scale=visits[0].guidance,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        output_type="latent",
        callback_on_step_end=swap,
        **{} if wan else {"timesteps": [visit.timestep for visit in visits]},
    )
    (packed,) = final
    return (packed if wan else LTXPipeline._unpack_latents(packed, *manifest.geometry.latent_shape[1:], 1, 1)).numpy()


def relative_error(value: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """L2 norm of the difference over the L2 norm of what was expected."""
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
