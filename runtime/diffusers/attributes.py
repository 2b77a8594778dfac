"""What diffusers' pipelines have beside a call that a bundle has not: refused by name, with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flowblending import UsageError

_OTHERWISE: Final[Mapping[str, str]] = {
    "scheduler": "give solver='unipc' and shift=5.0, for example, to the call",
    "_guidance_scale": "give a stage a guidance scale of its own in schedule='L20 S20:g1 L10', for example",
    "load_lora_weights": "fuse the file when the bundle is built, with fb-build-engines --lora FILE:STRENGTH",
    "fuse_lora": "fuse the file when the bundle is built, with fb-build-engines --lora FILE:STRENGTH",
    "set_adapters": "fuse the file when the bundle is built, with fb-build-engines --lora FILE:STRENGTH",
    "enable_model_cpu_offload": "leave the line out",
    "enable_sequential_cpu_offload": "leave the line out",
    "enable_attention_slicing": "leave the line out",
    "enable_vae_tiling": "leave the line out",
    "enable_vae_slicing": "leave the line out",
    "enable_xformers_memory_efficient_attention": "leave the line out",
    "from_pretrained": "build a bundle with fb-build-engines, and open it with from_bundle",
}
_USUAL: Final = "its engines are compiled when the bundle is built"


class NoSuchAttribute(UsageError, AttributeError):
    """An attribute of diffusers' pipelines that a bundle does not have; ``hasattr`` says so too."""


def refused(name: str, *, changed: bool = False) -> NoSuchAttribute:
    """The sentence about an attribute.

    Args:
        changed: whether it was to be set.
    """
    verb = "cannot be set on" if changed else "is not there on"
    return NoSuchAttribute(f"{name} {verb} a FlowBlendingPipeline; {_OTHERWISE.get(name, _USUAL)}.")
