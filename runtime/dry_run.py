"""``fb-run --dry-run``: what a run would do and cost, from the manifest alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from flowblending.contracts.conditions import is_shown, takes_control
from flowblending.contracts.graph import TEXT_ENCODER, VAE
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.models import Model
from flowblending.contracts.program import Program, Run, Step
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.backends.tensor import CUDA
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.engine.bundle.vae_tiling import choose_tiling, other_tilings
from flowblending.runtime.authors import authors_line
from flowblending.runtime.conditions.references import with_references
from flowblending.runtime.devices.open import device_kind
from flowblending.runtime.job_facts import cost_facts, job_facts, stage_facts, stages_of
from flowblending.runtime.jobs import (
    calibrated_schedule,
    check_given,
    compile_job,
    job_images,
    job_levels,
    job_steps,
    job_strength,
)
from flowblending.runtime.machine_options import DEFAULTS, MachineSettings
from flowblending.runtime.media.read_clip import shown_size
from flowblending.runtime.memory.describe import Told, memory_facts, memory_lines, tell_memory, tiles_instead
from flowblending.runtime.memory.needs import run_memory
from flowblending.runtime.memory.plan import MemoryPlan
from flowblending.runtime.options import Job
from flowblending.runtime.program.cost import Cost, Timings, cost_of
from flowblending.runtime.program.graph_plan import GraphPlan, plan_graphs
from flowblending.runtime.program.shifts import describe_shift
from flowblending.runtime.program.strength import steps_left_out
from flowblending.system.host_memory import available_memory
from flowblending.system.printable import printable

_Number = TypeVar("_Number", int, float)


def plan_lines(bundle: Bundle, job: Job, device: str, machine: MachineSettings = DEFAULTS) -> list[str]:
    """The plan, a line each: geometry, schedule, steps, cost, memory, and time if it was measured before.

    Raises:
        UsageError: a job that makes no program.
    """
    manifest = bundle.manifest
    program = compile_job(job, manifest)
    check_given(job, manifest)
    first, geometry = manifest.models[0], geometry_of(manifest.pipeline, program.latent_shape)
    program = with_references(program, len(job.reference))
    cost = cost_of(program, manifest)
    kind = device_kind(device, manifest)
    told = _memory(job, program, manifest, kind, machine.memory)
    return [
        f"bundle    {bundle.folder} ({manifest.id}), {manifest.pipeline.family}",
        *([f"lora      {manifest.loras}"] if manifest.loras else []),
        *_begins(job, manifest, program),
        *(f"image     {given}, {job.fit}" for given in job_images(job, manifest)),
        *(f"reference {printable(each)}" for each in job.reference),
        f"video     {geometry}, latents {list(geometry.latent_shape)}",
        f"schedule  {program.schedule}{_origin(job, manifest)}, {len(program.steps)} steps, {program.solver}, "
        f"guidance {program.guidance:g}{_rescaled(program)}, {_shift(job, manifest, program)}",
        *_authors(job, manifest),
        *_steps(program),
        _calls(cost, cached=job.cache != "off"),
        _operations(cost, first),
        f"files     engines {_mega(cost.engine_bytes)}, latent slots {_mega(cost.slot_bytes)}",
        *memory_lines(told),
        *_graphs(graph_plan(program, manifest, kind, told.plan) if machine.cuda_graph else None),
        _expected(cost, first, Timings(manifest.id, kind, program.latent_shape).read()),
    ]


def plan_facts(bundle: Bundle, job: Job, device: str, machine: MachineSettings = DEFAULTS) -> dict[str, object]:
    """The same as plain data.

    Raises:
        UsageError: a job that makes no program.
    """
    manifest = bundle.manifest
    facts = job_facts(job, compile_job(job, manifest), manifest)
    program = with_references(compile_job(job, manifest), len(job.reference))
    kind = device_kind(device, manifest)
    told = _memory(job, program, manifest, kind, machine.memory)
    graphs = graph_plan(program, manifest, kind, told.plan) if machine.cuda_graph else None
    seconds = Timings(manifest.id, kind, program.latent_shape).read()
    expected = _seconds_expected(cost_of(program, manifest), seconds)
    return {
        **facts,
        "stages": stage_facts(program),
        **cost_facts(program, manifest),
        "memory": memory_facts(told),
        "graph_launches": None if graphs is None else graphs.launches,
        "seconds": None if expected is None else {"least": expected[0], "most": expected[1]},
    }


def graph_plan(program: Program, manifest: Manifest, kind: str, memory: MemoryPlan) -> GraphPlan | None:
    """Which steps become CUDA graphs; None on the CPU.

    Args:
        kind: ``cpu`` or ``cuda``.
        memory: how the run goes about it.
    """
    if kind != CUDA:
        return None
    backends = [BACKENDS.get(manifest.components[name].backend) for name in {step.model for step in program.steps}]
    titles = {each.title for each in backends if not each.cuda_graphs}
    if any(manifest.components[step.model].weight_streaming for step in program.steps):
        titles.add("plans that can stream weights")
    return plan_graphs(program, titles, by_phases=memory.by_phases)


def _graphs(plan: GraphPlan | None) -> list[str]:
    if plan is None:
        return []
    if plan.why_not:
        return [f"graphs    no CUDA graphs, because {plan.why_not}"]
    return [f"graphs    {len(plan.captured)} of CUDA, which launch {plan.launches} of {len(plan.kinds)} steps"]


def _memory(job: Job, program: Program, manifest: Manifest, device: str, memory: str) -> Told:
    """The plan with what is free of the GPU now, where there is one."""
    tiling = choose_tiling(manifest, job.vae_tiling)
    # Frames are encoded of what a job gives, and of nothing where the models look for something.
    frames = bool(job.image) or job.video is not None or is_shown(manifest.pipeline.conditions)
    on_gpu = device_kind(device, manifest) == CUDA
    free, host = (free_memory(), available_memory()) if on_gpu else (None, None)

    def told(tiling: Tiling | None) -> Told:
        run = run_memory(manifest, program, texts=len(program.branches()), decode=True, tiling=tiling, frames=frames)
        return tell_memory(run, memory, free, host)

    whole = told(tiling)
    for other in other_tilings(manifest, job.vae_tiling) if whole.refusal is not None else ():
        if (tiled := told(other)).refusal is None:
            return dataclasses.replace(tiled, note=tiles_instead(other))
    return whole


def _begins(job: Job, manifest: Manifest, program: Program) -> list[str]:
    """Which steps of the whole run a strength leaves, or what the models are shown."""
    strength = job_strength(job, manifest)
    if job.video is None:
        return []
    if takes_control(manifest.pipeline.conditions):
        masked = "all of it to be made" if job.mask is None else f"what {printable(job.mask)} shows white to be made"
        return [f"control   {printable(job.video)}, {job.fit}, {masked}"]
    width, height = shown_size(Path(job.video))
    steps, first = job_steps(job, manifest), program.steps[0]
    left = steps_left_out(steps, strength)
    return [
        f"from      {printable(job.video)}, {width}x{height}, {job.fit}",
        f"strength  {strength:g}: begins with step {left + 1} of {steps}, at sigma {first.sigma:.4f}, timestep "
        f"{first.timestep:g}; the steps above it are left out of the schedule",
    ]


def _rescaled(program: Program) -> str:
    return f", rescaled by {program.guidance_rescale:g}" if program.guidance_rescale else ""


def _shift(job: Job, manifest: Manifest, program: Program) -> str:
    return describe_shift(job_levels(job, manifest.pipeline), manifest.pipeline.tokens(program.latent_shape))


def _authors(job: Job, manifest: Manifest) -> list[str]:
    line = authors_line(manifest.pipeline, job)
    return [] if line is None else [f"authors   {line}"]


def _origin(job: Job, manifest: Manifest) -> str:
    calibrated = calibrated_schedule(job, manifest)
    return "" if calibrated is None else f" (calibrated: {calibrated.runs}, {calibrated.evidence})"


def _operations(cost: Cost, first: Model) -> str:
    flops, bounds = _range(cost.flops_least, cost.flops, _tera), _range(cost.bound, cost.bound_most, "{:.3f}x".format)
    share = _range(cost.flops_least / cost.flops_all_large, cost.flops / cost.flops_all_large, "{:.1%}".format)
    attention = f"{cost.attention / cost.flops:.1%} of it attention"
    return (
        f"FLOPs     {flops} of {_tera(cost.flops_all_large)} all-{first.name} ({share}), {attention}; "
        f"speed-up bound {bounds}"
    )


def _calls(cost: Cost, *, cached: bool) -> str:
    line = f"calls     {_each(cost.calls)}"
    if any(cost.skipped.values()):
        line += f"; the cache skips {_each(cost.skipped)}"
    elif cached and not any(cost.undecided.values()):
        line += "; the cache skips nothing"
    if any(cost.undecided.values()):
        line += f" at most; the cache decides about {_each(cost.undecided)} while the program runs"
    return line


def _each(calls: Mapping[str, int]) -> str:
    return ", ".join(f"{model} x {count}" for model, count in calls.items())


def _steps(program: Program) -> list[str]:
    """One line per stage: noise levels and timesteps of its first and its last step, and what a cache leaves of all."""
    marks = "".join(_mark(step, 1 + program.guided(step)) for step in program.steps)
    if program.choice is not None:
        marks = "".join(mark if reuse is None else "?" for mark, reuse in zip(marks, program.choice.reuse, strict=True))
    lines, width = [], max(len(step.model) for step in program.steps)
    for first, last in stages_of(program):
        begin, end = program.steps[first], program.steps[last]
        noise = f"sigma {begin.sigma:.4f} to {end.sigma:.4f}, timesteps {begin.timestep:g} to {end.timestep:g}"
        scale = "" if end.guidance is None else f", guidance {end.guidance:g}"
        computes = f", computes {marks[first : last + 1]}" if set(marks) != {"1"} else ""
        lines.append(f"  steps {first + 1:>3}-{last + 1:<3} {end.model:<{width}}  {noise}{scale}{computes}")
    return lines


def _mark(step: Step, branches: int) -> str:
    """1 for a step that computes, 0 for one that does not, c for one that computes its conditional branch alone."""
    calls = sum(len(each.branches) for each in step.instructions if isinstance(each, Run))
    return "1" if calls == branches else "c" if calls else "0"


def _expected(cost: Cost, first: Model, seconds: dict[str, float]) -> str:
    expected = _sampling_expected(cost, seconds)
    if expected is None:
        return "time      not measured on this machine yet"
    least, most = expected
    total, sampling = _range(*_whole(expected, seconds), _seconds), _range(least, most, _seconds)
    reached = _reached(cost, first, least, most, seconds)
    return f"time      about {total} as last measured (sampling {sampling}{reached})"


def _sampling_expected(cost: Cost, seconds: dict[str, float]) -> tuple[float, float] | None:
    """Seconds of sampling, the least and the most; None if a model was not measured."""
    needed = {model for model, count in cost.calls.items() if count}
    if not needed <= seconds.keys():
        return None
    most = sum(cost.calls[model] * seconds[model] for model in needed)
    return most - sum(cost.undecided[model] * seconds[model] for model in needed), most


def _whole(sampling: tuple[float, float], seconds: dict[str, float]) -> tuple[float, float]:
    """Seconds of the whole video."""
    rest = seconds.get(TEXT_ENCODER, 0.0) + seconds.get(VAE, 0.0)
    return sampling[0] + rest, sampling[1] + rest


def _seconds_expected(cost: Cost, seconds: dict[str, float]) -> tuple[float, float] | None:
    expected = _sampling_expected(cost, seconds)
    return None if expected is None else _whole(expected, seconds)


def _reached(cost: Cost, first: Model, least: float, most: float, seconds: dict[str, float]) -> str:
    """How much faster than sampling with the first model alone that is, and which share of what operations allow."""
    a_call = [seconds[engine] for engine in first.components if engine in seconds]
    if not a_call or not most or (cost.flops, cost.flops_least) == (cost.flops_all_large,) * 2:
        return ""
    # Two experts are one architecture.
    alone = cost.calls_all_large * sum(a_call) / len(a_call)
    slowest, fastest = (alone / value for value in (most, least))
    shares = _range(slowest / cost.bound, fastest / cost.bound_most, "{:.0%}".format)
    return f", {_range(slowest, fastest, '{:.2f}x'.format)} all-{first.name}'s speed, {shares} of the bound"


def _range(least: _Number, most: _Number, text: Callable[[_Number], str]) -> str:
    """One number, or two where something is decided while the program runs."""
    low, high = text(least), text(most)
    return high if low == high else f"{low} to {high}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _tera(flops: int) -> str:
    return f"{flops / 1e12:.4g} TFLOPs"


def _mega(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
