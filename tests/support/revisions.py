"""What every maker of a component's files makes of tiny checkpoints, to be compared with what it made at its revision.

    python -m tests.support.revisions [KIND ...]      # writes tests/whole/revisions.json anew, or some kinds of it

It refuses to where something came out otherwise at the same revision.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints import PAIRS
from flowblending.contracts.graph import LARGE, SMALL, TEXT_ENCODER, ExportedGraph, PipelineSpec, Precision
from flowblending.engine.backends.backend import Compiled
from flowblending.engine.backends.onnxruntime.backend import move_graph
from flowblending.engine.backends.protocol import Range, ShapeProfile, ends
from flowblending.engine.backends.registry import backend_version
from flowblending.engine.backends.tensorrt import backend as compiler
from flowblending.engine.backends.tensorrt.compile import PlanRequest
from flowblending.engine.build.fp8 import trajectories
from flowblending.engine.build.fp8.calibrate import Pair, RangeCalibrator
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.proof import component
from flowblending.engine.build.proof.component import gather, note_verified
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.engine.store.store import open_store
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.families.registry import family_of
from flowblending.export.families.tokenizer import read_tokenizer
from flowblending.export.fp8 import export as fp8
from flowblending.export.fp8.attention import block_attention, quantise_attention
from flowblending.export.fp8.layers import block_layers, quantise
from flowblending.export.graph import trace
from flowblending.export.graph.exportable import Part
from flowblending.export.graph.flops import token_flops
from flowblending.export.graph.trace import exporter_versions
from flowblending.export.lora import fit
from flowblending.export.lora.file import open_lora
from flowblending.export.verify.reference_outputs import ReferenceRecorder
from flowblending.export.verify.verify import TOLERANCE as TOLERANCES
from flowblending.export.verify.verify import export_and_verify
from flowblending.system.console import Console
from tests.support.fingerprints import TOLERANCE, plain_weights, structure_and_values
from tests.support.lora_files import FORMATS, make_adapter, write_lora
from tests.support.manifests import MODELS
from tests.support.network_asked import asked_of_the_compiler
from tests.support.plans import RTX

RECORD = Path(__file__).parents[1] / "whole/revisions.json"
COMMAND = "python -m tests.support.revisions"

Made = dict[str, Any]
"""``revision``: of the makers, as the key of a component has it; and what they made."""

_TRANSFORMER = (Precision.FP32, Precision.FP16, Precision.FP16_MIXED, Precision.BF16)
_TEXT = (Precision.FP32, Precision.BF16)
_VAE = (Precision.FP32, Precision.FP16)
_ONE = (Precision.FP32,)
CASES: Mapping[str, Mapping[str, tuple[Precision, ...]]] = {
    "wan": {"small": _TRANSFORMER, "text_encoder": _TEXT, "vae_first": _VAE, "vae_next": _VAE},
    "ltx": {"small": _TRANSFORMER, "text_encoder": _TEXT, "vae": _VAE},
    "ltx-condition": {"small": _ONE, "text_encoder": _ONE, "vae": _ONE},
    "ltx-0.9.0": {"vae": _ONE},
    "wan-ends": {"small": (Precision.FP32, Precision.FP16_MIXED), "image_encoder": _ONE},
    "skyreels": {"large": _ONE},
}
"""The graphs, by kind of checkpoint: wherever the exporter has a branch."""


@dataclass(frozen=True)
class Case:
    """Something that is made."""

    name: str
    make: Callable[[Path], Made]


def cases(kind: str, pair: Path) -> Iterator[Case]:
    """What is made of a pair whose weights are `plain_weights`."""
    pipeline = read_pipeline(pair)
    for name, precisions in CASES[kind].items():
        for precision in precisions:
            yield Case(f"{kind} {name} {precision}", partial(_graph, pipeline.parts[name], precision))
    if kind in ("wan", "ltx"):
        yield Case(f"{kind} small fp8", partial(_fp8_graph, pipeline.parts[SMALL]))
        yield Case(f"{kind} ranges", partial(_ranges, pipeline))
        yield Case(f"{kind} proof", partial(_proof, pipeline.parts[TEXT_ENCODER]))
        yield Case(f"{kind} plan", partial(_plan, pipeline.parts[SMALL]))
        yield Case(f"{kind} lora", partial(_lora, pair))


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pair's components by name, and what a build reads beside them."""

    spec: PipelineSpec
    parts: Mapping[str, Part]
    tokenizer: bytes


def read_pipeline(pair: Path) -> Pipeline:
    """Read a pair."""
    checkpoint = open_checkpoint(str(pair / "large"))
    family = family_of(checkpoint)
    small = pair / "small"
    inside = small / "transformer"
    models = {LARGE: pair / "large/transformer", SMALL: inside if inside.is_dir() else small}
    made = [family.transformer(checkpoint, folder, name) for name, folder in models.items()]
    return Pipeline(
        spec=family.describe(checkpoint),
        parts={part.name: part for part in (*made, *family.parts(checkpoint))},
        tokenizer=read_tokenizer(checkpoint).content,
    )


def _described(graph: ExportedGraph, revision: str) -> Made:
    structure, values = structure_and_values(graph.onnx)
    return {"revision": revision, "structure": structure, "values": values}


def _graph(part: Part, precision: Precision, folder: Path) -> Made:
    graph = trace.export_graph(part.load(precision), folder, "")
    made = _described(graph, f"exporter {trace.REVISION}, {part.revision}")
    # What the manifest says of a transformer's cost is kept with its engine.
    return made | ({"flops": token_flops(graph.onnx, (1, 2, 2))} if part.name == SMALL else {})


def _lora(pair: Path, folder: Path) -> Made:
    """The small transformer with a LoRA fused."""
    checkpoint = open_checkpoint(str(pair / "large"))
    family, small = family_of(checkpoint), pair / "small"
    (stock,) = family.transformer(checkpoint, small, SMALL).load(Precision.FP32).streamed[:1]
    path = write_lora(make_adapter(stock), FORMATS["diffusers"], str, folder / "lora")
    fused = family.fit_lora(small, open_lora(path), 0.8)
    part = family.transformer(checkpoint, small, SMALL, (fused,))
    made = _graph(part, Precision.FP16, folder / "graph")
    return made | {"revision": f"{made['revision']}, lora {fit.REVISION}"}


def _fp8_graph(part: Part, folder: Path) -> Made:
    graph = _exported_in_fp8(part, folder)
    return _described(graph, f"exporter {trace.REVISION}, {part.revision}, fp8 {fp8.REVISION}")


def _exported_in_fp8(part: Part, folder: Path) -> ExportedGraph:
    traced = trace.trace_graph(part.load(Precision.BF16))
    names = [layer.name for layer in block_layers(traced.model.graph)]
    operands = [name for each in block_attention(traced.model.graph) for name in each.operands]
    amax = {name: 1 + index / 8 for index, name in enumerate([*names, *operands])}
    return trace.write_graph(quantise_attention(quantise(traced, amax, 0), amax, 0), folder, "")


def _ranges(pipeline: Pipeline, folder: Path) -> Made:
    """The ranges of a calibration of three steps and one prompt."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a red ball\n")
    pair = Pair(
        pipeline=pipeline.spec,
        geometry=plan_profiles(pipeline.spec, "64x64", 9)[0].opt,
        parts=pipeline.parts,
        models=MODELS,
        quantised=(LARGE, SMALL),
        tokenizer=pipeline.tokenizer,
        weights=lambda part: part.name,
        source="",
    )
    console = Console(quiet=True)
    with open_store(None, folder, console) as store:
        options = Fp8Options(prompts=prompts, steps=3)
        calibrator = RangeCalibrator(pair, options, folder=folder, old=None, store=store, console=console)
        calibrator.obtain()
    parts = [pipeline.parts[name].revision for name in (LARGE, SMALL, TEXT_ENCODER)]
    return {
        "revision": ", ".join([f"exporter {trace.REVISION}, trajectories {trajectories.REVISION}", *parts]),
        "ranges": {
            f"{model} {layer}": value
            for model, found in calibrator.calibration.models.items()
            for layer, value in found.amax.items()
        },
    }


def _proof(part: Part, folder: Path) -> Made:
    """What is noted of a component, the figures of one machine aside."""
    profiles = (ShapeProfile({"batch": Range(min=1, opt=1, max=2)}),)
    (folder / "export").mkdir()
    spec = part.load(Precision.FP32).spec
    recorder = ReferenceRecorder(part, ends(profiles, spec))
    graph, parity = export_and_verify(recorder.part, Precision.FP32, folder / "export", "", lambda _: None)
    note_verified(graph, recorder, parity)
    compiled = Compiled(files=move_graph(graph, folder), plan=None)
    files = gather(graph, compiled, profiles, folder)
    content = json.loads(files[0].read_text())
    del content["compared"]["relative"], content["compared"]["maximum"]
    with np.load(files[1]) as arrays:
        kept = {name: list(array.shape) for name, array in arrays.items()}
    allowed = {str(precision): [each.relative, each.maximum] for precision, each in TOLERANCES.items()}
    return {"revision": f"proof {component.REVISION}", "noted": content, "kept": kept, "allowed": allowed}


def _plan(part: Part, folder: Path) -> Made:
    """What a compiler is asked for."""
    graph = _exported_in_fp8(part, folder)
    sizes = {name: Range(min=1, opt=4, max=8) for name in graph.spec.symbols}
    request = PlanRequest(
        library=RTX,
        onnx=graph.onnx,
        spec=graph.spec,
        profiles=(ShapeProfile(sizes),),
        targets=("sm89", "sm120"),
        out=folder / "small.plan",
    )
    return {"revision": f"compiler {compiler.REVISION}", "asked": asked_of_the_compiler(request)}


def versions() -> dict[str, str]:
    """What else everything depends on, which is in the keys too."""
    return {"exporter": exporter_versions(), "compiler": backend_version(RTX), "runs": backend_version("onnxruntime")}


def read_record() -> dict[str, Any]:
    """The file."""
    content: dict[str, Any] = json.loads(RECORD.read_text())
    return content


def judge(name: str, recorded: Made | None, made: Made) -> str | None:
    """What is wrong with something that was made, if anything is."""
    if recorded is None:
        return f"{name} is not recorded; run {COMMAND}"
    changed = [what for what in made if what != "revision" and not _same(made[what], recorded.get(what))]
    if changed and made["revision"] == recorded["revision"]:
        return (
            f"{name} has other {' and '.join(changed)} than were recorded at the same {made['revision']}; raise the "
            f"REVISION of what makes it, or the caches and bundles of users keep the old ones; then run {COMMAND}"
        )
    if made["revision"] != recorded["revision"]:
        return f"{name} was recorded at {recorded['revision']}, and this is {made['revision']}; run {COMMAND}"
    return None


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[name], theirs[name]) for name in ours)
    return bool(json.dumps(ours) == json.dumps(theirs))


def plain_pair(kind: str, folder: Path) -> Path:
    """A pair of a kind with `plain_weights`."""
    PAIRS[kind](folder)
    plain_weights(folder)
    return folder


def record(kind: str, earlier: Mapping[str, Made], scratch: Path) -> Iterator[tuple[str, Made]]:
    """What is made of a kind of checkpoint, to be recorded; ends the program where the revision is still the same.

    Args:
        kind: of `CASES`.
        earlier: what was recorded with the same libraries.
        scratch: an empty folder.
    """
    for number, case in enumerate(cases(kind, plain_pair(kind, scratch / "pair"))):
        folder = scratch / str(number)
        folder.mkdir()
        made, before = case.make(folder), earlier.get(case.name)
        if before is not None and before["revision"] == made["revision"]:
            problem = judge(case.name, before, made)
            if problem is not None:
                sys.exit(problem)
        print(case.name, file=sys.stderr)
        yield case.name, made


def main() -> None:
    """Write the record, of the kinds named or of all."""
    kinds = sys.argv[1:] or list(CASES)
    before = read_record() if RECORD.exists() else {"versions": None, "made": {}}
    comparable = before["versions"] == versions()
    if not comparable and set(kinds) != set(CASES):
        sys.exit("Other libraries are installed than were recorded with; record all kinds.")
    made = {name: each for name, each in before["made"].items() if name.split()[0] not in kinds}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in kinds:
            made |= record(kind, before["made"] if comparable else {}, Path(scratch, kind))
    RECORD.write_text(json.dumps({"versions": versions(), "made": dict(sorted(made.items()))}, indent=1) + "\n")


if __name__ == "__main__":
    main()
