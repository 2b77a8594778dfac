"""LLL, LSL and SSS against the diffusers pipeline in torch: same checkpoints, threads, noise, in one run, on the CPU.

It asserts that the latents agree before it reports a time. Reported are ratios: the host's share of the sampling
loop, the speed-up of LSL as a share of the bound that its FLOPs allow, and the time against torch.

    python -m benchmarks.steps --json benchmarks/results/steps.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import WanPipeline, WanTransformer3DModel

from benchmarks.checkpoints import wan_pipeline, wan_transformer
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.request import named_models
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.cost import cost_of
from flowblending.system.console import Console

SCHEDULES = ("LLL", "LSL", "SSS")
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Measurements of one schedule; seconds are medians over the repetitions.

    Attributes:
        loop: the whole sampling loop of our runtime.
        engines: the part of it inside the engines.
        torch_loop: the same steps in the diffusers pipeline (its time from first to last step).
        bound: speed-up over LLL that the FLOPs allow.
        error: relative difference of the final latents from those of diffusers.
    """

    schedule: str
    steps: int
    loop: float
    engines: float
    torch_loop: float
    bound: float
    error: float

    @property
    def overhead(self) -> float:
        """The host's share of the loop."""
        return (self.loop - self.engines) / self.loop


def make_pair(folder: Path) -> None:
    """A pair large enough that a step takes tens of milliseconds; the small model has about a sixth of the FLOPs."""
    wan_pipeline(1, wan_transformer(1, layers=6, heads=6, head_dim=64, ffn=1536)).save_pretrained(folder / "large")
    wan_transformer(2, layers=4, heads=3, head_dim=64, ffn=768).save_pretrained(folder / "small")


def build(folder: Path, size: str, frames: int) -> Bundle:
    """Build the pair for ONNX Runtime."""
    request = BuildRequest(
        models=named_models(str(folder / "large"), str(folder / "small")),
        out=folder / "bundle",
        size=size,
        frames=frames,
        precision=None,
        backend="onnxruntime",
        targets=(),
    )
    return build_bundle(request, Console())


def run_torch(folder: Path, bundle: Bundle, job: Job) -> Callable[[], tuple[float, Any]]:
    """A function that runs the diffusers pipeline and returns the seconds of its loop and the latents."""
    pipe = WanPipeline.from_pretrained(folder / "large", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    models = {"large": pipe.transformer, "small": WanTransformer3DModel.from_pretrained(folder / "small")}
    steps = compile_job(job, bundle.manifest).steps
    geometry = bundle.manifest.geometry

    def once() -> tuple[float, Any]:
        marks: list[float] = []

        def swap(pipe: Any, step: int, _timestep: Any, _values: Any) -> dict[str, Any]:
            marks.append(time.perf_counter())
            pipe.transformer = models[steps[min(step + 1, len(steps) - 1)].model]
            return {}

        # The scheduler is asked for its timesteps right before the loop: that is where the clock starts.
        original = pipe.scheduler.set_timesteps

        def start(*arguments: Any, **options: Any) -> None:
            original(*arguments, **options)
            marks.append(time.perf_counter())

        pipe.scheduler.set_timesteps = start
        pipe.transformer = models[steps[0].model]
        latents = pipe(
            prompt=job.prompt,
            width=geometry.width,
            height=geometry.height,
            num_frames=geometry.frames,
            num_inference_steps=len(steps),
            generator=torch.Generator("cpu").manual_seed(job.seed),
            output_type="latent",
            callback_on_step_end=swap,
        ).frames
        pipe.scheduler.set_timesteps = original
        return marks[-1] - marks[0], latents.numpy()

    return once


def run_ours(pipeline: Pipeline, job: Job) -> Callable[[], tuple[float, float, Any]]:
    """A function that samples and returns the seconds of the loop, of the engines in it, and the latents."""
    program = compile_job(job, pipeline.bundle.manifest)
    conditions = pipeline.encode(job, program, print)

    def once() -> tuple[float, float, Any]:
        sample = pipeline.sample(program, TorchNormal(job.seed).normal((1, *program.latent_shape)), conditions)
        return sample.loop_seconds, sum(sample.model_seconds.values()), pipeline.device.download(sample.latents)

    return once


def measure(folder: Path, bundle: Bundle, pipeline: Pipeline, job: Job, repeat: int) -> Row:
    """Time one schedule; ours and torch take turns, so that a noisy neighbour hits both."""
    ours, reference = run_ours(pipeline, job), run_torch(folder, bundle, job)
    _, _, latents = ours()
    _, expected = reference()
    error = float(np.linalg.norm(latents - expected) / np.linalg.norm(expected))
    if not error < TOLERANCE:
        raise SystemExit(f"{job.schedule}: latents differ from diffusers by {error:.2e}, more than {TOLERANCE:.0e}")
    runs = [(*ours()[:2], reference()[0]) for _ in range(repeat)]
    loop, engines, torch_loop = (statistics.median(column) for column in zip(*runs, strict=True))
    program = compile_job(job, bundle.manifest)
    return Row(
        schedule=job.schedule,
        steps=len(program.steps),
        loop=loop,
        engines=engines,
        torch_loop=torch_loop,
        bound=cost_of(program, bundle.manifest).bound,
        error=error,
    )


def summary(rows: Mapping[str, Row]) -> dict[str, Any]:
    """The three claims as figures: host overhead, share of the bound, time against torch."""
    speed_up = rows["LLL"].loop / rows["LSL"].loop
    return {
        "overhead": {name: row.overhead for name, row in rows.items()},
        "lsl_speed_up": speed_up,
        "lsl_bound": rows["LSL"].bound,
        "lsl_share_of_bound": speed_up / rows["LSL"].bound,
        "torch_over_ours": {name: row.torch_loop / row.loop for name, row in rows.items()},
    }


def missed_claims(result: Mapping[str, Any]) -> list[str]:
    """What the project promises of its loop and did not keep in this run."""
    claims = {
        "the host takes more than 3 % of the loop": max(result["overhead"].values()) <= 0.03,
        "LSL reaches less than 0.95 of its FLOPs bound": result["lsl_share_of_bound"] >= 0.95,
        "torch is faster": min(result["torch_over_ours"].values()) >= 1.0,
    }
    return [claim for claim, kept in claims.items() if not kept]


def report(rows: Mapping[str, Row], console: Console) -> None:
    """Print the table; times are relative to LLL of our runtime."""
    unit = rows["LLL"].loop
    console.table(
        f"{rows['LLL'].steps} steps; loop times relative to LLL",
        ("schedule", "ours", "torch", "torch/ours", "speed-up", "FLOPs bound", "share", "host overhead", "error"),
        [
            (
                name,
                f"{row.loop / unit:.3f}",
                f"{row.torch_loop / unit:.3f}",
                f"{row.torch_loop / row.loop:.2f}x",
                f"{unit / row.loop:.3f}x",
                f"{row.bound:.3f}x",
                f"{unit / row.loop / row.bound:.3f}",
                f"{row.overhead:.2%}",
                f"{row.error:.1e}",
            )
            for name, row in rows.items()
        ],
    )


def main() -> None:
    """Build, measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure the sampling loop against diffusers on the CPU.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements here")
    parser.add_argument("--size", default="256x160")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="fail when one of the project's claims is missed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pair(folder)
        bundle = build(folder, arguments.size, arguments.frames)
        device = open_device("cpu", bundle.manifest)
        pipeline = Pipeline(bundle=bundle, device=device, machine=MachineSettings(threads=arguments.threads))
        rows = {}
        for schedule in SCHEDULES:
            job = Job(prompt="A cat walks on the grass.", schedule=schedule, steps=arguments.steps)
            rows[schedule] = measure(folder, bundle, pipeline, job, arguments.repeat)
        pipeline.close()
    report(rows, console)
    result = {
        "machine": {"processor": platform.machine(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("torch", "diffusers", "onnxruntime", "numpy")},
        "geometry": {"size": arguments.size, "frames": arguments.frames},
        "rows": [dataclasses.asdict(row) for row in rows.values()],
        **summary(rows),
    }
    if arguments.check and (missed := missed_claims(result)):
        raise SystemExit("; ".join(missed))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
