"""The fp8 transformers of a bundle: calibration on the schedule's own trajectories, and the quantised graphs.

With `build`, the only files of this package that call the exporter.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from flowblending import UsageError
from flowblending.engine.bundle import Bundle, describe_file
from flowblending.engine.console import Console
from flowblending.engine.fp8_options import MARGIN, PERCENTILE, SCHEDULE, Fp8Options
from flowblending.engine.fp8_ranges import Graph, Measured, RangesRequest, Trajectories, measure
from flowblending.engine.manifest import BundleFile, Geometry
from flowblending.engine.trt_plan import fp8_products
from flowblending.export.spec import LARGE, SMALL, TEXT_ENCODER, ExportedGraph, PipelineSpec, Precision

if TYPE_CHECKING:
    from flowblending.export.audit import Audit
    from flowblending.export.family import Part
    from flowblending.export.fp8_calibration import Calibration
    from flowblending.export.size import Fp8Blocks

FILE = "fp8_calibration.json"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is built.

    Attributes:
        parts: every component by name.
        models: the transformers to build in fp8.
        weights: SHA-256 of a part's checkpoint.
    """

    pipeline: PipelineSpec
    geometry: Geometry
    parts: Mapping[str, Part]
    models: Collection[str]
    tokenizer: bytes
    weights: Callable[[Part], str]


class Fp8Builder:
    """Makes the graphs of the fp8 transformers, and calibrates them when the first one is needed.

    Args:
        pair: what is built.
        options: as checked.
        base: precision of everything that is not fp8.
        ready: engines for ONNX Runtime in ``folder`` that need not be exported again, by component.
        folder: of the bundle in the making.
        old: the bundle that was there before; its calibration is used where it was made on the same.
    """

    def __init__(
        self,
        pair: Pair,
        options: Fp8Options,
        *,
        base: Precision,
        ready: Mapping[str, Graph],
        folder: Path,
        old: Bundle | None,
        console: Console,
    ) -> None:
        self._pair = pair
        self._options = options
        self._base = base
        self._ready = ready
        self._folder = folder
        self._old = old
        self._console = console
        self._encoded: Mapping[str, npt.NDArray[Any]] | None = None
        self._prompts = options.read_prompts()

    def check(self) -> None:
        """Refuse trajectories that cannot be, and blocks to keep that leave none, before anything is exported.

        Raises:
            UsageError: likewise.
            FlowBlendingError: a calibration file of other weights, or that cannot be read.
        """
        from flowblending.export.fp8 import check_kept

        for name in self._pair.models:
            blocks = self.blocks(name)
            check_kept(name, blocks.count, blocks.keep)
        if self._options.calibration is not None:
            _ = self.calibration
            return
        schedule = self._measure({}, lambda _: None, sample=False).schedule
        for name in self._pair.models:
            if name[0].upper() not in schedule:
                raise UsageError(
                    f"The schedule {schedule} never runs {name}, so it cannot be calibrated on it; "
                    f"give another --fp8-schedule, or another --precision of {name}."
                )

    def key(self, name: str) -> dict[str, str]:
        """What determines an fp8 graph beside the checkpoint."""
        keep = self._options.kept(name)
        kept = "default" if keep is None else str(keep)
        return {"precision": f"fp8, else {self._base}, {kept} blocks kept", "calibration": self._calibration_key}

    def calibration_bytes(self) -> int:
        """What the graphs to sample on take on the disk; 0 where nothing is sampled."""
        from flowblending.export.size import graph_bytes

        if self._options.calibration is not None or self._same_calibration() is not None:
            return 0
        names = [name for name in (LARGE, SMALL, TEXT_ENCODER) if name not in self._ready]
        return sum(graph_bytes(self._pair.parts[name].sources, Precision.FP32) for name in names)

    def blocks(self, name: str) -> Fp8Blocks:
        """Which blocks of a transformer will be fp8."""
        from flowblending.export.checkpoint import read_json
        from flowblending.export.size import Fp8Blocks

        config = next(path for path in self._pair.parts[name].sources if path.name == "config.json")
        count = int(read_json(config).get("num_layers", 1))
        return Fp8Blocks(count=count, keep=self._kept(name, count), base=self._base)

    def export(self, part: Part, work: Path) -> ExportedGraph:
        """Export and verify a transformer, and say what of it is in fp8."""
        from flowblending.export.fp8_export import export_fp8

        model, samples = self.calibration.models[part.name], self.conditions
        blocks = 1 + max((int(name.split(".")[1]) for name in model.layers), default=-1)
        with self._console.phase(f"{part.name}: exporting") as report:
            graph, parity = export_fp8(
                part,
                model.amax,
                self._kept(part.name, blocks),
                base=self._base,
                folder=work,
                weights_sha256=self._pair.weights(part),
                samples=samples,
                timesteps=model.timesteps,
                report=report,
            )
        found = self._audit(graph)
        self._console.log(
            f"{part.name}: {found.layers[Precision.FP8]} of {sum(found.layers.values())} layers in fp8, "
            f"{found.share(Precision.FP8):.1%} of their operations, else {self._base}; "
            f"{parity}, from torch's fp32"
        )
        return graph

    def prove(self, graph: ExportedGraph, plan: Path) -> None:
        """Look up in a plan whether its compiler has done what the graph asks for.

        Raises:
            FlowBlendingError: some of the layers are not computed in fp8.
        """
        name = graph.spec.name
        found = fp8_products(plan, name, self._audit(graph).layers[Precision.FP8])
        told = "does not tell in which types it computes" if found is None else f"computes {found} layers in fp8"
        self._console.log(f"{name}: the plan {told}")

    def _audit(self, graph: ExportedGraph) -> Audit:
        from flowblending.export.audit import audit

        _, frames, height, width = self._pair.geometry.latent_shape
        return audit(graph.onnx, {"batch": 1, "frames": frames, "height": height, "width": width})

    def _kept(self, model: str, blocks: int) -> int:
        from flowblending.export.fp8 import kept_blocks

        keep = self._options.kept(model)
        return kept_blocks(blocks) if keep is None else keep

    def write(self) -> BundleFile:
        """Write the calibration into the bundle."""
        path = self._folder / FILE
        self.calibration.write(path)
        return describe_file(self._folder, path)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration: of the file given, of the old bundle where it was made on the same, or a new one."""
        from flowblending.export.fp8_calibration import Calibration

        given = self._options.calibration
        if given is not None:
            found = Calibration.read(given)
            for name in self._pair.models:
                found.model(name, self._pair.weights(self._pair.parts[name]), given)
            self._console.log(f"calibration: {_summary(found)}, from {given}")
            return found
        path = self._same_calibration()
        if path is None:
            return self._calibrate()
        found = Calibration.read(path)
        self._console.log(f"calibration: {_summary(found)}, reused")
        return found

    def _same_calibration(self) -> Path | None:
        """The old bundle's calibration, if it was made on the same."""
        old = self._old
        file = None if old is None else old.manifest.fp8_calibration
        if old is None or file is None:
            return None
        path = old.folder / file.path
        same = any(each.key.get("calibration") == self._calibration_key for each in old.manifest.components.values())
        return path if same and path.is_file() and describe_file(old.folder, path) == file else None

    def _calibrate(self) -> Calibration:
        from flowblending.export.fp8_calibration import Calibration, summarise

        options = self._options
        percentile = PERCENTILE if options.percentile is None else options.percentile
        margin = MARGIN if options.margin is None else options.margin
        measured, rows = self._run(percentile)
        pair = self._pair
        result = Calibration(
            pipeline=pair.pipeline.pipeline,
            size=f"{pair.geometry.width}x{pair.geometry.height}",
            frames=pair.geometry.frames,
            prompts=self._prompts,
            negative_prompt=pair.pipeline.negative_prompt,
            seeds=tuple(range(len(self._prompts))),
            schedule=measured.schedule,
            steps=measured.steps,
            solver=measured.solver,
            guidance=measured.guidance,
            percentile=percentile,
            margin=margin,
            models={
                name: summarise(
                    rows[name],
                    observed.ranges,
                    observed.timesteps,
                    weights=pair.weights(pair.parts[name]),
                    margin=margin,
                )
                for name, observed in measured.models.items()
            },
        )
        source = "the built-in ones" if options.prompts is None else f"from {options.prompts}"
        self._console.log(f"calibration: {_summary(result)}, prompts {source}")
        self._encoded = measured.conditions
        return result

    def _run(self, percentile: float) -> tuple[Measured, dict[str, tuple[tuple[str, ...], ...]]]:
        """Sample the trajectories on fp32 graphs, which are removed afterwards; and each model's rows of ranges."""
        from flowblending.export.fp8_observe import observe

        try:
            with self._console.phase("calibrating") as report:
                graphs, rows = self._text_encoder(report), {}
                for name in (LARGE, SMALL):
                    observed = observe(self._export(name, report), percentile)
                    graphs[name] = Graph(onnx=observed.onnx.absolute(), spec=observed.spec)
                    rows[name] = observed.rows
                return self._measure(graphs, report, sample=True), rows
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    @cached_property
    def conditions(self) -> Mapping[str, npt.NDArray[Any]]:
        """Encoded prompts for the verification: those that were sampled, or the same without sampling."""
        if self._encoded is not None:
            return self._encoded
        try:
            with self._console.phase("encoding prompts") as report:
                return self._measure(self._text_encoder(report), report, sample=False).conditions
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    @property
    def _work(self) -> Path:
        return self._folder / "calibration"

    def _text_encoder(self, report: Callable[[str], None]) -> dict[str, Graph]:
        if TEXT_ENCODER in self._ready:
            return {TEXT_ENCODER: self._ready[TEXT_ENCODER]}
        graph = self._export(TEXT_ENCODER, report)
        return {TEXT_ENCODER: Graph(onnx=graph.onnx.absolute(), spec=graph.spec)}

    def _export(self, name: str, report: Callable[[str], None]) -> ExportedGraph:
        """A component's fp32 graph, for this machine."""
        from flowblending.export.graph import export_graph

        part = self._pair.parts[name]
        report(f"exporting {name}")
        return export_graph(part.load(Precision.FP32), self._work, self._pair.weights(part))

    def _measure(self, graphs: Mapping[str, Graph], report: Callable[[str], None], *, sample: bool) -> Measured:
        tokenizer = self._folder / "tokenizer.json"
        tokenizer.write_bytes(self._pair.tokenizer)
        return measure(
            RangesRequest(
                pipeline=self._pair.pipeline,
                geometry=self._pair.geometry,
                graphs=graphs,
                tokenizer=tokenizer.absolute(),
                trajectories=Trajectories(
                    prompts=self._prompts,
                    schedule=self._options.schedule or SCHEDULE,
                    steps=self._options.steps,
                ),
                sample=sample,
            ),
            report,
        )

    @cached_property
    def _calibration_key(self) -> str:
        """Digest of all that a calibration depends on."""
        options, pair = self._options, self._pair
        if options.calibration is not None:
            return hashlib.sha256(options.calibration.read_bytes()).hexdigest()
        content = {
            "prompts": self._prompts,
            "schedule": options.schedule or SCHEDULE,
            "steps": options.steps,
            "percentile": PERCENTILE if options.percentile is None else options.percentile,
            "margin": MARGIN if options.margin is None else options.margin,
            "pipeline": repr(pair.pipeline),
            "geometry": repr(pair.geometry),
            "weights": [pair.weights(pair.parts[name]) for name in (LARGE, SMALL, TEXT_ENCODER)],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _summary(calibration: Calibration) -> str:
    calls = ", ".join(f"{name} x {model.calls}" for name, model in calibration.models.items())
    return f"{len(calibration.prompts)} prompts, {calibration.schedule}, {calls}"
