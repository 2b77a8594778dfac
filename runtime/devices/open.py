"""Where a bundle runs: on the CPU, or on the GPU that its engines were compiled for."""

from __future__ import annotations

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.gpu import check_architecture, gpu_architecture
from flowblending.engine.backends.registry import BACKENDS, can_use_gpu, gpu_components
from flowblending.engine.backends.tensor import CPU, CUDA
from flowblending.runtime.devices.protocol import Device

AUTO = "auto"


def device_kind(choice: str, manifest: Manifest) -> str:
    """``cpu`` or ``cuda``.

    Args:
        choice: ``cpu``, ``cuda``, or ``auto``: a GPU where the bundle's back ends can use one.
        manifest: of the bundle; plans of some back ends run on GPUs only.

    Raises:
        UsageError: ``cpu`` was chosen for a bundle of such plans, or a back end is not known here.
    """
    plans = gpu_components(manifest)
    if plans and choice == CPU:
        title = BACKENDS.get(manifest.components[plans[0]].backend).title
        raise UsageError(
            f"--device cpu was given, but {plans[0]} is a {title} plan, which runs on GPUs only; "
            "build a bundle with --backend onnxruntime for the CPU."
        )
    if plans or choice != AUTO:
        return CUDA if plans else choice
    if gpu_architecture() is None:
        return CPU
    return CUDA if can_use_gpu(component.backend for component in manifest.components.values()) else CPU


def open_device(choice: str, manifest: Manifest, stream: int | None = None) -> Device:
    """The device for a bundle, after checking that its engines can run there.

    Args:
        choice: see `device_kind`.
        stream: handle of the CUDA stream to work on, which must outlive the device, on the GPU that it belongs to; None
            makes one on the first GPU.

    Raises:
        UsageError: a stream for a bundle that runs on the CPU.
        FlowBlendingError: there is no GPU for a GPU bundle, or it is not one that the plans were built for.
    """
    if device_kind(choice, manifest) == CPU:
        if stream is not None:
            raise UsageError("A CUDA stream was given, but the bundle runs on the CPU; leave it out.")
        from flowblending.runtime.devices.host import HostDevice

        return HostDevice()
    architecture = gpu_architecture()
    if architecture is None and not gpu_components(manifest):
        raise FlowBlendingError(
            "The device cuda was asked for, but no CUDA driver or NVIDIA GPU was found; leave it out, and this bundle "
            "runs on the CPU."
        )
    if architecture is None:
        raise FlowBlendingError(
            "This needs an NVIDIA GPU, but no CUDA driver or GPU was found; run it on a machine with one, "
            "or build a bundle with --backend onnxruntime for the CPU."
        )
    index = 0
    if stream is not None:
        from flowblending.runtime.devices.cuda_context import stream_index

        index = stream_index(stream)
    for name, component in manifest.components.items():
        check_architecture(name, component.targets, gpu_architecture(index) if index else architecture)
    from flowblending.runtime.devices.cuda import CudaDevice

    return CudaDevice(index, stream)
