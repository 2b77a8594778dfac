from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from flowblending import FlowBlendingError
from flowblending.engine.backends.gpu import check_architecture, gpu_architecture


class Driver:
    """Stands for cuda.bindings.driver on a machine whose devices have the compute capabilities given."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )

    def __init__(self, devices: list[tuple[int, int]], *, library: bool = True) -> None:
        self.devices, self.library = devices, library

    def cuInit(self, _flags: int) -> tuple[int]:
        if not self.library:
            raise RuntimeError("libcuda.so.1 was not found")
        return (0,) if self.devices else (100,)

    def cuDeviceGet(self, index: int) -> tuple[int, int]:
        return (0, index) if index < len(self.devices) else (101, 0)

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, self.devices[device][attribute]


@pytest.mark.parametrize(
    ("driver", "architecture"),
    [
        (Driver([(8, 9)]), "sm89"),
        (Driver([(12, 0), (9, 0)]), "sm120"),
        (Driver([]), None),
        (Driver([(8, 9)], library=False), None),
    ],
)
def test_the_architecture_is_the_first_devices(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, architecture: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    assert gpu_architecture() == architecture
    assert gpu_architecture(1) == ("sm90" if len(driver.devices) > 1 else None)


def test_without_the_bindings_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert gpu_architecture() is None


def test_a_gpu_that_a_component_was_not_compiled_for() -> None:
    check_architecture("large", (), None)
    check_architecture("large", (), "sm89")
    check_architecture("large", ("sm120", "sm89"), "sm89")
    with pytest.raises(FlowBlendingError, match=r"large was compiled for sm120 and sm89, but this GPU is sm86; .*sm86"):
        check_architecture("large", ("sm120", "sm89"), "sm86")
    # No architecture is the prefix of another.
    with pytest.raises(FlowBlendingError, match="compiled for sm120, but this GPU is sm12"):
        check_architecture("large", ("sm120",), "sm12")
    with pytest.raises(FlowBlendingError, match="compiled for sm89, but no CUDA driver or NVIDIA GPU was found"):
        check_architecture("large", ("sm89",), None)
