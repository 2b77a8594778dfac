"""Wan transformers that see images through CLIP: against the stock classes, what is declared, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.clip_checkpoints import TOKENS, WIDTH
from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import IMAGE_CHANNELS, IMAGE_TOKENS, Source, images_taken
from flowblending.contracts.graph import LARGE, Precision
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.listing import fused_attention, product_types
from flowblending.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flowblending.export.checkpoint.together import TokenIds, check_together
from flowblending.export.checkpoint.weights_file import read_weights
from flowblending.export.families.pair import check_pair
from flowblending.export.families.pipeline_class import with_conditions
from flowblending.export.families.stand_in import stand_in
from flowblending.export.families.wan.family import Wan
from flowblending.export.families.wan.names import authors_name
from flowblending.export.graph.stored import find_stored
from flowblending.export.graph.trace import export_graph
from flowblending.export.verify.verify import TOLERANCE, export_and_verify
from tests.support.plans import RTX, ignore, needs_rtx

KINDS = {"wan-clip": 1, "wan-ends": 2, "skyreels": 1}
"""Images that there have to be, by kind of checkpoint."""
WAN = Wan()


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Checkpoint:
    return with_conditions(open_checkpoint(checkpoints(request.param) / "large"), ())


every = pytest.mark.parametrize("checkpoint", list(KINDS), indirect=True)


@every
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16_MIXED])
def test_the_module_is_the_stock_class(checkpoint: Checkpoint, precision: Precision) -> None:
    """In torch, where fp16-mixed is compared with the class in fp32, and each at two sizes of batch."""
    part = WAN.transformer(checkpoint, checkpoint.folder / "transformer", LARGE)
    made = part.load(precision)
    stock = made if precision is not Precision.FP16_MIXED else part.load(Precision.FP32)
    for sizes in made.verify_sizes:
        given = made.inputs(sizes, torch.Generator().manual_seed(0))
        with torch.no_grad():
            (found,), (expected,) = made.module(*given), stock.reference(*given)
        allowed = TOLERANCE[precision].relative / (1 if precision is Precision.FP16_MIXED else 4)
        assert (found - expected).norm() < allowed * expected.norm()


@every
def test_the_reference_is_called_as_the_pipeline_calls_it(checkpoint: Checkpoint) -> None:
    """Of a first and a last image, the tokens are two rows there."""
    made: Any = WAN.transformer(checkpoint, checkpoint.folder / "transformer", LARGE).load(Precision.FP32)
    latents, timestep, text, channels, tokens = made.inputs(made.verify_sizes[0], torch.Generator().manual_seed(0))
    rows = tokens.view(-1, TOKENS, WIDTH)
    with torch.no_grad():
        expected = made.reference.model(
            torch.cat([latents, channels], dim=1),
            timestep=timestep,
            encoder_hidden_states=text,
            encoder_hidden_states_image=rows,
            return_dict=False,
        )[0]
        assert torch.equal(made.reference(latents, timestep, text, channels, tokens)[0], expected)
        (other,) = made.module(latents, timestep, text, channels, tokens.flip(2))
    assert len(rows) == images_taken(WAN.describe(checkpoint).conditions)
    assert (other - expected).norm() > 1e-3 * expected.norm()


@every
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.FP16_MIXED, Precision.BF16])
def test_the_graph(checkpoint: Checkpoint, precision: Precision, tmp_path: Path) -> None:
    part = WAN.transformer(checkpoint, checkpoint.folder / "transformer", LARGE)
    export_and_verify(part, precision, tmp_path, "", lambda _: None)


@pytest.mark.parametrize("checkpoint", [*KINDS, "wan-image"], indirect=True)
@pytest.mark.slow
@pytest.mark.long
@needs_rtx
def test_a_real_plan(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Every product in bf16; where images are seen, a third attention in each block, and all of them one kernel."""
    part = WAN.transformer(checkpoint, checkpoint.folder / "transformer", LARGE)
    graph = export_graph(part.load(Precision.BF16), tmp_path, "")
    profile = ShapeProfile(
        {name: Range.fixed(size) for name, size in {"batch": 1, "frames": 3, "height": 6, "width": 4}.items()}
    )
    out = tmp_path / "large.plan"
    compile_plan(
        PlanRequest(library=RTX, onnx=graph.onnx, spec=graph.spec, profiles=(profile,), targets=("sm89",), out=out),
        ignore,
    )
    config = checkpoint.config("transformer")
    seen = config["image_dim"] is not None
    assert len(fused_attention(out)) == (3 if seen else 2) * config["num_layers"]
    layers = {name.removeprefix("model.") for name, types in product_types(out).items() if types == {"bf16"}}
    last = f"blocks.{config['num_layers'] - 1}."
    assert {f"{last}attn1.to_q", f"{last}attn2.to_q", f"{last}ffn.net.2"} <= layers
    assert ({f"{last}attn2.add_k_proj", f"{last}attn2.add_v_proj"} <= layers) == seen


@every
def test_what_is_declared(checkpoint: Checkpoint, request: pytest.FixtureRequest) -> None:
    spec = WAN.describe(checkpoint)
    count = KINDS[request.node.callspec.params["checkpoint"]]
    assert [each.name for each in spec.conditions] == ["text", IMAGE_CHANNELS, IMAGE_TOKENS]
    tokens = spec.conditions[-1]
    assert (tokens.sources, tokens.shape, tokens.images) == ((Source.IMAGE,), ("batch", count * TOKENS, WIDTH), count)
    assert WAN.parts(checkpoint)[-1].name == "image_encoder"
    usual = (960, 544, 97, 24.0) if "SkyReels" in spec.pipeline else (832, 480, 81, 16.0)
    assert (spec.width, spec.height, spec.frames, spec.frame_rate) == usual
    check_together(checkpoint, TokenIds(largest=10, end=1, pad=0), beside=20)
    with pytest.raises(UsageError, match="is shown images or a control, for which there is none"):
        WAN.signal(checkpoint.folder / "transformer", "signal")


def altered(checkpoint: Checkpoint, folder: Path, **settings: object) -> Path:
    """A transformer's folder without weights, with other settings."""
    config = checkpoint.config("transformer") | settings
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("checkpoint", "settings", "said"),
    [
        (
            "wan-clip",
            {"pos_embed_seq_len": 514},
            "has positions for 514 tokens of images, but .* 17 of an image, 34",
        ),
        ("wan-clip", {"added_kv_proj_dim": None}, "has image_dim and no added_kv_proj_dim, but"),
        ("wan-clip", {"image_dim": None}, "has added_kv_proj_dim and no image_dim, but"),
        ("skyreels", {"inject_sample_info": True}, r"for diffusion forcing \(DF\), which is not supported"),
        ("skyreels", {"num_frame_per_block": 5}, r"for diffusion forcing \(DF\), which is not supported"),
    ],
    indirect=["checkpoint"],
)
def test_what_is_refused(checkpoint: Checkpoint, settings: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match=said) as caught:
        WAN.transformer(checkpoint, altered(checkpoint, tmp_path / "other", **settings), LARGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("checkpoint", ["wan-clip"], indirect=True)
def test_what_does_not_fit_together(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = dataclasses.replace(checkpoint, pipeline="WanPipeline", takes=())
    with pytest.raises(FlowBlendingError, match="looks at an image through CLIP, which WanPipeline does not give it"):
        WAN.transformer(text, checkpoint.folder / "transformer", LARGE)
    wide = dataclasses.replace(checkpoint, transformer=altered(checkpoint, tmp_path / "wide", image_dim=32))
    with pytest.raises(FlowBlendingError, match=r"image encoder's output is 24, but the transformer takes .* 32"):
        check_together(wide, TokenIds(largest=10, end=1, pad=0), beside=20)
    ours = checkpoint.folder / "transformer"
    for name, value in (("image_dim", None), ("pos_embed_seq_len", 34)):
        other = altered(checkpoint, tmp_path / name, **{name: value})
        with pytest.raises(FlowBlendingError, match=f"cannot be a pair: the transformer's {name} is "):
            check_pair(checkpoint, ours, other, None)


@every
def test_a_file_under_the_authors_names(
    checkpoint: Checkpoint, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """It is the transformer that it was made of, to its configuration; beside text alone it is refused."""
    folder = checkpoint.folder / "transformer"
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "model.safetensors"
    save_file({authors_name(name): tensor for name, tensor in tensors.items()}, file)
    found = stand_in(read_weights(file), checkpoint, tmp_path / "scratch", here=True)
    ours, theirs = (json.loads((each / "config.json").read_text()) for each in (found.folder, folder))
    assert {name: ours.get(name) for name in theirs} == theirs
    stored = {name: tensor.read() for name, tensor in find_stored(found.folder).items()}
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
    part = WAN.transformer(checkpoint, found.folder, LARGE)
    assert part.check() == ()
    text = open_checkpoint(checkpoints("wan") / "large")
    with pytest.raises(FlowBlendingError, match=r"holds an image-to-video model .*, but a text-to-video model was"):
        stand_in(read_weights(file), text, tmp_path / "other", here=True)
