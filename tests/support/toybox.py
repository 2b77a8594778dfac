"""A package from outside that adds one of each kind, as docs/extending.md tells; `install` is what pip does."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowblending import UsageError
from flowblending.contracts.graph import ExportedGraph, GraphSpec, PipelineSpec, Precision
from flowblending.contracts.program import LATENTS
from flowblending.engine.backends.backend import Backend, Compiled, PlanInfo
from flowblending.engine.backends.function import FunctionEngine
from flowblending.engine.backends.protocol import Engine, ShapeProfile
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.families.model_family import ModelFamily
from flowblending.export.families.wan.row import WAN
from flowblending.runtime.program.caches.cache import Cache, Measurement, View
from flowblending.runtime.program.caches.policy import Decisions, Outline
from flowblending.runtime.program.combination import Combination, slot
from flowblending.runtime.program.solvers.solver import Solver, Updates

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Family

ENTRY_POINTS = {"solvers": "SOLVER", "caches": "CACHE", "backends": "BACKEND", "families": "FAMILY"}


def adams_bashforth(sigmas: Sequence[float], velocities: Sequence[Combination], restarts: frozenset[int]) -> Updates:
    """The two-step Adams-Bashforth method with variable steps (Hairer, Norsett, Wanner, III.5)."""
    steps = len(sigmas) - 1
    lengths = [after - now for now, after in itertools.pairwise(sigmas)]
    kept = [slot("adams_0"), slot("adams_1")]
    fresh = restarts | {0, steps - 1}
    updates = []
    for i, velocity in enumerate(velocities):
        slope = velocity
        if i not in fresh:
            slope = velocity + 0.5 * lengths[i] / lengths[i - 1] * (velocity - kept[(i - 1) % 2])
        updates.append((velocity.into(f"adams_{i % 2}"), (slot(LATENTS) + lengths[i] * slope).into(LATENTS)))
    return tuple(updates)


SOLVER = Solver(name="adams", help="Adams-Bashforth", order=2, update=adams_bashforth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternate:
    """Every second step of a stage."""

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        since, computed = 0, []
        for step in range(outline.steps):
            since = 0 if step in outline.starts else since + 1
            computed.append(since % 2 == 0)
        return decisions.only(computed)


class Sizes:
    """Measures how large velocities are."""

    def look(self, view: View) -> Mapping[str, float]:
        return {"alternate": float(np.abs(view.velocity).mean())}


def _read(arguments: str, word: str) -> Alternate:
    if arguments:
        raise UsageError(f"The cache {word} takes no arguments; write alternate.")
    return Alternate()


CACHE = Cache(
    name="alternate",
    form="alternate",
    example="alternate",
    read=_read,
    measurement=Measurement(name="alternate", series=("alternate",), observer=Sizes),
)


def _compile(
    graph: ExportedGraph,
    *,
    profiles: Sequence[ShapeProfile],
    targets: tuple[str, ...],
    weight_streaming: bool,
    folder: Path,
    progress: Callable[[str], None],
) -> Compiled:
    import onnx

    assert profiles and not targets and not weight_streaming
    progress("packing")
    start, packed = time.monotonic(), folder / f"{graph.spec.name}.packed"
    model = onnx.load(graph.onnx)
    packed.write_bytes(model.SerializeToString())
    plan = PlanInfo(
        bytes=packed.stat().st_size,
        weights_bytes=None,
        scratch_bytes=None,
        layers=len(model.graph.node),
        seconds=time.monotonic() - start,
        version=_version(),
    )
    return Compiled(files=(packed,), plan=plan)


def _open(
    path: Path, spec: GraphSpec, *, device: str, index: int, stream: int, threads: int | None, streamed: int
) -> Engine:
    from onnx.reference import ReferenceEvaluator

    assert (device, index, stream, threads, streamed) == ("cpu", 0, 0, None, 0)
    evaluator = ReferenceEvaluator(path.read_bytes())
    names = [each.name for each in spec.outputs]

    def run(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(zip(names, evaluator.run(names, dict(inputs)), strict=True))

    return FunctionEngine(spec, run)


def _version() -> str:
    import onnx

    return onnx.__version__


BACKEND = Backend(
    name="onnx-reference",
    title="ONNX's reference evaluator",
    help="runs anywhere, slowly",
    precisions=(Precision.FP32,),
    base=Precision.FP32,
    needs_gpu=False,
    any_size=True,
    compiles=True,
    suffix=".packed",
    revision="1",
    version=_version,
    compile=_compile,
    open=_open,
)


def _load() -> Family:
    from flowblending.export.families.wan.family import Wan

    class Toy(Wan):
        """Wan's graphs under other defaults."""

        def describe(self, checkpoint: Checkpoint) -> PipelineSpec:
            return dataclasses.replace(super().describe(checkpoint), family="toy", solver="adams", steps=4)

    return Toy()


FAMILY = ModelFamily(name="toy", pipelines=("ToyPipeline",), vae_factors=WAN.vae_factors, load=_load)


def install(folder: Path) -> None:
    """What pip writes for a package with these entry points; ``folder`` goes on Python's path."""
    info = folder / "toybox-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toybox\nVersion: 1.0\n")
    points = [f"[flowblending.{group}]\ntoy = {__name__}:{name}\n" for group, name in ENTRY_POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join(points))
