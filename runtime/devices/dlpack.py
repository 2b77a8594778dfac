"""DLPack's capsules (https://github.com/dmlc/dlpack, dlpack.h), in the version that every library takes."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar, Final

import numpy.typing as npt

# Numbers of DLDeviceType: plain memory, and what CUDA allocates as device, pinned host and managed memory.
DL_CPU: Final = 1
DL_CUDA: Final = 2
DL_CUDA_HOST: Final = 3
DL_CUDA_MANAGED: Final = 13

ON_HOST: Final = (DL_CPU, DL_CUDA_HOST)
ON_GPU: Final = (DL_CUDA, DL_CUDA_MANAGED)

_KINDS: Final = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_CAPSULE: Final = b"dltensor"


class DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h: the beginning of a capsule's memory. Strides count elements, and may be null."""

    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]

    def dtype_name(self) -> str:
        """Name in numpy of the element type, or one in its style for types that numpy has not."""
        lanes = f"x{self.lanes}" if self.lanes != 1 else ""
        return f"{_KINDS.get(self.code, 'unknown')}{self.bits}{lanes}"


# Not ctypes.pythonapi itself, whose functions' types anybody in the process may set otherwise.
_PYTHON: Final = ctypes.PyDLL("python", handle=ctypes.pythonapi._handle)
_PYTHON.PyCapsule_GetPointer.restype = ctypes.c_void_p
_PYTHON.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def read_capsule(capsule: Any) -> DLTensor:
    """What a capsule describes; valid as long as the capsule, which calls its maker's deleter when it goes.

    Raises:
        ValueError, TypeError: it is no capsule of this version, or somebody has taken its memory over already.
    """
    if type(capsule).__name__ != "PyCapsule":
        raise TypeError(f"a {type(capsule).__name__} is no DLPack capsule")
    return DLTensor.from_address(_PYTHON.PyCapsule_GetPointer(capsule, _CAPSULE))


def make_capsule(array: npt.NDArray[Any], device: tuple[int, int]) -> Any:
    """A capsule over an array, which it keeps alive, as memory of a device.

    numpy makes it: its destructor has to be C code that is safe at any time, which Python code in ctypes is not.
    numpy does not look at the memory, so the array's address may be one on a GPU; the device is put right afterwards.

    Args:
        device: DLDeviceType and index.
    """
    capsule = array.__dlpack__()
    tensor = read_capsule(capsule)
    tensor.device_type, tensor.device_id = device
    return capsule
