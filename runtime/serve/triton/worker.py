"""One request on an open pipeline: what the model in Triton does, without Triton."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flowblending.runtime.events import FinishedEvent, WarningEvent
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.loop import StepEvent
from flowblending.runtime.serve.triton.request import Arrays, VideoRequest, read_request
from flowblending.runtime.serve.triton.signature import FRAMES, LATENTS, MP4, MP4_BASE64
from flowblending.runtime.serve.uploads import Kept, keep
from flowblending.system.output import cannot_write
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


def answer(
    pipeline: Pipeline,
    arrays: Arrays,
    respond: Respond,
    cancelled: Callable[[], bool],
    parameters: Iterable[str] = (),
) -> None:
    """Serve one request: a response per step, then one with the result.

    Args:
        arrays: the request's inputs.
        respond: sends one response; see `signature.outputs`.
        cancelled: whether the client has gone; asked at every event, so between the steps and between decoded chunks.
        parameters: names of what came beside the inputs.

    Raises:
        Cancelled: the client has gone; what was under way has finished.
        FlowBlendingError: the request is wrong, or the work failed.
    """
    request = read_request(arrays, pipeline.bundle.manifest, parameters)
    with scratch() as folder:
        try:
            uploads = keep(request.uploads, folder)
        except OSError as error:
            raise cannot_write(folder, error) from None
        with uploads.told():
            _answer(pipeline, request, uploads, folder, respond=respond, cancelled=cancelled)


def _answer(
    pipeline: Pipeline,
    request: VideoRequest,
    uploads: Kept,
    folder: Path,
    *,
    respond: Respond,
    cancelled: Callable[[], bool],
) -> None:
    """Make the video; of what it takes and gives, files are in a folder."""
    warnings: list[str] = []
    files = [folder / name for name in _files(request)]
    job = dataclasses.replace(request.job, **uploads.fields)
    named = uploads.named(job)
    run = VideoRun(pipeline, job, latents=request.latents, named=named, outputs=files, decode=bool(files))
    with contextlib.closing(run.events()) as events:
        for event in events:
            if cancelled():
                raise Cancelled
            match event:
                case WarningEvent():
                    warnings.append(uploads.tell(event.message))
                case StepEvent() if request.progress:
                    respond(_step(event))
                case FinishedEvent():
                    result = _result(request, pipeline.device.download(event.sample.latents), folder)
                    report = {**run.metadata, "seconds": event.seconds, "warnings": warnings}
                    respond({**result, "report": _string(json.dumps(report))}, last=True)


def _step(event: StepEvent) -> Arrays:
    return {
        "step": np.array([event.index + 1], np.int32),
        "steps": np.array([event.steps], np.int32),
        "stage": _string(event.model),
        "seconds": np.array([event.seconds], np.float64),
    }


def _files(request: VideoRequest) -> list[str]:
    """What the decoded frames are written to: nothing where only the latents were asked for."""
    names = []
    if {MP4, MP4_BASE64} & set(request.results):
        names.append(_VIDEO)
    if FRAMES in request.results:
        names.append(_FRAMES)
    return names


def _result(request: VideoRequest, latents: npt.NDArray[np.float32], folder: Path) -> Arrays:
    result: dict[str, npt.NDArray[np.generic]] = {}
    if LATENTS in request.results:
        result["latents"] = latents
    if FRAMES in request.results:
        result["frames"] = np.load(folder / _FRAMES)
    if MP4_BASE64 in request.results:
        result["video"] = _string(base64.b64encode((folder / _VIDEO).read_bytes()))
    elif MP4 in request.results:
        result["video"] = _string((folder / _VIDEO).read_bytes())
    return result


def _string(value: str | bytes) -> npt.NDArray[np.object_]:
    return np.array([value.encode() if isinstance(value, str) else value], np.object_)
