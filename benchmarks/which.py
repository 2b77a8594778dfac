"""The tables of docs/which.md that follow from the code, written into the page.

    python -m benchmarks.which            # writes them anew
    python -m benchmarks.which --print    # prints them

`tests/whole/test_which.py` fails where the page has others.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.random_checkpoint import MODELS, element_counts
from flowblending.contracts.graph import PipelineSpec, Precision
from flowblending.runtime.program.schedule import StageSchedule

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "which.md"

COMPONENTS: Mapping[str, str] = {
    "wan-14b": "Wan 14B transformer",
    "wan-1.3b": "Wan 1.3B transformer",
    "umt5-xxl": "UMT5-XXL, Wan's text encoder",
    "ltx-13b": "LTX-Video 13B transformer",
    "ltx-2b": "LTX-Video 2B transformer",
    "t5-xxl": "T5-XXL, LTX-Video's text encoder",
}
PAIRS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "Wan 2.1 14B and 1.3B": (("wan-14b",), "wan-1.3b", "umt5-xxl"),
    "Wan 2.2 A14B, both experts, and Wan 2.1 1.3B": (("wan-14b", "wan-14b"), "wan-1.3b", "umt5-xxl"),
    "LTX-Video 13B and 2B": (("ltx-13b",), "ltx-2b", "t5-xxl"),
}
"""Engines of the large model, the small one, and the text encoder."""
MIXES: Mapping[str, tuple[Precision, Precision, Precision]] = {
    "all in bf16": (Precision.BF16, Precision.BF16, Precision.BF16),
    "large=bf16,small=fp8": (Precision.BF16, Precision.FP8, Precision.BF16),
    "large=fp8,small=fp8": (Precision.FP8, Precision.FP8, Precision.BF16),
}
FAMILIES: Mapping[str, tuple[str, str]] = {
    "Wan 2.1": ("wan", "WanPipeline"),
    "LTX-Video 0.9.0, 0.9.1": ("ltx", "LTXPipeline"),
    "LTX-Video 0.9.5 and later": ("ltx-condition", "LTXConditionPipeline"),
}
"""What they are called, a tiny checkpoint of each in `benchmarks.checkpoints`, and its pipeline class."""

GPUS: Mapping[str, str] = {
    "sm75": "T4, RTX 20",
    "sm80": "A100, A30",
    "sm86": "RTX 30, A10, A40, RTX A6000",
    "sm89": "RTX 40, L4, L40S, RTX 6000 Ada",
    "sm90": "H100, H200, GH200",
    "sm100": "B200, GB200",
    "sm120": "RTX 50, RTX PRO 6000 Blackwell",
    "sm121": "GB10 (DGX Spark)",
}
"""Examples by architecture, as NVIDIA lists them (developer.nvidia.com/cuda-gpus)."""

AHEAD = ("sm75", "sm86", "sm89", "sm120", "sm121")
"""What TensorRT-RTX 1.7 supports; the library itself is asked in the test."""

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def defaults() -> Table:
    """What runs take unless told otherwise, as `Family.describe` tells it of a checkpoint of each pipeline class."""
    specs = {name: described(kind, pipeline) for name, (kind, pipeline) in FAMILIES.items()}
    rows: Mapping[str, Callable[[PipelineSpec], object]] = {
        "pipeline class": lambda spec: f"`{spec.pipeline}`",
        "size, frames": lambda spec: f"{spec.width}x{spec.height}, {spec.frames}",
        "frame rate": lambda spec: f"{spec.frame_rate:g}",
        "steps": lambda spec: spec.steps,
        "solver": lambda spec: f"`{spec.solver}`",
        "guidance": lambda spec: f"{spec.guidance:g}, {'one batched call' if spec.batched_guidance else 'two calls'}",
        "noise levels": lambda spec: _LEVELS[spec.grid.kind],
        "`LSL` at these steps": lambda spec: str(StageSchedule.parse("LSL", spec.steps, spec.early, spec.late)),
        "shares of `LSL`": lambda spec: " / ".join(
            f"{share:.1%}" for share in (spec.early, 1 - spec.early - spec.late, spec.late)
        ),
        "tokens of a prompt": lambda spec: spec.text_length,
    }
    return ("", *specs), [(name, *(str(tell(spec)) for spec in specs.values())) for name, tell in rows.items()]


_LEVELS = {
    "shifted": "the shift of the checkpoint's scheduler",
    "dynamic-shift": "a shift that grows with the video's size",
    "linear-quadratic": "a fixed curve without a shift",
}


def described(kind: str, pipeline: str) -> PipelineSpec:
    """What a family tells of a tiny checkpoint."""
    from benchmarks.checkpoints import PAIRS as TINY
    from flowblending.export.checkpoint.checkpoint import Checkpoint
    from flowblending.export.families.registry import FAMILIES as KNOWN

    (row,) = [row for row in KNOWN.rows() if pipeline in row.pipelines]
    with tempfile.TemporaryDirectory() as folder:
        TINY[kind](Path(folder))
        return row.load().describe(Checkpoint(folder=Path(folder) / "large", pipeline=pipeline))


def authors() -> Table:
    """How the authors of known models sample, where the checkpoint does not say it."""
    from flowblending.export.families.wan.authors import AUTHORS

    rows = [
        (
            each.model,
            f"{each.shift:g}",
            str(each.steps),
            " and ".join(f"{scale:g}" for scale in each.guidance),
            each.source,
        )
        for each in AUTHORS.values()
    ]
    return ("model", "shift", "steps", "guidance", "source"), rows


def weights() -> Table:
    """Gigabytes of weights by component and precision, as a build counts them before it starts."""
    kinds = (Precision.FP32, Precision.BF16, Precision.FP8)
    rows = []
    for name, title in COMPONENTS.items():
        elements = sum(element_counts(MODELS[name]).values())
        sizes = [_giga(component_bytes(name, kind)) if _has(name, kind) else "" for kind in kinds]
        rows.append((title, f"{elements / 1e9:.2f}", *sizes))
    return ("component", "parameters, 1e9", "fp32", "bf16, fp16", "fp8"), rows


def pairs() -> Table:
    """Gigabytes of all weights of a pair, VAE aside, by precision."""
    rows = [
        (title, *(_giga(pair_bytes(large, small, encoder, kinds)) for kinds in MIXES.values()))
        for title, (large, small, encoder) in PAIRS.items()
    ]
    return ("weights of the pair and its text encoder", *MIXES), rows


def pair_bytes(
    large: Sequence[str], small: str, encoder: str, precisions: tuple[Precision, Precision, Precision]
) -> int:
    """What all weights of a pair take."""
    of_large, of_small, of_encoder = precisions
    engines = sum(component_bytes(name, of_large) for name in large)
    return engines + component_bytes(small, of_small) + component_bytes(encoder, of_encoder)


def component_bytes(name: str, precision: Precision) -> int:
    """What a component's weights take in a plan for TensorRT: in fp8 with the blocks at the ends kept in bf16."""
    from flowblending.export.checkpoint.size import Fp8Blocks, weight_bytes
    from flowblending.export.fp8.layers import kept_blocks

    model = MODELS[name]
    blocks = Fp8Blocks(count=model.layers, keep=kept_blocks(model.layers), base=Precision.BF16)
    return weight_bytes(element_counts(model), precision, blocks if precision is Precision.FP8 else None)


def _has(name: str, precision: Precision) -> bool:
    return precision is not Precision.FP8 or not MODELS[name].encodes_text


def _giga(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def gpus() -> Table:
    """Which GPU runs which back end's engines."""
    from flowblending.engine.backends.tensorrt.targets import has_fp8

    rows = [
        (
            target,
            names,
            "on that GPU",
            f"`--target {target}`, on any machine" if target in AHEAD else "no",
            "yes" if has_fp8(target) else "no",
        )
        for target, names in GPUS.items()
    ]
    return ("architecture", "such as", "`tensorrt` compiles", "`tensorrt-rtx` compiles", "fp8"), rows


def versions() -> Table:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [("Python", "always", project["requires-python"])]
    for extra, needed in project["optional-dependencies"].items():
        rows += [(name, f"`{extra}`", bounds) for name, bounds in map(_split, needed) if name in _TOLD]
    return ("library", "extra", "version"), rows


_TOLD = (
    *("torch", "diffusers", "transformers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings"),
    *("cuda-bindings", "gguf", "av", "ray", "tritonclient"),
)


def _split(requirement: str) -> tuple[str, str]:
    match = re.fullmatch(r"([A-Za-z0-9-]+)(?:\[[^\]]*\])?(.*)", requirement)
    assert match is not None, f"{requirement} is no requirement"
    return match[1], match[2]


TABLES: Mapping[str, Callable[[], Table]] = {
    "defaults": defaults,
    "authors": authors,
    "weights": weights,
    "pairs": pairs,
    "gpus": gpus,
    "versions": versions,
}


def markdown(table: Table) -> str:
    """A table as the pages write it."""
    columns, rows = table
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def written(page: str) -> str:
    """A page with every table made anew: between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, make in TABLES.items():
        before, start, rest = page.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert start and end, f"the page has no place for the table {name}"
        page = before + start + markdown(make()) + end + after
    return page


def main() -> None:
    """Write or print them."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/which.md that follow from the code.")
    parser.add_argument("--print", action="store_true", help="print them, and write nothing")
    if parser.parse_args().print:
        print("\n".join(markdown(make()) for make in TABLES.values()), end="")
    else:
        PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
    main()
