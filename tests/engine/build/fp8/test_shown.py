"""fp8 of models that are shown images or a control: whole builds, calibrated on prompts that give some."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, Precision
from flowblending.engine.build.build import build_bundle
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.request import BuildRequest, named_models
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.generate import generate
from flowblending.runtime.option_values import make_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.prompt_file import read_jobs
from flowblending.system.console import Console
from tests.conftest import CONDITIONS, SMALLEST, Build
from tests.support.diffusers_reference import Floats, relative_error

pytestmark = [pytest.mark.slow, pytest.mark.long]

LINES: dict[str, list[dict[str, Any]]] = {
    "wan-vace": [
        {"prompt": "a cat", "video": "clip", "mask": "mask.png", "control_scale": "large=1,0.5,2 small=1.5"},
        {"prompt": "a dog", "video": "clip"},
        {"prompt": "rain"},
    ],
    "wan-image": [{"prompt": "a cat", "image": ["cat.png"]}, {"prompt": "a dog", "image": ["cat.png", "end.png@8"]}],
    "wan-clip": [{"prompt": "a cat", "image": ["cat.png"]}, {"prompt": "a dog", "image": ["end.png"]}],
    "ltx-condition": [{"prompt": "a cat", "image": ["cat.png", "end.png@16:0.8"]}, {"prompt": "a dog"}],
}


def given(kind: str, folder: Path) -> Path:
    """A prompt file beside its images; none where there are none for it."""
    random = np.random.default_rng(0)
    (folder / "clip").mkdir()
    for name in ("cat.png", "end.png", *(f"clip/{index}.png" for index in range(9))):
        Image.fromarray(random.integers(0, 256, (48, 32, 3)).astype(np.uint8)).save(folder / name)
    Image.fromarray(np.repeat([[0, 255]], 16, axis=1).astype(np.uint8)).resize((32, 48)).save(folder / "mask.png")
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES[kind]))
    return folder / "prompts.jsonl"


def final(bundle: Bundle, job: Job) -> Floats:
    pipeline = Pipeline(bundle=bundle, device=HostDevice())
    try:
        return generate(pipeline, job, None, Console(quiet=True)).latents
    finally:
        pipeline.close()


def blocks_in_fp8(path: Path) -> set[str]:
    """The blocks of a graph that have weights in fp8."""
    weights = onnx.load(path, load_external_data=False).graph.initializer
    names = {each.name for each in weights if each.data_type == onnx.TensorProto.FLOAT8E4M3FN and each.dims}
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize("kind", LINES)
def test_it_is_calibrated_on_what_is_given(
    kind: str, build: Build, checkpoints: Callable[[str], Path], engine_cache: Path, tmp_path: Path
) -> None:
    path, folder = given(kind, tmp_path), checkpoints(kind)
    plain = build(kind)
    request = BuildRequest(
        models=named_models(str(folder / "large"), str(folder / "small")),
        out=tmp_path / "bundle",
        size=SMALLEST[kind].size,
        frames=SMALLEST[kind].frames,
        precision="fp8",
        backend="onnxruntime",
        targets=(),
        conditions=CONDITIONS.get(kind, ()),
        fp8=Fp8Options(steps=4, prompts=path),
        cache=engine_cache,
    )
    console = Console(quiet=True)
    bundle = build_bundle(request, console)
    for name in bundle.manifest.transformers:
        assert bundle.manifest.components[name].spec.precision is Precision.FP8
    found = json.loads((bundle.folder / "fp8_calibration.json").read_text())
    assert found["prompts"] == [line["prompt"] for line in LINES[kind]]
    if kind == "wan-vace":
        # Of the large model's four blocks the first and the last are kept, with the control's blocks behind them.
        assert blocks_in_fp8(bundle.path(LARGE)) == {"blocks.1", "blocks.2", "vace_blocks.1"}
        assert blocks_in_fp8(bundle.path(SMALL)) == {"blocks.0", "blocks.1", "vace_blocks.0"}
    layers = found["models"][SMALL]["layers"]
    assert any(name.startswith("vace_blocks.0.") for name in layers) == (kind == "wan-vace")
    (job,) = [line.job for line in read_jobs(path, make_job({"prompt": "", "steps": 4})) if line.number == 1]
    assert job is not None
    error = relative_error(final(bundle, job), final(plain, job))
    assert 1e-5 < error < 0.1
    # Other images are another calibration, whose ranges are others; and so are none at all, where that may be.
    for each in (*path.parent.glob("*.png"), *path.parent.glob("clip/*.png")):
        Image.fromarray((np.asarray(Image.open(each)) // 3).astype(np.uint8)).save(each)
    other = build_bundle(dataclasses.replace(request, out=tmp_path / "other"), console)
    others = json.loads((other.folder / "fp8_calibration.json").read_text())["models"][SMALL]["layers"]
    assert {name for name in layers if layers[name] != others[name]}
    missing = dataclasses.replace(request, out=tmp_path / "none", fp8=Fp8Options(steps=4))
    if kind != "ltx-condition":
        with pytest.raises(UsageError, match="is shown images or videos, but none of the built-in prompts gives any"):
            build_bundle(missing, console)
    path.write_text(json.dumps(LINES[kind][0] | {"image" if kind != "wan-vace" else "video": "no.png"}) + "\n")
    with pytest.raises(Exception, match=r"no\.png"):
        build_bundle(dataclasses.replace(request, out=tmp_path / "none"), console)
    assert not (tmp_path / "none").exists()
