"""Executes a sampling program: a loop over its instructions, which knows neither models nor solvers.

Everything that can be done once is done before the loop: memory for every slot, timesteps, conditions and the
tensors of every engine call. The loop itself only enqueues engine calls, copies, mixes, looks for non-finite
values, and marks; it allocates nothing and waits for nothing. All addresses stay the same, so that steps that come
again are launched as CUDA graphs (`step_graphs`). Neither holds for a program with a choice, which waits for one small
read wherever it decides.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.program import Program
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.program.graph_plan import plan_graphs
from flowblending.runtime.sampler.binding import Conditions, Given, bind
from flowblending.runtime.sampler.executor import Executor
from flowblending.runtime.sampler.numbers import StepNumbers
from flowblending.runtime.sampler.step_graphs import GraphUse, StepGraphs, uncapturable

_FLOAT32 = np.dtype(np.float32)

AHEAD = 2
"""Steps that may be under way on a GPU before the oldest is waited for by a caller that may stop early: the GPU never
runs dry, and is free after these steps."""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """A step has finished.

    Attributes:
        index: which, from 0 on.
        steps: of how many.
        model: that the step belongs to.
        seconds: that it took.
    """

    index: int
    steps: int
    model: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """What a run gave and how long it took, in seconds on the device's clock.

    Attributes:
        latents: fp32 [1, C, F, H, W], normalised as the transformer sees them.
        step_seconds: of every step.
        model_seconds: inside the calls of each model's engine.
        calls: that were made of each model, each branch counted; the program's own unless it has a choice.
        loop_seconds: of all steps together, engines included.
        graphs: what CUDA graphs did.
    """

    latents: Tensor
    step_seconds: tuple[float, ...]
    model_seconds: Mapping[str, float]
    calls: Mapping[str, int]
    loop_seconds: float
    graphs: GraphUse = field(default_factory=GraphUse)

    @property
    def engine_seconds(self) -> float:
        """Inside all engine calls; the rest of ``loop_seconds`` is overhead."""
        return sum(self.model_seconds.values())


class StepObserver(Protocol):
    """Enqueues what it likes around every step, and waits for nothing."""

    def before(self, index: int) -> None:
        """A step is enqueued next: the latents are those that it starts from."""
        ...

    def after(self, index: int) -> None:
        """It has been enqueued."""
        ...


class Sampler:
    """Runs programs with the engines of a model pair.

    Args:
        engines: by the model names that the programs use. Each takes ``latents`` [B, C, F, H, W] and ``timestep``
            [B] in fp32 and any conditions, and gives ``velocity`` of the latents' shape.
        device: where the engines are and everything else happens.
        cuda_graph: whether steps that come again are launched as CUDA graphs, where that can be.
        before: called with the number of every step before it is enqueued: opens engines that are not open yet.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        device: Device,
        *,
        cuda_graph: bool = True,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self._engines = engines
        self._device = device
        self._cuda_graph = cuda_graph
        self._before = before

    def sample(
        self,
        program: Program,
        latents: npt.NDArray[np.float32] | Tensor,
        conditions: Conditions,
        *,
        on_step: Callable[[StepEvent], None] | None = None,
    ) -> SampleResult:
        """Run a program once; see `prepare` and `Trajectory.run`."""
        return self.prepare(program, conditions).run(latents, on_step=on_step)

    def prepare(self, program: Program, conditions: Conditions, given: Given | None = None) -> Trajectory:
        """Allocate and bind everything that running a program takes.

        Args:
            program: what to run.
            conditions: per branch of the program; inputs that no engine asks for are left alone. Their memory must
                live as long as the trajectory.
            given: by slot, what the program's given slots hold, float32 [1, C, f, H, W].

        Raises:
            FlowBlendingError: an engine asks for an input that is not there, or of another shape or type.
        """
        return Trajectory(
            self._engines, self._device, program, conditions, given, cuda_graph=self._cuda_graph, before=self._before
        )


class Trajectory:
    """A program bound to engines and memory. Made by `Sampler.prepare`; may be run any number of times."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        device: Device,
        program: Program,
        conditions: Conditions,
        given: Given | None = None,
        *,
        cuda_graph: bool,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self._device = device
        self._before = before
        plan = plan_graphs(program, uncapturable(program, engines), by_phases=before is not None)
        graphs = device.graphs if cuda_graph else None
        self._use = GraphUse(off=plan.why_not if graphs is not None else "")
        numbers = None if graphs is None or plan.why_not else StepNumbers(program, device, graphs)
        self._binding = bind(program, engines, device, conditions, numbers=numbers, given=given)
        self._start = device.mark()
        self._executor = Executor(self._binding, device, self._binding.complaints)
        self._graphs = None
        if numbers is not None:
            self._graphs = StepGraphs(plan, self._binding, self._executor, numbers, device.stream)

    @property
    def latents(self) -> Tensor:
        """This trajectory's latents, fp32 [1, C, F, H, W]: with ``follow(ahead=0)`` those after the step just told."""
        return self._binding.latents

    @property
    def calls(self) -> int:
        """Engine calls enqueued since the run began, each branch counted."""
        return sum(1 + len(each.copies) for each in self._executor.calls)

    def run(
        self, latents: npt.NDArray[np.float32] | Tensor, *, on_step: Callable[[StepEvent], None] | None = None
    ) -> SampleResult:
        """Go from noise to the result.

        Args:
            latents: fp32 [1, C, F, H, W], an array or a tensor on the device; copied.
            on_step: told of every finished step in order. On a GPU, steps are enqueued ahead of it.

        Returns:
            The result; its latents are this trajectory's memory and change when it runs again.

        Raises:
            FlowBlendingError: a model gave a non-finite velocity, or an engine failed.
        """
        if on_step is None:
            with self._running(latents):
                for index in range(len(self._binding.steps)):
                    self._enqueue(index)
                if self._binding.steps:
                    self._binding.steps[-1].stop.wait()
            return self._result()
        with contextlib.closing(self.follow(latents)) as events:
            for event in events:
                on_step(event)
        return self._result()

    def follow(
        self,
        latents: npt.NDArray[np.float32] | Tensor,
        *,
        ahead: int | None = None,
        observer: StepObserver | None = None,
    ) -> Generator[StepEvent, None, SampleResult]:
        """`run` as a generator: yields every finished step in order, and returns the result.

        Closing the generator ends the run; it returns when the steps that were enqueued have finished.

        Args:
            latents: as for `run`.
            ahead: how many steps may be enqueued beyond the one yielded next, which is what an early end has to wait
                for; None sets no limit. One or two keep a GPU busy.
            observer: told of every step before and after it is enqueued.

        Raises:
            FlowBlendingError: as `run`.
        """
        steps, told = self._binding.steps, 0
        with self._running(latents):
            for enqueued in range(1, len(steps) + 1):
                if observer is not None:
                    observer.before(enqueued - 1)
                self._enqueue(enqueued - 1)
                if observer is not None:
                    observer.after(enqueued - 1)
                due = 0 if ahead is None else enqueued - ahead
                while told < enqueued and (told < due or steps[told].stop.reached()):
                    yield self._event(told)
                    told += 1
            while told < len(steps):
                yield self._event(told)
                told += 1
        return self._result()

    def _enqueue(self, index: int) -> None:
        """The loop's body. A step's end is marked behind it, and not in its graph, to be waited for."""
        if self._before is not None:
            self._before(index)
        step, chooser = self._binding.steps[index], self._binding.chooser
        if self._graphs is not None:
            self._graphs.enqueue(index)
        else:
            reuse = None if chooser is None else chooser.reuse(index)
            self._executor.execute(step.instructions if reuse is None else reuse)
            if chooser is not None and reuse is None:
                chooser.computed(index)
        step.stop.record()

    @contextlib.contextmanager
    def _running(self, latents: npt.NDArray[np.float32] | Tensor) -> Iterator[None]:
        """What comes before and after the loop, however the loop ends."""
        if latents.shape != self._binding.latents.shape or latents.dtype != _FLOAT32:
            raise FlowBlendingError(
                f"The initial latents are {latents.dtype} {list(latents.shape)}, but float32 "
                f"{list(self._binding.latents.shape)} was expected; give latents of the size that was prepared."
            )
        source = latents if isinstance(latents, Tensor) else self._device.upload(latents)
        self._executor.start(source)
        if self._graphs is not None:
            self._graphs.start()
        self._start.record()
        try:
            yield
        except BaseException:
            # The engines and this memory must not go before the work that uses them.
            with contextlib.suppress(Exception):
                self._start.record()
                self._start.wait()
            raise
        self._executor.raise_if_bad()

    def _event(self, index: int) -> StepEvent:
        """Wait for a step, and describe it. Waiting for one that others follow does not hold up the stream."""
        step = self._binding.steps[index]
        last = self._binding.steps[index - 1].stop if index else self._start
        if not step.stop.reached():
            step.stop.wait()
        return StepEvent(
            index=index, steps=len(self._binding.steps), model=step.model, seconds=self._device.seconds(last, step.stop)
        )

    def _result(self) -> SampleResult:
        seconds = self._device.seconds
        stops = [self._start, *(step.stop for step in self._binding.steps)]
        model_seconds: dict[str, float] = {}
        calls: dict[str, int] = {}
        for each in self._executor.calls:
            model_seconds[each.model] = model_seconds.get(each.model, 0.0) + seconds(each.start, each.stop)
            calls[each.model] = calls.get(each.model, 0) + 1 + len(each.copies)
        return SampleResult(
            latents=self._binding.latents,
            step_seconds=tuple(seconds(start, stop) for start, stop in itertools.pairwise(stops)),
            model_seconds=model_seconds,
            calls=calls,
            loop_seconds=seconds(stops[0], stops[-1]),
            graphs=self._use if self._graphs is None else self._graphs.use,
        )
