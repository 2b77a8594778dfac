"""What ``fb-build-engines`` was asked for, and the command that asks for it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flowblending import UsageError
from flowblending.contracts.conditions import PIXELS, Source
from flowblending.contracts.graph import LARGE, SMALL
from flowblending.contracts.model_sampling import ModelSampling, write_number
from flowblending.contracts.models import is_name
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.lora import LoraRequest

_USUAL = {LARGE: "L", SMALL: "S"}
"""Models with options of their own, and their letters."""

_MODEL = re.compile(r"(?P<name>[^:=]*)(?::(?P<letters>[^=]*))?=(?P<source>.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model to build.

    Attributes:
        name, letter: that schedules and options know it by.
        source: a folder or a hub id.
        expert_letters: of two experts, that of high noise first; empty takes free ones.
        sampling: how it was trained to be sampled, if it was distilled.
    """

    name: str
    letter: str
    source: str
    expert_letters: str = ""
    sampling: ModelSampling | None = None

    @property
    def option(self) -> tuple[str, str]:
        """As a command line asks for it, from whatever folder it is given in."""
        source, letters = _absolute(self.source), self.letter + self.expert_letters
        if _USUAL.get(self.name) == letters:
            return f"--{self.name}", source
        return "--model", f"{self.name}:{letters}={source}"


def named_models(
    large: str | None,
    small: str | None,
    others: Sequence[str] = (),
    sampling: Mapping[str, ModelSampling] | None = None,
) -> tuple[ModelRequest, ...]:
    """The models that ``--large``, ``--small`` and every ``--model NAME=SOURCE`` ask for, in this order.

    Args:
        sampling: by name, how models were trained to be sampled.

    Raises:
        UsageError: no model, one without a name, a letter or a source, two of one name or letter, or a sampling of a
            model that is not there.
    """
    usual = [
        ModelRequest(name=name, letter=letter, source=source)
        for (name, letter), source in zip(_USUAL.items(), (large, small), strict=True)
        if source is not None
    ]
    models = [*usual, *map(read_model, others)]
    if not models:
        raise UsageError("No model was given; give --large DIR_OR_HUB_ID, or --model NAME=DIR_OR_HUB_ID.")
    known: dict[str, ModelRequest] = {}
    for model in models:
        for letter in (model.letter, *model.expert_letters):
            other = known.setdefault(letter, model)
            if other is not model or (model.letter + model.expert_letters).count(letter) > 1:
                both = f"The models {other.name} and {model.name}" if other is not model else f"Parts of {model.name}"
                raise UsageError(
                    f"{both} have the same letter {letter}; give another: --model {model.name}:X=DIR_OR_HUB_ID."
                )
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two models are called {name}; give one another name: --model NAME=DIR_OR_HUB_ID.")
    for name in sampling or {}:
        if name not in names:
            raise UsageError(
                f"Timesteps or guidance were given for the model {name}, but the models are {', '.join(names)}; leave "
                "them out, or name one of these."
            )
    return tuple(replace(model, sampling=(sampling or {}).get(model.name)) for model in models)


def read_model(text: str) -> ModelRequest:
    """Read ``NAME=SOURCE``, ``NAME:X=SOURCE``, or ``NAME:XYZ=SOURCE``, which gives letters to two experts, too.

    Raises:
        UsageError: it is none.
    """
    match = _MODEL.fullmatch(text)
    name, letters, source = ("", None, "") if match is None else match.group("name", "letters", "source")
    if match is None or not source:
        raise UsageError(
            f"--model {text} was given, but NAME=DIR_OR_HUB_ID was expected; give one such as --model draft=FOLDER."
        )
    if not is_name(name):
        raise UsageError(
            f"--model calls a model {name or 'nothing'}, but a name has small letters and digits, begins with a "
            "letter, and is no word that a bundle's files have (manifest, report, tokenizer, vae); give one such as "
            "draft."
        )
    letters = name[0].upper() if letters is None else letters.upper()
    if not re.fullmatch("[A-Z](?:[A-Z]{2})?", letters):
        raise UsageError(
            f"--model {name} has {letters or 'nothing'} for its letter, but one letter from A to Z was expected, or "
            f"three where its two experts have letters of their own; give one such as --model {name}:X={source}."
        )
    return ModelRequest(name=name, letter=letters[0], source=source, expert_letters=letters[1:])


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What ``fb-build-engines`` was asked for; see its ``--help`` for each.

    ``base``: the pipeline of VAE, text encoder, tokenizer and scheduler; None for that of the first model that has one.
    ``size`` and ``frames``: see `flowblending.engine.bundle.geometry.plan_profiles`. ``shift``: of the noise levels, in
    place of the checkpoint's. ``batched_guidance``: of the bundle, in place of the family's. ``conditions``: the images
    and videos to take beside text. ``loras``: to fuse into the models. ``vae_tiling``: ``off``, or tiles (see
    `flowblending.engine.bundle.vae_tiling`). ``weight_streaming``: of transformers and text encoder.
    ``cache``: a folder, or None for none.
    """

    models: tuple[ModelRequest, ...]
    out: Path
    size: str | None
    frames: int | str | None
    precision: str | None
    backend: str
    targets: tuple[str, ...]
    base: str | None = None
    pipeline: str | None = None
    shift: float | None = None
    batched_guidance: bool | None = None
    conditions: tuple[Source, ...] = ()
    loras: tuple[LoraRequest, ...] = ()
    teacache: bool = False
    vae_tiling: str | None = None
    weight_streaming: bool = False
    fp8: Fp8Options = field(default_factory=Fp8Options)
    cache: Path | None = None

    @property
    def first(self) -> ModelRequest:
        """The model whose pipeline, text encoder, decoder and scheduler the bundle has."""
        return self.models[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(model.name for model in self.models)


def read_conditions(text: str | None) -> tuple[Source, ...]:
    """What ``--conditions image,video`` asks for; None asks for nothing.

    Raises:
        UsageError: a word that is no kind of image or video.
    """
    words = [word.strip().lower() for word in (text or "").split(",")]
    for word in words if text is not None else ():
        if word not in PIXELS:
            raise UsageError(
                f"--conditions {text} was given, but {', '.join(PIXELS)} are what a bundle may take beside text; give "
                "--conditions image, for example."
            )
    return tuple(source for source in PIXELS if source in words)


def split_targets(text: str | None) -> tuple[str, ...]:
    """``sm89,sm120`` as a tuple; empty for None."""
    return tuple(sorted({item.strip().lower() for item in (text or "").split(",") if item.strip()}))


def rebuild_command(request: BuildRequest) -> tuple[str, ...]:
    """The command that makes the requested bundle again, from whatever folder it is given in."""
    options = {
        "--base": None if request.base is None else _absolute(request.base),
        "--out": str(request.out.absolute()),
        "--size": request.size,
        "--frames": request.frames,
        "--precision": request.precision,
        "--backend": request.backend,
        "--target": ",".join(request.targets) or None,
        "--pipeline": request.pipeline,
        "--shift": None if request.shift is None else write_number(request.shift),
        "--conditions": ",".join(request.conditions) or None,
        "--vae-tiling": request.vae_tiling,
        "--lora": ",".join(map(str, request.loras)) or None,
    }
    given = {name: str(value) for name, value in options.items() if value is not None}
    given |= request.fp8.given()
    given |= {name: _absolute(given[name]) for name in ("--fp8-calibration", "--fp8-prompts") if name in given}
    flags = [
        *(["--teacache"] if request.teacache else []),
        *(["--weight-streaming"] if request.weight_streaming else []),
        *_batched_option(request.batched_guidance),
    ]
    models = [word for model in request.models for word in model.option]
    sampling = [word for model in request.models for word in _sampling_options(model)]
    options_given = [word for option in given.items() for word in option if word]
    return ("fb-build-engines", *models, *options_given, *sampling, *flags)


def _batched_option(batched: bool | None) -> list[str]:
    return [] if batched is None else ["--batched-guidance" if batched else "--no-batched-guidance"]


def _sampling_options(model: ModelRequest) -> list[str]:
    """What a distilled model was said to be trained for, as options."""
    sampling, usual = model.sampling or ModelSampling(), model.name in _USUAL
    values = {
        "timesteps": ",".join(map(write_number, sampling.timesteps)),
        "guidance": "" if sampling.guidance is None else write_number(sampling.guidance),
    }
    return [
        word
        for name, value in values.items()
        if value
        for word in ((f"--{model.name}-{name}", value) if usual else (f"--model-{name}", f"{model.name}={value}"))
    ]


def _absolute(source: str) -> str:
    """The path of a file or folder as an absolute one; anything else (a hub id) as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source
