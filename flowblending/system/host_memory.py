"""How much memory the host has for this process."""

from __future__ import annotations

from pathlib import Path

from flowblending.system.cgroup import memory_left


def available_memory() -> int:
    """Bytes that this process can have without swapping, as the kernel estimates it, and within its container."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    host = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    left = memory_left()
    return host if left is None else min(host, left)
