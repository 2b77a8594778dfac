"""Building a bundle: export every component, verify it, compile it, and write all of it or nothing.

The exporter, and thereby torch, is imported inside functions, so that the rest of the package loads without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import flowblending
from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, SMALL, PipelineSpec
from flowblending.contracts.manifest import MANIFEST, Manifest
from flowblending.engine.backends import registry as backends
from flowblending.engine.build.components import ComponentBuilder
from flowblending.engine.build.precision import choose_precisions, fp8_models
from flowblending.engine.build.proof.report_build import add_report
from flowblending.engine.build.request import BuildRequest, rebuild_command
from flowblending.engine.bundle.bundle import (
    Bundle,
    bundle_id,
    carry_calibration,
    describe_file,
    open_bundle,
    write_bundle,
)
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.engine.store.store import DISK_FULL, open_store
from flowblending.system.console import Console

if TYPE_CHECKING:
    from flowblending.export.families.tokenizer import TokenizerFile
    from flowblending.export.graph.exportable import Part

__all__ = ["BuildRequest", "build_bundle", "rebuild_command"]

TOKENIZER = "tokenizer.json"


def build_bundle(request: BuildRequest, console: Console) -> Bundle:
    """Build a bundle and put it at ``request.out``.

    A component of the cache, or of the bundle that is already there, is reused when its key (weights, graph,
    precision, shapes, back end, versions) is unchanged.

    Raises:
        FlowBlendingError: a wrong argument, an unusable checkpoint or pair, a graph that fails its
            verification, a compiler error, a claim of the report that does not hold, a full disk. Nothing is left at
            ``out`` that was not there.
    """
    targets = backends.check_targets(request.backend, request.targets)
    request = dataclasses.replace(request, targets=targets)
    precisions = choose_precisions(request.precision, request.backend)
    backends.check_precisions(request.backend, targets, precisions)
    request.fp8.check(fp8_models(precisions), request.backend)
    prompt = request.fp8.read_prompts()[0]
    with console.phase("Reading checkpoints"):
        plan = _plan(request)
        pipeline, parts, signals, tokenizer = plan.pipeline, plan.parts, plan.signals, plan.tokenizer.content
        profiles = plan_profiles(pipeline, request.size, request.frames)
        left_out = [line for part in parts for line in part.check()]
    for line in (*plan.advice, *left_out):
        console.warn(line)
    console.log(f"pipeline: {plan.pipeline_class}")
    console.log(f"tokenizer: {plan.tokenizer.origin}")
    old = _existing(request.out)
    try:
        with write_bundle(request.out) as folder:
            with open_store(request.cache, folder, console) as store:
                builder = ComponentBuilder(
                    request=request, console=console, pipeline=pipeline, profiles=profiles, folder=folder, store=store
                )
                components, calibration = builder.components(parts, precisions, tokenizer, old)
            # What a model asks for is no part of its engine: it may change without a new one.
            components = {
                name: component.model_copy(update={"sampling": request.sampling.get(name)})
                for name, component in components.items()
            }
            (folder / TOKENIZER).write_bytes(tokenizer)
            manifest = Manifest(
                id=bundle_id(pipeline, profiles, components.values(), tokenizer),
                pipeline=pipeline,
                profiles=profiles,
                components=components,
                tokenizer=(describe_file(folder, folder / TOKENIZER),),
                fp8_calibration=calibration,
                rebuild=rebuild_command(request),
                created_by=f"flowblending {flowblending.__version__}",
                signals={model: builder.signal(part) for model, part in signals.items()},
            )
            manifest = carry_calibration(old, manifest, folder)
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
            made = Bundle(folder=folder, manifest=manifest)
            add_report(made, {part.name: part for part in parts}, prompt, old, console)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise FlowBlendingError(
                f"The disk filled up while writing {request.out}; free some space or choose another --out. "
                "Nothing was left behind."
            ) from None
        raise FlowBlendingError(f"Cannot write {request.out} ({error}); choose another --out.") from None
    return Bundle(folder=request.out, manifest=manifest)


@dataclass(frozen=True, kw_only=True)
class _BuildPlan:
    """What to build.

    Attributes:
        pipeline: the pipeline's constants.
        pipeline_class: which class that is, and who says so.
        parts: every component.
        signals: TeaCache's, by model.
        advice: what to tell the user.
    """

    pipeline: PipelineSpec
    pipeline_class: str
    parts: tuple[Part, ...]
    signals: Mapping[str, Part]
    tokenizer: TokenizerFile
    advice: tuple[str, ...]


def _plan(request: BuildRequest) -> _BuildPlan:
    from flowblending.export.checkpoint.checkpoint import open_checkpoint, open_transformer
    from flowblending.export.families.pair import check_pair
    from flowblending.export.families.pipeline_class import check_class, describe_class, run_with
    from flowblending.export.families.registry import pipeline_classes, row_of
    from flowblending.export.families.tokenizer import read_tokenizer

    check_class(request.pipeline)
    published = open_checkpoint(request.large, pipeline_classes())
    row = row_of(published)
    large = run_with(published, request.pipeline, row.pipelines)
    large_transformer = large.folder / "transformer"
    small_transformer, small = open_transformer(request.small, large, pipeline_classes())
    if small is not None:
        small = run_with(small, request.pipeline, row.pipelines)
    check_pair(large, large_transformer, small_transformer, small)
    family = row.load()
    parts = (
        family.transformer(large, large_transformer, LARGE),
        family.transformer(large, small_transformer, SMALL),
        *family.parts(large),
    )
    folders = {LARGE: large_transformer, SMALL: small_transformer} if request.teacache else {}
    signals = {model: family.signal(folder, f"{model}_signal") for model, folder in folders.items()}
    advice = [family.advise(each) for each in (large, small) if each is not None]
    return _BuildPlan(
        pipeline=family.describe(large),
        pipeline_class=describe_class(large),
        parts=parts,
        signals=signals,
        tokenizer=read_tokenizer(large),
        advice=tuple(dict.fromkeys(each for each in advice if each is not None)),
    )


def _existing(out: Path) -> Bundle | None:
    """The bundle to reuse components from, if there is a readable one."""
    try:
        return open_bundle(out)
    except FlowBlendingError:
        return None
