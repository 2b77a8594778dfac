"""The calibration of an fp8 pair: given, kept from an earlier build, or measured on the schedule's own trajectories."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import takes_control
from flowblending.contracts.graph import ENCODERS, IMAGE_ENCODER, TEXT_ENCODER, PipelineSpec
from flowblending.contracts.manifest import BundleFile, Geometry
from flowblending.contracts.models import Model, components_of, default_schedule
from flowblending.engine.build.fp8.graphs import Rows, observed_graph, plain_graph
from flowblending.engine.build.fp8.loader import Graph
from flowblending.engine.build.fp8.options import MARGIN, PERCENTILE, Fp8Options
from flowblending.engine.build.fp8.room import (
    calibration_load,
    check_load,
    on_gpu,
    sampled_geometry,
)
from flowblending.engine.build.fp8.trajectories import (
    REVISION,
    RangesRequest,
    Trajectories,
    TrajectoryRanges,
    measure,
)
from flowblending.engine.bundle.bundle import Bundle, describe_file
from flowblending.engine.store.store import Order, Store
from flowblending.runtime.given_files import given_digests, given_files
from flowblending.system.console import Console
from flowblending.system.host_memory import available_memory

if TYPE_CHECKING:
    from flowblending.contracts.fp8_calibration import Fp8Calibration
    from flowblending.export.graph.exportable import Part

FILE = "fp8_calibration.json"
SCRATCH = "calibration"
"""Folder for the fp32 graphs that are run to calibrate, while they are."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is built.

    Attributes:
        parts: every component by name.
        models: of the bundle.
        quantised: the transformers to build in fp8.
        weights: SHA-256 of a part's checkpoint.
        source: the first model's checkpoint, as it was given.
    """

    pipeline: PipelineSpec
    geometry: Geometry
    parts: Mapping[str, Part]
    models: Sequence[Model]
    quantised: Collection[str]
    tokenizer: bytes
    weights: Callable[[Part], str]
    source: str


class RangeCalibrator:
    """Calibrates a pair, if that was not done before.

    Args:
        pair: what is built.
        options: as checked.
        folder: of the bundle in the making.
        old: the bundle that was there before; its calibration is used where it was made on the same.
        store: keeps calibrations.
    """

    def __init__(
        self,
        pair: Pair,
        options: Fp8Options,
        *,
        folder: Path,
        old: Bundle | None,
        store: Store,
        console: Console,
    ) -> None:
        self._pair = pair
        self._options = options
        self._folder = folder
        self._old = old
        self._store = store
        self._console = console
        self._ranges = ""
        self._encoded: Mapping[str, npt.NDArray[Any]] | None = None
        self._jobs = options.read_jobs()
        self._geometry = sampled_geometry(pair.pipeline, pair.geometry, options.size, options.frames)

    def check(self) -> None:
        """Refuse trajectories that cannot be, before anything is exported.

        Raises:
            UsageError: likewise.
            FlowBlendingError: a calibration file of other weights, or that cannot be read.
        """
        if self._options.calibration is not None:
            _ = self.calibration
            return
        planned = self._planned
        for name in self._pair.quantised:
            if not planned.calls.get(name):
                raise UsageError(
                    f"The schedule {planned.schedule} never runs {name}, so it cannot be calibrated on it; "
                    f"give another --fp8-schedule, or another --precision of {name}."
                )

    @cached_property
    def _planned(self) -> TrajectoryRanges:
        return self._measure({}, lambda _: None, sample=False)

    def check_load(self) -> str | None:
        """A line about what sampling will take on this machine; None where nothing will be sampled, or on its GPU.

        Raises:
            FlowBlendingError: there is not enough memory.
        """
        if not self.will_sample or on_gpu():
            return None
        parts = {name: self._pair.parts[name].sources for name in self._transformers}
        load = calibration_load(parts, self._planned.calls, self._pair.pipeline, self._geometry)
        return check_load(load, self._geometry, available_memory())

    @property
    def key(self) -> dict[str, str]:
        """What of an fp8 graph depends on the calibration; after `obtain`.

        That is the table itself. What it was measured on is there too, to find an earlier bundle's by.
        """
        return {"calibration": self._measured_on, "ranges": self._ranges}

    def obtain(self) -> BundleFile:
        """Put the calibration into the bundle: the one given, the old bundle's, one of the cache, or a new one."""
        path = self._folder / FILE
        old = self._same_calibration()
        if self._options.calibration is not None:
            self.calibration.write(path)
        elif old is not None:
            shutil.copyfile(old, path)
            self._console.log(f"calibration: {_summary(self.calibration)}, reused")
        elif self._store.obtain(self._order())[1]:
            self._console.log(f"calibration: {_summary(self.calibration)}, taken from the cache")
        file = describe_file(self._folder, path)
        self._ranges = file.sha256
        return file

    @property
    def will_sample(self) -> bool:
        """Whether `obtain` has to sample trajectories, as far as can be told without reading whole files."""
        if self._options.calibration is not None or self._same_calibration() is not None:
            return False
        return not self._store.has(self._order())

    def _order(self) -> Order[BundleFile]:
        from flowblending.export.graph.trace import exporter_versions

        def make(work: Path) -> BundleFile:
            self._calibrate(work / SCRATCH).write(work / FILE)
            return describe_file(work, work / FILE)

        return Order(
            kind=BundleFile,
            name="calibration",
            key={
                "measured on": self._measured_on,
                "versions": exporter_versions(),
            },
            family=self._pair.pipeline.family,
            source=self._pair.source,
            into=self._folder,
            make=make,
        )

    @cached_property
    def calibration(self) -> Fp8Calibration:
        """That of the file given, or what `obtain` has put into the bundle."""
        from flowblending.contracts.fp8_calibration import Fp8Calibration

        given = self._options.calibration
        if given is None:
            return Fp8Calibration.read(self._folder / FILE)
        found = Fp8Calibration.read(given)
        for name in self._pair.quantised:
            found.model(name, self._pair.weights(self._pair.parts[name]), given)
        self._console.log(f"calibration: {_summary(found)}, from {given}")
        return found

    def _same_calibration(self) -> Path | None:
        """The old bundle's calibration, if it was made on the same."""
        old = self._old
        file = None if old is None else old.manifest.fp8_calibration
        if old is None or file is None:
            return None
        path = old.folder / file.path
        same = any(each.key.get("calibration") == self._measured_on for each in old.manifest.components.values())
        return path if same and path.is_file() and describe_file(old.folder, path) == file else None

    def _calibrate(self, scratch: Path) -> Fp8Calibration:
        from flowblending.contracts.fp8_calibration import Fp8Calibration, summarise

        options = self._options
        percentile = PERCENTILE if options.percentile is None else options.percentile
        margin = MARGIN if options.margin is None else options.margin
        measured, rows = self._run(percentile, scratch)
        pair = self._pair
        result = Fp8Calibration(
            pipeline=pair.pipeline.pipeline,
            size=self._geometry.size,
            frames=self._geometry.frames,
            prompts=tuple(job.prompt for job in self._jobs),
            negative_prompt=pair.pipeline.negative_prompt,
            seeds=tuple(range(len(self._jobs))),
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

    def _run(self, percentile: float, scratch: Path) -> tuple[TrajectoryRanges, dict[str, Rows]]:
        """Sample the trajectories on fp32 graphs, which are removed afterwards; and each model's rows of ranges."""
        parts, rows = self._pair.parts, {}
        try:
            with self._console.phase("calibrating") as report:
                graphs = {name: plain_graph(parts[name], scratch, report) for name in self._encoders}
                for name in self._transformers:
                    graphs[name], rows[name] = observed_graph(parts[name], percentile, scratch, report)
                return self._measure(graphs, report, sample=True), rows
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def conditions(self, scratch: Path) -> Mapping[str, npt.NDArray[Any]]:
        """Encoded prompts for the verification: those that were sampled, or the same without sampling."""
        if self._encoded is None:
            try:
                with self._console.phase("encoding prompts") as report:
                    graphs = {name: plain_graph(self._pair.parts[name], scratch, report) for name in self._encoders}
                    self._encoded = self._measure(graphs, report, sample=False).conditions
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return self._encoded

    def _measure(self, graphs: Mapping[str, Graph], report: Callable[[str], None], *, sample: bool) -> TrajectoryRanges:
        tokenizer = self._folder / "tokenizer.json"
        tokenizer.write_bytes(self._pair.tokenizer)
        return measure(
            RangesRequest(
                pipeline=self._pair.pipeline,
                models=tuple(self._pair.models),
                geometry=self._geometry,
                graphs=graphs,
                hints=self._hints,
                tokenizer=tokenizer.absolute(),
                trajectories=Trajectories(
                    jobs=self._jobs,
                    schedule=self._schedule,
                    steps=self._options.steps,
                ),
                sample=sample,
            ),
            report,
        )

    @property
    def _transformers(self) -> tuple[str, ...]:
        return components_of(self._pair.models)

    @property
    def _encoders(self) -> tuple[str, ...]:
        """The components that encode the prompts, and the images and videos that are given with them."""
        given = any(given_files(job) for job in self._jobs)
        of_images = [name for name in (*ENCODERS, IMAGE_ENCODER) if name in self._pair.parts]
        return (TEXT_ENCODER, *(of_images if given else ()))

    @property
    def _hints(self) -> dict[str, int]:
        """How many hints every transformer has that takes a control."""
        from flowblending.export.checkpoint.checkpoint import read_json

        if not takes_control(self._pair.pipeline.conditions):
            return {}
        sources = {name: self._pair.parts[name].sources for name in self._transformers}
        configs = {name: next(path for path in paths if path.name == "config.json") for name, paths in sources.items()}
        return {name: len(read_json(path).get("vace_layers") or ()) for name, path in configs.items()}

    @property
    def _schedule(self) -> str:
        return self._options.schedule or default_schedule(self._pair.models)

    @cached_property
    def _measured_on(self) -> str:
        """Digest of all that a calibration depends on but for the versions of libraries."""
        from flowblending.export.graph.trace import REVISION as EXPORTER

        options, pair = self._options, self._pair
        if options.calibration is not None:
            return hashlib.sha256(options.calibration.read_bytes()).hexdigest()
        run = [pair.parts[name] for name in (*self._transformers, *self._encoders)]
        given = [[dataclasses.asdict(job), given_digests(job)] for job in self._jobs if given_files(job)]
        content = {
            "revisions": [f"exporter {EXPORTER}", f"trajectories {REVISION}", *(part.revision for part in run)],
            "prompts": [job.prompt for job in self._jobs],
            **({"given": given} if given else {}),
            "schedule": self._schedule,
            "steps": options.steps,
            "percentile": PERCENTILE if options.percentile is None else options.percentile,
            "margin": MARGIN if options.margin is None else options.margin,
            "pipeline": repr(pair.pipeline),
            "geometry": repr(self._geometry),
            "weights": [pair.weights(part) for part in run],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _summary(calibration: Fp8Calibration) -> str:
    calls = ", ".join(f"{name} x {model.calls}" for name, model in calibration.models.items())
    at = f"{calibration.size}, {calibration.frames} frames"
    return f"{len(calibration.prompts)} prompts, {calibration.schedule}, {calls}, {at}"
