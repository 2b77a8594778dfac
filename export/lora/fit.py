"""Whether a LoRA file fits a model: every tensor of it is used, and every shape is right, or it is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending import UsageError
from flowblending.export.checkpoint.places import TensorPlace
from flowblending.export.lora.file import USUAL, LoraFile
from flowblending.export.lora.keys import Key, Naming, Role, namings, other_method, read_key

REVISION = 1
"""Raised when the same file changes a model in another way."""

_SHOWN = 10
"""Unused names in a message."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """scale * up @ down, to be added to a parameter [out, ...].

    Attributes:
        up: [out, rank], with any number of ones behind it.
        down: [rank, ...], as many columns as a row of the parameter has numbers.
        scale: strength * alpha / rank.
    """

    up: TensorPlace
    down: TensorPlace
    scale: float


@dataclass(frozen=True, kw_only=True)
class Whole:
    """scale * added, to be added to a parameter of the same shape."""

    added: TensorPlace
    scale: float


Change = LowRank | Whole


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What a LoRA file changes in one model.

    Attributes:
        path: of the file.
        strength: that it is added with.
        naming: how it names its layers, for people.
        keys: how many tensors it has, all of which are used.
        changes: by diffusers' names of the parameters.
    """

    path: Path
    strength: float
    naming: str
    keys: int
    changes: Mapping[str, Sequence[Change]]

    @property
    def key(self) -> str:
        """What of it a fused weight depends on beside the file's content: strength and scales."""
        scales = sorted({change.scale for changes in self.changes.values() for change in changes})
        return f"lora {REVISION}, strength {self.strength!r}, scales {scales!r}"

    @property
    def name(self) -> str:
        """The file's name, with that of its folder if all such files have the same."""
        return f"{self.path.absolute().parent.name}/{self.path.name}" if self.path.name in USUAL else self.path.name

    def __str__(self) -> str:
        """``style.safetensors at 0.8``."""
        return f"{self.name} at {self.strength:g}"


def fit_lora(
    file: LoraFile, shapes: Mapping[str, Sequence[int]], authors_name: Callable[[str], str], strength: float
) -> Lora:
    """Find the parameter that each tensor of a file belongs to.

    Args:
        file: as opened.
        shapes: of the model's parameters, by diffusers' names.
        authors_name: what the model's authors call one of these.
        strength: of the LoRA.

    Raises:
        UsageError: a tensor belongs to no parameter, a shape is another, half of a pair is missing, or the file was
            made by another method than LoRA.
    """
    _refuse_other_methods(file)
    naming, keys = _best_naming(file, namings(shapes, authors_name))
    _refuse_unused(file, [name for name in file.tensors if name not in keys])
    changes: dict[str, list[Change]] = {}
    for parameter, change in _changes(file, keys, shapes, strength):
        changes.setdefault(parameter, []).append(change)
    return Lora(path=file.path, strength=strength, naming=naming.title, keys=len(file.tensors), changes=changes)


def _refuse_other_methods(file: LoraFile) -> None:
    found = other_method(file.tensors)
    if found is None and file.config.get("use_dora"):
        found = "DoRA", "use_dora in its configuration"
    kind = file.config.get("peft_type", "LORA")
    if found is None and str(kind).rpartition(".")[2] != "LORA":
        found = str(kind), "peft_type in its configuration"
    if found is not None:
        method, seen = found
        raise UsageError(
            f"{file.path} was made by {method} ({seen}), but plain LoRA was expected; merge it into the checkpoint "
            "with the tool that made it, and build from that."
        )


def _best_naming(file: LoraFile, candidates: Iterable[Naming]) -> tuple[Naming, dict[str, Key]]:
    """The naming that explains most of a file's names: one name may be two parameters in two namings."""
    read = [(naming, {name: read_key(name, naming) for name in file.tensors}) for naming in candidates]
    naming, keys = max(read, key=lambda each: sum(key is not None for key in each[1].values()))
    return naming, {name: key for name, key in keys.items() if key is not None}


def _refuse_unused(file: LoraFile, unused: Sequence[str]) -> None:
    if not unused:
        return
    more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
    raise UsageError(
        f"{file.path} does not fit: {len(unused)} of its {len(file.tensors)} tensors belong to no layer of the model: "
        f"{', '.join(unused[:_SHOWN])}{more}; give a LoRA that was trained for this model."
    )


def _changes(
    file: LoraFile, keys: Mapping[str, Key], shapes: Mapping[str, Sequence[int]], strength: float
) -> Iterator[tuple[str, Change]]:
    """Each change with the parameter that it is for; shapes are compared."""
    layers: dict[str, dict[Role, str]] = {}
    seen: dict[tuple[str, Role], str] = {}
    for name, key in keys.items():
        twin = seen.setdefault((key.parameter, key.role), name)
        if twin != name:
            raise UsageError(
                f"{file.path} holds {twin} and {name}, which are the same tensor of one layer; give a file with one "
                "LoRA."
            )
        if key.role is not Role.WHOLE:
            layers.setdefault(key.module, {})[key.role] = name
    scales = {module: _scale(file, module, names) for module, names in layers.items()}
    for name, key in keys.items():
        shape = tuple(shapes[key.parameter])
        if key.role is Role.WHOLE:
            if key.scaled and key.module not in scales:
                raise _half(file, name)
            _check(file, name, key.parameter, shape, fits=file.tensors[name].shape == shape)
            scale = scales[key.module] if key.scaled else 1.0
            yield key.parameter, Whole(added=file.tensors[name], scale=strength * scale)
        elif key.role is Role.DOWN:
            up, down = layers[key.module][Role.UP], file.tensors[name]
            _check(file, name, key.parameter, shape, fits=math.prod(down.shape[1:]) == math.prod(shape[1:]))
            rows, rank = file.tensors[up].shape[:2]
            fits = (rows, rank) == (shape[0], down.shape[0]) and file.tensors[up].elements == rows * rank
            _check(file, up, key.parameter, shape, fits=fits)
            scale = strength * scales[key.module]
            yield key.parameter, LowRank(up=file.tensors[up], down=down, scale=scale)


def _scale(file: LoraFile, module: str, names: Mapping[Role, str]) -> float:
    """What alpha by rank is in a layer whose two factors are there, and are matrices."""
    factors = {role: name for role, name in names.items() if role is not Role.ALPHA}
    if len(factors) != 2:
        raise _half(file, next(iter(names.values())))
    for name in factors.values():
        if len(file.tensors[name].shape) < 2 or not file.tensors[name].elements:
            found = list(file.tensors[name].shape)
            raise UsageError(f"{name} in {file.path} has shape {found}, but a matrix was expected; download it again.")
    rank = file.tensors[factors[Role.DOWN]].shape[0]
    alpha = file.alphas.get(names.get(Role.ALPHA, ""))
    if alpha is not None:
        return alpha / rank
    alpha = _configured_alpha(file, module)
    # PEFT tuners/lora/layer.py, update_layer.
    return 1.0 if alpha is None else alpha / (math.sqrt(rank) if file.config.get("use_rslora") else rank)


def _configured_alpha(file: LoraFile, module: str) -> float | None:
    """The alpha that PEFT's configuration has for a layer (utils/other.py, get_pattern_key); None without one."""
    patterns = file.config.get("alpha_pattern")
    found = [
        value
        for pattern, value in (patterns.items() if isinstance(patterns, dict) else ())
        if re.fullmatch(rf"(.*\.)?({pattern})", module)
    ]
    alpha = found[0] if found else file.config.get("lora_alpha")
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UsageError(
            f"The configuration of {file.path} has lora_alpha {alpha!r}, but a finite number was expected."
        )
    return float(alpha)


def _half(file: LoraFile, name: str) -> UsageError:
    return UsageError(
        f"{file.path} holds {name}, but not all of that layer's LoRA (a down and an up factor, also called lora_A and "
        "lora_B); download it again."
    )


def _check(file: LoraFile, name: str, parameter: str, shape: tuple[int, ...], *, fits: bool) -> None:
    if not fits:
        raise UsageError(
            f"{file.path} does not fit: {name} has shape {list(file.tensors[name].shape)}, but {parameter} of the "
            f"model has {list(shape)}; give a LoRA that was trained for this model."
        )
