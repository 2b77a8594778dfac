"""What the names of a LoRA file's tensors say: a parameter of the model, and the part that the tensor plays in it.

Training tools name a layer as diffusers does or as the model's authors do, with dots or with underscores, behind one
of several prefixes and before one of several suffixes. A name is taken apart by its prefix and its suffix, and what is
left is looked up among the parameters that the model has; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a tensor does to its parameter W: W + scale * up @ down, or W + strength * whole."""

    DOWN = "down"
    UP = "up"
    ALPHA = "alpha"
    WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a name says.

    Attributes:
        parameter: as diffusers names it.
        role: of the tensor.
        module: what the name has between prefix and suffix, which a file's own configuration goes by.
        scaled: of a whole tensor: whether the file's alpha applies to it, as it does to the bias of a LoRA layer.
    """

    parameter: str
    role: Role
    module: str
    scaled: bool = False


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The names that a tool gives to a model's parameters.

    Attributes:
        title: for messages.
        parameters: diffusers' names by these.
        flat: underscores stand for the dots.
    """

    title: str
    parameters: Mapping[str, str]
    flat: bool


_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.", "unet.", "pipe.", "dit.")
_FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")

_LOW_RANK = re.compile(
    r"(?P<module>.+?)(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)(?P<side>A|B|down|up)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<own>weight|bias))?"
)
"""``q.lora_A.weight``, ``q.lora_B.default.weight``, ``q.lora_up.weight``, ``q_lora.down.weight``, ``q.lora.up.weight``,
``q.lora_linear_layer.down.weight``, ``q.lora_A``."""
_ROLES = {"A": Role.DOWN, "down": Role.DOWN, "B": Role.UP, "up": Role.UP}
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
_DIFFERENCE = re.compile(r"(?P<module>.+)\.diff(?P<own>_b|_m)?")
_OWN_NAMES = {None: (".weight", ""), "_b": (".bias",), "_m": (".modulation", ".scale_shift_table")}
"""How the name of the parameter goes on that a difference is added to: a layer's weight, or the parameter itself."""


def namings(parameters: Iterable[str], authors_name: Callable[[str], str]) -> tuple[Naming, ...]:
    """How tools name the parameters of a model.

    Args:
        parameters: as diffusers names them.
        authors_name: what the model's authors call one of these.
    """
    names = list(parameters)
    dotted = {"diffusers' names": {name: name for name in names}, "original names": {authors_name(n): n for n in names}}
    flat = {
        f"{title} with underscores": {_flat(theirs): ours for theirs, ours in table.items()}
        for title, table in dotted.items()
    }
    return (
        *(Naming(title=title, parameters=table, flat=False) for title, table in dotted.items()),
        *(Naming(title=title, parameters=table, flat=True) for title, table in flat.items()),
    )


def read_key(name: str, naming: Naming) -> Key | None:
    """What the name of a tensor says in a naming; None if it says nothing."""
    bare = _bare(name, naming)
    if bare is None:
        return None
    if match := _LOW_RANK.fullmatch(bare):
        return _layer(match, naming)
    if match := _ALPHA.fullmatch(bare):
        return _key(naming, match["module"], (".weight",), Role.ALPHA)
    if match := _DIFFERENCE.fullmatch(bare):
        return _key(naming, match["module"], _OWN_NAMES[match["own"]], Role.WHOLE)
    return None


def _layer(match: re.Match[str], naming: Naming) -> Key | None:
    """A factor of a layer's weight, or what is added to its bias."""
    role = _ROLES[match["side"]]
    if match["own"] != "bias":
        return _key(naming, match["module"], (".weight",), role)
    return _key(naming, match["module"], (".bias",), Role.WHOLE, scaled=True) if role is Role.UP else None


def _key(naming: Naming, module: str, endings: Iterable[str], role: Role, *, scaled: bool = False) -> Key | None:
    for ending in endings:
        theirs = f"{module}{ending}"
        parameter = naming.parameters.get(_flat(theirs) if naming.flat else theirs)
        if parameter is not None:
            return Key(parameter=parameter, role=role, module=module, scaled=scaled)
    return None


def _bare(name: str, naming: Naming) -> str | None:
    """A name without its prefixes; None where the naming has other ones."""
    if naming.flat:
        return next((name.removeprefix(prefix) for prefix in _FLAT_PREFIXES if name.startswith(prefix)), None)
    while prefix := next((each for each in _PREFIXES if name.startswith(each)), None):
        name = name.removeprefix(prefix)
    return name


def _flat(name: str) -> str:
    return name.replace(".", "_")


_OTHER_METHODS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)\b"), "DoRA"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.(oft|boft)_|\.oft\b"), "OFT"),
    (re.compile(r"\.(a1|a2|b1|b2)\.weight$"), "GLoRA"),
    (re.compile(r"\.lora_mid\b"), "LoCon with a core tensor (lora_mid)"),
    (re.compile(r"\.lora_embedding_[AB]\b"), "LoRA of an embedding table"),
    (re.compile(r"\.(vera_lambda|ia3)_?|\.on_input$"), "VeRA or (IA)^3"),
    (re.compile(r"\.modules_to_save\.|\.original_module\."), "a layer that was trained as a whole (modules_to_save)"),
)


def other_method(names: Iterable[str]) -> tuple[str, str] | None:
    """A method of training that is not plain LoRA, and the name that tells; None where none does."""
    for name in names:
        for pattern, method in _OTHER_METHODS:
            if pattern.search(name):
                return method, name
    return None
