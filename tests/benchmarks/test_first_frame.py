"""A first frame for the shapes pair: what is measured of it, and what the pair that was taught to keep it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.first_frame import COLUMNS, TAUGHT, Case, cases, judged, lines, markdown, measure, picture
from benchmarks.schedules.experiment import pair_bundle
from benchmarks.schedules.run import CHECKPOINTS, prompts
from benchmarks.schedules.samples import table
from benchmarks.shapes.scene import COLOURS, KINDS, Scene, Shape, caption, motion_caption
from flowblending.contracts.conditions import Source
from flowblending.runtime import api
from flowblending.system.console import Console
from tests.support.scenes import film

ROOT = Path(__file__).parents[2]


def test_a_motion_caption_tells_nothing_of_looks() -> None:
    for prompt in prompts(20, 1):
        words = motion_caption(prompt.scene).split()
        assert not {*words} & {*COLOURS, *KINDS, "background", "gradient"}
        for shape in prompt.scene.shapes:
            assert shape.motion in motion_caption(prompt.scene)
        assert len(words) < len(caption(prompt.scene).split())


def test_the_given_frame_itself_is_not_judged() -> None:
    scene = prompts(1, 1)[0].scene
    drawn = film(scene)
    perfect = judged(scene, drawn, drawn)
    assert perfect["attributes"] == 1
    lost = np.zeros_like(drawn)
    lost[0] = drawn[0]
    values = judged(scene, lost, drawn)
    assert values["first"] == np.inf
    assert values["number"] == values["colour"] == values["kind"] == 0
    assert values["rest"] < 20


def test_the_report_has_a_row_for_every_case() -> None:
    wanted, every = prompts(4, 1), cases(["LSL"])
    clips = [film(prompt.scene) for prompt in wanted]
    values = table([judged(prompt.scene, clip, clip) for prompt, clip in zip(wanted, clips, strict=True)])
    rows = lines(dict.fromkeys(every, values))
    assert [row[:3] for row in rows] == [
        ("everything", "given", "LSL"),
        ("motions", "given", "LSL"),
        ("everything", "-", "LSL"),
        ("motions", "-", "LSL"),
    ]
    assert {row[9] for row in rows} == {"100.0 ± 0.0 %"}
    assert markdown(rows, "A run.").count("\n| ") == len(rows) + 1
    shown = picture(wanted, dict.fromkeys(every, clips), clips)
    # The drawn scene and both cases whose prompts tell motions alone, three frames each.
    assert shown.shape[1] > 3 * 3 * 64


def test_what_the_document_says_was_measured() -> None:
    measured = [_cells(line) for line in (ROOT / "benchmarks/results/first_frame.md").read_text().splitlines()]
    by_case = {tuple(cells[:3]): cells for cells in measured if len(cells) == len(COLUMNS)}
    text = (ROOT / "benchmarks/shapes/README.md").read_text().split("## A first frame")[1].split("## The judge")[0]
    shown = [cells for line in text.splitlines() if len(cells := _cells(line)) == 9 and cells[1] in ("given", "-")]
    assert len(shown) == 6
    for tells, given, schedule, colour, kind, background, motion, attributes, rest in shown:
        row = by_case[tells, given, schedule]
        assert [colour, kind, motion, background] == [row[4], row[5], row[6], row[8]]
        assert [attributes, rest] == [row[9], row[11]]


def _cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


def test_the_image_of_the_documents_is_a_drawn_first_frame() -> None:
    shape = Shape(colour="purple", kind="cross", motion="moves right", radius=0.17, start=(0.29, 0.5), travel=0.42)
    drawn = film(Scene(shapes=(shape,), relation=None, background=("white", "gray")))[0]
    image = np.asarray(Image.open(ROOT / "benchmarks/shapes/first_frame.png"))
    assert image.shape == drawn.shape
    assert np.abs(image - 255 * drawn).max() < 1


@pytest.mark.long
@pytest.mark.slow
def test_the_taught_pair_keeps_what_a_first_frame_shows() -> None:
    """With LSL; the prompt tells how shapes move, and not what they are."""
    checkpoints, console = ROOT / CHECKPOINTS, Console(quiet=True)
    with_frame, without = (Case(tells="motions", given=given, schedule="LSL") for given in (True, False))
    told = Case(tells="everything", given=False, schedule="LSL")
    with (
        pair_bundle(None, checkpoints, console, models=checkpoints / TAUGHT, conditions=(Source.IMAGE,)) as folder,
        api.open(folder, threads=1) as sampler,
    ):
        samples, _ = measure(sampler, prompts(12, 0), [with_frame, without, told], steps=20, advance=lambda _: None)
    kept, unseen = (
        {name: values[name].mean() for name in values} for values in (samples[with_frame], samples[without])
    )
    assert kept["background"] > 0.85
    assert kept["colour"] > 0.85
    assert kept["first"] > 25
    for name in ("background", "colour", "kind", "attributes"):
        assert kept[name] > unseen[name] + 0.2, name
    assert samples[told]["attributes"].mean() > 0.85
