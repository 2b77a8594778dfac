"""What ``fb-build-engines`` was asked for, and the command that asks for it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowblending.contracts.model_sampling import ModelSampling, write_number
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.lora import LoraRequest


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What ``fb-build-engines`` was asked for; see its ``--help`` for each.

    ``base``: the pipeline of VAE, text encoder, tokenizer and scheduler; None for that of the first model that has one.
    ``size`` and ``frames``: see `flowblending.engine.bundle.geometry.plan_profiles`. ``shift``: of the noise levels, in
    place of the checkpoint's. ``loras``: to fuse into the models. ``sampling``: how distilled models were trained to be
    sampled, by name. ``cache``: a folder, or None for none.
    """

    large: str
    small: str
    out: Path
    size: str | None
    frames: int | str | None
    precision: str | None
    backend: str
    targets: tuple[str, ...]
    base: str | None = None
    pipeline: str | None = None
    shift: float | None = None
    sampling: Mapping[str, ModelSampling] = field(default_factory=dict)
    loras: tuple[LoraRequest, ...] = ()
    teacache: bool = False
    fp8: Fp8Options = field(default_factory=Fp8Options)
    cache: Path | None = None


def split_targets(text: str | None) -> tuple[str, ...]:
    """``sm89,sm120`` as a tuple; empty for None."""
    return tuple(sorted({item.strip().lower() for item in (text or "").split(",") if item.strip()}))


def rebuild_command(request: BuildRequest) -> tuple[str, ...]:
    """The command that makes the requested bundle again, from whatever folder it is given in."""
    options = {
        "--large": _absolute(request.large),
        "--small": _absolute(request.small),
        "--base": None if request.base is None else _absolute(request.base),
        "--out": str(request.out.absolute()),
        "--size": request.size,
        "--frames": request.frames,
        "--precision": request.precision,
        "--backend": request.backend,
        "--target": ",".join(request.targets) or None,
        "--pipeline": request.pipeline,
        "--shift": None if request.shift is None else write_number(request.shift),
        "--lora": ",".join(map(str, request.loras)) or None,
    }
    for model, each in request.sampling.items():
        options[f"--{model}-timesteps"] = ",".join(map(write_number, each.timesteps)) or None
        options[f"--{model}-guidance"] = None if each.guidance is None else write_number(each.guidance)
    given = {name: str(value) for name, value in options.items() if value is not None}
    given |= request.fp8.given()
    given |= {name: _absolute(given[name]) for name in ("--fp8-calibration", "--fp8-prompts") if name in given}
    teacache = ("--teacache",) if request.teacache else ()
    return ("fb-build-engines", *(word for option in given.items() for word in option if word), *teacache)


def _absolute(source: str) -> str:
    """The path of a file or folder as an absolute one; anything else (a hub id) as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source
