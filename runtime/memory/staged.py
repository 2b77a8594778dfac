"""Engines that are opened and closed while a program runs, each for its stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from flowblending.contracts.graph import GraphSpec
from flowblending.contracts.program import Program
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.memory.engines import Engines
from flowblending.runtime.memory.plan import MemoryPlan


class StagedEngine:
    """An engine that need not be open; see `Engine`. Its addresses change when it is opened anew: no graph holds it."""

    def __init__(self, spec: GraphSpec, opened: Callable[[], Engine]) -> None:
        self._spec = spec
        self._opened = opened

    @property
    def spec(self) -> GraphSpec:
        """Inputs, outputs and precision."""
        return self._spec

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Enqueue one call."""
        self._opened().run(tensors, stream)

    def close(self) -> None:
        """Whoever opens it closes it."""


class Stages:
    """Opens and closes a program's engines as a plan has it.

    Args:
        engines: whose they are.
        program: that runs.
        plan: in phases, one for each stage of the program.
        measured: around everything that opens engines.
    """

    def __init__(
        self,
        engines: Engines,
        program: Program,
        plan: MemoryPlan,
        measured: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._engines = engines
        self._measured = measured
        self._actions = dict(self._planned(program, plan))

    def before(self, step: int) -> None:
        """What is to be done before a step is enqueued: its engine opened, and behind a stage's first, the next one.

        What is opened ahead is read while the device is busy with the step before.
        """
        keep, names = self._actions.get(step, ((), ()))
        if not names:
            return
        if keep:
            self._engines.keep_only(keep)
        with self._measured():
            for name in names:
                self._engines.get(name)

    @staticmethod
    def _planned(program: Program, plan: MemoryPlan) -> Iterator[tuple[int, tuple[Sequence[str], Sequence[str]]]]:
        """By step, the engines that may stay open (none: all), and those to open."""
        first = 0
        for phase in plan.stages:
            model = phase.runs[0]
            length = 0
            while first + length < len(program.steps) and program.steps[first + length].model == model:
                length += 1
            yield first, (phase.resident, (model,))
            if length > 1:
                yield first + 1, ((), phase.resident)
            first += length
