"""Transformers in GGUF files: every type is decoded as diffusers does it, by pieces; what is none is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import gguf as library
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import dequantize_functions
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from flowblending.export.graph import decoded
from flowblending.export.graph.decoded import Decoded
from flowblending.export.graph.stored import find_stored
from tests.export.families.test_stand_in import opened, refusal
from tests.support.weight_files import (
    PACKED,
    Reference,
    gguf,
    is_linear,
    make_reference,
    packed,
    prefixed,
    save,
)


@pytest.fixture(scope="module", params=["wan", "ltx"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(request.param, tmp_path_factory.mktemp(request.param), wide=True)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference("wan", tmp_path_factory.mktemp("wan-alone"), wide=True)


def unpacked(values: torch.Tensor, kind: GGMLQuantizationType) -> torch.Tensor:
    """What diffusers makes of the blocks that stand for a matrix, in fp32."""
    blocks = torch.from_numpy(packed(values.float().numpy(), kind))
    numbers, size = GGML_QUANT_SIZES[kind]
    made = dequantize_functions[kind](blocks.reshape(-1, size), numbers, size, dtype=torch.float32)
    assert isinstance(made, torch.Tensor)
    return made.float().reshape(values.shape)


def test_every_type_is_decoded_as_diffusers_does(
    wan: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In pieces of a few rows each.
    monkeypatch.setattr(decoded, "_READ_BYTES", 1000)
    path = gguf(prefixed(wan.original, "model.diffusion_model."), PACKED, tmp_path / "x.gguf", arch="wan")
    stored = find_stored(opened(wan, path, tmp_path / "scratch").folder)
    kinds, seen = itertools.cycle(PACKED), set()
    for key, tensor in wan.tensors.items():
        if not is_linear(key, tensor):
            assert torch.equal(stored[key].read().float(), (tensor.half() if tensor.ndim > 1 else tensor).float())
            continue
        kind = next(kinds)
        seen.add(kind)
        expected = unpacked(tensor, GGMLQuantizationType[kind])
        found = stored[key].as_type(torch.float32)
        assert isinstance(found, Decoded)
        # Scales are multiplied in another order.
        torch.testing.assert_close(found.read(), expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(torch.cat(list(found.pieces())).view(tensor.shape), found.read())
        assert torch.equal(found.rows(np.array([5, 0])), found.read()[[5, 0]])
        assert torch.equal(stored[key].as_type(torch.bfloat16).read(), found.read().bfloat16())
        assert found.nbytes == packed(tensor.float().numpy(), GGMLQuantizationType[kind]).nbytes
    assert seen == set(PACKED)


STEPS = {"Q4_0": 2.0**-3, "Q4_1": 2.0**-4, "Q5_0": 2.0**-4, "Q5_1": 2.0**-5, "Q8_0": 2.0**-7}
"""Half a step of those that the package packs, of a block's largest value or, in _1, of its spread; a little more."""


def test_is_the_reference_within_the_types_rounding(reference: Reference, tmp_path: Path) -> None:
    path = gguf(reference.original, tuple(STEPS), tmp_path / "x.gguf", arch=reference.family)
    stored = find_stored(opened(reference, path, tmp_path / "scratch").folder)
    assert stored.keys() == reference.tensors.keys()
    kinds = itertools.cycle(STEPS)
    for key, tensor in reference.tensors.items():
        if is_linear(key, tensor):
            kind = next(kinds)
            blocks = tensor.float().view(-1, 32)
            error = (stored[key].read().view(-1, 32) - blocks).abs()
            spread = blocks.amax(dim=1) - blocks.amin(dim=1) if kind.endswith("_1") else blocks.abs().amax(dim=1)
            assert bool((error <= STEPS[kind] * spread[:, None]).all())


def test_bf16_is_bit_for_bit_and_tensors_of_five_axes_may_be_apart(wan: Reference, tmp_path: Path) -> None:
    path = gguf(wan.original, (), tmp_path / "x.gguf", arch="wan", apart=True)
    found = opened(wan, path, tmp_path / "scratch")
    stored = find_stored(found.folder)
    assert all(torch.equal(stored[key].read(), tensor.to(stored[key].dtype)) for key, tensor in wan.tensors.items())
    assert {each.name for each in found.folder.iterdir() if each.is_symlink()} == {
        "x.gguf",
        "fix_5d_tensors_wan.safetensors",
    }
    (tmp_path / "fix_5d_tensors_wan.safetensors").unlink()
    message = refusal(wan, path, tmp_path / "without")
    assert "has no patch_embedding.weight; give one, or put what its converter kept apart (fix_5d_tensors)" in message
    # A file that is whole does not look at what lies beside it.
    save({"patch_embedding.weight": torch.zeros(1)}, tmp_path / "fix_5d_tensors_wan.safetensors")
    whole = gguf(wan.original, ["Q8_0"], tmp_path / "whole.gguf", arch="wan")
    assert {each.name for each in opened(wan, whole, tmp_path / "whole").folder.iterdir() if each.is_symlink()} == {
        "whole.gguf"
    }


def test_a_tensor_that_was_packed_in_another_shape(wan: Reference, tmp_path: Path) -> None:
    """Its rows begin within blocks: ComfyUI's converter says what shape it had."""
    name = "patch_embedding.weight"
    tensor = wan.original[name].float()
    writer = GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
    for key, each in wan.original.items():
        if key == name:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(key, library.quantize(tensor.reshape(-1, 256).numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, each.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = find_stored(opened(wan, tmp_path / "x.gguf", tmp_path / "scratch").folder)
    assert stored[name].shape == tensor.shape
    assert float((stored[name].read() - tensor).abs().max()) <= 2.0**-7 * float(tensor.abs().max())


def test_files_that_are_none(wan: Reference, tmp_path: Path) -> None:
    path = gguf(wan.original, ["Q4_0"], tmp_path / "x.gguf", arch="wan")
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    assert "is no whole GGUF file (" in refusal(wan, path, tmp_path / "cut")
    path.write_bytes(b"GGUX" + whole[4:])
    assert "is no whole GGUF file (GGUF magic invalid)" in refusal(wan, path, tmp_path / "magic")
    path.write_bytes(whole[:1000])
    assert "is no whole GGUF file (" in refusal(wan, path, tmp_path / "short")
    # The type stands behind a tensor's name and its two sizes.
    place = whole.index(b"blocks.0.self_attn.q.weight") + len("blocks.0.self_attn.q.weight") + 4 + 2 * 8
    for number, said in (
        (99, "holds a tensor of type 99, which the pa"),
        (9, "in Q8_1, which the pa"),
    ):
        path.write_bytes(whole[:place] + number.to_bytes(4, "little") + whole[place + 4 :])
        assert said in refusal(wan, path, tmp_path / str(number))
