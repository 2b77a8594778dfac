"""A first frame given to the shapes pair: are its shapes, colours and background kept?

    python -m benchmarks.first_frame --out benchmarks/results

Every scene's drawn first frame is given beside a prompt that tells everything, and beside one that tells motions alone;
for comparison the same prompts are run without it. The judge reads the frames after the first. ``--out`` gets
first_frame.json, first_frame.md and first_frame.jpg.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.contact_sheet import Pixels, layout, save_picture, strip
from benchmarks.schedules.experiment import pair_bundle
from benchmarks.schedules.measures import draw, shares
from benchmarks.schedules.report import finite
from benchmarks.schedules.run import (
    CHECKPOINTS,
    FRAME_RATE,
    FRAMES,
    GUIDANCE,
    SIZE,
    STEPS,
    Clip,
    Prompt,
    check_checkpoints,
    make_folder,
    prompts,
    stages,
)
from benchmarks.schedules.samples import ATTRIBUTES, Mean, Samples, mean, table
from benchmarks.shapes.adherence import adherence
from benchmarks.shapes.judge import read
from benchmarks.shapes.scene import Scene, caption, motion_caption
from flowblending.contracts.conditions import Source
from flowblending.runtime import api
from flowblending.runtime.events import FramesEvent
from flowblending.runtime.measures.similarity import psnr
from flowblending.system.console import Console, run_program
from flowblending.system.whole_file import write_whole

TAUGHT = "image"
"""Folder beside the trained pair with the transformers that were taught to go on from a first frame."""
TELLS = {"everything": caption, "motions": motion_caption}
"""What a prompt tells -> the prompt of a scene."""
SCHEDULES = ("LLL", "LSL", "SSS")
SHOWN = 4
COLUMNS = (
    *("prompt tells", "first frame", "schedule", *ATTRIBUTES, "all attributes"),
    *("PSNR of frame 0", "PSNR of the rest"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """How every scene's clip is made.

    Args:
        tells: a key of `TELLS`.
        given: whether the first frame is.
        schedule: a name, such as ``LSL``.
    """

    tells: str
    given: bool
    schedule: str

    @property
    def name(self) -> str:
        """For pictures."""
        return f"{self.schedule}, {self.tells} told, {'with' if self.given else 'without'} the first frame"


def cases(schedules: Sequence[str]) -> list[Case]:
    """All, those with a first frame first."""
    return [
        Case(tells=tells, given=given, schedule=schedule)
        for given, tells, schedule in itertools.product((True, False), TELLS, schedules)
    ]


def make_clip(sampler: api.VideoSampler, prompt: Prompt, case: Case, image: Path, steps: int) -> Clip:
    """One clip, [F, H, W, 3] in 0..1; ``image`` is the file with the first frame, which not every case takes."""
    video = sampler.generate(
        TELLS[case.tells](prompt.scene),
        image=(str(image),) if case.given else (),
        seed=prompt.seed,
        steps=steps,
        schedule=stages(case.schedule, steps),
        guidance=GUIDANCE,
        frame_rate=FRAME_RATE,
    )
    frames = np.concatenate([event.frames for event in video if isinstance(event, FramesEvent)], axis=1)
    return np.ascontiguousarray(np.clip(frames.transpose(1, 2, 3, 0) / 2 + 0.5, 0, 1))


def judged(scene: Scene, clip: Clip, drawn: Clip) -> dict[str, float]:
    """What the frames after the first show of a scene, and how near a clip is to its drawing, in dB."""
    verdict = adherence(read(clip[1:]), scene)
    return {
        **shares(verdict),
        "attributes": verdict.share,
        "first": psnr(clip[:1], drawn[:1]),
        "rest": psnr(clip[1:], drawn[1:]),
    }


def measure(
    sampler: api.VideoSampler,
    wanted: Sequence[Prompt],
    every: Sequence[Case],
    *,
    steps: int,
    advance: Callable[[int], None],
) -> tuple[dict[Case, Samples], dict[Case, list[Clip]]]:
    """Every scene's clip in every case, from the same noise: what the judge says, and the clips.

    Args:
        sampler: of a bundle that takes images.
        wanted: the scenes, with their noise.
        every: the cases.
        steps: of each run.
        advance: told of every clip.
    """
    rows: dict[Case, list[dict[str, float]]] = {case: [] for case in every}
    made: dict[Case, list[Clip]] = {case: [] for case in every}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "first.png"
        for prompt in wanted:
            drawn = draw(prompt.scene, sampler.manifest.geometry)
            Image.fromarray(_pixels(drawn[0])).save(image)
            for case in every:
                clip = make_clip(sampler, prompt, case, image, steps)
                rows[case].append(judged(prompt.scene, clip, drawn))
                made[case].append(clip)
                advance(1)
    return {case: table(of_case) for case, of_case in rows.items()}, made


def _pixels(frames: Clip) -> Pixels:
    return np.rint(255 * frames).astype(np.uint8)


def lines(samples: dict[Case, Samples]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for every case."""
    return [
        (
            case.tells,
            "given" if case.given else "-",
            case.schedule,
            *(_percent(mean(of_case[name])) for name in ATTRIBUTES),
            f"{100 * mean(of_case['attributes']).value:.1f} ± {100 * mean(of_case['attributes']).error:.1f} %",
            f"{mean(of_case['first']).value:.1f} dB",
            f"{mean(of_case['rest']).value:.1f} dB",
        )
        for case, of_case in samples.items()
    ]


def _percent(value: Mean) -> str:
    return f"{100 * value.value:.1f} %" if value.count else "-"


def markdown(rows: Sequence[Sequence[str]], sentence: str) -> str:
    """The report."""
    notes = (
        f"- {sentence} The same noise for every row of a scene.",
        "- Attributes are read in the frames after the first, and compared with the scene that the first frame is of; "
        "a quarter of the scenes have a combination that training never shows.",
        "- Motions are told by every prompt. Sizes and places are told by none, and shown by the first frame.",
        "- PSNR is to the drawn scene; through the VAE, frames come back at about 30 dB.",
    )
    table_lines = (f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))
    return "\n".join((*table_lines, "", *notes)) + "\n"


def picture(wanted: Sequence[Prompt], made: dict[Case, list[Clip]], drawn: Sequence[Clip]) -> Pixels:
    """First, middle and last frames of a few scenes: as drawn, and where the prompt tells motions alone."""
    shown = sorted(set(np.linspace(0, len(wanted) - 1, SHOWN).round().astype(int).tolist()))
    columns = {case.name: clips for case, clips in made.items() if case.tells == "motions"}
    return layout(
        [[strip(_pixels(clips[row]), 3) for clips in (drawn, *columns.values())] for row in shown],
        above=["the scene as drawn", *columns],
        left=[motion_caption(wanted[row].scene) for row in shown],
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_frame", description="Measure what the shapes pair keeps of a first frame."
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="that takes images (default: built)")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, metavar="DIR", help="the trained pair")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help=f"with the transformers (default: {TAUGHT}/ of the trained pair)"
    )
    parser.add_argument("--prompts", type=int, default=32, metavar="N", help="at least 2")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), metavar="SCHEDULE")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the noise")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def main() -> int:
    """Measure, print and write."""
    arguments = parser().parse_args()
    console, wanted = Console(), prompts(arguments.prompts, arguments.seed)
    every = cases([name.upper() for name in arguments.schedules])
    models: Path = arguments.models or arguments.checkpoints / TAUGHT
    if not arguments.bundle:
        check_checkpoints(arguments.checkpoints, ("large",))
        check_checkpoints(models, ("large", "small"))
    out: Path = arguments.out
    make_folder(out)
    with (
        pair_bundle(
            arguments.bundle, arguments.checkpoints, console, models=models, conditions=(Source.IMAGE,)
        ) as folder,
        api.open(folder, threads=arguments.threads) as sampler,
        console.progress("clips", total=len(wanted) * len(every)) as advance,
    ):
        samples, made = measure(sampler, wanted, every, steps=arguments.steps, advance=advance)
        drawn = [draw(prompt.scene, sampler.manifest.geometry) for prompt in wanted]
    sentence = f"{len(wanted)} scenes, {SIZE}, {FRAMES} frames, {arguments.steps} steps, guidance {GUIDANCE:g}."
    rows = lines(samples)
    console.table(sentence, COLUMNS, rows)
    write_whole(out / "first_frame.json", (json.dumps(as_json(samples, arguments), indent=2) + "\n").encode())
    write_whole(out / "first_frame.md", markdown(rows, sentence).encode())
    save_picture(out / "first_frame.jpg", picture(wanted, made, drawn))
    return 0


def as_json(samples: dict[Case, Samples], arguments: argparse.Namespace) -> dict[str, Any]:
    """Plain data; what is no finite number is null."""
    rows = [
        dataclasses.asdict(case)
        | {"measures": {name: dataclasses.asdict(mean(values)) for name, values in of_case.items()}}
        for case, of_case in samples.items()
    ]
    run = {"prompts": arguments.prompts, "steps": arguments.steps, "guidance": GUIDANCE, "seed": arguments.seed}
    content: dict[str, Any] = finite(run | {"rows": rows})
    return content


if __name__ == "__main__":
    run_program(main)
