"""Model repositories, and a real Triton server that serves them: its answers, its errors, and how it recovers."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import importlib.util
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.serve.model_names import model_names
from flowblending.runtime.serve.triton import repository
from flowblending.runtime.serve.triton.client import responses
from flowblending.runtime.serve.triton.client_cli import show
from flowblending.runtime.serve.triton.config import Placement, QueuePolicy, plan_config, video_config
from flowblending.runtime.serve.triton.environment import check_numpy, show_one_gpu
from flowblending.runtime.serve.triton.repository import plan_models, video_model, write_repository
from flowblending.runtime.serve.triton.request import read_request
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support import manifests
from tests.support.killed import leave_aside
from tests.support.required import unavailable
from tests.support.triton_server import TritonServer, Unavailable, install, serve

pytestmark = pytest.mark.embedding

Arrays = Mapping[str, npt.NDArray[np.generic]]

EXPORT = "flowblending.runtime.serve.triton.cli"
CLIENT = "flowblending.runtime.serve.triton.client_cli"
RUN = "flowblending.runtime.cli"

PROMPT = "一只猫 walks 🐈 on the grass"
SHORT: dict[str, object] = {"prompt": PROMPT, "steps": 3, "seed": 5, "guidance": 4.1}
LONG: dict[str, object] = {"prompt": "x", "steps": 1000, "solver": "euler"}


def program(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def tensors(**values: object) -> Arrays:
    """Inputs as a client sends them."""
    types = {"seed": np.uint64, "frames": np.int32, "steps": np.int32, "guidance": np.float64, "frame_rate": np.float64}
    found: dict[str, npt.NDArray[np.generic]] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, str | bytes):
            found[name] = np.array([value.encode() if isinstance(value, str) else value], np.object_)
        else:
            found[name] = np.array([value], types.get(name))
    return found


# ---- Without a server


@pytest.fixture
def toy(tmp_path: Path) -> Bundle:
    """A real manifest over engines that are none."""
    manifests.write(tmp_path / "toy")
    return open_bundle(tmp_path / "toy")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no prompt"),
        ({"prompt": "x", "colour": "red"}, "Unknown input 'colour'; known are prompt, negative_prompt"),
        ({"prompt": b"\xff"}, "Input prompt is no UTF-8 text"),
        ({"prompt": "x", "result": "gif"}, "'gif' was asked for, but it must be one of mp4-base64, mp4, frames"),
        ({"prompt": "x", "latents": np.zeros((1, 16, 3, 4, 7), np.float32)}, r"\[1, 16, 3, 4, 8\] was expected"),
        ({"prompt": np.array([], np.object_)}, r"Input prompt has shape \[0\], but \[1\] was expected"),
    ],
)
def test_a_request_that_is_none(toy: Bundle, values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_request(tensors(**values), toy.manifest)


def test_fields_that_http_passes_on_are_known_or_refused(toy: Bundle) -> None:
    given = tensors(prompt="x")
    assert read_request(given, toy.manifest, ["id"]).job.prompt == "x"
    for name, meant in (("num_inference_steps", "steps"), ("negative", "negative_prompt"), ("progres", "progress")):
        with pytest.raises(UsageError, match=f"Unknown input '{name}'; {meant} is probably what was meant"):
            read_request(given, toy.manifest, [name])
    with pytest.raises(UsageError, match="Unknown input 'colour'; known are prompt"):
        read_request(given, toy.manifest, ["colour"])
    with pytest.raises(UsageError, match="The input steps was given as a parameter; give it beside the prompt"):
        read_request(given, toy.manifest, ["steps"])
    with pytest.raises(UsageError, match="The prompt is empty; say what the video shows"):
        read_request(tensors(prompt=" \u3000"), toy.manifest)
    assert read_request(tensors(prompt="x", seed=2**64 - 1), toy.manifest).job.seed == 2**64 - 1


def test_a_request_becomes_the_job_of_the_command_line(toy: Bundle) -> None:
    from flowblending.runtime.options import Job

    request = read_request(tensors(prompt=PROMPT), toy.manifest)
    assert request.job == Job(prompt=PROMPT)
    assert (request.latents, request.results, request.progress) == (None, ("mp4-base64",), False)
    latents = np.zeros((1, 16, 3, 4, 8), np.float32)
    request = read_request(
        tensors(
            **SHORT,
            size="64x32",
            frames=9,
            negative_prompt="",
            schedule="L1 S2:g1:t700,500",
            batched_guidance=True,
            solver="euler",
            frame_rate=24.0,
            cache="taylor:2",
            latents=latents,
            result=np.array([b"latents", b"mp4", b"latents"], np.object_),
            progress=False,
        ),
        toy.manifest,
    )
    assert request.job == Job(
        prompt=PROMPT,
        negative_prompt="",
        seed=5,
        size="64x32",
        frames=9,
        steps=3,
        schedule="L1 S2:g1:t700,500",
        guidance=4.1,
        batched_guidance=True,
        solver="euler",
        frame_rate=24.0,
        cache="taylor:2",
    )
    assert request.latents is latents
    assert (request.results, request.progress) == (("latents", "mp4"), False)


def test_where_a_model_runs_and_waits(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "cpu")
    text = video_config("wan", manifest, QueuePolicy(), Placement(device="cpu", machine=MachineSettings(threads=3)))
    assert "kind: KIND_CPU }" in text
    assert 'key: "threads" value { string_value: "3" }' in text
    assert "cuda_graph" not in text
    text = video_config("wan", manifest, QueuePolicy(), Placement(machine=MachineSettings(cuda_graph=False)))
    assert 'key: "cuda_graph" value { string_value: "off" }' in text
    assert "dynamic_batching" not in text
    text = video_config("wan", manifest, QueuePolicy(size=4, timeout=0.5, priorities=3), Placement(gpus=(0, 2)))
    assert "kind: KIND_AUTO gpus: [ 0, 2 ] }" in text
    for line in ("max_queue_size: 4", "default_timeout_microseconds: 500000", "priority_levels: 3"):
        assert f"  {line}\n" in text
    assert "default_priority_level: 2\n" in text
    plans = manifests.write(tmp_path / "gpu", backend="tensorrt", targets=("sm90", "sm120"))
    assert "kind: KIND_GPU }" in video_config("wan", plans, QueuePolicy(), Placement())
    text = plan_config("wan_large", "tensorrt", plans.components["large"], Placement(), profiles=1)
    assert "profile" not in text
    several = plan_config("wan_large", "tensorrt", plans.components["large"], Placement(gpus=(1,)), profiles=3)
    assert 'kind: KIND_GPU gpus: [ 1 ] profile: [ "0", "1", "2" ] }' in several
    assert 'cc_model_filenames { key: "9.0" value: "sm90.plan" }' in text
    assert 'cc_model_filenames { key: "12.0" value: "sm120.plan" }' in text
    assert 'input { name: "latents" data_type: TYPE_FP32 dims: [ -1, 16, -1, -1, -1 ] }' in text


def test_a_numpy_that_the_backend_does_not_understand(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"...numpy.core.multiarray...")
    (tmp_path / "new").write_bytes(b"...numpy.core...numpy._core...multiarray")
    check_numpy(tmp_path / "old", "1.26.4")
    check_numpy(tmp_path / "new", "2.4.6")
    with pytest.raises(FlowBlendingError, match=r"does not understand NumPy 2\.4\.6; install 'numpy<2'"):
        check_numpy(tmp_path / "old", "2.4.6")


@pytest.mark.parametrize(
    ("before", "after"), [({}, "1"), ({"CUDA_VISIBLE_DEVICES": "4,6"}, "6"), ({"CUDA_VISIBLE_DEVICES": ""}, "1")]
)
def test_a_model_sees_the_gpu_that_triton_gave_it(before: dict[str, str], after: str) -> None:
    show_one_gpu(1, before)
    assert before == {"CUDA_VISIBLE_DEVICES": after}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model(name: str, bundle: Bundle, **queue: int) -> repository.Model:
    return video_model(name, bundle, QueuePolicy(**queue), Placement())


def test_a_repository_holds_its_bundles_without_a_second_copy(toy: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "models"
    told: list[int] = []
    write_repository([model("a", toy), model("b", toy)], out, told.append)
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    inside = out / "a" / "1" / "bundle"
    open_bundle(inside).verify()
    assert contents(inside) == contents(toy.folder)
    assert (inside / "large.onnx").samefile(toy.folder / "large.onnx")
    assert sum(told) == 2 * sum(len(content) for content in contents(toy.folder).values())
    # Another file of that name, as a build makes it, is not what is being served.
    (toy.folder / "large.onnx").unlink()
    (toy.folder / "large.onnx").write_bytes(b"new")
    open_bundle(inside).verify()


def test_weights_are_copies_where_there_is_room(toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that is served remains one that onnx reads, which opens no weights with several names."""
    toy.folder.joinpath("large.onnx.data").write_bytes(b"1" * 1000)
    served = model("a", toy)
    served.links["1/bundle/large.onnx.data"] = toy.folder / "large.onnx.data"
    for free, names in ((2000, 1), (1999, 2)):
        monkeypatch.setattr(shutil, "disk_usage", Mock(return_value=Mock(free=free)))
        write_repository([served], tmp_path / f"{free}")
        path = tmp_path / f"{free}" / "a" / "1" / "bundle" / "large.onnx.data"
        assert path.read_bytes() == b"1" * 1000
        assert path.stat().st_nlink == names


def test_files_are_copied_where_links_are_not_possible(
    toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EXDEV, "Invalid cross-device link")))
    write_repository([model("a", toy)], tmp_path / "models")
    inside = tmp_path / "models" / "a" / "1" / "bundle"
    assert contents(inside) == contents(toy.folder)
    assert not (inside / "large.onnx").samefile(toy.folder / "large.onnx")


def test_a_model_is_replaced_as_a_whole_or_not_at_all(
    toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "models"
    write_repository([model("a", toy), model("b", toy)], out)
    before = contents(out)
    write_repository([model("a", toy, size=7)], out)
    after = contents(out)
    assert b"max_queue_size: 7" in after["a/config.pbtxt"]
    assert {name for name in after if after[name] != before[name]} == {"a/config.pbtxt"}

    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(FlowBlendingError, match=r"Cannot write the repository .*No space left on device"):
            write_repository([model("a", toy, size=8), model("c", toy)], out)
    assert contents(out) == after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "toy"]


def test_a_killed_export_is_mended_by_the_next(toy: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_repository([model("a", toy), model("b", toy)], out)
    whole = contents(out)
    # Killed after it had set `a` aside: the moment at which there is no `a`.
    leave_aside(out / "a", out)
    write_repository([model("b", toy)], out)
    assert contents(out) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "toy"]


def test_what_is_not_ours_stays(toy: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "models"
    (out / "a").mkdir(parents=True)
    (out / "a" / "config.pbtxt").write_text('name: "a"')
    with pytest.raises(FlowBlendingError, match="a exists and was not written by fb-export-triton"):
        write_repository([model("a", toy)], out)
    with pytest.raises(FlowBlendingError, match="toy is a bundle"):
        write_repository([model("a", toy)], toy.folder)
    with pytest.raises(FlowBlendingError, match="is a file"):
        write_repository([model("a", toy)], out / "a" / "config.pbtxt")
    write_repository([model("b", toy)], out)
    assert contents(out)["a/config.pbtxt"] == b'name: "a"'


def test_names_of_models() -> None:
    assert model_names([Path("x/wan"), Path("ltx")], []) == ["wan", "ltx"]
    assert model_names([Path("x/wan"), Path("y/wan")], ["a", "b"]) == ["a", "b"]
    with pytest.raises(UsageError, match="Two models would be called wan"):
        model_names([Path("x/wan"), Path("y/wan")], [])
    with pytest.raises(UsageError, match="1 names were given for 2 bundles"):
        model_names([Path("a"), Path("b")], ["a"])
    for name in ("..", "a/b", "", "ä b"):
        with pytest.raises(UsageError, match="cannot name a model"):
            model_names([Path("a")], [name])


WRONG_EXPORTS: list[tuple[tuple[str, ...], int, str]] = [
    (("none",), 1, "none is no bundle"),
    (("toy", "--max-queue", "0"), 2, "0 was given to --max-queue, but at least 1"),
    (("toy", "--timeout", "-1"), 2, "A timeout of -1 seconds"),
    (("toy", "--timeout", "nan"), 2, "A timeout of nan seconds"),
    (("toy", "--priorities", "101"), 2, "101 priorities were asked for"),
    (("toy", "--gpus", "0", "--device", "cpu"), 2, "--gpus was given with --device cpu"),
    (("toy", "--gpus", "0,x"), 2, "GPUs '0,x' were given"),
    (("toy", "--threads", "0"), 2, "--threads is 0, but a whole number of threads"),
    (("toy", "--plans"), 2, "large in toy is an engine of onnxruntime, which Triton has no backend for"),
    (("toy", "toy"), 2, "Two models would be called toy"),
    (("plans", "--device", "cpu"), 2, "large is a TensorRT plan, which runs on GPUs only"),
    (("broken",), 1, "was altered after the build"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG_EXPORTS, ids=lambda value: str(value)[:40])
def test_a_wrong_export_is_one_sentence_and_writes_nothing(
    toy: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    from flowblending.runtime.serve.triton.cli import main

    monkeypatch.chdir(toy.folder.parent)
    manifests.write(tmp_path / "plans", backend="tensorrt", targets=("sm90",))
    manifests.write(tmp_path / "broken")
    path = tmp_path / "broken" / "large.onnx"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", "models"])
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "models").exists()


def test_a_server_that_ends_without_a_result() -> None:
    step = tensors(step=1, steps=2, stage="large", seconds=0.5)
    for answers in ([], [step], [step, {**step, "step": np.array([2])}]):
        with pytest.raises(FlowBlendingError, match="ended its answer without a result"):
            show(iter(answers), Console(quiet=True))


# ---- With the real server


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server whose models are ``wan``, ``queued`` (with a queue policy), ``taller`` (of two sizes) and plans."""

    server: TritonServer
    repository: Path
    bundle: Bundle
    taller: Bundle

    def ask(
        self, model: str, values: Mapping[str, object], *, priority: int = 0, timeout: float | None = None
    ) -> Generator[Arrays]:
        return responses(
            self.server.url, model, tensors(**{"progress": True, **values}), priority=priority, timeout=timeout
        )

    def latents(self, model: str = "wan", /, **values: object) -> npt.NDArray[np.float32]:
        (*_, last) = self.ask(model, {**SHORT, "result": "latents", **values})
        return floats(last["latents"])


def floats(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    assert array.dtype == np.float32
    return np.asarray(array, np.float32)


@pytest.fixture(scope="module")
def served(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if importlib.util.find_spec("tritonclient") is None:
        unavailable("tritonclient is not installed.")
    try:
        environment = install()
    except Unavailable as error:
        unavailable(str(error))
    scratch = tmp_path_factory.mktemp("triton")
    bundle, taller = build("wan"), build("wan", size="192x256,32x48", frames=33)
    models = scratch / "models"
    names = ("--name=wan", "--name=taller")
    result = program(EXPORT, bundle.folder, taller.folder, *names, "--threads", 1, "--out", models)
    assert result.returncode == 0, result.stderr
    policy = ("--max-queue", 3, "--timeout", 30, "--priorities", 2)
    result = program(EXPORT, bundle.folder, "--name=queued", "--out", models, *policy)
    assert result.returncode == 0, result.stderr
    manifests.write(scratch / "gpu", backend="tensorrt", targets=("sm90",))
    gpu = open_bundle(scratch / "gpu")
    two = gpu.manifest.model_copy(update={"profiles": plan_profiles(gpu.manifest.pipeline, "64x32,32x64", 9)})
    write_repository(plan_models("gpu", dataclasses.replace(gpu, manifest=two), Placement()), models)
    with serve(environment, models, scratch) as server:
        server.load("wan")
        yield Served(server=server, repository=models, bundle=bundle, taller=taller)


@pytest.fixture(scope="module")
def reference(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What fb-run makes of the same request."""
    folder = tmp_path_factory.mktemp("reference")
    options = ("--prompt", PROMPT, "--steps", 3, "--seed", 5, "--guidance", 4.1, "--device", "cpu", "--threads", 1)
    files = ("--out", folder / "frames.npy", "--save-latents", folder / "latents.npy")
    for out in (files, ("--out", folder / "video.mp4"), ("--out", folder / "given.mp4", "--noise", files[-1])):
        result = program(RUN, served.bundle.folder, *options, *out)
        assert result.returncode == 0, result.stderr
    videos = {name: np.frombuffer((folder / f"{name}.mp4").read_bytes(), np.uint8) for name in ("video", "given")}
    return videos | {name: np.load(folder / f"{name}.npy") for name in ("frames", "latents")}


@pytest.mark.slow
def test_grpc_tells_of_every_step_and_gives_what_fb_run_gives(served: Served, reference: Arrays) -> None:
    wanted = np.array([b"latents", b"frames", b"mp4"], np.object_)
    *steps, last = served.ask("wan", {**SHORT, "result": wanted})
    assert [(int(each["step"][0]), int(each["steps"][0]), each["stage"][0]) for each in steps] == [
        (1, 3, b"large"),
        (2, 3, b"small"),
        (3, 3, b"large"),
    ]
    assert all(each["seconds"][0] > 0 for each in steps)
    np.testing.assert_allclose(floats(last["latents"]), floats(reference["latents"]), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(last["frames"], reference["frames"])
    report = json.loads(last["report"][0])
    assert (report["schedule"], report["seed"], report["warnings"]) == ("L1 S1 L1", "5", [])
    assert {"text_encoder", "large", "small", "vae", "total"} <= report["seconds"].keys()
    import av

    with av.open(io.BytesIO(last["video"][0]), "r") as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
        assert json.loads(video.metadata["comment"])["prompt"] == PROMPT
    assert last["video"][0] == reference["video"].tobytes()
    (*_, last) = served.ask("wan", {**SHORT, "result": "mp4", "latents": reference["latents"]})
    assert last["video"][0] == reference["given"].tobytes()
    assert frames.shape == reference["frames"].shape
    assert np.abs(frames.astype(int) - reference["frames"]).mean() < 20


@pytest.mark.slow
def test_http_gives_the_same(served: Served, reference: Arrays) -> None:
    request = {**SHORT, "result": ["latents", "mp4-base64"], "progress": True}
    lines = served.server.post("models/wan/generate_stream", request).decode().split("\n\n")
    *steps, last = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert [(each["step"], each["stage"]) for each in steps] == [(1, "large"), (2, "small"), (3, "large")]
    latents = np.array(last["latents"], np.float32).reshape(reference["latents"].shape)
    np.testing.assert_allclose(latents, floats(reference["latents"]), rtol=0, atol=1e-6)
    assert base64.b64decode(last["video"])[4:8] == b"ftyp"
    # Without progress there is one response, which the simplest of clients can take.
    whole = json.loads(served.server.post("models/wan/generate", {**request, "progress": False}))
    assert whole["latents"] == last["latents"]


@pytest.mark.slow
def test_the_example_for_http_saves_a_video_and_tells_what_is_refused(served: Served, tmp_path: Path) -> None:
    script = Path(__file__).parents[4] / "examples" / "06_http.py"
    server, out = f"http://127.0.0.1:{served.server.http}", tmp_path / "video.mp4"
    command = [sys.executable, str(script), server, "wan"]
    done = subprocess.run([*command, PROMPT, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{out}: L20 S20 L10"
    assert "50 of 50 steps" in done.stdout
    assert out.read_bytes()[4:8] == b"ftyp"
    done = subprocess.run([*command, " ", str(tmp_path / "none.mp4")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "The prompt is empty; say what the video shows." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none.mp4").exists()


@pytest.mark.slow
def test_the_defaults_fit_http(served: Served, reference: Arrays) -> None:
    answer = json.loads(served.server.post("models/wan/generate", SHORT))
    assert base64.b64decode(answer["video"]) == reference["video"].tobytes()
    assert set(answer) == {"model_name", "model_version", "report", "video"}
    answer = json.loads(served.server.post("models/wan/generate", {**SHORT, "steps": 1, "seed": 2**64 - 1, "id": "a"}))
    assert json.loads(answer["report"])["seed"] == str(2**64 - 1)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 3}, "Unknown input 'num_inference_steps'; steps is probably what was meant"),
        ({"fps": 24}, "Unknown input 'fps'; frame_rate (of frames per second) is probably what was meant"),
        ({"guidance_scale": 1.5}, "Unknown input 'guidance_scale'; guidance is probably what was meant"),
        ({"parameters": {"num_frames": 9}}, "Unknown input 'num_frames'; frames is probably what was meant"),
        ({"parameters": {"guidance": 3}}, "already exists in request"),
        ({"colour": "red"}, "Unknown input 'colour'; known are prompt"),
        ({"prompt": " "}, "The prompt is empty; say what the video shows."),
    ],
)
def test_http_refuses_what_it_does_not_know(served: Served, path: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.server.post(f"models/wan/{path}", {"prompt": "x", "guidance": 4, "steps": 1, **fields})
    assert caught.value.code == 400
    assert message in json.loads(caught.value.read().decode().removeprefix("data: "))["error"]


def leave(served: Served, path: str, fields: Mapping[str, object], seconds: float) -> None:
    """Ask over HTTP, and close the connection before the answer is whole."""
    body = json.dumps(fields).encode()
    with socket.create_connection(("127.0.0.1", served.server.http)) as connection:
        head = f"POST /v2/models/wan/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        time.sleep(seconds)


@pytest.mark.slow
def test_http_clients_that_leave_end_a_stream_and_nothing_else(served: Served) -> None:
    """What docs/embedding.md says of Triton: only sending shows that a client has gone."""

    def whole_run() -> float:
        start = time.monotonic()
        list(served.ask("wan", LONG))
        return time.monotonic() - start

    whole = whole_run()
    waited = {}
    for path in ("generate", "generate_stream"):
        leave(served, path, {**LONG, "progress": path == "generate_stream"}, whole / 5)
        start = time.monotonic()
        served.latents(steps=1)
        waited[path] = time.monotonic() - start
    # What else the machine does may have ended meanwhile.
    assert waited["generate"] > min(whole, whole_run()) / 4 > waited["generate_stream"]


@pytest.mark.slow
def test_latents_can_be_given(served: Served, reference: Arrays) -> None:
    from flowblending.runtime.media.noise import TorchNormal

    noise = TorchNormal(5).normal(reference["latents"].shape)
    np.testing.assert_array_equal(served.latents(latents=noise, seed=6), served.latents())
    assert not np.array_equal(served.latents(seed=6), served.latents())


BAD: list[tuple[dict[str, object], str]] = [
    ({"steps": 0}, 'steps is 0, but a whole number of steps, at least 1, was expected; give "steps": 50, for example.'),
    (
        {"steps": 2**31 - 1},
        "2147483647 steps were asked for, but the models tell 1000 noise levels apart; give no more",
    ),
    ({"schedule": "L20 S20"}, "add up to 40 steps, but 3 steps"),
    ({"cache": "mask:11"}, "The mask has 2 digits, but the run has 3 steps"),
    ({"guidance": float("nan")}, "guidance is nan, but a finite number was expected"),
    ({"solver": "heun"}, "heun"),
    ({"frame_rate": 0.0}, "frame_rate is 0.0, but a finite number of frames per second from 1 to 1000 was expected"),
    ({"result": "gif"}, "The result 'gif' was asked for"),
    ({"prompt": b"\xff\xfe"}, "Input prompt is no UTF-8 text"),
    ({"latents": np.full((1, 16, 3, 6, 4), np.nan, np.float32)}, "infinite or undefined"),
    ({"latents": np.zeros((1, 16, 3, 6, 5), np.float32)}, "unexpected shape for input 'latents'"),
    ({"seed": np.array([1.5])}, "seed"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_request_gets_a_sentence_and_the_next_is_served(
    served: Served, values: dict[str, object], message: str
) -> None:
    with pytest.raises(FlowBlendingError) as caught:
        served.latents(**values)
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert served.latents(steps=1).shape == (1, 16, 3, 6, 4)


@pytest.mark.slow
def test_http_answers_a_bad_request_with_status_400(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.server.post("models/wan/generate", {"prompt": "x", "steps": 0})
    assert caught.value.code == 400
    assert json.loads(caught.value.read())["error"].startswith("steps is 0, but a whole number of steps")


@pytest.mark.slow
def test_a_cancelled_request_frees_the_model_at_the_next_step(served: Served) -> None:
    answers = served.ask("wan", LONG)
    seconds = [float(each["seconds"][0]) for each in itertools.islice(answers, 3)]
    start = time.monotonic()
    answers.close()
    assert served.latents(steps=1).shape == (1, 16, 3, 6, 4)
    assert time.monotonic() - start < 200 * max(seconds)


@pytest.mark.slow
def test_two_clients_at_once(served: Served) -> None:
    alone = {seed: served.latents(seed=seed) for seed in (1, 2)}
    found: dict[tuple[int, int], npt.NDArray[np.generic]] = {}

    def client(seed: int) -> None:
        for turn in range(5):
            found[seed, turn] = served.latents(seed=seed)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 10
    for (seed, _), latents in found.items():
        np.testing.assert_array_equal(latents, alone[seed])


@contextlib.contextmanager
def loaded(served: Served, model: str) -> Iterator[None]:
    """A model that is there for one test."""
    served.server.load(model)
    try:
        yield
    finally:
        served.server.unload(model)
        served.server.wait_until_gone(model)


@pytest.mark.slow
def test_a_model_of_several_sizes(served: Served) -> None:
    with loaded(served, "taller"):
        (*_, last) = served.ask("taller", {**SHORT, "result": np.array([b"latents", b"frames"], np.object_)})
        assert last["latents"].shape == (1, *served.taller.manifest.geometry.latent_shape) == (1, 16, 9, 32, 24)
        assert last["frames"].shape == (33, 256, 192, 3)
        assert served.latents("taller", size="32x48", frames=33).shape == (1, 16, 9, 6, 4)
        with pytest.raises(FlowBlendingError, match="nearest is --size 32x48 --frames 33"):
            served.latents("taller", size="32x32")


@pytest.mark.slow
def test_the_queue_has_an_end_an_order_and_a_limit_of_time(served: Served) -> None:
    with loaded(served, "queued"):
        busy = served.ask("queued", LONG)
        next(busy)
        done: list[str] = []

        def client(name: str, priority: int, timeout: float | None) -> None:
            try:
                list(
                    served.ask(
                        "queued", {"prompt": name, "steps": 1, "result": "latents"}, priority=priority, timeout=timeout
                    )
                )
                done.append(name)
            except FlowBlendingError as error:
                done.append(f"{name}: {error}")

        def start(name: str, priority: int = 0, timeout: float | None = None) -> threading.Thread:
            thread = threading.Thread(target=client, args=(name, priority, timeout))
            thread.start()
            time.sleep(0.2)
            return thread

        start("impatient", timeout=0.1).join(timeout=10)
        assert "impatient: " in done[0]
        assert "the request waited longer than it may" in done[0]
        waiting = [start("second"), start("third"), start("last"), start("first", priority=1), start("too many")]
        waiting[-1].join(timeout=10)
        assert "too many: " in done[1]
        assert "too many requests wait for this model already" in done[1]
        busy.close()
        for thread in waiting:
            thread.join(timeout=30)
        assert done[2:] == ["first", "second", "third", "last"]


@pytest.mark.slow
def test_a_killed_model_is_an_error_and_heals(served: Served) -> None:
    """Killed while it computes, where long steps keep it: amid a message to Triton it may take the server with it."""
    with loaded(served, "taller"):
        before = served.latents("taller")
        (stub,) = served.server.stubs("taller")
        answers = served.ask("taller", LONG)
        step = next(answers)
        time.sleep(float(step["seconds"][0]) / 2)
        os.kill(stub, signal.SIGKILL)
        for failing in (lambda: list(answers), lambda: served.latents("taller")):
            with pytest.raises(FlowBlendingError, match="the model's process has died; unload the model and load it"):
                failing()
        assert served.latents("wan").shape == (1, 16, 3, 6, 4)
        served.server.unload("taller")
        served.server.load("taller")
        np.testing.assert_array_equal(served.latents("taller"), before)


def resident(process: int) -> int:
    """Memory of a process in bytes, without what it shares as files."""
    fields = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return next(int(each[1]) * 1024 for each in fields if each[0] == "RssAnon:")


@pytest.mark.slow
def test_a_hundred_requests_leave_no_memory_behind(served: Served) -> None:
    processes = [served.server.process.pid, *served.server.stubs("wan")]
    assert len(processes) == 2

    def several(count: int) -> list[int]:
        for number in range(count):
            (*_, last) = served.ask("wan", {"prompt": "x", "steps": 2, "seed": number, "result": "frames"})
            assert last["frames"].shape == (9, 48, 32, 3)
        return [resident(process) for process in processes]

    before = several(30)
    after = several(100)
    # A request's latents in their slots are over 40 kB, and so are its frames: a hundred of either would show.
    for process, first, last in zip(processes, before, after, strict=True):
        assert last - first < 2 << 20, f"process {process} grew by {last - first} bytes"


@pytest.mark.slow
def test_a_damaged_bundle_is_not_served(served: Served) -> None:
    target = served.repository / "damaged"
    shutil.copytree(served.repository / "wan", target)
    config = target / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "wan"', 'name: "damaged"'))
    weights = target / "1" / "bundle" / "large.onnx.data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.server.load("damaged")
    assert "large.onnx.data was altered after the build" in json.loads(caught.value.read())["error"]
    shutil.rmtree(target)


@pytest.mark.slow
def test_the_server_understands_the_models_of_plans(served: Served) -> None:
    """There is no TensorRT backend in this server, which it says only when it has understood the configuration."""
    for name in ("gpu_large", "gpu_small"):
        assert (served.repository / name / "1" / "sm90.plan").is_file()
        with pytest.raises(urllib.error.HTTPError) as caught:
            served.server.load(name)
        assert "unable to find backend library for backend 'tensorrt'" in json.loads(caught.value.read())["error"]


@pytest.mark.slow
def test_the_client_saves_a_video(served: Served, reference: Arrays, tmp_path: Path) -> None:
    import av

    out, latents = tmp_path / "new" / "video.mp4", tmp_path / "latents.npy"
    where = ("--url", served.server.url, "--model", "wan")
    options = ("--prompt", PROMPT, "--steps", 3, "--seed", 5, "--guidance", 4.1)
    result = program(CLIENT, *where, *options, "--out", out, "--save-latents", latents)
    assert result.returncode == 0, result.stderr
    assert "L1 S1 L1" in result.stdout
    np.testing.assert_allclose(np.load(latents), floats(reference["latents"]), rtol=0, atol=1e-6)
    with av.open(str(out)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 9
    result = program(CLIENT, *where, *options, "--out", tmp_path / "frames.npy", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "frames.npy"), reference["frames"])
    result = program(CLIENT, *where, "--prompt", "a cat " * 400, "--steps", 1, "--out", tmp_path / "x.mp4")
    assert "warning: the prompt is " in result.stderr


@pytest.mark.slow
def test_the_client_fails_in_one_sentence(served: Served, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.mp4")
    where = ("--url", served.server.url, "--model", "wan", "--prompt", "x")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        ((*where, *out, "--steps", 0), 2, "--steps is 0, but a whole number of steps, at least 1,"),
        (
            ("--url", "127.0.0.1:9", "--model", "wan", "--prompt", "x", *out),
            1,
            "No Triton server answers at 127.0.0.1:9",
        ),
        (("--url", served.server.url, "--model", "none", "--prompt", "x", *out), 1, "it does not serve this model"),
        ((*where, *out, "--timeout", "nan"), 2, "timeout of nan seconds was given"),
        ((*where, *out, "--seed", 2**70), 2, "--seed is 1180591620717411303424, but a whole number from 0 to"),
        ((*where, *out, "--noise", tmp_path / "no.npy"), 1, "Cannot read latents"),
        ((*where, "--out", tmp_path / "x.gif"), 2, "x.gif; use .mp4 or .npy"),
        ((*where, "--out", tmp_path), 2, "Cannot save a video as"),
        ((*where, *out, "--save-latents", tmp_path / "x.mp4"), 2, "Cannot save latents as"),
        ((*where, "--out", tmp_path / "x.npy", "--save-latents", tmp_path / "x.npy"), 2, "give two files"),
    ]
    for arguments, code, message in cases:
        result = program(CLIENT, *arguments)
        assert result.returncode == code, result.stderr
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_in_the_client_frees_the_server(served: Served, tmp_path: Path) -> None:
    options = ("--url", served.server.url, "--model", "wan", "--prompt", "x", "--steps", "1000", "--solver", "euler")
    command = [sys.executable, "-m", CLIENT, *options, "--out", str(tmp_path / "x.mp4")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    start = time.monotonic()
    served.latents(steps=1)
    assert time.monotonic() - start < 2
    assert not list(tmp_path.iterdir())
