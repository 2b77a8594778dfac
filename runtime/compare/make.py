"""Every run of every prompt, told to the terminal, and the page that grows with it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from flowblending import DeviceError, DiskError, FlowBlendingError, OutOfMemoryError
from flowblending.runtime.compare.assemble import PromptResult, of_runs
from flowblending.runtime.compare.calibrated import divergence_of
from flowblending.runtime.compare.compare import Comparison
from flowblending.runtime.compare.given import given_pictures
from flowblending.runtime.compare.layout import write
from flowblending.runtime.compare.report import ComparisonReport
from flowblending.runtime.compare.runs import Variant
from flowblending.runtime.compare.scoring import Asked
from flowblending.runtime.compare.sets import Features, set_distances
from flowblending.runtime.measures.function import MeasureError
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.run import VideoRun
from flowblending.system.console import Console

NOW = "now"
"""The board's row for the run at work."""


def make_all(
    pipeline: Pipeline, *, jobs: Sequence[Job], variants: Sequence[Variant], asked: Asked, out: Path, console: Console
) -> tuple[ComparisonReport, int]:
    """Make what is missing; the page is written after each prompt. Returns the report, and how many runs failed.

    Raises:
        MeasureError: a scorer failed.
        DeviceError: an engine or the GPU cannot be used. What was made is kept.
        OutOfMemoryError: some run does not fit; none has been made then.
        FlowBlendingError: something cannot be written.
    """
    made: list[PromptResult] = []
    failed, total = 0, len(jobs) * len(variants)
    machine = pipeline.device.kind
    if pipeline.machine.threads is not None:
        machine += f", {pipeline.machine.threads} thread{'s' if pipeline.machine.threads > 1 else ''}"
    divergence = divergence_of(pipeline.bundle)
    with console.board("comparing", total=total, rows=[NOW]) as board:
        comparison = Comparison(
            pipeline,
            out,
            variants=variants,
            scorers=asked.scorers,
            sets=asked.sets,
            warn=console.warn,
            on_step=lambda label, done, of: board.show(NOW, label, done, of),
        )
        _check_memory(pipeline, comparison, jobs, variants)
        for number, job in enumerate(jobs):
            videos, figures = {}, {}
            for index, variant in enumerate(variants):
                board.show(NOW, variant.label, 0, 0)
                try:
                    figures[variant.label] = comparison.run(job, variant)
                    videos[variant.label] = str(comparison.files(job, variant).video.relative_to(out))
                except (MeasureError, DeviceError, DiskError):
                    raise  # every other run would meet it too
                except FlowBlendingError as error:
                    failed += 1
                    console.warn(f"{variant.label} of {job.prompt[:60]!r} failed: {error}")
                    if variant == variants[0]:
                        console.warn("its other runs are left out, since there is nothing to measure them against.")
                        break
                board.left(total - number * len(variants) - index - 1)
            made.append(PromptResult(job=job, given=given_pictures(job), videos=videos, figures=figures))
            # Distances of sets are computed once, at the end.
            last = number + 1 == len(jobs)
            distances = _distances(comparison, made, variants, asked) if last else {}
            report = of_runs(
                made, variants, asked, pipeline.bundle, machine=machine, divergence=divergence, distances=distances
            )
            write(out, report)
    return report, failed


def _check_memory(pipeline: Pipeline, comparison: Comparison, jobs: Sequence[Job], variants: Sequence[Variant]) -> None:
    """Plan every run that is still to be made, before the first of them."""
    for job, variant in itertools.product(jobs, variants):
        if not comparison.files(job, variant).video.exists():
            try:
                VideoRun(pipeline, variant.job(job)).plan()
            except OutOfMemoryError as error:
                raise OutOfMemoryError(f"{variant.label}: {error}") from None


def _distances(
    comparison: Comparison, made: Sequence[PromptResult], variants: Sequence[Variant], asked: Asked
) -> dict[str, dict[str, float]]:
    by_label = {variant.label: variant for variant in variants}

    def read(key: str, label: str, prompt: int) -> Features | None:
        each = made[prompt]
        return comparison.files(each.job, by_label[label]).read_features(key) if label in each.figures else None

    return set_distances(asked.sets, list(by_label), len(made), read)
