"""Building the components of a bundle: from the cache, from the bundle that was there, or exported and compiled.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.graph import ExportedGraph, PipelineSpec, Precision, is_transformer, streams_weights
from flowblending.contracts.manifest import BundleFile, Component, Flops, FusedLora, VideoProfile
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends import registry as backends
from flowblending.engine.backends.backend import Backend, Fp8AttentionError
from flowblending.engine.backends.onnxruntime import backend as onnxruntime
from flowblending.engine.backends.protocol import ShapeProfile, ends
from flowblending.engine.build.fp8.builder import Fp8Builder
from flowblending.engine.build.fp8.calibrate import Pair, RangeCalibrator
from flowblending.engine.build.lora import fused_sha256
from flowblending.engine.build.plan import Plan
from flowblending.engine.build.precision import base_precision, component_precision, fp8_models
from flowblending.engine.build.proof.component import REVISION as PROOF
from flowblending.engine.build.proof.component import gather, note_no_fp8_attention, note_verified
from flowblending.engine.build.request import BuildRequest
from flowblending.engine.build.room import check_room, plan_room
from flowblending.engine.bundle.bundle import Bundle, describe_file
from flowblending.engine.bundle.geometry import shape_profiles
from flowblending.engine.bundle.plan_profiles import compiled_profiles
from flowblending.engine.store.entry import damaged_file
from flowblending.engine.store.store import Order, Store, take_over
from flowblending.engine.store.unfinished import EXPORT, mark_verified, remove, verified_graph
from flowblending.system.checksum import ChecksumCache
from flowblending.system.console import Console

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part
    from flowblending.export.verify.verify import Parity


@dataclass(frozen=True, kw_only=True)
class ComponentBuilder:
    """Makes the components of one bundle, one after the other, in ``folder``."""

    request: BuildRequest
    console: Console
    pipeline: PipelineSpec
    profiles: tuple[VideoProfile, ...]
    vae_tiling: Tiling | None = None
    folder: Path
    store: Store
    hashes: dict[str, str] = field(default_factory=dict)
    checksums: Mapping[Path, str] = field(default_factory=dict)
    """Of files that are still to be fetched."""

    def check_room(self, plan: Plan, precisions: Mapping[str, Precision], old: Bundle | None) -> None:
        """Refuse, before weights are fetched, what `components` would refuse after it."""
        models = fp8_models(precisions, [part.name for part in plan.parts])
        fp8 = self._fp8(plan, models, old) if models else None
        wanted = {part.name: component_precision(precisions, part.name) for part in plan.parts}
        self._check_room(plan.parts, wanted, fp8, old)

    def components(
        self, plan: Plan, precisions: Mapping[str, Precision], old: Bundle | None
    ) -> tuple[dict[str, Component], BundleFile | None]:
        """Every component, and the calibration if there is one. fp8 comes last, as it takes a calibration."""
        parts = plan.parts
        made: dict[str, Component] = {}
        calibration = None
        models = fp8_models(precisions, [part.name for part in parts])
        fp8 = self._fp8(plan, models, old) if models else None
        wanted = {part.name: component_precision(precisions, part.name) for part in parts}
        for line in self._check_room(parts, wanted, fp8, old):
            self.console.log(line)
        for part in sorted(parts, key=lambda part: part.name in models):
            if fp8 is not None and calibration is None and part.name in models:
                calibration = fp8.calibrator.obtain()
            made[part.name] = self._component(part, wanted[part.name], old, fp8 if part.name in models else None)
        return {part.name: made[part.name] for part in parts}, calibration

    def _fp8(self, plan: Plan, models: Sequence[str], old: Bundle | None) -> Fp8Builder:
        """What makes the graphs of the fp8 models, after a look at whether it can."""
        pair = Pair(
            pipeline=self.pipeline,
            geometry=self.profiles[0].opt,
            parts={part.name: part for part in plan.parts},
            models=plan.models,
            quantised=models,
            tokenizer=plan.tokenizer.content,
            weights=self.weights,
            source=self.request.first.source,
        )
        options, console = self.request.fp8, self.console
        calibrator = RangeCalibrator(pair, options, folder=self.folder, old=old, store=self.store, console=console)
        base = base_precision(self.request.backend)
        fp8 = Fp8Builder(pair, options, base=base, calibrator=calibrator, console=console)
        fp8.check()
        return fp8

    def _check_room(
        self, parts: Sequence[Part], wanted: Mapping[str, Precision], fp8: Fp8Builder | None, old: Bundle | None
    ) -> list[str]:
        """Lines about what building these components takes of disk and memory; raises if it is not there."""
        keys = {part.name: self.key(part, wanted[part.name], fp8) for part in parts}
        planned = plan_room(parts, wanted, keys, fp8, compiled=self._backend.compiles)
        lines = check_room(planned, self.store, old, self.folder, self.request.out)
        load = fp8.calibrator.check_load() if fp8 is not None else None
        return lines if load is None else [*lines, load]

    def _component(self, part: Part, precision: Precision, old: Bundle | None, fp8: Fp8Builder | None) -> Component:
        """One component: from the cache, from the bundle that was there, or built."""
        key = self.key(part, precision, fp8)
        order = Order(
            kind=Component,
            name=part.name,
            key=key,
            family=self.pipeline.family,
            source=" + ".join((self._source(part.name), *map(str, part.loras))),
            into=self.folder,
            make=lambda work: self._take_over(part, key, old, work) or self._build(part, precision, key, work, fp8),
        )
        component, found = self.store.obtain(order)
        if found:
            self.console.log(f"{part.name}: taken from the cache")
            return _reused(component, part)
        return component

    def _source(self, component: str) -> str:
        """What the user gave a component by: its model, or the first one, whose pipeline all others are of."""
        named = {model.name: model for model in self.request.models}
        return named.get(component.partition("_")[0], self.request.first).source

    def _build(
        self, part: Part, precision: Precision, key: Mapping[str, str], work: Path, fp8: Fp8Builder | None
    ) -> Component:
        graph = verified_graph(work, part.name)
        if graph is None:
            graph = self._export(part, precision, work / EXPORT, fp8)
            mark_verified(graph)
        else:
            self.console.log(f"{part.name}: exported and verified by a build that was interrupted")
        try:
            component = self._compile(graph, key, part.architecture, work)
        except Fp8AttentionError as refusal:
            graph = self._without_fp8_attention(part, precision, work, fp8, str(refusal))
            component = self._compile(graph, key, part.architecture, work)
        self.console.log(f"{part.name}: built in {precision}, {component.engine_bytes / 1e6:.1f} MB")
        return component

    def _without_fp8_attention(
        self, part: Part, precision: Precision, work: Path, fp8: Fp8Builder | None, why: str
    ) -> ExportedGraph:
        """The graph again with attention in 16 bits, verified as every graph is."""
        assert fp8 is not None
        self.console.log(f"{part.name}: attention is left in 16 bits: {why}")
        # With its mark: what lies there is verified, and not what will be compiled.
        remove(work / EXPORT)
        graph = self._export(part, precision, work / EXPORT, fp8.without_attention())
        note_no_fp8_attention(graph, why)
        mark_verified(graph)
        return graph

    def signal(self, part: Part) -> Component:
        """A signal, which is small enough to be built every time."""
        work = self.folder / "export"
        work.mkdir()
        try:
            graph, _ = self._verified(part, Precision.FP32, work)
            files = onnxruntime.move_graph(graph, self.folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return Component(
            spec=graph.spec,
            backend=onnxruntime.NAME,
            backend_version="any",
            files=tuple(describe_file(self.folder, path) for path in files),
            key={},
        )

    def key(self, part: Part, precision: Precision, fp8: Fp8Builder | None) -> dict[str, str]:
        """Everything that determines a component: it is built anew when any of this is another.

        Of our own code that is the revision of whatever makes the component's files, and not the code itself.

        Args:
            part: the component.
            precision: that it is built in.
            fp8: makes the components in fp8; of those, ``ranges`` is empty until the calibration was obtained.
        """
        from flowblending.export.graph.trace import REVISION as EXPORTER
        from flowblending.export.graph.trace import exporter_versions

        return {
            "weights": self.weights(part),
            "graph": f"exporter {EXPORTER}, {part.revision}",
            "pipeline": f"{self.pipeline.pipeline}, {self.pipeline.text_length} tokens",
            "precision": str(precision),
            # What of the graph depends on data: see `RangeCalibrator.key`.
            "calibration": "none",
            "shapes": "any" if self._backend.any_size else repr(self._shapes(part.name)),
            "back end": f"{self._backend.name} {self._backend.version()}",
            "targets": " ".join(self.request.targets),
            # A plan runs under the system and the kind of processor that it was compiled on.
            "system": f"{sys.platform} {platform.machine()}" if self._backend.compiles else "any",
            "compiler": f"{self._backend.revision}{', weight streaming' if self._streams(part.name) else ''}",
            "versions": exporter_versions(),
            "proof": str(PROOF),
            **(fp8.key(part.name) if fp8 is not None and precision is Precision.FP8 else {}),
        }

    def weights(self, part: Part) -> str:
        """SHA-256 of a component's checkpoint, which is read once, and of what is fused into it."""
        from flowblending.export.checkpoint.checkpoint import weights_sha256

        if part.name not in self.hashes:
            total = sum(path.stat().st_size for path in part.sources if path not in self.checksums)
            checksums = ChecksumCache()

            def checksum(path: Path, told: Callable[[int], None] | None) -> str:
                return self.checksums.get(path) or checksums.sha256(path, progress=told)

            with self.console.progress(f"{part.name}: reading weights", total=total, unit="B") as advance:
                found = weights_sha256(part.sources, advance, checksum=checksum)
            if part.loras:
                found = fused_sha256(found, [(lora, checksums.sha256(lora.path)) for lora in part.loras])
            self.hashes[part.name] = found
        return self.hashes[part.name]

    def fused_loras(self, part: Part) -> tuple[FusedLora, ...]:
        """The LoRA files of a component, for the manifest."""
        checksums = ChecksumCache()
        return tuple(
            FusedLora(file=lora.name, strength=lora.strength, sha256=checksums.sha256(lora.path)) for lora in part.loras
        )

    def _take_over(self, part: Part, key: Mapping[str, str], old: Bundle | None, work: Path) -> Component | None:
        """Put the files of an old bundle's component into ``work``; None if it is another one, or damaged."""
        found = old.manifest.components.get(part.name) if old is not None else None
        if old is None or found is None:
            return None
        changed = [name for name in key if found.key.get(name) != key[name]]
        if not changed and damaged_file(old.folder, found.files, ChecksumCache()) is None:
            take_over(found.files, old.folder, work)
            self.console.log(f"{part.name}: reused, nothing changed")
            return _reused(found, part)
        self.console.log(f"{part.name}: rebuilt, {' and '.join(changed) or 'its files'} changed")
        return None

    def _export(self, part: Part, precision: Precision, work: Path, fp8: Fp8Builder | None) -> ExportedGraph:
        from flowblending.export.verify.reference_outputs import ReferenceRecorder

        recorder = ReferenceRecorder(part, ends(self._shapes(part.name)))
        if fp8 is not None:
            graph, parity = fp8.export(recorder.part, work)
        else:
            graph, parity = self._verified(recorder.part, precision, work)
        note_verified(graph, recorder, parity)
        return graph

    def _verified(self, part: Part, precision: Precision, work: Path) -> tuple[ExportedGraph, Parity]:
        """Export a component, compare it with torch, and say how near it is."""
        from flowblending.export.verify.verify import export_and_verify

        with self.console.phase(f"{part.name}: exporting") as report:
            graph, parity = export_and_verify(part, precision, work, self.weights(part), report)
        self.console.log(f"{part.name}: equals torch to {parity}")
        return graph, parity

    def _compile(self, graph: ExportedGraph, key: Mapping[str, str], architecture: str | None, work: Path) -> Component:
        name, backend = graph.spec.name, self._backend
        profiles, flops = self._shapes(name), self._flops(graph)
        with self.console.phase(f"{name}: compiling for {backend.name}") as report:
            compiled = backends.compile_engine(
                backend=backend.name,
                graph=graph,
                profiles=profiles,
                targets=self.request.targets,
                weight_streaming=self._streams(name),
                folder=work,
                progress=report,
            )
            files = (*compiled.files, *gather(graph, compiled, profiles, work))
        return Component(
            spec=graph.spec,
            backend=backend.name,
            backend_version=backend.version(),
            targets=self.request.targets,
            files=tuple(describe_file(work, path) for path in files),
            key=dict(key),
            flops=flops,
            architecture=architecture,
            profiles=compiled_profiles(profiles, compiled.plan),
            weights_bytes=None if compiled.plan is None else compiled.plan.weights_bytes,
            weight_streaming=self._streams(name),
        )

    def _flops(self, graph: ExportedGraph) -> Flops | None:
        """What one call of a transformer costs; None for the other components."""
        from flowblending.export.graph.flops import token_flops

        if not is_transformer(graph.spec.name):
            return None
        linear, attention = token_flops(graph.onnx, self.pipeline.patch)
        return Flops(linear=linear, attention=attention)

    def _streams(self, name: str) -> bool:
        return self.request.weight_streaming and streams_weights(name)

    @property
    def _backend(self) -> Backend:
        return backends.BACKENDS.get(self.request.backend)

    def _shapes(self, name: str) -> tuple[ShapeProfile, ...]:
        any_size = self._backend.any_size
        return shape_profiles(name, self.pipeline, self.profiles, any_size=any_size, tiling=self.vae_tiling)


def _reused(component: Component, part: Part) -> Component:
    """A component of an earlier build, as this one describes it."""
    return component.model_copy(update={"architecture": part.architecture})
