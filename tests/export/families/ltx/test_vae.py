"""LTX-Video's VAE decoder against the stock class and against the end of a whole pipeline run, for every release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from benchmarks.checkpoints import ltx_pipeline, ltx_transformer, ltx_vae
from flowblending.contracts.graph import Precision
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.families.ltx.vae import SPATIAL_NOISE, vae_part
from flowblending.export.graph.exportable import Exportable
from flowblending.export.verify.verify import TOLERANCE, export_and_verify

VERSIONS = ("0.9.0", "0.9.1", "0.9.5")
NAMES: Mapping[str, list[str]] = {
    "0.9.0": ["latents"],
    "0.9.1": ["latents", "timestep", "noise_scale", "noise", *(f"{SPATIAL_NOISE}{index:02}" for index in range(6))],
    "0.9.5": ["latents", "timestep", "noise_scale", "noise"],
}
STRUCTURES: Mapping[str, dict[str, Any]] = {
    "causal, scaled latents": {"decoder_causal": True, "scaling_factor": 1.7},
    "other widths and depths": {
        "decoder_block_out_channels": (4, 8, 8, 12),
        "decoder_layers_per_block": (2, 1, 1, 2, 1),
        "decoder_spatio_temporal_scaling": (False, True, True, True),
    },
    "smaller patches": {
        "patch_size": 2,
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "resnet_norm_eps": 1e-3,
    },
    "noise in some blocks": {
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (2, 1, 1, 3),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (True, False, False, True),
        "upsample_residual": (True, False, False),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    },
}


def _load(vae: AutoencoderKLLTXVideo, folder: Path, precision: Precision) -> Exportable:
    vae.save_pretrained(folder / "vae")
    return vae_part(Checkpoint(folder=folder, pipeline="LTXPipeline")).load(precision)


def _compare(exportable: Exportable, tolerance: float) -> None:
    for seed, sizes in enumerate((*exportable.verify_sizes, {"frames": 1, "height": 1, "width": 2})):
        inputs = exportable.inputs(sizes, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            (found,), (expected,) = exportable.module(*inputs), exportable.reference(*inputs)
        assert tuple(found.shape) == exportable.spec.outputs[0].resolve(sizes)
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("version", VERSIONS)
def test_equals_the_stock_decoder_of_every_release(tmp_path: Path, version: str) -> None:
    for precision in (Precision.FP32, Precision.FP16):
        exportable = _load(ltx_vae(3, version), tmp_path, precision)
        assert [tensor.name for tensor in exportable.spec.inputs] == NAMES[version]
        _compare(exportable, TOLERANCE[precision].relative)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_equals_the_stock_decoder_of_other_structures(tmp_path: Path, structure: str) -> None:
    config = {name: value for name, value in ltx_vae(3, "0.9.0").config.items() if not name.startswith("_")}
    vae = AutoencoderKLLTXVideo(**config | STRUCTURES[structure])
    with torch.no_grad():
        for weight in vae.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    _compare(_load(vae, tmp_path, Precision.FP32), 1e-5)


@pytest.mark.parametrize("version", ["0.9.1", "0.9.5"])
def test_every_input_matters(tmp_path: Path, version: str) -> None:
    exportable = _load(ltx_vae(3, version), tmp_path, Precision.FP32)
    inputs = exportable.inputs(exportable.export_sizes, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (before,) = exportable.module(*inputs)
        for index, tensor in enumerate(exportable.spec.inputs):
            (after,) = exportable.module(*inputs[:index], 2 * inputs[index], *inputs[index + 1 :])
            assert (after - before).norm() > 1e-5 * before.norm(), tensor.name


@pytest.mark.parametrize("version", VERSIONS)
def test_decodes_as_the_end_of_a_pipeline_run(tmp_path: Path, version: str) -> None:
    """With the random numbers that the pipeline draws: the latents', then the decoder's, then those inside."""
    pipeline = ltx_pipeline(2, ltx_transformer(2), version)
    pipeline.set_progress_bar_config(disable=True)
    exportable = _load(pipeline.vae, tmp_path, Precision.FP32)
    shape = (1, 8, 3, 2, 3)

    def run(output_type: str) -> torch.Tensor:
        torch.manual_seed(11)
        frames: torch.Tensor = pipeline(
            prompt="A cat walks",
            height=64,
            width=96,
            num_frames=17,
            num_inference_steps=2,
            decode_timestep=0.05,
            decode_noise_scale=0.3,
            generator=torch.Generator().manual_seed(5),
            output_type=output_type,
        ).frames
        return frames

    latents = run("latent")
    if latents.ndim == 3:
        latents = latents.transpose(1, 2).reshape(shape)
    generator = torch.Generator().manual_seed(5)
    torch.randn(shape, generator=generator)
    values = {
        "latents": latents,
        "timestep": torch.tensor([0.05]),
        "noise_scale": torch.tensor([0.3]),
        "noise": torch.randn(shape, generator=generator),
    }
    torch.manual_seed(11)
    inputs = [
        values.get(tensor.name, torch.randn(tensor.resolve({"height": 2, "width": 3})))
        if tensor.name.startswith(SPATIAL_NOISE)
        else values[tensor.name]
        for tensor in exportable.spec.inputs
    ]
    with torch.no_grad():
        (frames,) = exportable.module(*inputs)
    expected = run("pt")[0]
    found = (frames[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "precision"),
    [
        pytest.param("0.9.5", Precision.FP16, marks=pytest.mark.long),
        *(pytest.param(each, Precision.FP32, marks=pytest.mark.long) for each in ("0.9.0", "0.9.1")),
    ],
)
def test_graph_equals_the_stock_decoder(tmp_path: Path, version: str, precision: Precision) -> None:
    ltx_vae(3, version).save_pretrained(tmp_path / "vae")
    part = vae_part(Checkpoint(folder=tmp_path, pipeline="LTXPipeline"))
    graph, parity = export_and_verify(part, precision, tmp_path, "", lambda _doing: None)
    assert parity.shapes >= 2
    assert [tensor.name for tensor in graph.spec.inputs] == NAMES[version]
    assert graph.spec.outputs[0].shape == (1, 3, "8*frames-7", "32*height", "32*width")
