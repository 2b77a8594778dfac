"""The parts of the programme of three schedules side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.demo import PROMPTS, ROUNDS, SCALE, SEED, VIDEOS, WHY, side_by_side, times, write_video
from benchmarks.schedules.run import FRAME_RATE, Made, Prompt, prompts
from tests.support.scenes import film

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wanted() -> list[Prompt]:
    return prompts(PROMPTS, SEED)


@pytest.fixture(scope="module")
def made(wanted: list[Prompt]) -> dict[str, list[Made]]:
    """LLL and LSL draw what is asked for; SSS draws nothing."""

    def clip(prompt: Prompt, schedule: str) -> Made:
        frames = film(prompt.scene) if schedule != "SSS" else np.zeros((13, 64, 64, 3), np.float32)
        seconds = {"LLL": 2.0, "LSL": 1.0, "SSS": 0.5}[schedule]
        flops = {"LLL": 1e12, "LSL": 0.58e12, "SSS": 0.161e12}[schedule]
        return Made(frames=frames, latents=frames, flops=flops, loop=seconds / 2, engines=seconds / 2, total=seconds)

    return {schedule: [clip(prompt, schedule) for prompt in wanted] for schedule in VIDEOS}


def test_the_prompts_are_of_every_sort(wanted: list[Prompt]) -> None:
    assert sorted(len(prompt.scene.shapes) for prompt in wanted) == [1, 1, 2, 2]
    assert [prompt.held_out for prompt in wanted] == [False, False, False, True]


def test_what_it_says_of_caches_is_what_was_measured() -> None:
    lines = (ROOT / "benchmarks/results/caches.md").read_text().splitlines()
    rows = {
        tuple(cells[1:3]): cells[3:] for line in lines if len(cells := [each.strip() for each in line.split("|")]) > 7
    }
    flops = {name: float(cells[0]) for name, cells in rows.items() if name[0] in ("LLL", "LSL")}
    decibels = {name: float(rows[name][4].split()[0]) for name in (("LLL", "magcache"), ("LSL", ""))}
    for told in (
        f"LLL with MagCache: {flops['LLL', 'magcache']:.0%} of the FLOPs at",
        f"at {decibels['LLL', 'magcache']:.1f} dB to LLL",
        f"LSL: {flops['LSL', '']:.0%} at {decibels['LSL', '']:.1f} dB",
        f"LSL with MagCache: {flops['LSL', 'magcache']:.0%}",
        f"at 12 steps too LSL takes {flops['LSL', '12 steps'] / flops['LLL', '12 steps']:.0%} of LLL's",
    ):
        assert told in WHY.replace("\n", " ")


def test_the_table_says_times_and_what_the_judge_reads(wanted: list[Prompt], made: dict[str, list[Made]]) -> None:
    stages = {"LLL": "L40", "LSL": "L13 S20 L7", "SSS": "S40"}
    rows = times(wanted, made, stages)
    # Five attributes of a single shape and nine of a pair.
    assert rows[0] == ("LLL", "L40", "1.000 s", "2.000 s", "100%", "100%", "28 of 28")
    assert rows[1] == ("LSL", "L13 S20 L7", "0.500 s", "1.000 s", "50%", "58%", "28 of 28")
    assert rows[2][:6] == ("SSS", "S40", "0.250 s", "0.500 s", "25%", "16%")
    right, asked = map(int, rows[2][6].split(" of "))
    assert right < 4
    assert asked == 28


def test_the_file_with_all_three_plays_every_prompt(
    wanted: list[Prompt], made: dict[str, list[Made]], tmp_path: Path
) -> None:
    pictures = side_by_side(made, wanted)
    assert len(pictures) == 13
    write_video(tmp_path / "all.mp4", pictures)
    with av.open(str(tmp_path / "all.mp4")) as video:
        assert video.streams.video[0].average_rate == FRAME_RATE
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 13 * ROUNDS
    height, width, _ = frames[0].shape
    assert (height, width) == pictures[0].shape[:2]
    assert height > len(wanted) * 64 * SCALE
    assert width > len(VIDEOS) * 64 * SCALE
    # The last column is black, as made; the first one shows the last frame's scene at the end of every round.
    side = 64 * SCALE
    right, bottom = width - 6 - side, height - 6 - side
    assert frames[0][bottom + 8 : bottom + side - 8, right + 8 : right + side - 8].max() < 20
    shown = frames[12][bottom : bottom + side, right - 2 * (side + 6) :][:, :side]
    expected = 255 * film(wanted[-1].scene)[-1].repeat(SCALE, 0).repeat(SCALE, 1)
    assert np.abs(shown - expected).mean() < 6
    assert np.abs(frames[0].astype(float) - frames[12]).mean() > 1
    assert np.abs(frames[0].astype(float) - frames[13]).mean() < 3


def test_without_checkpoints_it_says_so(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.demo",
        "--out",
        str(tmp_path / "out"),
        "--checkpoints",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: {tmp_path} lacks large and small" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_making_clips_takes_no_torch() -> None:
    code = "import sys, benchmarks.demo; print(*sorted({'torch', 'diffusers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == ""
