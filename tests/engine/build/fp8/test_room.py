"""What a calibration on a CPU is said to take, against a graph's own count and what the kernel tells of a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.random_checkpoint import Model, write_model
from flowblending import FlowBlendingError, UsageError
from flowblending.engine.build.fp8.room import (
    Load,
    calibration_load,
    check_load,
    sampled_geometry,
)
from flowblending.engine.build.fp8.trajectories import RangesRequest, Trajectories, sample_ranges
from flowblending.engine.bundle.geometry import plan_geometry
from flowblending.export.checkpoint.model_files import model_files
from flowblending.runtime.options import Job
from flowblending.system.host_memory import available_memory
from tests.support.manifests import MODELS, PIPELINE

SMALLEST = plan_geometry(PIPELINE, (64, 32), 9)


def load(folder: Path, size: tuple[int, int], frames: int) -> Load:
    settings = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 512, "text_dim": 32}
    for name, layers in (("large", 6), ("small", 2)):
        model = Model(kind="WanTransformer3DModel", settings=settings | {"num_layers": layers})
        write_model(model, folder / name)
    files = {name: model_files(folder / name) for name in ("large", "small")}
    return calibration_load(files, {"large": 30, "small": 10}, PIPELINE, plan_geometry(PIPELINE, size, frames))


def test_memory_and_operations_grow_with_the_square_of_the_tokens(tmp_path: Path) -> None:
    one, four = load(tmp_path, (832, 480), 41), load(tmp_path, (832, 480), 81)
    tokens = 11 * 30 * 52
    scores = 4 * 4 * tokens**2
    assert 3 * scores + 1e9 < one.memory < 3.2 * scores + 1e9
    assert 3.4 < (four.memory - 1e9) / (one.memory - 1e9) < 3.7
    products = 30 * 6 * 4 * 256 * tokens**2 + 10 * 2 * 4 * 256 * tokens**2
    assert products < one.operations < 1.5 * products


def test_what_is_told_and_what_is_refused() -> None:
    small = Load(calls={"large": 24, "small": 8}, operations=2e12, memory=2_000_000_000)
    told = "calibration: calls large 24 times and small 8 times at 64x32, 9 frames: 2 TFLOPs and up to 2.0 GB of memory"
    assert check_load(small, SMALLEST, 3_000_000_000) == f"{told} on the CPU"
    slow = Load(calls={"large": 24, "small": 0}, operations=3e16, memory=0)
    assert check_load(slow, SMALLEST, 1).endswith("smaller --fp8-size or fewer --fp8-steps or --fp8-prompts")
    assert "small 0 times" not in check_load(slow, SMALLEST, 1)
    with pytest.raises(
        FlowBlendingError, match=r"64x32, 9 frames takes up to 2\.0 GB .*1\.0 GB are .*--fp8-calibration FILE"
    ):
        check_load(small, SMALLEST, 1_000_000_000)
    assert 0 < available_memory() < 1e14


@pytest.mark.parametrize(
    ("schedule", "large", "small"),
    [("L20 S20 L10", 240, 160), ("S50", 0, 400), ("L20 S20:g1 L10", 240, 80), ("L20 S20:g1:t800,600 L10", 240, 8)],
)
def test_calls_of_a_schedule(schedule: str, large: int, small: int) -> None:
    """Of four prompts with guidance, where stages may have a scale and timesteps of their own."""
    plan = RangesRequest(
        pipeline=PIPELINE,
        models=MODELS,
        geometry=SMALLEST,
        graphs={},
        hints={},
        tokenizer=Path("none"),
        trajectories=Trajectories(jobs=tuple(Job(prompt=each) for each in "abcd"), schedule=schedule, steps=50),
        sample=False,
    )
    assert sample_ranges(plan, lambda _: None).calls == {"large": large, "small": small}


def test_another_size_than_the_bundles() -> None:
    assert sampled_geometry(PIPELINE, SMALLEST, None, None) == SMALLEST
    other = sampled_geometry(PIPELINE, SMALLEST, "320x192", 5)
    assert (other.size, other.frames) == ("320x192", 5)
    assert sampled_geometry(PIPELINE, SMALLEST, None, 5).size == "64x32"
    for size, frames, message in (
        ("33x32", None, "try --fp8-size 32x32"),
        ("x", None, "try --fp8-size 832x480"),
        (None, 4, "try --fp8-frames 5"),
    ):
        with pytest.raises(UsageError, match=message):
            sampled_geometry(PIPELINE, SMALLEST, size, frames)
