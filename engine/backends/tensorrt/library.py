"""TensorRT and TensorRT-RTX: finding, loading and listening to whichever of the two is meant.

Their Python interfaces are alike but for a few names, so everything else in this package that deals with
either is written once, against `Library`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

from flowblending import FlowBlendingError
from flowblending.system.extras import install

_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_INFO = 3
"""ILogger.Severity: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose."""

_LOADED: set[str] = set()
"""Both libraries define the same symbols for every module of the process to see: the first that is loaded is found."""


class Messages:
    """What a library has logged lately: the only place where it says why a call returned nothing.

    One list per library and process, because the library keeps the first logger that it is given.
    """

    def __init__(self) -> None:
        # The library's own threads add to it while this one reads.
        self._lock = Lock()
        self._lines: deque[tuple[int, str]] = deque(maxlen=1000)

    def add(self, severity: int, line: str) -> None:
        """Keep a line, unless it is verbose. Called from the library's own threads too."""
        if severity <= _INFO:
            with self._lock:
                self._lines.append((severity, line))

    def clear(self) -> None:
        """Forget everything, so that what follows belongs to one call."""
        with self._lock:
            self._lines.clear()

    def lines(self) -> tuple[str, ...]:
        """All lines, oldest first."""
        return tuple(line for _, line in self._kept())

    def error(self) -> str:
        """The first error since `clear`, in one line; those after it are its consequences."""
        errors = (line for severity, line in self._kept() if severity < 2)
        return " ".join(next(errors, "it gave no reason").split())

    def _kept(self) -> tuple[tuple[int, str], ...]:
        with self._lock:
            return tuple(self._lines)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A loaded library.

    Attributes:
        name: as a back end is named (``tensorrt-rtx``).
        title: as people call it (``TensorRT-RTX``).
        version: of the library (``1.7.1.116``).
        trt: its Python module, which has no type information.
        logger: what its constructors ask for.
        messages: what it has logged.
    """

    name: str
    title: str
    version: str
    trt: Any
    logger: Any
    messages: Messages

    def dtype_name(self, dtype: Any) -> str:
        """The numpy name of a DataType; the library's own where numpy has none (bfloat16)."""
        try:
            return str(self.trt.nptype(dtype).__name__).rstrip("_")
        except TypeError:
            return str(dtype)


@cache
def load(backend: str) -> Library:
    """Load a library, once per process.

    Raises:
        FlowBlendingError: it is not installed, its shared libraries cannot be loaded, or the other one is loaded.
    """
    title = _TITLES[backend]
    for other in _LOADED - {backend}:
        raise FlowBlendingError(
            f"{_TITLES[other]} is in use in this process, and {title} beside it would call functions of the same names "
            f"in {_TITLES[other]}; use the bundle of {title} in another process."
        )
    try:
        trt = _import_tensorrt() if backend == "tensorrt" else _import_tensorrt_rtx()
    except (ImportError, OSError) as error:
        raise FlowBlendingError(f"{title} is not installed ({error}); {install(backend)}.") from None
    _LOADED.add(backend)
    messages = Messages()
    return Library(
        name=backend,
        title=title,
        version=trt.__version__,
        trt=trt,
        logger=_logger(trt, messages),
        messages=messages,
    )


def _import_tensorrt() -> Any:
    import tensorrt

    return tensorrt


def _import_tensorrt_rtx() -> Any:
    """NVIDIA's own package where it is installed, else its bindings over the libraries of an ONNX Runtime plug-in."""
    try:
        import tensorrt_rtx
    except (ImportError, OSError):
        # Importing the plug-in's package loads its libraries for every module to see, which the bindings need.
        import onnxruntime_ep_nv_tensorrt_rtx  # noqa: F401 - loads libraries
        import tensorrt_rtx_bindings

        return tensorrt_rtx_bindings
    return tensorrt_rtx


def _logger(trt: Any, messages: Messages) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # the library has no type information
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, line: str) -> None:
            messages.add(int(severity), line)

    return Logger()
