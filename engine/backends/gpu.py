"""Which GPU is here, and whether an engine was compiled for it. Loads the CUDA driver at most, never TensorRT."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending import FlowBlendingError


def gpu_architecture(index: int = 0) -> str | None:
    """Architecture of a GPU (``sm89``), by its number among those that CUDA shows; None without a driver or that GPU.

    Whichever device the caller has made its thread's current one makes no difference: a run takes the first.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        (status,) = driver.cuInit(0)
        if status != driver.CUresult.CUDA_SUCCESS:
            return None
        status, device = driver.cuDeviceGet(index)
        if status != driver.CUresult.CUDA_SUCCESS:
            return None
        attributes = driver.CUdevice_attribute
        _, major = driver.cuDeviceGetAttribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        _, minor = driver.cuDeviceGetAttribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    except RuntimeError:  # the driver's library is not on this machine, or lacks one of these functions
        return None
    return f"sm{major}{minor}"


def gpu_count() -> int:
    """How many GPUs CUDA shows; 0 without a driver."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return 0
    try:
        (status,) = driver.cuInit(0)
        if status != driver.CUresult.CUDA_SUCCESS:
            return 0
        status, count = driver.cuDeviceGetCount()
    except RuntimeError:  # as above
        return 0
    return int(count) if status == driver.CUresult.CUDA_SUCCESS else 0


def free_memory(index: int = 0) -> int | None:
    """Bytes of a GPU's memory that nobody has taken; None without a driver or that GPU."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    success = driver.CUresult.CUDA_SUCCESS
    try:
        (status,) = driver.cuInit(0)
        if status != success:
            return None
        status, context = driver.cuDevicePrimaryCtxRetain(index)
        if status != success:
            return None
        driver.cuCtxPushCurrent(context)
        try:
            status, free, _ = driver.cuMemGetInfo()
        finally:
            driver.cuCtxPopCurrent()
            driver.cuDevicePrimaryCtxRelease(index)
    except RuntimeError:  # as above
        return None
    return int(free) if status == success else None


def check_architecture(component: str, targets: Sequence[str], architecture: str | None) -> None:
    """Refuse a GPU that a component was not compiled for.

    Args:
        component: its name, for the message.
        targets: the architectures it was compiled for; none if any device will do.
        architecture: of the GPU that shall run it, as `gpu_architecture` tells it.

    Raises:
        FlowBlendingError: the GPU is none of them, or there is none.
    """
    if not targets or architecture in targets:
        return
    compiled = f"Component {component} was compiled for {' and '.join(targets)}"
    if architecture is None:
        raise FlowBlendingError(
            f"{compiled}, but no CUDA driver or NVIDIA GPU was found; run it on a machine with such a GPU, "
            "or build a bundle with --backend onnxruntime for the CPU."
        )
    raise FlowBlendingError(
        f"{compiled}, but this GPU is {architecture}; build the bundle again with --target {architecture}, "
        "or on this machine with --backend tensorrt."
    )
