"""LTX-Video: its constants, its transformer against the stock one, and in the stock pipelines' place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from benchmarks.checkpoints import TEXT_DIM, ltx_pipeline, ltx_transformer
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision, SigmaGrid
from flowblending.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flowblending.export.families.ltx.family import Ltx
from flowblending.export.graph.exportable import Exportable
from flowblending.export.verify.verify import TOLERANCE, export_and_verify
from flowblending.runtime.program.sigmas import sigma_grid

CONFIGURATIONS: list[dict[str, Any]] = [
    {"layers": 1, "heads": 3, "head_dim": 8},
    # 40 channels leave four, 20 leave two that are not rotated.
    {"layers": 2, "heads": 5, "head_dim": 8, "cross_attention_dim": 40, "out_channels": 8},
    {"layers": 1, "heads": 1, "head_dim": 20, "in_channels": 3, "out_channels": None},
    {"layers": 2, "heads": 2, "head_dim": 16, "norm_elementwise_affine": True, "norm_eps": 1e-3, "in_channels": 8},
    {"layers": 1, "heads": 4, "head_dim": 8, "attention_bias": False, "attention_out_bias": False},
]


@pytest.fixture
def copy(checkpoints: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Checkpoint]:
    """A checkpoint that a test may alter."""

    def make(kind: str) -> Checkpoint:
        shutil.copytree(checkpoints(kind) / "large", tmp_path / kind)
        return open_checkpoint(str(tmp_path / kind))

    return make


def _set(checkpoint: Checkpoint, file: str, **fields: object) -> None:
    path = checkpoint.folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _load(checkpoint: Checkpoint, folder: Path, precision: Precision) -> Exportable:
    return Ltx().transformer(checkpoint, folder, "large").load(precision)


def test_describes_what_the_pipelines_do_by_default(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    ltx_pipeline(1, ltx_transformer(1), "0.9.0").save_pretrained(tmp_path)
    plain = Ltx().describe(open_checkpoint(str(tmp_path)))
    first, later = (
        Ltx().describe(open_checkpoint(str(checkpoints(kind) / "large"))) for kind in ("ltx", "ltx-condition")
    )
    for described, length, scale in ((plain, 128, None), (first, 128, 0.025), (later, 256, 0.025)):
        assert described.text_length == length
        assert (described.decode_timestep, described.decode_noise_scale) == (scale and 0.05, scale)
        assert described.guidance_rescale == 0.0
        assert (described.latent_channels, described.temporal_factor, described.spatial_factor) == (8, 8, 32)
        assert (described.steps, described.guidance, described.frame_rate) == (50, 3.0, 25.0)
        assert (described.width, described.height, described.frames) == (704, 512, 161)
        assert described.solver == "euler"
        assert described.batched_guidance
        assert not described.clean_prompt
    assert first.grid == SigmaGrid(
        kind="dynamic-shift", base_shift=0.95, max_shift=2.05, base_tokens=1024, max_tokens=4096, shift_terminal=0.1
    )
    assert later.grid == SigmaGrid(kind="linear-quadratic")


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dynamic_shifting": False, "shift": 3.0},
        {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None},
        {"max_shift": 1.3, "base_image_seq_len": 256, "num_train_timesteps": 500},
    ],
)
def test_noise_levels_of_other_scheduler_settings(
    copy: Callable[[str], Checkpoint], settings: dict[str, object]
) -> None:
    checkpoint = copy("ltx")
    _set(checkpoint, "scheduler/scheduler_config.json", **settings)
    grid = sigma_grid(Ltx().describe(checkpoint).grid, "euler", 7, 1881)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoint.folder / "scheduler")
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = 1881 * slope + config.base_shift - slope * config.base_image_seq_len
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7), mu=mu)
    np.testing.assert_allclose(grid.sigmas, scheduler.sigmas, rtol=1e-6)
    np.testing.assert_allclose(grid.timesteps, scheduler.timesteps, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "file", "fields", "says"),
    [
        ("ltx", "scheduler", {"_class_name": "UniPCMultistepScheduler"}, "_class_name UniPCMultistepScheduler"),
        ("ltx", "scheduler", {"stochastic_sampling": True}, "stochastic_sampling True, but False was expected"),
        ("ltx", "scheduler", {"time_shift_type": "linear"}, "time_shift_type linear, but exponential"),
        ("ltx-condition", "scheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting True, but False"),
        ("ltx-condition", "scheduler", {"shift": 3.0}, "shift 3.0, but 1.0 was expected for LTXConditionPipeline"),
        ("ltx", "transformer", {"patch_size": 2}, "patch_size 2, but the LTX pipelines of diffusers run 1 only"),
    ],
)
def test_refuses_what_it_would_run_wrongly(
    copy: Callable[[str], Checkpoint], kind: str, file: str, fields: dict[str, object], says: str
) -> None:
    checkpoint = copy(kind)
    _set(checkpoint, f"{file}/{'scheduler_config' if file == 'scheduler' else 'config'}.json", **fields)
    with pytest.raises(FlowBlendingError, match=says):
        Ltx().describe(checkpoint)
        Ltx().transformer(checkpoint, checkpoint.folder / "transformer", "large")


@pytest.mark.parametrize("kind", ["ltx", "ltx-condition"])
@pytest.mark.parametrize("settings", CONFIGURATIONS)
def test_equals_the_stock_transformer(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(str(checkpoints(kind) / "large"))
    ltx_transformer(4, **settings).save_pretrained(tmp_path)
    for precision, tolerance in ((Precision.FP32, 1e-6), (Precision.FP16, TOLERANCE[Precision.FP16].relative)):
        exportable = _load(checkpoint, tmp_path, precision)
        for seed, sizes in enumerate((*exportable.verify_sizes, dict.fromkeys(exportable.export_sizes, 1))):
            inputs = exportable.inputs(sizes, torch.Generator().manual_seed(seed))
            with torch.no_grad():
                (found,), (expected,) = exportable.module(*inputs), exportable.reference(*inputs)
            assert found.dtype == torch.float32
            assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("kind", ["ltx", "ltx-condition"])
def test_every_input_matters(checkpoints: Callable[[str], Path], kind: str) -> None:
    """A term that the graph lost would leave an input without effect."""
    checkpoint = open_checkpoint(str(checkpoints(kind) / "large"))
    exportable = _load(checkpoint, checkpoint.folder / "transformer", Precision.FP32)
    inputs = exportable.inputs(exportable.export_sizes, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (before,) = exportable.module(*inputs)
        for index, (tensor, value) in enumerate(zip(exportable.spec.inputs, inputs, strict=True)):
            other = 1 - value if tensor.name == "text_mask" else value * 1.5 + 1
            (after,) = exportable.module(*(*inputs[:index], other, *inputs[index + 1 :]))
            assert (after - before).norm() > 1e-5 * before.norm(), tensor.name


@pytest.mark.parametrize("kind", ["ltx", "ltx-condition"])
@pytest.mark.parametrize(("guidance", "rate"), [(3.0, 25), (1.0, 24)])
def test_takes_the_stock_transformers_place_in_a_whole_run(
    checkpoints: Callable[[str], Path], kind: str, guidance: float, rate: int
) -> None:
    checkpoint = open_checkpoint(str(checkpoints(kind) / "large"))
    pipeline = DiffusionPipeline.from_pretrained(checkpoint.folder)
    pipeline.set_progress_bar_config(disable=True)
    module = _load(checkpoint, checkpoint.folder / "transformer", Precision.FP32).module
    batches: list[int] = []

    def run() -> torch.Tensor:
        result: torch.Tensor = pipeline(
            prompt="A red ball rolls over the grass",
            height=64,
            width=96,
            num_frames=17,
            num_inference_steps=4,
            guidance_scale=guidance,
            frame_rate=rate,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        ).frames
        return result

    def ours(
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        **_others: object,
    ) -> tuple[torch.Tensor]:
        batches.append(len(hidden_states))
        latents = hidden_states.transpose(1, 2).reshape(len(hidden_states), -1, 3, 2, 3)
        mask = encoder_attention_mask.long()
        frame_rate = torch.tensor([float(rate)])
        (velocity,) = module(latents, timestep.flatten(), encoder_hidden_states, mask, frame_rate)
        return (velocity.flatten(2).transpose(1, 2),)

    expected = run()
    pipeline.transformer.forward = ours
    found = run()
    assert batches == [2 if guidance > 1 else 1] * 4
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["ltx", "ltx-condition"])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.FP16_MIXED, Precision.BF16])
def test_graph_equals_the_stock_transformer(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str, precision: Precision
) -> None:
    checkpoint = open_checkpoint(str(checkpoints(kind) / "large"))
    ltx_transformer(7, layers=2, heads=2, head_dim=16, caption_channels=TEXT_DIM).save_pretrained(tmp_path / "small")
    part = Ltx().transformer(checkpoint, tmp_path / "small", "small")
    graph, parity = export_and_verify(part, precision, tmp_path, "", lambda _doing: None)
    assert parity.shapes >= 2
    assert parity.relative < TOLERANCE[Precision.FP32 if precision is Precision.BF16 else precision].relative
    assert [tensor.name for tensor in graph.spec.inputs] == ["latents", "timestep", "text", "text_mask", "frame_rate"]
