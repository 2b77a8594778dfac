"""A job as plain data, for ``--json``: what it comes to on a bundle, and its cost. docs/json.md tells the keys."""

from __future__ import annotations

from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import Program
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.runtime.jobs import calibrated_schedule, job_levels
from flowblending.runtime.options import Job
from flowblending.runtime.program.cost import Cost, cost_of
from flowblending.runtime.program.shifts import shift_of


def job_facts(job: Job, program: Program, manifest: Manifest) -> dict[str, object]:
    """The prompt, and every setting with what the defaults came to."""
    pipeline, geometry = manifest.pipeline, geometry_of(manifest.pipeline, program.latent_shape)
    calibrated = calibrated_schedule(job, manifest)
    return {
        "prompt": job.prompt,
        "negative_prompt": pipeline.negative_prompt if job.negative_prompt is None else job.negative_prompt,
        "seed": job.seed,
        "size": geometry.size,
        "frames": geometry.frames,
        "frame_rate": pipeline.frame_rate if job.frame_rate is None else job.frame_rate,
        "image": list(job.image),
        "input_video": job.video,
        "strength": job.strength,
        "mask": job.mask,
        "reference": list(job.reference),
        "control_scale": job.control_scale,
        "fit": job.fit,
        "resample_fps": job.resample_fps,
        "latent_shape": program.latent_shape,
        "schedule": program.schedule,
        "calibration": None if calibrated is None else calibrated.evidence,
        "steps": len(program.steps),
        "solver": program.solver,
        "shift": shift_of(job_levels(job, pipeline), pipeline.tokens(program.latent_shape)),
        "guidance": program.guidance,
        "guidance_rescale": program.guidance_rescale,
        "cache": job.cache,
        "lora": manifest.loras or None,
    }


def cost_facts(program: Program, manifest: Manifest) -> dict[str, object]:
    """Engine calls and floating-point operations; where a cache decides while the program runs, the most."""
    cost: Cost = cost_of(program, manifest)
    return {
        "calls": dict(cost.calls),
        "skipped_calls": dict(cost.skipped),
        "undecided_calls": dict(cost.undecided),
        "flops": cost.flops,
        "flops_all_large": cost.flops_all_large,
        "speedup_bound": cost.bound,
        "engine_bytes": cost.engine_bytes,
        "latent_bytes": cost.slot_bytes,
    }


def stage_facts(program: Program) -> list[dict[str, object]]:
    """Every stage: its model, steps from 1 on, and the noise levels and timesteps of the first and the last."""
    return [
        {
            "model": program.steps[first].model,
            "steps": [first + 1, last + 1],
            "sigma": [program.steps[first].sigma, program.steps[last].sigma],
            "timestep": [program.steps[first].timestep, program.steps[last].timestep],
            "guidance": program.guidance if program.steps[first].guidance is None else program.steps[first].guidance,
        }
        for first, last in stages_of(program)
    ]


def stages_of(program: Program) -> list[tuple[int, int]]:
    """First and last step of consecutive steps with one model and one guidance scale."""
    stages, first = [], 0
    for index, step in enumerate(program.steps):
        following = program.steps[index + 1 : index + 2]
        if not any((each.model, each.guidance) == (step.model, step.guidance) for each in following):
            stages.append((first, index))
            first = index + 1
    return stages
