"""fp16-mixed: what is fp32 in it, and activations that overflow plain fp16."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import TEXT_DIM, ltx_transformer, wan_transformer
from flowblending.contracts.graph import LARGE, Precision
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.families.ltx.family import Ltx
from flowblending.export.families.wan.family import Wan
from flowblending.export.graph.audit import audit
from flowblending.export.graph.exportable import Exportable, Part
from flowblending.export.graph.mixed import normalise, project
from flowblending.export.verify.verify import TOLERANCE, export_and_verify

LARGEST = torch.finfo(torch.float16).max
ALLOWED = TOLERANCE[Precision.FP16_MIXED]
# "bare" is a Wan whose cross-attention takes the stream without a norm, as that of every LTX does.
KINDS = ["wan", "wan-bare", "ltx"]

LAYERS = 2
# A projection of the bare stream: its root mean square, the division by it and the product with it.
BARE = dict.fromkeys(("Pow", "ReduceMean", "Sqrt", "Clip"), LAYERS)
# Per block of Wan: three norms, those of four queries and keys; eight sums are the table's, two modulations' and the
# three of the stream; four products are modulation and gate. Once: time embedder and norm_out.
WAN = {
    **{"Cos": 1, "Sin": 1, "Gemm": 2, "Sigmoid": 2},
    **{"RotaryEmbedding": 2 * LAYERS, "RMSNormalization": 4 * LAYERS, "LayerNormalization": 3 * LAYERS + 1},
    **{"Add": 8 * LAYERS + 3, "Mul": 4 * LAYERS + 4},
}
ISLANDS = {
    "wan": WAN,
    "wan-bare": {
        **(WAN | BARE),
        **{"LayerNormalization": 2 * LAYERS + 1, "Add": 9 * LAYERS + 3, "Mul": 5 * LAYERS + 4, "Div": LAYERS},
    },
    # Per block of LTX: as Wan's, with two norms, and a projection of the bare stream. Once: positions and norm_out.
    "ltx": {
        **{"Cos": 4, "Sin": 4, "Range": 3, "Sub": 3, "Reciprocal": 1, "Div": LAYERS + 3, **BARE},
        **{"RotaryEmbedding": 2 * LAYERS, "RMSNormalization": 6 * LAYERS, "LayerNormalization": 1},
        **{"Add": 9 * LAYERS + 3, "Mul": 5 * LAYERS + 12},
    },
}


def plant(model: torch.nn.Module) -> None:
    """Scale the feed-forward layer of the first block and its gate: the stream leaves the range of fp16 there."""
    first = next(module for name, module in model.named_modules() if name.endswith("blocks.0"))
    table = first.get_parameter("scale_shift_table")
    weight = next(each for name, each in first.named_parameters() if name.endswith("net.2.weight"))
    with torch.no_grad():
        weight.mul_(40)
        table.view(6, -1)[5].add_(5e4)


@pytest.fixture
def part(checkpoints: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Part]:
    """A transformer with large activations."""

    def make(kind: str) -> Part:
        family, _, bare = kind.partition("-")
        checkpoint = open_checkpoint(str(checkpoints(family) / "large"))
        model = (
            ltx_transformer(7, head_dim=64, caption_channels=TEXT_DIM)
            if family == "ltx"
            else wan_transformer(7, head_dim=64, cross_attn_norm=not bare)
        )
        plant(model)
        model.save_pretrained(tmp_path / "model")
        return (Ltx() if family == "ltx" else Wan()).transformer(checkpoint, tmp_path / "model", LARGE)

    return make


def velocity(made: Exportable, call: Callable[..., tuple[torch.Tensor, ...]]) -> torch.Tensor:
    inputs = made.inputs(made.verify_sizes[1], torch.Generator().manual_seed(0))
    with torch.no_grad():
        return call(*inputs)[0]


def largest(made: Exportable) -> float:
    """The largest value that the first block gives; which of the two calls it is left to the family."""
    found: list[float] = []
    (block,) = (module for name, module in made.module.named_modules() if name.endswith("blocks.0"))
    block.register_forward_hook(lambda _block, _inputs, output: found.append(output.abs().max().item()))
    for call in (made.module, made.reference):
        velocity(made, call)
    return max(found)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_that_overflow_fp16_survive(kind: str, part: Callable[[str], Part]) -> None:
    full, half, mixed = (part(kind).load(each) for each in (Precision.FP32, Precision.FP16, Precision.FP16_MIXED))
    expected = velocity(full, full.reference)
    assert largest(full) > 1.5 * LARGEST
    for call in (half.module, half.reference):
        assert not velocity(half, call).isfinite().all()
    found = velocity(mixed, mixed.module)
    assert (found - expected).norm() < ALLOWED.relative * expected.norm()
    assert (found - expected).abs().max() < ALLOWED.maximum * expected.abs().max()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_survives_too(kind: str, part: Callable[[str], Part], tmp_path: Path) -> None:
    made = part(kind)
    graph, parity = export_and_verify(made, Precision.FP16_MIXED, tmp_path / "mixed", "", lambda _doing: None)
    assert parity.relative < ALLOWED.relative
    half = made.load(Precision.FP16)
    found = audit(graph.onnx, half.export_sizes)
    assert found.attention == {"fp16": 2 * LAYERS}
    assert found.scatters == 0
    # Wan's time embedder is fp32 in diffusers too.
    assert found.layers.get("fp32", 0) == (0 if kind == "ltx" else 2)
    assert found.share("fp16") > 0.99
    assert Counter(node.operator for node in found.islands) == ISLANDS[kind]
    # The weights of plain fp16, and a little: rotary tables, and the norms' vectors in fp32.
    weights = sum(parameter.nbytes for parameter in half.module.parameters())
    assert 0.98 * weights < graph.data.stat().st_size < 1.03 * weights


def test_a_projection_bears_a_stream_of_any_size() -> None:
    torch.manual_seed(0)
    wide = torch.nn.Linear(256, 64)
    narrow = copy.deepcopy(wide).half()
    stream = torch.randn(5, 256) * torch.tensor([1e-6, 1.0, 1e3, 1e6, 1e12])[:, None]
    with torch.no_grad():
        expected, found = wide(stream), project(narrow, stream)
        assert found.dtype == torch.float32
        assert ((found - expected).norm(dim=1) < 2e-3 * expected.norm(dim=1)).all()
        assert torch.equal(project(narrow, torch.zeros(1, 256))[0], narrow.bias.float())
        bare = torch.nn.Linear(256, 64, bias=False).half()
        assert project(bare, torch.zeros(1, 256)).abs().max() == 0


def test_a_norm_of_values_whose_squares_overflow() -> None:
    norm = torch.nn.RMSNorm(64, eps=1e-6).half()
    values = torch.full((1, 64), 6e4, dtype=torch.float16)
    with torch.no_grad():
        torch.testing.assert_close(normalise(values, norm), torch.ones(1, 64))
