"""What is said when an engine gives numbers that are not finite: one sentence each, whoever finds them.

The C++ library says the first of them in the same words (cpp/src/sampler.cpp); a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flowblending.contracts.graph import Precision

_MODEL_REMEDIES: Final[Mapping[Precision, str]] = {
    Precision.FP16: "build it in fp16-mixed, bf16 or fp32",
    Precision.FP16_MIXED: "build it in bf16 or fp32",
    Precision.BF16: "build it in fp32",
    Precision.FP8: "build it in bf16 or fp32, or calibrate it with more prompts",
    Precision.FP32: "check its checkpoint and the initial latents",
}
_DECODER_REMEDIES: Final[Mapping[Precision, str]] = {
    Precision.FP16: "build it in bf16 or fp32",
    Precision.BF16: "build it in fp32",
    Precision.FP32: "check its checkpoint and the latents",
}
"""A decoder is built in no other precision."""


def non_finite_velocity(model: str, precision: Precision, *, step: int, steps: int) -> str:
    """A model's velocity is not finite at a step, counted from 1 on."""
    return (
        f"The {model} model gave a non-finite velocity at step {step} of {steps}; "
        f"it was built in {precision}: {_MODEL_REMEDIES[precision]}."
    )


def non_finite_pixel(precision: Precision, *, frame: int) -> str:
    """A decoder's pixel is not finite in some frames, of which the first has this number, counted from 1 on."""
    return (
        f"The VAE decoder gave a non-finite pixel from frame {frame} on; "
        f"it was built in {precision}: {_DECODER_REMEDIES[precision]}."
    )
