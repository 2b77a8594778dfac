"""Steps launched as CUDA graphs: one graph for all steps that do the same with other numbers.

To enqueue a transformer is to launch hundreds of kernels; a graph of them is one launch. Of a kind of step that comes
often enough (`program.graph_plan`), the first runs as it is, which prepares engines for its shapes; the second is
captured and launched; all others are launches. Where an engine has been prepared for other shapes meanwhile, or its
memory has moved, its steps begin anew. Whatever a capture meets, the step is enqueued without it, and what happens then
is what would have happened without graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowblending import FlowBlendingError
from flowblending.contracts.program import Program, Run
from flowblending.engine.backends.protocol import CapturableEngine, Engine
from flowblending.runtime.devices.protocol import CaptureError, Graph
from flowblending.runtime.program.graph_plan import GraphPlan
from flowblending.runtime.sampler.binding import Binding, EngineCall
from flowblending.runtime.sampler.executor import Executor
from flowblending.runtime.sampler.numbers import StepNumbers

_States = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class GraphUse:
    """What CUDA graphs did in a run.

    Attributes:
        launches: steps that were launched as graphs.
        captures: graphs that were made.
        off: why none were to be, as the end of a sentence; empty where they were, or nobody asked.
        failed: why the GPU or an engine made none, after which steps were enqueued one by one; empty if it did.
    """

    launches: int = 0
    captures: int = 0
    off: str = ""
    failed: str = ""


def uncapturable(program: Program, engines: Mapping[str, Engine]) -> list[str]:
    """The models of a program whose engines' calls cannot be captured."""
    models = {each.model for each in program.instructions() if isinstance(each, Run)}
    return [model for model in models if model in engines and not isinstance(engines[model], CapturableEngine)]


class StepGraphs:
    """Enqueues steps, as graphs where there are.

    Args:
        plan: of the program.
        binding: whose steps read their numbers from memory.
        executor: of the binding.
        numbers: of the program.
        stream: handle of the stream.
    """

    def __init__(
        self, plan: GraphPlan, binding: Binding, executor: Executor, numbers: StepNumbers, stream: int
    ) -> None:
        self._plan = plan
        self._steps = [step.instructions for step in binding.steps]
        self._calls = [[each for each in step if isinstance(each, EngineCall)] for step in self._steps]
        # Asked for their states at every step, and whether they are what a `Protocol` says takes microseconds.
        engines = [dict.fromkeys(each.engine for each in calls) for calls in self._calls]
        self._engines = [[each for each in step if isinstance(each, CapturableEngine)] for step in engines]
        self._executor = executor
        self._numbers = numbers
        self._stream = stream
        self._warm: dict[int, _States] = {}
        self._made: dict[int, tuple[Graph, int, _States]] = {}
        self._launches = self._captures = 0
        self._failed = ""

    @property
    def use(self) -> GraphUse:
        """What graphs did since the last `start`; what failed, since ever."""
        return GraphUse(launches=self._launches, captures=self._captures, failed=self._failed)

    def start(self) -> None:
        """A run begins."""
        self._launches = self._captures = 0

    def enqueue(self, index: int) -> None:
        """Enqueue a step.

        Raises:
            FlowBlendingError: an engine failed, or has been closed.
        """
        self._numbers.choose(index)
        kind, states = self._plan.kinds[index], self._states(index)
        made = self._made.get(kind)
        if made is not None and made[2] == states:
            self._launch(index, *made[:2])
        elif self._is_due(kind, states) and (graph := self._capture(index)) is not None:
            self._made[kind] = graph, index, states
            self._launch(index, graph, index)
        else:
            self._made.pop(kind, None)
            self._executor.execute(self._steps[index])
            self._warm[kind] = self._states(index)

    def _is_due(self, kind: int, states: _States) -> bool:
        """Whether a step is to be captured: one of its kind has run with the engines as they are now."""
        return not self._failed and kind in self._plan.captured and self._warm.get(kind) == states

    def _capture(self, index: int) -> Graph | None:
        """Make a graph of a step, or take note of why there is none."""
        before = len(self._executor.calls)
        try:
            self._check_capturable(index)
            graph = self._numbers.graphs.capture(lambda: self._executor.execute(self._steps[index]))
        except (CaptureError, FlowBlendingError) as error:
            # What did not fail because of the capture fails again without it.
            self._failed = str(error).splitlines()[0].rstrip(".")
            return None
        finally:
            del self._executor.calls[before:]
        self._captures += 1
        return graph

    def _check_capturable(self, index: int) -> None:
        for each in self._calls[index]:
            if not isinstance(each.engine, CapturableEngine) or not each.engine.is_capturable(self._stream):
                raise CaptureError(f"the engine {each.engine.spec.name} cannot be captured as it is now")

    def _launch(self, index: int, graph: Graph, captured: int) -> None:
        """Launch a step as the graph of another one, or of itself."""
        pairs = zip(self._calls[captured], self._calls[index], strict=True)
        graph.launch([marks for one, other in pairs for marks in ((one.start, other.start), (one.stop, other.stop))])
        self._executor.calls.extend(self._calls[index])
        self._launches += 1

    def _states(self, index: int) -> _States:
        """What the engines of a step were told beside its tensors."""
        return tuple([engine.graph_state() for engine in self._engines[index]])
