"""The optional dependencies: what each extra of pyproject.toml brings, and how to install one.

The package is on no index. So every hint names a checkout, and never a name that anybody may register.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from flowblending import FlowBlendingError

MODULES: dict[str, tuple[str, ...]] = {
    "build": (
        "torch",
        "diffusers",
        "transformers",
        "onnx",
        "onnxscript",
        "onnx_ir",
        "ml_dtypes",
        "safetensors",
        "accelerate",
        "sentencepiece",
    ),
    "cpu": ("onnxruntime",),
    "cuda": ("cuda",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"),
    "video": ("av", "PIL"),
    "heic": ("pillow_heif",),
    "calibrate": ("matplotlib",),
    "ray": ("ray",),
    "ray-serve": ("aiohttp", "grpc_reflection", "opencensus", "mmh3"),
    "client": ("tritonclient", "grpc"),
    "gguf": ("gguf",),
    "serve": ("fastapi", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
}
"""Modules that come with an extra alone, by what they are imported as."""

_EITHER = {"cpu": ("cpu", "cuda")}
"""Extras of which any one brings the modules."""


def install(*extras: str) -> str:
    """What to do to have one of some extras: ``run pip install '.[cpu]' in a checkout of FlowBlending``."""
    commands = " or ".join(f"pip install '.[{extra}]'" for extra in extras)
    return f"run {commands} in a checkout of FlowBlending"


def check_installed(work: str, *extras: str) -> None:
    """Find out before some work whether what it imports is there.

    Args:
        work: begins the message.
        extras: of `MODULES`; all of them are needed.

    Raises:
        FlowBlendingError: something is missing; all of it is named.
    """
    lacking = {extra: [name for name in MODULES[extra] if not _is_there(name)] for extra in extras}
    missing = [name for names in lacking.values() for name in names]
    if missing:
        first = [extra for extra in extras if lacking[extra]]
        raise FlowBlendingError(f"{work} needs {_listed(missing)}, not installed here; {_remedy(first)}.")


def missing_extra(error: ImportError) -> str | None:
    """The sentence for a module that could not be imported; None if it comes with no extra."""
    name = (error.name or "").partition(".")[0]
    extra = next((extra for extra, names in MODULES.items() if name in names), None)
    if not isinstance(error, ModuleNotFoundError) or extra is None:
        return None
    return f"This needs {name}, which is not installed; {_remedy([extra])}."


def _remedy(extras: Sequence[str]) -> str:
    if len(extras) == 1:
        return install(*_EITHER.get(extras[0], extras))
    return install(",".join(extras))


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
