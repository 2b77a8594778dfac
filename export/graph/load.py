"""A diffusers or transformers module from its folder, in a precision, every weight accounted for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging
from transformers import CLIPVisionModel, T5EncoderModel, UMT5EncoderModel
from transformers.initialization import no_init_weights

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.export.checkpoint.fit import Expected, check_tensors
from flowblending.export.checkpoint.model_files import stored_tensors
from flowblending.export.checkpoint.naming import shown
from flowblending.export.graph.exportable import TORCH_DTYPES
from flowblending.export.graph.fused import fuse
from flowblending.export.graph.stored import STREAMED_BYTES, Readable, find_stored, leave_in_file
from flowblending.export.lora.fit import Lora

Module = TypeVar("Module", bound=torch.nn.Module)
Encoder = TypeVar("Encoder", T5EncoderModel, UMT5EncoderModel, CLIPVisionModel)
Module_co = TypeVar("Module_co", bound=torch.nn.Module, covariant=True)

Place = TypeVar("Place")

_TABLES = ("shared.weight", "encoder.embed_tokens.weight")
_CLIP = "vision_model."
"""What the names of CLIP's vision encoder begin with in most of its files, and not in its class."""

_UNUSED = (
    (r"^(decoder|lm_head)\.", "the decoder, which encodes no text"),
    (r"^(text_model|text_projection|visual_projection)\.|^logit_scale$", "CLIP's other half, which sees no image"),
    (r"^embeddings\.position_ids$", "numbers in a row, which its class makes itself"),
)

_CLASS_IGNORES = "its class ignores them"


class ModelClass(Protocol[Module_co]):
    """What is needed of diffusers' model classes."""

    _keep_in_fp32_modules: Sequence[str] | None
    _keys_to_ignore_on_load_unexpected: Sequence[str] | None

    def load_config(self, folder: Path) -> dict[str, Any]:
        """The configuration in a folder."""
        ...

    def from_config(self, config: Mapping[str, Any]) -> Module_co:
        """Build the module that a configuration describes."""
        ...


def load_model(
    kind: ModelClass[Module],
    folder: Path,
    precision: Precision,
    *,
    streamed: bool = False,
    layers: int | None = None,
    loras: Sequence[Lora] = (),
) -> Module:
    """Build a model for inference, without memory, and read its weights one at a time.

    Weights have the types that the class's own ``from_pretrained`` would give them (diffusers
    models/model_loading_utils.py, load_model_dict_into_meta): that of the precision, and fp32 in modules that the
    class keeps in it.

    Args:
        kind: the class.
        folder: of configuration and weights.
        precision: of the weights.
        streamed: leave large weights in their files; see `flowblending.export.graph.stored`.
        layers: of a transformer: build and read no more than its first blocks; None reads all.
        loras: to fuse into the weights; see `flowblending.export.graph.fused`.

    Raises:
        FlowBlendingError: as `check_model`.
    """
    check_model(kind, folder)
    model = _empty(kind, folder, precision, layers)
    stored = fuse(find_stored(folder), loras)
    fill_model(model, stored, precision, kept=kind._keep_in_fp32_modules or (), streamed=streamed)
    return model


def check_model(kind: ModelClass[Module], folder: Path) -> tuple[str, ...]:
    """Compare the headers of a model's files with its class, before any weight is read.

    Returns:
        Lines about tensors that are left out, and why; see `flowblending.export.checkpoint.fit`.

    Raises:
        FlowBlendingError: files are missing or damaged, or their tensors are not those of the class.
    """
    model = _empty(kind, folder, Precision.FP32)
    ignored = [(pattern, _CLASS_IGNORES) for pattern in kind._keys_to_ignore_on_load_unexpected or ()]
    return check_tensors(
        _expected(model), stored_tensors(folder), model=type(model).__name__, where=shown(folder), ignored=ignored
    )


def parameter_shapes(kind: ModelClass[Module], folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of the model that a configuration describes, by name."""
    return {name: tuple(each.shape) for name, each in _empty(kind, folder, Precision.FP32).named_parameters()}


def load_encoder(kind: type[Encoder], folder: Path, precision: Precision) -> Encoder:
    """Build an encoder of transformers for inference as `load_model` does, its large weights left in their files.

    The types are those of transformers 5 (modeling_utils.py, _get_dtype_plan): fp32 is kept in fp16 only.

    Raises:
        FlowBlendingError: as `load_model`.
    """
    check_encoder(kind, folder)
    model = _empty_encoder(kind, folder, precision)
    kept = kind._keep_in_fp32_modules or () if precision is Precision.FP16 else ()
    stored = _named(find_stored(folder))
    fill_model(model, stored, precision, kept=kept, streamed=True)
    return model


def check_encoder(kind: type[Encoder], folder: Path) -> tuple[str, ...]:
    """As `check_model`, of an encoder, beside which a folder may hold the rest of what it was trained with."""
    model = _empty_encoder(kind, folder, Precision.FP32)
    return check_tensors(
        _expected(model),
        _named(stored_tensors(folder)),
        model=kind.__name__,
        where=shown(folder),
        ignored=_UNUSED,
    )


def _empty(kind: ModelClass[Module], folder: Path, precision: Precision, layers: int | None = None) -> Module:
    def make() -> Module:
        config = kind.load_config(folder)
        return kind.from_config(config if layers is None else {**config, "num_layers": layers})

    with _quiet():
        return empty_model(make, folder, precision)


def _empty_encoder(kind: type[Encoder], folder: Path, precision: Precision) -> Encoder:
    with no_init_weights():
        return empty_model(lambda: kind(kind.config_class.from_pretrained(folder)), folder, precision)


def _named(tensors: Mapping[str, Place]) -> dict[str, Place]:
    """Tensors by the names that the classes have for them.

    The table of token embeddings has two names, and a checkpoint may have it under either or both.
    """
    tensors = {name.removeprefix(_CLIP): tensor for name, tensor in tensors.items()}
    for name, other in (_TABLES, _TABLES[::-1]):
        if name not in tensors and other in tensors:
            tensors[name] = tensors[other]
    return tensors


def _expected(model: torch.nn.Module) -> dict[str, Expected]:
    return {
        name: Expected(shape=tuple(tensor.shape), floating=tensor.is_floating_point())
        for name, tensor in model.state_dict().items()
    }


def empty_model(make: Callable[[], Module], folder: Path, precision: Precision) -> Module:
    """What ``make`` builds, its buffers in memory and its parameters without any.

    Raises:
        FlowBlendingError: it cannot be built; names ``folder``.
    """
    try:
        with _default_type(TORCH_DTYPES[precision]), init_empty_weights(include_buffers=False):
            return make()
    except Exception as error:  # whatever the code of a library meets in a configuration
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FlowBlendingError(
            f"Cannot load the model in {shown(folder)} ({reason}); give a complete diffusers checkpoint."
        ) from error


def fill_model(
    model: torch.nn.Module,
    stored: Mapping[str, Readable],
    precision: Precision,
    *,
    kept: Collection[str],
    streamed: bool,
) -> None:
    """Give a model its weights and make it one for inference.

    Args:
        model: built without memory.
        stored: its weights, by their names in it; none is missing or has another shape.
        precision: of the weights.
        kept: names of modules whose weights are fp32 in every precision.
        streamed: leave large weights in their files.
    """
    fp32 = frozenset(kept)
    for name in model.state_dict():
        place = stored[name]
        if place.held.is_floating_point:
            dtype = torch.float32 if fp32.intersection(name.split(".")) else TORCH_DTYPES[precision]
            place = place.as_type(dtype)
        _set(model, name, place, streamed=streamed)
    model.eval().requires_grad_(False)


def twin(module: Module) -> Module:
    """A copy that may be altered in structure and shares every weight, so that it costs no memory."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


def _set(model: torch.nn.Module, name: str, stored: Readable, *, streamed: bool) -> None:
    """Put a weight into the place that it has in the model."""
    path, _, own = name.rpartition(".")
    owner = model.get_submodule(path)
    if own in owner._buffers:
        owner._buffers[own] = stored.read()
    elif streamed and stored.nbytes >= STREAMED_BYTES:
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
