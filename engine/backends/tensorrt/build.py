"""Building plans with TensorRT and TensorRT-RTX, each in a process of its own.

A compiler is one call that lasts minutes, takes memory in proportion to the weights, and listens to
nobody meanwhile. In its own process it can be interrupted at once, gives all its memory back, and when
the system kills it for want of memory, somebody is left to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec
from flowblending.engine.backends.backend import PlanInfo
from flowblending.engine.backends.protocol import ShapeProfile
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.library import load
from flowblending.engine.backends.tensorrt.targets import check_targets
from flowblending.system.subprocess_call import EndedError, call_in_subprocess
from flowblending.system.whole_file import whole_file


def build_plan(
    *,
    library: str,
    onnx: Path,
    spec: GraphSpec,
    profiles: Sequence[ShapeProfile],
    targets: Sequence[str],
    weight_streaming: bool = False,
    out: Path,
    progress: Callable[[str], None],
) -> PlanInfo:
    """Compile a graph into the plan ``out``, which appears when it is whole and not before.

    Args:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        onnx: the graph, with its external weights beside it.
        spec: what the graph takes and gives.
        profiles: the sizes to compile for, one optimization profile each; every symbol of ``spec`` has a range.
        targets: architectures (``sm89``) to compile for; none means the GPU present.
        weight_streaming: whether the plan shall be able to leave weights in the host's memory.
        out: replaced if it exists.
        progress: told the compiler's phases. What it raises, and Ctrl-C, end the compilation at once.

    Raises:
        UsageError: a target that cannot be compiled for, or none and no GPU.
        FlowBlendingError: the library is not installed, the graph or its weights are damaged, a symbol has
            no size, memory ran out, or the compiler refuses; its own words are in the message.
        OSError: ``out`` cannot be written.
    """
    targets = check_targets(library, targets)
    with whole_file(out) as temporary:
        request = PlanRequest(
            library=library,
            onnx=onnx.absolute(),
            spec=spec,
            profiles=tuple(profiles),
            targets=targets,
            weight_streaming=weight_streaming,
            out=temporary,
        )
        return _compile_in_subprocess(request, progress)


def _compile_in_subprocess(request: PlanRequest, progress: Callable[[str], None]) -> PlanInfo:
    try:
        return call_in_subprocess(compile_plan, request, progress)
    except EndedError as end:
        raise _ended(request, end) from None


def _ended(request: PlanRequest, end: EndedError) -> FlowBlendingError:
    """The sentence for a process that ended without an answer."""
    name, title = request.spec.name, load(request.library).title
    if end.killed:
        return FlowBlendingError(
            f"{title} was killed while compiling {name}, most likely because memory ran out; "
            "use a machine with more memory, or build a smaller size."
        )
    return FlowBlendingError(
        f"{title} ended with {end.how} while compiling {name} ({end.last}); "
        "try another --precision, --target or --backend."
    )
