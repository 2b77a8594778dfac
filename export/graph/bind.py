"""The weights of a graph that torch's exporter has traced but not yet optimised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from flowblending.export.graph.stored import StoredTensor, stored_of


def bind_weights(graph: ir.Graph, module: torch.nn.Module) -> None:
    """Give a graph the weights that its module has in files, and turn those that it wants turned.

    A layer's weights [out, in] are turned to [in, out] by a node of their own. torch's optimiser would compute these
    nodes, and thereby read every weight; here they become initializers that are turned when they are read.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in graph.initializers.items():
        stored = stored_of(parameters[name]) if name in parameters else None
        if stored is not None:
            value.const_value = StoredTensor(stored, name)
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is not None and weight.is_initializer() and weight.const_value is not None:
            order = node.attributes["perm"].as_ints()
            turned = _turned(weight.const_value, order, f"{weight.name}.turned")
            if turned.name not in graph.initializers:
                graph.register_initializer(turned)
            node.outputs[0].replace_all_uses_with(graph.initializers[str(turned.name)])
            graph.remove(node, safe=True)
            if not weight.uses():
                del graph.initializers[str(weight.name)]


class TurnedTensor(ir.LazyTensor):  # type: ignore[misc] # onnx_ir is Any to mypy
    """Another tensor with its axes in another order, turned whenever it is asked for."""

    def __init__(self, base: ir.TensorProtocol, order: Sequence[int], name: str) -> None:
        shape = ir.Shape([base.shape[axis] for axis in order])
        super().__init__(
            lambda: ir.Tensor(_permuted(base.numpy(), order), dtype=base.dtype, name=name), base.dtype, shape, name=name
        )
        self.base = base
        self.order = tuple(order)


def _turned(tensor: ir.TensorProtocol, order: Sequence[int], name: str) -> ir.Value:
    turned = TurnedTensor(tensor, order, name)
    return ir.Value(name=name, shape=turned.shape, type=ir.TensorType(tensor.dtype), const_value=turned)


def _permuted(array: npt.NDArray[Any], order: Sequence[int]) -> npt.NDArray[Any]:
    """In memory anew: a view would be written number by number. torch is seven times as fast at it as numpy."""
    whole = torch.from_numpy(np.ascontiguousarray(array).view(f"i{array.itemsize}"))
    permuted: npt.NDArray[Any] = whole.permute(*order).contiguous().numpy().view(array.dtype)
    return permuted
