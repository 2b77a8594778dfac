"""How much memory the host has for programs."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int:
    """Bytes that programs can have without swapping, as the kernel estimates it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
