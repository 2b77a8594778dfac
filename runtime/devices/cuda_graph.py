"""CUDA graphs: work captured from a device's stream once, and launched again as one call of the driver.

Events that captured work records are external (``CU_EVENT_RECORD_EXTERNAL``), so that they can be read, and every
launch may record others in their place. Such an event keeps the state of its last record until the launch reaches it:
whether a launch has finished, an event recorded behind it tells.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.cuda_context import CudaContext
from flowblending.runtime.devices.cuda_kernels import chained
from flowblending.runtime.devices.protocol import CaptureError, Mark


class _Device(Protocol):
    """What graphs ask of the GPU."""

    capturing: bool

    def mix_told(self, out: Tensor, factors: int, tensors: Sequence[Tensor]) -> None:
        """Enqueue a linear combination of at most `MAX_TERMS` tensors, whose factors are at an address."""
        ...


class CudaGraphs:
    """See `flowblending.runtime.devices.protocol.Graphs`.

    Args:
        device: whose stream is captured.
        driver: ``cuda.bindings.driver``.
        context: of the GPU.
        stream: handle of that stream.
    """

    def __init__(self, device: _Device, driver: Any, context: CudaContext, stream: Any) -> None:
        self._device = device
        self._driver = driver
        self._context = context
        self._stream = stream

    def numbers(self, factors: Sequence[float]) -> list[float]:
        """The factors of a mix as `mix` reads them."""
        return [factor for chunk in chained(factors, 1.0) for factor in chunk]

    def mix(self, out: Tensor, factors: Tensor, tensors: Sequence[Tensor]) -> None:
        """Enqueue a linear combination whose factors are read when it runs."""
        address = factors.address
        for chunk in chained(tensors, out):
            self._device.mix_told(out, address, chunk)
            address += 4 * len(chunk)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Capture what a function enqueues, without running it.

        Only calls of this thread are watched for what a capture does not allow: others go on with what they do.

        Raises:
            CaptureError: the driver did not make a graph of it.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self._context.current(), _no_collection():
            self._check(self._driver.cuStreamBeginCapture(self._stream, mode))
            self._device.capturing = True
            try:
                enqueue()
            except BaseException:
                _, graph = self._end()
                if int(graph):
                    self._driver.cuGraphDestroy(graph)
                raise
            status, graph = self._end()
            self._check((status,))
            return self._instantiate(graph)

    def _end(self) -> tuple[Any, Any]:
        self._device.capturing = False
        status, graph = self._driver.cuStreamEndCapture(self._stream)
        return status, graph

    def _instantiate(self, graph: Any) -> CudaGraph:
        status, executable = self._driver.cuGraphInstantiate(graph, 0)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            self._driver.cuGraphDestroy(graph)
            raise CaptureError(status.name)
        return CudaGraph(self._driver, self._context, self._stream, graph, executable)

    def _check(self, result: tuple[Any, ...]) -> None:
        if result[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise CaptureError(result[0].name)


class CudaGraph:
    """See `flowblending.runtime.devices.protocol.Graph`. What was captured keeps no memory alive: its user does.

    Made by `CudaGraphs`.
    """

    def __init__(self, driver: Any, context: CudaContext, stream: Any, graph: Any, executable: Any) -> None:
        self._driver = driver
        self._context = context
        self._stream = stream
        self._executable = executable
        # The driver frees it when the launches that are under way have finished.
        weakref.finalize(self, _destroy, driver, context, graph, executable).atexit = False
        self._nodes: Final = self._record_nodes(graph)
        self._recorded = {event: event for event in self._nodes}

    def launch(self, marks: Sequence[tuple[Mark, Mark]]) -> None:
        """Enqueue it; see `Graph.launch`."""
        with self._context.current():
            for captured, mark in marks:
                self._record_instead(captured, mark)
            self._context.check(self._driver.cuGraphLaunch(self._executable, self._stream))

    def _record_instead(self, captured: Any, mark: Any) -> None:
        """Have the next launch record ``mark``; launches that are under way stay as they are."""
        if self._recorded[captured.number] != mark.number:
            node = self._nodes[captured.number]
            self._context.check(self._driver.cuGraphExecEventRecordNodeSetEvent(self._executable, node, mark.handle))
            self._recorded[captured.number] = mark.number

    def _record_nodes(self, graph: Any) -> dict[int, Any]:
        """The nodes that record events, by the event as it was captured."""
        driver, check = self._driver, self._context.check
        record = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_EVENT_RECORD
        _, _, count = driver.cuGraphGetNodes(graph)
        _, nodes, _ = driver.cuGraphGetNodes(graph, count)
        return {
            int(check(driver.cuGraphEventRecordNodeGetEvent(node))): node
            for node in nodes
            if check(driver.cuGraphNodeGetType(node)) == record
        }


def _destroy(driver: Any, context: CudaContext, graph: Any, executable: Any) -> None:
    with context.current():
        driver.cuGraphExecDestroy(executable)
        driver.cuGraphDestroy(graph)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from finding just now that some tensor is garbage: its memory would be freed by the graph."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
