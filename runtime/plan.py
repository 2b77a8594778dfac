"""``fb-run --dry-run``: what a run would do and cost, from the manifest alone."""

from __future__ import annotations

from flowblending.engine.bundle import Bundle
from flowblending.engine.manifest import Manifest
from flowblending.export.spec import LARGE, SMALL, TEXT_ENCODER, VAE
from flowblending.runtime.cost import Cost, Timings, cost_of
from flowblending.runtime.jobs import Job, calibrated_schedule, compile_job
from flowblending.runtime.place import device_kind
from flowblending.runtime.program import Program, Run, Step


def plan_lines(bundle: Bundle, job: Job, device: str) -> list[str]:
    """The plan, a line each: geometry, schedule, steps, cost, memory, and time if it was measured before.

    Raises:
        UsageError: a job that makes no program.
    """
    manifest = bundle.manifest
    program = compile_job(job, manifest)
    geometry, cost = manifest.geometry, cost_of(program, manifest)
    return [
        f"bundle    {bundle.folder} ({manifest.id}), {manifest.pipeline.family}",
        f"video     {geometry.width}x{geometry.height}, {geometry.frames} frames, "
        f"latents {list(geometry.latent_shape)}",
        f"schedule  {program.schedule}{_origin(job, manifest)}, {len(program.steps)} steps, {program.solver}, "
        f"guidance {program.guidance:g}",
        *_steps(program),
        _calls(cost),
        f"FLOPs     {_tera(cost.flops)} of {_tera(cost.flops_all_large)} all-large "
        f"({cost.flops / cost.flops_all_large:.1%}); speed-up bound {cost.bound:.3f}x",
        f"memory    engines {_mega(cost.engine_bytes)}, latent slots {_mega(cost.slot_bytes)}",
        _expected(cost, Timings(manifest.id, device_kind(device, manifest)).read()),
    ]


def _origin(job: Job, manifest: Manifest) -> str:
    calibrated = calibrated_schedule(job, manifest)
    return "" if calibrated is None else f" (calibrated: {calibrated.runs}, {calibrated.evidence})"


def _calls(cost: Cost) -> str:
    line = f"calls     large x {cost.calls[LARGE]}, small x {cost.calls[SMALL]}"
    if any(cost.skipped.values()):
        line += f"; the cache skips large x {cost.skipped[LARGE]}, small x {cost.skipped[SMALL]}"
    return line


def _steps(program: Program) -> list[str]:
    """One line per stage, with the noise levels it covers, and with what a cache leaves of its steps."""
    marks = step_marks(program)
    lines, first = [], 0
    for index, step in enumerate(program.steps):
        last = index + 1 == len(program.steps)
        if last or program.steps[index + 1].model != step.model:
            noise = f"sigma {program.steps[first].sigma:.4f} to {step.sigma:.4f}"
            computes = f", computes {marks[first : index + 1]}" if set(marks) != {"1"} else ""
            lines.append(f"  steps {first + 1:>3}-{index + 1:<3} {step.model:<5}  {noise}{computes}")
            first = index + 1
    return lines


def step_marks(program: Program) -> str:
    """A character a step: 1 if it computes, 0 if it does not, c if it computes its conditional branch alone."""
    return "".join(_mark(step, len(program.branches())) for step in program.steps)


def _mark(step: Step, branches: int) -> str:
    calls = sum(len(each.branches) for each in step.instructions if isinstance(each, Run))
    return "1" if calls == branches else "c" if calls else "0"


def _expected(cost: Cost, seconds: dict[str, float]) -> str:
    needed = {model for model, count in cost.calls.items() if count}
    if not needed <= seconds.keys():
        return "time      not measured on this machine yet"
    sampling = sum(cost.calls[model] * seconds[model] for model in needed)
    rest = seconds.get(TEXT_ENCODER, 0.0) + seconds.get(VAE, 0.0)
    return f"time      about {sampling + rest:.2f} s as last measured (sampling {sampling:.2f} s)"


def _tera(flops: int) -> str:
    return f"{flops / 1e12:.4g} TFLOPs"


def _mega(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
