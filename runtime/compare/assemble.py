"""From figures to the report: of a bundle's runs, and of existing videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.compare import scoring
from flowblending.runtime.compare.columns import (
    COLUMNS,
    COSINE,
    FLOPS,
    PSNR,
    SECONDS,
    SMOOTHNESS,
    SSIM,
    WHOLE,
    Column,
)
from flowblending.runtime.compare.existing import ExistingVideo
from flowblending.runtime.compare.facts import common, facts_of_runs, facts_of_videos
from flowblending.runtime.compare.figures import Figures
from flowblending.runtime.compare.measure_existing import FrameMeasurements, VideoScores
from flowblending.runtime.compare.notes import busy_note, calibration_notes, existing_notes, trail_note, unmeasured
from flowblending.runtime.compare.report import (
    CalibrationDivergence,
    ComparedPrompt,
    ComparedRun,
    ComparedVideo,
    ComparisonReport,
    GivenPicture,
    Values,
    in_use,
)
from flowblending.runtime.compare.runs import Variant
from flowblending.runtime.compare.scoring import Asked, Scorer
from flowblending.runtime.jobs import job_geometry
from flowblending.runtime.measures.similarity import psnr_of
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.parse import OFF
from flowblending.system.printable import printable

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class PromptResult:
    """A bundle's runs of one prompt: the videos' files, from the report's folder, and figures, by variant's label.

    Attributes:
        given: the images and videos of the prompt.
    """

    job: Job
    given: tuple[GivenPicture, ...] = ()
    videos: Mapping[str, str]
    figures: Mapping[str, Figures]


def of_runs(
    made: Sequence[PromptResult],
    variants: Sequence[Variant],
    asked: Asked,
    bundle: Bundle,
    *,
    machine: str,
    divergence: CalibrationDivergence | None = None,
    distances: Mapping[str, Values] | None = None,
) -> ComparisonReport:
    """The report of a bundle's runs.

    Args:
        machine: what the times were measured on.
        distances: of each run's videos as a set, by its label and the set scorer's key.
    """
    first = {
        variant.label: [each.figures[variant.label] for each in made if variant.label in each.figures]
        for variant in variants
    }
    manifest = bundle.manifest
    geometry, every = job_geometry(made[0].job, manifest), [figures for found in first.values() for figures in found]
    frame_rates = {each.job.frame_rate or manifest.pipeline.frame_rate for each in made}
    cases = tuple(
        ComparedPrompt(
            title=each.job.prompt,
            note=f"seed {each.job.seed}",
            given=each.given,
            clips={label: _clip(each.videos[label], figures) for label, figures in each.figures.items()},
        )
        for each in made
    )
    runs = tuple(
        ComparedRun(
            label=variant.label,
            schedule=variant.schedule,
            cache="" if variant.cache == OFF else variant.cache,
            stages=common(figures.stages for figures in first[variant.label]),
            computed=common(figures.computed for figures in first[variant.label]) if first[variant.label] else "",
        )
        for variant in variants
    )
    return ComparisonReport(
        name=printable(Path(bundle.folder.absolute().name)),
        subtitle="The same noise for all runs of a prompt; everything is measured against "
        f"{variants[0].label}, the {manifest.models[0].name} model at every step.",
        facts=facts_of_runs(bundle, geometry, every, prompts=len(made), machine=machine),
        runs=runs,
        models={letter: model.name for letter, model in manifest.letters.items()},
        cases=cases,
        columns=_all_columns(asked, [figures.scores for figures in every], cases, distances or {}),
        notes=(
            *unmeasured(asked),
            *calibration_notes(manifest, variants, divergence),
            "PSNR and SSIM are of the decoded 8-bit frames before they are compressed. A PSNR of runs that equal the "
            "reference on some prompts is the mean over the others.",
            *trail_note(geometry),
        ),
        frame_rate=min(frame_rates, default=manifest.pipeline.frame_rate),
        sets=distances or {},
        divergence=divergence,
        warnings=tuple(busy_note([figures.seconds for figures in every], machine)),
    )


@dataclass(frozen=True, kw_only=True)
class MeasuredVideo:
    """An existing video, its figures, and the page's copy of it, from the report's folder."""

    video: ExistingVideo
    found: FrameMeasurements
    scored: VideoScores
    copy: str


def of_videos(
    measured: Sequence[MeasuredVideo],
    *,
    asked: Asked,
    distances: Mapping[str, Values],
    warnings: Sequence[str] = (),
) -> ComparisonReport:
    """The report of existing videos, of which the first is the reference.

    Args:
        distances: of each video's frames as a set, by its label and the set scorer's key.
        warnings: sentences on the videos that are not among them.
    """
    clips = {}
    for each in measured:
        found = each.found
        values = _frame_values(found.smoothness, found.error, found.ssim) | _score_values(each.scored.scores)
        clips[each.video.label] = ComparedVideo(video=each.copy, values=values)
    videos = [each.video for each in measured]
    prompts = [video.about.get("prompt", "") for video in videos]
    cases = (ComparedPrompt(title=common(prompts) if all(prompts) else "", clips=clips),)
    first = videos[0]
    runs = tuple(
        ComparedRun(
            label=video.label,
            schedule=video.label,
            stages=", ".join(video.about[key] for key in ("schedule", "cache") if key in video.about),
        )
        for video in videos
    )
    return ComparisonReport(
        name=f"{first.label} and {len(videos) - 1} more",
        subtitle=f"Existing videos, measured against {first.label}.",
        facts=facts_of_videos(videos),
        runs=runs,
        cases=cases,
        columns=_all_columns(asked, [each.scored.scores for each in measured], cases, distances),
        notes=(
            *unmeasured(asked, single=True),
            "Times, FLOPs and latents are known of runs that fb-compare makes itself, not of existing videos.",
            *existing_notes(videos),
        ),
        frame_rate=first.frame_rate,
        sets=distances,
        warnings=tuple(warnings),
    )


def _clip(video: str, figures: Figures) -> ComparedVideo:
    seconds, against = figures.seconds, figures.against
    values = {
        SECONDS: seconds["sampling"],
        WHOLE: seconds["text"] + seconds["sampling"] + seconds["vae"],
        **({FLOPS: figures.flops / 1e12} if figures.flops else {}),
        **_frame_values(
            figures.smoothness, None if against is None else against.error, None if against is None else against.ssim
        ),
        **({} if against is None else {COSINE: against.cosine}),
        **_score_values(figures.scores),
    }
    return ComparedVideo(video=video, values=values, steps=() if against is None else against.steps)


def _frame_values(smoothness: float | None, error: float | None, ssim: float | None) -> dict[str, float]:
    values = {PSNR: None if error is None else psnr_of(error), SSIM: ssim, SMOOTHNESS: smoothness}
    return {key: value for key, value in values.items() if value is not None}


def _score_values(scores: Scores) -> dict[str, float]:
    return {f"{key}/{name}": value for key, given in scores.items() for name, value in given.items()}


def _all_columns(
    asked: Asked, every: Sequence[Scores], cases: Sequence[ComparedPrompt], distances: Mapping[str, Values]
) -> tuple[Column, ...]:
    """Those of which there are figures."""
    there = {key for values in distances.values() for key in values}
    return (
        *in_use([*COLUMNS, *_columns(asked.scorers, every)], cases),
        *(_column(scorer.key, scorer.column, digits=2) for scorer in asked.sets if scorer.key in there),
    )


def _columns(scorers: Sequence[Scorer], every: Sequence[Scores]) -> list[Column]:
    columns = []
    for scorer in scorers:
        names = list(dict.fromkeys(name for scores in every for name in scores.get(scorer.key, {})))
        for name, shown in zip(names, scorer.columns(names), strict=True):
            columns.append(_column(f"{scorer.key}/{name}", shown, digits=4))
    return columns


def _column(key: str, shown: scoring.ScoreColumn, *, digits: int) -> Column:
    return Column(
        key=key,
        heading=shown.heading,
        unit="%" if shown.share else "",
        digits=digits,
        about=shown.about,
        better=shown.better,
        relative=shown.relative,
    )
