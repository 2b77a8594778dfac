"""A call's arguments, as diffusers names them, as jobs: one for each video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flowblending import UsageError
from flowblending.contracts.conditions import STRETCH, Source, takes
from flowblending.contracts.manifest import Manifest
from flowblending.runtime.diffusers.classes import ARGUMENTS, PipelineClass, class_of
from flowblending.runtime.option import Option
from flowblending.runtime.option_values import PYTHON, FrontEnd, make_job, read_options, read_value, shown
from flowblending.runtime.options import WHAT, Job

NAMES: Final[Mapping[str, str]] = {
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "guidance_2": "guidance_scale_2",
}
"""What diffusers calls a job's options, where the names differ."""

_INSTEAD: Final[Mapping[str, str]] = {**NAMES, "size": "height and width", "seed": "generator"}

_WHY: Final[Mapping[str, str]] = {
    "timesteps": "give a stage timesteps of its own in schedule='L20 S20:t750,625 L10', for example",
    "attention_kwargs": "attention is part of the compiled engines; leave it out",
}
_UNKNOWN_REASON: Final = "this bundle's models take none; leave it out"


class _Diffusers(FrontEnd):
    """Calls options as diffusers does."""

    def call(self, option: Option) -> str:
        """The option's name."""
        return NAMES.get(option.name, option.name)

    def give(self, option: Option) -> str:
        """The option with an example's value."""
        return f"{self.call(option)}={option.example!r}"


DIFFUSERS: Final = _Diffusers(noun="argument", name="{name}", given="{name}={python}")
"""The front end whose names are diffusers'."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is to be made.

    Attributes:
        jobs: one for each video, those of one prompt after one another; they differ in texts and in what a decoder is
            told.
        prompts: how many there are.
        output_type: of the frames.
    """

    jobs: tuple[Job, ...]
    prompts: int
    output_type: str


def read_call(manifest: Manifest, given: Mapping[str, Any], options: Mapping[str, Any], *, embedded: int) -> Call:
    """The jobs of a call.

    Args:
        manifest: of the bundle.
        given: the call's arguments that are texts and numbers, by diffusers' names; None for what was not given.
        options: its further keywords: options of a job that diffusers has no word for.
        embedded: how many prompts were given as embeddings; 0 where texts were.

    Raises:
        UsageError: an argument that is wrong, or that cannot be honoured.
    """
    kind = class_of(manifest.pipeline.pipeline)
    _check_names(manifest, kind, given, options)
    prompts = [""] * embedded if embedded else _texts(given["prompt"], "prompt")
    negatives = _negatives(given["negative_prompt"], len(prompts))
    asked = given["num_videos_per_prompt"]
    repeats = 1 if asked is None else _whole(asked, "num_videos_per_prompt")
    _check_length(manifest, given["max_sequence_length"])
    count = len(prompts) * repeats
    told = {name: _per_video(given[name], count, name) for name in ("decode_timestep", "decode_noise_scale")}
    fields = {
        **({} if given["image"] is None else {"fit": STRETCH}),  # as diffusers brings images to a video's size
        **options,
        **{name: given[theirs] for name, theirs in NAMES.items() if given[theirs] is not None},
        **{name: given[name] for name in ("guidance_rescale", "frame_rate") if given[name] is not None},
        "size": _size(manifest, given["width"], given["height"]),
    }
    jobs = []
    for i in range(count):
        texts = {"negative_prompt": negatives[i // repeats]} | ({} if embedded else {"prompt": prompts[i // repeats]})
        decoder = {name: values[i] for name, values in told.items()}
        jobs.append(make_job({"prompt": "", **read_options(fields | decoder | texts, DIFFUSERS)}))
    return Call(jobs=tuple(jobs), prompts=len(prompts), output_type=given["output_type"] or kind.output_type)


def _check_names(manifest: Manifest, kind: PipelineClass, given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse what the bundle's class does not have, what no bundle honours, and options that diffusers names."""
    name = manifest.pipeline.pipeline
    asked = [*(each for each, value in given.items() if value is not None), *options]
    for each in asked:
        if each in _INSTEAD:
            raise UsageError(f"Unknown argument {each!r}; diffusers calls it {_INSTEAD[each]}, and so does this call.")
        if each in ARGUMENTS and each not in kind.all_arguments:
            raise UsageError(f"{each} was given, but {name}, which this bundle stands in for, has no such argument.")
        if each in _WHY or (each in options and each in kind.arguments):
            raise UsageError(f"{each} cannot be honoured: {_WHY.get(each, _UNKNOWN_REASON)}.")
    if given["image"] is not None and not takes(manifest.pipeline.conditions, Source.IMAGE):
        raise UsageError(f"image cannot be honoured: {_UNKNOWN_REASON}.")


def _texts(value: object, name: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return list(value)
    raise UsageError(
        f"{name} is {shown(value)}, but a text or a list of texts was expected; give {name}='A cat walks on the grass'."
    )


def _negatives(value: object, count: int) -> list[str | None]:
    if value is None:
        return [None] * count
    texts = _texts(value, "negative_prompt")
    if isinstance(value, str):
        return [value] * count
    if len(texts) != count:
        raise UsageError(
            f"negative_prompt is a list of {len(texts)}, but there are {count} prompts; give as many, or one text."
        )
    return [*texts]


def _per_video(value: object, count: int, name: str) -> Sequence[object]:
    """Diffusers takes one number for all videos, or a list."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name} is a list of {len(value)}, but {count} videos were asked for; give as many numbers.")
    return value


def _whole(value: object, name: str) -> int:
    number: int = read_value(value, Option(name=name, kind=int, section=WHAT, help="", least=1, example=1), PYTHON)
    return number


def _size(manifest: Manifest, width: object, height: object) -> str | None:
    """As a job says it; what is not given is the bundle's."""
    if width is None and height is None:
        return None
    usual = manifest.geometry
    wide = usual.width if width is None else _whole(width, "width")
    high = usual.height if height is None else _whole(height, "height")
    return f"{wide}x{high}"


def _check_length(manifest: Manifest, length: object) -> None:
    tokens = manifest.pipeline.text_length
    if length is not None and length != tokens:
        raise UsageError(
            f"max_sequence_length is {shown(length)}, but this bundle's engines take prompts of {tokens} tokens; leave "
            "it out."
        )
