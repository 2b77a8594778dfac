"""FlowBlending: large -> small -> large video diffusion in compiled engines.

What ``__all__`` lists is the public API: `open`, what it returns and yields, the version and the error classes; and so
is what `flowblending.diffusers` lists. It keeps its promises from one version to the next (CHANGELOG.md tells what
changed). Every other module is private.

The three stages are three packages, and imports run one way (docs/architecture.md)::

    runtime  ->  engine  ->  export

Nothing here imports a library: the API is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowblending.runtime.api import Generation as Generation
    from flowblending.runtime.api import VideoSampler as VideoSampler
    from flowblending.runtime.api import open as open
    from flowblending.runtime.events import Embedding as Embedding
    from flowblending.runtime.events import FramesEvent as FramesEvent
    from flowblending.runtime.events import LatentsEvent as LatentsEvent
    from flowblending.runtime.events import LoadEvent as LoadEvent
    from flowblending.runtime.events import PreviewEvent as PreviewEvent
    from flowblending.runtime.sampler.loop import StepEvent as StepEvent

__version__ = "0.2.0"

__all__ = [  # the names of the API are resolved by __getattr__
    "Embedding",
    "FlowBlendingError",
    "FramesEvent",
    "Generation",
    "LatentsEvent",
    "LoadEvent",
    "PreviewEvent",
    "StepEvent",
    "UsageError",
    "VideoSampler",
    "__version__",
    "open",
]


class FlowBlendingError(Exception):
    """Something the user can mend.

    The message is one sentence: what was got, what was expected, what to do.
    The command-line programs print it without a traceback and exit with ``exit_code``.
    """

    exit_code = 1


class UsageError(FlowBlendingError):
    """A wrong argument: found before any work was done."""

    exit_code = 2


class DiskError(FlowBlendingError):
    """A disk that is full or cannot be written to: no job that writes there would do better."""


class DeviceError(FlowBlendingError):
    """A device or an engine that cannot be used: no job in this process would do better."""


class OutOfMemoryError(FlowBlendingError):
    """Memory that is too small: no job of this size would do better."""


def __getattr__(name: str) -> object:
    if name in __all__:
        from flowblending.runtime import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
