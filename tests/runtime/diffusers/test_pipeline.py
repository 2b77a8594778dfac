"""The drop-in against the real classes of diffusers: same arguments, same frames; what it cannot do, by name."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from flowblending import UsageError
from flowblending.contracts.conditions import Source
from flowblending.diffusers import FlowBlendingPipeline, VideoOutput
from flowblending.runtime.diffusers.classes import CLASSES, COMMON
from tests.conftest import SMALLEST, Build
from tests.support import diffusers_reference, manifests
from tests.support.diffusers_reference import relative_error

FRAME_TOLERANCE = 1e-3
LATENT_TOLERANCE = 1e-4
KINDS = ["wan", pytest.param("ltx-0.9.0", marks=pytest.mark.long), "ltx-condition"]
"""Without LTX 0.9.1, whose decoder draws from torch's global generator (see tests/whole/test_parity.py)."""
IMAGE_KINDS = [
    "ltx-condition",
    pytest.param("ltx", marks=pytest.mark.long),
    pytest.param("wan-image", marks=pytest.mark.long),
]
CALL = {"prompt": "A cat walks on the grass.", "negative_prompt": "blurry, 静态", "num_inference_steps": 3}


def test_the_arguments_are_those_of_the_classes() -> None:
    for name, ours in CLASSES.items():
        signature = inspect.signature(getattr(diffusers, name).__call__)
        assert signature.parameters.keys() - {"self"} == COMMON | ours.arguments
        assert signature.parameters["output_type"].default == ours.output_type
    ours_too = inspect.signature(FlowBlendingPipeline.__call__).parameters
    for name in ("WanPipeline", "LTXPipeline", "LTXImageToVideoPipeline"):
        assert not (COMMON | CLASSES[name].arguments) - ours_too.keys()
    first = list(inspect.signature(diffusers.WanPipeline.__call__).parameters)[:6]
    assert list(ours_too)[:6] == first


def test_importing_it_loads_neither_torch_nor_diffusers() -> None:
    code = "import sys, flowblending.diffusers; print(*sorted({'torch', 'diffusers', 'PIL'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, build: Build, checkpoints: Callable[[str], Path]
) -> Iterator[tuple[FlowBlendingPipeline, Any, dict[str, Any]]]:
    """The drop-in, the real class, and the arguments that both are called with."""
    kind = request.param
    size = SMALLEST[kind]
    width, height = map(int, size.size.split("x"))
    real, _ = diffusers_reference.load(checkpoints(kind))
    call = {**CALL, "width": width, "height": height, "num_frames": size.frames}
    if kind != "wan":
        call |= {"frame_rate": 25, "guidance_rescale": 0.3}
    if kind == "ltx-condition":
        call |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
    with FlowBlendingPipeline.from_bundle(build(kind).folder, device="cpu", threads=1) as ours:
        yield ours, real, call


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_an_image_is_taken_as_the_class_takes_it(kind: str, build: Build, checkpoints: Callable[[str], Path]) -> None:
    conditions = () if kind == "wan-image" else (Source.IMAGE,)  # which it is built with anyway
    bundle, folder = build(kind, conditions=conditions), checkpoints(kind) / "large"
    real: Any = getattr(diffusers, bundle.manifest.pipeline.pipeline).from_pretrained(folder, dtype=torch.float32)
    real.set_progress_bar_config(disable=True)
    width, height = map(int, SMALLEST[kind].size.split("x"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3)).astype(np.uint8))
    call: dict[str, Any] = {**CALL, "width": width, "height": height, "num_frames": SMALLEST[kind].frames}
    call["image"] = image
    if kind == "ltx-condition":
        call |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
    # The decoder of LTX 0.9.1 draws from torch's global generator.
    form = "latent" if kind == "ltx" else "np"
    expected = np.asarray(real(**call, generator=seeded(), output_type=form).frames)
    with FlowBlendingPipeline.from_bundle(bundle.folder, device="cpu", threads=1) as ours:

        def made(image: Any, **options: Any) -> Any:
            given = {**call, "image": image, **options}
            return np.asarray(ours(**given, generator=seeded(), output_type=form, schedule="LLL").frames)

        found = made(image)
        assert np.abs(found - expected).max() < FRAME_TOLERANCE
        # Of the video's size, an array is the same image, and so is one of a list.
        array = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)) / 255
        np.testing.assert_array_equal(made(array), found)
        np.testing.assert_array_equal(made([torch.from_numpy(array).permute(2, 0, 1)]), found)
        with pytest.raises(UsageError, match="image is a list of 2, but there are 1 prompts"):
            made([image, image])
        assert np.abs(made(image, fit="crop") - found).max() > FRAME_TOLERANCE


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.slow
def test_frames_are_those_of_the_class(pair: tuple[FlowBlendingPipeline, Any, dict[str, Any]]) -> None:
    ours, real, call = pair
    expected = real(**call, generator=seeded(), output_type="np").frames
    found = ours(**call, generator=seeded(), output_type="np", schedule="LLL")
    assert isinstance(found, VideoOutput)
    assert found.frames.dtype == np.float32
    assert found.frames.shape == expected.shape
    assert np.abs(found.frames - expected).max() < FRAME_TOLERANCE
    assert found[0] is found["frames"] is found.frames
    # The other forms are of the same video, in the form that the real class returns.
    forms = dict.fromkeys(("pt", "pil"), real.video_processor.postprocess_video)
    video = torch.from_numpy(found.frames).permute(0, 4, 1, 2, 3) * 2 - 1
    for kind, convert in forms.items():
        (made,) = ours(**call, generator=seeded(), output_type=kind, schedule="LLL", return_dict=False)
        wanted = convert(video, output_type=kind)
        assert type(made) is type(wanted)
        assert len(made) == len(wanted) == 1
        assert type(made[0]) is type(wanted[0])
        for one, other in zip(made[0], wanted[0], strict=True):
            # An image's values are rounded to 255 steps.
            assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= (1 if kind == "pil" else 1e-5)


@pytest.mark.slow
def test_latents_callbacks_and_several_videos(pair: tuple[FlowBlendingPipeline, Any, dict[str, Any]]) -> None:
    ours, real, call = pair
    seen: dict[str, list[Any]] = {"ours": [], "real": []}

    def look(name: str) -> Callable[..., dict[str, Any]]:
        def shown(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            assert pipe is {"ours": ours, "real": real}[name]
            seen[name].append((index, float(timestep), tensors["latents"].clone()))
            return tensors

        return shown

    expected = real(**call, generator=seeded(), output_type="latent", callback_on_step_end=look("real")).frames
    found = ours(
        **call, generator=seeded(), output_type="latent", callback_on_step_end=look("ours"), schedule="LLL"
    ).frames
    assert found.shape == expected.shape
    assert relative_error(found.numpy(), expected.numpy()) < LATENT_TOLERANCE
    assert len(seen["ours"]) == len(seen["real"]) == 3
    for (index, timestep, latents), (theirs, level, other) in zip(seen["ours"], seen["real"], strict=True):
        assert index == theirs
        assert timestep == pytest.approx(level, abs=1)  # Wan's are rounded to whole numbers
        assert latents.shape == other.shape
        assert relative_error(latents.numpy(), other.numpy()) < LATENT_TOLERANCE
    # Two prompts with one generator: diffusers draws the noise of both at once.
    both = {**call, "prompt": ["A cat.", "A dog."], "num_inference_steps": 2}
    expected = real(**both, generator=seeded(), output_type="latent").frames
    found = ours(**both, generator=seeded(), output_type="latent", schedule="L").frames
    assert relative_error(found.numpy(), expected.numpy()) < LATENT_TOLERANCE
    # A generator each, and torch's own.
    each = ours(**both, generator=[seeded(5), seeded(6)], output_type="latent", schedule="L").frames
    one = {**both, "prompt": "A dog."}
    again = ours(**one, generator=6, output_type="latent", schedule="L").frames
    assert torch.equal(each[1:], again)
    torch.manual_seed(6)
    assert torch.equal(ours(**one, output_type="latent", schedule="L").frames, again)
    if not CLASSES[type(real).__name__].takes_latents:
        with pytest.raises(UsageError, match="latents cannot be honoured: LTXConditionPipeline"):
            ours(**one, latents=again)
        return
    noise = torch.randn(again.shape, generator=seeded(8))
    expected = real(**one, latents=noise, output_type="latent").frames
    found = ours(**one, latents=noise, output_type="latent", schedule="L").frames
    assert relative_error(found.numpy(), expected.numpy()) < LATENT_TOLERANCE


@pytest.mark.slow
def test_interrupted_and_with_embeddings(pair: tuple[FlowBlendingPipeline, Any, dict[str, Any]]) -> None:
    ours, real, call = pair

    def stop(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 1
        return tensors

    words = {name: call[name] for name in ("prompt", "negative_prompt")}
    found = real.encode_prompt(**words, max_sequence_length=ours._sampler.manifest.pipeline.text_length)
    names: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    if len(found) == 4:
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    rest = {name: value for name, value in call.items() if name not in words} | dict(zip(names, found, strict=True))
    rest |= {"callback_on_step_end": stop, "output_type": "np"}
    expected = real(**rest, generator=seeded()).frames
    made = ours(**rest, generator=seeded(), schedule="LLL").frames
    assert ours.interrupt
    assert np.abs(made - expected).max() < FRAME_TOLERANCE


@pytest.mark.slow
def test_a_callback_may_change_latents_where_no_history_is(
    pair: tuple[FlowBlendingPipeline, Any, dict[str, Any]],
) -> None:
    ours, real, call = pair

    def halve(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * (0.5 if index == 0 else 1)}

    asked = {**call, "output_type": "latent", "callback_on_step_end": halve}
    if isinstance(real, diffusers.WanPipeline):
        with pytest.raises(UsageError, match="changed the latents, but unipc remembers earlier steps"):
            ours(**asked, generator=seeded())
        return
    expected = real(**asked, generator=seeded()).frames
    found = ours(**asked, generator=seeded(), schedule="LLL").frames
    assert relative_error(found.numpy(), expected.numpy()) < LATENT_TOLERANCE


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> FlowBlendingPipeline:
    """A bundle whose engines cannot run: whatever is refused is refused before."""
    folder = tmp_path_factory.mktemp("toy") / "toy"
    manifests.write(folder)
    return FlowBlendingPipeline.from_bundle(folder, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "prompt is None, but a text or a list of texts was expected"),
        ({"prompt": []}, r"prompt is \[\], but a text or a list"),
        ({"prompt": " "}, "The prompt is empty"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt is a list of 2, but there are 1 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, but a whole number of steps, at least 1,"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high', but a finite number was expected"),
        ({"width": 16.5}, "width is 16.5, but a whole number, at least 1,"),
        ({"height": 17}, "Size 64x17 was asked for, but this bundle makes 64x32"),
        ({"num_frames": 5}, "5 frames were asked for, but this bundle makes"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0, but a whole number"),
        ({"max_sequence_length": 256}, "max_sequence_length is 256, but this bundle's engines take prompts of 512"),
        ({"output_type": "mp4"}, "output_type is 'mp4', but np, pt, pil or latent was expected"),
        ({"generator": "7"}, "generator is '7', but a torch.Generator, the seed of one"),
        ({"generator": [1, 2]}, "generator is a list of 2, but 1 video was asked for"),
        ({"latents": 5}, "latents is 5, but an array was expected"),
        ({"latents": np.zeros((2, 16, 3, 4, 8))}, r"latents has the shape \[2, 16, 3, 4, 8\], but 1 video"),
        (
            {"latents": np.zeros((1, 7, 16))},
            r"latents has the shape \[1, 7, 16\], but \[1, 96, 16\] or \[1, 16, 3",
        ),
        ({"prompt_embeds": np.zeros((1, 2, 3))}, "prompt and prompt_embeds were both given"),
        ({"prompt": None, "prompt_embeds": np.zeros((2, 3))}, r"prompt_embeds has the shape \[2, 3\], but"),
        ({"attention_kwargs": {}}, "attention_kwargs cannot be honoured: attention is part of the compiled engines"),
        ({"timesteps": [900]}, "timesteps was given, but WanPipeline, which this bundle stands in for, has no such"),
        ({"frame_rate": 25}, "frame_rate was given, but WanPipeline"),
        ({"image": "cat.png"}, "image was given, but WanPipeline"),
        ({"steps": 5}, "Unknown argument 'steps'; diffusers calls it num_inference_steps, and so does this call"),
        ({"seed": 5}, "Unknown argument 'seed'; diffusers calls it generator"),
        ({"shedule": "LSL"}, "Unknown argument 'shedule'; schedule is probably"),
        ({"callback_on_step_end": 5}, "callback_on_step_end is 5, but a function was expected"),
        ({"callback_on_step_end": print, "prompt": ["a", "b"]}, "callback_on_step_end was given and 2 videos"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
            "callback_on_step_end_tensor_inputs names prompt_embeds, but latents alone",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_by_name(toy: FlowBlendingPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toy(**{"prompt": "a cat", **arguments})


def test_what_other_pipelines_have(toy: FlowBlendingPipeline) -> None:
    assert toy.to("cpu") is toy
    for place in ("cuda", torch.device("cuda:1"), torch.bfloat16):
        with pytest.raises(UsageError, match=r"to\(.*\) cannot be honoured: this pipeline runs on cpu"):
            toy.to(place)
    toy.set_progress_bar_config(disable=True)
    assert not hasattr(toy, "transformer_2")
    with pytest.raises(UsageError, match="enable_model_cpu_offload is not there on a FlowBlendingPipeline; leave"):
        toy.enable_model_cpu_offload()
    with pytest.raises(UsageError, match="scheduler cannot be set on a FlowBlendingPipeline; give solver="):
        toy.scheduler = None
    with pytest.raises(UsageError, match="_guidance_scale cannot be set on"):
        toy._guidance_scale = 1.0
