"""Which GPUs TensorRT and TensorRT-RTX can compile for."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending import UsageError
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.tensorrt.library import Library, load


def check_targets(backend: str, targets: Sequence[str]) -> tuple[str, ...]:
    """The architectures to compile for, the oldest first: those given, or that of the GPU present.

    TensorRT compiles on the GPU that will run the plan; TensorRT-RTX also ahead of time, without a GPU.

    Raises:
        UsageError: one cannot be compiled for, or none is given and there is no GPU.
        FlowBlendingError: the library is not installed.
    """
    library = load(backend)
    present = gpu_architecture()
    ahead = ahead_of_time(library)
    if not ahead and present is None:
        raise UsageError(
            f"{library.title} compiles on the GPU that will run the plan, but no CUDA driver or NVIDIA GPU was found; "
            "build on that machine, or ahead of time with --backend tensorrt-rtx --target sm89."
        )
    if not targets and present is None:
        raise UsageError(
            f"No CUDA driver or NVIDIA GPU was found, so {library.title} needs to be told what to compile for; "
            f"give --target with one or more of {', '.join(ahead)}."
        )
    for target in targets:
        if target not in (*ahead, present):
            choice = f"one or more of {', '.join(ahead)}" if ahead else f"the GPU present, {present}, or nothing"
            raise UsageError(
                f"Target {target!r} was given, but {library.title} {library.version} compiles for {choice}; "
                "choose a --target among these."
            )
    return tuple(sorted(set(targets), key=_number)) or (str(present),)


def check_fp8(backend: str, targets: Sequence[str]) -> None:
    """Refuse GPUs that have no fp8 arithmetic.

    Args:
        backend: that will compile.
        targets: as `check_targets` gives them.

    Raises:
        UsageError: names those that can.
    """
    without = [target for target in targets if not has_fp8(target)]
    if not without:
        return
    able = [target for target in ahead_of_time(load(backend)) if has_fp8(target)]
    choice = f"use --target {','.join(able)} or some of these" if able else "build on a GPU of sm89 or later"
    raise UsageError(
        f"fp8 was asked for, but {' and '.join(without)} cannot compute in it; {choice}, or --precision bf16."
    )


def has_fp8(target: str) -> bool:
    """Whether an architecture (``sm89``) computes in fp8: Ada is the first."""
    return _number(target) >= 89


def _number(target: str) -> int:
    return int(target.removeprefix("sm"))


def ahead_of_time(library: Library) -> tuple[str, ...]:
    """The architectures (``sm75``, ``sm80``, ...) that need not be present."""
    capabilities = getattr(library.trt, "ComputeCapability", None)
    if capabilities is None:
        return ()
    return tuple(name.lower() for name in capabilities.__members__ if name.startswith("SM"))
