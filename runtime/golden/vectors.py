"""Golden vectors: what the sampler of this package computes, for other interpreters of a program to compare with.

    python -m flowblending.runtime.golden.vectors --out DIR                    # closed-form engines, no model needed
    python -m flowblending.runtime.golden.vectors --out DIR --bundle BUNDLE    # an ONNX Runtime bundle, on the CPU
    python -m flowblending.runtime.golden.vectors --check DIR [--bundle BUNDLE]

Every case is a folder: ``program.json``, the initial latents and all conditions as ``.npy``, ``trace.npy`` float32
[instructions, slots, C, F, H, W] with every slot after every instruction (NaN where nothing was written yet), and
``golden.json``, which names them; of a slot of some latent frames alone, its numbers come first, and NaN behind them.
The closed-form cases share ``bundle`` (see `closed_form`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.program import GIVEN, LATENTS, Program, Run
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.devices.host import HostDevice, HostWatch
from flowblending.runtime.devices.protocol import Term
from flowblending.runtime.golden import closed_form
from flowblending.runtime.options import AUTO, Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.program_file import ProgramFile
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.binding import Conditions, Given
from flowblending.runtime.sampler.loop import Sampler
from flowblending.system.console import run_program
from flowblending.system.whole_file import whole_folder

FORMAT = 2
TOLERANCE = 1e-5
"""Largest difference allowed, as a share of a slot's largest value (fp32 sums in another order)."""

Array = npt.NDArray[np.float32]
Inputs = Mapping[str, Mapping[str, npt.NDArray[Any]]]


class _Recorder(HostDevice):
    """A CPU that keeps what every instruction wrote, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Array] = []

    def mix(self, out: Tensor, terms: Sequence[Term]) -> None:
        super().mix(out, terms)
        self.written.append(out.numpy().copy())

    def rescale(self, out: Tensor, reference: Tensor, share: float) -> None:
        super().rescale(out, reference, share)
        self.written.append(out.numpy().copy())

    def hold(self, out: Tensor, source: Tensor, frames: Sequence[int]) -> None:
        super().hold(out, source, frames)
        self.written.append(out.numpy().copy())

    def watch(self, complaints: Sequence[str]) -> HostWatch:
        recorder = self

        class RecordingWatch(HostWatch):
            """Sees the velocity of every engine call."""

            def check(self, tensor: Tensor, index: int | Tensor) -> None:
                super().check(tensor, index)
                recorder.written.append(tensor.numpy().copy())

        return RecordingWatch(complaints)


def trace(
    program: Program,
    engines: Mapping[str, Engine],
    latents: Array,
    conditions: Conditions,
    given: Given | None = None,
) -> Array:
    """Run a program on the CPU, and keep every slot after every instruction.

    Args:
        latents: float32 [1, C, F, H, W].
        given: what the program's given slots hold.

    Returns:
        float32 [instructions, slots, C, F, H, W], NaN in slots that nothing was written to yet, and behind the numbers
        of slots that hold some latent frames alone.
    """
    device = _Recorder()
    Sampler(engines, device).prepare(program, conditions, given).run(latents)
    names = program.slots()
    state = np.full((len(names), latents[0].size), np.nan, np.float32)

    def put(name: str, values: Array) -> None:
        state[names.index(name), : values.size] = values.ravel()

    for name, values in {LATENTS: latents, **(given or {})}.items():
        put(name, values)
    states = []
    for instruction, written in zip(program.instructions(), device.written, strict=True):
        outs = instruction.out if isinstance(instruction, Run) else (instruction.out,)
        for name, row in zip(outs, written, strict=True):
            put(name, row)
        states.append(state.reshape(len(names), *latents.shape[1:]).copy())
    return np.stack(states)


def write_closed_form(folder: Path) -> None:
    """Write the closed-form bundle and its cases."""
    closed_form.write_bundle(folder / "bundle")
    random = np.random.default_rng(6)
    for name, case in closed_form.CASES.items():
        conditions = case.conditions(random)
        file = case.program()
        latents = random.standard_normal((1, *file.program.latent_shape)).astype(np.float32)
        given = {
            slot: random.standard_normal((1, *file.program.slot_shape(slot))).astype(np.float32)
            for slot in file.program.given
        }
        _write_case(folder / name, file, closed_form.engines(), latents, conditions, given=given)


def write_for_bundle(folder: Path, bundle: Path, job: Job) -> None:
    """Write a case for an ONNX Runtime bundle: the job's own noise and images, its prompt through the text encoder."""
    pipeline = _pipeline(bundle)
    try:
        manifest = pipeline.bundle.manifest
        run = VideoRun(pipeline, job, decode=False)
        program = run.program
        engines = {name: pipeline.engines.get(name) for name in manifest.transformers if program.calls(name)}
        latents, conditions, given = run.start_of_sampling(print)
        assert not isinstance(latents, Tensor), "an array is drawn"
        inputs = {branch: {name: each.numpy() for name, each in some.items()} for branch, some in conditions.items()}
        _write_case(folder, ProgramFile.for_bundle(program, manifest), engines, latents, inputs, given=given)
    finally:
        pipeline.close()


def _write_case(
    folder: Path,
    file: ProgramFile,
    engines: Mapping[str, Engine],
    latents: Array,
    conditions: Inputs,
    *,
    given: Given,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file.write(folder / "program.json")
    np.save(folder / "latents.npy", latents)
    np.save(folder / "trace.npy", trace(file.program, engines, latents, _tensors(conditions), given))
    names: dict[str, dict[str, str]] = {}
    for branch, inputs in conditions.items():
        names[branch] = {name: f"{branch}.{name}.npy" for name in inputs}
        for name, array in inputs.items():
            np.save(folder / names[branch][name], array)
    for slot, array in given.items():
        np.save(folder / f"{GIVEN}.{slot}.npy", array)
    golden = {
        "format": FORMAT,
        "bundle": file.bundle,
        "program": "program.json",
        "latents": "latents.npy",
        "conditions": names,
        "given": {slot: f"{GIVEN}.{slot}.npy" for slot in given},
        "trace": "trace.npy",
        "tolerance": TOLERANCE,
    }
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def _tensors(conditions: Inputs) -> Conditions:
    return {branch: {name: Tensor.of(array) for name, array in inputs.items()} for branch, inputs in conditions.items()}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A case that was written: what goes in, and what came of it."""

    file: ProgramFile
    latents: Array
    conditions: Inputs
    given: Given
    trace: Array
    tolerance: float

    @classmethod
    def read(cls, case: Path) -> Golden:
        """Read a case's folder.

        Raises:
            FlowBlendingError: a file is missing or damaged.
        """
        try:
            golden = json.loads((case / "golden.json").read_text())
            return cls(
                file=ProgramFile.read(case / golden["program"]),
                latents=np.load(case / golden["latents"]),
                conditions={
                    branch: {name: np.load(case / path) for name, path in inputs.items()}
                    for branch, inputs in golden["conditions"].items()
                },
                given={slot: np.load(case / path) for slot, path in golden["given"].items()},
                trace=np.load(case / golden["trace"]),
                tolerance=float(golden["tolerance"]),
            )
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise FlowBlendingError(f"{case} is damaged ({reason}); write it again with --out.") from None


def check(case: Path, engines: Mapping[str, Engine], bundle: str) -> float:
    """Run a case's program again, and compare every slot after every instruction.

    Args:
        engines: of the bundle that the case was written for.
        bundle: its id.

    Returns:
        The largest difference, as a share of the slot's largest value.

    Raises:
        FlowBlendingError: the files are damaged or another bundle's, or a slot differs by more than the tolerance.
    """
    golden = Golden.read(case)
    if golden.file.bundle != bundle:
        raise FlowBlendingError(
            f"{case} was written for bundle {golden.file.bundle}, but this is {bundle}; give that one to --bundle, or "
            "leave it out for closed-form cases."
        )
    expected = golden.trace
    found = trace(golden.file.program, engines, golden.latents, _tensors(golden.conditions), golden.given)
    if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
        raise FlowBlendingError(
            f"{case} has a trace of {list(expected.shape)}, but the program gives {list(found.shape)}; make it again."
        )
    axes = tuple(range(2, found.ndim))
    errors, largest = (np.nan_to_num(np.abs(each)).max(axis=axes) for each in (found - expected, expected))
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(errors > 0, errors / largest, 0.0)
    worst = float(errors.max())
    if not worst <= golden.tolerance:
        instruction, slot = np.unravel_index(np.argmax(errors), errors.shape)
        raise FlowBlendingError(
            f"{case}: slot {golden.file.slots[slot]} differs by {worst:.2e} after instruction {instruction}, but at "
            f"most {golden.tolerance:g} was expected; the engines or the sampler have changed."
        )
    return worst


def _pipeline(bundle: Path) -> Pipeline:
    opened = open_bundle(bundle)
    opened.verify()
    return Pipeline(bundle=opened, device=HostDevice())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flowblending.runtime.golden.vectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="new folder to write")
    where.add_argument("--check", type=Path, metavar="DIR", help="folder to compare with")
    parser.add_argument("--bundle", type=Path, metavar="BUNDLE", help="default: closed-form engines")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="of the bundle's case (default: 4)")
    parser.add_argument("--schedule", default=AUTO, metavar="S", help="of the bundle's case (default: fb-run's)")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    if arguments.check is not None:
        _check_all(arguments.check, arguments.bundle)
        return 0
    with _new_folder(arguments.out) as folder:
        if arguments.bundle is None:
            write_closed_form(folder)
        else:
            job = Job(prompt="A cat walks on the grass.", steps=arguments.steps, schedule=arguments.schedule)
            write_for_bundle(folder, arguments.bundle, job)
    return 0


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name when the block has ended well, and goes if not."""
    if out.exists():
        raise FlowBlendingError(f"{out} exists already; name a new folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(out) as folder:
            yield folder
    except OSError as error:
        raise FlowBlendingError(f"Cannot write {out} ({error.strerror}); name a folder elsewhere.") from None


def _check_all(folder: Path, bundle: Path | None) -> None:
    cases = sorted(path.parent for path in folder.rglob("golden.json"))
    if not cases:
        raise FlowBlendingError(f"{folder} holds no golden.json; make one with --out {folder}.")
    pipeline = None if bundle is None else _pipeline(bundle)
    if pipeline is None:
        engines, name = closed_form.engines(), closed_form.bundle_id()
    else:
        manifest = pipeline.bundle.manifest
        engines, name = {each: pipeline.engines.get(each) for each in manifest.transformers}, manifest.id
    for case in cases:
        print(f"{case}: largest difference {check(case, engines, name):.2e}")


def main() -> None:
    """Entry point."""
    arguments = _arguments()
    run_program(lambda: _run(arguments))


if __name__ == "__main__":
    main()
