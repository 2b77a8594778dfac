"""Arrays and streams of other libraries, by the protocols they share; no such library is imported.

Arrays come in and go out without a copy. On a GPU they speak DLPack (https://dmlc.github.io/dlpack) or the CUDA
array interface (numba's specification, version 3), as those of torch, cupy, numba and pycuda do; on the CPU they
are numpy arrays, or speak DLPack as torch's tensors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.backends.tensor import CPU, CUDA, Tensor
from flowblending.runtime.devices.dlpack import DL_CPU, DL_CUDA, ON_GPU, ON_HOST, make_capsule, read_capsule
from flowblending.runtime.devices.foreign import ForeignArray, ForeignStream
from flowblending.runtime.devices.protocol import Device

_DEFAULT_STREAM: Final = 1
"""CUDA's legacy default stream by its own handle (CU_STREAM_LEGACY); DLPack forbids 0 for it."""

Shape = Sequence[int | None]
"""Sizes that an array must have; None stands for any size."""


def stream_handle(stream: ForeignStream) -> int:
    """The CUstream of another library's stream, as a number; the default stream, 0, by its own handle, 1.

    Raises:
        UsageError: it is nothing that has a handle.
    """
    if hasattr(stream, "__cuda_stream__"):
        _, value = stream.__cuda_stream__()
    else:
        value = getattr(stream, "handle", stream)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(
            f"The stream is {_article(stream)}, but a CUDA stream was expected; give its handle as an int, "
            "or an object with __cuda_stream__ or handle."
        )
    return value or _DEFAULT_STREAM


def adopt(array: ForeignArray, *, name: str, dtype: str, shape: Shape, device: Device) -> Tensor:
    """A tensor over the memory of another library's array, which it keeps alive; on its own device no copy is made.

    On a GPU, what was enqueued to fill the array comes before whatever the device is given next. An array in host
    memory is uploaded there.

    Args:
        name: what the array is, for messages: ``noise``.
        dtype: numpy's name of the type that it must have.
        shape: that it must have.

    Raises:
        UsageError: it is no array, or on another device, or of another type, shape or layout.
    """
    place, index = _place(array, name)
    if place == CPU:
        host = _host(array, name)
        _check(name, dtype=host.dtype.name, shape=host.shape, contiguous=host.flags.c_contiguous, wanted=(dtype, shape))
        return Tensor.of(host) if device.kind == CPU else device.upload(host)
    if device.kind == CPU:
        raise UsageError(f"The {name} is on a GPU, but this sampler runs on the CPU; copy it to the CPU first.")
    if index not in (None, device.index):
        raise UsageError(
            f"The {name} is on GPU {index}, but this sampler runs on GPU {device.index}; copy it there first."
        )
    found = _from_dlpack(array, name, device) if index is not None else _from_interface(array, name, device)
    _check(name, dtype=found.dtype, shape=found.shape, contiguous=found.contiguous, wanted=(dtype, shape))
    return Tensor(address=found.address, shape=found.shape, dtype=np.dtype(found.dtype), device=CUDA, owner=found.owner)


class Array:
    """Memory of a sampler for other libraries: ``torch.from_dlpack(array)``, ``cupy.asarray(array)``.

    Its content is complete, whatever stream it is read on. Its memory is freed, in the order of the sampler's
    stream, with the last array made of it: keep one while work on another stream still reads it.

    On a GPU it has ``__cuda_array_interface__``, on the CPU ``__array__`` (``numpy.asarray(array)``), and on both
    ``__dlpack__``.
    """

    def __init__(self, tensor: Tensor, device: Device) -> None:
        self.tensor: Final = tensor
        self._device = device

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.tensor.dtype

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.tensor.device

    def numpy(self) -> npt.NDArray[Any]:
        """As a numpy array: on the CPU the memory itself, from a GPU a copy."""
        return self.tensor.numpy() if self.device == CPU else self._device.download(self.tensor)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self.device != CPU:
            raise FlowBlendingError("This array is on a GPU, where numpy cannot read it; use its method numpy().")
        array = self.tensor.numpy()
        wanted = array.dtype if dtype is None else np.dtype(dtype)
        if copy is False and wanted != array.dtype:
            raise ValueError(f"{array.dtype} cannot become {wanted} without a copy")
        return array.astype(wanted, copy=bool(copy))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device != CUDA:
            raise AttributeError("an array on the CPU has no __cuda_array_interface__")
        return {**_interface(self.tensor), "stream": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return (DL_CPU, 0) if self.device == CPU else (DL_CUDA, self._device.index)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("this array gives its own memory only: no copy, and no other device")
        # There is nothing to wait for on the stream, and every consumer takes the first version of the protocol.
        return make_capsule(np.asarray(_TensorMemory(self.tensor)), self.__dlpack_device__())


class _Found:
    """What a protocol told of an array on a GPU."""

    def __init__(self, *, address: int, shape: Sequence[int], dtype: str, strides: Sequence[int] | None, owner: object):
        self.address = address
        self.shape = tuple(shape)
        self.dtype = dtype
        self.contiguous = strides is None or _contiguous(self.shape, strides)
        self.owner = owner


class _TensorMemory:
    """A tensor's memory as numpy takes it. Keeps the tensor alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return _interface(self._tensor)


def _interface(tensor: Tensor) -> dict[str, Any]:
    """What numpy's array interface and the CUDA array interface have in common."""
    data = (tensor.address, False)
    return {"shape": tensor.shape, "typestr": tensor.dtype.str, "data": data, "strides": None, "version": 3}


def _place(array: ForeignArray, name: str) -> tuple[str, int | None]:
    """Where an array is: ``cpu`` or ``cuda``, and the GPU's index if it tells."""
    if hasattr(array, "__dlpack_device__"):
        try:
            kind, index = array.__dlpack_device__()
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise _refused(name, error) from None
        if kind in ON_HOST:
            return CPU, None
        if kind in ON_GPU:
            return CUDA, index
        raise UsageError(
            f"The {name} is on a device of DLPack's type {int(kind)}, but the CPU or an NVIDIA GPU was expected; "
            "copy it there first."
        )
    if hasattr(array, "__cuda_array_interface__"):
        return CUDA, None
    if hasattr(array, "__array_interface__"):
        return CPU, None
    raise UsageError(
        f"The {name} is {_article(array)}, but an array was expected; give one that speaks DLPack or the CUDA array "
        "interface, as those of numpy, torch, cupy and pycuda do."
    )


def _host(array: Any, name: str) -> npt.NDArray[Any]:
    try:
        if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack__"):
            return np.asarray(array)
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(name, error) from None


def _from_dlpack(array: Any, name: str, device: Device) -> _Found:
    try:
        capsule = array.__dlpack__(stream=device.stream or _DEFAULT_STREAM)
        tensor = read_capsule(capsule)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(name, error) from None
    return _Found(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tensor.shape[: tensor.ndim],
        dtype=tensor.dtype_name(),
        strides=tensor.strides[: tensor.ndim] if tensor.strides else None,
        # A capsule that nobody renames calls the producer's deleter when it goes.
        owner=capsule,
    )


def _from_interface(array: Any, name: str, device: Device) -> _Found:
    interface = array.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    if interface.get("mask") is not None:
        raise UsageError(f"The {name} is a masked array, but a plain one was expected; fill in its missing values.")
    stream = interface.get("stream")
    if stream is not None and stream != device.stream:
        device.wait_for(stream)
    strides = interface.get("strides")
    return _Found(
        address=interface["data"][0],
        shape=interface["shape"],
        dtype=dtype.name,
        strides=None if strides is None else [stride // dtype.itemsize for stride in strides],
        owner=array,
    )


def _check(name: str, *, dtype: str, shape: tuple[int, ...], contiguous: bool, wanted: tuple[str, Shape]) -> None:
    expected_dtype, expected = wanted
    fits = len(shape) == len(expected) and all(want in (None, size) for size, want in zip(shape, expected, strict=True))
    if dtype != expected_dtype or not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise UsageError(
            f"The {name} is {dtype} {list(shape)}, but {expected_dtype} [{sizes}] was expected; "
            "give an array of that type and shape."
        )
    if not contiguous:
        raise UsageError(f"The {name} does not lie in memory row by row; give a contiguous copy of it.")


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements lie in C order without gaps; strides count elements."""
    due = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != due:
            return False
        due *= size
    return True


def _refused(name: str, error: Exception) -> UsageError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return UsageError(f"The {name} cannot be shared ({reason}); give a plain array, detached and on one device.")


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
