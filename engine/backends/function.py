"""An engine that is a numpy function: what tests and embedders put in place of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec
from flowblending.engine.backends.checks import check_tensors
from flowblending.engine.backends.tensor import CPU, Tensor

Arrays = Mapping[str, npt.NDArray[Any]]


class FunctionEngine:
    """Runs ``function(inputs) -> outputs`` on CPU tensors.

    Args:
        spec: what the function takes and gives; shapes are checked against it on every call.
        function: gets the input arrays by name, and returns the output arrays by name.
    """

    def __init__(self, spec: GraphSpec, function: Callable[[Arrays], Arrays]) -> None:
        self._spec = spec
        self._function = function
        self.calls = 0

    @property
    def spec(self) -> GraphSpec:
        """Inputs, outputs and precision."""
        return self._spec

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:  # noqa: ARG002 - there is no stream on the CPU
        """Call the function, and copy what it returns into the output tensors.

        Raises:
            FlowBlendingError: an input or output is not of the type and shape that ``spec`` gives, or the
                function returns something else.
        """
        self.calls += 1
        sizes = check_tensors(self._spec, tensors, CPU)
        results = self._function({each.name: tensors[each.name].numpy() for each in self._spec.inputs})
        for output in self._spec.outputs:
            expected, result = output.resolve(sizes), results.get(output.name)
            if result is None or result.shape != expected or not np.can_cast(result.dtype, output.dtype, "same_kind"):
                got = "not there" if result is None else f"{result.dtype.name} {list(result.shape)}"
                raise FlowBlendingError(
                    f"Output {output.name} of engine {self._spec.name}'s function is {got}, but "
                    f"{output.dtype} {list(expected)} was expected; mend the function."
                )
            np.copyto(tensors[output.name].numpy(), result, casting="same_kind")

    def close(self) -> None:
        """Nothing to release."""
