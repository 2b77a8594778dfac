"""``fb-run``: a bundle and a prompt in, a video out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from flowblending import UsageError
from flowblending.runtime.arguments import (
    given,
    take_noise,
)
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.option import RUN
from flowblending.runtime.option_values import make_job
from flowblending.runtime.options import Job
from flowblending.runtime.run_arguments import (
    check,
    check_outputs,
    choose_out,
    idle,
    is_timed,
    out_of,
    parser,
    video_suffix,
)

if TYPE_CHECKING:
    from flowblending.engine.bundle.bundle import Bundle
    from flowblending.runtime.pipeline import Pipeline
    from flowblending.runtime.prompt_file import PromptLine
    from flowblending.system.console import Console


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for; returns the exit code."""
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet, document=arguments.json)
    take_noise(arguments, console.warn)
    choose_out(arguments, console)
    check(arguments)
    bundle = open_bundle(arguments.bundle)
    _warn_unused(arguments, bundle, console)
    if arguments.dry_run:
        _dry_run(arguments, bundle, console)
        return 0
    check_outputs(arguments)
    if arguments.emit_program is not None:
        _emit_program(arguments, bundle)
        if arguments.prompt is None and arguments.prompts is None:
            console.document(RUN, {"bundle": bundle.folder, "emitted_program": arguments.emit_program})
            return 0
    total = sum(file.bytes for file in bundle.files())
    with console.progress("checking the bundle", total=total, unit="B") as advance:
        bundle.verify(recompute=arguments.verify, progress=advance)
    if arguments.decode is not None:
        return _decode(arguments, bundle, console)
    if arguments.prompts is not None:
        return _run_many(arguments, bundle, console)
    if arguments.emit_inputs is not None:
        return _emit_inputs(arguments, bundle, console)
    return _run_one(arguments, bundle, console)


def _warn_unused(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> None:
    """Tell of options that do nothing beside the others, or on this bundle."""
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.unused import unused_flags, unused_machine

    beside, names = idle(arguments)
    for flag in unused_flags(parser(), arguments, names):
        console.warn(f"{flag} does nothing with {beside}.")
    device = device_kind(arguments.device, bundle.manifest)
    for name, sentence in unused_machine(MachineSettings.of(vars(arguments)), device, bundle.manifest).items():
        if name not in names:
            console.warn(sentence)


def _job(arguments: argparse.Namespace) -> Job:
    """The job of the command line; its prompt is empty where a file has the prompts."""
    return make_job({"prompt": "", **given(arguments, RUN)})


def _dry_run(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> None:
    """Print what would be done, for every prompt of a file too, after every check that needs no engine."""
    from flowblending.runtime.dry_run import plan_facts, plan_lines
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.unused import unused_options

    job = _job(arguments)
    lines = [] if arguments.prompts is None else _lines(arguments, console)
    for line in lines:
        if line.job is None:
            raise UsageError(f"Line {line.number} of {arguments.prompts}: {line.error}")
    plans = list[dict[str, object]]()
    machine = MachineSettings.of(vars(arguments))
    for number, each in [(line.number, line.job) for line in lines if line.job is not None] or [(0, job)]:
        if number:
            console.result(f"line      {number}: {each.prompt}")
        for sentence in plan_lines(bundle, each, arguments.device, machine):
            console.result(sentence)
        facts = plan_facts(bundle, each, arguments.device, machine)
        plans.append({**({"line": number} if number else {}), **facts})
        program, timed = (
            compile_job(each, bundle.manifest),
            arguments.prompts is not None or is_timed(out_of(arguments)),
        )
        given_latents = arguments.noise is not None
        for sentence in unused_options(each, program, bundle.manifest, timed=timed, latents_given=given_latents):
            console.warn(sentence)
    console.document(RUN, {"bundle": bundle.folder, "bundle_id": bundle.manifest.id, "plans": plans})


def _open(arguments: argparse.Namespace, bundle: Bundle) -> Pipeline:
    from flowblending.runtime.devices.open import open_device
    from flowblending.runtime.pipeline import Pipeline

    device = open_device(arguments.device, bundle.manifest)
    return Pipeline(
        bundle=bundle,
        device=device,
        machine=MachineSettings.of(vars(arguments)),
    )


def _emit_program(arguments: argparse.Namespace, bundle: Bundle) -> None:
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.planned_job import plan_job
    from flowblending.runtime.program.program_file import ProgramFile

    job = _job(arguments)
    # Of a program without a prompt, images that models cannot do without need not be told.
    named = bool(job.image or job.reference)
    program = plan_job(job, bundle.manifest).program if named else compile_job(job, bundle.manifest)
    ProgramFile.for_bundle(program, bundle.manifest).write(arguments.emit_program)


def _emit_inputs(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.runtime.generate import write_inputs
    from flowblending.runtime.media.latents import read_latents

    latents = read_latents(arguments.noise) if arguments.noise else None
    pipeline = _open(arguments, bundle)
    try:
        write_inputs(pipeline, _job(arguments), arguments.emit_inputs, console, latents=latents)
    finally:
        pipeline.close()
    emitted = {"emitted_program": arguments.emit_program, "emitted_inputs": arguments.emit_inputs}
    console.document(RUN, {"bundle": bundle.folder, **emitted})
    return 0


def _decode(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.runtime.decode_file import decode_file

    pipeline = _open(arguments, bundle)
    try:
        decode_file(pipeline, arguments.decode, _job(arguments), out_of(arguments), console)
    finally:
        pipeline.close()
        pipeline.device.close()
    return 0


def _run_one(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.engine.bundle.geometry import geometry_of
    from flowblending.runtime.generate import generate
    from flowblending.runtime.job_facts import job_facts
    from flowblending.runtime.media.latents import read_latents
    from flowblending.runtime.stage_times import show_times

    job = _job(arguments)
    latents = read_latents(arguments.noise) if arguments.noise else None
    out = out_of(arguments)
    pipeline = _open(arguments, bundle)
    try:
        outcome = generate(pipeline, job, out, console, latents=latents, latents_out=arguments.save_latents)
    finally:
        pipeline.close()
        pipeline.device.close()
    show_times(outcome.program, outcome.sample, outcome.seconds, console)
    console.result(f"{out}: {geometry_of(bundle.manifest.pipeline, outcome.latents.shape[1:])}")
    files = {"video": out, "latents": arguments.save_latents, "emitted_program": arguments.emit_program}
    sample = outcome.sample
    made = {"calls": dict(sample.calls), "graph_launches": sample.graphs.launches, "seconds": dict(outcome.seconds)}
    facts = job_facts(job, outcome.program, bundle.manifest)
    console.document(RUN, {"bundle": bundle.folder, "bundle_id": bundle.manifest.id, **files, **facts, **made})
    return 0


def _lines(arguments: argparse.Namespace, console: Console) -> list[PromptLine]:
    """The lines of the prompt file that this run makes."""
    from flowblending.runtime.batch.tasks import Shard
    from flowblending.runtime.prompt_file import read_jobs

    lines = read_jobs(arguments.prompts, _job(arguments), console.log)
    if arguments.shard is None:
        return lines
    shard = Shard.parse(arguments.shard)
    return [line for line in lines if shard.holds(line.number)]


def _run_many(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.runtime.batch.tasks import Batch, run_batch
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.jobs import job_check

    if arguments.ray is not None:
        from flowblending.runtime.cluster.connection import import_ray

        import_ray("use --workers")  # before anything is written
    batch = Batch(
        _lines(arguments, console),
        out_of(arguments),
        bundle.manifest.edition,
        console,
        check=job_check(bundle.manifest),
        suffix=video_suffix(console),
    )
    batch.write_index(f"index{f'-{arguments.shard}'.replace('/', '-of-') if arguments.shard else ''}.json")
    if not batch.unfinished:
        return batch.finish()
    if arguments.ray is not None:
        from flowblending.runtime.batch.ray_pool import run_on_ray
        from flowblending.runtime.cluster.share import ClusterOptions

        options = ClusterOptions(
            address=arguments.ray,
            device=arguments.device,
            workers=arguments.workers,
            machine=MachineSettings.of(vars(arguments)),
        )
        return run_on_ray(bundle, batch, options, console)
    if arguments.workers is not None:
        from flowblending.runtime.batch.workers import plan_workers, run_workers

        device = device_kind(arguments.device, bundle.manifest)
        configs = plan_workers(arguments.workers, device, MachineSettings.of(vars(arguments)))
        return run_workers(configs, bundle.folder, device, batch, console)
    pipeline = _open(arguments, bundle)
    try:
        return run_batch(pipeline, batch, console)
    finally:
        pipeline.close()
        pipeline.device.close()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-run``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
