"""A transformer wider than its memory: exported tensor by tensor, and measured by the benchmark's own watcher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open

from benchmarks.random_checkpoint import Model, element_count, write_transformer
from benchmarks.scale import measure
from flowblending import FlowBlendingError

pytestmark = pytest.mark.slow

SETTINGS = {"num_attention_heads": 16, "attention_head_dim": 128, "ffn_dim": 8192, "text_dim": 4096}
TINY = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "text_dim": 16}
KIND = "WanTransformer3DModel"


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    wide, small = (Model(kind=KIND, settings={"num_layers": 2} | each) for each in (SETTINGS, TINY))
    checkpoint, out = tmp_path / "wide", tmp_path / "graph"
    write_transformer(wide, checkpoint, dtype=np.float32)
    write_transformer(small, tmp_path / "small")
    size = 4 * element_count(wide)
    assert size > 600e6
    little = measure("export", str(tmp_path / "small"), str(tmp_path / "none"), "fp16")
    much = measure("export", str(checkpoint), str(out), "fp16")
    assert much.told["nodes"] == little.told["nodes"]
    # The largest weight, in both types, and a piece of the file: not the weights of even one block.
    assert much.peak_anonymous - little.peak_anonymous < 0.3 * size
    assert much.peak_rss - little.peak_rss < 0.3 * size
    # All weights have arrived, cast.
    assert 0.49 * size < much.told["bytes"] < 0.51 * size
    stored = {each.name: each for each in onnx.load(out / "large.onnx", load_external_data=False).graph.initializer}
    for name in ("blocks.1.ffn.net.2.weight", "condition_embedder.time_proj.weight", "blocks.0.attn2.to_q.bias"):
        with safe_open(checkpoint / "diffusion_pytorch_model-00001-of-00001.safetensors", "pt") as file:
            expected = file.get_tensor(name).half()
        turned = f"module.model.{name}.turned"
        tensor = stored[turned if turned in stored else f"module.model.{name}"]
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(out))
        found = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        assert torch.equal(found.T if turned in stored else found, expected)


def test_a_step_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match=r"The step export .* ended with 1 \(.*config\.json.*\)"):
        measure("export", str(tmp_path / "nowhere"), str(tmp_path), "fp16")
