"""The table's columns: what each figure is, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS, WHOLE, FLOPS, SPEEDUP, BOUND = "seconds", "whole", "flops", "speedup", "bound"
PSNR, SSIM, COSINE, SMOOTHNESS = "psnr", "ssim", "cosine", "smoothness"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table.

    Attributes:
        key: of the figure.
        unit: ``s``, ``x``, ``dB``, ``%``, ``TFLOPs`` or nothing.
        digits: after the point.
        about: a sentence that explains it.
        better: 1 where more is better, -1 where less is, 0 where it depends.
        relative: whether it is measured against the reference, which so has none.
    """

    key: str
    heading: str
    unit: str = ""
    digits: int = 3
    about: str
    better: int = 1
    relative: bool = False


COLUMNS = (
    Column(
        key=SECONDS,
        heading="sampling",
        unit="s",
        about="Seconds of the sampling loop; the median over the prompts.",
        better=-1,
    ),
    Column(
        key=WHOLE,
        heading="whole video",
        unit="s",
        about="Seconds from the prompt's text to the decoded frames, engines loaded; the median over the prompts.",
        better=-1,
    ),
    Column(
        key=SPEEDUP,
        heading="speed-up",
        unit="x",
        digits=2,
        about="The reference's sampling seconds over this run's.",
    ),
    Column(
        key=FLOPS,
        heading="TFLOPs",
        unit="TFLOPs",
        about="Of the transformers' calls, attention included, counted from the exported graphs.",
        better=-1,
    ),
    Column(
        key=BOUND,
        heading="bound",
        unit="x",
        digits=2,
        about="The speed-up that the FLOPs allow.",
    ),
    Column(
        key=PSNR,
        heading="PSNR",
        unit="dB",
        digits=2,
        about="Peak signal-to-noise ratio of the 8-bit frames against the reference's.",
        relative=True,
    ),
    Column(
        key=SSIM,
        heading="SSIM",
        digits=3,
        about="Structural similarity to the reference's frames (Wang et al. 2004), 1 when equal.",
        relative=True,
    ),
    Column(
        key=COSINE,
        heading="latent cosine",
        digits=4,
        about="Cosine of the final latents with the reference's, 1 when equal.",
        relative=True,
    ),
    Column(
        key=SMOOTHNESS,
        heading="roughness",
        digits=4,
        about="Temporal smoothness: the mean absolute second difference over time, 0 the smoothest. Motion has some, "
        "flicker has more, so only videos of like motion compare.",
        better=-1,
    ),
)
