"""``--lora``: which LoRA files go into which models, read from their headers before any weight is.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.contracts.model_sampling import write_number

if TYPE_CHECKING:
    from flowblending.export.lora.file import LoraFile
    from flowblending.export.lora.fit import Lora

FORM = "[MODEL=]FILE[:STRENGTH]"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl")
"""How names of files end that have no strength behind them."""


@dataclass(frozen=True, kw_only=True)
class LoraRequest:
    """A LoRA file that was asked for.

    Attributes:
        model: that it is for; None for the one that it fits.
        file: as it was given.
        strength: that it is added with.
    """

    model: str | None
    file: str
    strength: float = 1.0

    def __str__(self) -> str:
        """As the option has it; the path of a file that is here is absolute."""
        path = Path(self.file).expanduser()
        model = "" if self.model is None else f"{self.model}="
        strength = "" if self.strength == 1 else f":{write_number(self.strength)}"
        return f"{model}{path.absolute() if path.exists() else self.file}{strength}"


Fit = Callable[["LoraFile", float], "Lora"]
"""What a file at a strength changes in a model; a UsageError where it was made for another one."""


def read_loras(options: Iterable[str]) -> tuple[LoraRequest, ...]:
    """What was given as ``--lora``, several in one option with commas between them.

    Raises:
        UsageError: a file has no name, or a strength that is no finite number.
    """
    return tuple(_read(item.strip()) for option in options for item in option.split(","))


def _read(item: str) -> LoraRequest:
    name, equals, rest = item.partition("=")
    model, given = (name.strip(), rest) if equals and "/" not in name and "." not in name else (None, item)
    file, strength = given, 1.0
    if not given.endswith(_SUFFIXES) and ":" in given:
        file, _, text = given.rpartition(":")
        strength = _strength(text, item)
    if not file.strip() or model == "":
        raise UsageError(f"--lora {item or repr('')} names no {'file' if model != '' else 'model'}; give it as {FORM}.")
    return LoraRequest(model=model, file=file, strength=strength)


def _strength(text: str, item: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise UsageError(
            f"--lora {item} has the strength {text or 'nothing'}, but a finite number was expected; give it as {FORM}, "
            "such as style.safetensors:0.8."
        )
    return strength


def fit_loras(
    requests: Sequence[LoraRequest], engines: Mapping[str, Fit], models: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Lora, ...]]:
    """By engine, what is fused into it.

    Args:
        requests: as read.
        engines: by name.
        models: the engines of each model; both experts of one that has two.

    Raises:
        UsageError: a model that there is not, or a file that is no LoRA, does not fit its model, or fits several where
            none is named.
        FlowBlendingError: a file is cut short.
    """
    from flowblending.export.lora.file import find_lora, open_lora

    found: dict[str, tuple[Lora, ...]] = dict.fromkeys(engines, ())
    names = {**models, **{name: (name,) for name in engines}}
    for request in requests:
        if request.model is not None and request.model not in names:
            raise UsageError(
                f"--lora names the model {request.model}, but the models are {', '.join(names)}; use one of them."
            )
        file = open_lora(find_lora(request.file))
        for asked in (None,) if request.model is None else names[request.model]:
            engine, lora = _fit(replace(request, model=asked), file, engines)
            found[engine] = (*found[engine], lora)
    return found


def _fit(request: LoraRequest, file: LoraFile, engines: Mapping[str, Fit]) -> tuple[str, Lora]:
    fitting: dict[str, Lora] = {}
    refusals: dict[str, str] = {}
    for name, fit in engines.items():
        try:
            fitting[name] = fit(file, request.strength)
        except UsageError as error:
            refusals[name] = str(error)
    if request.model in fitting:
        return request.model, fitting[request.model]
    names = " and ".join(fitting)
    if request.model is not None and fitting:
        instead = " ".join(f"--lora {name}={request.file}" for name in fitting)
        raise UsageError(f"{file.path} was made for {names}, not for {request.model}; give it as {instead}.")
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        forms = ",".join(f"{name}={request.file}" for name in fitting)
        raise UsageError(f"{file.path} fits {names}; name those that it is for: --lora {forms}.")
    raise UsageError(refusals[request.model or next(iter(refusals))])


def describe_loras(loras: Mapping[str, Sequence[Lora]]) -> list[str]:
    """A line about every file, for people."""
    return [
        f"{model}: LoRA {each}, all {each.keys} tensors used ({each.naming}), {len(each.changes)} weights changed"
        for model, several in loras.items()
        for each in several
    ]


def drift(loras: Mapping[str, Sequence[Lora]]) -> str | None:
    """A line where some models have a LoRA and others none; None where all have one, or none has."""
    with_one = [model for model, several in loras.items() if several]
    without = [model for model, several in loras.items() if not several]
    if not with_one or not without:
        return None
    return (
        f"Only {' and '.join(with_one)} got a LoRA: the steps of {' and '.join(without)} know nothing of it, and what "
        "it adds to the video drifts there; give them one that was trained alike, or run few of their steps."
    )


def fused_sha256(weights: str, loras: Iterable[tuple[Lora, str]]) -> str:
    """What stands for weights with LoRA in keys.

    Args:
        weights: SHA-256 of the checkpoint.
        loras: with the SHA-256 of each file.
    """
    digest = hashlib.sha256(weights.encode())
    for lora, content in loras:
        digest.update(f"\0{lora.key}\0{content}".encode())
    return digest.hexdigest()
