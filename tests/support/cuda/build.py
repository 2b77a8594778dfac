"""Compiles the stand-in, with the kernels of this package in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from flowblending.runtime.devices.cuda_kernels import kernel_names, kernel_source

SOURCES = Path(__file__).parent / "driver"
LIBRARY = "libcuda.so.1"
_FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE")
"""longjmp from one stack to another is what _FORTIFY_SOURCE ends the process for."""


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "c++"))


def build_driver(folder: Path) -> Path:
    """Compile the stand-in into ``folder`` unless it is there; takes some seconds.

    Returns:
        The folder with ``libcuda.so.1``, for LD_LIBRARY_PATH.
    """
    library = folder / LIBRARY
    if library.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    kernels = folder / "compiled_kernels.cpp"
    registered = (f'const stand_in::Registered registered_{name}("{name}", {name});\n' for name in kernel_names())
    kernels.write_text(f'#include "device_code.hpp"\n{kernel_source()}\n{"".join(registered)}')
    found = compiler()
    assert found is not None, "there is no C++ compiler"
    objects = []
    for source in (*sorted(SOURCES.glob("*.cpp")), kernels):
        objects.append(folder / f"{source.stem}.o")
        _run(found, *_FLAGS, "-Wall", "-Wextra", f"-I{SOURCES}", "-c", source, "-o", objects[-1])
    unfinished = folder / "unfinished.so"
    _run(found, "-shared", f"-Wl,-soname,{LIBRARY}", "-Wl,-z,defs", "-o", unfinished, *objects, "-lpthread")
    unfinished.rename(library)
    return folder


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
