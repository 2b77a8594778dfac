"""The two programs as a user meets them: exit codes, one-sentence errors, files on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import Build
from tests.support import manifests
from tests.support.programs import MODULES, Result, run

PROMPT = "一只猫 walks 🐈 on the grass"


def process(program: str, *arguments: object) -> Result:
    """The same as a process of its own."""
    command = [sys.executable, "-m", MODULES[program], *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def assert_sentence(result: Result, code: int, message: str) -> None:
    """The error is one line, says what is expected of it, and no traceback comes with it."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A bundle with a real manifest whose engines are no engines: enough for everything that fails earlier."""
    manifests.write(tmp_path / "toy")
    return tmp_path / "toy"


WRONG_JOBS: list[tuple[tuple[str, ...], str]] = [
    (
        ("--prompt", "x", "--steps", "0"),
        "--steps is 0, but a whole number of steps, at least 1, was expected; give --steps 50",
    ),
    (("--prompt", "x", "--steps", "-3"), "--steps is -3, but a whole number"),
    (("--prompt", "x", "--schedule", "L20 S20", "--steps", "50"), "add up to 40 steps, but 50"),
    (("--prompt", "x", "--schedule", "LXL"), "X"),
    (("--prompt", "x", "--schedule", ""), "schedule is empty"),
    (("--prompt", "x", "--steps", "3", "--schedule", "L1 S2:g"), "S2:g has nothing where a number"),
    (("--prompt", "x", "--steps", "3", "--schedule", "L1 S1:t100 L1"), "must lie below 999.999 and above "),
    (("--prompt", "x", "--cache", "seacache"), "The cache 'seacache' is unknown; give off, mask:"),
    (("--prompt", "x", "--cache", "teacache"), "TeaCache has no distances for the bundle's large model; measure them"),
    (("--prompt", "x", "--cache", "easycache", "--emit-program", "x.json"), "which a program file cannot say; give"),
    (("--prompt", "x", "--cache", "mask:101"), "The mask has 3 digits, but the run has 50 steps"),
    (("--prompt", "x", "--steps", "3", "--schedule", "L1 S2", "--cache", "mask:101"), "skips step 2, the first of"),
    (("--prompt", "x", "--cache", "magcache"), "MagCache has published constants for wan2.1-t2v-1.3b and"),
    (("--prompt", "x", "--guidance", "1", "--cache", "guidance:5"), "but guidance is off"),
    (
        ("--prompt", "x", "--fps", "0"),
        "--fps is 0.0, but a finite number of frames per second from 1 to 1000 was expected",
    ),
    (("--prompt", "x", "--fps", "1e300"), "--fps is 1e+300, but a finite number"),
    (("--prompt", "x", "--steps", "1000000000"), "the models tell 1000 noise levels apart"),
    (
        ("--prompt", "x", "--guidance", "nan"),
        "--guidance is nan, but a finite number was expected; give --guidance 5.0",
    ),
    (("--prompt", "x", "--threads", "0"), "--threads is 0, but a whole number of threads from 1 to 4096 was expected"),
    (
        ("--prompt", "x", "--seed", str(2**70)),
        "but a whole number from 0 to 18446744073709551615 was expected; give --seed 42",
    ),
    ((), "Give --prompt TEXT, --prompts FILE or --decode FILE"),
    (("--prompt", " "), "The prompt is empty; say what the video shows"),
    (("--prompt", "x", "--prompts", "y"), "Give either --prompt TEXT or --prompts FILE"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_JOBS, ids=lambda value: " ".join(value)[:40])
def test_a_wrong_job_is_refused_before_any_engine_is_opened(
    toy: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert_sentence(run("fb-run", toy, *arguments, "--device", "cpu", "--out", toy.parent / "x.mp4"), 2, message)
    assert not (toy.parent / "x.mp4").exists()


def test_files_that_cannot_be_read(toy: Path, tmp_path: Path) -> None:
    assert_sentence(run("fb-run", tmp_path / "none", "--prompt", "x"), 1, "is no bundle")
    (tmp_path / "empty.txt").write_text("\n")
    assert_sentence(run("fb-run", toy, "--prompts", tmp_path / "empty.txt"), 2, "holds no prompt")
    assert_sentence(run("fb-run", toy, "--prompt", "x", "--noise", tmp_path / "no.npy"), 1, "Cannot read latents")
    (toy / "large.onnx").write_bytes(b"other")
    assert_sentence(run("fb-run", toy, "--prompt", "x"), 1, "rebuild with: fb-build-engines --large 'a b'")


def test_a_gpu_bundle_without_a_gpu(tmp_path: Path) -> None:
    from flowblending.engine.backends.gpu import gpu_architecture

    if gpu_architecture() is not None:
        pytest.skip("this machine has a GPU")
    manifests.write(tmp_path / "gpu", backend="tensorrt-rtx", targets=("sm89",))
    assert_sentence(run("fb-run", tmp_path / "gpu", "--prompt", "x"), 1, "no CUDA driver or GPU was found")
    result = run("fb-run", tmp_path / "gpu", "--prompt", "x", "--device", "cpu")
    assert_sentence(result, 2, "large is a TensorRT-RTX plan, which runs on GPUs only")


def test_outputs_that_would_be_in_the_way(toy: Path) -> None:
    both = ("--out", toy.parent / "x.npy", "--save-latents", toy.parent / "x.npy")
    assert_sentence(run("fb-run", toy, "--prompt", "x", *both), 2, "give two files")
    assert_sentence(run("fb-run", toy, "--prompt", "x", "--out", toy / "x.mp4"), 2, "lies in the bundle")
    manifests.write(toy.parent / "other")
    elsewhere = ("--save-latents", toy.parent / "other" / "x.npy")
    assert_sentence(run("fb-run", toy, "--prompt", "x", *elsewhere), 2, "lies in the bundle")
    assert_sentence(run("fb-run", toy, "--prompts", "y", "--out", "x.mp4"), 2, "name a folder")


@pytest.mark.parametrize(
    "options",
    [
        ("--decode", "in.npy", "--out", "in.npy"),
        ("--prompt", "x", "--noise", "in.npy", "--save-latents", "link.npy"),
        ("--prompts", "in.npy", "--emit-program", "./in.npy"),
        ("--prompt", "x", "--out", "loop.mp4"),
    ],
)
def test_what_a_run_reads_is_not_written_over(
    toy: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.npy").write_text("a prompt")
    Path("link.npy").symlink_to("in.npy")
    Path("loop.mp4").symlink_to("loop.mp4")
    loop = "loop.mp4" in options
    told = "Too many levels of symbolic links" if loop else "both name"
    assert_sentence(run("fb-run", toy, *options), 1 if loop else 2, told)
    assert Path("in.npy").read_text() == "a prompt"


def test_dry_run_shows_the_shard_that_would_be_made(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    options = ("fb-run", toy, "--prompts", tmp_path / "prompts.txt", "--dry-run", "--shard")
    told = run(*options, "2/2").stdout
    assert [line.split()[2] for line in told.splitlines() if line.startswith("line")] == ["two"]
    assert "5/2" in run(*options, "5/2").stderr


def test_dry_run_needs_no_engine(toy: Path) -> None:
    result = run("fb-run", toy, "--prompt", "x", "--dry-run", "--schedule", "L20 S20 L10")
    assert result.returncode == 0, result.stderr
    assert "schedule  L20 S20 L10, 50 steps, unipc, guidance 5" in result.stdout
    assert "calls     large x 60, small x 40" in result.stdout
    # 60 calls of 1100 operations and 40 of 110, against 100 of 1100.
    assert "(64.0%), 9.1% of it attention; speed-up bound 1.562x" in result.stdout


@pytest.mark.slow
def test_a_video_with_its_metadata_and_the_same_latents_again(build: Build, tmp_path: Path) -> None:
    bundle = build("wan").folder
    options = ("--prompt", PROMPT, "--steps", 3, "--seed", 5, "--device", "cpu")
    first = process("fb-run", bundle, *options, "--out", tmp_path / "a.mp4", "--save-latents", tmp_path / "a.npy")
    assert first.returncode == 0, first.stderr
    for stage in ("text encoder", "large x 4", "small x 2", "VAE decoder", "video file", "total"):
        assert stage in first.stdout
    with av.open(str(tmp_path / "a.mp4")) as video:
        (stream,) = video.streams.video
        assert (stream.width, stream.height) == (32, 48)
        assert sum(1 for _ in video.decode(stream)) == 9
        told = json.loads(video.metadata["comment"])
    assert (told["prompt"], told["seed"], told["schedule"]) == (PROMPT, "5", "L1 S1 L1")
    latents = np.load(tmp_path / "a.npy")
    assert (latents.dtype, latents.shape) == (np.float32, (1, 16, 3, 6, 4))
    second = run("fb-run", bundle, *options, "--out", tmp_path / "frames", "--save-latents", tmp_path / "b.npy")
    assert second.returncode == 0, second.stderr
    assert len(list((tmp_path / "frames").glob("*.png"))) == 9
    assert np.array_equal(latents, np.load(tmp_path / "b.npy"))


@pytest.mark.slow
def test_finished_latents_are_decoded_and_told_from_noise(build: Build, tmp_path: Path) -> None:
    bundle, latents = build("wan").folder, tmp_path / "latents.npy"
    common = ("--prompt", PROMPT, "--steps", 2, "--device", "cpu", "--out", tmp_path / "a.npy")
    assert run("fb-run", bundle, *common, "--save-latents", latents).returncode == 0
    decoded = run("fb-run", bundle, "--decode", latents, "--device", "cpu", "--out", tmp_path / "b.npy")
    assert (decoded.returncode, decoded.stderr.count("warning")) == (0, 0), decoded.stderr
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    idle = run("fb-run", bundle, "--decode", latents, "--seed", 3, "--fps", 8, "--out", tmp_path / "b.npy")
    assert "the seed 3 does nothing, because this bundle's decoder adds no noise." in idle.stderr
    assert "the frame rate 8 does nothing, because no file is written that has one." in idle.stderr
    smooth = np.repeat(np.load(latents)[..., ::2], 2, axis=-1)
    np.save(tmp_path / "smooth.npy", smooth)
    given = run("fb-run", bundle, *common, "--noise", tmp_path / "smooth.npy")
    assert "warning: the noise given does not look like noise: " in given.stderr
    assert "latents of a finished run are for fb-run --decode" in given.stderr
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).standard_normal(smooth.shape, np.float32))
    noisy = run("fb-run", bundle, "--decode", tmp_path / "noise.npy", "--out", tmp_path / "c.mp4")
    assert "warning: the latents look like noise, which no run has finished" in noisy.stderr
    with av.open(str(tmp_path / "c.mp4")) as video:
        assert set(json.loads(video.metadata["comment"])) == {"decoded_latents_sha256", "seed", "bundle"}
    for array, message in (
        (smooth[0], "Latents of shape [16, 3, 6, 4] were given, but one video's"),
        (np.full_like(smooth, np.inf), "give finite ones to --decode."),
        (smooth[:, :, :2], "give such latents"),
        (smooth.astype(np.int8), "give such a file to --decode."),
    ):
        np.save(tmp_path / "bad.npy", array)
        assert_sentence(
            run("fb-run", bundle, "--decode", tmp_path / "bad.npy", "--out", tmp_path / "d.npy"), 2, message
        )
    assert not (tmp_path / "d.npy").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--prompt", "x"),
        ("--prompts", "x"),
        ("--noise", "x"),
        ("--steps", "3"),
        ("--no-batched-guidance",),
        ("--save-latents", "x"),
        ("--dry-run",),
        ("--emit-program", "x"),
        ("--size", "64x64"),
    ],
    ids=" ".join,
)
def test_decoding_takes_no_option_of_sampling(toy: Path, options: tuple[str, ...]) -> None:
    flag = options[0].replace("--no-", "--")
    assert_sentence(
        run("fb-run", toy, "--decode", "latents.npy", *options), 2, f"takes no {flag}; leave one of the two out."
    )


@pytest.mark.slow
def test_latents_from_a_file(build: Build, tmp_path: Path) -> None:
    from flowblending.runtime.media.noise import TorchNormal

    bundle = build("wan").folder
    noise = TorchNormal(5).normal((1, 16, 3, 6, 4))
    np.save(tmp_path / "noise.npy", noise)
    common = ("--prompt", "x", "--steps", 2, "--device", "cpu", "--out", tmp_path / "x.npy")
    for name, options in (("seed", ("--seed", 5)), ("file", ("--noise", tmp_path / "noise.npy"))):
        result = run("fb-run", bundle, *common, *options, "--save-latents", tmp_path / f"{name}.npy")
        assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "seed.npy"), np.load(tmp_path / "file.npy"))
    np.save(tmp_path / "bad.npy", noise[:, :, :2])
    assert_sentence(run("fb-run", bundle, *common, "--noise", tmp_path / "bad.npy"), 2, "expects float32 of shape")
    former = run("fb-run", bundle, *common, "--latents", tmp_path / "noise.npy", "--save-latents", tmp_path / "old.npy")
    assert "warning: --latents is called --noise now" in former.stderr
    assert np.array_equal(np.load(tmp_path / "old.npy"), np.load(tmp_path / "file.npy"))
    both = ("--noise", tmp_path / "noise.npy", "--latents", tmp_path / "noise.npy")
    assert_sentence(run("fb-run", bundle, *common, *both), 2, "both were given; leave out --latents.")
    noise[0, 0, 0, 0, 0] = np.nan
    np.save(tmp_path / "bad.npy", noise)
    assert_sentence(run("fb-run", bundle, *common, "--noise", tmp_path / "bad.npy"), 2, "infinite or undefined")


@pytest.mark.slow
def test_a_prompt_file_goes_on_after_a_failed_line_and_skips_what_is_done(build: Build, tmp_path: Path) -> None:
    bundle, out = build("wan").folder, tmp_path / "videos"
    (tmp_path / "prompts.jsonl").write_text('a cat\n{"prompt": "b", "schedule": "L9"}\n{"prompt": "c", "seed": 2}\n')
    arguments = (bundle, "--prompts", tmp_path / "prompts.jsonl", "--steps", 2, "--out", out, "--device", "cpu")
    result = run("fb-run", *arguments)
    assert result.returncode == 1
    assert "line 2 failed: The runs of the schedule L9 add up to 9 steps" in result.stderr
    assert "2 made, 0 skipped, 1 failed" in result.stdout
    assert sorted(path.name[:7] for path in out.glob("*.mp4")) == ["0001-a-", "0003-c-"]
    assert result.stderr.index("line 2 failed") < result.stderr.index("] 0001-a-")
    index = json.loads((out / "index.json").read_text())
    assert [entry["line"] for entry in index] == [1, 2, 3]
    assert [(out / entry["video"]).exists() for entry in index if "video" in entry] == [True, True]
    assert "L9 add up to 9 steps" in index[1]["error"]
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    assert "0 made, 2 skipped, 1 failed" in run("fb-run", *arguments).stdout
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*.mp4")}


def test_without_the_video_extra_images_are_written_and_mp4_is_refused_before_the_work(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "av.py").write_text("raise ImportError('no av here')")
    (tmp_path / "prompts").write_text("a\nb\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    told = "warning: Writing MP4 needs PyAV, which is not installed; run pip install '.[video]' in a checkout of "
    for options in (("--prompt", "x"), ("--prompts", "prompts")):
        result = process("fb-run", toy, *options, "--steps", 2)
        assert result.stderr.count(told) == 1, result.stderr
        assert "PNG images are written in place of MP4 files." in result.stderr
    index = json.loads((tmp_path / "videos" / "index.json").read_text())
    assert [Path(entry["video"]).suffix for entry in index] == ["", ""]
    for out in ("x.npy", "images"):
        assert "PyAV" not in process("fb-run", toy, "--prompt", "x", "--steps", 2, "--out", out).stderr
    assert_sentence(process("fb-run", toy, "--prompt", "x", "--out", "x.mp4"), 1, "run pip install '.[video]'")


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_cut_with_a_warning(build: Build, tmp_path: Path) -> None:
    arguments = ("--prompt", "a cat " * 400, "--steps", 1, "--device", "cpu", "--out", tmp_path / "x.npy")
    result = run("fb-run", build("wan").folder, *arguments)
    assert result.returncode == 0, result.stderr
    assert "the text encoder takes 512" in result.stderr


@pytest.mark.slow
def test_outputs_that_cannot_be_written(build: Build, tmp_path: Path) -> None:
    common = (build("wan").folder, "--prompt", "x", "--steps", 1, "--device", "cpu")
    (tmp_path / "file").write_text("")
    for out, code, message in (("file/x.mp4", 1, "file is no folder); give another name"), ("x.gif", 2, "x.gif")):
        assert_sentence(run("fb-run", *common, "--out", tmp_path / out), code, message)
    result = run("fb-run", *common, "--out", tmp_path / "x.npy", "--save-latents", tmp_path / "file" / "z.npy")
    assert_sentence(result, 1, "file is no folder); give another name")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["while sampling", "while writing"])
def test_ctrl_c_leaves_no_half_written_file(build: Build, tmp_path: Path, when: str) -> None:
    (tmp_path / "video.mp4").write_text("an earlier video")
    bundle = build("wan", size="256x256", frames=81).folder
    arguments = (bundle, "--prompt", "x", "--steps", 1000 if when == "while sampling" else 1, "--device", "cpu")
    command = [sys.executable, "-m", MODULES["fb-run"], *map(str, arguments), "--out", str(tmp_path / "video.mp4")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        if when == "while sampling":
            time.sleep(4)
        else:
            while len(os.listdir(tmp_path)) == 1 and process.poll() is None:
                time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["video.mp4"]
    assert (tmp_path / "video.mp4").read_text() == "an earlier video"


@pytest.mark.slow
def test_a_run_needs_neither_torch_nor_diffusers_nor_transformers(build: Build, tmp_path: Path) -> None:
    arguments = [
        str(build("wan").folder),
        "--prompt",
        "x",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "x.mp4"),
    ]
    code = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers', 'onnx'): sys.modules[name] = None\n"
        f"from flowblending.runtime.cli import main; main({arguments!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "x.mp4").exists()


WRONG_BUILDS: list[tuple[tuple[str, ...], str]] = [
    (("--size", "50x32"), "Size 50x32 was given, but wan needs"),
    (("--frames", "8"), "8 frames were given, but wan makes 4k+1 frames"),
    (("--small-timesteps", "900,950"), "--small-timesteps has timesteps that do not fall"),
    (("--precision", "fp4"), "Precision 'fp4' was given"),
    (("--precision", "small=fp8", "--fp8-attention"), "--fp8-attention was given, but onnxruntime has no attention"),
    (("--fp8-keep", "1"), "--fp8-keep was given, but nothing is built in fp8"),
    (("--precision", "bf16"), "ONNX Runtime has no bf16 kernels"),
    (("--target", "sm89"), "onnxruntime compiles for no GPU in particular"),
    (("--backend", "tensorrt-rtx", "--target", "sm42"), "sm42"),
    (("--backend", "tensorrt-rtx", "--target", "sm86,sm89", "--precision", "small=fp8"), "sm86 cannot compute in it"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "message"), WRONG_BUILDS, ids=lambda value: " ".join(value)[:40])
def test_a_wrong_build_is_refused_before_anything_is_exported(
    checkpoints: Callable[[str], Path], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    pair = checkpoints("wan")
    common = ("--large", pair / "large", "--small", pair / "small", "--out", tmp_path / "bundle")
    assert_sentence(run("fb-build-engines", *common, "--backend", "onnxruntime", *arguments), 2, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_checkpoints_that_are_none_or_no_pair(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    pair, out = checkpoints("wan"), tmp_path / "bundle"
    common = ("--out", out, "--backend", "onnxruntime")
    assert_sentence(run("fb-build-engines", "--large", tmp_path, "--small", pair / "small", *common), 1, "diffusers")
    mixed = run("fb-build-engines", "--large", pair / "large", "--small", checkpoints("ltx") / "small", *common)
    assert_sentence(mixed, 1, "WanTransformer3DModel")
    broken = tmp_path / "broken"
    shutil.copytree(pair / "large", broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert_sentence(run("fb-build-engines", "--large", broken, "--small", pair / "small", *common), 1, "vae")
    assert not out.exists()
