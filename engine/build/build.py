"""Building a bundle: export every component, verify it, compile it, and write all of it or nothing.

The exporter, and thereby torch, is imported inside functions, so that the rest of the package loads without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import flowblending
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.contracts.manifest import MANIFEST, BundleFile, Component, Manifest, PreviewFile
from flowblending.engine.backends import registry as backends
from flowblending.engine.build.components import ComponentBuilder
from flowblending.engine.build.fp8_middle import with_fp8_middle
from flowblending.engine.build.lora import describe_loras
from flowblending.engine.build.plan import Plan, check_plan, make_plan
from flowblending.engine.build.precision import choose_precisions, fp8_models
from flowblending.engine.build.preview import obtain_preview
from flowblending.engine.build.proof.report_build import add_report
from flowblending.engine.build.request import BuildRequest, rebuild_command
from flowblending.engine.build.sources import Sources, find_sources
from flowblending.engine.bundle.bundle import (
    Bundle,
    bundle_id,
    carry_calibration,
    check_bundle_place,
    describe_file,
    open_bundle,
    write_bundle,
)
from flowblending.engine.store.store import DISK_FULL, open_store
from flowblending.system.console import Console
from flowblending.system.extras import check_installed
from flowblending.system.scratch import scratch

__all__ = ["BuildRequest", "build_bundle", "rebuild_command"]

TOKENIZER = "tokenizer.json"


def build_bundle(request: BuildRequest, console: Console) -> Bundle:
    """Build a bundle and put it at ``request.out``.

    A component of the cache, or of the bundle that is already there, is reused when its key (weights, graph,
    precision, shapes, back end, versions) is unchanged.

    Raises:
        FlowBlendingError: a wrong argument, an unusable checkpoint or pair, a graph that fails its
            verification, a compiler error, a claim of the report that does not hold, a bundle that does not run, a full
            disk. Nothing is left at ``out`` that was not there.
    """
    check_bundle_place(request.out)
    request = with_fp8_middle(request)
    targets = backends.check_targets(request.backend, request.targets)
    request = dataclasses.replace(request, targets=targets)
    precisions = choose_precisions(request.precision, request.backend, request.names)
    backends.check_precisions(request.backend, targets, precisions)
    if request.weight_streaming:
        backends.check_weight_streaming(request.backend)
    # Of experts that are named alone, nobody knows yet whether they are there.
    request.fp8.check(fp8_models(precisions, precisions), request.backend, request.names)
    jobs = request.fp8.read_jobs()
    # Every graph is verified on ONNX Runtime.
    check_installed("Building", "build", "cpu")
    old = _existing(request.out)
    with scratch() as looked_at:
        with console.phase("Reading checkpoints"):
            sources = find_sources(request, looked_at)
            plan = make_plan(request, sources.folders)
            left_out = check_plan(request, plan, sources)
            told = request.fp8.check_shown(jobs, plan.pipeline, fp8_models(precisions, precisions))
        for line in (*plan.advice, *left_out, *([] if told is None else [told])):
            console.warn(line)
        for line in describe_loras(plan.loras):
            console.log(line)
        console.log(f"pipeline: {plan.pipeline_class}")
        console.log(f"tokenizer: {plan.tokenizer.origin}")
        try:
            with write_bundle(request.out) as folder:
                with open_store(request.cache, folder, console) as store:
                    builder = ComponentBuilder(
                        request=request,
                        console=console,
                        pipeline=plan.pipeline,
                        profiles=plan.profiles,
                        vae_tiling=plan.vae_tiling,
                        folder=folder,
                        store=store,
                    )
                    plan = _fetched(plan, sources, builder, precisions, old)
                    made = builder.components(plan, precisions, old)
                    preview = obtain_preview(builder, plan, old)
                bundle = _described(builder, plan, made, preview, old)
                parts = {part.name: part for part in plan.parts}
                add_report(bundle, request.out, parts, jobs[0].prompt, old=old, console=console)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise FlowBlendingError(
                    f"The disk filled up while writing {request.out}; free some space or choose another --out. "
                    "Nothing was left behind."
                ) from None
            raise FlowBlendingError(f"Cannot write {request.out} ({error}); choose another --out.") from None
    return Bundle(folder=request.out, manifest=bundle.manifest)


def _fetched(
    plan: Plan, sources: Sources, builder: ComponentBuilder, precisions: Mapping[str, Precision], old: Bundle | None
) -> Plan:
    """The plan with its weights here, after a last look at what there is room for."""
    if not sources.remote:
        return plan
    dataclasses.replace(builder, checksums=sources.checksums, hashes={}).check_room(plan, precisions, old)
    sources.check_download()
    return make_plan(builder.request, sources.fetch())


def _described(
    builder: ComponentBuilder,
    plan: Plan,
    made: tuple[dict[str, Component], BundleFile | None],
    preview: PreviewFile | None,
    old: Bundle | None,
) -> Bundle:
    """Write tokenizer and manifest beside the components that were made."""
    request, folder = builder.request, builder.folder
    # A LoRA of the same content may have had another name.
    components = {
        part.name: made[0][part.name].model_copy(update={"loras": builder.fused_loras(part)}) for part in plan.parts
    }
    (folder / TOKENIZER).write_bytes(plan.tokenizer.content)
    manifest = Manifest(
        id=bundle_id(
            plan.pipeline,
            plan.profiles,
            components,
            plan.tokenizer.content,
            plan.models,
            tiling=plan.vae_tiling,
        ),
        pipeline=plan.pipeline,
        models=plan.models,
        profiles=plan.profiles,
        components=components,
        tokenizer=(describe_file(folder, folder / TOKENIZER),),
        fp8_calibration=made[1],
        rebuild=rebuild_command(request),
        created_by=f"flowblending {flowblending.__version__}",
        signals={model: builder.signal(part) for model, part in plan.signals.items()},
        vae_tiling=plan.vae_tiling,
        preview=preview,
    )
    manifest = carry_calibration(old, manifest, folder)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return Bundle(folder=folder, manifest=manifest)


def _existing(out: Path) -> Bundle | None:
    """The bundle to reuse components from, if there is a readable one."""
    try:
        return open_bundle(out)
    except FlowBlendingError:
        return None
