"""What the pipeline classes of diffusers that bundles stand in for take and give, as far as it differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

COMMON: Final = frozenset(
    {
        "prompt",
        "negative_prompt",
        "height",
        "width",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "num_videos_per_prompt",
        "generator",
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "output_type",
        "return_dict",
        "attention_kwargs",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "max_sequence_length",
    }
)
"""Arguments that all of them have."""

_LTX: Final = frozenset(
    {
        "frame_rate",
        "timesteps",
        "guidance_rescale",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
        "decode_timestep",
        "decode_noise_scale",
    }
)
_IMAGE: Final = frozenset({"image"})
_CONDITIONS: Final = frozenset(
    {"conditions", "image", "video", "frame_index", "strength", "denoise_strength", "image_cond_noise_scale"}
)


@dataclass(frozen=True, kw_only=True)
class PipelineClass:
    """One of them.

    Attributes:
        arguments: of its ``__call__`` beside `COMMON`.
        output_type: of its ``frames`` unless told otherwise.
        packed: whether ``latents`` and those that a callback is shown are tokens [B, F * H * W, C], and not
            [B, C, F, H, W].
        packed_output: whether ``output_type="latent"`` gives such.
        takes_latents: whether the argument ``latents`` is what sampling starts from.
    """

    arguments: frozenset[str] = frozenset()
    output_type: str = "np"
    packed: bool = False
    packed_output: bool = False
    takes_latents: bool = True

    @property
    def all_arguments(self) -> frozenset[str]:
        """Those that it has in common with the others too."""
        return COMMON | self.arguments


CLASSES: Final[Mapping[str, PipelineClass]] = {
    "WanPipeline": PipelineClass(arguments=frozenset({"guidance_scale_2"})),
    "SkyReelsV2ImageToVideoPipeline": PipelineClass(arguments=_IMAGE | {"image_embeds", "last_image"}),
    "LTXPipeline": PipelineClass(arguments=_LTX, output_type="pil", packed=True, packed_output=True),
    "WanImageToVideoPipeline": PipelineClass(arguments=_IMAGE | {"guidance_scale_2", "image_embeds", "last_image"}),
    "LTXImageToVideoPipeline": PipelineClass(
        arguments=_LTX | _IMAGE, output_type="pil", packed=True, packed_output=True, takes_latents=False
    ),
    "LTXConditionPipeline": PipelineClass(
        arguments=_LTX | _CONDITIONS, output_type="pil", packed=True, takes_latents=False
    ),
}
"""By their names. A bundle of another one, of a family that a package added, takes what they have in common."""

ARGUMENTS: Final = frozenset(COMMON.union(*(each.arguments for each in CLASSES.values())))
"""Of any of them."""


def class_of(name: str) -> PipelineClass:
    """The facts of a class by its name."""
    return CLASSES.get(name, PipelineClass())
