"""The short run of a bundle that is being built, where this machine can run it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import images_taken, is_shown
from flowblending.contracts.graph import (
    ENCODERS,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    VAE_ENCODER_FIRST,
    VAE_ENCODER_NEXT,
    VAE_FIRST,
    VAE_NEXT,
    Precision,
)
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import Program
from flowblending.contracts.proof import Proof, read_proof
from flowblending.engine.backends.gpu import check_architecture, gpu_architecture
from flowblending.engine.backends.registry import gpu_components
from flowblending.engine.backends.tensor import CPU
from flowblending.engine.build.proof.short_run import RunFacts, RunRequest, planned, run_here, short_job
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.bundle.plan_profiles import component_profiles
from flowblending.runtime.devices.open import AUTO, device_kind
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.program.cost import cost_of, flops_at
from flowblending.system.host_memory import available_memory
from flowblending.system.shell import command
from flowblending.system.subprocess_call import EndedError, Progress, call_in_subprocess

AFFORDABLE = 1e13
"""Operations that a few cores do in a few minutes."""

_HELD: Mapping[Precision, int] = {
    Precision.FP32: 2,
    Precision.FP16: 3,
    Precision.FP16_MIXED: 3,
    Precision.BF16: 3,
    Precision.FP8: 5,
}
"""Bytes of memory by each of an engine's file: the file, and its matrices in fp32, as ONNX Runtime packs them."""

_OPERATIONS_PER_BYTE = 500
"""Of a call, by each byte of its activations; fewer are done for small models, whose activations are few as well.

Most bytes are three matrices of attention scores, fp32 [heads, tokens, tokens], which take 12 bytes for 4 * width *
layers operations: 600 a byte with 28 layers and heads of 64. A decoder's convolutions of 128 channels do as many.
"""

_PROCESS = 300_000_000
"""Bytes of Python, its libraries, and ONNX Runtime's arenas."""


@dataclass(frozen=True, kw_only=True)
class RunLoad:
    """What a short run takes of a CPU: operations, and bytes of memory, rather too many than too few."""

    operations: float
    memory: float


def run_while_built(bundle: Bundle, out: Path, prompt: str, progress: Progress) -> RunFacts:
    """Run a bundle once, if its engines run on this machine and it is not too much for it.

    Args:
        bundle: its files are there.
        out: what the user calls it.
        prompt: to make a video of.

    Raises:
        UsageError: the bundle has no run that compiles.
    """
    manifest = bundle.manifest
    job = short_job(manifest, prompt)
    program = compile_job(job, manifest)
    facts = planned(job, program, "")
    finish = f"run {command('fb-build-engines', '--prove', out)}"
    reason = _missing_gpu(manifest)
    if not reason and device_kind(AUTO, manifest) == CPU:
        proofs = {name: read_proof(bundle.folder, name) for name in manifest.components}
        reason = too_much(load_of(program, manifest, proofs), available_memory(), finish)
    if reason:
        return facts.model_copy(update={"reason": reason})
    folder = bundle.folder.absolute()
    try:
        found = call_in_subprocess(run_here, RunRequest(folder=folder, job=job), progress)
    except EndedError as end:
        if end.killed:
            reason = f"it was killed, most likely because memory ran out; {finish} on a machine with more"
            return facts.model_copy(update={"reason": reason})
        return facts.model_copy(update={"where": "this machine", "fault": f"It ended with {end.how} ({end.last})."})
    # The folder in the making will be gone.
    return found.model_copy(update={"fault": found.fault.replace(str(folder), str(out))})


def load_of(program: Program, manifest: Manifest, proofs: Mapping[str, Proof]) -> RunLoad:
    """What a program takes on a CPU, from the text encoder to the decoder."""
    branches, tokens = len(program.branches()), manifest.pipeline.tokens(program.latent_shape)
    # The run is of text alone, where there is one.
    unused = () if is_shown(manifest.pipeline.conditions) else ENCODERS
    others = [name for name in manifest.components if name not in (*manifest.transformers, *unused)]
    a_call = {name: _a_call(name, program, manifest, proofs[name]) for name in others}
    following = program.latent_shape[1] - 1
    images = images_taken(manifest.pipeline.conditions)
    calls = {TEXT_ENCODER: branches, VAE_NEXT: following, VAE_ENCODER_NEXT: following, IMAGE_ENCODER: images}
    operations = cost_of(program, manifest).flops + sum(count * calls.get(name, 1) for name, count in a_call.items())
    # Both guidance branches may be in one call.
    largest = max(*a_call.values(), *(branches * flops_at(manifest, model, tokens) for model in manifest.transformers))
    weights = sum(each.engine_bytes * _HELD[each.spec.precision] for each in manifest.components.values())
    return RunLoad(operations=operations, memory=weights + largest / _OPERATIONS_PER_BYTE + _PROCESS)


def _a_call(name: str, program: Program, manifest: Manifest, proof: Proof) -> float:
    """Operations of a call of a text encoder, of CLIP, or of the VAE."""
    counted = float(sum(proof.graph.flops.values()))
    if name in (TEXT_ENCODER, IMAGE_ENCODER):
        return counted
    # Counted at the largest sizes, and alike for every place; some take one latent frame at a time.
    first = 2 if name in (VAE_FIRST, VAE_NEXT, VAE_ENCODER_FIRST, VAE_ENCODER_NEXT) else 1
    # The largest sizes may be those of a tile.
    profiles = component_profiles(manifest, name)
    most = max(math.prod(size.max for size in profile.symbols.values()) for profile in profiles)
    return counted * math.prod(program.latent_shape[first:]) / most


def too_much(load: RunLoad, available: int, finish: str) -> str:
    """Why a run is left out; empty if it is not.

    Args:
        available: bytes of memory.
        finish: what makes up for it.
    """
    takes = f"it takes up to {load.operations / 1e12:.3g} TFLOPs and {load.memory / 1e9:.1f} GB of memory on a CPU"
    if load.memory > available:
        return f"{takes}, of which {available / 1e9:.1f} GB are available; {finish} on a machine with more"
    if load.operations > AFFORDABLE:
        return f"{takes}, which is too much for a build; {finish} for as long as it takes"
    return ""


def _missing_gpu(manifest: Manifest) -> str:
    """The GPU that plans need and that is not here; empty if none is missing."""
    plans = [manifest.components[name] for name in gpu_components(manifest)]
    architecture = gpu_architecture()
    try:
        for component in plans:
            check_architecture("", component.targets, architecture)
    except FlowBlendingError:
        architecture = None
    if not plans or architecture is not None:
        return ""
    return f"needs a GPU of {' or '.join(sorted({each for plan in plans for each in plan.targets})) or 'NVIDIA'}"
