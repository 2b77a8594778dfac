"""What a job comes to on a bundle: its video's geometry, its schedule and its program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import (
    CONTROL_SCALE,
    Source,
    images_taken,
    room_for_references,
    starts_from_video,
    takes_control,
    takes_image_channels,
)
from flowblending.contracts.graph import PipelineSpec, SigmaGrid
from flowblending.contracts.manifest import CalibratedSchedule, Geometry, Manifest
from flowblending.contracts.models import check_letters, default_schedule
from flowblending.contracts.program import Program, Run
from flowblending.engine.bundle.plan_profiles import most_latents
from flowblending.engine.bundle.vae_tiling import choose_tiling
from flowblending.engine.bundle.video_choice import choose_geometry, nearest_shape
from flowblending.runtime.conditions.given import Given, read_given
from flowblending.runtime.conditions.image_channels import check_places
from flowblending.runtime.conditions.registry import check_taken
from flowblending.runtime.conditions.vace import check_frames, read_scales
from flowblending.runtime.decode_conditioning import DecodeConditioning, decode_conditioning
from flowblending.runtime.media.read_clip import shown_size
from flowblending.runtime.options import AUTO, Job
from flowblending.runtime.program.boundaries import read_boundaries
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.caches.registry import measured_caches
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.presets import check_presets
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.shifts import with_shift
from flowblending.runtime.program.sigmas import Grid, sigma_grid


def job_levels(job: Job, pipeline: PipelineSpec) -> SigmaGrid:
    """The noise levels of a job: the checkpoint's, with the job's shift if it has one.

    Raises:
        UsageError: the checkpoint's levels have no shift.
    """
    return with_shift(pipeline.grid, job.shift)


def job_shift(job: Job, pipeline: PipelineSpec) -> float | None:
    """A job's shift; None where it comes to the bundle's own."""
    return None if job_levels(job, pipeline) == pipeline.grid else job.shift


def calibrated_schedule(job: Job, manifest: Manifest) -> CalibratedSchedule | None:
    """The schedule that ``fb-calibrate`` found for the bundle, if the job leaves the choice to it and has its shift."""
    schedule = _calibrated(job, manifest)
    return schedule if schedule is not None and schedule.holds_at(job_shift(job, manifest.pipeline)) else None


def passed_over(job: Job, manifest: Manifest) -> CalibratedSchedule | None:
    """The schedule that ``fb-calibrate`` found, if the job leaves the choice to it, but has another shift."""
    schedule = _calibrated(job, manifest)
    return None if schedule is None or schedule.holds_at(job_shift(job, manifest.pipeline)) else schedule


def _calibrated(job: Job, manifest: Manifest) -> CalibratedSchedule | None:
    calibration = manifest.calibration
    return None if calibration is None or not _is_auto(job) or job.boundaries is not None else calibration.schedule


def _is_auto(job: Job) -> bool:
    return job.schedule.strip().lower() == AUTO


def asked_schedule(job: Job, manifest: Manifest) -> str:
    """The schedule of a job where no calibration has one: its own, or the bundle's default."""
    return default_schedule(manifest.models) if _is_auto(job) else job.schedule


def low_noise_experts(manifest: Manifest) -> tuple[str, ...]:
    """The engines that a second guidance scale is for."""
    return tuple(model.components[1] for model in manifest.models if model.experts)


def job_geometry(job: Job, manifest: Manifest) -> Geometry:
    """The geometry of a job's video on a bundle.

    Raises:
        UsageError: the bundle was built for no such video; the message names the nearest that it makes. Or the size is
            to be that of an image or a video, and none is given.
        FlowBlendingError: the size is to be that of a file that cannot be read.
    """
    if str(job.size).strip().lower() != AUTO:
        return choose_geometry(manifest, job.size, job.frames)
    given = [Path(job.video)] if job.video is not None else [read_given(each).path for each in job.image]
    if not given:
        raise UsageError(
            "The size auto is the one nearest in shape to an image or a video that is given, and none is; give a size "
            f"such as {manifest.geometry.size}, or leave it out."
        )
    return nearest_shape(manifest, shown_size(given[0]), job.frames)


def job_images(job: Job, manifest: Manifest) -> tuple[Given, ...]:
    """The images and clips that a job names, none of which has been read.

    Raises:
        UsageError: a name or a strength that is none, a bundle that takes no images, or a video to begin from beside.
    """
    images = tuple(map(read_given, job.image))
    if images:
        check_taken(manifest, Source.IMAGE)
    if images and takes_control(manifest.pipeline.conditions):
        check_one_control(job)
    if images and job.video is not None:
        raise UsageError(
            "An image was given, and a video to begin from, but a run takes one of the two; leave one out."
        )
    return images


def check_one_control(job: Job) -> None:
    """Refuse a video as the control of a run that is given frames, of which one is made.

    Raises:
        UsageError: there are both.
    """
    for name, value in (("video", job.video), ("mask", job.mask)):
        if value is not None:
            raise UsageError(
                f"An image was given as a frame of the video, which makes the control and its mask, and a {name} as "
                "well; leave one out, or give the image as a --reference."
            )


def check_references(job: Job, manifest: Manifest) -> None:
    """Refuse reference images that a bundle does not take, or not so many of them.

    Raises:
        UsageError: it is so.
    """
    count, conditions = len(job.reference), manifest.pipeline.conditions
    if not count:
        return
    if not takes_control(conditions):
        raise UsageError(
            "A reference image was given, but the models of this bundle take none; leave it out, or build a bundle of "
            "a VACE checkpoint."
        )
    room = room_for_references(conditions)
    if count > room:
        what = f"have room for {room}; give fewer" if room else "were built without room for any; build it again"
        raise UsageError(
            f"{count} reference image{'s were' if count > 1 else ' was'} given, but the models of this bundle {what}."
        )


def check_given(job: Job, manifest: Manifest) -> None:
    """Refuse a job that names no image where the bundle makes no video without, or one in a place that it cannot have.

    `compile_job` does not: images may be given beside a job, as arrays.

    Raises:
        UsageError: it is so.
    """
    if takes_image_channels(manifest.pipeline.conditions):
        wanted = images_taken(manifest.pipeline.conditions)
        check_places(job_images(job, manifest), job_geometry(job, manifest).frames, wanted)
    if takes_control(manifest.pipeline.conditions):
        check_frames(job_images(job, manifest), job_geometry(job, manifest).frames)


def job_strength(job: Job, manifest: Manifest) -> float:
    """The share of its steps that a job makes: all, or where it begins from a video, the last ones.

    Raises:
        UsageError: of video and strength, one is missing, or the bundle begins from no video.
    """
    if takes_control(manifest.pipeline.conditions):
        if job.strength is not None:
            raise UsageError(
                f"A strength of {job.strength:g} was given, but this bundle takes a video as its control, and begins "
                "from none; leave it out, or give --control-scale."
            )
        return 1.0
    if job.video is None and job.strength is None:
        return 1.0
    if job.video is None:
        raise UsageError(
            f"A strength of {job.strength:g} was given, but no video to begin from; give one, or leave it out."
        )
    if takes_image_channels(manifest.pipeline.conditions):
        check_taken(manifest, Source.VIDEO)
    if not starts_from_video(manifest.pipeline.conditions):
        raise UsageError(
            "A video was given to begin from, but this bundle has no VAE encoder to read one with; build it in with "
            "fb-build-engines --conditions video."
        )
    if job.strength is None:
        raise UsageError(
            "A video was given to begin from, but no strength; give one such as 0.6, which makes the last 60 % of the "
            "steps."
        )
    return job.strength


def job_scales(job: Job, manifest: Manifest) -> dict[str, npt.NDArray[np.float32]]:
    """What the control's hints are multiplied by in every transformer that takes one, by component.

    Raises:
        UsageError: a mask without a video, scales that are none, or either for a bundle that takes no control.
    """
    if not takes_control(manifest.pipeline.conditions):
        for name, given in (("mask", job.mask), ("control scale", job.control_scale)):
            if given is not None:
                raise UsageError(
                    f"A {name} was given, but the models of this bundle take no control; leave it out, or build a "
                    "bundle of a VACE checkpoint."
                )
        return {}
    if job.mask is not None and job.video is None:
        raise UsageError("A mask was given, but no video that it belongs to; give one, or leave the mask out.")
    hints = {
        name: int(spec.shape[0])
        for name in manifest.transformers
        for spec in manifest.components[name].spec.inputs
        if spec.name == CONTROL_SCALE
    }
    return read_scales("1" if job.control_scale is None else job.control_scale, hints)


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
    """How a job's video is decoded.

    Raises:
        UsageError: the job tells a decoder something that is not conditioned, or what is no share, or asks for tiles
            that the bundle's does not take.
    """
    tiling = choose_tiling(manifest, job.vae_tiling)
    return decode_conditioning(manifest.pipeline, job.decode_timestep, job.decode_noise_scale, tiling=tiling)


def job_check(manifest: Manifest) -> Callable[[Job], None]:
    """A check of many jobs on a bundle: jobs that differ in their texts and seeds alone are compiled once.

    Returns:
        What raises UsageError for a job that makes no program.
    """

    @functools.cache
    def compiled(job: Job) -> str:
        try:
            compile_job(job, manifest)
            check_given(job, manifest)
        except UsageError as error:
            return str(error)
        return ""

    def check(job: Job) -> None:
        if error := compiled(dataclasses.replace(job, prompt="", negative_prompt=None, seed=0)):
            raise UsageError(error)

    return check


def compile_job(job: Job, manifest: Manifest) -> Program:
    """The sampling program of a job on a bundle; runs nothing.

    Raises:
        UsageError: size, frames, steps, schedule, solver, guidance or cache that make no program, or options that
            would do nothing in this run.
    """
    pipeline = manifest.pipeline
    job_conditioning(job, manifest)
    strength = job_strength(job, manifest)
    job_images(job, manifest)
    check_references(job, manifest)
    job_scales(job, manifest)
    schedule = asked_schedule(job, manifest)
    check_letters(StageSchedule.letters_in(schedule), manifest.models, schedule)
    steps = job_steps(job, manifest)
    if steps > pipeline.grid.train_timesteps:
        raise UsageError(
            f"{steps} steps were asked for, but the models tell {pipeline.grid.train_timesteps} noise levels apart; "
            "give no more steps than that."
        )
    solver = job.solver or pipeline.solver
    geometry = job_geometry(job, manifest)
    latent_shape = geometry.latent_shape
    grid = sigma_grid(job_levels(job, pipeline), solver, steps, pipeline.tokens(latent_shape), str(geometry))
    program = compile_program(
        schedule=_schedule(job, manifest, grid),
        models=manifest.letters,
        solver=solver,
        grid=grid,
        latent_shape=latent_shape,
        guidance=pipeline.guidance if job.guidance is None else job.guidance,
        batched=pipeline.batched_guidance if job.batched_guidance is None else job.batched_guidance,
        guidance_rescale=pipeline.guidance_rescale if job.guidance_rescale is None else job.guidance_rescale,
        cache=parse_cache(job.cache),
        architectures={name: component.architecture for name, component in manifest.components.items()},
        constants=_constants(job, manifest),
        strength=strength,
        engine_guidance={} if job.guidance_2 is None else dict.fromkeys(low_noise_experts(manifest), job.guidance_2),
    )
    _check_latents(program, manifest)
    if job.guidance_rescale and not program.guidance_rescale:
        raise UsageError(
            f"A guidance rescale of {job.guidance_rescale:g} was given, but no step of this run is guided; leave it "
            "out, or give a guidance scale above 1."
        )
    return program


def _check_latents(program: Program, manifest: Manifest) -> None:
    """Refuse calls on more latents than a plan was compiled for."""
    asked = {(each.model, len(each.branches)) for each in program.instructions() if isinstance(each, Run)}
    for name, count in sorted(asked):
        if count > 1 and count > most_latents(manifest, name):
            raise UsageError(
                f"Batched guidance was asked for, but {name} of this bundle was compiled for one latent a call; leave "
                "--batched-guidance out, or build the bundle with it: fb-build-engines --batched-guidance."
            )


def _schedule(job: Job, manifest: Manifest, grid: Grid) -> StageSchedule:
    steps, pipeline = len(grid.timesteps), manifest.pipeline
    calibrated = calibrated_schedule(job, manifest)
    if calibrated is not None:
        return StageSchedule.fitted(calibrated.runs, grid)
    schedule = StageSchedule.parse(
        asked_schedule(job, manifest),
        steps,
        pipeline.early,
        pipeline.late,
        boundaries=() if job.boundaries is None else read_boundaries(job.boundaries),
        grid=grid,
    )
    check_presets((stage.preset for stage in schedule.stages), pipeline.family)
    return schedule


def _constants(job: Job, manifest: Manifest) -> Mapping[str, Mapping[str, tuple[float, ...]]]:
    """What was measured on the bundle for the caches of a job.

    Raises:
        UsageError: constants that one of them needs were measured at another shift: they are of other noise levels.
    """
    if manifest.calibration is None:
        return {}
    found, shifts = manifest.calibration.caches, manifest.calibration.shifts
    shift = job_shift(job, manifest.pipeline)
    asked = {word.partition(":")[0].strip().lower() for word in job.cache.split("+")}
    for cache, measurement in measured_caches().values():
        if cache.name in asked and measurement.name in found and shifts.get(measurement.name) != shift:
            raise UsageError(
                f"The constants of {cache.name} were measured at {words_of_shift(shifts.get(measurement.name))}, and "
                f"this run has {words_of_shift(shift)}; measure them at that with fb-calibrate BUNDLE --prompts FILE "
                f"--cache {measurement.name}{option_of_shift(shift)}, or leave the cache out."
            )
    return found


def words_of_shift(shift: float | None) -> str:
    """A shift as `job_shift` tells it."""
    return "the bundle's own shift" if shift is None else f"a shift of {shift:g}"


def option_of_shift(shift: float | None) -> str:
    """What to add to a command for it."""
    return "" if shift is None else f" --shift {shift:g}"
