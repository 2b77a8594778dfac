"""CLIP's vision encoder as a graph: against transformers' class and its image processor, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from benchmarks.clip_checkpoints import SIZE, TOKENS, WIDTH, clip_parts
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.registry import open_engine
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.listing import product_types
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.families.clip import image_encoder_part, image_tokens
from flowblending.export.graph.trace import export_graph
from flowblending.export.verify.verify import TOLERANCE, export_and_verify
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.conditions.image_tokens import ImageEncoder
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.media.middle import middle
from tests.support.plans import RTX, ignore, needs_rtx

ENCODER, PROCESSOR = "image_encoder/config.json", "image_processor/preprocessor_config.json"


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return clip_parts(1)


@pytest.fixture
def checkpoint(parts: dict[str, Any], tmp_path: Path) -> Checkpoint:
    for name, part in parts.items():
        part.save_pretrained(tmp_path / "pipeline" / name)
    return Checkpoint(folder=tmp_path / "pipeline", pipeline="WanImageToVideoPipeline")


@pytest.fixture
def altered(checkpoint: Checkpoint) -> Callable[..., Checkpoint]:
    def alter(file: str, **settings: object) -> Checkpoint:
        path = checkpoint.folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return checkpoint

    return alter


def pipe(parts: dict[str, Any]) -> Any:
    return WanImageToVideoPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, **parts)


def test_colours_are_normalised_as_the_processor_does_it_to_the_bit(
    parts: dict[str, Any], checkpoint: Checkpoint
) -> None:
    """Of every value that a colour can have."""
    picture = np.resize(np.arange(256, dtype=np.uint8), (SIZE, SIZE, 1)).repeat(3, axis=2)
    module: Any = image_encoder_part(checkpoint).load(Precision.FP32).module
    found = module.normalised(torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32)))
    expected = parts["image_processor"](images=picture, return_tensors="pt")["pixel_values"]
    assert len(set(picture.ravel())) == 256
    assert torch.equal(found, expected)


def test_the_module_is_the_class(parts: dict[str, Any], checkpoint: Checkpoint) -> None:
    """In fp32, before anything is exported; the reference to the bit."""
    part = image_encoder_part(checkpoint)
    assert part.check() == ()
    assert {path.name for path in part.sources} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    made = part.load(Precision.FP32)
    (pixels,) = made.inputs({"batch": 2}, torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(each.permute(1, 2, 0).to(torch.uint8).numpy()) for each in pixels]
    with torch.no_grad():
        expected = pipe(parts).encode_image(pictures)
        assert torch.equal(made.reference(pixels)[0], expected)
        (found,) = made.module(pixels)
    assert found.shape == (2, TOKENS, WIDTH) == (2, image_tokens(checkpoint), WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_image_has_the_tokens_of_the_pipeline(parts: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path) -> None:
    """From a picture of any size to tokens, by the graph on ONNX Runtime; those of two behind one another."""
    graph, parity = export_and_verify(image_encoder_part(checkpoint), Precision.FP32, tmp_path, "", lambda _: None)
    assert parity.relative < TOLERANCE[Precision.FP32].relative / 4
    engine = open_engine(backend="onnxruntime", path=graph.onnx, spec=graph.spec, device="cpu")
    encoder = ImageEncoder(engine=engine, device=HostDevice())
    random = np.random.default_rng(0)
    first, last = (random.integers(0, 256, (1, 50, 90, 3)).astype(np.uint8) for _ in range(2))
    given = [GivenClip(name="last", frames=last, frame=8), GivenClip(name="first", frames=first)]
    with torch.no_grad():
        expected = pipe(parts).encode_image([Image.fromarray(each[0]) for each in (first, last)])
    found = encoder.tokens(given)
    assert found.shape == (1, 2 * TOKENS, WIDTH)
    np.testing.assert_allclose(found[0], expected.flatten(0, 1).numpy(), rtol=1e-4, atol=1e-4)
    assert middle(first[0], SIZE).shape == (SIZE, SIZE, 3)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_other_precisions(precision: Precision, checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_and_verify(image_encoder_part(checkpoint), precision, tmp_path, "", lambda _: None)


@pytest.mark.slow
@pytest.mark.long
@needs_rtx
def test_a_real_plan(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Without the last layer, whose tokens nobody takes."""
    graph = export_graph(image_encoder_part(checkpoint).load(Precision.FP32), tmp_path, "")
    profile = ShapeProfile({"batch": Range.fixed(1)})
    out = tmp_path / "image_encoder.plan"
    compile_plan(
        PlanRequest(library=RTX, onnx=graph.onnx, spec=graph.spec, profiles=(profile,), targets=("sm89",), out=out),
        ignore,
    )
    layers = [name for name in product_types(out) if ".layers." in name]
    assert len(layers) == 2 * 6
    assert set(product_types(out).values()) == {frozenset({"fp32"})}


def test_weights_with_the_rest_of_clip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As published checkpoints have it: other names, a projection, and numbers in a row."""
    CLIPVisionModelWithProjection.from_pretrained(checkpoint.folder / "image_encoder").save_pretrained(
        tmp_path / "whole"
    )
    file = tmp_path / "whole/model.safetensors"
    save_file({**load_file(file), "vision_model.embeddings.position_ids": torch.arange(TOKENS)[None]}, file)
    plain = image_encoder_part(checkpoint).load(Precision.FP32)
    pixels = plain.inputs({"batch": 1}, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (expected,) = plain.module(*pixels)
        shutil.copytree(tmp_path / "whole", checkpoint.folder / "image_encoder", dirs_exist_ok=True)
        part = image_encoder_part(checkpoint)
        lines = part.check()
        assert torch.equal(part.load(Precision.FP32).module(*pixels)[0], expected)
    assert any("visual_projection.weight is left out (CLIP's other half" in line for line in lines)


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        (ENCODER, {"model_type": "siglip_vision_model"}, "is of type siglip_vision_model, but clip_vision_model was"),
        (PROCESSOR, {"resample": 2}, r"has resample = 2, but 3 was expected: .* to 28 by bicubic interpolation"),
        (PROCESSOR, {"do_center_crop": False}, "has do_center_crop = False, but True was expected"),
        (PROCESSOR, {"size": {"height": 28, "width": 28}}, r"has size = \{'height': 28, 'width': 28\}, but 28 was"),
        (PROCESSOR, {"crop_size": None}, "has crop_size = None, but 28 was expected"),
        (PROCESSOR, {"image_mean": [0.5]}, "does not say how colours are normalised"),
        (PROCESSOR, {"image_std": [0.5, 0.5, 0.0]}, "does not say how colours are normalised"),
    ],
)
def test_what_is_refused(file: str, settings: dict[str, object], said: str, altered: Callable[..., Checkpoint]) -> None:
    with pytest.raises(FlowBlendingError, match=said) as caught:
        image_encoder_part(altered(file, **settings))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_an_encoder(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / PROCESSOR).unlink()
    with pytest.raises(FlowBlendingError, match=r"preprocessor_config\.json"):
        image_encoder_part(checkpoint)
    shutil.rmtree(checkpoint.folder / "image_encoder")
    with pytest.raises(FlowBlendingError, match="looks at images through CLIP, but there is no folder image_encoder"):
        image_encoder_part(checkpoint)


def test_settings_of_a_whole_clip_processor(checkpoint: Checkpoint) -> None:
    """Which has the image processor's in a file of its own name."""
    path = checkpoint.folder / PROCESSOR
    content = {"image_processor": json.loads(path.read_text()), "processor_class": "CLIPProcessor"}
    path.with_name("processor_config.json").write_text(json.dumps(content))
    path.unlink()
    assert image_encoder_part(checkpoint).sources[-1].name == "processor_config.json"
