"""Weights in their files: read right, held while a layer computes, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.checkpoints import wan_transformer
from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, SMALL, Precision
from flowblending.export.families.wan.transformer import load_transformer
from flowblending.export.graph import load as weights
from flowblending.export.graph import stored
from flowblending.export.graph.stored import (
    Stored,
    StoredTensor,
    find_stored,
    leave_in_file,
    stored_of,
    weights_on_demand,
)
from flowblending.export.verify.trajectory import TorchPair


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {"fp32": torch.randn(7, 300), "bf16": torch.randn(5, 3).bfloat16(), "fp16": torch.randn(11).half()}
    save_file(made | {"count": torch.tensor(3)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_type_is_read_as_every_other(
    dtype: torch.dtype, tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In pieces that no size here is a multiple of.
    monkeypatch.setattr(stored, "_READ", 1000)
    found = find_stored(tmp_path)
    assert found["count"].read() == 3
    for name, tensor in tensors.items():
        assert torch.equal(found[name].as_type(dtype).read(), tensor.to(dtype))
        array = StoredTensor(found[name].as_type(dtype), name).numpy()
        np.testing.assert_array_equal(array.astype(np.float32), tensor.to(dtype).float().numpy())
        # Written in pieces, it has the same bytes.
        with (tmp_path / "written").open("wb") as file:
            StoredTensor(found[name].as_type(dtype), name).tofile(file)
        assert (tmp_path / "written").read_bytes() == array.tobytes()
    rows = np.array([6, 0, 3, 3])
    assert torch.equal(found["fp32"].as_type(dtype).rows(rows), tensors["fp32"][rows].to(dtype))


def test_a_file_cut_short_is_named_and_an_unknown_type_passed_over(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    found, path = find_stored(tmp_path), tmp_path / "diffusion_pytorch_model.safetensors"
    cut = found["fp32"]
    assert isinstance(cut, Stored)
    os.truncate(path, cut.offset + 10)
    with pytest.raises(FlowBlendingError, match=r"Cannot read .*safetensors \(it ends too early\); download it again"):
        found["fp32"].read()
    # No weight has another type: `flowblending.export.checkpoint.fit` refuses it.
    save_file({"w": torch.zeros(2, dtype=torch.int8), "x": torch.zeros(2)}, path)
    assert list(find_stored(tmp_path)) == ["x"]
    assert len(tensors) == 3


def test_a_layer_holds_its_weights_while_it_computes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    save_file(model.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    x = torch.randn(3, 8)
    with torch.no_grad():
        expected = model(x)
    found = find_stored(tmp_path)
    for name, parameter in model.named_parameters():
        leave_in_file(parameter, found[name])
    held: list[int] = []

    def count(*_: object) -> None:
        held.append(sum(0 not in parameter.stride() for parameter in model.parameters()))

    for layer in (model[0], model[2]):
        layer.register_forward_hook(count)
    with torch.no_grad():
        assert not torch.equal(model(x), expected)  # what stands for them is zero
        held.clear()
        with weights_on_demand(model):
            assert torch.equal(model(x), expected)
        assert held == [2, 2]
        assert not torch.equal(model(x), expected)
        with weights_on_demand(model), pytest.raises(RuntimeError, match="shape"):
            model(torch.randn(3, 9))
    count()
    assert held[-1] == 0


def test_of_a_table_the_rows_that_are_asked_for_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    table = torch.nn.Embedding(50, 4)
    save_file(table.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    ids = torch.tensor([[7, 49, 7], [0, 7, 12]])
    with torch.no_grad():
        expected = table(ids)
    for parameter in table.parameters():
        leave_in_file(parameter, find_stored(tmp_path)["weight"])
    held: list[int] = []
    table.register_forward_hook(lambda *_: held.append(len(table.weight)))
    monkeypatch.delattr(Stored, "read")
    with torch.no_grad(), weights_on_demand(table):
        assert torch.equal(table(ids), expected)
    assert held == [4]
    assert len(table.weight) == 50
    assert set(table.weight.stride()) == {0}


def test_a_trajectory_in_torch_computes_with_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = wan_transformer(3)
    transformer.save_pretrained(tmp_path)
    monkeypatch.setattr(weights, "STREAMED_BYTES", 2000)
    models = {name: load_transformer(tmp_path, name, 8, Precision.FP32) for name in (LARGE, SMALL)}
    assert sum(stored_of(each) is not None for each in models[LARGE].module.parameters()) > 5
    drawn = models[LARGE].inputs({"batch": 1, "frames": 2, "height": 4, "width": 6}, torch.Generator().manual_seed(0))
    noise, text = drawn[0].numpy(), drawn[2]
    conditions = {"positive": {"text": text}}
    with torch.no_grad():
        expected = transformer.eval()(torch.from_numpy(noise), torch.tensor([500.0]), text, return_dict=False)[0]
    for stock in (True, False):
        found = TorchPair(models, conditions, stock=stock)(LARGE, noise, 500.0, "positive")
        assert np.linalg.norm(found - expected.numpy()) < 1e-5 * np.linalg.norm(expected.numpy())
