"""A diffusers module from its folder, in a precision, every weight accounted for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from diffusers.utils import logging
from safetensors import SafetensorError

from flowblending import FlowBlendingError
from flowblending.export.family import TORCH_DTYPES
from flowblending.export.spec import Precision

Module = TypeVar("Module", bound=torch.nn.Module)
Module_co = TypeVar("Module_co", bound=torch.nn.Module, covariant=True)


class ModelClass(Protocol[Module_co]):
    """What is needed of diffusers' model classes."""

    def from_pretrained(
        self,
        folder: Path,
        *,
        torch_dtype: torch.dtype,
        output_loading_info: bool,
        use_safetensors: bool,
        num_layers: int = ...,
    ) -> tuple[Module_co, Mapping[str, list[str]]]:
        """Read configuration and weights; modules that the class keeps in fp32 stay so in every type."""
        ...


def load_model(kind: ModelClass[Module], folder: Path, precision: Precision, *, layers: int | None = None) -> Module:
    """Read a model for inference.

    Args:
        layers: of a transformer: read no more than its first blocks; None reads all.

    Raises:
        FlowBlendingError: files are missing, damaged, or lack a weight that the class needs.
    """
    try:
        with _quiet():
            model, found = kind.from_pretrained(
                folder,
                torch_dtype=TORCH_DTYPES[precision],
                output_loading_info=True,
                use_safetensors=True,
                **({} if layers is None else {"num_layers": layers}),
            )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FlowBlendingError(
            f"Cannot load the model in {folder} ({reason}); give a complete diffusers checkpoint."
        ) from error
    # diffusers would fill a gap with random values and only warn.
    if found["missing_keys"]:
        raise FlowBlendingError(
            f"The weights in {folder} lack {sorted(found['missing_keys'])[0]}; give a complete diffusers checkpoint."
        )
    return model.eval().requires_grad_(False)


def twin(module: Module) -> Module:
    """A copy that may be altered in structure and shares every weight, so that it costs no memory."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' own progress bars and notes, which would run across ours."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
