"""Prompts of the evaluation, and clips made of them by the runtime; no torch is needed here."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.shapes.adherence import Adherence, adherence
from benchmarks.shapes.judge import read
from benchmarks.shapes.scene import Scene, caption, draw
from flowblending import FlowBlendingError
from flowblending.contracts.models import Model, check_letters
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.noise import draw_latents
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.cost import flops_of
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.output import check_file

Clip = npt.NDArray[np.float32]
"""[F, H, W, 3] in 0..1."""

MODELS = tuple(Model(name=name, letter=letter, components=(name,)) for name, letter in (("large", "L"), ("small", "S")))
"""Of the trained pair's bundles."""
CHECKPOINTS = Path("benchmarks/shapes/checkpoints")
"""Of the trained pair, from the repository's root."""
FEATURES = "features.safetensors"
SIZE, FRAMES = "64x64", 13
FRAME_RATE = 8.0
"""The size, length and rate that the pair is trained for, as in `benchmarks.shapes.networks`."""
STEPS, GUIDANCE = 40, 3.0
EARLY, LATE = 0.4, 0.2
"""Shares of the steps of a named schedule's first and last stage: Wan 2.1's."""
HELD_OUT = 4
"""One prompt in so many names a combination that training never shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked for.

    Args:
        scene: what the clip should show.
        held_out: whether the first shape is a combination that training never shows.
        seed: of the noise, which all schedules start from.
    """

    scene: Scene
    held_out: bool
    seed: int

    @property
    def text(self) -> str:
        """The scene's caption."""
        return caption(self.scene)

    def job(self, options: Job) -> Job:
        """The job of this prompt and noise with the other options of ``options``."""
        return dataclasses.replace(options, prompt=self.text, seed=self.seed)

    def judge(self, clip: Clip) -> Adherence:
        """Which of the prompt's attributes a clip shows."""
        return adherence(read(clip), self.scene)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A clip and how long it took.

    Args:
        frames: the clip.
        latents: [1, C, F, H, W], normalised.
        flops: of the transformers' calls that were made.
        loop: seconds of the sampling loop.
        engines: seconds of the engine calls in it.
        total: seconds from the prompt's text to the frames, with all engines loaded.
    """

    frames: Clip
    latents: npt.NDArray[np.float32]
    flops: float
    loop: float
    engines: float
    total: float


def check_checkpoints(folder: Path, names: Sequence[str] = ("large", "small", FEATURES)) -> None:
    """See that a folder is one that the training writes.

    Raises:
        FlowBlendingError: something is missing.
    """
    if missing := [name for name in names if not (folder / name).exists()]:
        raise FlowBlendingError(
            f"{folder} lacks {' and '.join(missing)}, which the trained pair consists of; give --checkpoints the "
            "folder that benchmarks.shapes.train has written."
        )


def make_folder(folder: Path) -> None:
    """Make a folder for results, before the long run that they come from.

    Raises:
        FlowBlendingError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowBlendingError(f"Cannot make the folder {folder} ({error.strerror}); give another --out.") from None
    check_file(folder / "result")


def evaluation_scenes(key: Sequence[int], count: int) -> list[Scene]:
    """Random scenes, the last quarter with held-out combinations; equal keys give equal scenes.

    Args:
        key: behind the 0 that `benchmarks.shapes.tasks` keeps for evaluation.
        count: how many.
    """
    generator = np.random.default_rng([0, *key])
    return [draw(generator, held_out=index >= count - count // HELD_OUT) for index in range(count)]


def prompts(count: int, seed: int) -> list[Prompt]:
    """The prompts of a run, each with noise of its own."""
    scenes = evaluation_scenes([seed], count)
    return [
        Prompt(scene=scene, held_out=index >= count - count // HELD_OUT, seed=100_000 * seed + index)
        for index, scene in enumerate(scenes)
    ]


def stages(name: str, steps: int = STEPS, early: float = EARLY, late: float = LATE) -> str:
    """A schedule's runs: ``LSL`` of 40 steps is ``L16 S16 L8`` with the pair's boundaries.

    Raises:
        UsageError: it is no schedule of that many steps.
    """
    check_letters(StageSchedule.letters_in(name), MODELS, name)
    return str(StageSchedule.parse(name, steps, early, late))


def make(pipeline: Pipeline, job: Job) -> Made:
    """Make one clip with a pipeline that stays open."""
    start = time.perf_counter()
    program = compile_job(job, pipeline.bundle.manifest)
    noise, generator = draw_latents(job.seed, program.latent_shape)
    sample = pipeline.sample(program, noise, pipeline.encode(job, program, warnings.warn))
    chunks = [chunk.frames for chunk in pipeline.decode(sample.latents, generator, floats=True)]
    frames = np.clip(np.concatenate(chunks, axis=1).transpose(1, 2, 3, 0) / 2 + 0.5, 0, 1)
    return Made(
        frames=np.ascontiguousarray(frames),
        latents=pipeline.device.download(sample.latents),
        flops=flops_of(sample.calls, program, pipeline.bundle.manifest),
        loop=sample.loop_seconds,
        engines=sample.engine_seconds,
        total=time.perf_counter() - start,
    )
