"""One request on an open pipeline: what the model in Triton does, without Triton."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import TEXT_ENCODER, VAE
from flowblending.contracts.program import Program
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.runtime.generate import Clock, video_metadata
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.media.video import Metadata, VideoWriter, open_writer
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.sampler.binding import Conditions
from flowblending.runtime.sampler.loop import AHEAD, SampleResult, StepEvent
from flowblending.runtime.serve.triton.request import Arrays, VideoRequest, read_request
from flowblending.runtime.serve.triton.signature import FRAMES, LATENTS, MP4, MP4_BASE64
from flowblending.system.scratch import scratch

_VIDEO = "video.mp4"
_FRAMES = "frames.npy"


class Respond(Protocol):
    """Sends one response: outputs by name, and whether they are the last."""

    def __call__(self, outputs: Arrays, *, last: bool = False) -> None:
        """Send it."""
        ...


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


def answer(pipeline: Pipeline, arrays: Arrays, respond: Respond, cancelled: Callable[[], bool]) -> None:
    """Serve one request: a response per step, then one with the result.

    Args:
        arrays: the request's inputs.
        respond: sends one response; see `signature.outputs`.
        cancelled: whether the client has gone; asked between the steps and between decoded chunks.

    Raises:
        Cancelled: the client has gone; what was under way has finished.
        FlowBlendingError: the request is wrong, or the work failed.
    """
    request = read_request(arrays, pipeline.bundle.manifest)
    program = compile_job(request.job, pipeline.bundle.manifest)
    _stop_if(cancelled)
    clock, warnings = Clock(), list[str]()

    def on_step(event: StepEvent) -> None:
        _stop_if(cancelled)
        if request.progress:
            respond(_step(event))

    with clock.measure("total"), scratch() as folder:
        noise = TorchNormal(request.job.seed)
        given = None if request.latents is None else pipeline.check_latents(request.latents, program.latent_shape)
        initial = noise.normal((1, *program.latent_shape)) if given is None else given
        metadata = video_metadata(pipeline, request.job, program, given)
        # Opened before the long work, so that what keeps a video from being written is known before it.
        with _writers(pipeline, request, program, metadata, folder) as writers:
            with clock.measure(TEXT_ENCODER):
                conditions = pipeline.encode(request.job, program, warnings.append)
            sample = _sample(pipeline, program, initial, conditions, on_step)
            for frames in clock.timed(VAE, pipeline.decode(sample.latents, noise)) if writers else ():
                _stop_if(cancelled)
                for writer in writers:
                    writer.write(frames)
        result = _result(pipeline, request, sample, Path(folder))
    clock.seconds |= sample.model_seconds
    report = {**metadata, "seconds": clock.seconds, "warnings": warnings}
    respond({**result, "report": _string(json.dumps(report))}, last=True)


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled


def _sample(
    pipeline: Pipeline,
    program: Program,
    latents: npt.NDArray[np.float32],
    conditions: Conditions,
    on_step: Callable[[StepEvent], None],
) -> SampleResult:
    """Run the program; an exception of ``on_step`` ends it after the steps that are under way."""
    with closing(pipeline.prepare(program, conditions).follow(latents, ahead=AHEAD)) as steps:
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                result: SampleResult = end.value
                return result
            on_step(event)


def _step(event: StepEvent) -> Arrays:
    return {
        "step": np.array([event.index + 1], np.int32),
        "steps": np.array([event.steps], np.int32),
        "stage": _string(event.model),
        "seconds": np.array([event.seconds], np.float64),
    }


@contextmanager
def _writers(
    pipeline: Pipeline, request: VideoRequest, program: Program, metadata: Metadata, folder: Path
) -> Iterator[list[VideoWriter]]:
    """What takes the decoded frames: none where only the latents were asked for."""
    names = []
    if {MP4, MP4_BASE64} & set(request.results):
        names.append(_VIDEO)
    if FRAMES in request.results:
        names.append(_FRAMES)
    geometry = geometry_of(pipeline.bundle.manifest.pipeline, program.latent_shape)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                open_writer(
                    folder / name,
                    width=geometry.width,
                    height=geometry.height,
                    frame_rate=pipeline.frame_rate(request.job),
                    metadata=metadata,
                )
            )
            for name in names
        ]


def _result(pipeline: Pipeline, request: VideoRequest, sample: SampleResult, folder: Path) -> Arrays:
    result: dict[str, npt.NDArray[np.generic]] = {}
    if LATENTS in request.results:
        result["latents"] = pipeline.device.download(sample.latents)
    if FRAMES in request.results:
        result["frames"] = np.load(folder / _FRAMES)
    if MP4_BASE64 in request.results:
        result["video"] = _string(base64.b64encode((folder / _VIDEO).read_bytes()))
    elif MP4 in request.results:
        result["video"] = _string((folder / _VIDEO).read_bytes())
    return result


def _string(value: str | bytes) -> npt.NDArray[np.object_]:
    return np.array([value.encode() if isinstance(value, str) else value], np.object_)
