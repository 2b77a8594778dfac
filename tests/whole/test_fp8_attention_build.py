"""--fp8-attention from the checkpoint on: real plans of both families, and builds that find no kernel for it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import SMALL
from flowblending.contracts.proof import Proof
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.listing import fp8_attention, fused_attention
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.proof import pair_build
from flowblending.engine.build.proof.report import BuildReport, read_report
from flowblending.engine.build.proof.table import show_report
from flowblending.engine.build.request import named_models
from flowblending.engine.bundle.bundle import Bundle
from flowblending.export.graph.audit import audit
from tests.conftest import IN_PLANS, Build
from tests.engine.build.fp8.test_builder import bf16_graph
from tests.support.plans import RTX, ignore, needs_rtx
from tests.support.store_process import Recorder

pytestmark = [pytest.mark.slow, needs_rtx]

# The full sizes of both: 480p and 81 frames of Wan, 704x512 and 121 frames of LTX.
SIZES = {"wan": (21, 60, 104), "ltx": (16, 16, 22)}


@pytest.mark.long
@pytest.mark.parametrize(("kind", "head_dim", "target"), [("wan", 128, "sm89"), ("ltx", 64, "sm120")])
def test_real_plans_have_attention_in_fp8(
    kind: str, head_dim: int, target: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    from flowblending.export.fp8.attention import block_attention, quantise_attention
    from flowblending.export.fp8.layers import block_layers, quantise
    from flowblending.export.graph.trace import read_graph, write_graph

    plain = bf16_graph(kind, checkpoints(kind) / "large", tmp_path, head_dim)
    sizes = dict(zip(("frames", "height", "width"), SIZES[kind], strict=True))
    scratch: dict[bool, int] = {}
    for attention in (False, True):
        traced = read_graph(plain)
        modules = block_attention(traced.model.graph)
        names = [layer.name for layer in block_layers(traced.model.graph)]
        amax = dict.fromkeys([*names, *(name for each in modules for name in each.operands)], 5.0)
        assert [each.name.partition("blocks.")[2] for each in modules] == [
            f"{block}.attn{number}" for block in range(3) for number in (1, 2)
        ]
        traced = quantise(traced, amax, 1)
        graph = write_graph(quantise_attention(traced, amax, 1) if attention else traced, tmp_path / "fp8", "")
        request = PlanRequest(
            library=RTX,
            onnx=graph.onnx,
            spec=graph.spec,
            profiles=(
                ShapeProfile(
                    {"batch": Range(min=1, opt=2, max=2)} | {name: Range.fixed(size) for name, size in sizes.items()}
                ),
            ),
            targets=(target,),
            out=tmp_path / "large.plan",
        )
        scratch[attention] = compile_plan(request, ignore).scratch_bytes or 0
        asked = audit(graph.onnx, {"batch": 1, **sizes}).attention_types
        assert asked.keys() <= fused_attention(request.out)
        assert asked.keys() & fp8_attention(request.out) == {name for name, kind in asked.items() if kind == "fp8"}
    # Self-attention and cross-attention of the middle block.
    assert list(asked.values()) == ["bf16", "bf16", "fp8", "fp8", "bf16", "bf16"]
    # The scores of all pairs of tokens would take gigabytes.
    assert 0 < scratch[True] < 1.2 * scratch[False]


def brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fp8Options:
    """From here on: the option with a short calibration, and no trajectory of the pair, which other tests are about."""
    monkeypatch.setattr(pair_build, "AFFORDABLE", 0)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n")
    return Fp8Options(attention=True, prompts=prompts, steps=3)


def request(pair: Path, out: Path, size: str, frames: int | str, fp8: Fp8Options) -> BuildRequest:
    return BuildRequest(
        models=named_models(str(pair / "large"), str(pair / "small")),
        out=out,
        size=size,
        frames=frames,
        precision="small=fp8",
        backend=RTX,
        targets=("sm89", "sm120"),
        fp8=fp8,
    )


def small_of(bundle: Bundle) -> tuple[BuildReport, Proof, dict[str, tuple[str, str]]]:
    """The report, the small model's part, and what is claimed of its attention."""
    report = read_report(bundle)
    assert report is not None
    claims: dict[str, tuple[str, str]] = {
        claim.claim: (claim.state, claim.detail)
        for claim in report.claims
        if claim.component == SMALL and claim.claim.startswith("attention")
    }
    return report, report.components[SMALL], claims


@pytest.mark.long
def test_a_build_has_it(checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three latent frames of 8x8, in patches of 2x2: 48 tokens.
    asked = request(checkpoints("wan"), tmp_path / "bundle", "64x64", 9, brief(monkeypatch, tmp_path))
    asked = dataclasses.replace(asked, targets=("sm89",))
    console = Recorder()
    bundle = build_bundle(asked, console)
    assert any("20 of 27 layers in fp8, " in line and "attention in 4 of 4 places" in line for line in console.lines)
    _, proof, claims = small_of(bundle)
    assert (proof.graph.attention, proof.no_fp8_attention) == ({"fp8": 4}, None)
    assert claims["attention fused"] == ("proved", "4 of 4")
    state, detail = claims["attention in fp8"]
    assert (state, detail.partition(";")[0]) == ("proved", "4 of 4 in the plan, of 4 altogether")
    assert b"_qmma_e4m3" in bundle.path(SMALL).read_bytes()
    assert "--fp8-attention" in bundle.manifest.rebuild
    assert bundle.manifest.components[SMALL].key["precision"].endswith(", attention too")

    # A calibration file without its ranges is refused before anything is exported.
    given = tmp_path / "given.json"
    content = json.loads((bundle.folder / "fp8_calibration.json").read_text())
    del content["models"][SMALL]["layers"]["blocks.1.attn2.key"]
    given.write_text(json.dumps(content))
    reused = dataclasses.replace(asked, fp8=Fp8Options(attention=True, calibration=given))
    console = Recorder()
    with pytest.raises(
        FlowBlendingError,
        match=r"given\.json has no range for blocks\.1\.attn2\.key of small, which --fp8-attention needs; leave out",
    ):
        build_bundle(reused, console)
    assert not any("exporting" in line or "built" in line for line in console.lines)


@pytest.mark.long
def test_a_build_that_finds_no_kernel_says_so_and_goes_on(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Up to three latent frames of 4x2: 24 tokens, and the kernels begin with 32 keys.
    (size, frames), others = IN_PLANS["ltx"], "large=fp16-mixed"
    plain = build(
        "ltx", size=size, frames=frames, backend=RTX, targets=("sm120", "sm89"), precision=f"{others},small=bf16"
    )
    shutil.copytree(plain.folder, tmp_path / "bundle")
    asked = request(checkpoints("ltx"), tmp_path / "bundle", size, frames, brief(monkeypatch, tmp_path))
    asked = dataclasses.replace(asked, precision=f"{others},small=fp8", cache=tmp_path / "cache")
    console = Recorder()
    bundle = build_bundle(asked, console)
    bundle.verify()
    (line,) = (line for line in console.lines if "attention is left in 16 bits" in line)
    assert "no fused kernel for the fp8 attention of small" in line
    first, second = (line for line in console.lines if " layers in fp8, " in line)
    assert "attention in 4 of 4 places" in first
    assert "attention in" not in second
    report, proof, claims = small_of(bundle)
    assert proof.graph.attention == {"bf16": 4}
    assert proof.no_fp8_attention is not None
    assert line.endswith(proof.no_fp8_attention)
    assert claims == {"attention fused": ("proved", "4 of 4")}
    assert not report.failed
    shown = Recorder()
    show_report(report, shown)
    assert f"  small, attention not in fp8: {proof.no_fp8_attention}" in shown.lines
    assert not any("no_fp8_attention" in path.name for path in bundle.folder.iterdir())
    # The cache keeps what it is as what was asked for, and tells of it again.
    console = Recorder()
    again = build_bundle(dataclasses.replace(asked, out=tmp_path / "again"), console)
    assert "small: taken from the cache" in console.lines
    assert small_of(again)[1].no_fp8_attention == proof.no_fp8_attention
