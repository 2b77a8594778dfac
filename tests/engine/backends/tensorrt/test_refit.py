"""Why no plan is compiled for LoRA to be swapped in: TensorRT-RTX, which compiles without a GPU, needs one for that.

    python -m pytest -s tests/engine/backends/tensorrt/test_refit.py       # prints sizes, times and refusals

When a version compiles such a plan, this fails, and docs/lora.md has to be thought over.
"""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import pytest

from flowblending.engine.backends.tensorrt.library import load
from tests.support.graphs import linear
from tests.support.plans import RTX, needs_no_gpu, needs_rtx

REFITTABLE = (("REFIT",), ("REFIT_IDENTICAL",), ("REFIT_INDIVIDUAL",), ("STRIP_PLAN",), ("STRIP_PLAN", "REFIT"))


@needs_rtx
@needs_no_gpu
@pytest.mark.parametrize("flags", [(), *REFITTABLE], ids=" ".join)
def test_refittable_plans_are_compiled_beside_their_gpu_alone(flags: tuple[str, ...], tmp_path: Path) -> None:
    library = load(RTX)
    trt = library.trt
    library.messages.clear()
    builder = trt.Builder(library.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, library.logger)
    graph = linear(tmp_path).onnx
    assert parser.parse_from_file(str(graph))
    if "REFIT_INDIVIDUAL" in flags:
        names = [each.name for each in onnx.load(graph, load_external_data=False).graph.initializer]
        assert any(network.mark_weights_refittable(name) for name in names)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [4 if size < 0 else size for size in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    start = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    told = library.messages.error() if plan is None else f"{plan.nbytes} bytes"
    print(f"{library.version} {' '.join(flags) or 'plain'}: {told} after {time.monotonic() - start:.1f} s")
    assert (plan is None) == bool(flags)
    if flags:
        assert "CUDA_SUCCESS" in told
