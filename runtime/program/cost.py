"""What a program costs: model calls, floating-point operations, memory, and time where it was measured before."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending.contracts.manifest import Manifest
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.contracts.program import Program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.checksum import cache_folder
from flowblending.system.whole_file import replace_file


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one program on one bundle.

    Attributes:
        calls: of each engine of a model, one per guidance branch and step.
        skipped: calls that a step cache leaves out, by the engine of their step.
        undecided: how many of ``calls`` a step cache decides about while the program runs.
        flops: of all calls, counted from the exported graphs; at most, if some are undecided.
        attention: how many of ``flops`` are attention's products with one another, which published figures leave out.
        flops_least: if every undecided call is left out.
        calls_all_large: of the same run with the bundle's first model alone, and every call made.
        flops_all_large: of these.
        engine_bytes: size of the engines that the run loads.
        slot_bytes: latent-sized buffers of the program.
    """

    calls: Mapping[str, int]
    skipped: Mapping[str, int]
    undecided: Mapping[str, int]
    flops: int
    attention: int
    flops_least: int
    calls_all_large: int
    flops_all_large: int
    engine_bytes: int
    slot_bytes: int

    @property
    def bound(self) -> float:
        """The speed-up over all-large sampling that the operations allow, if every operation took as long.

        With undecided calls, the least: that if all of them are made.
        """
        return self.flops_all_large / self.flops

    @property
    def bound_most(self) -> float:
        """The same if every undecided call is left out."""
        return self.flops_all_large / self.flops_least


def cost_of(program: Program, manifest: Manifest) -> Cost:
    """Count a program's cost from the manifest, without loading an engine."""
    calls = {model: program.calls(model) for model in manifest.transformers}
    wanted = {model: sum(1 + program.guided(step) for step in program.steps if step.model == model) for model in calls}
    undecided = {model: program.undecided(model) for model in calls}
    tokens = manifest.pipeline.tokens(program.latent_shape)
    per_call = {model: flops_at(manifest, model, tokens) for model in calls}
    loaded = [component for name, component in manifest.components.items() if name not in calls or calls[name] > 0]
    all_large = _all_large_calls(program, manifest)
    return Cost(
        calls=calls,
        skipped={model: wanted[model] - calls[model] for model in calls},
        undecided=undecided,
        flops=sum(calls[model] * per_call[model] for model in calls),
        attention=sum(calls[model] * _attention(manifest, model, tokens) for model in calls),
        flops_least=sum((calls[model] - undecided[model]) * per_call[model] for model in calls),
        calls_all_large=all_large,
        flops_all_large=all_large * per_call[manifest.transformers[0]],
        engine_bytes=sum(component.engine_bytes for component in loaded),
        slot_bytes=len(program.slots()) * math.prod(program.latent_shape) * 4,
    )


def _all_large_calls(program: Program, manifest: Manifest) -> int:
    """What the first model runs alone: the steps of the run, or its own where it was distilled to some."""
    sampling = manifest.models[0].sampling or ModelSampling()
    steps = len(sampling.timesteps) or StageSchedule.runs(program.schedule).steps
    guidance = program.guidance if sampling.guidance is None else sampling.guidance
    return steps * (1 + (guidance > 1.0))


def flops_of(calls: Mapping[str, int], program: Program, manifest: Manifest) -> int:
    """Operations of calls that were made, by model."""
    tokens = manifest.pipeline.tokens(program.latent_shape)
    return sum(count * flops_at(manifest, model, tokens) for model, count in calls.items())


def flops_at(manifest: Manifest, model: str, tokens: int) -> int:
    """Operations of one call of an engine."""
    flops = manifest.components[model].flops
    return 0 if flops is None else flops.at(tokens)


def _attention(manifest: Manifest, model: str, tokens: int) -> int:
    flops = manifest.components[model].flops
    return 0 if flops is None else flops.attention_at(tokens)


class Timings:
    """Seconds per call of a bundle's models, as last measured on this machine. Losing them costs nothing.

    Args:
        bundle_id: of the manifest.
        device: ``cpu`` or ``cuda``.
        latent_shape: [C, F, H, W] of what is sampled.
        folder: None takes the user's cache.
    """

    def __init__(self, bundle_id: str, device: str, latent_shape: Sequence[int], folder: Path | None = None) -> None:
        folder = folder or cache_folder()
        name = f"{bundle_id}-{device}-{'x'.join(map(str, latent_shape))}.json"
        self._path = None if folder is None else folder / "timings" / name

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
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(self.read() | dict(seconds)).encode(), durable=False)
