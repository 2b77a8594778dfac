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
        help="fp32, fp16, fp16-mixed (fp16 with fp32 between the layers, where fp16 overflows), bf16 or fp8 (linear "
        "layers of the blocks) for both transformers, or per component: large=bf16,small=fp8,text_encoder=bf16 "
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
    _add_fp8(parser.add_argument_group("fp8"))
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def _add_fp8(group: argparse._ArgumentGroup) -> None:
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
    group.add_argument("--fp8-steps", type=int, metavar="N", help="(default: the family's)")
    group.add_argument(
        "--fp8-percentile",
        type=float,
        metavar="P",
        help="of the absolute values in a call, beyond which they are clipped (default: 100, the largest)",
    )
    group.add_argument(
        "--fp8-margin", type=float, metavar="M", help="room above the percentile, as a factor (default: 1.1)"
    )


def build(arguments: argparse.Namespace) -> None:
    """Build the bundle that the arguments ask for, and say how to use it."""
    from flowblending.engine.build import build_bundle
    from flowblending.engine.console import Console
    from flowblending.engine.fp8_options import Fp8Options
    from flowblending.engine.request import BuildRequest, split_targets

    console = Console(quiet=arguments.quiet)
    request = BuildRequest(
        large=arguments.large,
        small=arguments.small,
        out=arguments.out,
        size=arguments.size,
        frames=arguments.frames,
        precision=arguments.precision,
        backend=arguments.backend,
        targets=split_targets(arguments.target),
        fp8=Fp8Options(
            keep=arguments.fp8_keep,
            calibration=arguments.fp8_calibration,
            prompts=arguments.fp8_prompts,
            schedule=arguments.fp8_schedule,
            steps=arguments.fp8_steps,
            percentile=arguments.fp8_percentile,
            margin=arguments.fp8_margin,
        ),
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
    console.log(f'Run it: fb-run {bundle.folder} --prompt "..."')


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-build-engines``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.engine.console import run_program

    run_program(lambda: build(parsed))


if __name__ == "__main__":
    main()
