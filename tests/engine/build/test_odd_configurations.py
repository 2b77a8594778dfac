"""Configurations with values that no pipeline has: one sentence each while planning, whichever library met them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowblending import FlowBlendingError
from flowblending.engine.build.build import BuildRequest
from flowblending.engine.build.plan import check_plan, make_plan
from flowblending.engine.build.request import named_models
from flowblending.engine.build.sources import find_sources

SCHEDULER = "scheduler/scheduler_config.json"
ODD: list[tuple[str, str, dict[str, Any], str]] = [
    ("wan", "transformer/config.json", {"attention_head_dim": 7}, "Cannot load the model in .*transformer .AssertionE"),
    ("wan", "text_encoder/config.json", {"num_layers": "two"}, "Cannot load the model in .*text_encoder .*num_layers"),
    ("wan", "transformer/config.json", {"_class_name": None}, "transformer/config.json names no class"),
    ("wan", "vae/config.json", {"latents_std": ["x"] * 16}, "latents_std of .*vae is .* above 0"),
    ("wan", "vae/config.json", {"latents_std": [1.0] * 15 + [0.0]}, "latents_std of .*vae is .* above 0"),
    ("wan", "vae/config.json", {"latents_mean": [float("nan")] * 16}, "latents_mean of .*vae is .* finite number"),
    ("wan", SCHEDULER, {"flow_shift": None}, "flow_shift = None, but a number above 0"),
    ("wan", SCHEDULER, {"flow_shift": -1}, "flow_shift = -1, but"),
    ("wan", SCHEDULER, {"flow_shift": float("inf")}, "flow_shift = inf, but"),
    ("wan", SCHEDULER, {"num_train_timesteps": "1000"}, "num_train_timesteps = '1000', but"),
    ("ltx", SCHEDULER, {"shift": 0, "use_dynamic_shifting": False}, "shift = 0, but"),
    ("ltx", SCHEDULER, {"max_image_seq_len": [4096], "use_dynamic_shifting": True}, "max_image_seq_len = .4096., but"),
]


@pytest.mark.parametrize(("family", "file", "fields", "told"), ODD, ids=[f"{each[1]} {each[2]}"[:60] for each in ODD])
def test_an_odd_value_is_a_sentence(
    family: str,
    file: str,
    fields: dict[str, Any],
    told: str,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    pair = shutil.copytree(checkpoints(family), tmp_path / "pair")
    path = pair / "large" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(FlowBlendingError, match=told) as error:
        plan(pair, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json"])
def test_json_that_is_too_deep_is_a_sentence(file: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    pair = shutil.copytree(checkpoints("wan"), tmp_path / "pair")
    (pair / "large" / file).write_text("[" * 100_000)
    with pytest.raises(FlowBlendingError, match=f"Cannot read .*{file}"):
        plan(pair, tmp_path)


def plan(pair: Path, scratch: Path) -> None:
    """Look at a pair as a build does before it reads weights."""
    asked = BuildRequest(
        models=named_models(str(pair / "large"), str(pair / "small")),
        out=scratch / "out",
        size="32x32",
        frames="9",
        precision=None,
        backend="onnxruntime",
        targets=(),
    )
    (scratch / "scratch").mkdir()
    sources = find_sources(asked, scratch / "scratch")
    check_plan(asked, make_plan(asked, sources.folders), sources)
