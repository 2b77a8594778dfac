"""From a request's tensors to a job, with one sentence for whatever makes none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.runtime.jobs import Job
from flowblending.runtime.serve.triton.signature import MP4, RESULTS, Port, inputs

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What a client asks for.

    Attributes:
        job: the video.
        latents: initial latents float32 [1, C, F, H, W] in place of the seed's noise.
        results: of ``RESULTS``, what to answer.
        progress: whether to tell of every step.
    """

    job: Job
    latents: npt.NDArray[np.generic] | None
    results: tuple[str, ...]
    progress: bool


def read_request(arrays: Arrays, manifest: Manifest) -> VideoRequest:
    """The request that the input tensors make.

    Args:
        arrays: by input name; strings are object arrays of bytes, as Triton's Python backend gives them.

    Raises:
        UsageError: an input is unknown, missing or of another shape, or a value that no request may have.
    """
    ports = {port.name: port for port in inputs(manifest)}
    for name, array in arrays.items():
        if name not in ports:
            raise UsageError(f"Unknown input {name!r}; known are {', '.join(ports)}.")
        _check_shape(ports[name], array)
    values = _Values(arrays)
    steps = values.whole("steps")
    limit = manifest.pipeline.grid.train_timesteps
    # More steps than the model knows noise levels gain nothing, and would keep every other client waiting.
    if steps is not None and steps > limit:
        raise UsageError(f"{steps} steps were asked for, but the model knows {limit} noise levels; ask for fewer.")
    prompt, progress = values.text("prompt"), values.truth("progress")
    if prompt is None:
        raise UsageError("The request has no prompt; give one as a string in the input prompt.")
    job = Job(
        prompt=prompt,
        negative_prompt=values.text("negative_prompt"),
        seed=values.whole("seed") or 0,
        size=values.text("size"),
        frames=values.whole("frames"),
        steps=steps,
        schedule=values.text("schedule") or "auto",
        guidance=values.number("guidance"),
        batched_guidance=values.truth("batched_guidance"),
        solver=values.text("solver"),
        frame_rate=values.number("frame_rate"),
        cache=values.text("cache") or "off",
    )
    return VideoRequest(
        job=job,
        latents=arrays.get("latents"),
        results=_results(values.texts("result")),
        progress=progress is None or progress,
    )


def _check_shape(port: Port, array: npt.NDArray[np.generic]) -> None:
    """Triton has checked numbers of dimensions and fixed sizes already, but says so in terms of its own."""
    expected = port.shape
    fits = len(expected) == array.ndim and all(
        size in (-1, got) for size, got in zip(expected, array.shape, strict=True)
    )
    if not fits:
        raise UsageError(f"Input {port.name} has shape {list(array.shape)}, but {list(expected)} was expected.")


def _results(given: tuple[str, ...]) -> tuple[str, ...]:
    results = tuple(dict.fromkeys(given)) or (MP4,)
    for each in results:
        if each not in RESULTS:
            raise UsageError(f"The result {each!r} was asked for, but it must be one of {', '.join(RESULTS)}.")
    return results


class _Values:
    """Single values out of arrays, None for those that were not given."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def texts(self, name: str) -> tuple[str, ...]:
        array = self._arrays.get(name)
        return () if array is None else tuple(_decode(name, each) for each in array.reshape(-1).tolist())

    def text(self, name: str) -> str | None:
        return next(iter(self.texts(name)), None)

    def number(self, name: str) -> float | None:
        array = self._arrays.get(name)
        return None if array is None else float(array.reshape(-1)[0].item())

    def whole(self, name: str) -> int | None:
        array = self._arrays.get(name)
        return None if array is None else int(array.reshape(-1)[0].item())

    def truth(self, name: str) -> bool | None:
        array = self._arrays.get(name)
        return None if array is None else bool(array.reshape(-1)[0].item())


def _decode(name: str, value: object) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UsageError(f"Input {name} is no UTF-8 text; encode it as UTF-8.") from None
    return str(value)
