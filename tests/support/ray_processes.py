"""Processes of Ray clusters that tests started, told from those of others on this machine."""

from __future__ import annotations

from pathlib import Path


def ray_processes(home: Path, title: str) -> list[int]:
    """Workers whose titles begin so, of the clusters that were started with this home."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (process / "cmdline").read_bytes().startswith(title.encode()) and _belongs(process, home):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _belongs(process: Path, home: Path) -> bool:
    """Whether the raylet that started the process has this home: Ray overwrites what the process itself would say."""
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return f"HOME={home}\0".encode() in Path(f"/proc/{parent}/environ").read_bytes()
