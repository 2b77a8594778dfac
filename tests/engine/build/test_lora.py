"""``--lora``: what is read of the option, which model a file goes into, and a whole build with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from benchmarks.checkpoints import ltx_transformer
from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.onnxruntime.run import OrtEngine
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.lora import fused_sha256, read_loras
from flowblending.engine.build.plan import Plan, make_plan
from flowblending.engine.build.request import named_models
from flowblending.engine.build.sources import Folders
from flowblending.engine.bundle.bundle import Bundle
from flowblending.export.checkpoint.size import apart_bytes
from flowblending.export.families.wan.names import authors_name
from flowblending.runtime.dry_run import plan_lines
from flowblending.runtime.job_facts import job_facts
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.video_metadata import video_metadata
from tests.conftest import SMALLEST, Build
from tests.support.lora_files import FORMATS, make_adapter, merged, write_lora
from tests.support.store_process import Recorder


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("a.safetensors", [(None, "a.safetensors", 1.0)]),
        ("a.safetensors:0.8", [(None, "a.safetensors", 0.8)]),
        ("large=a.safetensors:-1", [("large", "a.safetensors", -1.0)]),
        ("large=a:1.5,small=/x/b.safetensors", [("large", "a", 1.5), ("small", "/x/b.safetensors", 1.0)]),
        ("large=a:1e-1, large=b", [("large", "a", 0.1), ("large", "b", 1.0)]),
        ("./x=y/a.safetensors", [(None, "./x=y/a.safetensors", 1.0)]),
        ("a:b.safetensors", [(None, "a:b.safetensors", 1.0)]),
        ("a.pt", [(None, "a.pt", 1.0)]),
    ],
)
def test_options_are_read(option: str, expected: list[tuple[str | None, str, float]]) -> None:
    assert [(each.model, each.file, each.strength) for each in read_loras([option])] == expected
    # And as the command that builds a bundle again has it.
    again = read_loras([str(each) for each in read_loras([option])])
    assert [(each.model, each.strength) for each in again] == [(model, strength) for model, _, strength in expected]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("a.safetensors:", "the strength nothing"),
        ("a.safetensors:strong", "the strength strong"),
        ("a.safetensors:nan", "the strength nan"),
        ("a.safetensors:inf", "the strength inf"),
        ("", "names no file"),
        ("large=", "names no file"),
        ("=a.safetensors", "names no model"),
        ("large=:0.5", "names no file"),
        ("a.safetensors,", "names no file"),
    ],
)
def test_options_that_say_nothing_are_refused(option: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_loras([option])


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair of checkpoints, and the LoRA of each in a format."""

    folder: Path
    loras: Path

    def lora(self, model: str, kind: str, seed: int = 1) -> Path:
        folder = self.folder / {"large": "large/transformer", "small": "small"}[model]
        stock = WanTransformer3DModel.from_pretrained(folder)
        return write_lora(
            make_adapter(stock, seed),
            FORMATS[kind],
            authors_name,
            self.loras / f"{model} {kind.partition(',')[0]}{seed}",
        )

    def request(self, out: Path, *loras: str, **changes: Any) -> BuildRequest:
        asked = BuildRequest(
            models=named_models(str(self.folder / "large"), str(self.folder / "small")),
            out=out,
            size=SMALLEST["wan"].size,
            frames=SMALLEST["wan"].frames,
            precision=None,
            backend="onnxruntime",
            targets=(),
            loras=read_loras(loras),
        )
        return dataclasses.replace(asked, **changes)

    def plan(self, *loras: str) -> Plan:
        return make_plan(self.request(Path("out"), *loras), self.folders("small"))

    def folders(self, small: str) -> Folders:
        """Where a build would find the checkpoints."""
        large = self.folder / "large"
        return Folders(base=large, models={"large": large, "small": self.folder / small})


@pytest.fixture
def pair(checkpoints: Callable[[str], Path], tmp_path: Path) -> Pair:
    return Pair(checkpoints("wan"), tmp_path / "loras")


def test_a_file_goes_into_the_model_that_it_fits(pair: Pair) -> None:
    large, small = pair.lora("large", "musubi"), pair.lora("small", "PEFT")
    plan = pair.plan(f"{small}:0.5", str(large))
    parts = {part.name: part for part in plan.parts}
    assert [str(each) for each in parts["small"].loras] == ["small PEFT1/adapter_model.safetensors at 0.5"]
    assert [str(each) for each in parts["large"].loras] == ["lora.safetensors at 1"]
    assert parts["text_encoder"].loras == ()
    assert not any("drifts" in line for line in plan.advice)
    assert any("Only large got a LoRA: the steps of small" in line for line in pair.plan(str(large)).advice)


def test_a_file_for_the_other_model_says_which(pair: Pair) -> None:
    large = pair.lora("large", "musubi")
    with pytest.raises(UsageError, match=rf"was made for large, not for small; give it as --lora large={large}\."):
        pair.plan(f"small={large}")
    with pytest.raises(UsageError, match="names the model draft, but the models are large, small"):
        pair.plan(f"draft={large}")


def test_a_file_that_fits_several_models_has_to_say_which(pair: Pair) -> None:
    large = pair.lora("large", "musubi")
    twice = named_models(str(pair.folder / "large"), str(pair.folder / "large"))
    request = dataclasses.replace(pair.request(Path("out"), str(large)), models=twice)
    with pytest.raises(UsageError, match=rf"fits large and small; name .*: --lora large={large},small={large}\."):
        make_plan(request, pair.folders("large"))


def test_the_name_of_a_model_with_two_experts_is_both(pair: Pair, tmp_path: Path) -> None:
    large = Path(shutil.copytree(pair.folder / "large", tmp_path / "pair/large"))
    shutil.copytree(pair.folder / "small", tmp_path / "pair/small")
    shutil.copytree(large / "transformer", large / "transformer_2")
    index = large / "model_index.json"
    experts = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
    index.write_text(json.dumps(json.loads(index.read_text()) | experts))
    two = dataclasses.replace(pair, folder=tmp_path / "pair")
    path = two.lora("large", "musubi")
    plan = two.plan(f"large={path}:0.5,large_low={path}")
    strengths = {part.name: [each.strength for each in part.loras] for part in plan.parts if part.loras}
    assert strengths == {"large_high": [0.5], "large_low": [0.5, 1.0]}
    with pytest.raises(UsageError, match=rf"name .*: --lora large_high={path},large_low={path}\."):
        two.plan(str(path))
    with pytest.raises(UsageError, match="the models are large, small, large_high, large_low; use one"):
        two.plan(f"low={path}")


def test_a_file_that_fits_none_says_why(pair: Pair, tmp_path: Path) -> None:
    path = write_lora(make_adapter(ltx_transformer(0)), FORMATS["musubi"], lambda name: name, tmp_path)
    with pytest.raises(UsageError, match="tensors belong to no layer of the model: lora_unet_"):
        pair.plan(str(path))


def test_a_model_may_have_several_in_the_order_given(pair: Pair) -> None:
    one, two = pair.lora("large", "musubi"), pair.lora("large", "PEFT", 2)
    (part, *_) = pair.plan(f"large={one}:0.5,large={two}:-1", f"large={one}").parts
    assert [each.strength for each in part.loras] == [0.5, -1.0, 1.0]
    # What a calibration of fp8 puts into a file of its own.
    assert apart_bytes(part.sources, part.changed) == 4 * sum(
        each.numel()
        for name, each in WanTransformer3DModel.from_pretrained(pair.folder / "large/transformer").named_parameters()
        if name in part.changed
    )


def test_keys_depend_on_content_strength_and_scales(pair: Pair) -> None:
    def key(model_lora: str) -> str:
        (part, *_) = pair.plan(model_lora).parts
        return fused_sha256("weights", [(lora, lora.path.read_bytes().hex()) for lora in part.loras])

    path, other = pair.lora("large", "musubi"), pair.lora("large", "musubi", 2)
    keys = {key(f"{path}"), key(f"{path}:0.5"), key(f"{path}:-1"), key(f"{other}")}
    assert len(keys) == 4
    # Where it lies and what it is called are no part of it.
    moved = Path(shutil.copy(path, path.with_name("renamed.safetensors")))
    assert key(f"{moved}") == key(f"{path}")
    # But its alpha is, which PEFT keeps in another file.
    peft = pair.lora("large", "PEFT")
    before = key(f"{peft}")
    config = peft.with_name("adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 64}))
    assert key(f"{peft}") != before


@pytest.mark.slow
@pytest.mark.long
def test_a_bundle_with_lora_computes_with_it_and_says_so(build: Build, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(build("wan").folder, out)
    large = pair.lora("large", "diffusion_model, down/up, alpha")
    console = Recorder()
    bundle = build_bundle(pair.request(out, f"large={large}:0.8"), console)
    assert "large: rebuilt, weights changed" in console.lines
    assert "small: reused, nothing changed" in console.lines
    assert bundle.manifest.id != build("wan").manifest.id
    assert bundle.manifest.loras == "large=lora.safetensors:0.8"
    (fused,) = bundle.manifest.components["large"].loras
    assert fused.sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    assert bundle.manifest.components["small"].loras == ()
    assert f"--lora large={large}:0.8" in " ".join(bundle.manifest.rebuild)
    job = Job(prompt="a cat", steps=2)
    assert "lora      large=lora.safetensors:0.8" in plan_lines(bundle, job, CPU)
    assert job_facts(job, compile_job(job, bundle.manifest), bundle.manifest)["lora"] == bundle.manifest.loras
    # What it writes is what it reads.
    assert Manifest.model_validate_json((out / "manifest.json").read_text()) == bundle.manifest
    _equals_the_merged_adapter(bundle, pair)
    assert video_metadata(bundle.manifest, job, compile_job(job, bundle.manifest))["lora"] == bundle.manifest.loras
    # Another strength is another engine; the same again is not.
    again = Recorder()
    build_bundle(pair.request(out, f"large={large}:0.8"), again)
    assert "large: reused, nothing changed" in again.lines
    without = Recorder()
    plain = build_bundle(pair.request(out), without)
    assert "large: rebuilt, weights changed" in without.lines
    assert plain.manifest.loras == ""
    assert plain.manifest.id == build("wan").manifest.id


def _equals_the_merged_adapter(bundle: Bundle, pair: Pair) -> None:
    stock = WanTransformer3DModel.from_pretrained(pair.folder / "large/transformer").eval()
    expected = merged(stock, make_adapter(stock, 1), 0.8)
    component = bundle.manifest.components["large"]
    engine = OrtEngine(bundle.folder / component.files[0].path, component.spec, device=CPU, stream=0)
    generator = torch.Generator().manual_seed(0)
    sizes = {"batch": 1, "frames": 3, "height": 6, "width": 4}
    latents, timestep, text = (torch.randn(spec.resolve(sizes), generator=generator) for spec in component.spec.inputs)
    output = np.empty(tuple(latents.shape), np.float32)
    given = {"latents": latents, "timestep": timestep.abs() * 100, "text": text}
    named = {name: Tensor.of(value.numpy()) for name, value in given.items()}
    engine.run({**named, "velocity": Tensor.of(output)}, 0)
    engine.close()
    with torch.no_grad():
        (reference,) = expected(latents, given["timestep"], text, return_dict=False)
    assert np.linalg.norm(output - reference.numpy()) < 1e-5 * np.linalg.norm(reference.numpy())
