"""Asking the runtime for a bundle's default program. This package does not import it: a process of its own answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowblending import FlowBlendingError
from flowblending.contracts.manifest import Manifest
from flowblending.system.subprocess_call import EndedError, call_in_subprocess

_MODULE = "flowblending.engine.build.proof.default_program_worker"


def default_program(manifest: Manifest, progress: Callable[[str], None]) -> Mapping[str, Any]:
    """The program that ``fb-run`` runs unless told otherwise, as its JSON (file contract 3).

    Raises:
        FlowBlendingError: the process that compiles it ended.
    """
    try:
        program: Mapping[str, Any] = call_in_subprocess(_MODULE, manifest, progress)
    except EndedError as end:
        raise FlowBlendingError(f"Compiling the default program ended with {end.how} ({end.last}).") from None
    return program
