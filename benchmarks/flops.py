"""FLOPs of the real pairs per call and per schedule, with and without attention, beside the authors' published ones.

Then what other orders of the models, and other models in the small one's place, would allow, and what keeping the
text's keys and values, which are the same at every step, would save. The stock diffusers classes run on torch's meta
device, where a 14B model costs no memory, under torch's FLOP counter;
`tests/export/graph/test_flops.py` proves that counting from our exported graphs gives the same integers.

    python -m benchmarks.flops
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from flowblending.contracts.graph import LARGE, SMALL, SigmaGrid
from flowblending.contracts.models import Model
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.system.console import Console

TERA = 1e12
GIGA = 1e9
ATTENTION = ("scaled_dot_product", "bmm")
"""Fused, or as two batched products; the linear layers of a batch of one are plain matrix products."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of one call with batch 1: linear layers and convolutions, and attention products."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention


def count(run: Callable[[], object]) -> Flops:
    """Count what a function computes on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(value for operator, value in counts.items() if any(name in str(operator) for name in ATTENTION))
    return Flops(linear=sum(counts.values()) - attention, attention=attention)


def wan_model(layers: int, heads: int, ffn: int) -> WanTransformer3DModel:
    """A Wan 2.1 transformer without memory."""
    with torch.device("meta"):
        return WanTransformer3DModel(
            num_layers=layers, num_attention_heads=heads, attention_head_dim=128, ffn_dim=ffn, rope_max_seq_len=1024
        )


def ltx_model(layers: int, head_dim: int) -> LTXVideoTransformer3DModel:
    """An LTX-Video transformer without memory."""
    with torch.device("meta"):
        return LTXVideoTransformer3DModel(
            num_layers=layers, attention_head_dim=head_dim, cross_attention_dim=32 * head_dim
        )


@functools.cache
def wan(layers: int, heads: int, ffn: int, latent: tuple[int, int, int]) -> Flops:
    """A Wan 2.1 transformer on latents (frames, height, width) with 512 text tokens."""
    model = wan_model(layers, heads, ffn)
    with torch.device("meta"):
        latents, text, timestep = torch.empty(1, 16, *latent), torch.empty(1, 512, 4096), torch.empty(1)
    return count(lambda: model(hidden_states=latents, timestep=timestep, encoder_hidden_states=text))


@functools.cache
def ltx(layers: int, head_dim: int, latent: tuple[int, int, int]) -> Flops:
    """An LTX-Video transformer on latents (frames, height, width) with 256 text tokens."""
    frames, height, width = latent
    model = ltx_model(layers, head_dim)
    with torch.device("meta"):
        inputs: dict[str, Any] = {
            "hidden_states": torch.empty(1, frames * height * width, 128),
            "encoder_hidden_states": torch.empty(1, 256, 4096),
            "encoder_attention_mask": torch.empty(1, 256),
            "timestep": torch.empty(1),
        }
    return count(lambda: model(**inputs, num_frames=frames, height=height, width=width))


@dataclass(frozen=True, kw_only=True)
class TextProjections:
    """Keys and values of the text in every block of a transformer, which depend on the prompt alone.

    Attributes:
        flops: of computing them, once per call.
        weights: parameters that do it.
        all_weights: parameters of the transformer.
        values: numbers of all keys and values of one prompt.
    """

    flops: int
    weights: int
    all_weights: int
    values: int


def text_projections(model: torch.nn.Module, tokens: int) -> TextProjections:
    """Of a diffusers transformer whose blocks call their cross-attention ``attn2``."""
    layers = [
        projection
        for name, module in model.named_modules()
        if name.endswith(".attn2")
        for projection in (module.to_k, module.to_v)
    ]
    return TextProjections(
        flops=count(
            lambda: [layer(torch.empty(1, tokens, layer.in_features, device="meta")) for layer in layers]
        ).total,
        weights=sum(each.numel() for layer in layers for each in layer.parameters()),
        all_weights=sum(each.numel() for each in model.parameters()),
        values=sum(tokens * layer.out_features for layer in layers),
    )


# Latent sizes: 832x480 with 61 and 81 frames; 1280x720 with 81; 608x352 with 65; 1216x704 with 121.
PAIRS: dict[str, Callable[[], tuple[Flops, Flops]]] = {
    "Wan 480p, 61 frames": lambda: (wan(40, 40, 13824, (16, 60, 104)), wan(30, 12, 8960, (16, 60, 104))),
    "Wan 480p, 81 frames": lambda: (wan(40, 40, 13824, (21, 60, 104)), wan(30, 12, 8960, (21, 60, 104))),
    "Wan 720p, 81 frames": lambda: (wan(40, 40, 13824, (21, 90, 160)), wan(30, 12, 8960, (21, 90, 160))),
    "LTX 608x352, 65 frames": lambda: (ltx(48, 128, (9, 11, 19)), ltx(28, 64, (9, 11, 19))),
    "LTX 1216x704, 121 frames": lambda: (ltx(48, 128, (16, 22, 38)), ltx(28, 64, (16, 22, 38))),
}
PUBLISHED = {"LLL": 29950, "LSL": 19222, "LSS": 13858, "S10 L40": 24586, "SSS": 3129}
"""TFLOPs of the authors' project page for Wan, 50 steps, 61 frames; what they call SLL is S10 L40."""


ORDERS = {
    "L20 S20 L10": "FlowBlending",
    "L10 S40": "SRDiffusion (arXiv 2505.19151)",
    "L20 S30": "SRDiffusion",
    "S10 L40": "T-Stitch (arXiv 2402.14167)",
    "S25 L25": "T-Stitch",
}
"""Schedules of 50 steps, and whose they are."""
SIBLINGS: dict[str, Callable[[], Flops]] = {
    "the 1.3B model": lambda: wan(30, 12, 8960, (21, 60, 104)),
    "14B pruned to 21 of 40 blocks": lambda: wan(21, 40, 13824, (21, 60, 104)),
    "14B distilled to 4 steps": lambda: wan(40, 40, 13824, (21, 60, 104)),
}
"""What may stand in for the small model beside Wan 2.1 14B at 480p and 81 frames."""
PRESET = ":lightning4"
"""What stages of the distilled one take."""
SHIFT = 3.0
"""Wan's flow shift, which decides how many of its timesteps lie in a stage."""


def call_rows(flops: Mapping[str, tuple[Flops, Flops]]) -> list[tuple[str, ...]]:
    """What one call of each pair costs, and the speed-up that 40 % small steps allow."""
    rows: list[tuple[str, ...]] = []
    for name, (large, small) in flops.items():
        ratio, linear_ratio = small.total / large.total, small.linear / large.linear
        rows.append(
            (
                name,
                f"{large.linear / TERA:.2f} + {large.attention / TERA:.2f}",
                f"{small.linear / TERA:.2f} + {small.attention / TERA:.2f}",
                f"{ratio:.4f}",
                f"{linear_ratio:.4f}",
                f"{1 / (0.6 + 0.4 * ratio):.3f}x",
                f"{1 / (0.6 + 0.4 * linear_ratio):.3f}x",
            )
        )
    return rows


def schedule_totals(large: Flops, small: Flops) -> dict[str, Flops]:
    """Sums over the 50 steps of every published schedule, one guidance branch."""
    totals = {}
    for text in PUBLISHED:
        calls = [large if letter == "L" else small for letter in StageSchedule.parse(text, 50, 0.4, 0.2).letters]
        totals[text] = Flops(linear=sum(call.linear for call in calls), attention=sum(call.attention for call in calls))
    return totals


def bound(large: Flops, small: Flops, schedule: str) -> float:
    """How much less a schedule computes than the large model alone, all steps guided that do not say otherwise."""
    steps = StageSchedule.runs(schedule).steps
    program = compile_program(
        schedule=StageSchedule.runs(schedule),
        models={
            letter: Model(name=name, letter=letter, components=(name,)) for letter, name in (("L", LARGE), ("S", SMALL))
        },
        solver="unipc",
        grid=sigma_grid(SigmaGrid(kind="shifted", shift=SHIFT), "unipc", steps, 0),
        latent_shape=(1, 1, 1, 1),
        guidance=5.0,
        batched=False,
    )
    return 2 * steps * large.total / (program.calls(LARGE) * large.total + program.calls(SMALL) * small.total)


def order_rows(flops: Mapping[str, tuple[Flops, Flops]]) -> list[tuple[str, ...]]:
    """The bounds of every order of the models, a column for each pair."""
    pairs = flops.values()
    return [(text, whose, *(f"{bound(*pair, text):.2f}x" for pair in pairs)) for text, whose in ORDERS.items()]


def sibling_rows(large: Flops) -> list[tuple[str, ...]]:
    """The bounds with other models in the small one's place."""
    rows = []
    for name, count_small in SIBLINGS.items():
        preset = PRESET if "distilled" in name else ""
        schedules = (f"L20 S20{preset} L10", f"L10 S40{preset}")
        small = count_small()
        rows.append(
            (name, f"{small.total / large.total:.3f}", *(f"{bound(large, small, text):.2f}x" for text in schedules))
        )
    return rows


TEXTS: Mapping[str, Callable[[], TextProjections]] = {
    "Wan 14B": lambda: text_projections(wan_model(40, 40, 13824), 512),
    "Wan 1.3B": lambda: text_projections(wan_model(30, 12, 8960), 512),
    "LTX 13B": lambda: text_projections(ltx_model(48, 128), 256),
    "LTX 2B": lambda: text_projections(ltx_model(28, 64), 256),
}
"""By the models of `PAIRS`, the large one of a family first."""
TEXT_SIZES = ("Wan 480p, 81 frames", "Wan 720p, 81 frames", "LTX 608x352, 65 frames", "LTX 1216x704, 121 frames")
"""The pairs of `PAIRS` at whose sizes the shares are told."""
SIXTEEN_BIT = 2
"""Bytes of a number in bf16 or fp16."""


def text_rows(flops: Mapping[str, tuple[Flops, Flops]]) -> list[tuple[str, ...]]:
    """What the text's keys and values are of a call, of the weights, and in memory, at the sizes of some pairs."""
    rows: list[tuple[str, ...]] = []
    for name, project in TEXTS.items():
        family, size = name.split()
        text = project()
        calls = [pair[size in ("1.3B", "2B")] for title, pair in flops.items() if title.startswith(family)]
        rows.append(
            (
                name,
                f"{text.flops / TERA:.2f} TFLOPs",
                " / ".join(f"{text.flops / call.total:.2%}" for call in calls),
                f"{text.weights / text.all_weights:.1%}",
                f"{SIXTEEN_BIT * text.weights / GIGA:.2f} GB",
                f"{SIXTEEN_BIT * text.values / GIGA:.2f} GB",
            )
        )
    return rows


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description="Count the FLOPs of the real pairs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    arguments = parser.parse_args()
    console = Console()
    flops = {name: pair() for name, pair in PAIRS.items()}
    columns = ("TFLOPs of one call", "large", "small", "ratio", "linear only", "40 % small", "linear only")
    console.table("linear + attention; the speed-up that 40 % small steps allow", columns, call_rows(flops))
    totals = schedule_totals(*flops["Wan 480p, 61 frames"])
    rows = [
        (
            text,
            str(PUBLISHED[text]),
            f"{total.linear / TERA:.0f}",
            f"{total.linear / TERA / PUBLISHED[text] - 1:+.2%}",
            f"{total.total / TERA:.0f}",
        )
        for text, total in totals.items()
    ]
    headings = ("Wan, 50 steps, 61 frames", "published", "ours, linear only", "difference", "with attention")
    console.table("TFLOPs of one guidance branch", headings, rows)
    large_pairs = ("Wan 480p, 81 frames", "Wan 720p, 81 frames", "LTX 1216x704, 121 frames")
    console.table(
        "the speed-up that the FLOPs allow, attention included",
        ("schedule", "of", *large_pairs),
        order_rows({name: flops[name] for name in large_pairs}),
    )
    console.table(
        "likewise, with another model as S beside Wan 2.1 14B, 480p and 81 frames",
        ("S", "of a call of L", "L20 S20 L10", "L10 S40"),
        sibling_rows(flops["Wan 480p, 81 frames"][0]),
    )
    console.table(
        f"keys and values of a prompt, the same at every step; bytes in 16 bits; at {', '.join(TEXT_SIZES)}",
        ("model", "of a call", "share", "of the weights", "their bytes", "kept, for one prompt"),
        text_rows({name: flops[name] for name in TEXT_SIZES}),
    )
    if arguments.json is not None:
        content = {name: [dataclasses.asdict(each) for each in pair] for name, pair in flops.items()}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
