"""Measurements as JSON, as Markdown, as tables on the terminal, and as a picture of frames."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.contact_sheet import Pixels, layout, strip
from benchmarks.schedules.claims import Claim
from benchmarks.schedules.measures import REAL, Measured
from benchmarks.schedules.run import Prompt
from benchmarks.schedules.samples import ATTRIBUTES, FLOPS, REFERENCE, RENDERED, TIMES, Mean, Samples, mean

COLUMNS = 3
"""Frames of each clip in the picture."""

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings and rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A schedule's figures.

    Args:
        name: as asked for; `RENDERED` for the drawn scenes.
        runs: the schedule in full, ``L13 S20 L7``; empty for the drawn scenes.
        measures: means over the prompts.
        seen: share of right attributes where the combinations were in training.
        held_out: where one was not.
        frechet: squared Fréchet distance to drawn clips.
        seconds: medians of `TIMES`.
        time: whole video, relative to the reference's.
        loop: sampling loop, relative to the reference's.
        flops: of the transformers, relative to the reference's.
        overhead: the host's share of the sampling loop.
    """

    name: str
    runs: str
    measures: Mapping[str, Mean]
    seen: Mean
    held_out: Mean
    frechet: float
    seconds: Mapping[str, float]
    time: float = math.nan
    loop: float = math.nan
    flops: float = math.nan
    overhead: float = math.nan


def rows(measured: Measured, held_out: npt.NDArray[np.bool_], runs: Mapping[str, str]) -> list[Row]:
    """One row for every schedule, and the drawn scenes last.

    Args:
        measured: of the run.
        held_out: which prompts are, [N].
        runs: every schedule in full.
    """
    return [
        _row(name, samples, measured, held_out, runs=runs.get(name, "")) for name, samples in measured.samples.items()
    ]


def _row(name: str, samples: Samples, measured: Measured, held_out: npt.NDArray[np.bool_], *, runs: str) -> Row:
    row = Row(
        name=name,
        runs=runs,
        measures={key: mean(values) for key, values in samples.items() if key not in (*TIMES, FLOPS)},
        seen=mean(samples["attributes"][~held_out]),
        held_out=mean(samples["attributes"][held_out]),
        frechet=measured.frechet[name],
        seconds={},
    )
    if name == RENDERED:
        return row
    seconds = {key: statistics.median(samples[key].tolist()) for key in TIMES}
    unit = {key: statistics.median(measured.samples[REFERENCE][key].tolist()) for key in TIMES}
    return dataclasses.replace(
        row,
        seconds=seconds,
        time=seconds["total"] / unit["total"],
        loop=seconds["loop"] / unit["loop"],
        flops=float(samples[FLOPS].mean() / measured.samples[REFERENCE][FLOPS].mean()),
        overhead=1 - statistics.median((samples["engines"] / samples["loop"]).tolist()),
    )


def as_json(every: Sequence[Row], claims: Sequence[Claim]) -> dict[str, Any]:
    """Plain data; what is no finite number is null."""
    content: dict[str, Any] = finite(
        {"rows": [dataclasses.asdict(row) for row in every], "claims": [dataclasses.asdict(claim) for claim in claims]}
    )
    return content


def finite(value: Any) -> Any:
    """What is no finite number as None, in plain data: JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tables(every: Sequence[Row]) -> list[Table]:
    """What the clips show and are like; adherence by attribute, and by what training has shown; what they cost."""
    likeness = ("attributes right", "clips all right", "PSNR to LLL", "SSIM", "latent cosine", "Fréchet", "roughness")
    made = [row for row in every if row.name != RENDERED]
    return [
        (
            ("schedule", *likeness),
            [
                (
                    row.name,
                    _percent(row.measures["attributes"]),
                    _percent(row.measures["all_right"]),
                    _plain(row.measures.get("psnr"), ".2f", " dB"),
                    _plain(row.measures.get("ssim"), ".3f"),
                    _plain(row.measures.get("cosine"), ".4f"),
                    f"{row.frechet:.2f}",
                    _plain(row.measures["roughness"], ".4f"),
                )
                for row in every
            ],
        ),
        (
            ("attributes right", *ATTRIBUTES, "seen in training", "held out"),
            [
                (
                    row.name,
                    *(_share(row.measures[name]) for name in ATTRIBUTES),
                    _percent(row.seen),
                    _percent(row.held_out),
                )
                for row in every
            ],
        ),
        (
            ("cost", "stages", "whole video", "sampling loop", "FLOPs", "host's share of the loop"),
            [
                (
                    row.name,
                    row.runs,
                    *(f"{value:.3f}" for value in (row.time, row.loop, row.flops)),
                    f"{row.overhead:.2%}",
                )
                for row in made
            ],
        ),
    ]


def markdown(every: Sequence[Row], claims: Sequence[Claim], settings: str) -> str:
    """The report; ``settings`` is a sentence about the run."""
    count = every[0].measures["attributes"].count
    notes = [
        f"{settings} The same noise for every schedule of a prompt; ± is one standard error over the prompts.",
        "Times and FLOPs (of the transformers) are relative to LLL's; times are medians of one run, in which the "
        "schedules take turns.",
        "Fréchet: squared Fréchet distance on the project's own features (64 numbers of a network trained on drawn "
        f"clips), between {count} clips and {REAL} drawn ones. With so few clips it is too large, in each row; "
        "that of the prompts' own scenes as drawn shows by about how much.",
        "Roughness is the mean absolute second difference over time: a moving edge has some, flicker has more.",
    ]
    parts = [*map(_table, tables(every)), "\n".join(f"- {note}" for note in notes)]
    if claims:
        parts.append("\n".join(f"- {claim}" for claim in claims))
    return "\n\n".join(parts) + "\n"


def _table(content: Table) -> str:
    columns, lines = content
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))


def _percent(value: Mean) -> str:
    if math.isnan(value.value) or math.isnan(value.error):
        return _share(value)
    return f"{100 * value.value:.1f} ± {100 * value.error:.1f} %"


def _share(value: Mean) -> str:
    return "-" if math.isnan(value.value) else f"{100 * value.value:.1f} %"


def _plain(value: Mean | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value.value:{form}}{unit}"


def picture(measured: Measured, prompts: Sequence[Prompt]) -> Pixels:
    """Rows: the schedules and the drawn scenes. Columns: frames of a few prompts' clips, with the captions above."""
    cells = [
        [strip(np.rint(255 * clip).astype(np.uint8), COLUMNS) for clip in clips] for clips in measured.shown.values()
    ]
    return layout(cells, above=[prompt.text for prompt in prompts], left=list(measured.shown), scale=2)
