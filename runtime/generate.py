"""One job from prompt to file, shown on a console."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from flowblending.contracts.program import GIVEN, LATENTS, Program
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.events import (
    EncodeEvent,
    FinishedEvent,
    FramesEvent,
    LatentsEvent,
    LoadEvent,
    RunEvent,
    SamplingEvent,
    WarningEvent,
)
from flowblending.runtime.media.tensor_file import write_tensors
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.loop import SampleResult, StepEvent
from flowblending.runtime.stage_times import remember
from flowblending.system.console import Console
from flowblending.system.output import check_file

_Shown = TypeVar("_Shown")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished job: its program, the final latents [1, C, F, H, W], and seconds by stage."""

    program: Program
    sample: SampleResult
    latents: npt.NDArray[np.float32]
    seconds: Mapping[str, float]


def generate(
    pipeline: Pipeline,
    job: Job,
    out: Path | None,
    console: Console,
    *,
    latents: npt.NDArray[np.generic] | None = None,
    latents_out: Path | None = None,
) -> Outcome:
    """Make one video.

    Args:
        out: where to write it (.mp4, .npy, or a folder of PNG files); None writes no video.
        latents: initial latents in place of the seed's noise, float32 [1, C, F, H, W].
        latents_out: where to write the final latents (.npy), float32 [1, C, F, H, W].

    Raises:
        FlowBlendingError: a job that makes no program, latents that do not fit, non-finite velocities,
            or a file that cannot be written. What was at ``out`` before stays as it was.
    """
    run = VideoRun(
        pipeline,
        job,
        latents=latents,
        outputs=[] if out is None else [out],
        latents_out=latents_out,
        decode=out is not None,
        open_first=True,
    )
    finished = None
    with contextlib.closing(run.events()) as events, _Display(run, console, decode=out is not None) as display:
        for event in events:
            display.show(event)
            if isinstance(event, FinishedEvent):
                finished = event
    assert finished is not None, "a run ends with its last event"
    remember(pipeline, run.program, finished.sample, finished.seconds)
    return Outcome(
        program=run.program,
        sample=finished.sample,
        latents=pipeline.device.download(finished.sample.latents),
        seconds=finished.seconds,
    )


class _Display:
    """Shows a run's events: one live line at a time, for the stage that it is in."""

    def __init__(self, run: VideoRun, console: Console, *, decode: bool) -> None:
        self._run = run
        self._console = console
        self._decode = decode
        self._line = contextlib.ExitStack()
        self._load: Callable[[str], None] | None = None
        self._step: Callable[[int, str, float], None]
        self._frames: Callable[[int], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def show(self, event: RunEvent) -> None:
        """Show one event."""
        match event:
            case LoadEvent():
                if self._load is None:
                    self._load = self._begin(self._console.phase("loading engines"))
                self._load(event.component)
            case EncodeEvent():
                self._begin(self._console.phase("encoding the prompt"))
            case WarningEvent():
                self._console.warn(event.message)
            case SamplingEvent():
                self._step = self._begin(self._console.steps(len(self._run.program.steps)))
            case StepEvent():
                self._step(event.index + 1, event.model, event.seconds)
            case LatentsEvent() if self._decode:
                self._frames = self._begin(self._console.progress("decoding", total=self._run.geometry.frames))
            case FramesEvent():
                self._frames(event.count)

    def _begin(self, line: contextlib.AbstractContextManager[_Shown]) -> _Shown:
        """Show another line in place of the one before."""
        self._line.close()
        self._load = None
        return self._line.enter_context(line)


def write_inputs(
    pipeline: Pipeline,
    job: Job,
    out: Path,
    console: Console,
    *,
    latents: npt.NDArray[np.generic] | None = None,
) -> None:
    """Write what a job's sampling starts from, for an interpreter that has neither text encoder nor VAE encoder.

    Args:
        out: a safetensors file with ``latents`` float32 [1, C, F, H, W], ``BRANCH.INPUT`` (``cond.text``) for every
            condition of every branch, and ``given.SLOT`` for every slot that the program is given.
        latents: initial latents in place of the seed's noise, float32 [1, C, F, H, W].

    Raises:
        FlowBlendingError: a job that makes no program, latents that do not fit, or a file that cannot be written.
    """
    check_file(out)
    run = VideoRun(pipeline, job, latents=latents, decode=False)
    with console.phase("encoding what is given"):
        initial, conditions, held = run.start_of_sampling(console.warn)
    assert not isinstance(initial, Tensor), "an array was given, or drawn"
    arrays: dict[str, npt.NDArray[np.generic]] = {
        f"{branch}.{name}": pipeline.device.download(tensor)
        for branch, inputs in conditions.items()
        for name, tensor in inputs.items()
    }
    write_tensors(out, {LATENTS: initial, **arrays, **{f"{GIVEN}.{slot}": array for slot, array in held.items()}})
