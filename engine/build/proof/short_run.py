"""A short run of a bundle, from a prompt to pixels, by the very code that fb-run runs: whether the bundle runs at all.

A few steps of the smallest video, one with each model's engine. Components that each equal torch may still not make a
video together, and what torch gives may be no number either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowblending import FlowBlendingError, OutOfMemoryError, UsageError
from flowblending.contracts.conditions import images_taken, takes_image_channels
from flowblending.contracts.graph import VAE_NEXT
from flowblending.contracts.manifest import Geometry, Manifest, count_frames
from flowblending.contracts.models import Model
from flowblending.contracts.program import Program
from flowblending.contracts.proof import Facts
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.tensor import CPU
from flowblending.engine.build.proof.claims import FAILED, OPEN, PROVED, Claim
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.engine.bundle.geometry import plan_geometry
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.devices.open import AUTO, open_device
from flowblending.runtime.events import FramesEvent
from flowblending.runtime.jobs import compile_job, job_geometry
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.run import VideoRun
from flowblending.system.subprocess_call import Progress

BUNDLE = "bundle"
CLAIM = "runs from a prompt to pixels"


class RunFacts(Facts):
    """How a bundle's short run went.

    Attributes:
        video: that was made, ``64x64, 13 frames``.
        schedule: ``L1 S1``.
        guidance: scale of classifier-free guidance.
        where: ``cpu``, or the GPU's architecture; empty if it was not run.
        fault: why it failed, as a sentence; else empty.
        reason: why this machine cannot tell; else empty.
    """

    video: str
    schedule: str
    guidance: float
    where: str
    fault: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What to run: the bundle's folder, absolute, and the job."""

    folder: Path
    job: Job


def run_claim(run: RunFacts | None) -> Claim:
    """The claim that a bundle runs."""
    if run is None:
        return Claim(component=BUNDLE, claim=CLAIM, state=OPEN, detail="it was not run; needs fb-build-engines --prove")
    what = f"{run.schedule}, guidance {run.guidance:g}, {run.video}"
    if run.reason:
        return Claim(component=BUNDLE, claim=CLAIM, state=OPEN, detail=run.reason)
    if run.fault:
        return Claim(component=BUNDLE, claim=CLAIM, state=FAILED, detail=f"{what} on {run.where}: {run.fault}")
    return Claim(component=BUNDLE, claim=CLAIM, state=PROVED, detail=f"{what} on {run.where}")


def short_job(manifest: Manifest, prompt: str) -> Job:
    """The shortest run of a bundle that takes every component: all models, and guidance if the family guides.

    Raises:
        UsageError: the bundle has no run that compiles.
    """
    geometry = smallest(manifest)
    for schedule in _schedules(manifest.models):
        job = Job(prompt=prompt, size=geometry.size, frames=geometry.frames, schedule=schedule)
        try:
            compile_job(job, manifest)
        except UsageError:
            continue
        return job
    whole = Job(prompt=prompt, size=geometry.size, frames=geometry.frames)
    compile_job(whole, manifest)
    return whole


def _schedules(models: Sequence[Model]) -> tuple[str, str]:
    """Every engine once. A distilled model may have timesteps of its own at only one end of a run."""
    letters = [letter for model in models for letter in model.letters or (model.letter,)]
    # A single step would tell nothing of a multistep solver.
    runs = [f"{letter}{1 if len(letters) > 1 else 2}" for letter in letters]
    return " ".join(runs), " ".join(reversed(runs))


def smallest(manifest: Manifest) -> Geometry:
    """The smallest of a bundle's videos that takes all of its decoders, where there is one."""
    step = manifest.pipeline.temporal_factor
    found = [profile.min for profile in manifest.profiles]
    if VAE_NEXT in manifest.components:
        # The decoder of later latent frames has nothing to do in a video of one.
        found += [
            plan_geometry(manifest.pipeline, (low.width, low.height), low.frames + step)
            for low, high in ((profile.min, profile.max) for profile in manifest.profiles)
            if low.frames == 1 < high.frames
        ]
        found = [each for each in found if each.frames > 1] or found
    return min(found, key=lambda each: math.prod(each.latent_shape))


def run_bundle(pipeline: Pipeline, job: Job, where: str) -> RunFacts:
    """Make the job's video, and keep none of it.

    Args:
        pipeline: where all engines of the bundle may be open together.
        where: ``cpu``, or the GPU's architecture.
    """
    facts = planned(job, compile_job(job, pipeline.bundle.manifest), where)
    try:
        run = VideoRun(pipeline, job, clips=_needed(pipeline.bundle.manifest, job), open_first=True)
        with closing(run.events()) as events:
            decoded = sum(event.count for event in events if isinstance(event, FramesEvent))
    except OutOfMemoryError as error:
        return facts.model_copy(update={"reason": f"it does not fit here: {error}"})
    except FlowBlendingError as error:
        return facts.model_copy(update={"fault": str(error)})
    if decoded != run.geometry.frames:
        fault = f"The VAE decoder gave {count_frames(str(decoded))} of {run.geometry.frames}; check its checkpoint."
        return facts.model_copy(update={"fault": fault})
    return facts


def _needed(manifest: Manifest, job: Job) -> tuple[GivenClip, ...]:
    """Grey images, where there is no video without one."""
    conditions = manifest.pipeline.conditions
    if not takes_image_channels(conditions):
        return ()
    video = job_geometry(job, manifest)
    grey = np.full((1, video.height, video.width, 3), 128, np.uint8)
    places = (0, video.frames - 1)[: max(1, images_taken(conditions))]
    return tuple(GivenClip(name="a grey image", frames=grey, frame=place) for place in places)


def planned(job: Job, program: Program, where: str) -> RunFacts:
    """What is known of a run before it."""
    return RunFacts(
        video=f"{job.size}, {count_frames(str(job.frames))}",
        schedule=program.schedule,
        guidance=program.guidance,
        where=where,
    )


def run_here(request: RunRequest, progress: Progress) -> RunFacts:
    """Run a bundle on this machine; in a process of its own, since it may fill the memory."""
    bundle = open_bundle(request.folder)
    facts = planned(request.job, compile_job(request.job, bundle.manifest), "")
    try:
        device = open_device(AUTO, bundle.manifest)
    except FlowBlendingError as error:
        return facts.model_copy(update={"reason": str(error)})
    where = CPU if device.kind == CPU else gpu_architecture() or device.kind
    progress(f"making {facts.video} with {facts.schedule} on {where}")
    pipeline = Pipeline(bundle=bundle, device=device)
    try:
        return run_bundle(pipeline, request.job, where)
    finally:
        pipeline.close()
