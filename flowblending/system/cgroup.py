"""What a container or a service leaves a process of the host: the limits of its control groups, of version 1 or 2.

Files and their meaning: the kernel's admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst and
scheduler/sched-bwc.rst; where they lie: proc_pid_cgroup(5) and proc_pid_mountinfo(5). A group is bound by the limits
of all that it lies in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")
_UNLIMITED = 1 << 60
"""Version 1 has no word for it, but the largest number of pages."""


def memory_left(proc: Path = _PROC) -> int | None:
    """Bytes that a process may still have before one of its groups is full; None where none has a limit.

    Pages of files are free in this sense, as they are in the kernel's MemAvailable: they give way.

    Args:
        proc: the process's folder under ``/proc``.
    """
    left = [limit - _used(group) for group in _groups(proc, "memory") for limit in _limits(group)]
    return max(0, min(left)) if left else None


def processor_quota(proc: Path = _PROC) -> float | None:
    """Processors whose time a process may use, such as 1.5; None where no group has a limit."""
    quotas = [quota for folder in _groups(proc, "cpu") if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _limits(group: Path) -> list[int]:
    """Where a process of the group is ended or, from ``memory.high`` on, slowed down until memory is given back."""
    found = [_number(group, name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    return [limit for limit in found if limit is not None and limit < _UNLIMITED]


def _used(group: Path) -> int:
    """What is in use without files' pages."""
    used = _number(group, "memory.current", "memory.usage_in_bytes") or 0
    fields = dict(line.split() for line in _text(group / "memory.stat").splitlines())
    # Version 1 counts without the groups below, unless asked for the total.
    pages = sum(int(fields.get(f"total_{name}", fields.get(name, 0))) for name in ("active_file", "inactive_file"))
    return max(0, used - pages)


def _quota(group: Path) -> float | None:
    if text := _text(group / "cpu.max"):
        quota, period = text.split()
        return None if quota == "max" else int(quota) / int(period)
    allowed, length = _number(group, "cpu.cfs_quota_us"), _number(group, "cpu.cfs_period_us")
    return None if allowed is None or allowed < 0 or not length else allowed / length


def _number(group: Path, *names: str) -> int | None:
    """The first of the files that is there; None for ``max``."""
    text = next((text for name in names if (text := _text(group / name))), "max")
    return None if text == "max" else int(text)


def _text(path: Path) -> str:
    """A file's text, empty where there is none: a group may be gone, and the root of all has no limits."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups that bound a controller, from the process's own outwards, as far as they are seen."""
    for line in _text(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree for all controllers, and names none.
        if controllers and controller not in controllers.split(","):
            continue
        for root, mounted in _mounts(proc, controller if controllers else None):
            inside = _below(PurePosixPath(path), root)
            yield from (mounted / each for each in (inside, *inside.parents))


def _mounts(proc: Path, controller: str | None) -> Iterator[tuple[PurePosixPath, Path]]:
    """Which group's folder is to be found where: of version 2, or of a controller of version 1."""
    for line in _text(proc / "mountinfo").splitlines():
        own, _, rest = line.partition(" - ")
        _, _, _, root, mounted, *_ = own.split()
        # What is mounted stands between them, which may be nothing.
        kind, *_, options = rest.split()
        if kind == "cgroup2" if controller is None else kind == "cgroup" and controller in options.split(","):
            yield PurePosixPath(root), Path(mounted)


def _below(path: PurePosixPath, root: PurePosixPath) -> PurePosixPath:
    """A group's path from the one that is mounted; that one itself, where the group lies out of sight."""
    return path.relative_to(root) if path.is_relative_to(root) and ".." not in path.parts else PurePosixPath()
