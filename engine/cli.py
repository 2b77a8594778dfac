"""``fb-build-engines``: two checkpoints in, one bundle out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending

if TYPE_CHECKING:
    from flowblending.engine.bundle import Bundle
    from flowblending.engine.console import Console

BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime")


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-build-engines``."""
    parser = argparse.ArgumentParser(
        prog="fb-build-engines",
        description="Compile a large and a small video diffusion checkpoint into one bundle of engines for fb-run.",
        epilog="Example: fb-build-engines --large Wan-AI/Wan2.1-T2V-14B-Diffusers "
        "--small Wan-AI/Wan2.1-T2V-1.3B-Diffusers --out wan --size 832x480 --frames 81",
    )
    parser.add_argument("--large", required=True, metavar="DIR_OR_HUB_ID", help="diffusers pipeline: the large model")
    parser.add_argument(
        "--small",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="the small model: a diffusers pipeline or transformer folder with the same latents and text encoder",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="BUNDLE", help="folder to write the bundle to")
    parser.add_argument("--size", metavar="WxH", help="video size in pixels (default: the family's)")
    parser.add_argument("--frames", type=int, metavar="N", help="video frames (default: the family's)")
    parser.add_argument(
        "--precision",
        metavar="P",
        help="fp32, fp16, fp16-mixed (fp16 with fp32 between the layers, where fp16 overflows) or bf16 for both "
        "transformers, or per component: large=bf16,small=fp16,text_encoder=bf16,vae=fp32 "
        "(default: bf16 with a fp32 VAE; fp32 for onnxruntime)",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="tensorrt",
        help="tensorrt compiles on the GPU that will run it; tensorrt-rtx also ahead of time, without a GPU; "
        "onnxruntime runs on CPUs and GPUs (default: %(default)s)",
    )
    parser.add_argument("--target", metavar="SM,...", help="tensorrt-rtx: GPU architectures, such as sm89,sm120")
    distilled = parser.add_argument_group("a model that was distilled to few steps")
    for model in ("large", "small"):
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
    parser.add_argument(
        "--teacache",
        action="store_true",
        help="add the small graphs with which fb-calibrate --cache teacache measures its distances",
    )
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def build(arguments: argparse.Namespace) -> None:
    """Build the bundle that the arguments ask for, and say how to use it."""
    from flowblending.engine.build import BuildRequest, build_bundle, split_targets
    from flowblending.engine.console import Console
    from flowblending.engine.sampling import read_sampling

    console = Console(quiet=arguments.quiet)
    wishes = {
        "large": read_sampling("large", arguments.large_timesteps, arguments.large_guidance),
        "small": read_sampling("small", arguments.small_timesteps, arguments.small_guidance),
    }
    request = BuildRequest(
        large=arguments.large,
        small=arguments.small,
        out=arguments.out,
        size=arguments.size,
        frames=arguments.frames,
        precision=arguments.precision,
        backend=arguments.backend,
        targets=split_targets(arguments.target),
        sampling={model: wish for model, wish in wishes.items() if wish is not None},
        teacache=arguments.teacache,
    )
    _summary(build_bundle(request, console), console)


def _summary(bundle: Bundle, console: Console) -> None:
    geometry = bundle.manifest.geometry
    rows = [
        (
            name,
            str(component.spec.precision),
            f"{component.backend} {component.backend_version}",
            " ".join(component.targets) or "any",
            f"{sum(file.bytes for file in component.files) / 1e6:.1f} MB",
        )
        for name, component in bundle.manifest.components.items()
    ]
    console.table(
        f"{bundle.folder}: {bundle.manifest.pipeline.family} {geometry.width}x{geometry.height}, "
        f"{geometry.frames} frames",
        ("component", "precision", "back end", "target", "size"),
        rows,
    )
    for name, component in bundle.manifest.components.items():
        if component.sampling is not None:
            console.log(f"{name}: {component.sampling}")
    console.log(f'Run it: fb-run {bundle.folder} --prompt "..."')


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-build-engines``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.engine.console import run_program

    run_program(lambda: build(parsed))


if __name__ == "__main__":
    main()
