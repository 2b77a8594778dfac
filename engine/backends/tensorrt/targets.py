"""Which GPUs TensorRT and TensorRT-RTX can compile for."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending import UsageError
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.tensorrt.library import Library, load

_DATA_CENTER = ("sm80", "sm90", "sm100", "sm103")
"""Not in TensorRT-RTX's support matrix (compute capabilities 7.5, 8.6, 8.9 and 12.x), though it has names for some."""


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
    if ahead:
        return _check_supported(library, targets or (str(present),), ahead)
    for target in targets:
        if target != present:
            raise UsageError(
                f"Target {target!r} was given, but {library.title} {library.version} compiles for the GPU present, "
                f"{present}, or nothing; choose a --target among these."
            )
    return (str(present),)


def _check_supported(library: Library, targets: Sequence[str], ahead: Sequence[str]) -> tuple[str, ...]:
    """Refuse what TensorRT-RTX compiles for, or may, but is not made to run on.

    Raises:
        UsageError: there is such a target.
    """
    for target in targets:
        if target in ahead:
            continue
        other = (
            ", and its support matrix has no GPUs for data centers; use --backend tensorrt on that machine"
            if target in _DATA_CENTER
            else "; choose a --target among these"
        )
        raise UsageError(
            f"{library.title} {library.version} compiles for {', '.join(ahead)}, and not for {target!r}{other}."
        )
    return tuple(sorted(set(targets), key=_number))


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
    """The architectures (``sm75``, ``sm86``, ...) that need not be present; those that are supported at run time."""
    capabilities = getattr(library.trt, "ComputeCapability", None)
    if capabilities is None:
        return ()
    names = [name.lower() for name in capabilities.__members__ if name.startswith("SM")]
    return tuple(name for name in names if name not in _DATA_CENTER)
