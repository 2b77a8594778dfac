"""Building a bundle: export every component, verify it, compile it, and write all of it or nothing.

The one file of this package that calls the exporter (and thereby torch), inside its functions, so that
the rest of the package loads without torch.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import flowblending
from flowblending import FlowBlendingError
from flowblending.engine import backend as backends
from flowblending.engine.bundle import Bundle, bundle_id, carry_calibration, describe_file, open_bundle, write_bundle
from flowblending.engine.console import Console
from flowblending.engine.geometry import plan_geometry
from flowblending.engine.manifest import MANIFEST, Backend, Component, Flops, Geometry, Manifest
from flowblending.engine.precision import choose_precisions, component_precision
from flowblending.engine.protocol import Range, ShapeProfile
from flowblending.engine.sampling import Sampling, write_number
from flowblending.export.spec import LARGE, SMALL, ExportedGraph, PipelineSpec, Precision

if TYPE_CHECKING:
    from flowblending.export.family import Part

TOKENIZER = "tokenizer.json"
# numpy writes weights with C's fwrite, and of a short write it knows no more than that it was short.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, None)


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What ``fb-build-engines`` was asked for; see its ``--help`` for each."""

    large: str
    small: str
    out: Path
    size: str | None
    frames: int | None
    precision: str | None
    backend: Backend
    targets: tuple[str, ...]
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    teacache: bool = False


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
    with console.phase("Reading checkpoints"):
        pipeline, parts, signals, tokenizer = _plan(request)
        geometry = plan_geometry(pipeline, request.size, request.frames)
    old = _existing(request.out)
    try:
        with write_bundle(request.out) as folder:
            builder = _Builder(request=request, console=console, pipeline=pipeline, geometry=geometry, folder=folder)
            made = {part.name: builder.component(part, precisions, old) for part in parts}
            # What a model asks for is no part of its engine: it may change without a new one.
            components = {
                name: component.model_copy(update={"sampling": request.sampling.get(name)})
                for name, component in made.items()
            }
            (folder / TOKENIZER).write_bytes(tokenizer)
            manifest = Manifest(
                id=bundle_id(pipeline, geometry, components.values(), tokenizer),
                pipeline=pipeline,
                geometry=geometry,
                components=components,
                tokenizer=(describe_file(folder, folder / TOKENIZER),),
                rebuild=rebuild_command(request),
                created_by=f"flowblending {flowblending.__version__}",
                signals={model: builder.signal(part) for model, part in signals.items()},
            )
            manifest = carry_calibration(old, manifest, folder)
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    except OSError as error:
        if error.errno in _DISK_FULL:
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

    def component(self, part: Part, precisions: Mapping[str, Precision], old: Bundle | None) -> Component:
        """One component, reused or built."""
        precision = component_precision(precisions, part.name)
        key = self._key(part, precision)
        found = old.manifest.components.get(part.name) if old is not None else None
        if old is not None and found is not None:
            changed = [name for name in key if found.key.get(name) != key[name]]
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
            graph = self._export(part, precision, key["weights"], work)
            component = self._compile(graph, key, part.architecture)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        size = sum(file.bytes for file in component.files)
        self.console.log(f"{part.name}: built in {precision}, {size / 1e6:.1f} MB")
        return component

    def signal(self, part: Part) -> Component:
        """A signal, which is small enough to be built every time."""
        work = self.folder / "export"
        work.mkdir()
        try:
            graph = self._export(part, Precision.FP32, "", work)
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
        from flowblending.export.checkpoint import weights_sha256
        from flowblending.export.graph import exporter_versions

        total = sum(path.stat().st_size for path in part.sources)
        with self.console.progress(f"{part.name}: reading weights", total=total, unit="B") as advance:
            weights = weights_sha256(part.sources, advance)
        return {
            "weights": weights,
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

    def _export(self, part: Part, precision: Precision, weights: str, work: Path) -> ExportedGraph:
        from flowblending.export.verify import export_and_verify

        with self.console.phase(f"{part.name}: exporting") as report:
            graph, parity = export_and_verify(part, precision, work, weights, report)
        self.console.log(f"{part.name}: equals torch to {parity.relative:.1e} at {parity.shapes} shapes")
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
    for model, wish in request.sampling.items():
        options[f"--{model}-timesteps"] = ",".join(map(write_number, wish.timesteps)) or None
        options[f"--{model}-guidance"] = None if wish.guidance is None else write_number(wish.guidance)
    given = ((name, str(value)) for name, value in options.items() if value is not None)
    teacache = ("--teacache",) if request.teacache else ()
    return ("fb-build-engines", *(word for option in given for word in option), *teacache)


def _absolute(source: str) -> str:
    """A checkpoint's folder as an absolute path; a hub id as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source
