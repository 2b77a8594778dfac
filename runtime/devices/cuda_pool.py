"""A stream-ordered memory pool of one device object's own.

What it frees it keeps for the next allocation, since taking gigabytes from the driver costs milliseconds, and gives it
back when a phase of a run ends (`trim`). The driver's default pool, which other libraries of the process use too, is
left as it is: cuda.core would have it keep everything for good.
"""

from __future__ import annotations

from typing import Any, Final

from flowblending.runtime.devices.cuda_context import CudaContext

_KEEP_ALL: Final = 2**64 - 1


class CudaPool:
    """A pool on a GPU; see the module. Its memory lives as long as the buffers do.

    Args:
        core: ``cuda.core``.
        driver: ``cuda.bindings.driver``.
        context: of the GPU, which is current.
        index: of the GPU.

    Raises:
        DeviceError: the GPU has no memory pools.
    """

    def __init__(self, core: Any, driver: Any, context: CudaContext, index: int) -> None:
        self._driver = driver
        self._context = context
        self._resource = core.DeviceMemoryResource(index, core.DeviceMemoryResourceOptions())
        attribute = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        context.check(driver.cuMemPoolSetAttribute(self._resource.handle, attribute, driver.cuuint64_t(_KEEP_ALL)))

    def allocate(self, size: int, stream: Any) -> Any:
        """A buffer of so many bytes, usable in the stream's order, and freed in it when nothing refers to it any more.

        Raises:
            OutOfMemoryError: the GPU's memory is full.
            DeviceError: it failed otherwise.
        """
        with self._context.current():
            return self._resource.allocate(size, stream=stream)

    def trim(self) -> None:
        """Give back what is not allocated. What was freed counts once the stream has passed it."""
        with self._context.current():
            self._context.check(self._driver.cuMemPoolTrimTo(self._resource.handle, 0))
