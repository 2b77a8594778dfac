"""The stage that measures the loop itself: all that a step does beside its engines, at a real video's size.

Engines that compute nothing stand in for the models, so that it needs no back end, and what is left is the loop's own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.gpu.stage import Item, Results, Unavailable, Work
from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, SMALL, GraphSpec, Precision, SigmaGrid, TensorSpec
from flowblending.contracts.models import Model
from flowblending.contracts.program import LATENTS, TIMESTEP, VELOCITY, Program
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.sampler.loop import Trajectory

_LATENTS = ("batch", 16, "frames", "height", "width")
_SHAPE, _TINY = (16, 21, 60, 104), (16, 2, 4, 4)
_STEPS = 50
_RUNS = 7
_SOLVERS = ("unipc", "euler")


class Nothing:
    """An engine that gives zeros: it enqueues a copy of them once for every output, and nothing after that.

    Args:
        name: of the model.
        zeros: of an output's size, on the device.
        device: that it is called on.
    """

    def __init__(self, name: str, zeros: Tensor, device: Device) -> None:
        self.spec = GraphSpec(
            name=name,
            precision=Precision.FP32,
            inputs=(
                TensorSpec(name=LATENTS, dtype="float32", shape=_LATENTS),
                TensorSpec(name=TIMESTEP, dtype="float32", shape=("batch",)),
            ),
            outputs=(TensorSpec(name=VELOCITY, dtype="float32", shape=_LATENTS),),
        )
        self._zeros = zeros
        self._device = device
        self._written: set[int] = set()

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """See `Engine.run`."""
        del stream
        output = tensors[VELOCITY]
        if output.address not in self._written:
            self._device.copy(self._zeros, output)
            self._written.add(output.address)

    def graph_state(self) -> object:
        """Nothing else changes what a call does."""
        return ()

    def is_capturable(self, stream: int) -> bool:
        """Once it has written its output."""
        del stream
        return bool(self._written)

    def close(self) -> None:
        """There is nothing to close."""


class _Timed(Trajectory):
    """Notes how long the host takes to enqueue each step."""

    host: list[float]

    def _enqueue(self, index: int) -> None:
        begun = time.perf_counter()
        super()._enqueue(index)
        self.host.append(time.perf_counter() - begun)


def overhead(work: Work) -> Iterable[Item]:
    """The measurements of this stage: with and without CUDA graphs."""
    if gpu_architecture() is None:
        raise Unavailable("no CUDA driver or NVIDIA GPU was found here; run it on a machine with one.")
    shape = _TINY if work.tiny else _SHAPE
    for solver in _SOLVERS:
        for graph in (False, True):
            yield Item(key=f"{solver}{' graph' * graph}", run=_measurement(solver, shape, graph=graph))


def _measurement(solver: str, shape: tuple[int, int, int, int], *, graph: bool) -> Callable[[Results], dict[str, Any]]:
    def run(_: Results) -> dict[str, Any]:
        return measure(program_of(solver, shape), graph=graph)

    return run


def program_of(solver: str, shape: tuple[int, int, int, int]) -> Program:
    """LSL in 50 steps with guidance, as Wan runs it."""
    models = {
        letter: Model(name=name, letter=letter, components=(name,)) for letter, name in (("L", LARGE), ("S", SMALL))
    }
    return compile_program(
        schedule=StageSchedule.parse("LSL", _STEPS, 0.4, 0.2),
        models=models,
        solver=solver,
        grid=sigma_grid(SigmaGrid(kind="shifted", shift=3.0), solver, _STEPS, 0),
        latent_shape=shape,
        guidance=5.0,
        batched=False,
    )


def measure(program: Program, *, graph: bool) -> dict[str, Any]:
    """Microseconds of a step: of the host until it has enqueued one, and of the GPU until it has done one.

    Args:
        graph: whether steps are launched as CUDA graphs.

    Raises:
        FlowBlendingError: they were to be, and none was.
    """
    from flowblending.runtime.devices.cuda import CudaDevice

    device = CudaDevice()
    zeros = device.upload(np.zeros((1, *program.latent_shape), np.float32))
    engines = {name: Nothing(name, zeros, device) for name in (LARGE, SMALL)}
    conditions: dict[str, dict[str, Tensor]] = {branch: {} for branch in program.branches()}
    trajectory = _Timed(engines, device, program, conditions, cuda_graph=graph)
    start = device.upload(np.random.default_rng(0).standard_normal((1, *program.latent_shape), np.float32))
    host, gpu, wall, steps, launches = [], [], [], len(program.steps), 0
    for number in range(_RUNS + 1):
        trajectory.host = []
        begun = time.perf_counter()
        result = trajectory.run(start)
        ended = time.perf_counter()
        if graph and number and not result.graphs.launches:
            why = result.graphs.failed or result.graphs.off or "it has captured none"
            raise FlowBlendingError(f"no step was launched as a graph: {why}.")
        if number:  # the first warms up, and captures
            host.append(sum(trajectory.host) / steps)
            gpu.append(result.loop_seconds / steps)
            wall.append((ended - begun) / steps)
            launches = result.graphs.launches
    device.close()
    micro = {"host": host, "GPU": gpu, "wall": wall}
    return {
        "steps": steps,
        "graph": graph,
        "steps launched as graphs": launches,
        **{f"{name} microseconds per step": 1e6 * statistics.median(times) for name, times in micro.items()},
    }
