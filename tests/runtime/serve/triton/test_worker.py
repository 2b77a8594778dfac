"""One request on formulas, without Triton: its answers, and what a client that goes away leaves behind."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowblending import FlowBlendingError
from flowblending.runtime.generate import generate
from flowblending.runtime.options import Job
from flowblending.runtime.serve.triton.worker import Cancelled, answer
from flowblending.system.console import Console
from tests.support.toy_pipeline import FRAMES, ToyPipeline, toy_pipeline

STEPS = 3


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyPipeline:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    return toy_pipeline(tmp_path / "toy")


def request(*results: str) -> dict[str, Any]:
    return {
        "prompt": np.array([b"a cat"], np.object_),
        "seed": np.array([7], np.int64),
        "steps": np.array([STEPS], np.int32),
        "progress": np.array([True]),
        "result": np.array([each.encode() for each in results], np.object_),
    }


class Client:
    """Keeps what it is sent, and goes away when it has been asked a number of times whether it is there."""

    def __init__(self, patience: int = 1 << 30) -> None:
        self.answers: list[dict[str, Any]] = []
        self.asked = 0
        self._patience = patience

    def respond(self, outputs: Any, *, last: bool = False) -> None:
        self.answers.append({**outputs, "last": last})

    def gone(self) -> bool:
        self.asked += 1
        return self.asked > self._patience


def test_a_request_is_answered_as_fb_run_answers(pipeline: ToyPipeline, tmp_path: Path) -> None:
    client = Client()
    answer(pipeline, request("frames", "latents", "mp4"), client.respond, client.gone)
    *steps, result = client.answers
    assert [int(each["step"][0]) for each in steps] == [1, 2, 3]
    assert [each["last"] for each in client.answers] == [False] * STEPS + [True]
    expected = generate(pipeline, Job(prompt="a cat", seed=7, steps=STEPS), tmp_path / "x.npy", Console(quiet=True))
    np.testing.assert_array_equal(result["frames"], np.load(tmp_path / "x.npy"))
    np.testing.assert_array_equal(result["latents"], expected.latents)
    assert len(result["frames"]) == FRAMES
    assert io.BytesIO(result["video"][0]).read(8)[4:] == b"ftyp"
    report = json.loads(result["report"][0])
    assert report["seed"] == "7"
    assert {"large", "small", "text_encoder", "vae", "video", "total"} <= report["seconds"].keys()
    assert not list((tmp_path / "scratch").iterdir())


def test_latents_alone_decode_nothing(pipeline: ToyPipeline) -> None:
    client = Client()
    answer(pipeline, request("latents"), client.respond, client.gone)
    assert client.answers[-1].keys() == {"latents", "report", "last"}
    assert not pipeline.engines.is_open("vae_first")


@pytest.mark.parametrize("patience", range(10))
def test_a_client_that_goes_away_at_any_event_leaves_nothing_behind(
    pipeline: ToyPipeline, tmp_path: Path, patience: int
) -> None:
    whole = Client()
    answer(pipeline, request("frames", "mp4"), whole.respond, whole.gone)
    alive = pipeline.device.alive
    client = Client()
    answer(pipeline, request("frames", "mp4"), client.respond, client.gone)
    assert client.asked == 10  # encoding, sampling begins, 3 steps, latents, 3 chunks of frames, finished
    client = Client(patience)
    with pytest.raises(Cancelled):
        answer(pipeline, request("frames", "mp4"), client.respond, client.gone)
    assert client.asked == patience + 1
    assert not any(each["last"] for each in client.answers)
    assert pipeline.device.alive == alive
    assert not list((tmp_path / "scratch").iterdir())


def test_a_pixel_that_is_not_finite_is_an_error_and_leaves_nothing(tmp_path: Path, pipeline: ToyPipeline) -> None:
    pipeline.spoiled["vae_first"] = 0
    client = Client()
    with pytest.raises(FlowBlendingError, match=r"non-finite pixel from frame 1 on; it was built in fp32: check"):
        answer(pipeline, request("frames"), client.respond, client.gone)
    assert len(client.answers) == STEPS
    assert not list((tmp_path / "scratch").iterdir())
