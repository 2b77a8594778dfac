"""Memory and time that full-size models take to export and to compile, on a machine without a GPU.

Checkpoints have the published configurations and random weights, written as sharded bfloat16 safetensors. Every case
runs in a process of its own. Told are its largest resident set as /usr/bin/time tells it, the largest anonymous part
of that (what is left without pages of files, which the system takes back when it needs them), wall seconds, and CPU
seconds, which say more where other programs run beside. Cases of earlier runs stay in the file.

    python -m benchmarks.scale --work /tmp/scale --cases wan-14b-bf16,ltx-13b-bf16 --json benchmarks/results/scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import MODELS, element_count, write_model
from benchmarks.scale_step import anonymous_bytes
from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import LARGE, TEXT_ENCODER, Precision
from flowblending.engine.build.disk import ComponentDisk, check_disk, need
from flowblending.system.console import Console, run_program

GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: one transformer or text encoder from its checkpoint to a graph, and from there to a plan.

    Attributes:
        model: one of `benchmarks.random_checkpoint.MODELS`.
        precision: of the graph.
        target: GPU to compile a plan for; None exports only.
        step: ``export``; ``verify``, which also runs the graph and torch's class on all weights, and compares; or
            ``observe``, one call of a calibration for fp8.
    """

    model: str
    precision: Precision
    target: str | None = None
    step: str = "export"


CASES: Mapping[str, Case] = {
    "wan-14b-bf16": Case(model="wan-14b", precision=Precision.BF16),
    "ltx-13b-bf16": Case(model="ltx-13b", precision=Precision.BF16),
    "wan-1.3b-fp16-plan": Case(model="wan-1.3b", precision=Precision.FP16, target="sm120"),
    "wan-14b-fp8-plan": Case(model="wan-14b", precision=Precision.FP8, target="sm89"),
    "wan-14b-bf16-verified": Case(model="wan-14b", precision=Precision.BF16, step="verify"),
    "ltx-13b-bf16-verified": Case(model="ltx-13b", precision=Precision.BF16, step="verify"),
    "wan-14b-calibration": Case(model="wan-14b", precision=Precision.FP32, step="observe"),
    "umt5-xxl-bf16": Case(model="umt5-xxl", precision=Precision.BF16),
    "umt5-xxl-bf16-verified": Case(model="umt5-xxl", precision=Precision.BF16, step="verify"),
}

_STEPS = {"export": "export", "verify": "export and verification", "observe": "one call of a calibration"}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process took.

    Attributes:
        peak_rss: bytes of its largest resident set, pages of files among them.
        peak_anonymous: bytes of the largest part of it that is no file's, looked at 50 times a second.
        told: what the process itself has to say.
    """

    seconds: float
    cpu_seconds: float
    peak_rss: int
    peak_anonymous: int
    told: Mapping[str, Any]


def measure(*arguments: str) -> Usage:
    """Run this module's own child with these arguments, and watch it.

    Raises:
        FlowBlendingError: it failed; its last words.
    """
    start = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale_step", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    anonymous = 0
    while True:
        anonymous = max(anonymous, anonymous_bytes(child.pid))
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.02)
    child.returncode = os.waitstatus_to_exitcode(status)
    output, errors = child.communicate()
    if child.returncode:
        words = (errors.strip().splitlines() or ["no words"])[-1]
        raise FlowBlendingError(f"The step {' '.join(arguments)} ended with {child.returncode} ({words}).")
    return Usage(
        seconds=time.monotonic() - start,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_rss=usage.ru_maxrss * 1024,
        peak_anonymous=anonymous,
        told=json.loads(output.strip().splitlines()[-1]),
    )


def run_case(name: str, work: Path, layers: int | None, console: Console) -> dict[str, Any]:
    """Measure a case and remove everything that it has written."""
    case = CASES[name]
    model = MODELS[case.model].cut(layers)
    elements = element_count(model)
    graph = elements * (1.2 if case.precision is Precision.FP8 else 2)
    work.mkdir(parents=True, exist_ok=True)
    # The checkpoint goes when the graph is written, and the plan comes after that.
    after = 2 * graph if case.target is not None else 0
    needed = need([ComponentDisk(kept=0, beside=int(max(2 * elements + graph, after)))])
    console.log(f"{name}: {check_disk(needed, work, work)}")
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    result: dict[str, Any] = {"model": case.model, "layers": model.layers, "parameters": elements}
    result["precision"] = str(case.precision)
    load = os.getloadavg()
    try:
        checkpoint = folder / "checkpoint"
        console.log(f"{name}: writing a checkpoint of {2 * elements / GIGA:.1f} GB")
        write_model(model, checkpoint / TEXT_ENCODER if model.encodes_text else checkpoint)
        usage = measure(case.step, str(checkpoint), str(folder / "graph"), case.precision)
        result[_STEPS[case.step]] = _told(usage, model.layers)
        _log(console, f"{name}: {case.step}", usage)
        shutil.rmtree(checkpoint)
        if case.target is not None:
            usage = measure("plan", str(folder / "graph" / f"{LARGE}.onnx"), str(folder / "plan"), case.target)
            result["plan"] = _told(usage, model.layers) | {"target": case.target}
            _log(console, f"{name}: plan", usage)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result | {"load_average": {"before": load[0], "after": os.getloadavg()[0]}}


def machine() -> dict[str, Any]:
    """What this runs on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "versions": {name: version(name) for name in ("torch", "diffusers", "onnxscript", "onnx-ir", "onnxruntime")},
    }


def _told(usage: Usage, layers: int) -> dict[str, Any]:
    told = {name: value for name, value in asdict(usage).items() if name != "told"}
    return told | {"cpu_seconds_per_layer": usage.cpu_seconds / layers} | dict(usage.told)


def _log(console: Console, title: str, usage: Usage) -> None:
    console.log(
        f"{title}: {usage.seconds:.0f} s, {usage.cpu_seconds:.0f} s of CPU, peak RSS {usage.peak_rss / GIGA:.2f} GB, "
        f"anonymous {usage.peak_anonymous / GIGA:.2f} GB {json.dumps(usage.told)}"
    )


def _write(path: Path, results: Mapping[str, Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    content["machine"] = machine()
    content["cases"] |= results
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure the export and compilation of full-size models.")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for checkpoints, graphs and plans")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {', '.join(CASES)} (default: all)")
    parser.add_argument("--layers", type=int, metavar="N", help="a model of so many layers (default: the real number)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements here, after each case")
    arguments = parser.parse_args()
    console = Console()
    chosen = arguments.cases.split(",")

    def work() -> None:
        for name in chosen:
            if name not in CASES:
                raise UsageError(f"There is no case {name}; choose among {', '.join(CASES)}.")
        for name in chosen:
            result = run_case(name, arguments.work, arguments.layers, console)
            key = name if arguments.layers is None else f"{name}, {arguments.layers} layers"
            if arguments.json is not None:
                _write(arguments.json, {key: result})

    run_program(work)


if __name__ == "__main__":
    main()
