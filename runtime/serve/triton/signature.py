"""What a video model in Triton takes and gives: written into config.pbtxt, read by the model, used by the client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flowblending.runtime.option import Option
from flowblending.runtime.options import options, served_options

if TYPE_CHECKING:
    from flowblending.contracts.manifest import Manifest

MP4: Final = "mp4"
MP4_BASE64: Final = "mp4-base64"
FRAMES: Final = "frames"
LATENTS: Final = "latents"

RESULTS: Final = (MP4_BASE64, MP4, FRAMES, LATENTS)
"""What a request can ask for. JSON has no place for bytes, hence base64 for clients that have only HTTP."""

MODEL_VERSION: Final = "1"
BUNDLE_FOLDER: Final = "bundle"
"""Where a model's bundle lies in its version folder."""

DEVICE: Final = "device"
"""The model's parameters in config.pbtxt."""

STRING: Final = "string"

NAME: Final = "_name"
AT: Final = "_at"
"""What stands behind the name of an input of files in those of their names, and of where images stand."""

TYPES: Final = {
    "bool": "TYPE_BOOL",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "uint64": "TYPE_UINT64",
    STRING: "TYPE_STRING",
}
"""Triton's names of numpy's types (data_types of its model_config.proto)."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a model.

    Attributes:
        dtype: a key of ``TYPES``.
        shape: -1 where any size will do.
        optional: of an input: whether a request may leave it out.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = (1,)
    optional: bool = False


def inputs(manifest: Manifest) -> tuple[Port, ...]:
    """A job's options, files that come with it, the initial latents in place of the seed's noise, and what to answer.

    Of files (``image``, ``video``, ``mask``, ``reference``) the inputs are their content; see `file_ports`. ``result``
    is one or more of ``RESULTS``, and the first unless told; ``progress`` asks for a response after every step. Numbers
    are doubles where ``fb-run`` computes with doubles, so that both give the same bits.
    """
    return (
        *(Port(name=each.name, dtype=dtype_of(each), optional=each.name != "prompt") for each in served_options()),
        *(port for each in options() if each.file for port in file_ports(each)),
        Port(name="latents", dtype="float32", shape=(1, *_latents(manifest)), optional=True),
        Port(name="result", dtype=STRING, shape=(-1,), optional=True),
        Port(name="progress", dtype="bool", optional=True),
    )


def file_ports(option: Option) -> tuple[Port, ...]:
    """Contents of files, what their client calls them, and for each image where it stands: ``120``, or ``120:0.8``.

    Every bundle has them, so that one that takes no images says so itself.
    """
    names = (option.name, option.name + NAME, *([option.name + AT] if option.placed else []))
    shape = (-1 if option.several else 1,)
    return tuple(Port(name=each, dtype=STRING, shape=shape, optional=True) for each in names)


def dtype_of(option: Option) -> str:
    """The type of an option's tensor."""
    if option.kind is int:
        return "uint64" if option.most is not None and option.most >= 2**31 else "int32"
    return {str: STRING, float: "float64", bool: "bool"}[option.kind]


def outputs(manifest: Manifest) -> tuple[Port, ...]:
    """Of a step: ``step`` (from 1), ``steps``, ``stage`` and ``seconds``. Of the last response: what was asked for.

    ``report`` comes with the last response: the schedule, seconds by stage and warnings as JSON.
    """
    return (
        Port(name="step", dtype="int32"),
        Port(name="steps", dtype="int32"),
        Port(name="stage", dtype=STRING),
        Port(name="seconds", dtype="float64"),
        Port(name="video", dtype=STRING),
        Port(name="frames", dtype="uint8", shape=(*_pixels(manifest), 3)),
        Port(name="latents", dtype="float32", shape=(1, *_latents(manifest))),
        Port(name="report", dtype=STRING),
    )


def _latents(manifest: Manifest) -> tuple[int, ...]:
    """[C, F, H, W], as far as all videos of the bundle have them in common."""
    return _common(end.latent_shape for each in manifest.profiles for end in (each.min, each.max))


def _pixels(manifest: Manifest) -> tuple[int, ...]:
    """[F, H, W], likewise."""
    ends = (end for each in manifest.profiles for end in (each.min, each.max))
    return _common((end.frames, end.height, end.width) for end in ends)


def _common(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))
