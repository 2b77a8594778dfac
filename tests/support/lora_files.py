"""One small LoRA in every format that people have: what training tools write, and diffusers with PEFT as the oracle."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 4
ALPHA = 2.0
"""Of a scale that is a power of two, so that it can be a part of a factor and changes no rounding."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is to be added to a model, in diffusers' names.

    Attributes:
        layers: factors down and up by module, to be added with ALPHA / RANK.
        whole: differences by parameter.
    """

    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    whole: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a tool names and stores a LoRA.

    Attributes:
        prefix: of every name.
        factors: what follows a module's name, down and up.
        authors: modules have their authors' names, not diffusers'.
        flat: underscores stand for the dots in a module's name.
        alpha: where alpha is: in a tensor, in the ``header``, in PEFT's ``config`` beside the file, or ``folded``.
        file: its usual name.
    """

    prefix: str
    factors: tuple[str, str]
    authors: bool = True
    flat: bool = False
    alpha: str = "folded"
    file: str = "lora.safetensors"


_AB = (".lora_A.weight", ".lora_B.weight")
_DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
_DOWN_UP = (".lora_down.weight", ".lora_up.weight")
_PEFT_FILE = "adapter_model.safetensors"

FORMATS: Mapping[str, Format] = {
    "diffusers": Format(prefix="transformer.", factors=_AB, authors=False),
    "diffusers, alpha in the header": Format(prefix="transformer.", factors=_AB, authors=False, alpha="header"),
    "PEFT": Format(prefix="base_model.model.", factors=_AB, authors=False, alpha="config", file=_PEFT_FILE),
    "PEFT, adapter named": Format(prefix="base_model.model.", factors=_DEFAULT, authors=False),
    "diffusion_model, A/B": Format(prefix="diffusion_model.", factors=_AB),
    "diffusion_model, A/B, alpha": Format(prefix="diffusion_model.", factors=_AB, alpha="tensor"),
    "diffusion_model, down/up": Format(prefix="diffusion_model.", factors=_DOWN_UP),
    "diffusion_model, down/up, alpha": Format(prefix="diffusion_model.", factors=_DOWN_UP, alpha="tensor"),
    "no prefix, A/B": Format(prefix="", factors=_AB),
    "no prefix, down/up, alpha": Format(prefix="", factors=_DOWN_UP, alpha="tensor"),
    "DiffSynth": Format(prefix="", factors=_DEFAULT),
    "musubi": Format(prefix="lora_unet_", factors=_DOWN_UP, flat=True, alpha="tensor"),
    "Wan-Fun": Format(prefix="lora_unet__", factors=_DOWN_UP, flat=True, alpha="tensor"),
    "kohya over diffusers": Format(prefix="lora_unet_", factors=_DOWN_UP, flat=True, authors=False, alpha="tensor"),
    "LyCORIS": Format(prefix="lycoris_", factors=_DOWN_UP, flat=True, alpha="tensor"),
    "lora.down": Format(prefix="", factors=(".lora.down.weight", ".lora.up.weight"), authors=False),
    "_lora.down": Format(prefix="unet.", factors=("_lora.down.weight", "_lora.up.weight"), authors=False),
    "lora_linear_layer": Format(
        prefix="transformer.",
        factors=(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        authors=False,
    ),
    "bare A/B": Format(prefix="", factors=(".lora_A", ".lora_B")),
}


def make_adapter(model: torch.nn.Module, seed: int = 0, *, whole: bool = False) -> Adapter:
    """Factors for every linear layer of a model and, if asked for, differences of everything else.

    Each changes its weight by about as much as there is of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    layers = {
        name: (draw(RANK, each.in_features), draw(each.out_features, RANK))
        for name, each in model.named_modules()
        if isinstance(each, torch.nn.Linear)
    }
    weights = {f"{name}.weight" for name in layers}
    rest = {name: draw(*each.shape) for name, each in model.named_parameters() if name not in weights} if whole else {}
    return Adapter(layers=layers, whole=rest)


def write_lora(
    adapter: Adapter,
    kind: Format,
    authors_name: Callable[[str], str],
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write an adapter in a format; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: Tensors = {}
    for module, (down, up) in adapter.layers.items():
        name = _name(f"{module}.weight", kind, authors_name).removesuffix("_weight" if kind.flat else ".weight")
        tensors[f"{name}{kind.factors[0]}"] = down
        tensors[f"{name}{kind.factors[1]}"] = up * (ALPHA / RANK) if kind.alpha == "folded" else up
        if kind.alpha == "tensor":
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    for parameter, value in adapter.whole.items():
        tensors[_difference(_name(parameter, kind, authors_name))] = value
    config = {"r": RANK, "lora_alpha": ALPHA, "peft_type": "LORA"}
    header = {"format": "pt"}
    if kind.alpha == "header":
        header["lora_adapter_metadata"] = json.dumps({f"transformer.{name}": value for name, value in config.items()})
    if kind.alpha == "config":
        (folder / "adapter_config.json").write_text(json.dumps(config))
    path = folder / kind.file
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path, header)
    return path


def _name(parameter: str, kind: Format, authors_name: Callable[[str], str]) -> str:
    name = authors_name(parameter) if kind.authors else parameter
    return kind.prefix + (name.replace(".", "_") if kind.flat else name)


def _difference(name: str) -> str:
    """As lightx2v's files have it: ``blocks.0.norm3.diff``, ``blocks.0.ffn.0.diff_b``, ``blocks.0.diff_m``."""
    for ending, role in ((".weight", ".diff"), (".bias", ".diff_b"), (".modulation", ".diff_m")):
        if name.endswith(ending):
            return name.removesuffix(ending) + role
    return f"{name}.diff"


def merged(model: Any, adapter: Adapter, strength: float, dtype: torch.dtype = torch.float32) -> Any:
    """A copy of a diffusers model with an adapter that diffusers loads and PEFT merges, at a strength.

    Args:
        dtype: of the factors, as their file has them.
    """
    changed = copy.deepcopy(model)
    factors = {
        name: tensor.to(dtype).to(next(model.parameters()).dtype)
        for module, (down, up) in adapter.layers.items()
        for name, tensor in (
            (f"transformer.{module}.lora_A.weight", down),
            (f"transformer.{module}.lora_B.weight", up * (ALPHA / RANK)),
        )
    }
    changed.load_lora_adapter(factors, prefix="transformer")
    changed.fuse_lora(lora_scale=strength)
    changed.unload_lora()
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name in adapter.whole:
                parameter.add_(strength * adapter.whole[name].to(dtype).float().to(parameter.dtype))
    return changed
