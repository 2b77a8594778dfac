"""The stage that says where all others were measured: GPU, driver, clocks, memory, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import flowblending
from benchmarks.gpu.stage import Item, Results, Unavailable, Work
from flowblending.engine.backends.gpu import free_memory, gpu_architecture, gpu_count

_PACKAGES = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "cuda-core",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "numpy",
)
_QUERIES = (
    "name",
    "driver_version",
    "memory.total",
    "memory.free",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
    "mig.mode.current",
    "pcie.link.gen.current",
)


def gpu_name(index: int = 0) -> str | None:
    """The name of a GPU as its driver tells it; None without one."""
    driver = _driver()
    if driver is None or index >= gpu_count():
        return None
    _, device = driver.cuDeviceGet(index)
    status, name = driver.cuDeviceGetName(256, device)
    if status != driver.CUresult.CUDA_SUCCESS:
        return None
    return bytes(name).split(b"\0")[0].decode(errors="replace")


def environment(work: Work) -> Iterable[Item]:
    """The measurements of this stage."""
    if gpu_architecture() is None:
        raise Unavailable("no CUDA driver or NVIDIA GPU was found here; run it on a machine with one.")

    def item(key: str, find: Callable[[], dict[str, Any]]) -> Item:
        def run(_: Results) -> dict[str, Any]:
            return find()

        # Of the machine that is here now, which may be another one than the last time.
        return Item(key=key, run=run, there=lambda: False)

    yield item("gpu", _gpu)
    yield item("nvidia-smi", _nvidia_smi)
    yield item("versions", versions)
    yield item("machine", lambda: _machine(work))


def versions() -> dict[str, Any]:
    """Of everything that takes part."""
    found: dict[str, Any] = {"flowblending": flowblending.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _driver() -> Any:
    try:
        from cuda.bindings import driver

        (status,) = driver.cuInit(0)
    except (ImportError, RuntimeError):  # the bindings, or the driver's library, are not there
        return None
    return driver if status == driver.CUresult.CUDA_SUCCESS else None


def _gpu() -> dict[str, Any]:
    driver = _driver()
    found: dict[str, Any] = {
        "name": gpu_name(),
        "architecture": gpu_architecture(),
        "count": gpu_count(),
        "free bytes": free_memory(),
    }
    _, found["CUDA of the driver"] = driver.cuDriverGetVersion()
    _, device = driver.cuDeviceGet(0)
    attributes = {
        "multiprocessors": "MULTIPROCESSOR_COUNT",
        "clock kHz": "CLOCK_RATE",
        "memory clock kHz": "MEMORY_CLOCK_RATE",
        "L2 bytes": "L2_CACHE_SIZE",
    }
    for name, attribute in attributes.items():
        status, value = driver.cuDeviceGetAttribute(
            getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{attribute}"), device
        )
        if status == driver.CUresult.CUDA_SUCCESS:
            found[name] = int(value)
    return found


def _nvidia_smi() -> dict[str, Any]:
    """What the driver's own tool adds; nothing where it is not installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"missing": "nvidia-smi is not installed"}
    command = [program, "-i", "0", f"--query-gpu={','.join(_QUERIES)}", "--format=csv,noheader"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_QUERIES):
        return {"missing": " ".join((done.stderr or done.stdout).split())}
    return dict(zip(_QUERIES, values, strict=True))


def _machine(work: Work) -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory bytes": memory,
        "disk free bytes": shutil.disk_usage(work.folder).free,
    }
