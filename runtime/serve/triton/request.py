"""From a request's tensors to a job, with one sentence for whatever makes none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.runtime.option import Option
from flowblending.runtime.option_values import TRITON, make_job, read_options, unknown
from flowblending.runtime.options import Job, options, served_options
from flowblending.runtime.serve.triton.signature import AT, NAME, RESULTS, Port, file_ports, inputs
from flowblending.runtime.serve.uploads import Upload, content_of, read_at, shown_name

REQUEST_ID = "id"
"""What Triton's protocol lets every request over HTTP say."""

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What a client asks for.

    Attributes:
        job: the video, without its files.
        uploads: these, by the options that name them.
        latents: initial latents float32 [1, C, F, H, W] in place of the seed's noise.
        results: of ``RESULTS``, what to answer.
        progress: whether to tell of every step.
    """

    job: Job
    latents: npt.NDArray[np.generic] | None
    results: tuple[str, ...]
    progress: bool
    uploads: Mapping[str, Sequence[Upload]] = field(default_factory=dict)


def read_request(arrays: Arrays, manifest: Manifest, parameters: Iterable[str] = ()) -> VideoRequest:
    """The request that the input tensors make.

    Args:
        arrays: by input name; strings are object arrays of bytes, as Triton's Python backend gives them.
        manifest: of the bundle.
        parameters: names of what Triton passes on beside the inputs: over HTTP, every field that is no input.

    Raises:
        UsageError: an input is unknown, missing or of another shape, or a value that no request may have.
    """
    ports = {port.name: port for port in inputs(manifest)}
    parameters = [name for name in parameters if name != REQUEST_ID]
    for name in (*arrays, *parameters):
        if name not in ports:
            raise unknown(name, TRITON, ports)
    for name in parameters:
        raise UsageError(f"The input {name} was given as a parameter; give it beside the prompt, as an input.")
    for name, array in arrays.items():
        _check_shape(ports[name], array)
    values = {option.name: _value(option, arrays[option.name]) for option in served_options() if option.name in arrays}
    fields = read_options(values, TRITON)
    if "prompt" not in fields:
        raise UsageError("The request has no prompt; give one as a string in the input prompt.")
    progress = arrays.get("progress")
    return VideoRequest(
        job=make_job(fields),
        latents=arrays.get("latents"),
        results=_results(arrays.get("result")),
        progress=progress is not None and bool(progress.item()),
        uploads={each.name: found for each in options() if each.file and (found := _uploads(each, arrays))},
    )


def _uploads(option: Option, arrays: Arrays) -> tuple[Upload, ...]:
    """The files that were sent for an option.

    Raises:
        UsageError: there are more or fewer names, or places, than files.
    """
    given = {each.name: arrays[each.name].tolist() for each in file_ports(option) if each.name in arrays}
    contents: list[object] = given.get(option.name, [])
    for name, values in given.items():
        if len(values) != len(contents):
            raise UsageError(
                f"The input {name} has {len(values)} values, but {option.name} has {len(contents)} files; give one for "
                "each."
            )
    names = [_text(option.name + NAME, each) for each in given.get(option.name + NAME, [""] * len(contents))]
    places = [_text(option.name + AT, each) for each in given.get(option.name + AT, [""] * len(contents))]
    return tuple(
        Upload(name=shown_name(name, option.name), content=content_of(_bytes(content)), at=read_at(place))
        for content, name, place in zip(contents, names, places, strict=True)
    )


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _check_shape(port: Port, array: npt.NDArray[np.generic]) -> None:
    """Triton has checked numbers of dimensions and fixed sizes already, but says so in terms of its own."""
    expected = port.shape
    fits = len(expected) == array.ndim and all(
        size in (-1, got) for size, got in zip(expected, array.shape, strict=True)
    )
    if not fits:
        raise UsageError(f"Input {port.name} has shape {list(array.shape)}, but {list(expected)} was expected.")


def _results(given: npt.NDArray[np.generic] | None) -> tuple[str, ...]:
    asked = () if given is None else [_text("result", each) for each in given.reshape(-1).tolist()]
    results = tuple(dict.fromkeys(asked)) or RESULTS[:1]
    for each in results:
        if each not in RESULTS:
            raise UsageError(f"The result {each!r} was asked for, but it must be one of {', '.join(RESULTS)}.")
    return results


def _value(option: Option, array: npt.NDArray[np.generic]) -> object:
    """The single value of an option's tensor."""
    value: object = array.item()
    return _text(option.name, value) if option.kind is str else value


def _text(name: str, value: object) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UsageError(f"Input {name} is no UTF-8 text; encode it as UTF-8.") from None
    return str(value)
