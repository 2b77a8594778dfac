"""Options that were given and do nothing in a run: told, because silence would let them look as if they did."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flowblending.contracts.conditions import CROP, Source, takes
from flowblending.contracts.graph import VAE
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import UNCOND, Program, Run, Step
from flowblending.engine.backends.registry import gpu_components
from flowblending.engine.backends.tensor import CUDA
from flowblending.runtime.jobs import job_shift, low_noise_experts, option_of_shift, passed_over, words_of_shift
from flowblending.runtime.machine_options import CUDA_GRAPH, NO_GRAPHS, THREADS, MachineSettings
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.parse import OFF

_DECODER_SCALARS = frozenset({"latents", "timestep", "noise_scale"})


def unused_options(
    job: Job, program: Program, manifest: Manifest, *, timed: bool, latents_given: bool = False
) -> list[str]:
    """A sentence for each option of a job that changes nothing of its run, and for a calibration that does not.

    Args:
        job: as it was asked for.
        program: what it came to.
        manifest: of the bundle.
        timed: whether a file is written that has a frame rate.
        latents_given: whether the initial latents are not the seed's.
    """
    found = []
    schedule = passed_over(job, manifest)
    if schedule is not None:
        shift = job_shift(job, manifest.pipeline)
        found.append(
            f"the calibrated schedule {schedule.runs} is not taken, because it was found at "
            f"{words_of_shift(schedule.shift)}, and this run has {words_of_shift(shift)}; calibrate at that with "
            f"fb-calibrate BUNDLE --prompts FILE{option_of_shift(shift)}, or give a schedule."
        )
    unguided = UNCOND not in program.branches()
    if job.negative_prompt is not None and unguided:
        found.append("the negative prompt does nothing, because no step has guidance above 1.")
    if job.batched_guidance is not None and unguided:
        found.append("batched guidance, on or off, does nothing, because no step has guidance above 1.")
    if job.guidance is not None and all(step.guidance is not None for step in program.steps):
        found.append(
            f"the guidance scale {job.guidance:g} does nothing, because every stage has a guidance scale of its own."
        )
    if job.guidance_2 is not None and not _takes_second(job.guidance_2, program, low_noise_experts(manifest)):
        why = (
            "no step of this run takes it" if low_noise_experts(manifest) else "no model of this bundle has two experts"
        )
        found.append(f"the second guidance scale {job.guidance_2:g} does nothing, because {why}.")
    if job.cache != OFF and program.choice is None and all(_whole(program, step) for step in program.steps):
        found.append(f"the cache {job.cache} does nothing, because it leaves out no engine call of this run.")
    if job.frame_rate is not None and not timed and not takes(manifest.pipeline.conditions, Source.FRAME_RATE):
        found.append(
            f"the frame rate {job.frame_rate:g} does nothing, because these models take none and no file is written "
            "that has one."
        )
    if job.video is None and not job.image and job.fit != CROP:
        found.append(f"the fit {job.fit} does nothing, because no image or video is given.")
    if job.video is None and job.resample_fps is not None:
        found.append(f"resampling to {job.resample_fps:g} frames per second does nothing, because no video is given.")
    if job.seed and latents_given and not job.image and not job.reference and not _draws(manifest):
        found.append(f"the seed {job.seed} does nothing, because the initial latents were given.")
    return found


def unused_in_decoding(job: Job, manifest: Manifest, *, timed: bool) -> list[str]:
    """A sentence for each option of a job that changes nothing where saved latents are decoded.

    Args:
        job: as it was asked for.
        manifest: of the bundle.
        timed: whether the file that is written has a frame rate.
    """
    found = []
    if job.frame_rate is not None and not timed:
        found.append(f"the frame rate {job.frame_rate:g} does nothing, because no file is written that has one.")
    if job.seed and not _draws(manifest):
        found.append(f"the seed {job.seed} does nothing, because this bundle's decoder adds no noise.")
    return found


def unused_flags(line: argparse.ArgumentParser, arguments: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Those of some options that were given, as their user wrote them.

    Args:
        line: what parsed them.
        names: of fields of the arguments.
    """
    flags = {action.dest: action.option_strings[0] for action in line._actions if action.option_strings}
    return [flags[name] for name in names if getattr(arguments, name) != line.get_default(name)]


def unused_machine(machine: MachineSettings, device: str, manifest: Manifest) -> dict[str, str]:
    """A sentence for each option of the machine that does nothing, by the option's name.

    Args:
        machine: as it was asked for.
        device: ``cpu`` or ``cuda``, where the bundle runs.
        manifest: of the bundle.
    """
    found = {}
    if machine.threads is not None and device == CUDA and len(gpu_components(manifest)) == len(manifest.components):
        found[THREADS.name] = f"{THREADS.option} does nothing, because all engines of this bundle run on a GPU."
    if not machine.cuda_graph and device != CUDA:
        found[CUDA_GRAPH.name] = f"{CUDA_GRAPH.option} {NO_GRAPHS} does nothing, because this bundle runs on the CPU."
    return found


def _takes_second(scale: float, program: Program, experts: Sequence[str]) -> bool:
    """Whether a step of an expert for low noise has this scale."""
    scales = {
        program.guidance if step.guidance is None else step.guidance for step in program.steps if step.model in experts
    }
    return scale in scales


def _whole(program: Program, step: Step) -> bool:
    """Whether a step calls its engine for every branch that it has."""
    calls = sum(len(each.branches) for each in step.instructions if isinstance(each, Run))
    return calls == 1 + program.guided(step)


def _draws(manifest: Manifest) -> bool:
    """Whether the decoder draws noise of its own."""
    component = manifest.components.get(VAE)
    return component is not None and any(spec.name not in _DECODER_SCALARS for spec in component.spec.inputs)
