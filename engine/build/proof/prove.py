"""``fb-build-engines --prove BUNDLE``: what of a bundle's report only its own GPU can tell.

Every engine is run on the inputs that the build kept, and compared with what torch gave there; so is the whole
trajectory of the pair. That is the runtime's work, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.engine.backends.gpu import check_architecture, gpu_architecture
from flowblending.engine.backends.registry import gpu_components
from flowblending.engine.build.proof.pair import PairFacts, allowed
from flowblending.engine.build.proof.report import BuildReport, Inspected, make_report, read_report, write_report
from flowblending.engine.bundle.bundle import TRAJECTORY, Bundle, open_bundle
from flowblending.system.shell import command
from flowblending.system.subprocess_call import EndedError, call_in_subprocess

_MODULE = "flowblending.engine.build.proof.prove_worker"


@dataclass(frozen=True, kw_only=True)
class ProveRequest:
    """What to run.

    Attributes:
        reference_outputs: by component, the file of
            `flowblending.export.verify.reference_outputs.ReferenceRecorder`; absolute.
        trajectory: of the pair, as `flowblending.engine.build.proof.pair_build` wrote it; absolute.
            None to leave it out.
        allowed: by model, the largest difference of its velocities that passes.
    """

    bundle: Path
    reference_outputs: Mapping[str, Path]
    trajectory: Path | None
    allowed: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ProveResult:
    """What was found; see `Inspected`."""

    inspected: Inspected
    pair: PairFacts | None


def check_device(bundle: Bundle) -> None:
    """Refuse a machine without the GPU that a bundle's plans are for.

    Raises:
        FlowBlendingError: in one sentence, with what to do.
    """
    plans = {name: bundle.manifest.components[name] for name in gpu_components(bundle.manifest)}
    architecture = gpu_architecture()
    if plans and architecture is None:
        targets = sorted({target for each in plans.values() for target in each.targets})
        raise FlowBlendingError(
            f"{bundle.folder} holds plans for {' and '.join(targets) or 'an NVIDIA GPU'}, which only such a GPU can "
            f"prove, and no CUDA driver or NVIDIA GPU was found; run "
            f"{command('fb-build-engines', '--prove', bundle.folder)} there."
        )
    for name, each in plans.items():
        check_architecture(name, each.targets, architecture)


def prove_bundle(folder: Path, progress: Callable[[str], None]) -> BuildReport:
    """Run a bundle's engines, and write the report anew with what was found.

    Raises:
        FlowBlendingError: there is no whole bundle or no report of it, not the GPU that its plans are for, or an
            engine fails.
    """
    bundle = open_bundle(folder)
    # What takes no time comes before reading gigabytes.
    check_device(bundle)
    bundle.verify()
    report = read_report(bundle)
    if report is None:
        raise FlowBlendingError(f"{folder} has no report of this version to complete; rebuild with: {bundle.rebuild}")
    absolute = folder.absolute()
    trajectory = absolute / TRAJECTORY
    request = ProveRequest(
        bundle=absolute,
        reference_outputs={name: absolute / proof.golden for name, proof in report.components.items() if proof.golden},
        trajectory=trajectory if trajectory.is_file() else None,
        allowed=allowed(bundle.manifest),
    )
    try:
        result: ProveResult = call_in_subprocess(_MODULE, request, progress)
    except EndedError as end:
        how = "was killed, most likely because memory ran out" if end.killed else f"ended with {end.how} ({end.last})"
        raise FlowBlendingError(f"The proof {how}; stop other programs, or use a machine with more memory.") from None
    completed = make_report(bundle, slots=report.slots, pair=result.pair or report.pair, inspected=result.inspected)
    write_report(completed, folder)
    return completed
