"""Bundles with random weights at full size, one component at a time: exported and compiled, and verified by nobody."""

from __future__ import annotations

import functools
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.pairs import Pair, write_pair
from benchmarks.gpu.random_graph import export_random
from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision, is_transformer
from flowblending.contracts.manifest import MANIFEST, BundleFile, Component, Flops, Manifest
from flowblending.engine.backends import registry as backends
from flowblending.engine.backends.backend import PlanInfo
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.protocol import ShapeProfile
from flowblending.engine.build.plan import Plan, make_plan
from flowblending.engine.build.precision import choose_precisions, component_precision
from flowblending.engine.build.request import BuildRequest, named_models
from flowblending.engine.build.sources import Folders
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.engine.bundle.geometry import shape_profiles
from flowblending.engine.bundle.plan_profiles import compiled_profiles
from flowblending.system.subprocess_call import EndedError, call_in_subprocess

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part

_UNCHECKED = "0" * 64
"""In place of a checksum, which takes as long to compute as a plan of 30 GB takes to read."""


@dataclass(frozen=True, kw_only=True)
class RandomBundle:
    """A pair's bundle in the making.

    Attributes:
        pair: what it is of.
        precision: of the transformers.
        backend: that runs them.
        checkpoints: where the pair is written to; shared by all bundles of it.
        folder: of the bundle.
    """

    pair: Pair
    precision: Precision
    backend: str
    checkpoints: Path
    folder: Path

    @functools.cached_property
    def plan(self) -> Plan:
        """What to build; writes the checkpoints if they are not there."""
        written = self.checkpoints / "written"
        if not written.exists():
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            write_pair(self.pair, self.checkpoints)
            written.touch()
        large, small = self.checkpoints / "large", self.checkpoints / "small"
        request = BuildRequest(
            models=named_models(str(large), str(small)),
            out=self.folder,
            size=self.pair.size,
            frames=self.pair.frames,
            precision=None,
            backend=self.backend,
            targets=self.targets,
        )
        return make_plan(request, Folders(base=large, models={"large": large, "small": small}))

    @property
    def targets(self) -> tuple[str, ...]:
        """The GPU that is here, also where its library does not list it: that is what is found out."""
        compiles = backends.BACKENDS.get(self.backend).compiles
        return (str(gpu_architecture()),) if compiles else ()

    @property
    def components(self) -> tuple[str, ...]:
        """Names of what it consists of, transformers first; without reading a checkpoint."""
        large = ("large_high", "large_low") if self.pair.experts else ("large",)
        decoders = ("vae_first", "vae_next") if self.pair.family == "wan" else ("vae",)
        return (*large, "small", "text_encoder", *decoders)

    def built(self, name: str) -> bool:
        """Whether a component is there."""
        return self._description(name).exists()

    def build(self, name: str) -> dict[str, Any]:
        """Export and compile a component.

        Returns:
            Seconds and bytes of both.
        """
        part = next(part for part in self.plan.parts if part.name == name)
        # In 16 bits the text encoder goes along: in fp32, UMT5-XXL alone is 23 GB.
        text = ",text_encoder=fp16" if self.precision is Precision.FP16 else ""
        chosen = choose_precisions(f"{self.precision}{text}", self.backend, ["large", "small"])
        precision = component_precision(chosen, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        work = self.folder / f"{name}.work"
        shutil.rmtree(work, ignore_errors=True)
        try:
            begun = time.monotonic()
            graph, weights = export_random(part, precision, work)
            found: dict[str, Any] = {"precision": str(precision), "export": time.monotonic() - begun}
            found["weights bytes"] = weights
            component, compiled = self._compile(graph, weights, part)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self._description(name).write_text(component.model_dump_json())
        return found | compiled

    def open(self) -> Bundle:
        """The bundle, in which a component that is not there has a file of no bytes, and cannot be opened."""
        plan = self.plan
        tokenizer = self.folder / "tokenizer.json"
        tokenizer.write_bytes(plan.tokenizer.content)
        components = {
            name: Component.model_validate_json(self._description(name).read_text())
            if self.built(name)
            else self._absent(name)
            for name in self.components
        }
        manifest = Manifest(
            id=_UNCHECKED[:16],
            pipeline=plan.pipeline,
            models=plan.models,
            profiles=plan.profiles,
            components=components,
            tokenizer=(_file(tokenizer),),
            rebuild=("python", "-m", "benchmarks.gpu"),
            created_by="benchmarks.gpu",
        )
        (self.folder / MANIFEST).write_text(manifest.model_dump_json())
        return open_bundle(self.folder)

    def remove(self) -> None:
        """Remove what was built, to make room for the next."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _absent(self, name: str) -> Component:
        spec = GraphSpec(name=name, precision=Precision.FP32, inputs=(), outputs=())
        nothing = BundleFile(path=f"{name}.absent", bytes=0, sha256=_UNCHECKED)
        return Component(spec=spec, backend=self.backend, backend_version="", files=(nothing,), key={})

    def _description(self, name: str) -> Path:
        return self.folder / f"{name}.component.json"

    def _compile(self, graph: ExportedGraph, weights: int, part: Part) -> tuple[Component, dict[str, Any]]:
        from flowblending.engine.backends.onnxruntime.backend import move_graph
        from flowblending.export.graph.flops import token_flops

        plan, flops = self.plan, None
        if is_transformer(part.name):
            linear, attention = token_flops(graph.onnx, plan.pipeline.patch)
            flops = Flops(linear=linear, attention=attention)
        backend = backends.BACKENDS.get(self.backend)
        shapes = shape_profiles(part.name, plan.pipeline, plan.profiles, any_size=backend.any_size)
        files: tuple[BundleFile, ...]
        info: PlanInfo | None
        if backend.compiles:
            files, info = self._plan_file(graph, part.name, shapes)
        else:
            onnx, data = move_graph(graph, self.folder)
            # What it holds, and not what it takes on the disk.
            files, info = (_file(onnx), BundleFile(path=data.name, bytes=weights, sha256=_UNCHECKED)), None
        component = Component(
            spec=graph.spec,
            backend=self.backend,
            backend_version=backend.version(),
            targets=self.targets,
            files=files,
            key={},
            flops=flops,
            architecture=part.architecture,
            profiles=compiled_profiles(shapes, info),
            weights_bytes=None if info is None else info.weights_bytes,
        )
        return component, {} if info is None else told_of(info)

    def _plan_file(
        self, graph: ExportedGraph, name: str, profiles: tuple[ShapeProfile, ...]
    ) -> tuple[tuple[BundleFile, ...], PlanInfo]:
        """Compile without a look at the library's list of GPUs."""
        from flowblending.engine.backends.tensorrt.compile import PlanRequest

        out = self.folder / f"{name}.plan"
        request = PlanRequest(
            library=self.backend,
            onnx=graph.onnx.absolute(),
            spec=graph.spec,
            profiles=profiles,
            targets=self.targets,
            out=out,
        )
        info = compile_here(request)
        return (_file(out),), info


def compile_here(request: Any) -> PlanInfo:
    """Compile a `PlanRequest` in a process of its own.

    Raises:
        FlowBlendingError: it refuses.
        RuntimeError: its process has ended.
    """
    from flowblending.engine.backends.tensorrt.compile import compile_plan

    request.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        return call_in_subprocess(compile_plan, request, lambda _: None)
    except EndedError as end:
        raise RuntimeError(f"the compiler ended with {end.how} ({end.last})") from None


def told_of(info: PlanInfo) -> dict[str, Any]:
    """What a compiler stated, for a record."""
    return {
        "compile": info.seconds,
        "plan bytes": info.bytes,
        "weights on the device": info.weights_bytes,
        "scratch bytes": info.scratch_bytes,
    }


def _file(path: Path) -> BundleFile:
    return BundleFile(path=path.name, bytes=path.stat().st_size, sha256=_UNCHECKED)
