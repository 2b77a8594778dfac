"""Golden vectors: what the sampler of this package computes, for other interpreters of a program to compare with.

    python -m flowblending.runtime.golden --out DIR                    # closed-form engines, no model needed
    python -m flowblending.runtime.golden --out DIR --bundle BUNDLE    # an ONNX Runtime bundle, on the CPU
    python -m flowblending.runtime.golden --check DIR [--bundle BUNDLE]

Every case is a folder: ``program.json``, the initial latents and all conditions as ``.npy``, ``trace.npy`` float32
[instructions, slots, C, F, H, W] with every slot after every instruction (NaN where nothing was written yet), and
``golden.json``, which names them. The closed-form cases share ``bundle``: as much of a manifest as a sampler reads,
with engines of the back end ``fake``, which only interpreters under test have.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import flowblending
from flowblending import FlowBlendingError
from flowblending.engine.bundle import open_bundle
from flowblending.engine.console import run_program
from flowblending.engine.function import Arrays, FunctionEngine
from flowblending.engine.protocol import Engine
from flowblending.engine.tensor import Tensor
from flowblending.export.spec import LARGE, SMALL, GraphSpec, Precision, SigmaGrid, TensorSpec
from flowblending.runtime.binding import Conditions
from flowblending.runtime.compile import compile_program
from flowblending.runtime.device import Term
from flowblending.runtime.host import HostDevice, HostWatch
from flowblending.runtime.jobs import Job, compile_job
from flowblending.runtime.noise import TorchNormal
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program import COND, LATENTS, UNCOND, Program, Run
from flowblending.runtime.program_file import ProgramFile
from flowblending.runtime.sampler import Sampler
from flowblending.runtime.schedule import StageSchedule
from flowblending.runtime.sigmas import sigma_grid

FORMAT = 1
TOLERANCE = 1e-5
"""Largest difference allowed, as a share of a slot's largest value (fp32 sums in another order)."""

Array = npt.NDArray[np.float32]

_LATENT = (4, 3, 2, 5)
_TEXT_LENGTH, _TEXT_WIDTH = 3, 6


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """An engine that is a formula: ``gain * latents + drift * timestep / 1000 + condition * sum of means``.

    The last sum runs over the conditions, each with the mean of the row's own elements. Everything that does not
    depend on the latents is summed in float64 and rounded once.
    """

    gain: float
    drift: float
    condition: float

    def __call__(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The velocity for a batch."""
        batch = len(arrays["latents"])
        shift = self.drift * arrays["timestep"].astype(np.float64) / 1000.0
        for name, array in arrays.items():
            if name not in ("latents", "timestep"):
                rows = np.broadcast_to(array, (batch, *array.shape[1:])).reshape(batch, -1)
                shift = shift + self.condition * rows.mean(axis=1, dtype=np.float64)
        rounded = shift.astype(np.float32).reshape(-1, 1, 1, 1, 1)
        return {"velocity": np.float32(self.gain) * arrays["latents"] + rounded}


CLOSED_FORMS = {
    LARGE: ClosedForm(gain=-0.9, drift=0.2, condition=0.05),
    SMALL: ClosedForm(gain=-0.8, drift=0.1, condition=0.03),
}

CASES = {
    "unipc-two-calls": ("L2 S3 L1", "unipc", 5.0, False),
    "dpm-one-call": ("L2 S2 L1", "dpm++", 3.0, True),
    "euler-no-guidance": ("L1 S1", "euler", 1.0, False),
}
"""Closed-form cases by folder: schedule, solver, guidance, both branches in one call."""


class _Recorder(HostDevice):
    """A CPU that keeps what every instruction wrote, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Array] = []

    def mix(self, out: Tensor, terms: Sequence[Term]) -> None:
        super().mix(out, terms)
        self.written.append(out.numpy().copy())

    def watch(self, complaints: Sequence[str]) -> HostWatch:
        recorder = self

        class Watch(HostWatch):
            """Sees the velocity of every engine call."""

            def check(self, tensor: Tensor, index: int) -> None:
                super().check(tensor, index)
                recorder.written.append(tensor.numpy().copy())

        return Watch(complaints)


def trace(program: Program, engines: Mapping[str, Engine], latents: Array, conditions: Conditions) -> Array:
    """Run a program on the CPU, and keep every slot after every instruction.

    Args:
        latents: float32 [1, C, F, H, W].

    Returns:
        float32 [instructions, slots, C, F, H, W], NaN in slots that nothing was written to yet.
    """
    device = _Recorder()
    Sampler(engines, device).sample(program, latents, conditions)
    names = program.slots()
    state = np.full((len(names), *latents.shape[1:]), np.nan, np.float32)
    state[names.index(LATENTS)] = latents[0]
    states = []
    for instruction, written in zip(program.instructions(), device.written, strict=True):
        outs = instruction.out if isinstance(instruction, Run) else (instruction.out,)
        for name, row in zip(outs, written, strict=True):
            state[names.index(name)] = row
        states.append(state.copy())
    return np.stack(states)


def write_closed_form(folder: Path) -> None:
    """Write the closed-form bundle and its cases."""
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    components = {name: _component(bundle, name) for name in CLOSED_FORMS}
    digest = hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()[:16]
    manifest = {
        "format": 1,
        "id": digest,
        "geometry": {"width": 40, "height": 16, "frames": 9, "latent_shape": _LATENT},
        "components": components,
        "tokenizer": [],
        "rebuild": ["python", "-m", "flowblending.runtime.golden", "--out", folder.name],
        "created_by": flowblending.__version__,
    }
    _write_json(bundle / "manifest.json", manifest)
    random = np.random.default_rng(6)
    for name, (schedule, solver, guidance, batched) in CASES.items():
        stages = StageSchedule.parse(schedule, _steps(schedule), 0.4, 0.2)
        grid = sigma_grid(SigmaGrid(kind="shifted", shift=3.0), solver, _steps(schedule), 30)
        program = compile_program(schedule=stages, solver=solver, grid=grid, guidance=guidance, batched=batched)
        file = ProgramFile.of(program, bundle=digest, latent_shape=_LATENT, specs={n: _spec(n) for n in CLOSED_FORMS})
        branches = [COND, UNCOND] if guidance > 1.0 else [COND]
        conditions = {branch: _conditions(random, length) for length, branch in enumerate(branches, start=1)}
        latents = random.standard_normal((1, *_LATENT)).astype(np.float32)
        _write_case(folder / name, file, closed_form_engines(), latents, conditions)


def write_for_bundle(folder: Path, bundle: Path, job: Job) -> None:
    """Write a case for an ONNX Runtime bundle: the job's own noise, its prompt through the text encoder."""
    pipeline = _pipeline(bundle)
    try:
        manifest = pipeline.bundle.manifest
        program = compile_job(job, manifest)
        engines = {name: pipeline.engine(name) for name in (LARGE, SMALL) if program.calls(name)}
        conditions = {
            branch: {name: tensor.numpy() for name, tensor in inputs.items()}
            for branch, inputs in pipeline.encode(job, program, warn=print).items()
        }
        latents = pipeline.noise(TorchNormal(job.seed))
        _write_case(folder, ProgramFile.for_bundle(program, manifest), engines, latents, conditions)
    finally:
        pipeline.close()


def check(case: Path, engines: Mapping[str, Engine]) -> float:
    """Run a case's program again, and compare every slot after every instruction.

    Returns:
        The largest difference, as a share of the slot's largest value.

    Raises:
        FlowBlendingError: the files are damaged, or a slot differs by more than the tolerance.
    """
    golden = json.loads((case / "golden.json").read_text())
    file = ProgramFile.read(case / golden["program"])
    conditions = {
        branch: {name: Tensor.of(np.load(case / path)) for name, path in inputs.items()}
        for branch, inputs in golden["conditions"].items()
    }
    expected = np.load(case / golden["trace"])
    found = trace(file.program, engines, np.load(case / golden["latents"]), conditions)
    if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
        raise FlowBlendingError(
            f"{case} has a trace of {list(expected.shape)}, but the program gives {list(found.shape)}; make it again."
        )
    axes = tuple(range(2, found.ndim))
    errors = np.abs(found - expected).max(axis=axes) / np.abs(expected).max(axis=axes)
    worst = float(np.nanmax(errors))
    if not worst <= golden["tolerance"]:
        instruction, slot = np.unravel_index(np.nanargmax(errors), errors.shape)
        raise FlowBlendingError(
            f"{case}: slot {file.slots[slot]} differs by {worst:.2e} after instruction {instruction}, but at most "
            f"{golden['tolerance']:g} was expected; the engines or the sampler have changed."
        )
    return worst


def closed_form_engines() -> dict[str, Engine]:
    """The pair behind the closed-form cases."""
    return {name: FunctionEngine(_spec(name), function) for name, function in CLOSED_FORMS.items()}


def _spec(name: str) -> GraphSpec:
    latent = ("batch", _LATENT[0], "frames", "height", "width")
    return GraphSpec(
        name=name,
        precision=Precision.FP32,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=latent),
            TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            TensorSpec(name="text", dtype="float32", shape=("batch", _TEXT_LENGTH, _TEXT_WIDTH)),
            TensorSpec(name="text_mask", dtype="int64", shape=("batch", _TEXT_LENGTH)),
            TensorSpec(name="frame_rate", dtype="float32", shape=(1,)),
        ),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=latent),),
    )


def _component(bundle: Path, name: str) -> dict[str, object]:
    path = bundle / f"{name}.json"
    _write_json(path, dataclasses.asdict(CLOSED_FORMS[name]))
    content = path.read_bytes()
    return {
        "spec": dataclasses.asdict(_spec(name)),
        "backend": "fake",
        "backend_version": "1",
        "targets": [],
        "files": [{"path": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}],
        "key": {},
        "flops": None,
    }


def _conditions(random: np.random.Generator, length: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "text": random.standard_normal((1, _TEXT_LENGTH, _TEXT_WIDTH)).astype(np.float32),
        "text_mask": (np.arange(_TEXT_LENGTH)[None] < length).astype(np.int64),
        "frame_rate": np.array([16.0], np.float32),
    }


def _write_case(
    folder: Path,
    file: ProgramFile,
    engines: Mapping[str, Engine],
    latents: Array,
    conditions: Mapping[str, Mapping[str, npt.NDArray[Any]]],
) -> None:
    folder.mkdir(parents=True)
    tensors = {
        branch: {name: Tensor.of(array) for name, array in inputs.items()} for branch, inputs in conditions.items()
    }
    file.write(folder / "program.json")
    np.save(folder / "latents.npy", latents)
    np.save(folder / "trace.npy", trace(file.program, engines, latents, tensors))
    names: dict[str, dict[str, str]] = {}
    for branch, inputs in conditions.items():
        names[branch] = {name: f"{branch}.{name}.npy" for name in inputs}
        for name, array in inputs.items():
            np.save(folder / names[branch][name], array)
    golden = {
        "format": FORMAT,
        "bundle": file.bundle,
        "program": "program.json",
        "latents": "latents.npy",
        "conditions": names,
        "trace": "trace.npy",
        "tolerance": TOLERANCE,
    }
    _write_json(folder / "golden.json", golden)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _steps(schedule: str) -> int:
    return sum(int(stage[1:]) for stage in schedule.split())


def _pipeline(bundle: Path) -> Pipeline:
    opened = open_bundle(bundle)
    opened.verify()
    return Pipeline(bundle=opened, device=HostDevice())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flowblending.runtime.golden", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="new folder to write")
    where.add_argument("--check", type=Path, metavar="DIR", help="folder to compare with")
    parser.add_argument("--bundle", type=Path, metavar="BUNDLE", help="default: closed-form engines")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--schedule", default="LSL")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    if arguments.out is not None and arguments.out.exists():
        raise FlowBlendingError(f"{arguments.out} exists already; name a new folder.")
    if arguments.out is not None and arguments.bundle is None:
        write_closed_form(arguments.out)
    elif arguments.out is not None:
        job = Job(prompt="A cat walks on the grass.", steps=arguments.steps, schedule=arguments.schedule)
        write_for_bundle(arguments.out, arguments.bundle, job)
    else:
        _check_all(arguments.check, arguments.bundle)
    return 0


def _check_all(folder: Path, bundle: Path | None) -> None:
    cases = sorted(path.parent for path in folder.rglob("golden.json"))
    if not cases:
        raise FlowBlendingError(f"{folder} holds no golden.json; make one with --out {folder}.")
    pipeline = None if bundle is None else _pipeline(bundle)
    engines = closed_form_engines() if pipeline is None else {n: pipeline.engine(n) for n in (LARGE, SMALL)}
    for case in cases:
        print(f"{case}: largest difference {check(case, engines):.2e}")


def main() -> None:
    """Entry point."""
    arguments = _arguments()
    run_program(lambda: _run(arguments))


if __name__ == "__main__":
    main()
