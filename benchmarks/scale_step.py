"""One step of `benchmarks.scale` in a process of its own; the last line that it prints is what it found, as JSON.

python -m benchmarks.scale_step export CHECKPOINT OUT PRECISION
python -m benchmarks.scale_step verify CHECKPOINT OUT PRECISION      (exports, too)
python -m benchmarks.scale_step observe CHECKPOINT OUT PRECISION     (calls once what a calibration for fp8 calls)
python -m benchmarks.scale_step plan ONNX OUT TARGET
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblending.contracts.graph import LARGE, TEXT_ENCODER, Precision

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Exportable

AMAX = 8.0
"""What every layer's range is in an fp8 graph here; a calibration of random weights would mean as little."""


def anonymous_bytes(process: int | str) -> int:
    """The resident memory of a process that is no file's; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def load(checkpoint: Path, precision: Precision) -> Exportable:
    """A transformer or text encoder as its family loads it; what the pipeline's other parts would say is filled in."""
    from flowblending.export.checkpoint.checkpoint import Checkpoint
    from flowblending.export.checkpoint.model_files import read_json
    from flowblending.export.families.ltx import transformer as ltx_transformer
    from flowblending.export.families.t5 import text_encoder_part
    from flowblending.export.families.wan import transformer as wan_transformer

    if (checkpoint / TEXT_ENCODER).is_dir():
        pipeline = Checkpoint(folder=checkpoint, pipeline="WanPipeline")
        return text_encoder_part(pipeline, 512, zero_padding=True).load(precision)
    if read_json(checkpoint / "config.json")["_class_name"] == "WanTransformer3DModel":
        return wan_transformer.load_transformer(checkpoint, LARGE, 512, precision)
    return ltx_transformer.load_transformer(checkpoint, LARGE, precision, text_length=256, factors=(8, 32), causal=True)


def export(checkpoint: Path, out: Path, precision: Precision) -> dict[str, Any]:
    """Trace, quantise where asked for, and write."""
    from flowblending.export.checkpoint.model_files import read_json
    from flowblending.export.families.registry import FAMILIES
    from flowblending.export.fp8.layers import block_layers, kept_blocks, quantise
    from flowblending.export.graph.trace import trace_graph, write_graph

    for row in FAMILIES.rows():
        row.load()  # so that their libraries count as there before
    before = anonymous_bytes("self")
    traced = trace_graph(load(checkpoint, Precision.BF16 if precision is Precision.FP8 else precision))
    layers = len(block_layers(traced.model.graph))
    if precision is Precision.FP8:
        amax = {layer.name: AMAX for layer in block_layers(traced.model.graph)}
        traced = quantise(traced, amax, kept_blocks(read_json(checkpoint / "config.json")["num_layers"]))
    nodes = len(traced.model.graph)
    graph = write_graph(traced, out, "")
    return {"bytes": graph.data.stat().st_size, "nodes": nodes, "linear_layers": layers, "anonymous_before": before}


def verify(checkpoint: Path, out: Path, precision: Precision) -> dict[str, Any]:
    """Export and verify as a build does: every node and weight is run."""
    from flowblending.export.graph.exportable import Part
    from flowblending.export.verify.verify import export_and_verify

    part = Part(name=LARGE, sources=(), load=lambda chosen: load(checkpoint, chosen), revision="")
    _, parity = export_and_verify(part, precision, out, "", lambda doing: print(doing, file=sys.stderr))
    return {"relative": parity.relative, "maximum": parity.maximum, "stretches": parity.stretches}


def observe(checkpoint: Path, out: Path, precision: Precision) -> dict[str, Any]:
    """Call a transformer once as a calibration for fp8 does, in fp32, at 320x192 and 17 frames."""
    assert precision is Precision.FP32
    import numpy as np

    from flowblending.engine.backends.tensor import Tensor
    from flowblending.engine.build.fp8.graphs import observed_graph
    from flowblending.engine.build.fp8.loader import Loader
    from flowblending.export.graph.exportable import Part
    from flowblending.runtime.devices.host import HostDevice

    part = Part(name=LARGE, sources=(), load=lambda chosen: load(checkpoint, chosen), revision="")
    graph, rows = observed_graph(part, 100.0, out, lambda doing: print(doing, file=sys.stderr))
    loader = Loader({LARGE: graph}, HostDevice())
    sizes = {"batch": 1, "frames": 5, "height": 24, "width": 40}
    generator = np.random.default_rng(0)
    arrays = {
        spec.name: generator.standard_normal(spec.resolve(sizes)).astype(spec.dtype)
        for spec in (*graph.spec.inputs, *graph.spec.outputs)
    }
    start = time.monotonic()
    loader.engine(LARGE).run({name: Tensor.of(array) for name, array in arrays.items()}, 0)
    seconds = time.monotonic() - start
    velocity, ranges = (arrays[spec.name] for spec in graph.spec.outputs)
    assert np.isfinite(velocity).all()
    assert (ranges > 0).all()
    held = sum(math.prod(weight.shape) * weight.itemsize for weight in graph.weights)
    return {"call_seconds": seconds, "weights_in_place": held, "rows": len(rows)}


def plan(onnx: Path, out: Path, target: str) -> dict[str, Any]:
    """Compile for 480p, 81 frames and both guidance branches at once; in this process, which is the one measured."""
    from flowblending.contracts.graph import ExportedGraph
    from flowblending.engine.backends.protocol import Range, ShapeProfile
    from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
    from flowblending.engine.backends.tensorrt.listing import kernel_count, product_types, products

    graph = ExportedGraph.read(onnx)
    sizes = {"frames": 21, "height": 60, "width": 104}
    profile = ShapeProfile(
        {"batch": Range(min=1, opt=2, max=2)} | {name: Range.fixed(size) for name, size in sizes.items()}
    )
    request = PlanRequest(
        library="tensorrt-rtx", onnx=onnx, spec=graph.spec, profiles=(profile,), targets=(target,), out=out
    )
    info = compile_plan(request, lambda _: None)
    fp8 = list(product_types(out).values()).count(frozenset({"fp8"})) if graph.spec.precision is Precision.FP8 else None
    return {
        "bytes": info.bytes,
        "weights": info.weights_bytes,
        "scratch": info.scratch_bytes,
        "fp8_layers": fp8,
        "products": len(products(out)),
        "kernels": kernel_count(out),
    }


def main() -> None:
    """Run one step."""
    step, source, out, how = sys.argv[1:]
    steps = {"export": export, "verify": verify, "observe": observe}
    found = (
        plan(Path(source), Path(out), how) if step == "plan" else steps[step](Path(source), Path(out), Precision(how))
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
