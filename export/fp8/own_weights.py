"""Weights that a file already has in fp8: they go into the graph as they are, and are not quantised a second time."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from flowblending.export.graph.bind import TurnedTensor
from flowblending.export.graph.decoded import Decoded
from flowblending.export.graph.stored import StoredTensor


@dataclass(frozen=True, kw_only=True)
class OwnWeights:
    """A layer's weights as its file has them: ``stored`` [out, in]."""

    stored: Decoded

    def values(self) -> npt.NDArray[np.generic]:
        """E4M3 [in, out], bit for bit those of the file."""
        return self.stored.codes().T.contiguous().numpy().view(ml_dtypes.float8_e4m3fn)

    def scales(self) -> npt.NDArray[np.float32]:
        """One for each output channel, fp32 [out], rounded to bf16 numbers.

        As bf16 numbers they are the same in a bf16 graph and in its fp32 twin. A scale is changed by 2 ** -8 of it at
        most, for all weights alike; quantising anew would change every weight by up to 2 ** -4 of it.
        """
        scale = self.stored.scales().bfloat16().float()
        found: npt.NDArray[np.float32] = scale.expand(self.stored.shape[0]).contiguous().numpy()
        return found


def own_weights(tensor: ir.TensorProtocol) -> OwnWeights | None:
    """What a file has of a layer's weights in E4M3; None where it has none, or something is fused into them.

    Args:
        tensor: [in, out], as a graph multiplies by it.
    """
    if not isinstance(tensor, TurnedTensor) or tensor.order != (1, 0) or not isinstance(tensor.base, StoredTensor):
        return None
    stored = tensor.base.stored
    if not isinstance(stored, Decoded) or stored.place.kind != "F8_E4M3":
        return None
    return OwnWeights(stored=stored)
