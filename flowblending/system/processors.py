"""How many processors a process may use."""

from __future__ import annotations

import math
import os

from flowblending.system.cgroup import processor_quota


def processors() -> int:
    """Processors that are worth a thread each: those that this process may run on, and no more than it has time of.

    More threads than that wait for one another: a container with a limit of four processors sees all of its host's.
    """
    quota = processor_quota()
    visible = len(os.sched_getaffinity(0))
    return visible if quota is None else max(1, min(visible, math.ceil(quota)))


def limit_threads() -> None:
    """Have libraries that are imported later (torch, NumPy's BLAS) make no more threads than `processors`.

    They know what a process may run on, and nothing of a quota of time. A number that the user gave stays.
    """
    if processor_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(processors()))
