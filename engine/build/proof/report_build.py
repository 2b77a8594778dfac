"""The report of a bundle that is being built."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowblending import FlowBlendingError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.build.proof.pair import slots_of
from flowblending.engine.build.proof.pair_build import measure_pair
from flowblending.engine.build.proof.report import BuildReport, make_report, read_report, write_report
from flowblending.engine.build.proof.table import show_report
from flowblending.engine.bundle.bundle import TRAJECTORY, Bundle
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.system.console import Console

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part


def add_report(
    bundle: Bundle, parts: Mapping[str, Part], prompt: str, old: Bundle | None, console: Console
) -> BuildReport:
    """Write ``report.json`` into a bundle's folder.

    Args:
        bundle: its files are there.
        parts: its components.
        prompt: to measure the pair on.
        old: the bundle that this one replaces; of the same one, what was measured on the whole pair still holds.
        console: shown the report if it fails.

    Raises:
        FlowBlendingError: a claim does not hold.
    """
    earlier = None if old is None else read_report(old)
    if old is not None and earlier is not None and earlier.bundle == bundle.manifest.id:
        if (old.folder / TRAJECTORY).is_file():
            shutil.copyfile(old.folder / TRAJECTORY, bundle.folder / TRAJECTORY)
        report = make_report(bundle, slots=earlier.slots, pair=earlier.pair, inspected=earlier.inspected)
    else:
        with console.phase("Measuring the pair") as progress:
            program = default_program(bundle.manifest)
            pair = measure_pair(bundle, parts, program, prompt, progress)
            report = make_report(bundle, slots=slots_of(program), pair=pair)
    check_report(report, console)
    write_report(report, bundle.folder)
    return report


def default_program(manifest: Manifest) -> Mapping[str, Any]:
    """The program that ``fb-run`` runs unless told otherwise, as its JSON (file contract 3)."""
    return compile_job(Job(prompt=""), manifest).to_json()


def check_report(report: BuildReport, console: Console) -> None:
    """Show a report of which a claim does not hold, and refuse it.

    Raises:
        FlowBlendingError: likewise.
    """
    if report.failed:
        show_report(report, console)
        first = report.failed[0]
        more = f", and {len(report.failed) - 1} more" if len(report.failed) > 1 else ""
        raise FlowBlendingError(
            f"Of {first.component} it cannot be claimed: {first.claim} ({first.detail}){more}; "
            "try another --precision, --target or --backend."
        )
