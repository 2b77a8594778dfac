"""The primary context of a GPU: current while a call needs it, and the caller's own again afterwards.

CUDA's current device is a property of the thread. Whoever works on one of its own, in whatever thread, must not find
another after a call of this package, and this package must not rely on what it finds.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from flowblending import DeviceError, OutOfMemoryError

_OUT_OF_MEMORY: Final = "CUDA_ERROR_OUT_OF_MEMORY"
_PER_THREAD: Final = 2
"""CU_STREAM_PER_THREAD; below it are the null stream and CU_STREAM_LEGACY."""


class CudaContext:
    """A primary context, kept alive.

    Args:
        driver: ``cuda.bindings.driver``, initialised.
        index: of the GPU, among those that CUDA shows.
    """

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self._success = driver.CUresult.CUDA_SUCCESS
        self.handle: Final = self.check(driver.cuDevicePrimaryCtxRetain(index))
        self._number = int(self.handle)

    def current(self) -> Current:
        """``with context.current():`` the context is this thread's, and its own failures are this package's errors.

        Raises:
            OutOfMemoryError: when it is left by a failure of cuda.core for want of memory.
            DeviceError: when it is left by any other failure of cuda.core.
        """
        return Current(self)

    def enter(self) -> bool:
        """Make it current.

        Returns:
            Whether it was not, so that `leave` has to be called.
        """
        status, found = self._driver.cuCtxGetCurrent()
        if status == self._success and int(found) == self._number:
            return False
        self.check(self._driver.cuCtxPushCurrent(self.handle))
        return True

    def leave(self) -> None:
        """Undo `enter`."""
        self._driver.cuCtxPopCurrent()

    def check(self, result: tuple[Any, ...]) -> Any:
        """What a call of the driver gives.

        Raises:
            OutOfMemoryError: the GPU's memory is full.
            DeviceError: it failed otherwise.
        """
        status, *values = result
        if status != self._success:
            raise failure(status.name)
        return values[0] if values else None


class Current:
    """See `CudaContext.current`."""

    def __init__(self, context: CudaContext) -> None:
        self._context = context
        self._entered = False

    def __enter__(self) -> None:
        self._entered = self._context.enter()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entered:
            self._context.leave()
        # cuda.core's errors have no public base class.
        if value is not None and type(value).__module__.startswith("cuda."):
            raise failure(str(value)) from None


def failure(reason: str) -> DeviceError | OutOfMemoryError:
    """The error for what the driver says.

    Args:
        reason: its name for the failure, perhaps with more behind it.
    """
    first = reason.strip().splitlines()[0]
    if _OUT_OF_MEMORY in reason:
        return OutOfMemoryError(
            f"The GPU has no memory left ({_OUT_OF_MEMORY}); "
            "stop other programs on it, or build a bundle for a smaller size."
        )
    return DeviceError(f"The GPU failed ({first.rstrip('.')}); run again, and look at the system's log.")


def stream_index(handle: int) -> int:
    """The GPU that a stream belongs to; the first for the default streams, which every GPU has.

    Args:
        handle: of the stream.

    Raises:
        DeviceError: there is no such stream.
    """
    from cuda.bindings import driver

    if handle <= _PER_THREAD:
        return 0
    status, index = driver.cuStreamGetDevice(handle)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise failure(status.name)
    return int(index)
