"""From figures to the report: of a bundle's runs, and of existing videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending import __version__
from flowblending.engine.manifest import Manifest
from flowblending.runtime.cache.parse import OFF
from flowblending.runtime.compare.existing import Measured, Video
from flowblending.runtime.compare.figures import Figures
from flowblending.runtime.compare.report import (
    COLUMNS,
    COSINE,
    FLOPS,
    PSNR,
    SECONDS,
    SMOOTHNESS,
    SSIM,
    WHOLE,
    Case,
    Clip,
    Column,
    Report,
    Run,
    in_use,
)
from flowblending.runtime.compare.runs import Way
from flowblending.runtime.compare.sample import TRAIL
from flowblending.runtime.compare.scoring import Scorer
from flowblending.runtime.compare.similarity import psnr_of
from flowblending.runtime.jobs import Job

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A bundle's runs of one prompt: the videos' files, from the report's folder, and figures, by the way's label."""

    job: Job
    videos: Mapping[str, str]
    figures: Mapping[str, Figures]


def of_runs(
    made: Sequence[Made], ways: Sequence[Way], scorers: Sequence[Scorer], manifest: Manifest, machine: str
) -> Report:
    """The report of a bundle's runs.

    Args:
        machine: what the times were measured on.
    """
    first = {way.label: [each.figures[way.label] for each in made if way.label in each.figures] for way in ways}
    geometry, every = manifest.geometry, [figures for found in first.values() for figures in found]
    frame_rates = {each.job.frame_rate or manifest.pipeline.frame_rate for each in made}
    facts = (
        ("bundle", f"{manifest.id} ({manifest.pipeline.family})"),
        ("video", f"{geometry.width}×{geometry.height}, {geometry.frames} frames"),
        ("steps", _common(str(len(figures.computed)) for figures in every)),
        ("solver", _common(figures.solver for figures in every)),
        ("guidance", _common(f"{figures.guidance:g}" for figures in every)),
        ("prompts", str(len(made))),
        ("machine", machine),
        ("flowblending", __version__),
    )
    cases = tuple(
        Case(
            title=each.job.prompt,
            note=f"seed {each.job.seed}",
            clips={label: _clip(each.videos[label], figures) for label, figures in each.figures.items()},
        )
        for each in made
    )
    runs = tuple(
        Run(
            label=way.label,
            schedule=way.schedule,
            cache="" if way.cache == OFF else way.cache,
            stages=_common(figures.stages for figures in first[way.label]),
            computed=_common(figures.computed for figures in first[way.label]) if first[way.label] else "",
        )
        for way in ways
    )
    return Report(
        subtitle="The same noise for all runs of a prompt; everything is measured against "
        f"{ways[0].label}, the large model at every step.",
        facts=facts,
        runs=runs,
        cases=cases,
        columns=in_use([*COLUMNS, *_columns(scorers, [figures.scores for figures in every])], cases),
        notes=(
            *_notes(scorers),
            "PSNR and SSIM are of the decoded 8-bit frames before they are compressed. A PSNR of runs that equal the "
            "reference on some prompts is the mean over the others.",
            *_trail_note(manifest),
        ),
        frame_rate=min(frame_rates, default=manifest.pipeline.frame_rate),
    )


def of_videos(
    videos: Sequence[Video],
    measured: Sequence[Measured],
    scores: Sequence[Scores],
    placed: Sequence[str],
    scorers: Sequence[Scorer],
) -> Report:
    """The report of existing videos, of which the first is the reference."""
    labels = _labels([video.path for video in videos])
    clips = {}
    for label, figures, scored, file in zip(labels, measured, scores, placed, strict=True):
        values = _frame_values(figures.smoothness, figures.error, figures.ssim) | _score_values(scored)
        clips[label] = Clip(video=file, values=values)
    prompts = [video.about.get("prompt", "") for video in videos]
    cases = (Case(title=_common(prompts) if all(prompts) else "", clips=clips),)
    first = videos[0]
    runs = tuple(
        Run(
            label=label,
            schedule=label,
            stages=", ".join(video.about[key] for key in ("schedule", "cache") if key in video.about),
        )
        for label, video in zip(labels, videos, strict=True)
    )
    rates = [f"{video.frame_rate:g}" for video in videos]
    return Report(
        subtitle=f"Existing videos, measured against {labels[0]}.",
        facts=(
            ("video", f"{first.width}×{first.height}, {measured[0].frames} frames"),
            ("frames per second", _common(rates)),
            ("flowblending", __version__),
        ),
        runs=runs,
        cases=cases,
        columns=in_use([*COLUMNS, *_columns(scorers, scores)], cases),
        notes=(
            *_notes(scorers),
            "Times, FLOPs and latents are known of runs that fb-compare makes itself, not of existing videos.",
            *_foreign(videos),
        ),
        frame_rate=first.frame_rate,
    )


def _clip(video: str, figures: Figures) -> Clip:
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
    return Clip(video=video, values=values, steps=() if against is None else against.steps)


def _frame_values(smoothness: float | None, error: float | None, ssim: float | None) -> dict[str, float]:
    values = {PSNR: None if error is None else psnr_of(error), SSIM: ssim, SMOOTHNESS: smoothness}
    return {key: value for key, value in values.items() if value is not None}


def _score_values(scores: Scores) -> dict[str, float]:
    return {f"{key}/{name}": value for key, given in scores.items() for name, value in given.items()}


def _columns(scorers: Sequence[Scorer], every: Sequence[Scores]) -> list[Column]:
    columns = []
    for scorer in scorers:
        names = list(dict.fromkeys(name for scores in every for name in scores.get(scorer.key, {})))
        for name, shown in zip(names, scorer.columns(names), strict=True):
            columns.append(
                Column(
                    key=f"{scorer.key}/{name}",
                    heading=shown.heading,
                    unit="%" if shown.share else "",
                    digits=4,
                    about=shown.about,
                    relative=shown.relative,
                )
            )
    return columns


def _notes(scorers: Sequence[Scorer]) -> list[str]:
    """What was not measured, and how it could have been."""
    kinds = {scorer.key.split()[0] for scorer in scorers}
    notes = []
    if "judge" not in kinds:
        notes.append("Prompt adherence was not measured: no judge was given (--judge module:function).")
    absent = [name for name in ("clip", "dino") if name not in kinds]
    if absent:
        names, options = " and ".join(name.upper() for name in absent), " and ".join(f"--{name} DIR" for name in absent)
        notes.append(f"{names} likeness was not measured: no local model was given ({options}).")
    notes.append(
        "LPIPS, FID and FVD are not measured by this version; --vbench DIR lays the videos out for VBench, and a "
        "judge may ask any model about a video."
    )
    return notes


def _trail_note(manifest: Manifest) -> list[str]:
    size = 1
    for each in manifest.geometry.latent_shape:
        size *= each
    if size <= TRAIL:
        return []
    return [f"The cosines by step are of {TRAIL} of the latents' {size} numbers, the same ones for all runs."]


def _foreign(videos: Sequence[Video]) -> list[str]:
    names = [video.path.name for video in videos if not video.playable]
    if not names:
        return []
    return [f"For the page, {' and '.join(names)} was written anew in H.264; the figures are the original's."]


def _labels(paths: Sequence[Path]) -> list[str]:
    """The files' names, or as much of their paths as tells them apart."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [str(Path(*path.parts[-depth:])) for path in paths]


def _common(values: Iterable[str]) -> str:
    """The value that all share, or several, in one line."""
    found = list(dict.fromkeys(values))
    return ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
