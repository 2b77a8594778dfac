"""Arrays that users of Python give: checked, and taken where they are."""

from __future__ import annotations

import numpy as np

from flowblending import UsageError
from flowblending.contracts.conditions import Source
from flowblending.contracts.graph import TensorSpec
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.runtime.devices.arrays import Shape, adopt
from flowblending.runtime.devices.foreign import ForeignArray
from flowblending.runtime.events import Embedding
from flowblending.runtime.pipeline import Pipeline


def given_latents(pipeline: Pipeline, array: ForeignArray, name: str, shape: Shape) -> Tensor:
    """Latents, or noise to start from.

    Args:
        array: float32 of the shape.
        name: what it is, for messages.
        shape: [1, C, F, H, W]; None stands for any size.

    Raises:
        UsageError: an array that does not fit, or is not finite.
    """
    tensor = adopt(array, name=name, dtype="float32", shape=shape, device=pipeline.device)
    if tensor.device == CPU and not np.isfinite(tensor.numpy()).all():
        raise UsageError(f"The {name} contains infinite or undefined numbers; give finite ones.")
    return tensor


def given_embedding(pipeline: Pipeline, embedding: Embedding, name: str) -> dict[str, Tensor]:
    """A text's embedding as the transformers take it.

    Args:
        name: of the text, for messages.

    Raises:
        UsageError: an array that does not fit, or is missing.
    """
    arrays = {Source.TEXT: embedding.text, Source.TEXT_MASK: embedding.mask}
    tensors: dict[str, Tensor] = {}
    for each in pipeline.bundle.manifest.pipeline.conditions:
        (source, *_) = each.sources
        if source not in arrays:
            continue
        spec = TensorSpec(name=each.name, dtype=each.dtype, shape=each.shape)
        array, shape = arrays[source], spec.resolve({"batch": 1})
        what = f"{'mask' if source is Source.TEXT_MASK else 'text'} of the {name}'s embedding"
        if array is None:
            raise UsageError(f"The {what} is missing, but these models ask for it; give {spec.dtype} {list(shape)}.")
        tensors[source.value] = adopt(array, name=what, dtype=spec.dtype, shape=shape, device=pipeline.device)
    return tensors
