"""Fused weights are those of diffusers with PEFT's merged adapter, for every format, strength and precision."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import save_file

from benchmarks.checkpoints import TEXT_DIM, ltx_transformer, wan_transformer
from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, Precision
from flowblending.engine.backends.onnxruntime.run import BoundWeight, OrtEngine
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.export.checkpoint.model_files import tensors_in
from flowblending.export.families.ltx import names as ltx_names
from flowblending.export.families.ltx import transformer as ltx
from flowblending.export.families.wan import names as wan_names
from flowblending.export.families.wan import transformer as wan
from flowblending.export.graph import fused, stored
from flowblending.export.graph import load as weights
from flowblending.export.graph.exportable import TORCH_DTYPES, Exportable, Tensors
from flowblending.export.graph.fused import Fused, fuse
from flowblending.export.graph.load import load_model, parameter_shapes
from flowblending.export.graph.stored import StoredTensor, find_stored, stored_at, weights_on_demand
from flowblending.export.graph.trace import trace_graph
from flowblending.export.graph.weight_inputs import WeightInputGraph, write_weight_inputs
from flowblending.export.lora.file import open_lora
from flowblending.export.lora.fit import Lora, fit_lora
from flowblending.export.verify.verify import compare, verify
from tests.support.lora_files import FORMATS, Adapter, make_adapter, merged, write_lora

STRENGTHS = (0.5, 1.0, -1.0, 3.0)
EPSILON = {Precision.FP32: 2**-23, Precision.FP16: 2**-10, Precision.BF16: 2**-7}


@dataclass(frozen=True)
class Kind:
    """A family's tiny transformer."""

    stock: Any
    make: Callable[[], Any]
    authors_name: Callable[[str], str]
    load: Callable[..., Exportable]


def _load_wan(folder: Path, precision: Precision, loras: tuple[Lora, ...]) -> Exportable:
    return wan.load_transformer(folder, LARGE, 8, precision, loras)


def _load_ltx(folder: Path, precision: Precision, loras: tuple[Lora, ...]) -> Exportable:
    return ltx.load_transformer(folder, LARGE, precision, text_length=8, factors=(8, 32), causal=False, loras=loras)


KINDS = {
    "wan": Kind(WanTransformer3DModel, lambda: wan_transformer(7), wan_names.authors_name, _load_wan),
    "ltx": Kind(
        LTXVideoTransformer3DModel,
        lambda: ltx_transformer(7, caption_channels=TEXT_DIM),
        ltx_names.authors_name,
        _load_ltx,
    ),
}


@dataclass(frozen=True)
class Base:
    """A checkpoint in fp32, and an adapter for it."""

    kind: Kind
    folder: Path
    model: Any
    adapter: Adapter

    @cached_property
    def half_merged(self) -> dict[str, torch.Tensor]:
        """The weights with the adapter at 0.5."""
        return dict(merged(self.model, self.adapter, 0.5).named_parameters())

    def fit(self, path: Path, strength: float) -> Lora:
        shapes = parameter_shapes(self.kind.stock, self.folder)
        return fit_lora(open_lora(path), shapes, self.kind.authors_name, strength)

    def write(self, kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        return write_lora(self.adapter, FORMATS[kind], self.kind.authors_name, folder, dtype)


@pytest.fixture(scope="module", params=list(KINDS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = kind.make()
    model.save_pretrained(folder)
    return Base(kind=kind, folder=folder, model=model, adapter=make_adapter(model))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are streamed, in pieces that end within rows."""
    monkeypatch.setattr(stored, "_READ", 1000)
    monkeypatch.setattr(fused, "_BLOCK", 100)
    monkeypatch.setattr(weights, "STREAMED_BYTES", 1000)


def read(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters, those in files too."""
    found = {}
    for name, parameter in model.named_parameters():
        place = stored.stored_of(parameter)
        found[name] = parameter.data if place is None else place.read()
    return found


def is_rounded_once(found: torch.Tensor, exact: torch.Tensor, epsilon: float) -> bool:
    """Whether each number is as near to the exact one as its type allows, but for the noise of sums in fp32."""
    noise = 4e-6 * exact.abs().max()
    return bool(((found.float() - exact).abs() <= epsilon / 2 * exact.abs() * 1.001 + noise).all())


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_gives_the_weights_of_the_merged_adapter(kind: str, base: Base, tmp_path: Path) -> None:
    lora = base.fit(base.write(kind, tmp_path), 0.5)
    expected = base.half_merged
    found = read(load_model(base.kind.stock, base.folder, Precision.FP32, streamed=True, loras=[lora]))
    before = dict(base.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].data, rtol=1e-5, atol=1e-6)
        assert torch.equal(value, before[name]) == (name not in lora.changes)
    assert len(lora.changes) == len(base.adapter.layers)


@pytest.mark.parametrize("precision", list(EPSILON))
@pytest.mark.parametrize("strength", STRENGTHS)
def test_weights_are_fused_in_fp32_and_rounded_once(
    precision: Precision, strength: float, base: Base, tmp_path: Path
) -> None:
    half = TORCH_DTYPES[precision]
    lora = base.fit(base.write("diffusion_model, down/up, alpha", tmp_path, half), strength)
    exact = dict(merged(base.model, base.adapter, strength, half).named_parameters())
    found = read(load_model(base.kind.stock, base.folder, precision, streamed=True, loras=[lora]))
    kept = set(base.kind.stock._keep_in_fp32_modules or ())
    for name, value in found.items():
        assert value.dtype == (torch.float32 if kept.intersection(name.split(".")) else half)
        assert is_rounded_once(value, exact[name].data, torch.finfo(value.dtype).eps), name
    # PEFT merges in the model's own type, which rounds more than once.
    coarse = dict(merged(copy.deepcopy(base.model).to(half), base.adapter, strength, half).named_parameters())
    for name, value in found.items():
        difference = (value.float() - coarse[name].float()).norm() / coarse[name].float().norm()
        assert difference < 4 * EPSILON[precision], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [Precision.FP32, *(pytest.param(each, marks=pytest.mark.long) for each in (Precision.FP16, Precision.BF16))],
)
def test_the_graph_computes_what_diffusers_with_the_merged_adapter_computes(
    precision: Precision, base: Base, tmp_path: Path
) -> None:
    lora = base.fit(base.write("musubi", tmp_path), 0.8)
    exportable = base.kind.load(base.folder, precision, (lora,))
    plain = base.kind.load(base.folder, Precision.FP32, ())
    expected = dataclasses.replace(exportable, reference=_reference(base, merged(base.model, base.adapter, 0.8)))
    # Without the adapter it would not.
    with pytest.raises(FlowBlendingError, match="differs from torch"):
        compare(dataclasses.replace(expected, streamed=plain.streamed), plain.reference, exportable.spec)
    if precision is Precision.BF16:
        # ONNX Runtime's CPU has none: in torch, as a build verifies it.
        compare(expected, exportable.module, exportable.spec)
        return
    graph = trace_graph(exportable)
    verify(expected, graph)
    if precision is Precision.FP32:
        _check_weights_as_inputs(write_weight_inputs(graph, tmp_path / "graph"), lora, expected)


def _reference(base: Base, model: Any) -> Callable[..., Tensors]:
    """The stock class called as its pipeline calls it, with another model's weights."""
    fresh = base.kind.load(base.folder, Precision.FP32, ())
    values = dict(model.named_parameters())
    for name, parameter in fresh.streamed[0].named_parameters():
        parameter.data = values[name].data
        parameter.__dict__.pop("stored", None)
    return fresh.reference


def _check_weights_as_inputs(graph: WeightInputGraph, lora: Lora, expected: Exportable) -> None:
    """What a calibration runs: fused weights are in a file of their own, in the type of the checkpoint."""
    own = [each for each, _ in graph.weights.values() if each.path == graph.onnx.with_suffix(".weights")]
    assert 5 < len(own) <= len(lora.changes)
    engine = OrtEngine(
        graph.onnx,
        graph.spec,
        device=CPU,
        stream=0,
        weights=[
            BoundWeight(name=name, tensor=Tensor.of(each.read().numpy()), kind=kind)
            for name, (each, kind) in graph.weights.items()
        ],
    )
    inputs = expected.inputs(expected.verify_sizes[0], torch.Generator().manual_seed(1))
    (reference,) = expected.reference(*inputs)
    output = np.empty(tuple(reference.shape), np.float32)
    given = {spec.name: Tensor.of(value.numpy()) for spec, value in zip(graph.spec.inputs, inputs, strict=True)}
    engine.run({**given, graph.spec.outputs[0].name: Tensor.of(output)}, 0)
    engine.close()
    np.testing.assert_allclose(output, reference.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_differences_biases_and_modulations_are_added_as_lightx2v_writes_them(base: Base, tmp_path: Path) -> None:
    adapter = make_adapter(base.model, 3, whole=True)
    path = write_lora(adapter, FORMATS["diffusion_model, down/up, alpha"], base.kind.authors_name, tmp_path)
    lora = base.fit(path, -0.5)
    found = read(load_model(base.kind.stock, base.folder, Precision.FP32, streamed=True, loras=[lora]))
    for name, value in merged(base.model, adapter, -0.5).named_parameters():
        torch.testing.assert_close(found[name], value.data, rtol=1e-5, atol=1e-6)
    assert set(lora.changes) == set(found)


def test_several_are_added_one_to_the_other(base: Base, tmp_path: Path) -> None:
    other = dataclasses.replace(base, adapter=make_adapter(base.model, 5))
    loras = [
        base.fit(base.write("musubi", tmp_path / "a"), 0.7),
        other.fit(other.write("PEFT", tmp_path / "b"), -1.2),
    ]
    expected = merged(merged(base.model, base.adapter, 0.7), other.adapter, -1.2)
    found = read(load_model(base.kind.stock, base.folder, Precision.FP32, streamed=True, loras=loras))
    for name, value in expected.named_parameters():
        torch.testing.assert_close(found[name], value.data, rtol=1e-5, atol=1e-6)


def test_of_strength_0_nothing_is_left(base: Base, tmp_path: Path) -> None:
    lora = base.fit(base.write("diffusers", tmp_path), 0.0)
    for precision in EPSILON:
        found, plain = (
            read(load_model(base.kind.stock, base.folder, precision, streamed=True, loras=loras))
            for loras in ([lora], [])
        )
        assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_weights_that_are_decoded_are_decoded_first(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(40, 30, generator=generator)
    scale = exact.abs().amax(1) / 448
    held = (exact / scale[:, None]).to(torch.float8_e4m3fn)
    factors = {
        "x.lora_A.weight": torch.randn(4, 30, generator=generator),
        "x.lora_B.weight": torch.randn(40, 4, generator=generator),
    }
    save_file({"x.weight": held, "scale": scale}, tmp_path / "fp8.safetensors")
    save_file(factors, tmp_path / "lora.safetensors")
    places = tensors_in([tmp_path / "fp8.safetensors"])
    place = dataclasses.replace(places["x.weight"], decoded=True, scale=places["scale"])
    lora = fit_lora(open_lora(tmp_path / "lora.safetensors"), {"x.weight": (40, 30)}, lambda name: name, 0.5)
    (found,) = fuse({"x.weight": stored_at(place)}, [lora]).values()
    expected = held.float() * scale[:, None] + 0.5 * factors["x.lora_B.weight"] @ factors["x.lora_A.weight"]
    torch.testing.assert_close(found.read(), expected, rtol=1e-5, atol=1e-5)
    assert is_rounded_once(found.as_type(torch.bfloat16).read(), expected, EPSILON[Precision.BF16])


def test_all_ways_to_read_give_the_same_bits(base: Base, tmp_path: Path) -> None:
    lora = base.fit(base.write("diffusers", tmp_path), 1.3)
    for name, tensor in fuse(find_stored(base.folder), [lora]).items():
        if isinstance(tensor, Fused):
            whole = tensor.as_type(torch.bfloat16).read()
            assert torch.equal(torch.cat(list(tensor.as_type(torch.bfloat16).pieces())), whole.view(-1))
            with (tmp_path / "written").open("wb") as file:
                StoredTensor(tensor.as_type(torch.bfloat16), name).tofile(file)
            assert (tmp_path / "written").read_bytes() == whole.view(torch.uint8).numpy().tobytes()
            rows = tensor.rows(np.array([2, 0, 2]))
            torch.testing.assert_close(rows, tensor.read()[[2, 0, 2]], rtol=1e-6, atol=1e-6)


def test_factors_that_are_not_finite_are_told(base: Base, tmp_path: Path) -> None:
    layers = dict(base.adapter.layers)
    module = next(iter(layers))
    layers[module] = (layers[module][0], torch.full_like(layers[module][1], float("nan")))
    path = write_lora(Adapter(layers=layers), FORMATS["diffusers"], base.kind.authors_name, tmp_path)
    with pytest.raises(FlowBlendingError, match=r"lora\.safetensors holds numbers that are not finite"):
        read(load_model(base.kind.stock, base.folder, Precision.FP32, streamed=True, loras=[base.fit(path, 1.0)]))


def test_layers_compute_with_fused_weights_and_let_them_go(base: Base, tmp_path: Path) -> None:
    lora = base.fit(base.write("diffusers", tmp_path), 1.0)
    exportable = base.kind.load(base.folder, Precision.FP32, (lora,))
    inputs = exportable.inputs(exportable.verify_sizes[0], torch.Generator().manual_seed(0))
    with torch.no_grad(), weights_on_demand(*exportable.streamed):
        (first,) = exportable.reference(*inputs)
    assert any(stored.stored_of(each) is not None for each in exportable.module.parameters())
    assert first.isfinite().all()
