"""Precision as a stage against size as a stage, on the trained shapes pair: what each leaves of all-large sampling.

    python -m benchmarks.precision_stages --out benchmarks/results

``fp8-middle`` is the large model alone, in fp8 where LSL runs the small one. As in `benchmarks.precision`, ONNX Runtime
computes fp8 by rounding in fp32, so times of such runs say nothing and are not given. ``--out`` gets
precision_stages.json and precision_stages.md.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.precision import FP8_BASE, Result, Variant, markdown_table, measure, read_arguments, write_results
from benchmarks.schedules.run import GUIDANCE, Made, prompts, stages
from benchmarks.schedules.samples import mean
from flowblending.engine.build.fp8_middle import FP8_MIDDLE
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.console import Console, run_program

LLL, LSL = stages("LLL"), stages("LSL")
COLUMNS = ("models", "schedule", "operations", "steps in fp8", "attributes right", "PSNR to LLL", "least", "SSIM")
VARIANTS = {
    "large, fp32": Variant(precision="fp32", schedule=LLL, pair=False),
    "large and small, fp32": Variant(precision="fp32", schedule=LSL),
    "large in fp32 and fp8 (fp8-middle)": Variant(precision=FP8_MIDDLE, schedule=LSL, calibration=LSL, pair=False),
    "large, fp8": Variant(precision="fp8", schedule=LLL, calibration=LLL, pair=False),
    "large in fp32 and small in fp8": Variant(precision="small=fp8", schedule=LSL, calibration=LSL),
}
"""The reference first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a variant.

    Args:
        operations: of the transformers' calls, relative to the reference's.
        fp8: steps of an engine in fp8, of all.
    """

    variant: Variant
    result: Result
    operations: float
    fp8: tuple[int, int]


def row(variant: Variant, result: Result, made: Sequence[Made], reference: Sequence[Made]) -> Row:
    """Count what its clips took."""
    quantised = {"fp32": "", "fp8": "LS"}.get(variant.precision, "S")
    letters = StageSchedule.runs(variant.schedule).letters
    return Row(
        variant=variant,
        result=result,
        operations=sum(clip.flops for clip in made) / sum(clip.flops for clip in reference),
        fp8=(sum(letter in quantised for letter in letters), len(letters)),
    )


def lines(rows: Mapping[str, Row]) -> list[tuple[str, ...]]:
    """A line for every variant."""
    found: list[tuple[str, ...]] = []
    for name, each in rows.items():
        means = {measure: mean(values) for measure, values in each.result.samples.items()}
        plain = each.variant == VARIANTS[next(iter(VARIANTS))]
        found.append(
            (
                name,
                each.variant.schedule,
                f"{100 * each.operations:.1f} %",
                "{} of {}".format(*each.fp8),
                f"{100 * means['attributes'].value:.1f} %",
                "-" if plain else f"{means['psnr'].value:.2f} ± {means['psnr'].error:.2f} dB",
                "-" if plain else f"{each.result.samples['psnr'].min():.2f} dB",
                "-" if plain else f"{means['ssim'].value:.4f}",
            )
        )
    return found


def main() -> int:
    """Build, measure, print and write."""
    arguments = read_arguments("precision_stages", "Measure precision as a stage on the shapes pair.", 32)
    wanted = prompts(arguments.prompts, arguments.seed)
    rows: dict[str, Row] = {}
    reference: list[Made] = []
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            result, made = measure(variant, arguments, wanted, reference, Path(folder))
        reference = reference or made
        rows[name] = row(variant, result, made, reference)
    sentence = f"{len(wanted)} prompts, guidance {GUIDANCE:g}."
    table = lines(rows)
    Console().table(sentence, COLUMNS, table)
    data = [
        {
            "name": name,
            **dataclasses.asdict(each.variant),
            "operations": each.operations,
            "fp8_steps": each.fp8[0],
            "steps": each.fp8[1],
            "measures": {key: dataclasses.asdict(mean(value)) for key, value in each.result.samples.items()},
        }
        for name, each in rows.items()
    ]
    notes = (
        f"{sentence} The same noise for every row of a prompt; ± is one standard error over the prompts.",
        "Operations: of the transformers' calls, relative to all-large sampling, in any precision. Of an engine in "
        "fp8, the first and the last blocks are not.",
        FP8_BASE,
    )
    write_results(arguments, "precision_stages", {"rows": data}, markdown_table(COLUMNS, table, notes))
    return 0


if __name__ == "__main__":
    run_program(main)
