"""Wan's VAE decoder by steps, against the stock class decoding the whole clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLWan

from benchmarks.checkpoints import wan_vae
from flowblending.contracts.graph import ExportedGraph, Precision
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.families.wan.vae import decoder_parts
from flowblending.export.graph.exportable import Exportable, Tensors
from flowblending.export.graph.trace import export_graph
from flowblending.export.verify.verify import TOLERANCE, export_and_verify, verify

CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"dim_mult": [1, 2], "temperal_downsample": [True], "num_res_blocks": 2, "z_dim": 16},
    {"base_dim": 6, "decoder_base_dim": 4, "dim_mult": [1, 2, 2], "temperal_downsample": [True, False]},
]
Step = Callable[..., Tensors]


def saved(folder: Path, settings: dict[str, Any]) -> Checkpoint:
    wan_vae(3, **settings).save_pretrained(folder / "vae")
    return Checkpoint(folder=folder, pipeline="WanPipeline")


def stream(steps: Sequence[Step], latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """The frames of a clip; ``steps`` are those for the first latent frame and for all others."""
    caches: Tensors = ()
    for index in range(latents.shape[2]):
        frames, *left = steps[min(index, 1)](latents[:, :, index : index + 1], *caches)
        caches = tuple(left)
        yield frames


def whole(folder: Path, latents: torch.Tensor) -> torch.Tensor:
    """As WanPipeline decodes latents that are normalised."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    mean, std = (
        torch.tensor(each).reshape(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        clip: torch.Tensor = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]
    return clip


def on_onnxruntime(graph: ExportedGraph) -> Step:
    session = onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])

    def step(*inputs: torch.Tensor) -> Tensors:
        feed = {spec.name: np.ascontiguousarray(x) for spec, x in zip(graph.spec.inputs, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, feed))

    return step


@pytest.mark.parametrize("settings", CONFIGURATIONS)
def test_steps_through_the_stock_modules_equal_the_whole_clip(settings: dict[str, Any], tmp_path: Path) -> None:
    loaded = [part.load(Precision.FP32) for part in decoder_parts(saved(tmp_path, settings))]
    latents = torch.randn(1, 16, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = whole(tmp_path, latents)
    for name in ("reference", "module"):
        with torch.no_grad():
            clip = torch.cat(list(stream([getattr(each, name) for each in loaded], latents)), dim=2).clamp(-1, 1)
        assert clip.shape == expected.shape
        assert (clip - expected).abs().max() < 2e-5, name


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("settings", CONFIGURATIONS[:2])
def test_steps_through_the_graphs_equal_the_whole_clip(settings: dict[str, Any], tmp_path: Path) -> None:
    steps = []
    for part in decoder_parts(saved(tmp_path, settings)):
        graph, parity = export_and_verify(part, Precision.FP32, tmp_path / "graphs", "", lambda _: None)
        assert parity.relative < TOLERANCE[Precision.FP32].relative / 4
        kinds = {node.op_type for node in onnx.load(graph.onnx, load_external_data=False).graph.node}
        assert "Resize" in kinds
        assert not {"ScatterND", "GatherND", "Range"} & kinds
        steps.append(on_onnxruntime(graph))
    latents = torch.randn(1, 16, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    clip = torch.cat(list(stream(steps, latents)), dim=2).clamp(-1, 1)
    expected = whole(tmp_path, latents)
    assert clip.shape == expected.shape
    assert (clip - expected).abs().max() < 2e-5


@pytest.mark.slow
@pytest.mark.long
def test_fp16_steps(tmp_path: Path) -> None:
    loaded: list[Exportable] = [part.load(Precision.FP16) for part in decoder_parts(saved(tmp_path, CONFIGURATIONS[1]))]
    steps = []
    for each in loaded:
        graph = export_graph(each, tmp_path / "graphs", "")
        assert verify(each, graph).relative < TOLERANCE[Precision.FP16].relative
        assert {spec.dtype for spec in (*graph.spec.inputs, *graph.spec.outputs)} == {"float32"}
        steps.append(on_onnxruntime(graph))
    latents = torch.randn(1, 16, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    clip = torch.cat(list(stream(steps, latents)), dim=2).clamp(-1, 1)
    expected = whole(tmp_path, latents)
    assert (clip - expected).norm() < 2e-2 * expected.norm()


def test_the_specification_tells_the_sizes_of_frames_and_caches(tmp_path: Path) -> None:
    first, following = (part.load(Precision.FP32).spec for part in decoder_parts(saved(tmp_path, {})))
    assert first.inputs[0].shape == following.inputs[0].shape == (1, 16, 1, "height", "width")
    assert first.outputs[0].shape == (1, 3, 1, "8*height", "8*width")
    assert following.outputs[0].shape == (1, 3, 4, "8*height", "8*width")
    caches = following.inputs[1:]
    assert [spec.name for spec in caches] == [f"cache_{index:02d}" for index in range(len(caches))]
    # What one step gives is what the next one takes.
    for spec in (first, following):
        assert [(each.name, each.shape) for each in spec.outputs[1:]] == [
            (f"{each.name}_next", each.shape) for each in caches
        ]
    assert {each.shape[2] for each in caches} == {2}
    assert {each.shape[3] for each in caches} == {"height", "2*height", "4*height", "8*height"}
