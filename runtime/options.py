"""What a job may say: every option once, with its type, default, bounds, words and who offers it.

The table is the class `Job`: a field is an option, and what is known of it beside name, type and default stands in
its annotation. Command lines (`arguments`), prompt files (`prompt_file`), the Python API, Triton's inputs and
fb-client are made from it, so that an option is added here and used where it has its effect. Standard library only:
every ``--help`` needs it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypedDict, get_args, get_origin, get_type_hints

from flowblending.contracts.conditions import CROP, FITS
from flowblending.runtime.option import CALIBRATE, CLIENT, COMPARE, RUN, Option
from flowblending.runtime.program.caches.parse import OFF
from flowblending.runtime.program.caches.registry import cache_help
from flowblending.runtime.program.solvers.registry import METAVAR, SOLVERS

_ONE_VIDEO: Final = frozenset({RUN, CLIENT})
_FROM_FILES: Final = frozenset({RUN, CLIENT})
"""Programs that read files of this machine, and what is said of these."""

WHAT: Final = "what to generate"
HOW: Final = "how to sample"
OUTPUT: Final = "what to write"

FAMILY: Final = "the model family's"
FAMILY_HELP: Final = (
    "A default that is the model family's is what the checkpoints' own pipeline does, such as 50 steps; "
    "fb-run BUNDLE --dry-run prints them all."
)

AUTO: Final = "auto"
"""Of the schedule: what a bundle was calibrated to, else the second model between two stages of the first. Of tiles:
those that it was built for. Of the size: the one nearest in shape to the video or the image that is given."""

MOST_SEED: Final = 2**64 - 1
MAX_FRAME_RATE: Final = 1000
LEAST_SHIFT: Final = 0.01
MOST_SHIFT: Final = 100.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make. None means the default of the bundle's family.

    Attributes:
        seed: of the initial noise, which is the one diffusers draws for the same seed on the CPU.
        size: such as ``832x480``, and
        frames: of the video: one that the bundle was built for. The size ``auto`` is the one whose shape is nearest to
            that of ``video``.
        image: files of images and clips that the video keeps to: ``cat.png`` from its first frame on,
            ``end.png@120:0.8`` from another one and with a strength from 0 to 1.
        video: the name of a video, an animated image, a folder of images or an image to begin from, with ``strength``.
        mask: likewise of its mask, where the models take the video as a control: white where it is to be made anew.
        reference: images of who or what the video shows, where the models take a control.
        control_scale: how much that control counts: a number, or for each hint of a model one.
        strength: how much of the noise it gets: the share of the steps that is made, the last ones.
        fit: how its frames come to the size: ``crop`` and ``letterbox`` keep their shape, ``stretch`` does not, as
            diffusers.
        resample_fps: the frames per second at which its frames are taken; None for all of them as they are.
        steps: of the run; stages with timesteps of their own stand in for as many as they say.
        schedule: ``auto`` (what the bundle was calibrated to, else ``LSL`` of its first two models), ``LSL``,
            ``L20 S20 L10``, or with guidance and timesteps of a stage's own, ``L20 S20:g1:t909.4,725 L10``; a stage may
            say where it ends in place of its steps, ``L@0.82 S@0.43 L``.
        boundaries: between the stages of a named schedule: noise levels (``0.82,0.43``), timesteps (``t818,t429``) or
            shares of the steps (``40%,80%``).
        shift: of the noise levels, s -> shift * s / (1 + (shift - 1) * s); ``flow_shift`` of diffusers.
        guidance: scale of classifier-free guidance; 1 or less turns it off.
        guidance_2: that of the expert for low noise, where a model has two experts; ``guidance_scale_2`` of diffusers.
        batched_guidance: both guidance branches in one call of the engine.
        solver: ``unipc``, ``dpm++`` or ``euler``.
        frame_rate: of the video, in frames per second.
        guidance_rescale: phi of guidance rescale (arXiv 2305.08891, section 3.4); 0 for none.
        decode_timestep: what a timestep-conditioned VAE decoder (LTX-Video's from 0.9.1 on) is told.
        decode_noise_scale: the share of noise in the latents that such a decoder sees.
        vae_tiling: tiles that the video is decoded in: ``auto`` (the bundle's), ``off``, or ``256x256+64``; see
            `flowblending.engine.bundle.vae_tiling`.
        cache: which engine calls to leave out, such as ``taylor:1``; see `flowblending.runtime.program.caches`.
    """

    prompt: Annotated[
        str,
        Option(
            section=WHAT,
            help="what the video shows",
            metavar="TEXT",
            example="A cat walks on the grass",
            blank="The prompt is empty; say what the video shows.",
            aliases=("text", "caption", "positive_prompt", "text_prompt", "prompts"),
            programs=_ONE_VIDEO,
        ),
    ]
    negative_prompt: Annotated[
        str | None,
        Option(
            section=WHAT,
            help="what it should not show",
            usual=FAMILY,
            metavar="TEXT",
            example="blurry",
            aliases=("negative", "neg", "neg_prompt", "uncond", "n_prompt"),
        ),
    ] = None
    seed: Annotated[
        int,
        Option(
            section=WHAT,
            help="of the noise; the same as in diffusers",
            usual="0",
            words={
                CALIBRATE: "of the first line; one more for every line after it that has none of its own (default: 0)",
                COMPARE: "of every prompt's noise (default: 0)",
            },
            metavar="N",
            least=0,
            most=MOST_SEED,
            example=42,
            aliases=("random_seed", "generator", "noise_seed", "manual_seed"),
        ),
    ] = 0
    size: Annotated[
        str | None,
        Option(
            section=WHAT,
            help="of the video, if the bundle has several; auto: the one nearest in shape to the video or image given",
            usual="its first",
            metavar="WxH",
            example="832x480",
            aliases=("resolution", "width", "height", "video_size"),
        ),
    ] = None
    frames: Annotated[
        int | None,
        Option(
            section=WHAT,
            help="of the video, likewise",
            usual="its first",
            metavar="N",
            unit="frames",
            least=1,
            example=81,
            aliases=("num_frames", "frame_num", "video_length", "length", "n_frames"),
        ),
    ] = None
    image: Annotated[
        tuple[str, ...],
        Option(
            section=WHAT,
            help="an image or a clip that the video keeps to from a frame on, with a strength up to 1: cat.png, "
            "end.png@120:0.8; may be given several times",
            metavar="FILE[@FRAME[:S]]",
            example="cat.png",
            aliases=("images", "init_image", "input_image", "image_path", "first_frame", "conditions"),
            programs=_FROM_FILES,
            file=True,
            placed=True,
            served=False,
        ),
    ] = ()
    video: Annotated[
        str | None,
        Option(
            section=WHAT,
            help="a video (MP4, MOV, WebM, GIF, ...) or a folder of images to begin from, with --strength; of a bundle "
            "that takes a control (VACE), that control",
            metavar="FILE",
            example="in.mp4",
            blank="The name of the video is empty; give that of a file.",
            aliases=("input_video", "init_video", "source_video", "video_path"),
            programs=_FROM_FILES,
            file=True,
            served=False,
        ),
    ] = None
    mask: Annotated[
        str | None,
        Option(
            section=WHAT,
            help="of such a bundle: a video or a folder of images, white where it is to be made anew, black where the "
            "video stays",
            usual="everywhere",
            metavar="FILE",
            example="white.mp4",
            blank="The name of the mask is empty; give that of a file.",
            aliases=("mask_video", "video_mask", "inpaint_mask", "src_mask"),
            programs=_FROM_FILES,
            file=True,
            served=False,
        ),
    ] = None
    reference: Annotated[
        tuple[str, ...],
        Option(
            section=WHAT,
            help="of such a bundle: an image of who or what the video shows; may be given several times",
            metavar="FILE",
            example="face.png",
            aliases=("references", "reference_images", "ref_images", "src_ref_images"),
            programs=_FROM_FILES,
            file=True,
            served=False,
        ),
    ] = ()
    control_scale: Annotated[
        str | None,
        Option(
            section=WHAT,
            help="of such a bundle: how much the control counts; one number, or one for each hint of a model: "
            '"large=1,1,0.9,0.9,0.8,0.8,0.7,0.7 small=0.9"',
            usual="1",
            metavar="S",
            example="0.8",
            blank="The control scale is empty; give a number.",
            aliases=("conditioning_scale", "control_strength", "vace_scale", "context_scale"),
            programs=_FROM_FILES,
        ),
    ] = None
    strength: Annotated[
        float | None,
        Option(
            section=WHAT,
            help="how far the result may be from it: 0.6 makes the last 60 %% of the steps",
            metavar="S",
            least=0,
            most=1,
            example=0.6,
            aliases=("denoise", "denoise_strength", "denoising_strength", "noise_strength"),
            programs=_FROM_FILES,
        ),
    ] = None
    fit: Annotated[
        str,
        Option(
            section=WHAT,
            help="how its frames come to the size: cut at the sides, between black bars, or stretched as in diffusers",
            usual=CROP,
            choices=FITS,
            example=CROP,
            aliases=("resize_mode", "resize", "crop_mode"),
            programs=_FROM_FILES,
        ),
    ] = CROP
    resample_fps: Annotated[
        float | None,
        Option(
            section=WHAT,
            help="frames per second at which its frames are taken",
            usual="all of them as they are",
            metavar="N",
            unit="frames per second",
            least=1,
            most=MAX_FRAME_RATE,
            example=16.0,
            aliases=("resample", "force_rate", "input_fps"),
            programs=_FROM_FILES,
        ),
    ] = None
    steps: Annotated[
        int | None,
        Option(
            section=HOW,
            help="sampling steps",
            usual=FAMILY,
            metavar="N",
            unit="steps",
            least=1,
            example=50,
            aliases=("num_inference_steps", "inference_steps", "sampling_steps", "sample_steps", "num_steps"),
        ),
    ] = None
    schedule: Annotated[
        str,
        Option(
            section=HOW,
            help="letters of the bundle's models, such as LSL, with the model family's boundaries; \"L20 S20 L10\", "
            'which says its number of steps; or with the ends of stages, "L@0.82 S@0.43 L"; stages may have a guidance '
            'scale and timesteps of their own, "L20 S20:g1:t750,625 L10", or a preset of published ones, '
            '"L20 S20:lightning4 L10"',
            usual="what fb-calibrate found for the bundle, else LSL of its first two models",
            metavar="S",
            example="LSL",
            aliases=("stages", "model_schedule"),
            programs=_ONE_VIDEO,
        ),
    ] = AUTO
    boundaries: Annotated[
        str | None,
        Option(
            section=HOW,
            help="where the stages of a named schedule end: noise levels, timesteps (t818,t429) or shares of the steps "
            "(40%%,80%%)",
            usual="the model family's shares",
            metavar="B,...",
            example="0.82,0.43",
            aliases=("boundary", "boundary_ratio", "boundary_step_index", "switch_threshold"),
            programs=_ONE_VIDEO,
        ),
    ] = None
    shift: Annotated[
        float | None,
        Option(
            section=HOW,
            help="shift of the noise levels; more of it spends more steps at high noise",
            usual="the bundle's",
            metavar="F",
            least=LEAST_SHIFT,
            most=MOST_SHIFT,
            example=5.0,
            aliases=("flow_shift", "sample_shift", "time_shift", "shift_scale"),
        ),
    ] = None
    guidance: Annotated[
        float | None,
        Option(
            section=HOW,
            help="guidance scale; 1 turns it off",
            usual=FAMILY,
            metavar="G",
            example=5.0,
            aliases=("guidance_scale", "cfg", "cfg_scale", "sample_guide_scale", "guide_scale", "true_cfg_scale"),
        ),
    ] = None
    guidance_2: Annotated[
        float | None,
        Option(
            section=HOW,
            help="guidance scale of the expert for low noise, in models of two experts (Wan 2.2 A14B)",
            usual="the guidance scale",
            metavar="G",
            example=3.0,
            aliases=("guidance_scale_2", "cfg_2", "low_noise_guidance", "guidance_low"),
        ),
    ] = None
    guidance_rescale: Annotated[
        float | None,
        Option(
            section=HOW,
            help="how far the guided velocity is scaled to the spread of the conditional one, from 0 to 1",
            usual="the bundle's, 0 for none",
            metavar="PHI",
            least=0,
            most=1,
            example=0.7,
            aliases=("rescale_scale", "rescaling_scale", "cfg_rescale", "guidance_rescale_factor"),
        ),
    ] = None
    batched_guidance: Annotated[
        bool | None,
        Option(
            section=HOW,
            help="run both guidance branches in one call, or one after the other",
            usual=FAMILY,
            example=True,
            aliases=("batch_cfg", "batched_cfg"),
        ),
    ] = None
    solver: Annotated[
        str | None,
        Option(
            section=HOW,
            help="method of integration",
            usual=FAMILY,
            metavar=METAVAR,
            registry=SOLVERS,
            example="unipc",
            aliases=("sampler", "scheduler", "sample_solver", "sampler_name"),
        ),
    ] = None
    cache: Annotated[
        str,
        Option(
            section=HOW,
            help=cache_help(),
            usual="off",
            metavar="POLICY",
            example="scm:slow",
            aliases=("step_cache", "cache_policy"),
            programs=_ONE_VIDEO,
        ),
    ] = OFF
    decode_timestep: Annotated[
        float | None,
        Option(
            section=HOW,
            help="what a timestep-conditioned VAE decoder is told (LTX-Video 0.9.1 and later)",
            usual="the bundle's, 0.05",
            metavar="T",
            least=0,
            most=1,
            example=0.05,
            aliases=("vae_timestep", "decoder_timestep"),
        ),
    ] = None
    decode_noise_scale: Annotated[
        float | None,
        Option(
            section=HOW,
            help="share of noise in the latents that such a decoder sees",
            usual="the bundle's, 0.025",
            metavar="S",
            least=0,
            most=1,
            example=0.025,
            aliases=("decode_noise", "decoder_noise_scale", "noise_scale"),
        ),
    ] = None
    vae_tiling: Annotated[
        str,
        Option(
            section=HOW,
            help="tiles that the video is decoded in, where whole frames take too much memory, and how many pixels "
            "neighbours share: auto, off or such as 256x256+64",
            usual="auto: as the bundle was built, and in tiles where whole frames do not fit",
            metavar="WxH[+O]",
            example="256x256+64",
            aliases=("enable_tiling", "vae_tile_size", "tile_size", "tiled_decode"),
        ),
    ] = AUTO
    frame_rate: Annotated[
        float | None,
        Option(
            section=OUTPUT,
            help="frames per second",
            usual=FAMILY,
            flag="--fps",
            metavar="N",
            unit="frames per second",
            least=1,
            most=MAX_FRAME_RATE,
            example=16.0,
            aliases=("fps", "framerate", "video_fps", "sample_fps"),
        ),
    ] = None

    def file_stem(self, edition: str) -> str:
        """A readable file name for the job's video on a bundle: the same for the same video, else another.

        Args:
            edition: of the bundle's manifest.
        """
        import hashlib  # takes longer than all of this file, and --help needs none

        words = re.sub(r"[^\w]+", "-", self.prompt.lower()).strip("-")[:40].strip("-")
        content = json.dumps([edition, dataclasses.asdict(self)], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return "-".join(filter(None, (words, digest)))


class JobOptions(TypedDict, total=False):
    """A job's fields beside the prompts, as keywords that a type checker knows. A test compares them with `Job`."""

    seed: int
    size: str | None
    frames: int | None
    image: str | Sequence[str]
    video: str | None
    mask: str | None
    reference: str | Sequence[str]
    control_scale: str | None
    strength: float | None
    fit: str
    resample_fps: float | None
    steps: int | None
    schedule: str
    boundaries: str | None
    shift: float | None
    guidance: float | None
    guidance_2: float | None
    guidance_rescale: float | None
    batched_guidance: bool | None
    solver: str | None
    cache: str
    decode_timestep: float | None
    decode_noise_scale: float | None
    vae_tiling: str
    frame_rate: float | None


JOB: type[Job] = Job
"""The class whose fields are the options."""

PREVIEW: Final = Option(
    name="preview_every",
    kind=int,
    section=WHAT,
    help="steps that make one picture of what the video is going to look like",
    metavar="N",
    unit="steps",
    least=1,
    example=5,
)
TEXT: Final = Option(
    name="text",
    section=WHAT,
    help="to be encoded",
    example="A cat walks on the grass",
)


def options() -> tuple[Option, ...]:
    """All options of a job, in the order of the fields."""
    job: Any = JOB  # a class is hashable, which mypy denies those of dataclasses
    return _options(job)


def served_options() -> tuple[Option, ...]:
    """Those that servers offer, whose machine is not their users'."""
    return tuple(option for option in options() if option.served)


@functools.cache
def _options(job: Any) -> tuple[Option, ...]:
    hints = get_type_hints(job, include_extras=True)
    return tuple(_option(each, hints[each.name]) for each in dataclasses.fields(job))


def _option(one: dataclasses.Field[Any], hint: Any) -> Option:
    """What the annotation tells, completed by what the field does."""
    told: Option
    kind, told = get_args(hint)
    several = get_origin(kind) is tuple
    kinds = get_args(kind) if several or get_origin(kind) is types.UnionType else (kind,)
    (plain,) = (each for each in kinds if each not in (type(None), Ellipsis))
    default = None if one.default is dataclasses.MISSING else one.default
    nullable = type(None) in kinds
    return dataclasses.replace(told, name=one.name, kind=plain, nullable=nullable, several=several, default=default)
