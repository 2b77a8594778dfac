"""TensorRT's runtime where the GPU is a stand-in: plans name an ONNX file, which ONNX Runtime's CPU kernels run.

As strict as the real one: it refuses a plan of another library, a call before every shape and address has been told,
a shape outside of the profile, and addresses that are not aligned; it takes scratch memory of the device for every
context where none is given to it, refuses too little, and reads and writes memory in the stream's order, when nobody
keeps it alive but its owner. Two calls that use one scratch memory at once are a fault.

Of plans that were compiled to stream weights, a budget may be set as the documentation says: while there is no context,
it takes the device's memory at once, and a smaller one has contexts ask for scratch memory to stream through. What a
call streams stands in the journal.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver as bindings
from pydantic import TypeAdapter

from flowblending.contracts.graph import GraphSpec
from flowblending.engine.backends.onnxruntime.run import OrtEngine
from flowblending.engine.backends.tensor import CPU, Tensor
from tests.support.cuda.driver import HOST_FUNCTION, Driver

__all__ = ["DataType", "ExecutionContextAllocationStrategy", "ILogger", "LayerInformationFormat", "Runtime", "nptype"]
__version__ = "11.4.0"

MAGIC = "stand-in plan of TensorRT"
ALIGNMENT = 256
FIXED = 16
"""Of plans that stream weights, so little of them is always on the device; and as much again, all weights streamed, is
what they are streamed through."""


class ILogger:
    """What the library tells why a call gave nothing."""

    def log(self, severity: int, line: str) -> None:
        """Be told."""


class DataType(Enum):
    """Named as numpy names them."""

    FLOAT = "float32"
    HALF = "float16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"


class ExecutionContextAllocationStrategy(Enum):
    """Whose scratch memory is."""

    STATIC = 0
    USER_MANAGED = 2


class LayerInformationFormat(Enum):
    JSON = 1


def nptype(dtype: DataType) -> type[np.generic]:
    """The numpy type."""
    return np.dtype(dtype.value).type


def write_plan(
    path: Path,
    *,
    onnx: Path,
    spec: GraphSpec,
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]],
    scratch: int,
    weights: int = 1,
    weight_streaming: bool = False,
) -> None:
    """Write a plan.

    Args:
        onnx: the file that it runs.
        profiles: by input, the smallest, most usual and largest shape.
        scratch: bytes that a context takes.
        weights: bytes that the engine takes of the device.
        weight_streaming: whether a budget may be set; a sixteenth of the weights stays on the device whatever it is.
    """
    plan = {
        "magic": MAGIC,
        "onnx": str(onnx),
        "inputs": {each.name: each.dtype for each in spec.inputs},
        "outputs": {each.name: each.dtype for each in spec.outputs},
        "spec": TypeAdapter(GraphSpec).dump_python(spec, mode="json"),
        "profiles": profiles,
        "scratch": scratch,
        "weights": weights,
        "streamable": weights - weights // FIXED if weight_streaming else 0,
    }
    path.write_text(json.dumps(plan))


class Runtime:
    """Loads plans."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
        """An engine; None for what is no plan of this library."""
        try:
            read = json.loads(bytes(plan))
        except ValueError:
            read = {}
        if read.get("magic") != MAGIC:
            self._logger.log(1, "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed")
            return None
        driver = Driver()
        # Streamable ones go to the host's memory now.
        weights = driver.allocate(read["weights"] - read["streamable"])
        if not weights:
            self._logger.log(1, "Error Code 2: OutOfMemory (Requested size was refused)")
            return None
        return CudaEngine(read, self._logger, driver, weights)


class CudaEngine:
    """A plan."""

    def __init__(self, plan: dict[str, Any], logger: ILogger, driver: Driver, weights: int) -> None:
        self.logger = logger
        self._driver = driver
        self._weights = weights
        self.streamable_weights_size: int = plan["streamable"]
        self._budget: int = self.streamable_weights_size
        self._kept: int | None = None  # where the streamable ones are that stay; nowhere before the first context
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.device = _current_device()
        self.spec = TypeAdapter(GraphSpec).validate_python(plan["spec"])
        self.kernels = OrtEngine(Path(plan["onnx"]), self.spec, device=CPU, threads=1)
        self.profiles: list[dict[str, list[list[int]]]] = plan["profiles"]
        self.dtypes: dict[str, str] = plan["inputs"] | plan["outputs"]
        self.inputs = list(plan["inputs"])
        self._scratch: int = plan["scratch"]
        self.num_optimization_profiles = len(self.profiles)
        self.num_io_tensors = len(self.dtypes)

    def __del__(self) -> None:
        self._driver.free(self._weights)  # waits for the calls
        if self._kept:
            self._driver.free(self._kept)

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        """As the bindings, it says nothing of what it refuses."""
        if not self.streamable_weights_size or budget < 0 or self._contexts:
            self.logger.log(1, "Error Code 3: API Usage Error (the weight streaming budget cannot be set)")
            return
        self._forget()
        self._budget = min(budget, self.streamable_weights_size)
        self._keep()

    def _forget(self) -> None:
        if self._kept:
            self._driver.free(self._kept)
        self._kept = None

    def _keep(self) -> bool:
        """Have the streamable weights that stay on the device."""
        if self._kept is None:
            self._kept = self._driver.allocate(self._budget) if self._budget else 0
            if self._budget and not self._kept:
                self._kept = None
                self.logger.log(1, "Error Code 2: OutOfMemory (Requested size was refused)")
                return False
        return True

    @property
    def streamed(self) -> int:
        """Bytes that a call streams."""
        return self.streamable_weights_size - self._budget

    @property
    def weight_streaming_scratch_memory_size(self) -> int:
        return 0 if not self.streamed else -(-self.streamed // FIXED // ALIGNMENT) * ALIGNMENT

    @property
    def device_memory_size_v2(self) -> int:
        return self._scratch + self.weight_streaming_scratch_memory_size

    def get_tensor_name(self, index: int) -> str:
        return list(self.dtypes)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.dtypes[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self.profiles[profile][name]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        assert 0 <= index < self.num_optimization_profiles
        return self.device_memory_size_v2

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> Context | None:
        driver = Driver()
        if not self._keep():
            return None
        if strategy is ExecutionContextAllocationStrategy.USER_MANAGED:
            return Context(self, driver, None)
        scratch = driver.allocate(max(self.device_memory_size_v2, 1))
        if not scratch:
            self.logger.log(1, "Error Code 2: OutOfMemory (Requested size was refused)")
            return None
        return Context(self, driver, scratch)


def _current_device() -> int | None:
    status, device = bindings.cuCtxGetDevice()
    return int(device) if status == bindings.CUresult.CUDA_SUCCESS else None


@dataclass(frozen=True)
class _Told:
    """Memory as TensorRT knows it: nothing here keeps it alive."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Call:
    """What runs in the stream's order: an engine on memory, of which nothing but addresses is known."""

    engine: CudaEngine
    driver: Driver
    told: Mapping[str, _Told]

    def __call__(self, _: object) -> None:
        device = self.engine.device
        try:
            assert device is not None, "the engine was made without a context"
            tensors = {}
            for name, each in self.told.items():
                user = f"{name} of the engine {self.engine.spec.name}"
                address = self.driver.alias(each.address, each.nbytes, device, user)
                if address is None:
                    return
                tensors[name] = Tensor(address=address, shape=each.shape, dtype=each.dtype, device=CPU, owner=None)
            with _alone(tensors.pop("scratch").address):
                self.engine.kernels.run(tensors, 0)
        except Exception as error:  # there is nobody that it could be raised to
            self.driver.say_fault(f"engine {self.engine.spec.name}: {error!r}")


_in_use: set[int] = set()
_lock = threading.Lock()


@contextlib.contextmanager
def _alone(scratch: int) -> Iterator[None]:
    """While a call uses its scratch memory, no other does."""
    with _lock:
        assert scratch not in _in_use, "its scratch memory is used by another call at the same time"
        _in_use.add(scratch)
    try:
        yield
    finally:
        with _lock:
            _in_use.remove(scratch)


class Context:
    """An execution context.

    Args:
        scratch: the memory of its own that it has; None waits for `set_device_memory`.
    """

    def __init__(self, engine: CudaEngine, driver: Driver, scratch: int | None) -> None:
        self._engine = engine
        engine._contexts.add(self)
        self._driver = driver
        self._scratch = scratch
        self._arena: _Told | None = None
        if scratch is not None:
            self._arena = _Told(scratch, (engine.device_memory_size_v2,), np.dtype(np.uint8))
        self.active_optimization_profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._calls: dict[tuple[_Told, ...], Any] = {}

    def __del__(self) -> None:
        if self._scratch is not None:
            self._driver.free(self._scratch)  # waits for the calls

    def set_device_memory(self, memory: int, size: int) -> None:
        need = self._engine.get_device_memory_size_for_profile_v2(self.active_optimization_profile)
        self._arena = None
        if memory % ALIGNMENT or size < need or self._scratch is not None:
            self._refuse(f"{size} bytes at {memory:#x} are no scratch memory, of which {need} are needed")
        else:
            self._arena = _Told(memory, (need,), np.dtype(np.uint8))

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:  # noqa: ARG002
        self.active_optimization_profile = index
        self._shapes, self._addresses = {}, {}
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self._engine.profiles[self.active_optimization_profile][name]
        if len(shape) != len(low) or any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._refuse(f"the shape {list(shape)} of {name} is not within the profile")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % ALIGNMENT:
            return self._refuse(f"the address of {name} is not aligned to {ALIGNMENT} bytes")
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        if _current_device() != engine.device:
            return self._refuse("Cuda Runtime (cudaError 201: invalid device context)")
        if set(self._shapes) != set(engine.inputs) or set(self._addresses) != set(engine.dtypes):
            return self._refuse("not every shape and address has been told")
        arena = self._arena
        if arena is None:
            return self._refuse("no scratch memory has been given")
        sizes = engine.spec.sizes(self._shapes)
        specs = (*engine.spec.inputs, *engine.spec.outputs)
        told = tuple(_Told(self._addresses[each.name], each.resolve(sizes), np.dtype(each.dtype)) for each in specs)
        if (*told, arena) not in self._calls:
            # It knows nothing of this object, which has to go with its last user.
            call = _Call(engine, self._driver, {**dict(zip(engine.dtypes, told, strict=True)), "scratch": arena})
            self._calls[*told, arena] = HOST_FUNCTION(call)
        if engine.streamed:
            self._driver.note(f"stream {engine.spec.name} {engine.streamed}")
        self._driver.call(self._calls[*told, arena], stream)
        return True

    def _refuse(self, why: str) -> bool:
        self._engine.logger.log(1, f"Error Code 3: API Usage Error ({why})")
        return False
