"""The proof report of a bundle, ``report.json``: what was proved of it, where, and what is left to prove.

It is about the bundle and no part of it: it may be deleted, and `prove` adds to it on the GPU that the plans are for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

import flowblending
from flowblending import FlowBlendingError
from flowblending.contracts import upgrade
from flowblending.contracts.manifest import Component, Manifest
from flowblending.contracts.proof import Facts, Proof, Sizes, read_proof
from flowblending.engine.backends.protocol import ends
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.build.proof.claims import FAILED, OPEN, Claim, allowed_on, component_claims, runs_as_torch
from flowblending.engine.build.proof.pair import PairFacts, pair_claims
from flowblending.engine.build.proof.short_run import RunFacts, run_claim
from flowblending.engine.bundle.bundle import REPORT, Bundle
from flowblending.engine.bundle.plan_profiles import component_profiles
from flowblending.system.whole_file import replace_file

FORMAT = upgrade.REPORT.number


class Memory(Facts):
    """What a run needs on the GPU with every engine open, at the largest profile, in bytes.

    Attributes:
        weights: of all engines, as their compilers state them; of ONNX Runtime's, the size of their files.
        scratch: of the engine that takes the most, likewise, since all share it; of ONNX Runtime's nothing is known.
        tensors: inputs and outputs of every engine.
        latents: the program's buffers between the calls.
        complete: whether every compiler stated both.
    """

    weights: int
    scratch: int
    tensors: int
    latents: int
    complete: bool

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.scratch + self.tensors + self.latents


class Inspected(Facts):
    """What was found on a GPU; see `flowblending.engine.build.proof.prove`.

    Attributes:
        device: ``sm89``, or ``cpu`` for an ONNX Runtime bundle without one.
        version: of FlowBlending.
        device_bytes: what each plan's context takes, as its engine states it.
        layers: the names of each plan's layers, as TensorRT's engine inspector lists them.
        differences: relative L2 norm of each component's difference from torch; None where nothing of torch was
            kept, and what the engine gives for noise is finite.
    """

    device: str
    version: str
    device_bytes: dict[str, int]
    layers: dict[str, tuple[str, ...]]
    differences: dict[str, float | None]


class BuildReport(Facts):
    """``report.json``.

    Attributes:
        bundle: id of the bundle.
        components: by name.
        slots: buffers of the default program, each as large as a latent.
        pair: how far the schedule in this precision is from fp32; None where that was not measured.
        run: how a short run of the whole bundle went; None in a report from before there was one.
        claims: all of them, with their states.
        inspected: None as long as nobody has run ``--prove``.
    """

    format: int = FORMAT
    bundle: str
    created_by: str
    components: dict[str, Proof]
    slots: int
    memory: Memory
    pair: PairFacts | None
    run: RunFacts | None
    inspected: Inspected | None
    claims: tuple[Claim, ...]

    @property
    def failed(self) -> tuple[Claim, ...]:
        """The claims that do not hold."""
        return tuple(claim for claim in self.claims if claim.state == FAILED)

    @property
    def left(self) -> tuple[Claim, ...]:
        """The claims that are neither proved nor disproved."""
        return tuple(claim for claim in self.claims if claim.state == OPEN)


def make_report(
    bundle: Bundle,
    *,
    slots: int,
    pair: PairFacts | None,
    run: RunFacts | None,
    inspected: Inspected | None = None,
) -> BuildReport:
    """Put a bundle's proofs together, and judge them.

    Args:
        bundle: its files are there.
        slots: buffers of the default program, each as large as a latent.
        pair: see `BuildReport`.
        run: likewise.
        inspected: likewise.

    Raises:
        FlowBlendingError: a component's proof is missing or damaged.
    """
    manifest = bundle.manifest
    proofs = {name: read_proof(bundle.folder, name) for name in manifest.components}
    claims = [
        claim
        for name, component in manifest.components.items()
        for claim in _claims(manifest, name, component, proofs[name], inspected)
    ]
    return BuildReport(
        bundle=manifest.id,
        created_by=f"flowblending {flowblending.__version__}",
        components=proofs,
        slots=slots,
        memory=_memory(manifest, proofs, slots),
        pair=pair,
        run=run,
        inspected=inspected,
        claims=(*claims, *pair_claims(pair, manifest), run_claim(run)),
    )


def sizes_of(manifest: Manifest, name: str) -> tuple[Sizes, ...]:
    """The smallest and the largest sizes of every profile of a component of this bundle."""
    return ends(component_profiles(manifest, name), manifest.components[name].spec)


def _claims(
    manifest: Manifest, name: str, component: Component, proof: Proof, inspected: Inspected | None
) -> Sequence[Claim]:
    claims = component_claims(proof, component, sizes_of(manifest, name))
    if proof.plan is None and inspected is None:
        # The graph that was compared is the engine.
        return claims
    if inspected is None:
        needs = f"a GPU of {' or '.join(component.targets) or 'NVIDIA'}"
        run = needs if BACKENDS.get(component.backend).needs_gpu else "fb-build-engines --prove"
        return [*claims, runs_as_torch(name, None, 0, f"needs {run}")]
    found = inspected.differences.get(name)
    allowed = allowed_on(inspected.device, proof.compared.allowed)
    where = f"on {inspected.device}" if found is not None else "it gives finite values, and nothing of torch was kept"
    return [*claims, runs_as_torch(name, found, allowed, where)]


def _memory(manifest: Manifest, proofs: Mapping[str, Proof], slots: int) -> Memory:
    weights = scratch = tensors = 0
    complete = True
    for name, component in manifest.components.items():
        plan, tensor_specs = proofs[name].plan, (*component.spec.inputs, *component.spec.outputs)
        if plan is None or plan.weights_bytes is None or plan.scratch_bytes is None:
            complete = False
        weights += component.engine_bytes if plan is None else plan.weights_bytes or plan.bytes
        scratch = max(scratch, 0 if plan is None else plan.scratch_bytes or 0)
        tensors += max(
            sum(math.prod(each.resolve(sizes)) * np.dtype(each.dtype).itemsize for each in tensor_specs)
            for sizes in sizes_of(manifest, name)
        )
    latents = 4 * slots * max(math.prod(each.max.latent_shape) for each in manifest.profiles)
    return Memory(weights=weights, scratch=scratch, tensors=tensors, latents=latents, complete=complete)


def write_report(report: BuildReport, folder: Path) -> None:
    """Write the report into a bundle's folder, whole or not at all.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    path = folder / REPORT
    try:
        replace_file(path, (report.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise FlowBlendingError(
            f"Cannot write {path} ({error.strerror}); make the bundle's folder writable, or copy it."
        ) from None


def read_report(bundle: Bundle) -> BuildReport | None:
    """The report of a bundle; None if there is none that can be read, or it is of another build.

    Raises:
        FlowBlendingError: it was written by a later version.
    """
    path = bundle.folder / REPORT
    try:
        content = upgrade.REPORT.upgrade(
            json.loads(path.read_bytes()), path, f"remove it, and rebuild with: {bundle.rebuild}"
        )
        report = BuildReport.model_validate_json(json.dumps(content))
    except (OSError, ValidationError, ValueError):
        return None
    return report if report.bundle == bundle.manifest.id else None
