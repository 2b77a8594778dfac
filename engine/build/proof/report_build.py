"""The report of a bundle that is being built."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.models import default_schedule
from flowblending.engine.build.proof.pair import slots_of
from flowblending.engine.build.proof.pair_build import measure_pair
from flowblending.engine.build.proof.report import BuildReport, make_report, read_report, write_report
from flowblending.engine.build.proof.short_run import BUNDLE
from flowblending.engine.build.proof.short_run_build import run_while_built
from flowblending.engine.build.proof.table import show_report
from flowblending.engine.bundle.bundle import TRAJECTORY, Bundle
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.console import Console

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part


def add_report(
    bundle: Bundle, out: Path, parts: Mapping[str, Part], prompt: str, *, old: Bundle | None, console: Console
) -> BuildReport:
    """Write ``report.json`` into a bundle's folder.

    Args:
        bundle: its files are there.
        out: what the user calls it.
        parts: its components.
        prompt: to measure the pair on, and to run the bundle once.
        old: the bundle that this one replaces; of the same one, what was measured on the whole pair still holds.
        console: shown the report if it fails.

    Raises:
        FlowBlendingError: a claim does not hold.
    """
    earlier = None if old is None else read_report(old)
    if earlier is not None and earlier.bundle != bundle.manifest.id:
        earlier = None
    with console.phase("Running the bundle") as progress:
        run = run_while_built(bundle, out, prompt, progress)
    if old is not None and earlier is not None:
        if (old.folder / TRAJECTORY).is_file():
            shutil.copyfile(old.folder / TRAJECTORY, bundle.folder / TRAJECTORY)
        run = earlier.run if run.reason and earlier.run is not None else run
        report = make_report(bundle, slots=earlier.slots, pair=earlier.pair, run=run, inspected=earlier.inspected)
    else:
        with console.phase("Measuring the pair") as progress:
            program = proof_program(bundle.manifest)
            pair = measure_pair(bundle, parts, program, prompt, progress)
            report = make_report(bundle, slots=slots_of(program), pair=pair, run=run)
    check_report(report, console)
    write_report(report, bundle.folder)
    return report


def proof_program(manifest: Manifest) -> Mapping[str, Any]:
    """What a pair is measured along, as the JSON of file contract 3.

    It is what ``fb-run`` runs unless told otherwise; where that leaves models out, stages of equal length of them all.
    """
    usual, first = Job(prompt=""), manifest.models[0]
    if not set(default_schedule(manifest.models)) >= {model.letter for model in manifest.models}:
        stages = " ".join(f"{model.letter}1" for model in (*manifest.models, first))
        runs = str(StageSchedule.scaled(stages, manifest.pipeline.steps))
        with contextlib.suppress(UsageError):  # of distilled models whose timesteps do not lie there
            return compile_job(Job(prompt="", schedule=runs), manifest).to_json()
    return compile_job(usual, manifest).to_json()


def check_report(report: BuildReport, console: Console) -> None:
    """Show a report of which a claim does not hold, and refuse it.

    Raises:
        FlowBlendingError: likewise.
    """
    if not report.failed:
        return
    show_report(report, console)
    for claim in report.failed:
        if claim.component == BUNDLE:
            raise FlowBlendingError(f"The bundle does not run: {claim.detail}")
    first = report.failed[0]
    more = f", and {len(report.failed) - 1} more" if len(report.failed) > 1 else ""
    raise FlowBlendingError(
        f"Of {first.component} it cannot be claimed: {first.claim} ({first.detail}){more}; "
        "try another --precision, --target or --backend."
    )
