"""What a compiler is asked for when a graph is compiled: the network, its settings and the sizes, in words."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

from flowblending import FlowBlendingError
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.library import load
from tests.support.plans import ignore


def asked_of_the_compiler(request: PlanRequest) -> dict[str, Any]:
    """Everything that `compile_plan` hands over, without the time that compiling takes."""
    trt = load(request.library).trt
    found: dict[str, Any] = {}

    class Builder(trt.Builder):  # type: ignore[misc, name-defined] # the library has no type information
        def create_network(self, flags: int = 0) -> Any:
            found["flags"] = flags
            return super().create_network(flags)

        def create_optimization_profile(self) -> Any:
            found.setdefault("profiles", []).append(super().create_optimization_profile())
            return found["profiles"][-1]

        def build_serialized_network_to_stream(self, network: Any, config: Any, _writer: Any) -> bool:
            inputs = [network.get_input(index).name for index in range(network.num_inputs)]
            found["layers"] = dict(sorted(Counter(_layers(trt, network)).items()))
            found["settings"] = dict(_settings(config))
            found["profiles"] = [
                {name: [list(shape) for shape in profile.get_shape(name)] for name in inputs}
                for profile in found["profiles"]
            ]
            return False

    with mock.patch.object(trt, "Builder", Builder), contextlib.suppress(FlowBlendingError):
        compile_plan(request, ignore)
    return found


def _layers(trt: Any, network: Any) -> Iterator[str]:
    """Each layer's kind, the types that go in and come out, and of attention whether it may be taken apart."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensors = [layer.get_input(number) for number in range(layer.num_inputs)]
        given = ", ".join("none" if each is None else each.dtype.name for each in tensors)
        made = ", ".join(layer.get_output(number).dtype.name for number in range(layer.num_outputs))
        words = f"{layer.type.name}: {given} -> {made}"
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            words += f", decomposable {layer.attention.decomposable}"
        yield words


def _settings(config: Any) -> Iterator[tuple[str, object]]:
    for name in sorted(dir(config)):
        if not name.startswith("_"):
            value: Any = getattr(config, name, None)
            if isinstance(value, bool | int | float | str):
                yield name, value
            elif hasattr(value, "name"):
                yield name, value.name
