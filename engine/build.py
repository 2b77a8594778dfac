"""Building a bundle: export every component, verify it, compile it, and write all of it or nothing.

The one file of this package that calls the exporter (and thereby torch), inside its functions, so that
the rest of the package loads without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import flowblending
from flowblending import FlowBlendingError
from flowblending.engine import backend as backends
from flowblending.engine.bundle import Bundle, bundle_id, describe_file, open_bundle, write_bundle
from flowblending.engine.checksum import ChecksumCache
from flowblending.engine.console import Console
from flowblending.engine.entry import damaged_file
from flowblending.engine.geometry import plan_geometry
from flowblending.engine.manifest import MANIFEST, Backend, Component, Flops, Geometry, Manifest
from flowblending.engine.precision import choose_precisions, component_precision
from flowblending.engine.protocol import Range, ShapeProfile
from flowblending.engine.store import DISK_FULL, Order, Store, open_store, take_over
from flowblending.engine.unfinished import EXPORT, mark_verified, verified_graph
from flowblending.export.spec import LARGE, SMALL, ExportedGraph, PipelineSpec, Precision

if TYPE_CHECKING:
    from flowblending.export.family import Part

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What ``fb-build-engines`` was asked for; see its ``--help`` for each. ``cache``: a folder, or None for none."""

    large: str
    small: str
    out: Path
    size: str | None
    frames: int | None
    precision: str | None
    backend: Backend
    targets: tuple[str, ...]
    cache: Path | None = None


def build_bundle(request: BuildRequest, console: Console) -> Bundle:
    """Build a bundle and put it at ``request.out``.

    A component of the cache, or of the bundle that is already there, is reused when its key (weights, graph,
    precision, shapes, back end, versions) is unchanged.

    Raises:
        FlowBlendingError: a wrong argument, an unusable checkpoint or pair, a graph that fails its
            verification, a compiler error, a full disk. Nothing is left at ``out`` that was not there.
    """
    targets = backends.check_targets(request.backend, request.targets)
    request = dataclasses.replace(request, targets=targets)
    precisions = choose_precisions(request.precision, request.backend)
    with console.phase("Reading checkpoints"):
        pipeline, parts, tokenizer = _plan(request)
        geometry = plan_geometry(pipeline, request.size, request.frames)
    old = _existing(request.out)
    try:
        with write_bundle(request.out) as folder:
            with open_store(request.cache, folder, console) as store:
                builder = _Builder(
                    request=request, console=console, pipeline=pipeline, geometry=geometry, folder=folder, store=store
                )
                components = {part.name: builder.component(part, precisions, old) for part in parts}
            (folder / TOKENIZER).write_bytes(tokenizer)
            manifest = Manifest(
                id=bundle_id(pipeline, geometry, components.values(), tokenizer),
                pipeline=pipeline,
                geometry=geometry,
                components=components,
                tokenizer=(describe_file(folder, folder / TOKENIZER),),
                rebuild=rebuild_command(request),
                created_by=f"flowblending {flowblending.__version__}",
            )
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    except OSError as error:
        if error.errno in DISK_FULL:
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

    def component(self, part: Part, precisions: Mapping[str, Precision], old: Bundle | None) -> Component:
        """One component: from the cache, from the bundle that was there, or built."""
        precision = component_precision(precisions, part.name)
        key = self._key(part, precision)
        order = Order(
            kind=Component,
            name=part.name,
            key=key,
            family=self.pipeline.family,
            source=self.request.small if part.name == SMALL else self.request.large,
            into=self.folder,
            make=lambda work: self._take_over(part, key, old, work) or self._build(part, precision, key, work),
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

    def _build(self, part: Part, precision: Precision, key: Mapping[str, str], work: Path) -> Component:
        graph = verified_graph(work, part.name)
        if graph is None:
            graph = self._export(part, precision, key["weights"], work / EXPORT)
            mark_verified(graph)
        else:
            self.console.log(f"{part.name}: exported and verified by a build that was interrupted")
        component = self._compile(graph, key, part.architecture, work)
        size = sum(file.bytes for file in component.files)
        self.console.log(f"{part.name}: built in {precision}, {size / 1e6:.1f} MB")
        return component

    def _key(self, part: Part, precision: Precision) -> dict[str, str]:
        from flowblending.export.checkpoint import weights_sha256
        from flowblending.export.graph import exporter_versions

        total = sum(path.stat().st_size for path in part.sources)
        checksums = ChecksumCache()
        with self.console.progress(f"{part.name}: reading weights", total=total, unit="B") as advance:
            weights = weights_sha256(
                part.sources, advance, checksum=lambda path, told: checksums.sha256(path, progress=told)
            )
        return {
            "weights": weights,
            "graph": _sources_digest("export", "*.py"),
            "pipeline": f"{self.pipeline.pipeline}, {self.pipeline.text_length} tokens",
            "precision": str(precision),
            # What of the graph depends on data: a precision with measured ranges puts their table's digest here.
            "calibration": "none",
            # ONNX Runtime takes any size; a TensorRT engine is compiled for this one.
            "shapes": "any" if self.request.backend == backends.ONNXRUNTIME else repr(self._profile(part.name)),
            "back end": f"{self.request.backend} {backends.backend_version(self.request.backend)}",
            "targets": " ".join(self.request.targets),
            # A plan runs under the system and the kind of processor that it was compiled on.
            "system": "any" if self.request.backend == backends.ONNXRUNTIME else f"{sys.platform} {platform.machine()}",
            "compiler": "" if self.request.backend == backends.ONNXRUNTIME else _sources_digest("engine", "trt_*.py"),
            "versions": exporter_versions(),
        }

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

    def _export(self, part: Part, precision: Precision, weights: str, work: Path) -> ExportedGraph:
        from flowblending.export.verify import export_and_verify

        with self.console.phase(f"{part.name}: exporting") as report:
            graph, parity = export_and_verify(part, precision, work, weights, report)
        self.console.log(f"{part.name}: equals torch to {parity.relative:.1e} at {parity.shapes} shapes")
        return graph

    def _compile(self, graph: ExportedGraph, key: Mapping[str, str], architecture: str | None, work: Path) -> Component:
        name, backend = graph.spec.name, self.request.backend
        flops = self._flops(name, graph.onnx)
        with self.console.phase(f"{name}: compiling for {backend}") as report:
            files = backends.compile_engine(
                backend=backend,
                graph=graph,
                profile=self._profile(name),
                targets=self.request.targets,
                folder=work,
                progress=report,
            )
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
        """The one geometry of the bundle; transformers take one latent or a pair of guidance branches."""
        one = Range.fixed(1)
        pair = Range(min=1, opt=2 if self.pipeline.batched_guidance else 1, max=2)
        batch = one if name not in (LARGE, SMALL) else pair
        return ShapeProfile({"batch": batch} | {key: Range.fixed(size) for key, size in self._sizes().items()})


def _sources_digest(room: str, pattern: str) -> str:
    """SHA-256 over our own sources: what they make is made anew when they change."""
    digest = hashlib.sha256()
    for path in sorted((Path(flowblending.__file__).parent / room).glob(pattern)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def split_targets(text: str | None) -> tuple[str, ...]:
    """``sm89,sm120`` as a tuple; empty for None."""
    return tuple(sorted({item.strip().lower() for item in (text or "").split(",") if item.strip()}))


def rebuild_command(request: BuildRequest) -> tuple[str, ...]:
    """The command that makes the requested bundle again, from whatever folder it is given in."""
    options = {
        "--large": _absolute(request.large),
        "--small": _absolute(request.small),
        "--out": str(request.out.absolute()),
        "--size": request.size,
        "--frames": request.frames,
        "--precision": request.precision,
        "--backend": request.backend,
        "--target": ",".join(request.targets) or None,
    }
    given = ((name, str(value)) for name, value in options.items() if value is not None)
    return ("fb-build-engines", *(word for option in given for word in option))


def _absolute(source: str) -> str:
    """A checkpoint's folder as an absolute path; a hub id as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source
