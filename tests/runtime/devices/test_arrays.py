"""Arrays and streams of other libraries: real ones on the CPU; on a GPU, objects that carry the protocols."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack

from flowblending import UsageError
from flowblending.engine.backends.tensor import CUDA, Tensor
from flowblending.runtime.devices.arrays import Array, adopt, stream_handle
from flowblending.runtime.devices.foreign import ForeignArray
from flowblending.runtime.devices.host import HostDevice

SHAPE = (1, 2, 3)
FLOAT32 = np.dtype(np.float32)
ADDRESS = 0x7F12_0000_0100
"""On no GPU: whoever looked at it would crash."""


class Gpu(HostDevice):
    """A device that says it is a GPU, and notes what it is asked to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[int] = []

    @property
    def kind(self) -> str:
        return CUDA

    @property
    def stream(self) -> int:
        return 0x55

    def wait_for(self, stream: int) -> None:
        self.waited.append(stream)


class PycudaArray:
    """Carries the CUDA array interface alone, as pycuda's GPUArray does."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        plain = {"shape": SHAPE, "typestr": "<f4", "data": (ADDRESS, False), "version": 3, "strides": None}
        return plain | self.fields


class TorchArray:
    """Carries DLPack for a GPU, with a capsule made by torch's own code and moved to a GPU by `Array`'s."""

    def __init__(self, index: int = 0, strided: bool = False) -> None:
        self.index = index
        self.strided = strided
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.index

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        if self.strided:
            return torch.zeros(3, 2, 1).permute(2, 1, 0).__dlpack__()
        return Array(Tensor(address=ADDRESS, shape=SHAPE, dtype=FLOAT32, device=CUDA, owner=None), Gpu()).__dlpack__()


def take(array: ForeignArray, device: HostDevice, shape: tuple[int | None, ...] = SHAPE) -> Tensor:
    return adopt(array, name="noise", dtype="float32", shape=shape, device=device)


def host(array: np.ndarray[Any, Any]) -> Array:
    return Array(Tensor.of(array), HostDevice())


def test_arrays_on_the_cpu_are_read_where_they_are() -> None:
    values = np.arange(6, dtype=np.float32).reshape(SHAPE)
    tensor = torch.from_numpy(values.copy())
    frozen = values.copy()
    frozen.flags.writeable = False
    carrier = SimpleNamespace(__array_interface__=values.__array_interface__, values=values)
    for array, address in (
        (values, values.ctypes.data),
        (tensor, tensor.data_ptr()),
        (frozen, frozen.ctypes.data),
        (carrier, values.ctypes.data),
        (host(values), values.ctypes.data),
    ):
        adopted = take(array, HostDevice(), (1, None, 3))
        assert adopted.address == address
        np.testing.assert_array_equal(adopted.numpy(), values)


def test_memory_lives_as_long_as_any_array_made_of_it() -> None:
    values = np.zeros(SHAPE, np.float32)
    alive = weakref.ref(values)
    there = from_dlpack(host(values))
    back = take(there, HostDevice())
    address = values.ctypes.data
    del values, there
    gc.collect()
    assert alive() is not None
    assert back.address == address
    del back
    gc.collect()
    assert alive() is None


def test_arrays_on_the_cpu_are_handed_out_where_they_are() -> None:
    values = np.arange(6, dtype=np.float32).reshape(SHAPE)
    array = host(values)
    assert from_dlpack(array).data_ptr() == values.ctypes.data
    assert np.from_dlpack(array).ctypes.data == values.ctypes.data
    assert np.asarray(array).ctypes.data == array.numpy().ctypes.data == values.ctypes.data
    assert np.array(array, copy=True).ctypes.data != values.ctypes.data
    assert np.asarray(array, np.float64).dtype == np.float64
    assert not hasattr(array, "__cuda_array_interface__")
    from_dlpack(array)[0, 1, 2] = 7  # the other way too
    assert values[0, 1, 2] == 7
    with pytest.raises(BufferError, match="its own memory only"):
        array.__dlpack__(copy=True)


def test_arrays_on_a_gpu_are_read_where_they_are_and_in_order() -> None:
    device = Gpu()
    theirs = TorchArray()
    for array in (PycudaArray(), PycudaArray(strides=(24, 12, 4)), PycudaArray(strides=(4, 12, 4)), theirs):
        adopted = take(array, device)
        assert (adopted.address, adopted.shape, adopted.dtype, adopted.device) == (ADDRESS, SHAPE, FLOAT32, CUDA)
    assert device.waited == []
    # DLPack's producer makes our stream wait, and the CUDA array interface names a stream for us to wait for.
    assert theirs.streams == [0x55]
    for stream in (0x55, 1, 0x77):
        take(PycudaArray(stream=stream), device)
    assert device.waited == [1, 0x77]


def test_arrays_on_a_gpu_are_handed_out_where_they_are() -> None:
    array = Array(Tensor(address=ADDRESS, shape=SHAPE, dtype=FLOAT32, device=CUDA, owner=None), Gpu())
    interface = array.__cuda_array_interface__
    assert interface == {
        "shape": SHAPE, "typestr": "<f4", "data": (ADDRESS, False), "strides": None, "version": 3, "stream": None,
    }  # fmt: skip
    assert array.__dlpack_device__() == (2, 0)
    with pytest.raises(Exception, match=r"use its method numpy\(\)"):
        np.asarray(array)
    adopted = take(array, Gpu())
    assert adopted.address == ADDRESS
    # NVIDIA's own reader of DLPack; -1 asks for no ordering, which would take a driver.
    view = pytest.importorskip("cuda.core.utils").StridedMemoryView.from_dlpack(array, stream_ptr=-1)
    assert (view.ptr, view.shape, view.dtype, view.device_id) == (ADDRESS, SHAPE, FLOAT32, 0)
    assert view.is_device_accessible


def test_an_array_on_the_cpu_is_uploaded_to_a_gpu() -> None:
    values = np.ones(SHAPE, np.float32)
    uploaded = take(torch.from_numpy(values), Gpu())
    assert uploaded.address != values.ctypes.data
    np.testing.assert_array_equal(uploaded.numpy(), values)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: [[1.0]], "The noise is a list, but an array was expected"),
    (lambda: "noise.npy", "The noise is a str, but an array was expected"),
    (lambda: np.zeros(SHAPE), r"is float64 \[1, 2, 3\], but float32 \[1, 2, 3\] was expected"),
    (lambda: torch.zeros(1, 2, 4), r"is float32 \[1, 2, 4\], but float32 \[1, 2, 3\]"),
    (lambda: torch.zeros(2, 3), r"is float32 \[2, 3\], but"),
    (lambda: torch.zeros(1, 3, 2).transpose(1, 2), "does not lie in memory row by row"),
    (lambda: torch.zeros(SHAPE, requires_grad=True), "cannot be shared .*require gradient.*detached"),
    (lambda: torch.zeros(SHAPE, dtype=torch.bfloat16), "cannot be shared|is bfloat16"),
    (lambda: torch.zeros(SHAPE, device="meta"), "cannot be shared .*meta"),
    (PycudaArray, "The noise is on a GPU, but this sampler runs on the CPU"),
    (TorchArray, "The noise is on a GPU, but this sampler runs on the CPU"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_does_not_fit_on_the_cpu_is_told(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        take(make(), HostDevice())


WRONG_ON_GPU: list[tuple[Callable[[], Any], str]] = [
    (lambda: PycudaArray(typestr="<f2"), r"is float16 \[1, 2, 3\], but float32"),
    (lambda: PycudaArray(shape=(1, 2, 4)), r"is float32 \[1, 2, 4\], but"),
    (lambda: PycudaArray(strides=(24, 4, 8)), "does not lie in memory row by row"),
    (lambda: PycudaArray(mask=object()), "masked"),
    (lambda: TorchArray(strided=True), "does not lie in memory row by row"),
    (lambda: TorchArray(index=3), "is on GPU 3, but this sampler runs on GPU 0"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_ON_GPU)
def test_what_does_not_fit_on_a_gpu_is_told(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        take(make(), Gpu())


def test_streams_of_other_libraries() -> None:
    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 0x1234

    assert stream_handle(0x99) == 0x99
    assert stream_handle(0) == 1  # the default stream by its own handle
    assert stream_handle(SimpleNamespace(handle=0x77)) == 0x77
    assert stream_handle(Protocol()) == 0x1234
    for wrong in ("0x99", 1.5, True, -1, object()):
        with pytest.raises(UsageError, match="but a CUDA stream was expected"):
            stream_handle(wrong)  # type: ignore[arg-type]  # what the check is for
