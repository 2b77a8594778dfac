"""What precision costs in quality, on the trained shapes pair: LSL in several precisions against LSL in fp32.

    python -m benchmarks.precision --out benchmarks/results

ONNX Runtime computes fp8 by rounding in fp32, on any machine, so that quality can be measured without a GPU; times of
such runs say nothing and are not given. ``--out`` gets precision.json and precision.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.schedules.measures import judged
from benchmarks.schedules.report import finite
from benchmarks.schedules.run import (
    CHECKPOINTS,
    FRAME_RATE,
    FRAMES,
    GUIDANCE,
    SIZE,
    STEPS,
    Made,
    Prompt,
    check_checkpoints,
    make,
    make_folder,
    prompts,
    stages,
)
from benchmarks.schedules.samples import Samples, mean, table
from flowblending import UsageError
from flowblending.engine.build.build import build_bundle
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.request import BuildRequest, named_models
from flowblending.runtime import api
from flowblending.runtime.measures.similarity import cosine, psnr, ssim
from flowblending.runtime.options import Job
from flowblending.system.console import Console, run_program
from flowblending.system.whole_file import write_whole

SCHEDULE = stages("LSL")
CALIBRATION_PROMPTS, CALIBRATION_SEED = 8, 7
REFERENCE = "fp32"
FP8_BASE = "fp8's base is fp32 here, as ONNX Runtime's CPU kernels need it; on a GPU it is bf16."
COLUMNS = (
    *("precision", "calibrated on", "attributes right", "PSNR to fp32", "least", "SSIM", "latent cosine"),
    *("transformers", "build"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to build the pair.

    Args:
        precision: as ``--precision`` takes it.
        calibration: the schedule that fp8 is calibrated on; None without fp8.
        schedule: that is sampled.
        pair: whether the small model is built, too.
    """

    precision: str
    calibration: str | None = None
    schedule: str = SCHEDULE
    pair: bool = True

    @property
    def name(self) -> str:
        """For the tables."""
        return self.precision if self.calibration is None else f"{self.precision} on {self.calibration}"


EVERYWHERE = " ".join(["L1 S1"] * (STEPS // 2))
"""Models that take turns are both shown all of the trajectory: what calibration is without stages."""


def variants() -> list[Variant]:
    """fp32 first, and fp8 in two ways of calibrating."""
    quantised = ("fp8", "large=fp16-mixed,small=fp8")
    return [
        Variant(precision=REFERENCE),
        Variant(precision="fp16-mixed"),
        *(Variant(precision=each, calibration=schedule) for each in quantised for schedule in (SCHEDULE, EVERYWHERE)),
    ]


def worth(results: Mapping[Variant, Result]) -> list[str]:
    """What stage-aware calibration gains, in sentences; clips of the same noise are compared."""
    found = []
    for variant, result in results.items():
        other = results.get(dataclasses.replace(variant, calibration=EVERYWHERE))
        if variant.calibration == SCHEDULE and other is not None:
            gain = mean(result.samples["psnr"] - other.samples["psnr"])
            found.append(f"Stage-aware calibration of {variant.precision}: {gain.value:+.2f} ± {gain.error:.2f} dB.")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of a variant.

    Args:
        samples: a value for each prompt of every measure.
        megabytes: of both transformers' files.
        build_seconds: with verification and calibration.
    """

    samples: Samples
    megabytes: float
    build_seconds: float


def measure(
    variant: Variant, arguments: argparse.Namespace, wanted: Sequence[Prompt], reference: Sequence[Made], folder: Path
) -> tuple[Result, list[Made]]:
    """Build, sample and compare; ``reference`` is empty for the reference itself."""
    console = Console()
    console.log(f"\n{variant.name}")
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompt.text for prompt in prompts(CALIBRATION_PROMPTS, CALIBRATION_SEED)) + "\n")
    options = (
        Fp8Options(prompts=file, schedule=variant.calibration, steps=STEPS) if variant.calibration else Fp8Options()
    )
    small = str(arguments.checkpoints / "small") if variant.pair else None
    request = BuildRequest(
        models=named_models(str(arguments.checkpoints / "large"), small),
        out=folder / "bundle",
        size=SIZE,
        frames=FRAMES,
        precision=variant.precision,
        backend="onnxruntime",
        targets=(),
        fp8=options,
    )
    start = time.perf_counter()
    bundle = build_bundle(request, console)
    seconds = time.perf_counter() - start
    size = sum(file.bytes for name in bundle.manifest.transformers for file in bundle.manifest.components[name].files)
    job = Job(prompt="", schedule=variant.schedule, steps=STEPS, guidance=GUIDANCE, frame_rate=FRAME_RATE)
    with api.open(request.out) as sampler, console.progress("clips", total=len(wanted)) as advance:
        made = []
        for prompt in wanted:
            made.append(make(sampler.pipeline, prompt.job(job)))
            advance(1)
    rows = [
        judged(prompt, clip.frames) | likeness(clip, other)
        for prompt, clip, other in zip(wanted, made, reference or made, strict=True)
    ]
    return Result(samples=table(rows), megabytes=size / 1e6, build_seconds=seconds), made


def likeness(made: Made, reference: Made) -> dict[str, float]:
    """To the reference's clip of the same noise."""
    return {
        "psnr": psnr(made.frames, reference.frames),
        "ssim": ssim(made.frames, reference.frames),
        "cosine": cosine(made.latents, reference.latents),
    }


def lines(results: Mapping[Variant, Result]) -> list[tuple[str, ...]]:
    """A line for every variant."""
    found: list[tuple[str, ...]] = []
    for variant, result in results.items():
        means = {name: mean(values) for name, values in result.samples.items()}
        plain = variant.precision == REFERENCE
        found.append(
            (
                variant.precision,
                {None: "", SCHEDULE: "its stages"}.get(variant.calibration, "all of the trajectory"),
                f"{100 * means['attributes'].value:.1f} %",
                "-" if plain else f"{means['psnr'].value:.2f} ± {means['psnr'].error:.2f} dB",
                "-" if plain else f"{result.samples['psnr'].min():.2f} dB",
                "-" if plain else f"{means['ssim'].value:.4f}",
                "-" if plain else f"{means['cosine'].value:.5f}",
                f"{result.megabytes:.1f} MB",
                f"{result.build_seconds:.0f} s",
            )
        )
    return found


def markdown(rows: Sequence[Sequence[str]], sentence: str, gains: Sequence[str]) -> str:
    """The report."""
    notes = (
        *gains,
        f"{sentence} The same noise for every precision of a prompt; ± is one standard error over the prompts.",
        FP8_BASE,
        "Transformers: the size of both models' files. ONNX Runtime's fp8 stores E4M3 weights as TensorRT's does.",
    )
    return markdown_table(COLUMNS, rows, notes)


def as_json(results: Mapping[Variant, Result]) -> list[dict[str, object]]:
    """Plain data."""
    return [
        {
            **dataclasses.asdict(variant),
            "measures": {name: dataclasses.asdict(mean(values)) for name, values in result.samples.items()},
            "megabytes": result.megabytes,
            "build_seconds": result.build_seconds,
        }
        for variant, result in results.items()
    ]


def read_arguments(program: str, description: str, prompts: int) -> argparse.Namespace:
    """The arguments of a benchmark of precisions; its ``--out`` is made.

    Args:
        program: its name in this folder.
        description: for ``--help``.
        prompts: how many it takes by default.

    Raises:
        UsageError: there are too few prompts.
        FlowBlendingError: the checkpoints are not whole.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=description)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, metavar="DIR", help="the trained pair")
    parser.add_argument("--prompts", type=int, default=prompts, metavar="N", help="at least 2")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the noise")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.prompts < 2:
        raise UsageError(
            f"{arguments.prompts} prompts were asked for, but a spread needs at least 2; try --prompts {prompts}."
        )
    check_checkpoints(arguments.checkpoints, ("large", "small"))
    make_folder(arguments.out)
    return arguments


def write_results(arguments: argparse.Namespace, name: str, content: Mapping[str, object], text: str) -> None:
    """Write ``name``.json, with what it was measured with, and ``name``.md into ``--out``."""
    told = {
        "prompts": arguments.prompts,
        "seed": arguments.seed,
        "versions": {name: version(name) for name in ("torch", "diffusers", "onnxruntime", "numpy")},
    }
    data = json.dumps(finite({**told, **content}), indent=2, ensure_ascii=False) + "\n"
    write_whole(arguments.out / f"{name}.json", data.encode())
    write_whole(arguments.out / f"{name}.md", text.encode())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A table and what is said below it."""
    lines = (f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))
    return "\n".join((*lines, "", *(f"- {note}" for note in notes))) + "\n"


def main() -> int:
    """Build, measure, print and write."""
    arguments = read_arguments("precision", "Measure precisions on the shapes pair.", 48)
    wanted = prompts(arguments.prompts, arguments.seed)
    results: dict[Variant, Result] = {}
    reference: list[Made] = []
    for variant in variants():
        with tempfile.TemporaryDirectory() as folder:
            results[variant], made = measure(variant, arguments, wanted, reference, Path(folder))
        reference = reference or made
    sentence = f"{len(wanted)} prompts, {SCHEDULE}, guidance {GUIDANCE:g}."
    rows = lines(results)
    gains = worth(results)
    console = Console()
    console.table(sentence, COLUMNS, rows)
    for gain in gains:
        console.log(gain)
    content = {"schedule": SCHEDULE, "rows": as_json(results)}
    write_results(arguments, "precision", content, markdown(rows, sentence, gains))
    return 0


if __name__ == "__main__":
    run_program(main)
