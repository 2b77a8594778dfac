"""Whether two experts could share a plan, by putting their weights in after compiling, and what that would cost.

``python -m benchmarks.refit`` compiles a small Wan transformer of random weights for one architecture with
TensorRT-RTX, as builds do: with its weights, with weights that can be replaced (all of them, or the matrices), and
without them. It prints a line of JSON for each: the plan's size, the seconds, and how many kernels and fused nodes of
attention it has; or what the compiler said.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

VARIANTS: dict[str, tuple[str, ...]] = {
    "as built": (),
    "refittable": ("REFIT",),
    "matrices refittable": ("REFIT_INDIVIDUAL",),
    "refittable, without weights": ("REFIT", "STRIP_PLAN"),
    "without weights, for the same ones": ("REFIT_IDENTICAL", "STRIP_PLAN"),
}


def export(folder: Path, layers: int) -> Path:
    """The graph of a transformer with blocks of 8 heads of 64, in bf16."""
    from benchmarks.checkpoints import wan_transformer
    from flowblending.contracts.graph import LARGE, Precision
    from flowblending.export.families.wan.transformer import load_transformer
    from flowblending.export.graph.trace import trace_graph, write_graph

    wan_transformer(0, layers=layers, heads=8, head_dim=64, ffn=2048, text_dim=512).save_pretrained(folder / "model")
    traced = trace_graph(load_transformer(folder / "model", LARGE, 512, Precision.BF16))
    return write_graph(traced, folder, "").onnx


def compile_variant(onnx: Path, target: str, flags: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Compile once, in this process."""
    import onnx as onnx_library

    from flowblending.contracts.graph import ExportedGraph
    from flowblending.engine.backends.protocol import Range, ShapeProfile
    from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
    from flowblending.engine.backends.tensorrt.library import load
    from flowblending.engine.backends.tensorrt.listing import fused_attention, kernel_count, product_types

    graph = ExportedGraph.read(onnx)
    trt = load("tensorrt-rtx").trt

    class Flagged(trt.Builder):  # type: ignore[misc,name-defined] # the library has no type information
        def create_builder_config(self) -> Any:
            config = super().create_builder_config()
            for flag in flags:
                config.set_flag(getattr(trt.BuilderFlag, flag))
            return config

        def build_serialized_network_to_stream(self, network: Any, config: Any, writer: Any) -> Any:
            if "REFIT_INDIVIDUAL" in flags:
                marked[:] = [name for name in matrices if network.mark_weights_refittable(name)]
            return super().build_serialized_network_to_stream(network, config, writer)

    marked: list[str] = []
    initializers = onnx_library.load(onnx, load_external_data=False).graph.initializer
    matrices = [each.name for each in initializers if len(each.dims) > 1]
    sizes = {"batch": 1, "frames": 5, "height": 24, "width": 40}
    request = PlanRequest(
        library="tensorrt-rtx",
        onnx=onnx,
        spec=graph.spec,
        profiles=(ShapeProfile({name: Range.fixed(size) for name, size in sizes.items()}),),
        targets=(target,),
        out=out,
    )
    with patch.object(trt, "Builder", Flagged):
        info = compile_plan(request, lambda _: None)
    return {
        "seconds": round(info.seconds, 1),
        "bytes": info.bytes,
        "weights": graph.data.stat().st_size,
        "refittable": len(marked),
        "kernels": kernel_count(out),
        "products": len(product_types(out)),
        "fused_attention": len(fused_attention(out)),
    }


def main() -> None:
    """Compile every variant in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8, metavar="N")
    parser.add_argument("--target", default="sm89", metavar="SM")
    parser.add_argument("--one", nargs=2, metavar=("ONNX", "VARIANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        onnx, variant = arguments.one
        found = compile_variant(Path(onnx), arguments.target, VARIANTS[variant], Path(onnx).with_suffix(".plan"))
        print(json.dumps({"variant": variant, **found}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        onnx = str(export(Path(scratch), arguments.layers))
        for variant in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.refit", "--target", arguments.target, "--one", onnx, variant]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = re.search(r"CHECK\(.*? failed", done.stderr) or re.search(r"[^\n]*\Z", done.stderr.strip())
            failed = json.dumps({"variant": variant, "refused": said[0] if said else ""})
            print(done.stdout.strip() or failed, flush=True)


if __name__ == "__main__":
    main()
