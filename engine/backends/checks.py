"""Whether tensors are what an engine takes and gives: the same check, with the same words, for every back end."""

from __future__ import annotations

from collections.abc import Mapping

from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec
from flowblending.engine.backends.tensor import Tensor


def check_tensors(spec: GraphSpec, tensors: Mapping[str, Tensor], device: str) -> dict[str, int]:
    """Check every input and output: there, on the device, of the type and shape that the graph asks for.

    Returns:
        The size of every symbol.

    Raises:
        FlowBlendingError: naming the tensor, what it is and what was expected.
    """
    sizes = spec.sizes({name: tensor.shape for name, tensor in tensors.items()})
    for each in (*spec.inputs, *spec.outputs):
        tensor = tensors.get(each.name)
        if tensor is None:
            raise FlowBlendingError(f"Engine {spec.name} was given no memory for {each.name}; pass every output.")
        if tensor.device != device:
            raise FlowBlendingError(
                f"Tensor {each.name} of engine {spec.name} is on the device {tensor.device}, "
                f"but {device} was expected; copy it there."
            )
        shape = each.resolve(sizes)
        if tensor.shape != shape or tensor.dtype.name != each.dtype:
            raise FlowBlendingError(
                f"Tensor {each.name} of engine {spec.name} is {tensor.dtype.name} {list(tensor.shape)}, "
                f"but {each.dtype} {list(shape)} was expected; give a tensor of that type and shape."
            )
    return sizes
