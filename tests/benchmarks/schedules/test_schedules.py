"""The benchmark of the schedules: prompts, figures, tables, and the whole program on an untrained pair."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import LTXPipeline
from PIL import Image
from safetensors.torch import save_file

from benchmarks.contact_sheet import GAP
from benchmarks.schedules import __main__ as program
from benchmarks.schedules import experiment
from benchmarks.schedules.claims import Claim
from benchmarks.schedules.measures import REAL, Features, Measured, measure
from benchmarks.schedules.report import Row, as_json, markdown, picture, rows, tables
from benchmarks.schedules.run import FEATURES, FRAME_RATE, FRAMES, SIZE, Clip, Made, Prompt, check_checkpoints, prompts
from benchmarks.schedules.samples import RENDERED
from benchmarks.shapes import data, networks
from benchmarks.shapes.scene import HELD_OUT, caption
from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Geometry
from flowblending.runtime.options import Job
from tests.support.scenes import film, one

ROOT = Path(__file__).parents[3]
CLAIMS = [Claim(text="a", numbers="1", holds=True), Claim(text="b", numbers="2", holds=False)]


def test_prompts_are_evaluation_scenes_of_which_the_last_quarter_is_held_out() -> None:
    wanted = prompts(18, 5)
    assert [prompt.held_out for prompt in wanted] == [False] * 14 + [True] * 4
    looks = [{(shape.colour, shape.kind) for shape in prompt.scene.shapes} for prompt in wanted]
    assert [bool(look & HELD_OUT) for look in looks] == [prompt.held_out for prompt in wanted]
    assert [prompt.scene for prompt in wanted[:14]] == data.scenes([0, 5], 14)
    assert wanted[0].text == caption(wanted[0].scene)
    assert len({prompt.seed for prompt in (*wanted, *prompts(18, 6))}) == 36


def test_clips_are_made_as_the_pair_was_trained() -> None:
    assert f"{networks.WIDTH}x{networks.HEIGHT}" == SIZE
    assert networks.FRAMES == FRAMES
    assert FRAME_RATE in networks.FRAME_RATES


GEOMETRY = Geometry(width=64, height=64, frames=13, latent_shape=(32, 4, 4, 4))


Run = tuple[Measured, list[Prompt], list[Job]]


@pytest.fixture(scope="module")
def measured() -> Run:
    """A run with a model that draws what is asked for where it is large, and blends in noise where it is small."""
    wanted = prompts(6, 0)
    made: list[Job] = []

    def make(job: Job) -> Made:
        made.append(job)
        (prompt,) = [each for each in wanted if each.seed == job.seed]
        noise = np.random.default_rng(job.seed).random((13, 64, 64, 3), np.float32)
        share = np.float32(0.3 * job.schedule.count("S"))
        clip = film(prompt.scene) * (1 - share) + noise * share
        loop = 4.0 - job.schedule.count("S")
        return Made(
            frames=clip, latents=clip - np.float32(0.5), flops=7 * loop, loop=loop, engines=0.75 * loop, total=loop + 1
        )

    def features(clips: Iterable[Clip]) -> npt.NDArray[np.float32]:
        return np.stack([[*clip.mean((0, 1, 2)), *np.abs(np.diff(clip, axis=0)).mean((0, 1, 2))] for clip in clips])

    jobs = {name: Job(prompt="", schedule=name) for name in ("LLL", "LSL", "SSS")}
    advanced: list[int] = []
    result = measure(
        make, wanted, jobs, geometry=GEOMETRY, features=features, shown=[0, 5], seed=0, advance=advanced.append
    )
    assert sum(advanced) == len(made) == 18
    return result, wanted, made


def test_schedules_take_turns_on_the_same_noise(measured: Run) -> None:
    _, wanted, made = measured
    for index, prompt in enumerate(wanted):
        jobs = made[3 * index : 3 * index + 3]
        assert {(job.prompt, job.seed) for job in jobs} == {(prompt.text, prompt.seed)}
        assert sorted(job.schedule for job in jobs) == ["LLL", "LSL", "SSS"]
    assert [job.schedule for job in made[::3]] == ["LLL", "LSL", "SSS"] * 2


def test_what_is_measured_of_a_clip(measured: Run) -> None:
    result, wanted, _ = measured
    assert list(result.samples) == ["LLL", "LSL", "SSS", RENDERED]
    for name in ("LLL", RENDERED):
        assert result.samples[name]["attributes"].min() == result.samples[name]["all_right"].min() == 1
    worse = result.samples["SSS"]["attributes"].mean()
    assert worse < result.samples["LSL"]["attributes"].mean() <= 1
    assert "psnr" not in result.samples["LLL"]
    for likeness in ("psnr", "ssim", "cosine"):
        assert (result.samples["LSL"][likeness] > result.samples["SSS"][likeness]).all()
    # A relation counts only where there is one; what is nowhere asked for is no mistake.
    pairs = [prompt.scene.relation is not None for prompt in wanted]
    assert (~np.isnan(result.samples["LLL"]["relation"])).tolist() == pairs
    # The models that draw are as near to other drawn clips as the drawn ones are.
    assert result.frechet["LLL"] == pytest.approx(result.frechet[RENDERED])
    assert result.frechet["SSS"] > result.frechet["LSL"] > result.frechet["LLL"] > 0
    assert {len(clips) for clips in result.shown.values()} == {2}


@pytest.fixture(scope="module")
def summary(measured: Run) -> list[Row]:
    result, wanted, _ = measured
    held_out = np.asarray([prompt.held_out for prompt in wanted])
    return rows(result, held_out, runs={"LSL": "L13 S20 L7"})


def test_rows_are_relative_to_the_reference(summary: list[Row]) -> None:
    by_name = {row.name: row for row in summary}
    assert by_name["LSL"].runs == "L13 S20 L7"
    assert by_name["LLL"].time == by_name["LLL"].loop == 1
    assert by_name["SSS"].loop == pytest.approx(1 / 4)
    assert by_name["SSS"].time == pytest.approx(2 / 5)
    assert by_name["SSS"].overhead == pytest.approx(0.25)
    assert by_name["LSL"].flops == 0.75
    assert by_name["SSS"].seconds == {"loop": 1, "engines": 0.75, "total": 2}
    assert by_name["LLL"].seen.count + by_name["LLL"].held_out.count == 6
    assert not by_name[RENDERED].seconds


def test_the_report_is_whole_tables(summary: list[Row]) -> None:
    text = markdown(summary, CLAIMS, "6 prompts.")
    for block in text.split("\n\n")[:3]:
        lines = block.splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) == {"|", "-", " "}
    assert [len(lines) for _, lines in tables(summary)] == [4, 4, 3]
    assert f"between 6 clips and {REAL} drawn ones" in text
    assert "| LLL | 100.0 ± 0.0 % | 100.0 ± 0.0 % | - | - | - |" in text
    assert "- holds: a (1)\n- DOES NOT HOLD: b (2)\n" in text


def test_the_json_is_standard_and_complete(summary: list[Row]) -> None:
    content = json.loads(json.dumps(as_json(summary, CLAIMS), allow_nan=False))
    assert [row["name"] for row in content["rows"]] == ["LLL", "LSL", "SSS", RENDERED]
    assert content["rows"][3]["time"] is None
    assert content["rows"][0]["measures"]["kind"] == {"value": 1.0, "error": 0.0, "count": 6}
    assert content["claims"][1] == {"text": "b", "numbers": "2", "holds": False}


def test_the_picture_has_a_row_for_each_schedule_and_a_column_for_each_prompt(measured: Run) -> None:
    result, wanted, _ = measured
    pixels = picture(result, [wanted[0], wanted[5]])
    assert pixels.dtype == np.uint8
    # Three frames a clip, twice as large, with a line between two of them.
    assert pixels.shape[1] > 2 * (2 * (3 * 64 + 2))
    assert pixels.shape[0] > 4 * 128
    # The last row is the drawn scenes, whose right lower corner is the background of the last prompt.
    assert np.abs(pixels[-GAP - 4, -GAP - 4] / 255 - film(wanted[5].scene)[-1, -1, -1]).max() < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "1"], "1 prompts were asked for, but a spread needs at least 2"),
        (["--threads", "0"], "0 threads were asked for"),
        (["--seed", "-1"], "The seed is -1, but 0 or more was expected"),
        (["--steps", "0"], "0 steps were asked for"),
        (["--schedules", "LXL"], r"LXL has the letter X, but this bundle has the models L \(large\), S \(small\)"),
        (["--check", "--schedules", "LSL", "SSS"], "--check needs the schedules .*, of which LSS SLL were left out"),
    ],
)
def test_wrong_options(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        program.jobs(program.parser().parse_args(["--out", "x", *options]))


def test_the_reference_is_always_run() -> None:
    arguments: argparse.Namespace = program.parser().parse_args(["--out", "x", "--schedules", "sss", "LSL", "SSS"])
    options = program.jobs(arguments)
    assert list(options) == ["LLL", "SSS", "LSL"]
    assert {(job.steps, job.guidance, job.frame_rate) for job in options.values()} == {(40, 3.0, FRAME_RATE)}


def test_the_picture_shows_the_first_and_the_last_prompt() -> None:
    assert experiment.shown(64) == [0, 21, 42, 63]
    assert experiment.shown(2) == [0, 1]


def feature_file(folder: Path) -> Path:
    torch.manual_seed(0)
    network = networks.FeatureNetwork(tuple(len(names) for names in data.ATTRIBUTES))
    save_file({name: value.half() for name, value in network.state_dict().items()}, folder / FEATURES)
    return folder / FEATURES


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    features = Features(feature_file(tmp_path))
    clips = [film(one(colour=colour)) for colour in ("red", "green", "blue")]
    whole = features(clips)
    assert whole.shape == (3, networks.FeatureNetwork.WIDTH)
    np.testing.assert_allclose(features(iter(clips), batch=2), whole, atol=1e-4)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_a_file_without_the_features_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("broken", "other"):
        with pytest.raises(FlowBlendingError, match=rf"{name}\.safetensors does not hold the weights"):
            Features(tmp_path / f"{name}.safetensors")


def test_checkpoints_that_are_not_whole_are_named(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    with pytest.raises(FlowBlendingError, match=re.escape("lacks small and features.safetensors")):
        check_checkpoints(tmp_path)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints as the training writes them, of networks that have learned nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    LTXPipeline(
        scheduler=networks.scheduler(),
        vae=networks.vae(),
        text_encoder=networks.text_encoder(),
        tokenizer=networks.tokenizer(caption(scene) for scene in data.scenes([0, 0], 300)),
        transformer=networks.transformer("large"),
    ).to(torch.float16).save_pretrained(folder / "large")
    networks.transformer("small").half().save_pretrained(folder / "small")
    feature_file(folder)
    return folder


@pytest.mark.long
@pytest.mark.slow
def test_the_whole_program_on_a_pair_that_cannot_keep_the_claims(untrained: Path, tmp_path: Path) -> None:
    options = ["--prompts", "4", "--steps", "3", "--out", str(tmp_path / "new/out"), "--check"]
    command = [sys.executable, "-m", "benchmarks.schedules", "--checkpoints", str(untrained), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"\d of 10 claims do not hold: LLL is well above SSS in adherence \(\d.* expected\)", error)
    content = json.loads((tmp_path / "new/out/schedules.json").read_text())
    assert [(row["name"], row["runs"]) for row in content["rows"]] == [
        *(("LLL", "L3"), ("LSL", "L1 S1 L1"), ("LSS", "L1 S2"), ("SLL", "S1 L2"), ("SSS", "S3"), (RENDERED, "")),
    ]
    figures = {row["name"]: row for row in content["rows"]}
    assert figures[RENDERED]["measures"]["attributes"]["value"] == 1
    assert 0.12 < figures["SSS"]["flops"] < 0.2
    assert figures["SSS"]["flops"] < figures["LSL"]["flops"] < figures["LLL"]["flops"] == 1
    assert 0 < figures["LLL"]["overhead"] < 0.5
    assert figures["LSL"]["measures"]["cosine"]["value"] < 1
    assert (content["prompts"], content["steps"], content["frame_rate"]) == (4, 3, FRAME_RATE)
    assert "| LSL | L1 S1 L1 |" in (tmp_path / "new/out/schedules.md").read_text()
    with Image.open(tmp_path / "new/out/schedules.jpg") as image:
        assert image.width > image.height > 6 * 128
