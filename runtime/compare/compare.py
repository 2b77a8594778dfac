"""Makes what is not there yet: every way's video of a prompt, its figures, and what was asked for since.

Two videos are in memory at a time, the reference's and the one at work, as bytes; everything else is on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowblending import FlowBlendingError
from flowblending.runtime.compare.figures import Against, Figures, Latents, RunFiles
from flowblending.runtime.compare.runs import REFERENCE, Way, file_stem
from flowblending.runtime.compare.sample import Sampled, sample, warm_up
from flowblending.runtime.compare.scoring import Frames, Scorer
from flowblending.runtime.compare.similarity import Likeness, Smoothness, cosine
from flowblending.runtime.jobs import Job
from flowblending.runtime.noise import TorchNormal
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.video import open_writer, to_uint8
from flowblending.runtime.workers import sweep


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
        ways: Sequence[Way],
        scorers: Sequence[Scorer],
        warn: Callable[[str], None],
        on_step: Callable[[str, int, int], None],
    ) -> None:
        self._pipeline = pipeline
        self._folder = folder
        self._both = any("S" in way.schedule for way in ways)
        self._scorers = scorers
        # Times depend on these, so runs elsewhere have other names.
        self._place = f"{pipeline.device.kind} {pipeline.threads}"
        self._warn = warn
        self._on_step = on_step
        self._warm = False
        self._job: Job | None = None
        self._reference: Reference | None = None

    def files(self, job: Job, way: Way) -> RunFiles:
        """Where a run of a prompt is, or will be."""
        stem = file_stem(job, way, self._pipeline.bundle.manifest, self._place)
        return RunFiles(folder=self._folder, stem=stem)

    def run(self, job: Job, way: Way) -> Figures:
        """The figures of one run; makes of it what is not there yet.

        Raises:
            FlowBlendingError: a model gave a non-finite velocity, a scorer failed, or a file cannot be written.
        """
        files = self.files(job, way)
        figures = files.read()
        missing = [each for each in self._scorers if figures is None or each.key not in figures.scores]
        if figures is not None and not missing:
            return figures
        alone = way == Way(schedule=REFERENCE)
        reference = None if alone else self._reference_of(job)
        kept = None if figures is None else files.read_latents(trail=alone)
        if figures is None or kept is None:
            return self._make(job, way, files, reference)
        frames = self._decode(kept[0], job)
        if kept[1] is not None:
            self._keep(job, Reference(frames=frames, latents=kept[0], trail=kept[1]))
        scores = {**figures.scores, **self._score(frames, job, reference, missing)}
        figures = figures.model_copy(update={"scores": scores})
        files.write(figures)
        return figures

    def _reference_of(self, job: Job) -> Reference:
        """The reference of a prompt: of the last run, from the disk, or made anew."""
        if self._job != job or self._reference is None:
            way = Way(schedule=REFERENCE)
            files = self.files(job, way)
            kept = files.read_latents(trail=True) if files.read() is not None else None
            if kept is None or kept[1] is None:
                self._make(job, way, files, None)
            else:
                self._keep(job, Reference(frames=self._decode(kept[0], job), latents=kept[0], trail=kept[1]))
        assert self._reference is not None
        return self._reference

    def _keep(self, job: Job, reference: Reference) -> None:
        self._job, self._reference = job, reference

    def _make(self, job: Job, way: Way, files: RunFiles, reference: Reference | None) -> Figures:
        if not self._warm:
            warm_up(self._pipeline, job, both=self._both, warn=self._warn)
            self._warm = True
        sweep(files.video)
        made = sample(
            self._pipeline,
            way.job(job),
            warn=self._warn,
            on_step=lambda done, of: self._on_step(way.label, done, of),
        )
        files.write_latents(made.latents, made.trail if reference is None else None)
        start = time.perf_counter()
        frames = self._decode(made.latents, job)
        decoding = time.perf_counter() - start
        self._write_video(frames, job, files, made)
        if reference is None:
            self._keep(job, Reference(frames=frames, latents=made.latents, trail=made.trail))
        figures = Figures(
            stages=made.program.schedule,
            computed=made.computed,
            solver=made.program.solver,
            guidance=made.program.guidance,
            flops=made.flops,
            seconds={**made.seconds, "vae": decoding},
            frames=len(frames),
            smoothness=_smoothness(frames),
            against=None if reference is None else _against(made, frames, reference),
            scores={},
        )
        files.write(figures)  # a scorer that fails costs no run
        if self._scorers:
            scores = self._score(frames, job, reference, self._scorers)
            figures = figures.model_copy(update={"scores": scores})
            files.write(figures)
        return figures

    def _decode(self, latents: Latents, job: Job) -> Frames:
        """The frames of latents as bytes, [F, H, W, 3]."""
        pipeline = self._pipeline
        generator = TorchNormal(job.seed)
        pipeline.noise(generator)  # a decoder that adds noise draws on after the initial latents
        chunks = []
        for chunk in pipeline.decode(pipeline.device.upload(latents), generator):
            if not np.isfinite(chunk).all():
                raise FlowBlendingError("The VAE decoder gave a non-finite pixel; build it in bf16 or fp32.")
            chunks.append(to_uint8(chunk))
        return np.concatenate(chunks)

    def _write_video(self, frames: Frames, job: Job, files: RunFiles, made: Sampled) -> None:
        _, height, width, _ = frames.shape
        rate = self._pipeline.frame_rate(job)
        with open_writer(files.video, width=width, height=height, frame_rate=rate, metadata=made.metadata) as writer:
            for frame in frames:
                writer.write(frame.transpose(2, 0, 1)[:, None].astype(np.float32) / np.float32(127.5) - np.float32(1))

    def _score(
        self, frames: Frames, job: Job, reference: Reference | None, scorers: Sequence[Scorer]
    ) -> dict[str, dict[str, float]]:
        other = None if reference is None else reference.frames
        return {each.key: dict(each.score(frames, job.prompt, other)) for each in scorers}


def _smoothness(frames: Frames) -> float | None:
    smoothness = Smoothness()
    for frame in frames:
        smoothness.add(frame)
    return smoothness.value


def _against(made: Sampled, frames: Frames, reference: Reference) -> Against:
    likeness = Likeness()
    for frame, other in zip(frames, reference.frames, strict=True):
        likeness.add(frame, other)
    pairs = zip(made.trail, reference.trail, strict=True)
    return Against(
        error=likeness.error,
        ssim=likeness.ssim,
        cosine=cosine(made.latents, reference.latents),
        steps=tuple(cosine(ours, theirs) for ours, theirs in pairs),
    )
