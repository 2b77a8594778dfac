"""Makes what is not there yet: every variant's video of a prompt, its figures, and what was asked for since.

Two videos are in memory at a time, the reference's and the one at work, as bytes; everything else is on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending.contracts.manifest import Manifest
from flowblending.runtime.compare.figures import Against, Figures, Latents, RunFiles
from flowblending.runtime.compare.runs import Variant, file_stem, reference_schedule
from flowblending.runtime.compare.sample import Sampled, sample, warm_up
from flowblending.runtime.compare.scoring import Scorer, SetScorer
from flowblending.runtime.measures.networks import Frames
from flowblending.runtime.measures.similarity import Likeness, Smoothness, cosine
from flowblending.runtime.options import AUTO, Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.schedule import StageSchedule


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference's run of one prompt, to measure others against.

    Attributes:
        trail: of its latents; see `Sampled`.
    """

    frames: Frames
    latents: Latents
    trail: Latents


class Comparison:
    """The runs of a report.

    Args:
        folder: of the report.
        warn: told of prompts that are cut.
        on_step: told the run's label, how many of its steps are done, and of how many.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        *,
        variants: Sequence[Variant],
        scorers: Sequence[Scorer],
        sets: Sequence[SetScorer],
        warn: Callable[[str], None],
        on_step: Callable[[str, int, int], None],
    ) -> None:
        self._pipeline = pipeline
        self._folder = folder
        self._letters = _letters_of(variants, pipeline.bundle.manifest)
        self._alone = Variant(schedule=reference_schedule(pipeline.bundle.manifest))
        self._scorers = scorers
        self._sets = sets
        # Times depend on these, so runs elsewhere have other names.
        self._place = f"{pipeline.device.kind} {pipeline.machine.threads}"
        self._warn = warn
        self._on_step = on_step
        self._warm = False
        self._job: Job | None = None
        self._reference: Reference | None = None

    def files(self, job: Job, variant: Variant) -> RunFiles:
        """Where a run of a prompt is, or will be."""
        stem = file_stem(job, variant, self._pipeline.bundle.manifest, self._place)
        return RunFiles(folder=self._folder, stem=stem)

    def run(self, job: Job, variant: Variant) -> Figures:
        """The figures of one run; makes of it what is not there yet.

        Raises:
            FlowBlendingError: a model gave a non-finite velocity, a scorer failed, or a file cannot be written.
        """
        files = self.files(job, variant)
        figures = files.read()
        missing = [each for each in self._scorers if figures is None or each.key not in figures.scores]
        sets = [each for each in self._sets if files.read_features(each.key) is None]
        if figures is not None and not missing and not sets:
            return figures
        alone = variant == self._alone
        reference = None if alone else self._reference_of(job)
        kept = None if figures is None else files.read_latents(trail=alone)
        if figures is None or kept is None:
            return self._make(job, variant, files, reference)
        frames = self._pipeline.pixels(kept[0], job)
        if kept[1] is not None:
            self._keep(job, Reference(frames=frames, latents=kept[0], trail=kept[1]))
        return self._ask(files, figures, frames, job, reference, scorers=missing, sets=sets)

    def _reference_of(self, job: Job) -> Reference:
        """The reference of a prompt: of the last run, from the disk, or made anew."""
        if self._job != job or self._reference is None:
            variant = self._alone
            files = self.files(job, variant)
            kept = files.read_latents(trail=True) if files.read() is not None else None
            if kept is None or kept[1] is None:
                self._make(job, variant, files, None)
            else:
                self._keep(job, Reference(frames=self._pipeline.pixels(kept[0], job), latents=kept[0], trail=kept[1]))
        assert self._reference is not None
        return self._reference

    def _keep(self, job: Job, reference: Reference) -> None:
        self._job, self._reference = job, reference

    def _make(self, job: Job, variant: Variant, files: RunFiles, reference: Reference | None) -> Figures:
        if not self._warm:
            warm_up(self._pipeline, job, letters=self._letters, warn=self._warn)
            self._warm = True
        made = sample(
            self._pipeline,
            variant.job(job),
            warn=self._warn,
            on_step=lambda done, of: self._on_step(variant.label, done, of),
            out=files.video,
        )
        files.write_latents(made.latents, made.trail if reference is None else None)
        if reference is None:
            self._keep(job, Reference(frames=made.frames, latents=made.latents, trail=made.trail))
        figures = Figures(
            stages=made.program.schedule,
            computed=made.computed,
            solver=made.program.solver,
            guidance=made.program.guidance,
            flops=made.flops,
            seconds=made.seconds,
            frames=len(made.frames),
            smoothness=_smoothness(made.frames),
            against=None if reference is None else _against(made, reference),
            scores={},
        )
        files.write(figures)  # a scorer that fails costs no run
        return self._ask(files, figures, made.frames, job, reference, scorers=self._scorers, sets=self._sets)

    def _ask(
        self,
        files: RunFiles,
        figures: Figures,
        frames: Frames,
        job: Job,
        reference: Reference | None,
        *,
        scorers: Sequence[Scorer],
        sets: Sequence[SetScorer],
    ) -> Figures:
        """Have a run's video scored, and keep what is said of it."""
        other = None if reference is None else reference.frames
        given = {each.key: dict(each.score(frames, job.prompt, other)) for each in scorers}
        if given:
            figures = figures.model_copy(update={"scores": {**figures.scores, **given}})
            files.write(figures)
        for each in sets:
            files.write_features(each.key, each.features(frames))
        return figures


def _letters_of(variants: Sequence[Variant], manifest: Manifest) -> list[str]:
    """Letters of every engine that variants may run, in the bundle's order."""
    asked = {letter for each in variants if each.schedule != AUTO for letter in StageSchedule.letters_in(each.schedule)}
    every = any(variant.schedule == AUTO for variant in variants)
    models = manifest.letters.values()
    engines = {engine for model in models if every or model.letter in asked for engine in model.components}
    alone = [model for model in models if len(model.components) == 1]
    return [model.letter for model in alone if model.components[0] in engines]


def _smoothness(frames: Frames) -> float | None:
    smoothness = Smoothness()
    for frame in frames:
        smoothness.add(frame)
    return smoothness.value


def _against(made: Sampled, reference: Reference) -> Against:
    likeness = Likeness()
    for frame, other in zip(made.frames, reference.frames, strict=True):
        likeness.add(frame, other)
    # A distilled model visits steps of its own, which cannot be set beside the reference's one by one.
    alike = len(made.trail) == len(reference.trail)
    pairs = zip(made.trail, reference.trail, strict=True) if alike else ()
    return Against(
        error=likeness.error,
        ssim=likeness.ssim,
        cosine=cosine(made.latents, reference.latents),
        steps=tuple(cosine(ours, theirs) for ours, theirs in pairs),
    )
