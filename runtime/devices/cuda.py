"""An NVIDIA GPU as a device: cuda.core for streams, memory and events, and a few small kernels.

TensorRT and ONNX Runtime work in the device's primary context, and so does this; a stream given by the
caller must belong to it (pycuda: ``pycuda.autoprimaryctx``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending import DeviceError, FlowBlendingError
from flowblending.engine.backends.tensor import CUDA, Tensor
from flowblending.runtime.devices.cuda_context import CudaContext, Current
from flowblending.runtime.devices.cuda_graph import CudaGraphs
from flowblending.runtime.devices.cuda_kernels import chained, compile_kernels
from flowblending.runtime.devices.cuda_pool import CudaPool
from flowblending.runtime.devices.cuda_probe import CudaProbe
from flowblending.runtime.devices.cuda_readback import CudaReadback
from flowblending.runtime.devices.cuda_rescale import MOMENTS, RESCALE_BLOCKS
from flowblending.runtime.devices.foreign import ForeignStream
from flowblending.runtime.devices.pictures import HEADER
from flowblending.runtime.devices.protocol import Mark, Term
from flowblending.runtime.devices.tiles import Place
from flowblending.system.extras import install

_THREADS: Final = 256
_MAX_BLOCKS: Final = 4096
_NO_INDEX: Final = 2**32 - 1


class CudaDevice:
    """See `Device`. Kernels are compiled when it is made (a fraction of a second), not while sampling.

    It may be used by another thread than made it, by one at a time; the thread's own current device stays what it is.

    Args:
        index: of the GPU, among those that CUDA shows.
        stream: the stream of that GPU to work on, which must outlive this object; None makes one.

    Raises:
        FlowBlendingError: there is no usable GPU, or cuda-core or NVRTC is not installed.
    """

    def __init__(self, index: int = 0, stream: ForeignStream | None = None) -> None:
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
            (status,) = driver.cuInit(0)
            if status != driver.CUresult.CUDA_SUCCESS:
                raise DeviceError(status.name)
            self._context = CudaContext(driver, index)
            with self._context.current():
                self._device = cuda.core.Device(index)
                self._device.set_current()
        except Exception as error:  # the driver's library is missing, or it fails: they share no class
            raise FlowBlendingError(
                f"No NVIDIA GPU {index} can be used ({str(error).strip().splitlines()[0]}); "
                "install NVIDIA's driver, or use --device cpu."
            ) from None
        with self._context.current():
            self._given = stream
            self._stream = self._adopt(stream)
            self._handle = self._stream.handle  # which every asking makes anew
            self._kernels = compile_kernels(cuda.core, f"sm_{self._device.arch}")
            self._pool = CudaPool(cuda.core, driver, self._context, index)
        self._moments: Tensor | None = None
        self.capturing = False
        """Whether what is enqueued goes into a graph."""

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
        return int(self._handle)

    def wait_for(self, stream: int) -> None:
        """Enqueue a wait for an event on the other stream."""
        with self._context.current():
            self._stream.wait(self._core.Stream.from_handle(stream))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Memory of unspecified content, from a stream-ordered pool of this device's own."""
        tensor = Tensor(address=0, shape=shape, dtype=dtype, device=CUDA, owner=None)
        with self._context.current():
            buffer = self._pool.allocate(max(tensor.nbytes, 1), self._stream)
        return Tensor(address=int(buffer.handle), shape=shape, dtype=dtype, device=CUDA, owner=buffer)

    def trim(self) -> None:
        """Wait for the stream, and give back what the pool does not need now."""
        self.close()
        self._pool.trim()

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy of an array. The driver has read pageable memory when the call returns."""
        array = np.ascontiguousarray(array)
        tensor = self.empty(array.shape, array.dtype)
        with self._context.current():
            self._check(self._driver.cuMemcpyHtoDAsync(tensor.address, array.ctypes.data, array.nbytes, self._handle))
        return tensor

    def download(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy of a tensor, after waiting for the stream."""
        array = np.empty(tensor.shape, tensor.dtype)
        with self._context.current():
            self._check(self._driver.cuMemcpyDtoHAsync(array.ctypes.data, tensor.address, array.nbytes, self._handle))
            self._stream.sync()
        return array

    def rows(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """The view ``tensor[start:stop]``."""
        shape = (stop - start, *tensor.shape[1:])
        row = tensor.nbytes // tensor.shape[0]
        return Tensor(
            address=tensor.address + start * row, shape=shape, dtype=tensor.dtype, device=CUDA, owner=tensor.owner
        )

    def view(self, tensor: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        """A view by elements."""
        address = tensor.address + start * tensor.dtype.itemsize
        return Tensor(address=address, shape=shape, dtype=tensor.dtype, device=CUDA, owner=tensor.owner)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Enqueue a copy."""
        given = target.address, source.address, source.nbytes
        with self._context.current():
            self._check(self._driver.cuMemcpyDtoDAsync(*given, self._handle))

    def mix(self, out: Tensor, terms: Sequence[Term]) -> None:
        """Enqueue a linear combination: one kernel for up to `MAX_TERMS` terms."""
        for chunk in chained(terms, (1.0, out)):
            arguments: list[object] = [out.address, np.uint64(out.nbytes // 4)]
            for factor, tensor in chunk:
                arguments += [np.float32(factor), tensor.address]
            self._launch(f"mix{len(chunk)}", out.nbytes // 4, arguments)

    def mix_told(self, out: Tensor, factors: int, tensors: Sequence[Tensor]) -> None:
        """Enqueue one kernel of a linear combination, which reads its factors, float32, at an address."""
        arguments = [out.address, np.uint64(out.nbytes // 4), factors, *(tensor.address for tensor in tensors)]
        self._launch(f"mix{len(tensors)}_told", out.nbytes // 4, arguments)

    def rescale(self, out: Tensor, reference: Tensor, share: float) -> None:
        """Enqueue two kernels: partial sums of both tensors, and the multiplication by what follows from them."""
        if self._moments is None:
            self._moments = self.empty((RESCALE_BLOCKS, MOMENTS), np.dtype(np.float64))
        count = np.uint64(out.nbytes // 4)
        self._launch_blocks("moments", RESCALE_BLOCKS, [self._moments.address, count, out.address, reference.address])
        self._launch("rescale", out.nbytes // 4, [out.address, count, self._moments.address, np.float64(share)])

    def pictures(self, frames: Tensor, out: Tensor) -> None:
        """Enqueue a memset of the header, and one kernel."""
        self.fill(self.view(out, 0, (HEADER,)), 0)
        count = frames.nbytes // 12
        self._launch("pictures", count, [out.address + HEADER, out.address, np.uint64(count), frames.address])

    def place(self, canvas: Tensor, tile: Tensor, place: Place) -> None:
        """Enqueue one kernel."""
        count = tile.nbytes // 4
        tensors = (tile, place.above, place.before, place.below, place.after)
        numbers = (*tile.shape[2:], *canvas.shape[2:], place.first, place.top, place.left, *place.shared)
        numbers = (*numbers, place.height, place.width)
        arguments = [canvas.address, np.uint64(count), *(0 if each is None else each.address for each in tensors)]
        self._launch("place", count, [*arguments, *map(np.uint32, numbers)])

    def readback(self, size: int) -> CudaReadback:
        """A place in pinned memory."""
        return CudaReadback(self, self._driver, self._context, size)

    @property
    def graphs(self) -> CudaGraphs:
        """What makes CUDA graphs of the stream's work."""
        return CudaGraphs(self, self._driver, self._context, self._handle)

    def hold(self, out: Tensor, source: Tensor, frames: Sequence[int]) -> None:
        """Enqueue a kernel for each run of neighbouring frames."""
        pixels, total, given = math.prod(out.shape[3:]), out.shape[2], source.shape[2]
        taken = 0
        for first, count in _stretches(frames):
            sizes = (pixels * count, pixels * given, pixels * taken, pixels * total, pixels * first)
            values = out.shape[1] * pixels * count
            self._launch(
                "hold", values, [out.address, source.address, np.uint64(values), *(np.uint64(each) for each in sizes)]
            )
            taken += count

    def mark(self) -> CudaMark:
        """An event, not yet recorded."""
        options = self._core.EventOptions(timing_enabled=True, blocking_sync=True)
        with self._context.current():
            return CudaMark(self._device.create_event(options), self)

    def seconds(self, start: Mark, stop: Mark) -> float:
        """The time between two events, as the GPU measured it."""
        assert isinstance(start, CudaMark)
        assert isinstance(stop, CudaMark)
        with self._context.current():
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
        with self._context.current():
            self._stream.sync()

    def current(self) -> Current:
        """See `CudaContext.current`."""
        return self._context.current()

    def fill(self, tensor: Tensor, word: int) -> None:
        """Enqueue: every 32-bit word of ``tensor`` becomes ``word``."""
        with self._context.current():
            self._check(self._driver.cuMemsetD32Async(tensor.address, word, tensor.nbytes // 4, self._handle))

    def look(self, tensor: Tensor, index: int | Tensor, word: Tensor) -> None:
        """Enqueue: if ``tensor`` has a non-finite value, lower ``word`` to ``index``."""
        count = tensor.nbytes // 4
        name, told = ("watch_told", index.address) if isinstance(index, Tensor) else ("watch", np.uint32(index))
        self._launch(name, count, [tensor.address, np.uint64(count), told, word.address])

    def record(self, event: Any) -> None:
        """Enqueue: the event is recorded, in a graph so that everybody can see it."""
        flags = int(self.capturing)  # CU_EVENT_RECORD_EXTERNAL is 1
        with self._context.current():
            self._check(self._driver.cuEventRecordWithFlags(event, self._handle, flags))

    def sums(self, out: Tensor, tensor: Tensor, other: Tensor | None) -> None:
        """Enqueue: ``out`` becomes partial sums of |tensor - other|, or of |tensor|, in float64; one of each block."""
        count, second = np.uint64(tensor.nbytes // 4), 0 if other is None else other.address
        self._launch_blocks("probe", out.nbytes // 8, [out.address, count, tensor.address, second])

    def _adopt(self, stream: ForeignStream | None) -> Any:
        if stream is None:
            return self._device.create_stream()
        if hasattr(stream, "__cuda_stream__"):
            return self._device.create_stream(stream)
        return self._core.Stream.from_handle(int(stream if isinstance(stream, int) else stream.handle))

    def _launch(self, name: str, count: int, arguments: Sequence[object]) -> None:
        """A kernel whose threads go through so many elements."""
        self._launch_blocks(name, min(-(-count // _THREADS), _MAX_BLOCKS), arguments)

    def _launch_blocks(self, name: str, blocks: int, arguments: Sequence[object]) -> None:
        config = self._core.LaunchConfig(grid=blocks, block=_THREADS)
        with self._context.current():
            self._core.launch(self._stream, config, self._kernels[name], *arguments)

    def _check(self, result: tuple[Any, ...]) -> None:
        self._context.check(result)


def _stretches(frames: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as the first of them and how many there are."""
    found: list[tuple[int, int]] = []
    for frame in frames:
        if found and frame == sum(found[-1]):
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((frame, 1))
    return found


class CudaMark:
    """An event on a stream; see `Mark`."""

    def __init__(self, event: Any, device: CudaDevice) -> None:
        self.event = event
        self.handle: Final = event.handle
        self.number: Final = int(self.handle)
        self._device = device

    def record(self) -> None:
        """Record the event behind what was enqueued."""
        self._device.record(self.handle)

    def reached(self) -> bool:
        """Whether the event has completed."""
        with self._device.current():
            done: bool = self.event.is_done
        return done

    def wait(self) -> None:
        """Sleep until the event has completed."""
        with self._device.current():
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

    def check(self, tensor: Tensor, index: int | Tensor) -> None:
        """Enqueue a look at the tensor."""
        self._device.look(tensor, index, self._word)

    def raise_if_bad(self) -> None:
        """Read the word."""
        index = int(self._device.download(self._word)[0])
        if index != _NO_INDEX:
            raise FlowBlendingError(self._complaints[index])
