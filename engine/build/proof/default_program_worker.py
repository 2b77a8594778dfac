"""A bundle's default program, for the build's report. The build starts this as a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flowblending.contracts.manifest import Manifest
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.system.subprocess_call import answer


def serve(descriptor: int) -> None:
    """What the process does."""
    answer(descriptor, work)


def work(manifest: Manifest, _progress: Callable[[str], None]) -> Mapping[str, object]:
    """The program of a job that asks for nothing in particular."""
    return compile_job(Job(prompt=""), manifest).to_json()
