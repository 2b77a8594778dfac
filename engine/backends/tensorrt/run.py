"""Running plans of TensorRT and TensorRT-RTX."""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowblending import DeviceError, FlowBlendingError, OutOfMemoryError
from flowblending.contracts.graph import GraphSpec
from flowblending.engine.backends.checks import check_tensors
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.protocol import Scratch
from flowblending.engine.backends.tensor import ALIGNMENT, CUDA, Tensor
from flowblending.engine.backends.tensorrt.contexts import ContextMaker, ProfileContext
from flowblending.engine.backends.tensorrt.library import load
from flowblending.engine.backends.tensorrt.streaming import StreamingError, leave_in_host

_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|insufficient memory", re.I)


ShapeRange = tuple[tuple[int, ...], tuple[int, ...]]
"""The smallest and the largest shape of an input."""


def choose_profile(
    profiles: Sequence[Mapping[str, ShapeRange]], shapes: Mapping[str, tuple[int, ...]], engine: str
) -> int:
    """The optimization profile for a call: of those that hold all of its shapes, the one with the smallest largest.

    Args:
        profiles: by input, in the plan's order.
        shapes: of the call's inputs.
        engine: its name.

    Raises:
        FlowBlendingError: none does.
    """
    fitting = [
        index
        for index, profile in enumerate(profiles)
        if all(_holds(profile[name], shape) for name, shape in shapes.items())
    ]
    if fitting:
        return min(fitting, key=lambda index: sum(math.prod(largest) for _, largest in profiles[index].values()))
    # Each may fit in some profile, and all of them in none.
    nowhere = [name for name, shape in shapes.items() if not any(_holds(each[name], shape) for each in profiles)]
    name, shape = next((name, shapes[name]) for name in (*nowhere, *shapes))
    ranges = dict.fromkeys(f"{list(each[name][0])} to {list(each[name][1])}" for each in profiles)
    raise FlowBlendingError(
        f"Input {name} of engine {engine} has shape {list(shape)}, but it was compiled for {' or '.join(ranges)}; "
        "build the bundle for this size."
    )


def _holds(sizes: ShapeRange, shape: tuple[int, ...]) -> bool:
    smallest, largest = sizes
    return all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))


class TrtEngine:
    """A plan on the current CUDA device, with an execution context for each optimization profile that is used.

    Its scratch memory is the caller's (`ScratchEngine`): `use_scratch` comes before the first call.

    Args:
        backend: the library that compiled it.
        path: the plan.
        spec: what it takes and gives.
        index: of the device among those that CUDA shows.
        streamed: bytes of weights to leave in the host's memory; only of plans that were compiled for it.

    Raises:
        FlowBlendingError: there is no GPU, the library is not installed, the plan is damaged or of another
            version, GPU or graph, or the GPU's memory is too small.
    """

    def __init__(self, backend: str, path: Path, spec: GraphSpec, *, index: int = 0, streamed: int = 0) -> None:
        self._spec = spec
        self._library = load(backend)
        architecture = gpu_architecture(index)
        if architecture is None:
            raise FlowBlendingError(
                f"Engine {spec.name} is a plan of {self._library.title} and needs an NVIDIA GPU, and no CUDA driver "
                "was found; install NVIDIA's driver, or build a bundle with --backend onnxruntime for the CPU."
            )
        self._library.messages.clear()
        self._runtime: Any = self._library.trt.Runtime(self._library.logger)
        self._engine: Any = self._load(path)
        self._check_plan(path)
        if streamed:
            self._leave_in_host(streamed)
        self._contexts = ContextMaker(self._library, path, architecture)
        self._scratch: Scratch | None = None
        # One is made now: what keeps a plan from being run is to be known before the work.
        self._prepared: dict[int, ProfileContext] = {}
        self._context: ProfileContext | None = self._prepare(0, 0)
        self._described: dict[str, tuple[tuple[int, ...], np.dtype[Any], str]] = {}
        self._told = object()  # another one whenever a context is told shapes
        self._profiles = [
            {each.name: self._shape_range(each.name, index) for each in spec.inputs}
            for index in range(self._engine.num_optimization_profiles)
        ]

    @property
    def spec(self) -> GraphSpec:
        """Inputs, outputs and precision."""
        return self._spec

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Enqueue the plan; see `Engine.run`. Only what has changed since the last call is told to TensorRT.

        Contexts take turns with one scratch memory: calls on different streams must wait for one another.
        """
        self._library.messages.clear()
        described = {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors.items()}
        if described != self._described:
            self._set_shapes(tensors, stream)
            self._described = described
        context = self._context
        assert context is not None, "shapes have been told"
        for each in (*self._spec.inputs, *self._spec.outputs):
            address = tensors[each.name].address
            if context.addresses.get(each.name) != address:
                self._set_address(context, each.name, address)
        if context.scratch_bytes:
            context.take(self._memory(context.scratch_bytes))
        if not context.context.execute_async_v3(stream):
            raise self._failure(f"failed to run {self._spec.name}", "check the GPU and its driver")

    def use_scratch(self, scratch: Scratch) -> None:
        """See `ScratchEngine`."""
        self._scratch = scratch

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """See `ScratchEngine`."""
        self._check_open()
        inputs = {each.name: shapes[each.name] for each in self._spec.inputs}
        index = choose_profile(self._profiles, inputs, self._spec.name)
        self._memory(self._contexts.scratch_bytes(self._engine, index))

    def graph_state(self) -> object:
        """See `CapturableEngine`: graphs hold what contexts have prepared for their shapes, and the scratch memory."""
        self._check_open()
        size = max(each.scratch_bytes for each in self._prepared.values())
        memory = self._memory(size) if size else None
        return self._told, memory and (memory.address, memory.nbytes)

    def is_capturable(self, stream: int) -> bool:
        """See `CapturableEngine`: TensorRT-RTX tells, TensorRT leaves it to the capture."""
        context = None if self._context is None else self._context.context
        ask = getattr(context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def device_bytes(self) -> int:
        """The scratch memory of one context on the GPU, as the engine states it."""
        return int(self._engine.device_memory_size_v2)

    def layers(self) -> tuple[str, ...]:
        """The names of the plan's layers, as TensorRT's engine inspector lists them; none if it lists nothing."""
        inspector = self._engine.create_engine_inspector()
        text = inspector and inspector.get_engine_information(self._library.trt.LayerInformationFormat.JSON)
        try:
            listed = json.loads(text or "{}").get("Layers", ())
        except ValueError:
            return ()
        # A name alone, or with details where the plan has them.
        return tuple(str(each["Name"]) if isinstance(each, dict) else str(each) for each in listed)

    def close(self) -> None:
        """Free the context, then the weights. The caller has waited for the stream."""
        if self._prepared:
            self._contexts.keep()
        self._described = {}
        self._prepared = {}
        self._context = None
        self._engine = None
        self._runtime = None

    def _load(self, path: Path) -> Any:
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
                engine = self._runtime.deserialize_cuda_engine(plan)
        except ValueError:  # an empty file cannot be mapped
            raise FlowBlendingError(f"The plan {path} is empty; build the bundle again.") from None
        except OSError as error:
            raise FlowBlendingError(
                f"The plan {path} cannot be read ({error.strerror}); build the bundle again."
            ) from None
        if engine is None:
            raise self._failure(
                f"cannot load {path}", "if it is damaged, or of another version or GPU, build the bundle again"
            )
        return engine

    def _leave_in_host(self, streamed: int) -> None:
        try:
            leave_in_host(self._engine, streamed)
        except StreamingError as error:
            raise OutOfMemoryError(
                f"{self._library.title} {self._library.version} cannot leave in the host's memory what the GPU has no "
                f"room for of the weights of {self._spec.name} ({error}; {self._library.messages.error()}); stop other "
                "programs on the GPU, or make a smaller video."
            ) from None

    def _check_plan(self, path: Path) -> None:
        """A plan of another graph would read and write beyond the memory that it is given."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = {name: self._library.dtype_name(self._engine.get_tensor_dtype(name)) for name in names}
        expected = {each.name: each.dtype for each in (*self._spec.inputs, *self._spec.outputs)}
        if found != expected:
            raise FlowBlendingError(
                f"The plan {path} has the tensors {found}, but {expected} was expected of engine {self._spec.name}; "
                "build the bundle again."
            )

    def _set_shapes(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        self._check_open()
        self._described = {}  # what the context has been told is in doubt until all of it has been told
        check_tensors(self._spec, tensors, CUDA)
        shapes = {each.name: tensors[each.name].shape for each in self._spec.inputs}
        index = choose_profile(self._profiles, shapes, self._spec.name)
        self._context = self._prepared.get(index) or self._prepare(index, stream)
        for name, shape in shapes.items():
            if self._context.shapes.get(name) == shape:
                continue
            if not self._context.context.set_input_shape(name, shape):
                raise self._failure(f"refused the shape {list(shape)} of {name}", "build the bundle again")
            self._context.shapes[name] = shape
            self._told = object()

    def _check_open(self) -> None:
        if self._engine is None:
            raise FlowBlendingError(f"Engine {self._spec.name} has been closed; open it again.")

    def _prepare(self, index: int, stream: int) -> ProfileContext:
        made = self._contexts.for_profile(self._engine, index, stream)
        if made is None:
            raise self._failure(f"cannot prepare {self._spec.name} for running", "build the bundle again")
        self._prepared[index] = made
        return made

    def _memory(self, size: int) -> Tensor:
        """The scratch memory, at least so large."""
        if self._scratch is None:
            raise FlowBlendingError(f"Engine {self._spec.name} was given no scratch memory; call use_scratch first.")
        memory = self._scratch.at_least(size)
        if memory.nbytes < size:
            raise FlowBlendingError(
                f"Engine {self._spec.name} was given {memory.nbytes} bytes of scratch memory, but it takes {size}; "
                "give as much."
            )
        return memory

    def _shape_range(self, name: str, profile: int) -> ShapeRange:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(smallest), tuple(largest)

    def _set_address(self, context: ProfileContext, name: str, address: int) -> None:
        if address % ALIGNMENT:
            raise FlowBlendingError(
                f"Tensor {name} of engine {self._spec.name} lies at address {address:#x}, but {self._library.title} "
                f"needs multiples of {ALIGNMENT} bytes; copy it to memory of its own."
            )
        if not context.context.set_tensor_address(name, address):
            raise self._failure(f"refused the memory of {name}", "give memory on the current CUDA device")
        context.addresses[name] = address

    def _failure(self, what: str, remedy: str) -> FlowBlendingError:
        """The sentence for a call that failed, with the library's own words and what to do."""
        reason = self._library.messages.error()
        kind: type[FlowBlendingError] = FlowBlendingError
        if _MEMORY.search(reason):
            kind = OutOfMemoryError
            remedy = "stop other programs on the GPU, or build a bundle for a smaller size"
        elif "cudaError" in reason:
            kind, remedy = DeviceError, "check the GPU and its driver"
        return kind(f"{self._library.title} {self._library.version} {what} ({reason}); {remedy}.")
