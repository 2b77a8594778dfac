"""A diffusers module from its folder, in a precision, every weight accounted for."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging

from flowblending import FlowBlendingError
from flowblending.export.family import TORCH_DTYPES
from flowblending.export.spec import Precision
from flowblending.export.stored import LARGE, Stored, find_stored, leave_in_file

Module = TypeVar("Module", bound=torch.nn.Module)
Module_co = TypeVar("Module_co", bound=torch.nn.Module, covariant=True)


class ModelClass(Protocol[Module_co]):
    """What is needed of diffusers' model classes."""

    _keep_in_fp32_modules: Sequence[str] | None

    def load_config(self, folder: Path) -> dict[str, Any]:
        """The configuration in a folder."""
        ...

    def from_config(self, config: Mapping[str, Any]) -> Module_co:
        """Build the module that a configuration describes."""
        ...


def load_model(
    kind: ModelClass[Module], folder: Path, precision: Precision, *, streamed: bool = False, layers: int | None = None
) -> Module:
    """Build a model for inference, without memory, and read its weights one at a time.

    Weights have the types that the class's own ``from_pretrained`` would give them (diffusers
    models/model_loading_utils.py, load_model_dict_into_meta): that of the precision, and fp32 in modules that the
    class keeps in it.

    Args:
        kind: the class.
        folder: of configuration and weights.
        precision: of the weights.
        streamed: leave large weights in their files; see `flowblending.export.stored`.
        layers: of a transformer: build and read no more than its first blocks; None reads all.

    Raises:
        FlowBlendingError: files are missing, damaged, or lack a weight that the class needs.
    """
    dtype = TORCH_DTYPES[precision]
    stored = find_stored(folder)
    try:
        with _quiet(), _default_type(dtype), init_empty_weights(include_buffers=False):
            config = kind.load_config(folder)
            if layers is not None:
                config = {**config, "num_layers": layers}
            model = kind.from_config(config)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FlowBlendingError(
            f"Cannot load the model in {folder} ({reason}); give a complete diffusers checkpoint."
        ) from error
    kept = frozenset(kind._keep_in_fp32_modules or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        place = _place(stored, name, tensor, folder)
        if place.held.is_floating_point:
            place = dataclasses.replace(place, dtype=torch.float32 if kept.intersection(name.split(".")) else dtype)
        _set(model, name, place, streamed=streamed)
    return model.eval().requires_grad_(False)


def twin(module: Module) -> Module:
    """A copy that may be altered in structure and shares every weight, so that it costs no memory."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


def _place(stored: Mapping[str, Stored], name: str, tensor: torch.Tensor, folder: Path) -> Stored:
    # diffusers would fill a gap with random values and only warn.
    if name not in stored:
        raise FlowBlendingError(f"The weights in {folder} lack {name}; give a complete diffusers checkpoint.")
    found = stored[name]
    if found.shape != tuple(tensor.shape):
        raise FlowBlendingError(
            f"The weight {name} in {found.path} has shape {list(found.shape)}, but config.json asks for "
            f"{list(tensor.shape)}; give a complete diffusers checkpoint."
        )
    return found


def _set(model: torch.nn.Module, name: str, stored: Stored, *, streamed: bool) -> None:
    """Put a weight into the place that it has in the model."""
    path, _, own = name.rpartition(".")
    owner = model.get_submodule(path)
    if own in owner._buffers:
        owner._buffers[own] = stored.read()
    elif streamed and stored.nbytes >= LARGE:
        parameter = torch.nn.Parameter(torch.empty(0, dtype=stored.dtype), requires_grad=False)
        leave_in_file(parameter, stored)
        owner._parameters[own] = parameter
    else:
        owner._parameters[own] = torch.nn.Parameter(stored.read(), requires_grad=False)


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    """Build modules as ``from_pretrained`` does: what they compute while they are built has this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' own notes, which would run across ours."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
