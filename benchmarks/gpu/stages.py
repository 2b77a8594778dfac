"""Every stage, in the order in which they are run: the cheap ones that say what the others can count on first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.gpu.backends import BACKENDS, ONNXRUNTIME, RTX, TENSORRT, backends
from benchmarks.gpu.environment import environment
from benchmarks.gpu.overhead import overhead
from benchmarks.gpu.pairs import PAIRS, Pair, tiny
from benchmarks.gpu.stage import Item, Stage, Work
from benchmarks.gpu.torch_calls import torch_calls
from benchmarks.gpu.videos import videos
from flowblending.contracts.graph import Precision

BUILT = (
    (TENSORRT, Precision.BF16),
    (TENSORRT, Precision.FP8),
    (RTX, Precision.BF16),
    (RTX, Precision.FP8),
    (ONNXRUNTIME, Precision.FP16),
)
"""What each pair is built for."""

TORCH = "torch"
ENVIRONMENT, OVERHEAD = "environment", "overhead"


def backend_stage(backend: str) -> str:
    """Its name."""
    return f"tiny-{backend}"


def torch_stage(pair: Pair) -> str:
    """Its name."""
    return f"{pair.name}-{TORCH}"


def video_stage(pair: Pair, backend: str, precision: Precision) -> str:
    """Its name."""
    return f"{pair.name}-{backend}-{precision}"


def _measured(items: Callable[[Pair, Work], Iterable[Item]], pair: Pair, work: Work) -> Iterable[Item]:
    """The measurements of a pair, or of a tiny one of its classes."""
    return items(tiny(pair) if work.tiny else pair, work)


def _backend(backend: str) -> Stage:
    title = f"does {backend} work here: plans of tiny models, and parity with the CPU"
    return Stage(name=backend_stage(backend), title=title, items=partial(backends, backend))


def _torch(pair: Pair) -> Stage:
    title = f"{pair.title}: a call in torch, eager and compiled"
    return Stage(name=torch_stage(pair), title=title, items=partial(_measured, torch_calls, pair))


def _videos(pair: Pair, backend: str, precision: Precision) -> Stage:
    title = f"{pair.title}: {backend} in {precision}, from builds to videos"
    return Stage(
        name=video_stage(pair, backend, precision),
        title=title,
        items=partial(_measured, partial(videos, precision, backend), pair),
    )


def _of(pair: Pair) -> tuple[Stage, ...]:
    """Experts have the architecture of one model, whose calls in torch are measured without them."""
    alone = () if pair.experts else (_torch(pair),)
    return (*alone, *(_videos(pair, backend, precision) for backend, precision in BUILT))


STAGES: tuple[Stage, ...] = (
    Stage(name=ENVIRONMENT, title="GPU, driver, clocks, memory, versions", items=environment),
    *map(_backend, BACKENDS),
    Stage(name=OVERHEAD, title="what the loop takes beside its engines", items=overhead),
    *(stage for pair in PAIRS.values() for stage in _of(pair)),
)
