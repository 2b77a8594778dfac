"""What a trajectory starts from, for the build's report. The build starts this as a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from flowblending.contracts.program import COND, UNCOND
from flowblending.engine.build.proof.pair_start import Start, StartRequest
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.media.prompt import Tokenizer
from flowblending.system.subprocess_call import answer

_SEED = 1000
"""One that a calibration has no prompt for: a trajectory that the ranges were measured on would flatter them."""


def serve(descriptor: int) -> None:
    """What the process does."""
    answer(descriptor, work)


def work(request: StartRequest, _progress: Callable[[str], None]) -> Start:
    """Noise, and the tokens of the prompt and of the negative prompt."""
    pipeline = request.manifest.pipeline
    tokenizer = Tokenizer(request.tokenizer, length=pipeline.text_length, clean=pipeline.clean_prompt)
    texts = {COND: request.prompt, UNCOND: pipeline.negative_prompt}
    tokens = {branch: tokenizer.encode(text) for branch, text in texts.items()}
    return Start(
        latents=TorchNormal(_SEED).normal((1, *request.manifest.geometry.latent_shape)),
        tokens={branch: {"ids": each.ids, "mask": each.mask} for branch, each in tokens.items()},
    )
