"""Plans that can leave weights in the host's memory: what TensorRT-RTX, which needs no GPU for them, makes of the flag.

    python -m pytest -s tests/engine/backends/tensorrt/test_weight_streaming.py       # prints sizes, times, a refusal

When a version takes both flags, this fails: calls of such plans would allocate nothing and could be captured as CUDA
graphs, so that every plan could be compiled so (docs/memory.md).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.backends.registry import check_weight_streaming
from flowblending.engine.backends.tensorrt import compile as compiler
from flowblending.engine.backends.tensorrt.compile import compile_plan
from flowblending.engine.backends.tensorrt.library import Library, load
from tests.support.graphs import linear
from tests.support.plans import RTX, ignore, needs_no_gpu, needs_rtx, request


@needs_rtx
@needs_no_gpu
def test_it_costs_nothing_but_the_promise_to_allocate_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = request(linear(tmp_path), tmp_path / "usual.plan")
    streams = dataclasses.replace(usual, weight_streaming=True, out=tmp_path / "streams.plan")
    plain, streaming = (compile_plan(each, ignore) for each in (usual, streams))
    for title, info in (("usual", plain), ("weight streaming", streaming)):
        print(
            f"{load(RTX).version} {title}: {info.bytes} bytes, weights {info.weights_bytes} bytes, scratch "
            f"{info.scratch_bytes} bytes, {info.seconds:.1f} s"
        )
    assert abs(streaming.bytes - plain.bytes) < 0.01 * plain.bytes  # kernels are compiled anew
    assert (streaming.weights_bytes, streaming.scratch_bytes) == (plain.weights_bytes, plain.scratch_bytes)
    assert usual.out.read_bytes() != streams.out.read_bytes()

    require, asked = compiler._require_given_memory, []

    def both(library: Library, config: Any) -> None:
        require(library, config)
        config.set_flag(library.trt.BuilderFlag.WEIGHT_STREAMING)
        asked.append(config)

    monkeypatch.setattr(compiler, "_require_given_memory", both)
    with pytest.raises(FlowBlendingError) as refused:
        compile_plan(dataclasses.replace(usual, out=tmp_path / "both.plan"), ignore)
    print(refused.value)
    assert asked
    assert re.search("REQUIRE_USER_ALLOCATION is not compatible with .*WEIGHT_STREAMING", str(refused.value))


def test_a_back_end_that_cannot_is_refused() -> None:
    check_weight_streaming(RTX)
    with pytest.raises(UsageError, match=r"onnxruntime has all weights .* use --backend tensorrt or tensorrt-rtx"):
        check_weight_streaming("onnxruntime")
