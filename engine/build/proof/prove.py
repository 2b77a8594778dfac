"""``fb-build-engines --prove BUNDLE``: what of a bundle's report only its own GPU can tell.

The bundle makes a short video. Every engine is run on the inputs that the build kept, and compared with what torch gave
there; so is the whole trajectory of the pair. That fills a GPU, so it is done in a process of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import flowblending
from flowblending import FlowBlendingError
from flowblending.contracts.conditions import input_key
from flowblending.contracts.program import TIMESTEP
from flowblending.contracts.proof import Sizes
from flowblending.engine.backends.gpu import check_architecture, gpu_architecture
from flowblending.engine.backends.protocol import Engine, InspectedEngine
from flowblending.engine.backends.registry import gpu_components
from flowblending.engine.backends.tensor import CPU
from flowblending.engine.build.fp8.options import PROMPTS
from flowblending.engine.build.proof.claims import allowed_on
from flowblending.engine.build.proof.pair import (
    LATENTS,
    Floats,
    ModelCall,
    PairFacts,
    allowed,
    compare_pair,
    difference,
)
from flowblending.engine.build.proof.report import (
    BuildReport,
    Inspected,
    make_report,
    read_report,
    sizes_of,
    write_report,
)
from flowblending.engine.build.proof.short_run import RunFacts, run_bundle, short_job
from flowblending.engine.bundle.bundle import TRAJECTORY, Bundle, open_bundle
from flowblending.runtime.devices.open import AUTO, open_device
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.shell import command
from flowblending.system.subprocess_call import EndedError, call_in_subprocess

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ProveRequest:
    """What to run.

    Attributes:
        reference_outputs: by component, the file of
            `flowblending.export.verify.reference_outputs.ReferenceRecorder`; absolute.
        trajectory: of the pair, as `flowblending.engine.build.proof.pair_build` wrote it; absolute.
            None to leave it out.
        allowed: by model, the largest difference of its velocities that passes.
    """

    bundle: Path
    reference_outputs: Mapping[str, Path]
    trajectory: Path | None
    allowed: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ProveResult:
    """What was found; see `BuildReport`. Engines of a bundle that does not run may be beyond inspection: None."""

    run: RunFacts
    inspected: Inspected | None
    pair: PairFacts | None


def check_device(bundle: Bundle) -> None:
    """Refuse a machine without the GPU that a bundle's plans are for.

    Raises:
        FlowBlendingError: in one sentence, with what to do.
    """
    plans = {name: bundle.manifest.components[name] for name in gpu_components(bundle.manifest)}
    architecture = gpu_architecture()
    if plans and architecture is None:
        targets = sorted({target for each in plans.values() for target in each.targets})
        raise FlowBlendingError(
            f"{bundle.folder} holds plans for {' and '.join(targets) or 'an NVIDIA GPU'}, which only such a GPU can "
            f"prove, and no CUDA driver or NVIDIA GPU was found; run "
            f"{command('fb-build-engines', '--prove', bundle.folder)} there."
        )
    for name, each in plans.items():
        check_architecture(name, each.targets, architecture)


def prove_bundle(folder: Path, progress: Callable[[str], None]) -> BuildReport:
    """Run a bundle's engines, and write the report anew with what was found.

    Raises:
        FlowBlendingError: there is no whole bundle or no report of it, not the GPU that its plans are for, or an
            engine fails.
    """
    bundle = open_bundle(folder)
    # What takes no time comes before reading gigabytes.
    check_device(bundle)
    bundle.verify()
    report = read_report(bundle)
    if report is None:
        raise FlowBlendingError(f"{folder} has no report of this version to complete; rebuild with: {bundle.rebuild}")
    absolute = folder.absolute()
    trajectory = absolute / TRAJECTORY
    request = ProveRequest(
        bundle=absolute,
        reference_outputs={name: absolute / proof.golden for name, proof in report.components.items() if proof.golden},
        trajectory=trajectory if trajectory.is_file() else None,
        allowed=allowed(bundle.manifest),
    )
    try:
        result = call_in_subprocess(inspect, request, progress)
    except EndedError as end:
        how = "was killed, most likely because memory ran out" if end.killed else f"ended with {end.how} ({end.last})"
        raise FlowBlendingError(f"The proof {how}; stop other programs, or use a machine with more memory.") from None
    completed = make_report(
        bundle,
        slots=report.slots,
        pair=result.pair or report.pair,
        run=result.run,
        inspected=result.inspected or report.inspected,
    )
    write_report(completed, folder)
    return completed


def inspect(request: ProveRequest, progress: Callable[[str], None]) -> ProveResult:
    """Run the bundle, then every engine, all of them open at once as in a run, and then the trajectory."""
    bundle = open_bundle(request.bundle)
    device = open_device(AUTO, bundle.manifest)
    where = CPU if device.kind == CPU else gpu_architecture() or device.kind
    pipeline = Pipeline(bundle=bundle, device=device)
    try:
        progress("making a short video")
        run = run_bundle(pipeline, short_job(bundle.manifest, PROMPTS[0]), where)
        try:
            inspected, pair = _inspected(pipeline, device, where, request, progress)
        except FlowBlendingError:
            if not run.fault:
                raise
            # What the run failed at is what there is to say.
            inspected, pair = None, None
    finally:
        pipeline.close()
    return ProveResult(run=run, inspected=inspected, pair=pair)


def _inspected(
    pipeline: Pipeline, device: Device, where: str, request: ProveRequest, progress: Callable[[str], None]
) -> tuple[Inspected, PairFacts | None]:
    manifest = pipeline.bundle.manifest
    differences: dict[str, float | None] = {}
    device_bytes: dict[str, int] = {}
    layers: dict[str, tuple[str, ...]] = {}
    for name in manifest.components:
        progress(f"running {name}")
        engine = pipeline.engines.get(name)
        if isinstance(engine, InspectedEngine):
            device_bytes[name], layers[name] = engine.device_bytes(), engine.layers()
        reference = request.reference_outputs.get(name)
        differences[name] = _judge(engine, device, sizes_of(manifest, name), reference)
    pair = None
    if request.trajectory is not None:
        progress("running the pair along its schedule")
        pair = _follow(pipeline, device, request.trajectory, where, request.allowed)
    inspected = Inspected(
        device=where,
        version=flowblending.__version__,
        device_bytes=device_bytes,
        layers=layers,
        differences=differences,
    )
    return inspected, pair


def _judge(engine: Engine, device: Device, every: Sequence[Sizes], reference: Path | None) -> float | None:
    """Compare an engine with torch where that was kept, and run it on noise at the other sizes of its profiles.

    Returns:
        The largest difference; None where nothing was kept; NaN if an engine gives what is no number.
    """
    worst, compared = (None, []) if reference is None else _compare(engine, device, reference)
    finite = _finite(engine, device, [sizes for sizes in every if sizes not in compared])
    return worst if finite else math.nan


def _finite(engine: Engine, device: Device, every: Sequence[Sizes]) -> bool:
    """Whether an engine gives finite values for noise."""
    random = np.random.default_rng(0)
    for sizes in every:
        given = {
            each.name: random.standard_normal(each.resolve(sizes)).astype(each.dtype)
            if np.dtype(each.dtype).kind == "f"
            else np.ones(each.resolve(sizes), each.dtype)
            for each in engine.spec.inputs
        }
        if not all(np.isfinite(found).all() for found in _run(engine, device, given).values()):
            return False
    return True


def _compare(engine: Engine, device: Device, reference: Path) -> tuple[float, list[Sizes]]:
    """The largest difference of an output from torch's, and the sizes that were compared."""
    worst, compared = 0.0, []
    with np.load(reference) as kept:
        for index in sorted({name.partition("/")[0] for name in kept.files}):
            given = {each.name: kept[f"{index}/inputs/{each.name}"] for each in engine.spec.inputs}
            compared.append(engine.spec.sizes({name: array.shape for name, array in given.items()}))
            found = _run(engine, device, given)
            differs = (difference(found[name], kept[f"{index}/outputs/{name}"]) for name in found)
            # A figure that is not a number stays one.
            worst = float(np.max([worst, *differs]))
    return worst, compared


def _run(engine: Engine, device: Device, given: Arrays) -> dict[str, npt.NDArray[Any]]:
    sizes = engine.spec.sizes({name: array.shape for name, array in given.items()})
    inputs = {name: device.upload(np.ascontiguousarray(array)) for name, array in given.items()}
    outputs = {each.name: device.empty(each.resolve(sizes), np.dtype(each.dtype)) for each in engine.spec.outputs}
    with device.current():
        engine.run({**inputs, **outputs}, device.stream)
    return {name: device.download(tensor) for name, tensor in outputs.items()}


def _follow(pipeline: Pipeline, device: Device, trajectory: Path, where: str, limits: Mapping[str, float]) -> PairFacts:
    with np.load(trajectory) as kept:
        arrays = {name: kept[name] for name in kept.files}
    calls = [
        ModelCall(step=int(step), model=str(model), branch=str(branch), timestep=float(timestep), latents=x, velocity=v)
        for step, model, branch, timestep, x, v in zip(
            *(arrays[name] for name in ("steps", "models", "branches", "timesteps", "latents", "velocities")),
            strict=True,
        )
    ]

    conditions: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key, array in arrays.items():
        kind, _, rest = key.partition("/")
        if kind == "conditions":
            branch, _, name = rest.partition("/")
            conditions.setdefault(branch, {})[name] = array

    def velocity(model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        engine = pipeline.engines.get(model)
        timesteps = np.full(engine.spec.timestep_shape(latents.shape[1:], 1), timestep, np.float32)
        own = {LATENTS: latents, TIMESTEP: timesteps}
        of = conditions[branch]
        given = {
            each.name: own[each.name] if each.name in own else of[input_key(of, model, each.name)]
            for each in engine.spec.inputs
        }
        (found,) = _run(engine, device, given).values()
        return found

    program = json.loads(str(arrays["program"]))
    limits = {name: allowed_on(where, limit) for name, limit in limits.items()}
    return compare_pair(program, calls, arrays["final"], velocity, calls[0].latents, where=where, allowed=limits)
