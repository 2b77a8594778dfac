"""An NVIDIA GPU as a device: cuda.core for streams, memory and events, and a few small kernels.

TensorRT and ONNX Runtime work in the device's primary context, and so does this; a stream given by the
caller must belong to it (pycuda: ``pycuda.autoprimaryctx``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from flowblending import DeviceError, FlowBlendingError, OutOfMemoryError
from flowblending.engine.backends.tensor import CUDA, Tensor
from flowblending.runtime.devices.cuda_probe import PROBE_SOURCE, CudaProbe
from flowblending.runtime.devices.cuda_rescale import MOMENTS, RESCALE_BLOCKS, RESCALE_SOURCE
from flowblending.runtime.devices.protocol import Mark, Term
from flowblending.system.extras import install

MAX_TERMS: Final = 8
"""Terms of one fused kernel; longer mixes take several."""

_THREADS: Final = 256
_MAX_BLOCKS: Final = 4096
_NO_INDEX: Final = 2**32 - 1

_WATCH_SOURCE: Final = """
extern "C" __global__ void watch(const float* values, unsigned long long count, unsigned index, unsigned* first) {
  bool bad = false;
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    bad |= (__float_as_uint(values[i]) & 0x7f800000u) == 0x7f800000u;
  if (bad) atomicMin(first, index);
}
"""


class Stream(Protocol):
    """A CUDA stream of another library that follows the CUDA stream protocol, as cuda.core's and numba's do."""

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version of the protocol (0) and handle."""
        ...


class Handle(Protocol):
    """A CUDA stream of another library that has its handle as an attribute, as pycuda's does."""

    @property
    def handle(self) -> int:
        """The CUstream as a number."""
        ...


class CudaDevice:
    """See `Device`. Kernels are compiled when it is made (a fraction of a second), not while sampling.

    Args:
        index: of the GPU, among those that CUDA shows.
        stream: the stream to work on, which must outlive this object; None makes one.

    Raises:
        FlowBlendingError: there is no usable GPU, or cuda-core or NVRTC is not installed.
    """

    def __init__(self, index: int = 0, stream: int | Stream | Handle | None = None) -> None:
        try:
            import cuda.core
            from cuda.bindings import driver
        except ImportError as error:
            raise FlowBlendingError(
                f"A GPU needs cuda-core and cuda-bindings ({error}); {install('cuda', 'tensorrt')}."
            ) from None
        self._core = cuda.core
        self._driver = driver
        try:
            self._device = cuda.core.Device(index)
            self._device.set_current()
        except Exception as error:  # cuda.core's errors have no public base class
            raise FlowBlendingError(
                f"No NVIDIA GPU {index} can be used ({error}); install NVIDIA's driver, or use --device cpu."
            ) from None
        self._given = stream
        self._stream = self._adopt(stream)
        self._kernels = self._compile()
        self._moments: Tensor | None = None

    @property
    def kind(self) -> str:
        """``cuda``."""
        return CUDA

    @property
    def index(self) -> int:
        """Which GPU, among those that CUDA shows."""
        return int(self._device.device_id)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.handle)

    def wait_for(self, stream: int) -> None:
        """Enqueue a wait for an event on the other stream."""
        self._stream.wait(self._core.Stream.from_handle(stream))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Memory of unspecified content, from the device's stream-ordered pool."""
        tensor = Tensor(address=0, shape=shape, dtype=dtype, device=CUDA, owner=None)
        try:
            buffer = self._device.allocate(max(tensor.nbytes, 1), stream=self._stream)
        except Exception as error:  # cuda.core's errors have no public base class
            raise OutOfMemoryError(
                f"The GPU has no {tensor.nbytes / 2**20:.1f} MiB left ({error}); "
                "stop other programs on it, or build a bundle for a smaller size."
            ) from None
        return Tensor(address=int(buffer.handle), shape=shape, dtype=dtype, device=CUDA, owner=buffer)

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy of an array. The driver has read pageable memory when the call returns."""
        array = np.ascontiguousarray(array)
        tensor = self.empty(array.shape, array.dtype)
        self._check(
            self._driver.cuMemcpyHtoDAsync(tensor.address, array.ctypes.data, array.nbytes, self._stream.handle)
        )
        return tensor

    def download(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy of a tensor, after waiting for the stream."""
        array = np.empty(tensor.shape, tensor.dtype)
        self._check(
            self._driver.cuMemcpyDtoHAsync(array.ctypes.data, tensor.address, array.nbytes, self._stream.handle)
        )
        self._stream.sync()
        return array

    def rows(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """The view ``tensor[start:stop]``."""
        shape = (stop - start, *tensor.shape[1:])
        row = tensor.nbytes // tensor.shape[0]
        return Tensor(
            address=tensor.address + start * row, shape=shape, dtype=tensor.dtype, device=CUDA, owner=tensor.owner
        )

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Enqueue a copy."""
        self._check(self._driver.cuMemcpyDtoDAsync(target.address, source.address, source.nbytes, self._stream.handle))

    def mix(self, out: Tensor, terms: Sequence[Term]) -> None:
        """Enqueue a linear combination: one kernel for up to `MAX_TERMS` terms."""
        first, rest = terms[:MAX_TERMS], terms[MAX_TERMS:]
        arguments: list[object] = [out.address, np.uint64(out.nbytes // 4)]
        for factor, tensor in first:
            arguments += [np.float32(factor), tensor.address]
        self._launch(f"mix{len(first)}", out.nbytes // 4, arguments)
        if rest:
            self.mix(out, [(1.0, out), *rest])

    def rescale(self, out: Tensor, reference: Tensor, share: float) -> None:
        """Enqueue two kernels: partial sums of both tensors, and the multiplication by what follows from them."""
        if self._moments is None:
            self._moments = self.empty((RESCALE_BLOCKS, MOMENTS), np.dtype(np.float64))
        count = np.uint64(out.nbytes // 4)
        config = self._core.LaunchConfig(grid=RESCALE_BLOCKS, block=_THREADS)
        arguments = [self._moments.address, count, out.address, reference.address]
        self._core.launch(self._stream, config, self._kernels["moments"], *arguments)
        self._launch("rescale", out.nbytes // 4, [out.address, count, self._moments.address, np.float64(share)])

    def mark(self) -> CudaMark:
        """An event, not yet recorded."""
        options = self._core.EventOptions(timing_enabled=True, blocking_sync=True)
        return CudaMark(self._device.create_event(options), self._stream)

    def seconds(self, start: Mark, stop: Mark) -> float:
        """The time between two events, as the GPU measured it."""
        assert isinstance(start, CudaMark)
        assert isinstance(stop, CudaMark)
        milliseconds: float = stop.event - start.event
        return milliseconds / 1000.0

    def watch(self, complaints: Sequence[str]) -> CudaWatch:
        """A watch whose memory is one word on the device."""
        return CudaWatch(self, complaints)

    def probe(self, count: int) -> CudaProbe:
        """A probe whose partial sums are on the device."""
        return CudaProbe(self, count)

    def close(self) -> None:
        """Wait for the stream, which is the caller's if it was given."""
        self._stream.sync()

    def fill(self, tensor: Tensor, word: int) -> None:
        """Enqueue: every 32-bit word of ``tensor`` becomes ``word``."""
        self._check(self._driver.cuMemsetD32Async(tensor.address, word, tensor.nbytes // 4, self._stream.handle))

    def look(self, tensor: Tensor, index: int, word: Tensor) -> None:
        """Enqueue: if ``tensor`` has a non-finite value, lower ``word`` to ``index``."""
        count = tensor.nbytes // 4
        self._launch("watch", count, [tensor.address, np.uint64(count), np.uint32(index), word.address])

    def sums(self, out: Tensor, tensor: Tensor, other: Tensor | None) -> None:
        """Enqueue: ``out`` becomes partial sums of |tensor - other|, or of |tensor|, in float64; one of each block."""
        count, blocks = tensor.nbytes // 4, out.nbytes // 8
        config = self._core.LaunchConfig(grid=blocks, block=_THREADS)
        second = 0 if other is None else other.address
        arguments = [out.address, np.uint64(count), tensor.address, second]
        self._core.launch(self._stream, config, self._kernels["probe"], *arguments)

    def _adopt(self, stream: int | Stream | Handle | None) -> Any:
        if stream is None:
            return self._device.create_stream()
        if hasattr(stream, "__cuda_stream__"):
            return self._device.create_stream(stream)
        return self._core.Stream.from_handle(int(stream if isinstance(stream, int) else stream.handle))

    def _compile(self) -> dict[str, Any]:
        options = self._core.ProgramOptions(arch=f"sm_{self._device.arch}", fma=False)
        try:
            code = self._core.Program(kernel_source(), "c++", options).compile("cubin")
        except Exception as error:  # as above: a missing library and a failed compilation share no class
            raise FlowBlendingError(
                f"NVRTC cannot compile the sampler's kernels ({str(error).strip().splitlines()[0]}); "
                "install nvidia-cuda-nvrtc for the CUDA version of your driver."
            ) from None
        return {name: code.get_kernel(name) for name in kernel_names()}

    def _launch(self, name: str, count: int, arguments: Sequence[object]) -> None:
        blocks = min(-(-count // _THREADS), _MAX_BLOCKS)
        config = self._core.LaunchConfig(grid=blocks, block=_THREADS)
        self._core.launch(self._stream, config, self._kernels[name], *arguments)

    def _check(self, result: tuple[Any, ...]) -> None:
        status = result[0]
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"The GPU failed ({status.name}); run again, and look at the system's log.")


class CudaMark:
    """An event on a stream; see `Mark`."""

    def __init__(self, event: Any, stream: Any) -> None:
        self.event = event
        self._stream = stream

    def record(self) -> None:
        """Record the event behind what was enqueued."""
        self._stream.record(self.event)

    def reached(self) -> bool:
        """Whether the event has completed."""
        done: bool = self.event.is_done
        return done

    def wait(self) -> None:
        """Sleep until the event has completed."""
        self.event.sync()


class CudaWatch:
    """See `Watch`: the lowest bad index, in a word that kernels write and the host reads once at the end."""

    def __init__(self, device: CudaDevice, complaints: Sequence[str]) -> None:
        self._device = device
        self._complaints = complaints
        self._word = device.empty((1,), np.dtype(np.uint32))
        self.reset()

    def reset(self) -> None:
        """Enqueue the word's first value."""
        self._device.fill(self._word, _NO_INDEX)

    def check(self, tensor: Tensor, index: int) -> None:
        """Enqueue a look at the tensor."""
        self._device.look(tensor, index, self._word)

    def raise_if_bad(self) -> None:
        """Read the word."""
        index = int(self._device.download(self._word)[0])
        if index != _NO_INDEX:
            raise FlowBlendingError(self._complaints[index])


def kernel_names() -> list[str]:
    """Of the kernels in `kernel_source`: ``mix1`` to ``mix8``, and those of watch, probe and rescaling."""
    return [*(f"mix{count}" for count in range(1, MAX_TERMS + 1)), "watch", "probe", "moments", "rescale"]


def kernel_source() -> str:
    """CUDA C++: one mix kernel per number of terms, whose sum is not fused; then watch, probe and rescaling."""
    mixes = "".join(_mix_source(count) for count in range(1, MAX_TERMS + 1))
    return mixes + _WATCH_SOURCE + PROBE_SOURCE + RESCALE_SOURCE


def _mix_source(count: int) -> str:
    # No __restrict__: the output may be the first term.
    parameters = ", ".join(f"float c{index}, const float* t{index}" for index in range(count))
    total = " + ".join(f"c{index} * t{index}[i]" for index in range(count))
    return f"""
extern "C" __global__ void mix{count}(float* out, unsigned long long count, {parameters}) {{
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    out[i] = {total};
}}
"""
