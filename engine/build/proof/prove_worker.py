"""Running a bundle's engines on what its build kept of torch. ``--prove`` starts this as a process of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import flowblending
from flowblending.contracts.proof import Sizes
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.protocol import Engine, InspectedEngine
from flowblending.engine.backends.tensor import CPU
from flowblending.engine.build.proof.claims import allowed_on
from flowblending.engine.build.proof.pair import LATENTS, Floats, ModelCall, PairFacts, compare_pair, difference
from flowblending.engine.build.proof.prove import ProveRequest, ProveResult
from flowblending.engine.build.proof.report import Inspected, sizes_of
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.devices.open import AUTO, open_device
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.sampler.binding import TIMESTEP
from flowblending.system.subprocess_call import answer

Arrays = Mapping[str, npt.NDArray[Any]]


def serve(descriptor: int) -> None:
    """What the process does."""
    answer(descriptor, work)


def work(request: ProveRequest, progress: Callable[[str], None]) -> ProveResult:
    """Run every engine, all of them open at once as in a run, and then the trajectory."""
    bundle = open_bundle(request.bundle)
    device = open_device(AUTO, bundle.manifest)
    where = CPU if device.kind == CPU else gpu_architecture() or device.kind
    pipeline = Pipeline(bundle=bundle, device=device)
    differences: dict[str, float | None] = {}
    device_bytes: dict[str, int] = {}
    layers: dict[str, tuple[str, ...]] = {}
    try:
        for name in bundle.manifest.components:
            progress(f"running {name}")
            engine = pipeline.engine(name)
            if isinstance(engine, InspectedEngine):
                device_bytes[name], layers[name] = engine.device_bytes(), engine.layers()
            reference = request.reference_outputs.get(name)
            differences[name] = _judge(engine, device, sizes_of(bundle.manifest, name), reference)
        pair = None
        if request.trajectory is not None:
            progress("running the pair along its schedule")
            pair = _follow(pipeline, device, request.trajectory, where, request.allowed)
    finally:
        pipeline.close()
    inspected = Inspected(
        device=where,
        version=flowblending.__version__,
        device_bytes=device_bytes,
        layers=layers,
        differences=differences,
    )
    return ProveResult(inspected=inspected, pair=pair)


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
    engine.run({**inputs, **outputs}, device.stream)
    return {name: device.download(tensor) for name, tensor in outputs.items()}


def _follow(
    pipeline: Pipeline, device: Device, trajectory: Path, where: str, allowed: Mapping[str, float]
) -> PairFacts:
    with np.load(trajectory) as kept:
        arrays = {name: kept[name] for name in kept.files}
    calls = [
        ModelCall(step=int(step), model=str(model), branch=str(branch), timestep=float(timestep), latents=x, velocity=v)
        for step, model, branch, timestep, x, v in zip(
            *(arrays[name] for name in ("steps", "models", "branches", "timesteps", "latents", "velocities")),
            strict=True,
        )
    ]

    def velocity(model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        engine = pipeline.engine(model)
        own = {LATENTS: latents, TIMESTEP: np.array([timestep], np.float32)}
        given = {
            each.name: own[each.name] if each.name in own else arrays[f"conditions/{branch}/{each.name}"]
            for each in engine.spec.inputs
        }
        (found,) = _run(engine, device, given).values()
        return found

    program = json.loads(str(arrays["program"]))
    allowed = {name: allowed_on(where, limit) for name, limit in allowed.items()}
    return compare_pair(program, calls, arrays["final"], velocity, calls[0].latents, where=where, allowed=allowed)
