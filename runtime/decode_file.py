"""``fb-run --decode``: the latents that a run has saved, by this program or the C++ library, to a video."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Final

from flowblending import UsageError
from flowblending.runtime.decode_run import DecodeRun
from flowblending.runtime.events import FramesEvent, LoadEvent, WarningEvent
from flowblending.runtime.media.latents import read_latents
from flowblending.runtime.option import RUN
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.unused import unused_flags, unused_in_decoding
from flowblending.system.console import Console

TAKEN: Final = frozenset(
    (
        *("bundle", "decode", "seed", "decode_timestep", "decode_noise_scale", "vae_tiling", "frame_rate", "out"),
        *("device", "threads", "verify", "quiet", "json"),
    )
)
"""The fields of fb-run's arguments that decoding uses."""


def check_decode(line: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse options of sampling beside ``--decode``, which samples nothing.

    Raises:
        UsageError: one was given.
    """
    others = [name for name in vars(arguments) if name not in TAKEN]
    for flag in unused_flags(line, arguments, others):
        raise UsageError(
            f"--decode makes a video of latents that are finished, and takes no {flag}; leave one of the two out."
        )


def decode_file(pipeline: Pipeline, latents: Path, job: Job, out: Path, console: Console) -> None:
    """Make the video of a file of latents.

    Args:
        latents: a ``.npy`` file, float [1, C, F, H, W].
        job: see `DecodeRun`.
        out: where to write the video.

    Raises:
        FlowBlendingError: see `DecodeRun`.
    """
    run = DecodeRun(pipeline, read_latents(latents), job, out)
    for sentence in unused_in_decoding(job, pipeline.bundle.manifest, timed=out.suffix.lower() == ".mp4"):
        console.warn(sentence)
    with contextlib.closing(run.events()) as events, contextlib.ExitStack() as shown:
        load = advance = None
        for event in events:
            match event:
                case WarningEvent():
                    console.warn(event.message)
                case LoadEvent():
                    load = load or shown.enter_context(console.phase("loading engines"))
                    load(event.component)
                case FramesEvent():
                    if advance is None:
                        shown.close()
                        advance = shown.enter_context(console.progress("decoding", total=run.geometry.frames))
                    advance(event.count)
    console.result(f"{out}: {run.geometry}")
    about = {"size": run.geometry.size, "frames": run.geometry.frames}
    console.document(RUN, {"bundle": pipeline.bundle.folder, "video": out, "decoded": latents, **about})
