"""``fb-build-engines``: two checkpoints in, one bundle out; and the cache of finished components."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL
from flowblending.engine.backends.registry import BACKENDS
from flowblending.system.command_line import Parser, add_console

if TYPE_CHECKING:
    from flowblending.contracts.model_sampling import ModelSampling

_FAMILY = "model family's own"
CACHE_VARIABLE = "FLOWBLENDING_CACHE_DIR"


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-build-engines``."""
    parser = Parser(
        prog="fb-build-engines",
        description="Compile video diffusion checkpoints, as a rule a large and a small one, into one bundle of "
        "engines for fb-run.",
        example="fb-build-engines --large Wan-AI/Wan2.1-T2V-14B-Diffusers \\\n"
        "  --small Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\\n"
        "  --out wan --size 832x480 --frames 81",
        aliases={"--output": "--out", "--num-frames": "--frames", "--resolution": "--size", "--dtype": "--precision"},
        allow_abbrev=False,  # fb-run's --cache means something else than --cache-dir
    )
    _add_main(parser.add_argument_group("what to build"))
    distilled = parser.add_argument_group("a model that was distilled to few steps")
    for model in (LARGE, SMALL):
        distilled.add_argument(
            f"--{model}-timesteps",
            metavar="T,...",
            help=f"the {model} model's own timesteps, such as 1000,993.7,987.5,981.2,975,909.4,725,421.9: its stages "
            "visit those that lie in them, in place of the run's steps",
        )
        distilled.add_argument(
            f"--{model}-guidance",
            metavar="G",
            help=f"the {model} model's own guidance scale; 1 for none (default: the run's)",
        )
    distilled.add_argument(
        "--model-timesteps", action="append", metavar="NAME=T,...", help="the same of a --model", default=[]
    )
    distilled.add_argument(
        "--model-guidance", action="append", metavar="NAME=G", help="the same of a --model", default=[]
    )
    _add_fp8(parser.add_argument_group("fp8"))
    _add_cache_options(parser)
    add_console(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def _add_main(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--large",
        metavar="SOURCE",
        help="the large model: a diffusers pipeline folder, ORG/NAME[/FOLDER or FILE][@REVISION] of the hub, or a "
        "transformer alone: a folder, or a .safetensors or .gguf file",
    )
    group.add_argument(
        "--small",
        metavar="SOURCE",
        help="the small model, likewise, with the same latents and text encoder",
    )
    group.add_argument(
        "--base",
        metavar="SOURCE",
        help="the pipeline to take VAE, text encoder, tokenizer and scheduler from (default: that of the first model "
        "that is a whole pipeline)",
    )
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[:X]=DIR_OR_HUB_ID",
        help="another model, likewise, which schedules write as X (default: the first letter of its name); give it as "
        "often as there are models. The first model of all is what others are measured by",
    )
    group.add_argument(
        "--lora",
        action="append",
        metavar="[MODEL=]FILE[:STRENGTH],...",
        help="fuse LoRA files into models: large=style.safetensors:0.8,small=style_small.safetensors; without MODEL "
        "into the one whose shapes it has; may be given several times",
    )
    group.add_argument("--out", type=Path, metavar="BUNDLE", help="folder to write the bundle to")
    group.add_argument(
        "--prove",
        type=Path,
        metavar="BUNDLE",
        help="build nothing, but run a bundle's engines on the GPU that they are for, and complete its report.json",
    )
    group.add_argument(
        "--size",
        metavar="WxH,...",
        help="video size in pixels; several, of which the first is fb-run's default: 832x480,480x832; or a range: "
        "480x288..832x480, or with what is to be fastest in the middle, 480x288..640x384..832x480 (default: "
        f"the {_FAMILY}: 832x480 for Wan, 704x480 for LTX-Video)",
    )
    group.add_argument(
        "--frames",
        metavar="N,...",
        help="video frames, likewise: 81, 49,81 or 17..81, with every size "
        f"(default: the {_FAMILY}: 81 for Wan, 161 for LTX-Video)",
    )
    group.add_argument(
        "--precision",
        metavar="P",
        help="fp32, fp16, fp16-mixed (fp16 with fp32 between the layers, where fp16 overflows), bf16 or fp8 (linear "
        "layers of the blocks) for every transformer, or per component: large=bf16,small=fp8,text_encoder=bf16; or "
        "fp8-middle: --large alone as both models, the small one in fp8 "
        "(default: bf16 with a fp32 VAE; for onnxruntime fp32, and fp16-mixed where it has a GPU)",
    )
    group.add_argument(
        "--backend",
        type=BACKENDS.argument,
        metavar="{" + ",".join(BACKENDS.built_in) + "}",
        default="tensorrt",
        help="; ".join(f"{name} {BACKENDS.get(name).help}" for name in BACKENDS.built_in) + " (default: %(default)s)",
    )
    group.add_argument(
        "--pipeline",
        metavar="CLASS",
        help="diffusers pipeline class to run the checkpoints with, if it is not the one that their model_index.json "
        "names: LTX-Video 0.9.5 is published as LTXPipeline and meant for LTXConditionPipeline",
    )
    group.add_argument(
        "--shift",
        type=float,
        metavar="F",
        help="shift of the noise levels that runs take unless they say another (default: the checkpoint's)",
    )
    group.add_argument(
        "--batched-guidance",
        action=argparse.BooleanOptionalAction,
        help="both guidance branches in one call, in runs that do not say otherwise; plans are compiled for what the "
        "bundle has, and with it for both (default: the model family's)",
    )
    group.add_argument(
        "--conditions",
        metavar="image,...",
        help="what the bundle takes beside text: image or video, for which the VAE's encoder is built in (LTX-Video); "
        "checkpoints of image-to-video classes need no asking",
    )
    group.add_argument(
        "--vae-tiling",
        metavar="WxH[+O]",
        help="compile the VAE decoder for tiles of so many pixels, of which neighbours share O (64), where whole "
        "frames take too much memory: 256x256 (default: off)",
    )
    group.add_argument(
        "--weight-streaming",
        action="store_true",
        help="plans whose weights need not all be in the GPU's memory: fb-run --memory stream leaves those in the "
        "host's that do not fit; without CUDA graphs (tensorrt and tensorrt-rtx)",
    )
    group.add_argument("--target", metavar="SM,...", help="tensorrt-rtx: GPU architectures, such as sm89,sm120")
    group.add_argument(
        "--teacache",
        action="store_true",
        help="add the small graphs with which fb-calibrate --cache teacache measures its distances",
    )


def _add_fp8(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fp8-attention",
        action="store_true",
        help="experimental: attention of the fp8 blocks in fp8 too, where the compiler has one kernel for it "
        "(tensorrt and tensorrt-rtx)",
    )
    group.add_argument(
        "--fp8-keep",
        metavar="N",
        help="blocks at either end that stay in 16 bits: a number, or large=3,small=1 "
        "(default: by the number of blocks, such as 3 of 40 and 2 of 30)",
    )
    group.add_argument(
        "--fp8-calibration",
        type=Path,
        metavar="FILE",
        help="take the ranges from an fp8_calibration.json of the same weights",
    )
    group.add_argument(
        "--fp8-prompts",
        type=Path,
        metavar="FILE",
        help="prompts to calibrate on, one a line (default: four built-in ones)",
    )
    group.add_argument(
        "--fp8-schedule",
        metavar="S",
        help="each model is calibrated at its own steps of this schedule (default: LSL)",
    )
    group.add_argument("--fp8-steps", type=int, metavar="N", help=f"(default: the {_FAMILY}: 50)")
    group.add_argument("--fp8-size", metavar="WxH", help="of the videos to calibrate on (default: the bundle's)")
    group.add_argument("--fp8-frames", type=int, metavar="N", help="of the videos to calibrate on, likewise")
    group.add_argument(
        "--fp8-percentile",
        type=float,
        metavar="P",
        help="of the absolute values in a call, beyond which they are clipped (default: 100, the largest)",
    )
    group.add_argument(
        "--fp8-margin", type=float, metavar="M", help="room above the percentile, as a factor (default: 1.1)"
    )


def _add_cache_options(parser: argparse.ArgumentParser) -> None:
    cache = parser.add_argument_group(
        "cache", "Finished components are kept for other bundles and for builds that were interrupted."
    )
    cache.add_argument(
        "--cache-dir",
        type=_folder,
        metavar="DIR",
        # A folder as the option makes one of its text: what is otherwise looks as if it had been given.
        default=Path(found) if (found := os.environ.get(CACHE_VARIABLE)) else None,
        help=f"(default: ${CACHE_VARIABLE}, else ~/.cache/flowblending/components)",
    )
    cache.add_argument("--no-cache", action="store_true", help="build without it, and keep nothing")
    cache.add_argument("--list-cache", action="store_true", help="show what is in it, and build nothing")
    cache.add_argument(
        "--prune",
        metavar="WHAT",
        help="remove from it what has not been used for an age (30d, 12h), what was used longest ago until a size is "
        "left (50GB), or all; bundles stay whole; build nothing",
    )


def _folder(text: str) -> Path:
    """A script's empty variable is not the folder that it runs in."""
    if not text:
        raise argparse.ArgumentTypeError("a folder was expected, but its name is empty")
    return Path(text)


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what argparse cannot: a build without its checkpoints, and a build of nothing with some."""
    models = arguments.large or arguments.small or arguments.model or None
    needed = {"--large (or --model)": models, "--out": arguments.out}
    others = {
        "--prove": arguments.prove is not None,
        "--list-cache": arguments.list_cache,
        "--prune": arguments.prune is not None,
    }
    asked = [name for name, given in others.items() if given]
    if not asked:
        missing = ", ".join(name for name, value in needed.items() if value is None)
        if missing:
            parser.error(f"the following arguments are required: {missing}")
        return
    allowed = (
        {"quiet", "json", "prove"}
        if arguments.prove is not None
        else {"quiet", "json", "cache_dir", "list_cache", "prune"}
    )
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(arguments).items()
        if name not in allowed | {other.lstrip("-").replace("-", "_") for other in asked}
        and value != parser.get_default(name)
    ]
    given += asked[1:]
    if given:
        parser.error(f"{asked[0]} builds nothing; leave out {', '.join(given)}")


def keep_house(arguments: argparse.Namespace) -> None:
    """``--list-cache`` and ``--prune``."""
    from flowblending.engine.backends.tensorrt.kept import kept_files
    from flowblending.engine.store import prune
    from flowblending.engine.store.folder import chosen_folder
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet, document=arguments.json)
    folder = chosen_folder(arguments.cache_dir)
    if arguments.list_cache:
        prune.show_list(folder, console, kept_files())
    else:
        prune.prune(folder, prune.parse_rule(arguments.prune), console, kept_files())


def build(arguments: argparse.Namespace) -> None:
    """Build the bundle that the arguments ask for, and say how to use it."""
    from flowblending.engine.build.build import build_bundle
    from flowblending.engine.build.fp8.options import Fp8Options
    from flowblending.engine.build.lora import read_loras
    from flowblending.engine.build.request import BuildRequest, named_models, read_conditions, split_targets
    from flowblending.engine.build.summary import show_bundle
    from flowblending.engine.bundle.bundle import check_outside
    from flowblending.engine.store.folder import usable_folder
    from flowblending.runtime.option_values import COMMAND_LINE, read_options
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet, document=arguments.json)
    if arguments.cache_dir is not None and not arguments.no_cache:
        check_outside(Path(arguments.cache_dir))
    request = BuildRequest(
        models=named_models(arguments.large, arguments.small, arguments.model, _sampling(arguments)),
        base=arguments.base,
        out=arguments.out,
        size=arguments.size,
        frames=arguments.frames,
        precision=arguments.precision,
        backend=arguments.backend,
        targets=split_targets(arguments.target),
        pipeline=arguments.pipeline,
        shift=read_options({"shift": arguments.shift}, COMMAND_LINE)["shift"],
        batched_guidance=arguments.batched_guidance,
        conditions=read_conditions(arguments.conditions),
        loras=read_loras(arguments.lora or ()),
        teacache=arguments.teacache,
        vae_tiling=arguments.vae_tiling,
        weight_streaming=arguments.weight_streaming,
        fp8=Fp8Options(
            attention=arguments.fp8_attention,
            keep=arguments.fp8_keep,
            calibration=arguments.fp8_calibration,
            prompts=arguments.fp8_prompts,
            schedule=arguments.fp8_schedule,
            steps=arguments.fp8_steps,
            size=arguments.fp8_size,
            frames=arguments.fp8_frames,
            percentile=arguments.fp8_percentile,
            margin=arguments.fp8_margin,
        ),
        cache=None if arguments.no_cache else usable_folder(arguments.cache_dir, console),
    )
    show_bundle(build_bundle(request, console), console)


def _sampling(arguments: argparse.Namespace) -> dict[str, ModelSampling]:
    """What models were distilled to, by name."""
    from flowblending.contracts.model_sampling import read_sampling

    timesteps = {LARGE: arguments.large_timesteps, SMALL: arguments.small_timesteps}
    guidance = {LARGE: arguments.large_guidance, SMALL: arguments.small_guidance}
    for option, texts, found in (
        ("--model-timesteps", arguments.model_timesteps, timesteps),
        ("--model-guidance", arguments.model_guidance, guidance),
    ):
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise UsageError(f"{option} {text} was given, but NAME=VALUE was expected; name one of the models.")
            if found.get(name) is not None:
                raise UsageError(f"{option} was given twice for the model {name}; leave one out.")
            found[name] = value
    sampling = {name: read_sampling(name, timesteps.get(name), guidance.get(name)) for name in timesteps | guidance}
    return {name: each for name, each in sampling.items() if each is not None}


def prove(arguments: argparse.Namespace) -> None:
    """Complete the report of a bundle on its GPU, and show it."""
    from flowblending.engine.build.proof.prove import prove_bundle
    from flowblending.engine.build.proof.report_build import check_report
    from flowblending.engine.build.proof.table import proof_document, show_report
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet, document=arguments.json)
    with console.phase("Proving") as progress:
        report = prove_bundle(arguments.prove, progress)
    check_report(report, console)
    show_report(report, console)
    console.document("fb-build-engines", {"bundle": arguments.prove, "proof": proof_document(report)})


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-build-engines``."""
    options = parser()
    parsed = options.parse_args(sys.argv[1:] if arguments is None else arguments)
    check(options, parsed)
    from flowblending.system.console import run_program

    if parsed.prove is not None:
        run_program(lambda: prove(parsed))
    run_program(lambda: keep_house(parsed) if parsed.list_cache or parsed.prune is not None else build(parsed))


if __name__ == "__main__":
    main()
