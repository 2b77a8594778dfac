"""What a program costs: model calls, floating-point operations, memory, and time where it was measured before."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowblending.engine.checksum import cache_folder
from flowblending.engine.manifest import Manifest
from flowblending.export.spec import LARGE, SMALL
from flowblending.runtime.program import Program


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one program on one bundle.

    Attributes:
        calls: of each model, one per guidance branch and step.
        skipped: calls that a step cache leaves out, by the model of their step.
        flops: of all calls, counted from the exported graphs.
        flops_all_large: of the same steps with the large model only, and every call made.
        engine_bytes: size of the engines that the run loads.
        slot_bytes: latent-sized buffers of the program.
    """

    calls: Mapping[str, int]
    skipped: Mapping[str, int]
    flops: int
    flops_all_large: int
    engine_bytes: int
    slot_bytes: int

    @property
    def bound(self) -> float:
        """The speed-up over all-large sampling that the operations allow, if every operation took as long."""
        return self.flops_all_large / self.flops


def cost_of(program: Program, manifest: Manifest) -> Cost:
    """Count a program's cost from the manifest, without loading an engine."""
    calls = {model: program.calls(model) for model in (LARGE, SMALL)}
    branches = len(program.branches())
    skipped = {model: branches * sum(step.model == model for step in program.steps) - calls[model] for model in calls}
    per_call = {model: _flops(manifest, model) for model in calls}
    loaded = [component for name, component in manifest.components.items() if name not in calls or calls[name] > 0]
    latent_bytes = 4
    for size in manifest.geometry.latent_shape:
        latent_bytes *= size
    return Cost(
        calls=calls,
        skipped=skipped,
        flops=sum(calls[model] * per_call[model] for model in calls),
        flops_all_large=(sum(calls.values()) + sum(skipped.values())) * per_call[LARGE],
        engine_bytes=sum(component.engine_bytes for component in loaded),
        slot_bytes=len(program.slots()) * latent_bytes,
    )


def _flops(manifest: Manifest, model: str) -> int:
    flops = manifest.components[model].flops
    return 0 if flops is None else flops.total


class Timings:
    """Seconds per call of a bundle's models, as last measured on this machine. Losing them costs nothing."""

    def __init__(self, bundle_id: str, device: str, folder: Path | None = None) -> None:
        folder = folder or cache_folder()
        self._path = None if folder is None else folder / "timings" / f"{bundle_id}-{device}.json"

    def read(self) -> dict[str, float]:
        """Seconds per call by model (and per video for ``text_encoder`` and ``vae``); empty if never measured."""
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text())
            return {str(name): float(seconds) for name, seconds in content.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def write(self, seconds: Mapping[str, float]) -> None:
        """Remember what a run measured; models that it did not use keep their figures."""
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.read() | dict(seconds)))
            temporary.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
