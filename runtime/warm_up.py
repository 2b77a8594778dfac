"""Opening what a bundle's usual video needs, before the first is asked for."""

from __future__ import annotations

from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline


def warm_up(pipeline: Pipeline) -> None:
    """Open the engines that stay open from video to video, of a bundle's usual one.

    Raises:
        FlowBlendingError: one cannot be opened, or the usual video does not fit into memory.
    """
    manifest = pipeline.bundle.manifest
    program = compile_job(Job(prompt="a video"), manifest)
    plan = pipeline.plan(program, texts=len(program.branches()), decode=True, tiling=manifest.vae_tiling)
    pipeline.engines.begin(plan)
    stay = plan.phases[0].resident if plan.by_phases else manifest.components
    for name in stay:
        pipeline.engines.get(name)
