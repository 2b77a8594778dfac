"""Building a bundle: export every component, verify it, compile it, and write all of it or nothing.

With `fp8_build`, the only file of this package that calls the exporter (and thereby torch), inside its
functions, so that the rest of the package loads without torch.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import flowblending
from flowblending import FlowBlendingError
from flowblending.engine import backend as backends
from flowblending.engine.bundle import Bundle, bundle_id, describe_file, open_bundle, write_bundle
from flowblending.engine.console import Console
from flowblending.engine.disk import Step, check_disk, need
from flowblending.engine.fp8_build import Fp8Builder, Pair
from flowblending.engine.fp8_ranges import Graph
from flowblending.engine.geometry import plan_geometry
from flowblending.engine.manifest import MANIFEST, BundleFile, Component, Flops, Geometry, Manifest
from flowblending.engine.precision import base_precision, choose_precisions, component_precision
from flowblending.engine.protocol import Range, ShapeProfile
from flowblending.engine.request import BuildRequest, rebuild_command
from flowblending.export.spec import LARGE, SMALL, TEXT_ENCODER, ExportedGraph, PipelineSpec, Precision

if TYPE_CHECKING:
    from flowblending.export.family import Part

__all__ = ["BuildRequest", "build_bundle", "rebuild_command"]

TOKENIZER = "tokenizer.json"
# numpy writes weights with C's fwrite, and of a short write it knows no more than that it was short.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, None)


def build_bundle(request: BuildRequest, console: Console) -> Bundle:
    """Build a bundle and put it at ``request.out``.

    A component of the bundle that is already there is reused when its key (weights, graph, precision,
    shapes, back end, versions) is unchanged.

    Raises:
        FlowBlendingError: a wrong argument, an unusable checkpoint or pair, a graph that fails its
            verification, a compiler error, a full disk. Nothing is left at ``out`` that was not there.
    """
    targets = backends.check_targets(request.backend, request.targets)
    request = dataclasses.replace(request, targets=targets)
    precisions = choose_precisions(request.precision, request.backend)
    backends.check_precisions(request.backend, targets, precisions)
    request.fp8.check(_fp8_models(precisions))
    with console.phase("Reading checkpoints"):
        pipeline, parts, tokenizer = _plan(request)
        geometry = plan_geometry(pipeline, request.size, request.frames)
    old = _existing(request.out)
    try:
        with write_bundle(request.out) as folder:
            builder = _Builder(request=request, console=console, pipeline=pipeline, geometry=geometry, folder=folder)
            components, calibration = builder.components(parts, precisions, tokenizer, old)
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
            )
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise FlowBlendingError(
                f"The disk filled up while writing {request.out}; free some space or choose another --out. "
                "Nothing was left behind."
            ) from None
        raise FlowBlendingError(f"Cannot write {request.out} ({error}); choose another --out.") from None
    return Bundle(folder=request.out, manifest=manifest)


def _plan(request: BuildRequest) -> tuple[PipelineSpec, tuple[Part, ...], bytes]:
    """What to build: the pipeline's constants, every component, and the tokenizer."""
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
    return family.describe(large), parts, tokenizer_file(large)


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
    hashes: dict[str, str] = field(default_factory=dict)

    def components(
        self, parts: Sequence[Part], precisions: Mapping[str, Precision], tokenizer: bytes, old: Bundle | None
    ) -> tuple[dict[str, Component], BundleFile | None]:
        """Every component, and the calibration if there is one. fp8 comes last: calibrating takes the text encoder."""
        made: dict[str, Component] = {}
        ready: dict[str, Graph] = {}
        models = _fp8_models(precisions)
        fp8 = None
        if models:
            pair = Pair(
                pipeline=self.pipeline,
                geometry=self.geometry,
                parts={part.name: part for part in parts},
                models=models,
                tokenizer=tokenizer,
                weights=self._weights,
            )
            base = base_precision(self.request.backend)
            fp8 = Fp8Builder(
                pair, self.request.fp8, base=base, ready=ready, folder=self.folder, old=old, console=self.console
            )
            fp8.check()
        order = sorted(parts, key=lambda part: part.name in models)
        wanted = {part.name: component_precision(precisions, part.name) for part in parts}
        keys = {
            part.name: self._key(part, wanted[part.name]) | (fp8.key(part.name) if fp8 and part.name in models else {})
            for part in order
        }
        self._check_disk([part for part in order if _changed(part, keys[part.name], old) != []], wanted, fp8)
        for part in order:
            made[part.name] = self._component(
                part, wanted[part.name], keys[part.name], old, fp8 if part.name in models else None
            )
            if part.name == TEXT_ENCODER and self.request.backend == backends.ONNXRUNTIME:
                component = made[part.name]
                ready[part.name] = Graph(onnx=(self.folder / component.files[0].path).absolute(), spec=component.spec)
        return {part.name: made[part.name] for part in parts}, None if fp8 is None else fp8.write()

    def _check_disk(self, parts: Sequence[Part], precisions: Mapping[str, Precision], fp8: Fp8Builder | None) -> None:
        """Say what building these components takes, and refuse if it is not there."""
        from flowblending.export.size import graph_bytes

        steps = []
        for part in parts:
            blocks = None
            if fp8 is not None and precisions[part.name] is Precision.FP8:
                blocks = fp8.blocks(part.name)
                steps.append(Step(kept=0, beside=fp8.calibration_bytes()))
            size = graph_bytes(part.sources, precisions[part.name], blocks)
            # For ONNX Runtime the graph is the engine. A plan holds its graph's weights again, and the graph goes then.
            steps.append(Step(kept=size, beside=0 if self.request.backend == backends.ONNXRUNTIME else size))
        if steps:
            self.console.log(check_disk(need(steps), self.folder, self.request.out))

    def _component(
        self, part: Part, precision: Precision, key: Mapping[str, str], old: Bundle | None, fp8: Fp8Builder | None
    ) -> Component:
        """One component, reused or built."""
        changed = _changed(part, key, old)
        if old is not None and changed is not None:
            found = old.manifest.components[part.name]
            if not changed and self._take_over(found, old):
                self.console.log(f"{part.name}: reused, nothing changed")
                # ONNX Runtime's engines serve any size, but what a call costs depends on it.
                path = self.folder / found.files[0].path
                flops = self._flops(part.name, path) if found.backend == backends.ONNXRUNTIME else found.flops
                return found.model_copy(update={"flops": flops, "architecture": part.architecture})
            self.console.log(f"{part.name}: rebuilt, {' and '.join(changed) or 'its files'} changed")
        work = self.folder / "export"
        work.mkdir()
        try:
            graph = self._export(part, precision, work, fp8)
            component = self._compile(graph, key, part.architecture)
            if fp8 is not None and self.request.backend != backends.ONNXRUNTIME:
                fp8.prove(graph, self.folder / component.files[0].path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        size = sum(file.bytes for file in component.files)
        self.console.log(f"{part.name}: built in {precision}, {size / 1e6:.1f} MB")
        return component

    def _key(self, part: Part, precision: Precision) -> dict[str, str]:
        from flowblending.export.graph import exporter_versions

        return {
            "weights": self._weights(part),
            "graph": _sources_digest("export", "*.py"),
            "pipeline": f"{self.pipeline.pipeline}, {self.pipeline.text_length} tokens",
            "precision": str(precision),
            # ONNX Runtime takes any size; a TensorRT engine is compiled for this one.
            "shapes": "any" if self.request.backend == backends.ONNXRUNTIME else repr(self._profile(part.name)),
            "back end": f"{self.request.backend} {backends.backend_version(self.request.backend)}",
            "targets": " ".join(self.request.targets),
            "compiler": "" if self.request.backend == backends.ONNXRUNTIME else _sources_digest("engine", "trt_*.py"),
            "versions": exporter_versions(),
        }

    def _weights(self, part: Part) -> str:
        """SHA-256 of a component's checkpoint, which is read once."""
        from flowblending.export.checkpoint import weights_sha256

        if part.name not in self.hashes:
            total = sum(path.stat().st_size for path in part.sources)
            with self.console.progress(f"{part.name}: reading weights", total=total, unit="B") as advance:
                self.hashes[part.name] = weights_sha256(part.sources, advance)
        return self.hashes[part.name]

    def _take_over(self, component: Component, old: Bundle) -> bool:
        """Link the files of an old component into the new bundle; False when they are not what they should be."""
        try:
            for file in component.files:
                source, target = old.folder / file.path, self.folder / file.path
                if describe_file(old.folder, source) != file:
                    return False
                try:
                    os.link(source, target)
                except OSError:
                    shutil.copyfile(source, target)
        except FileNotFoundError:
            return False
        return True

    def _export(self, part: Part, precision: Precision, work: Path, fp8: Fp8Builder | None) -> ExportedGraph:
        from flowblending.export.verify import export_and_verify

        if fp8 is not None:
            return fp8.export(part, work)
        with self.console.phase(f"{part.name}: exporting") as report:
            graph, parity = export_and_verify(part, precision, work, self._weights(part), report)
        self.console.log(f"{part.name}: equals torch to {parity}")
        return graph

    def _compile(self, graph: ExportedGraph, key: Mapping[str, str], architecture: str | None) -> Component:
        name, backend = graph.spec.name, self.request.backend
        flops = self._flops(name, graph.onnx)
        with self.console.phase(f"{name}: compiling for {backend}") as report:
            files = backends.compile_engine(
                backend=backend,
                graph=graph,
                profile=self._profile(name),
                targets=self.request.targets,
                folder=self.folder,
                progress=report,
            )
        return Component(
            spec=graph.spec,
            backend=backend,
            backend_version=backends.backend_version(backend),
            targets=self.request.targets,
            files=tuple(describe_file(self.folder, path) for path in files),
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
        """The one geometry of the bundle; transformers take one latent or a pair of guidance branches."""
        one = Range.fixed(1)
        pair = Range(min=1, opt=2 if self.pipeline.batched_guidance else 1, max=2)
        batch = one if name not in (LARGE, SMALL) else pair
        return ShapeProfile({"batch": batch} | {key: Range.fixed(size) for key, size in self._sizes().items()})


def _changed(part: Part, key: Mapping[str, str], old: Bundle | None) -> list[str] | None:
    """What of a component's key differs from the old bundle's; None if that has no such component."""
    found = old.manifest.components.get(part.name) if old is not None else None
    return None if found is None else [name for name in key if found.key.get(name) != key[name]]


def _sources_digest(room: str, pattern: str) -> str:
    """SHA-256 over our own sources: what they make is made anew when they change."""
    digest = hashlib.sha256()
    for path in sorted((Path(flowblending.__file__).parent / room).glob(pattern)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
