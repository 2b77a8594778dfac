"""Building a bundle: export every component, verify it, compile it, and write all of it or nothing.

With `fp8_build`, `fp8_calibrate`, `disk_build`, `proof_build` and `pair_build`, the only file of this package that
calls the exporter (and thereby torch), inside its functions, so that the rest of the package loads without torch.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import flowblending
from flowblending import FlowBlendingError
from flowblending.engine import backend as backends
from flowblending.engine import proof
from flowblending.engine.bundle import Bundle, bundle_id, carry_calibration, describe_file, open_bundle, write_bundle
from flowblending.engine.checksum import ChecksumCache, sources_sha256
from flowblending.engine.console import Console
from flowblending.engine.disk_build import check_room, plan_room
from flowblending.engine.entry import damaged_file
from flowblending.engine.fp8_build import Fp8Builder
from flowblending.engine.fp8_calibrate import Calibrator, Pair
from flowblending.engine.fp8_ranges import Graph
from flowblending.engine.geometry import plan_geometry, profile_of
from flowblending.engine.manifest import MANIFEST, BundleFile, Component, Flops, Geometry, Manifest
from flowblending.engine.precision import base_precision, choose_precisions, component_precision
from flowblending.engine.proof_build import gather, note_verified
from flowblending.engine.protocol import ShapeProfile
from flowblending.engine.report_build import add_report
from flowblending.engine.request import BuildRequest, rebuild_command
from flowblending.engine.store import DISK_FULL, Order, Store, open_store, take_over
from flowblending.engine.unfinished import EXPORT, mark_verified, verified_graph
from flowblending.export.spec import LARGE, SMALL, TEXT_ENCODER, ExportedGraph, PipelineSpec, Precision

if TYPE_CHECKING:
    from flowblending.export.family import Part

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
    request.fp8.check(_fp8_models(precisions))
    prompt = request.fp8.read_prompts()[0]
    with console.phase("Reading checkpoints"):
        pipeline, parts, signals, tokenizer = _plan(request)
        geometry = plan_geometry(pipeline, request.size, request.frames)
    old = _existing(request.out)
    try:
        with write_bundle(request.out) as folder:
            with open_store(request.cache, folder, console) as store:
                builder = _Builder(
                    request=request, console=console, pipeline=pipeline, geometry=geometry, folder=folder, store=store
                )
                components, calibration = builder.components(parts, precisions, tokenizer, old)
            # What a model asks for is no part of its engine: it may change without a new one.
            components = {
                name: component.model_copy(update={"sampling": request.sampling.get(name)})
                for name, component in components.items()
            }
            (folder / TOKENIZER).write_bytes(tokenizer)
            manifest = Manifest(
                id=bundle_id(pipeline, geometry, components.values(), tokenizer),
                pipeline=pipeline,
                geometry=geometry,
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


def _plan(request: BuildRequest) -> tuple[PipelineSpec, tuple[Part, ...], dict[str, Part], bytes]:
    """What to build: the pipeline's constants, every component, TeaCache's signals by model, and the tokenizer."""
    from flowblending.export.checkpoint import check_pair, open_checkpoint, open_transformer
    from flowblending.export.families import family_of
    from flowblending.export.text import tokenizer_file

    large = open_checkpoint(request.large)
    large_transformer = large.folder / "transformer"
    small_transformer, small = open_transformer(request.small, large)
    check_pair(large, large_transformer, small_transformer, small)
    family = family_of(large)
    parts = (
        family.transformer(large, large_transformer, LARGE),
        family.transformer(large, small_transformer, SMALL),
        *family.parts(large),
    )
    folders = {LARGE: large_transformer, SMALL: small_transformer} if request.teacache else {}
    signals = {model: family.signal(folder, f"{model}_signal") for model, folder in folders.items()}
    return family.describe(large), parts, signals, tokenizer_file(large)


def _fp8_models(precisions: Mapping[str, Precision]) -> tuple[str, ...]:
    return tuple(name for name in (LARGE, SMALL) if precisions[name] is Precision.FP8)


def _existing(out: Path) -> Bundle | None:
    """The bundle to reuse components from, if there is a readable one."""
    try:
        return open_bundle(out)
    except FlowBlendingError:
        return None


@dataclass(frozen=True, kw_only=True)
class _Builder:
    """Makes the components of one bundle, one after the other, in ``folder``."""

    request: BuildRequest
    console: Console
    pipeline: PipelineSpec
    geometry: Geometry
    folder: Path
    store: Store
    hashes: dict[str, str] = field(default_factory=dict)

    def components(
        self, parts: Sequence[Part], precisions: Mapping[str, Precision], tokenizer: bytes, old: Bundle | None
    ) -> tuple[dict[str, Component], BundleFile | None]:
        """Every component, and the calibration if there is one. fp8 comes last: calibrating takes the text encoder."""
        made: dict[str, Component] = {}
        ready: dict[str, Graph] = {}
        calibration = None
        models = _fp8_models(precisions)
        fp8 = self._fp8(parts, models, tokenizer, ready, old) if models else None
        wanted = {part.name: component_precision(precisions, part.name) for part in parts}
        self._check_room(parts, wanted, fp8, old)
        for part in sorted(parts, key=lambda part: part.name in models):
            if fp8 is not None and calibration is None and part.name in models:
                calibration = fp8.calibrator.obtain()
            made[part.name] = self._component(part, wanted[part.name], old, fp8 if part.name in models else None)
            if part.name == TEXT_ENCODER and self.request.backend == backends.ONNXRUNTIME:
                component = made[part.name]
                ready[part.name] = Graph(onnx=(self.folder / component.files[0].path).absolute(), spec=component.spec)
        return {part.name: made[part.name] for part in parts}, calibration

    def _fp8(
        self,
        parts: Sequence[Part],
        models: Sequence[str],
        tokenizer: bytes,
        ready: Mapping[str, Graph],
        old: Bundle | None,
    ) -> Fp8Builder:
        """What makes the graphs of the fp8 models, after a look at whether it can."""
        pair = Pair(
            pipeline=self.pipeline,
            geometry=self.geometry,
            parts={part.name: part for part in parts},
            models=models,
            tokenizer=tokenizer,
            weights=self._weights,
            source=self.request.large,
        )
        options, console = self.request.fp8, self.console
        calibrator = Calibrator(
            pair, options, ready=ready, folder=self.folder, old=old, store=self.store, console=console
        )
        base = base_precision(self.request.backend)
        fp8 = Fp8Builder(pair, options, base=base, calibrator=calibrator, console=console)
        fp8.check()
        return fp8

    def _check_room(
        self, parts: Sequence[Part], wanted: Mapping[str, Precision], fp8: Fp8Builder | None, old: Bundle | None
    ) -> None:
        """Say what building these components takes of the disk, and refuse if it is not there."""
        keys = {part.name: self._key(part, wanted[part.name]) for part in parts}
        if fp8 is not None:
            keys |= {name: keys[name] | fp8.key(name) for name in _fp8_models(wanted)}
        planned = plan_room(parts, wanted, keys, fp8, compiled=self.request.backend != backends.ONNXRUNTIME)
        for line in check_room(planned, self.store, old, self.folder, self.request.out):
            self.console.log(line)

    def _component(self, part: Part, precision: Precision, old: Bundle | None, fp8: Fp8Builder | None) -> Component:
        """One component: from the cache, from the bundle that was there, or built."""
        key = self._key(part, precision) | (fp8.key(part.name) if fp8 is not None else {})
        order = Order(
            kind=Component,
            name=part.name,
            key=key,
            family=self.pipeline.family,
            source=self.request.small if part.name == SMALL else self.request.large,
            into=self.folder,
            make=lambda work: self._take_over(part, key, old, work) or self._build(part, precision, key, work, fp8),
        )
        component, found = self.store.obtain(order)
        if found:
            self.console.log(f"{part.name}: taken from the cache")
            return self._reused(component, part, self.folder)
        return component

    def _reused(self, component: Component, part: Part, folder: Path) -> Component:
        """A component of an earlier build, whose files are in ``folder`` now, as this one describes it."""
        # ONNX Runtime's engines serve any size, but what a call costs depends on it.
        path = folder / component.files[0].path
        flops = self._flops(part.name, path) if component.backend == backends.ONNXRUNTIME else component.flops
        return component.model_copy(update={"flops": flops, "architecture": part.architecture})

    def _build(
        self, part: Part, precision: Precision, key: Mapping[str, str], work: Path, fp8: Fp8Builder | None
    ) -> Component:
        graph = verified_graph(work, part.name)
        if graph is None:
            graph = self._export(part, precision, work / EXPORT, fp8)
            mark_verified(graph)
        else:
            self.console.log(f"{part.name}: exported and verified by a build that was interrupted")
        component = self._compile(graph, key, part.architecture, work)
        self.console.log(f"{part.name}: built in {precision}, {component.engine_bytes / 1e6:.1f} MB")
        return component

    def signal(self, part: Part) -> Component:
        """A signal, which is small enough to be built every time."""
        from flowblending.export.verify import export_and_verify

        work = self.folder / "export"
        work.mkdir()
        try:
            with self.console.phase(f"{part.name}: exporting") as report:
                graph, parity = export_and_verify(part, Precision.FP32, work, self._weights(part), report)
            self.console.log(f"{part.name}: equals torch to {parity.relative:.1e} at {parity.shapes} shapes")
            files = backends.move_graph(graph, self.folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return Component(
            spec=graph.spec,
            backend=backends.ONNXRUNTIME,
            backend_version="any",
            files=tuple(describe_file(self.folder, path) for path in files),
            key={},
        )

    def _key(self, part: Part, precision: Precision) -> dict[str, str]:
        from flowblending.export.graph import exporter_versions

        return {
            "weights": self._weights(part),
            "graph": sources_sha256("export", "*.py"),
            "pipeline": f"{self.pipeline.pipeline}, {self.pipeline.text_length} tokens",
            "precision": str(precision),
            # What of the graph depends on data: see `Calibrator.key`.
            "calibration": "none",
            # ONNX Runtime takes any size; a TensorRT engine is compiled for this one.
            "shapes": "any" if self.request.backend == backends.ONNXRUNTIME else repr(self._profile(part.name)),
            "back end": f"{self.request.backend} {backends.backend_version(self.request.backend)}",
            "targets": " ".join(self.request.targets),
            # A plan runs under the system and the kind of processor that it was compiled on.
            "system": "any" if self.request.backend == backends.ONNXRUNTIME else f"{sys.platform} {platform.machine()}",
            "compiler": "" if self.request.backend == backends.ONNXRUNTIME else sources_sha256("engine", "trt_*.py"),
            "versions": exporter_versions(),
            "proof": str(proof.FORMAT),
        }

    def _weights(self, part: Part) -> str:
        """SHA-256 of a component's checkpoint, which is read once."""
        from flowblending.export.checkpoint import weights_sha256

        if part.name not in self.hashes:
            total = sum(path.stat().st_size for path in part.sources)
            checksums = ChecksumCache()
            with self.console.progress(f"{part.name}: reading weights", total=total, unit="B") as advance:
                self.hashes[part.name] = weights_sha256(
                    part.sources, advance, checksum=lambda path, told: checksums.sha256(path, progress=told)
                )
        return self.hashes[part.name]

    def _take_over(self, part: Part, key: Mapping[str, str], old: Bundle | None, work: Path) -> Component | None:
        """Put the files of an old bundle's component into ``work``; None if it is another one, or damaged."""
        found = old.manifest.components.get(part.name) if old is not None else None
        if old is None or found is None:
            return None
        changed = [name for name in key if found.key.get(name) != key[name]]
        if not changed and damaged_file(old.folder, found.files, ChecksumCache()) is None:
            take_over(found.files, old.folder, work)
            self.console.log(f"{part.name}: reused, nothing changed")
            return self._reused(found, part, work)
        self.console.log(f"{part.name}: rebuilt, {' and '.join(changed) or 'its files'} changed")
        return None

    def _export(self, part: Part, precision: Precision, work: Path, fp8: Fp8Builder | None) -> ExportedGraph:
        from flowblending.export.golden import Recorder
        from flowblending.export.verify import export_and_verify

        profile = self._profile(part.name).symbols
        ends = ({name: size.min for name, size in profile.items()}, {name: size.max for name, size in profile.items()})
        recorder = Recorder(part, ends)
        if fp8 is not None:
            graph, parity = fp8.export(recorder.part, work)
        else:
            with self.console.phase(f"{part.name}: exporting") as report:
                graph, parity = export_and_verify(recorder.part, precision, work, self._weights(part), report)
            self.console.log(f"{part.name}: equals torch to {parity}")
        note_verified(graph, recorder, parity)
        return graph

    def _compile(self, graph: ExportedGraph, key: Mapping[str, str], architecture: str | None, work: Path) -> Component:
        name, backend = graph.spec.name, self.request.backend
        flops, profile = self._flops(name, graph.onnx), self._profile(name)
        with self.console.phase(f"{name}: compiling for {backend}") as report:
            compiled = backends.compile_engine(
                backend=backend,
                graph=graph,
                profile=profile,
                targets=self.request.targets,
                folder=work,
                progress=report,
            )
            files = (*compiled.files, *gather(graph, compiled, profile, work))
        return Component(
            spec=graph.spec,
            backend=backend,
            backend_version=backends.backend_version(backend),
            targets=self.request.targets,
            files=tuple(describe_file(work, path) for path in files),
            key=dict(key),
            flops=flops,
            architecture=architecture,
        )

    def _flops(self, name: str, onnx: Path) -> Flops | None:
        """What one call of a transformer costs at the bundle's geometry; None for the other components."""
        from flowblending.export.flops import count_flops

        if name not in (LARGE, SMALL):
            return None
        linear, attention = count_flops(onnx, {**self._sizes(), "batch": 1})
        return Flops(linear=linear, attention=attention)

    def _sizes(self) -> dict[str, int]:
        _, frames, height, width = self.geometry.latent_shape
        return {"frames": frames, "height": height, "width": width}

    def _profile(self, name: str) -> ShapeProfile:
        return profile_of(name, self.pipeline, self.geometry)
