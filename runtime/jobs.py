"""What a job comes to on a bundle: its video's geometry, its schedule and its program."""

from __future__ import annotations

from flowblending import UsageError
from flowblending.contracts.manifest import CalibratedSchedule, Geometry, Manifest
from flowblending.contracts.program import Program
from flowblending.engine.bundle.video_choice import choose_geometry
from flowblending.runtime.decode_conditioning import DecodeConditioning, decode_conditioning
from flowblending.runtime.options import AUTO, Job
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid


def calibrated_schedule(job: Job, manifest: Manifest) -> CalibratedSchedule | None:
    """The schedule that ``fb-calibrate`` found for the bundle, if the job leaves the choice to it."""
    calibration = manifest.calibration
    return None if calibration is None or not _is_auto(job) else calibration.schedule


def _is_auto(job: Job) -> bool:
    return job.schedule.strip().lower() == AUTO


def job_geometry(job: Job, manifest: Manifest) -> Geometry:
    """The geometry of a job's video on a bundle.

    Raises:
        UsageError: the bundle was built for no such video; the message names the nearest that it makes.
    """
    return choose_geometry(manifest, job.size, job.frames)


def job_steps(job: Job, manifest: Manifest) -> int:
    """How many steps a job has: its own, else those of a schedule that says how many, else the model family's.

    Raises:
        UsageError: the schedule is none.
    """
    if job.steps is not None:
        return job.steps
    own = None if _is_auto(job) else StageSchedule.own_steps(job.schedule)
    return manifest.pipeline.steps if own is None else own


def job_conditioning(job: Job, manifest: Manifest) -> DecodeConditioning:
    """What a timestep-conditioned decoder is told for a job.

    Raises:
        UsageError: the job says it of a decoder that is not conditioned, or says what is no share.
    """
    return decode_conditioning(manifest.pipeline, job.decode_timestep, job.decode_noise_scale)


def compile_job(job: Job, manifest: Manifest) -> Program:
    """The sampling program of a job on a bundle; runs nothing.

    Raises:
        UsageError: size, frames, steps, schedule, solver, guidance or cache that make no program, or options that
            would do nothing in this run.
    """
    pipeline = manifest.pipeline
    job_conditioning(job, manifest)
    steps = job_steps(job, manifest)
    if steps > pipeline.grid.train_timesteps:
        raise UsageError(
            f"{steps} steps were asked for, but the models tell {pipeline.grid.train_timesteps} noise levels apart; "
            "give no more steps than that."
        )
    solver = job.solver or pipeline.solver
    geometry = job_geometry(job, manifest)
    latent_shape = geometry.latent_shape
    calibrated = calibrated_schedule(job, manifest)
    if calibrated is not None:
        schedule = StageSchedule.scaled(calibrated.runs, steps)
    else:
        text = "LSL" if _is_auto(job) else job.schedule
        schedule = StageSchedule.parse(text, steps, pipeline.early, pipeline.late)
    program = compile_program(
        schedule=schedule,
        solver=solver,
        grid=sigma_grid(pipeline.grid, solver, steps, pipeline.tokens(latent_shape), str(geometry)),
        latent_shape=latent_shape,
        guidance=pipeline.guidance if job.guidance is None else job.guidance,
        batched=pipeline.batched_guidance if job.batched_guidance is None else job.batched_guidance,
        guidance_rescale=pipeline.guidance_rescale if job.guidance_rescale is None else job.guidance_rescale,
        cache=parse_cache(job.cache),
        architectures={name: component.architecture for name, component in manifest.components.items()},
        constants=None if manifest.calibration is None else manifest.calibration.caches,
        model_sampling={name: each.sampling for name, each in manifest.components.items() if each.sampling is not None},
    )
    if job.guidance_rescale and not program.guidance_rescale:
        raise UsageError(
            f"A guidance rescale of {job.guidance_rescale:g} was given, but no step of this run is guided; leave it "
            "out, or give a guidance scale above 1."
        )
    return program
