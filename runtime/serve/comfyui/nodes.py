"""The nodes: a bundle is loaded, and makes videos. ComfyUI reads what their class attributes say.

https://docs.comfy.org/custom-nodes/backend/server_overview tells what they mean.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending.contracts.manifest import MANIFEST, Manifest
from flowblending.runtime import api
from flowblending.runtime.api import FramesEvent, LatentsEvent, PreviewEvent, StepEvent, VideoSampler
from flowblending.runtime.machine_options import DEVICES
from flowblending.runtime.serve.comfyui.host import (
    bundle_names,
    bundle_path,
    progress_bar,
    stop_if_cancelled,
    wants_previews,
)
from flowblending.runtime.serve.comfyui.widgets import job_options, widgets

BUNDLE: Final = "FLOWBLENDING_BUNDLE"
"""What goes from the first node to the second: an opened bundle."""
CATEGORY: Final = "FlowBlending"

_AS_THE_VAE_HAS_THEM: Final = frozenset({"WanPipeline"})
"""Pipelines whose latents ComfyUI keeps as the VAE encodes them, not normalised (its latent_formats.py, Wan21). LTX's
are kept as the transformer sees them (LTXV there), and its VAE undoes that."""


class LoadBundle:
    """Opens a bundle of ``models/flowblending``, or of any folder."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (BUNDLE,)
    RETURN_NAMES = ("bundle",)
    DESCRIPTION = "Opens a bundle that fb-build-engines made; engines are opened when they are first needed."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """The widgets."""
        folder = {"default": "", "tooltip": "of a bundle that lies elsewhere; in place of the name"}
        return {
            "required": {
                "bundle": (bundle_names() or [""], {"tooltip": "in models/flowblending"}),
                "device": (list(DEVICES), {"tooltip": "for onnxruntime bundles"}),
            },
            "optional": {"folder": ("STRING", folder)},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str = "", bundle: str = "") -> bool | str:
        """Whether there is such a bundle; without a name, a folder has to be given."""
        if not folder and not bundle:
            return "There is no bundle in models/flowblending; put one there, or give its folder."
        path = bundle_path(folder or bundle)
        return (path / MANIFEST).is_file() or f"{path} is no bundle; give a folder that fb-build-engines wrote."

    @classmethod
    def IS_CHANGED(cls, bundle: str, device: str, folder: str = "") -> int:  # noqa: ARG003 - ComfyUI's name
        """Another number when the bundle has been built or calibrated anew, so that it is opened again."""
        return (bundle_path(folder or bundle) / MANIFEST).stat().st_mtime_ns

    def load(self, bundle: str, device: str, folder: str = "") -> tuple[VideoSampler]:
        """Open it."""
        return (api.open(bundle_path(folder or bundle), device=device),)


class Generate:
    """Makes a video of a prompt."""

    CATEGORY = CATEGORY
    FUNCTION = "generate"
    RETURN_TYPES = ("IMAGE", "LATENT", "FLOAT")
    RETURN_NAMES = ("images", "latent", "fps")
    DESCRIPTION = "Samples with the bundle's models as its schedule says, and decodes."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """The widgets, from the table of options."""
        images = {
            name: ("IMAGE", {"tooltip": f"that the video {verb} with, of bundles that take images"})
            for name, verb in (("start_image", "begins"), ("end_image", "ends"))
        }
        required = {"bundle": (BUNDLE,), **widgets(first=True)}
        return {"required": required, "optional": {**images, **widgets(first=False)}}

    def generate(
        self, bundle: VideoSampler, prompt: str, start_image: Any = None, end_image: Any = None, **values: Any
    ) -> tuple[Any, dict[str, Any], float]:
        """Make it.

        Args:
            start_image, end_image: ComfyUI's, float32 [B, H, W, 3] in [0, 1]; of several, the first, and the last.

        Returns:
            Frames float32 [F, H, W, 3] in [0, 1]; the latents [1, C, F, H, W] as ComfyUI has the family's; frames per
            second.

        Raises:
            FlowBlendingError: an option that is wrong, or an engine that failed; ComfyUI shows its sentence.
        """
        import torch

        every = 1 if bundle.manifest.preview is not None and wants_previews() else None
        generation = bundle.generate(
            prompt,
            preview_every=every,
            first_image=None if start_image is None else start_image[0, ..., :3].clamp(0, 1),
            last_image=None if end_image is None else end_image[-1, ..., :3].clamp(0, 1),
            **job_options(values),
        )
        steps = len(generation.program.steps)
        show = progress_bar(steps + 1)
        frames: list[npt.NDArray[np.float32]] = []
        done, latents = 0, None
        with contextlib.closing(iter(generation)) as events:
            for event in events:
                stop_if_cancelled()
                match event:
                    case StepEvent():
                        done = event.index + 1
                        show(done, None)
                    case PreviewEvent():
                        show(done, event.picture)
                    case LatentsEvent():
                        latents = event.latents.numpy().copy()
                    case FramesEvent():
                        frames.append(event.frames)
        show(steps + 1, None)
        assert latents is not None, "sampling ends with its latents"
        images = np.concatenate(frames, axis=1).transpose(1, 2, 3, 0) * np.float32(0.5) + np.float32(0.5)
        samples = torch.from_numpy(_in_comfys_space(latents, bundle.manifest))
        return torch.from_numpy(images.clip(0, 1)), {"samples": samples}, float(generation.frame_rate)


def _in_comfys_space(latents: Any, manifest: Manifest) -> Any:
    pipeline = manifest.pipeline
    if pipeline.pipeline not in _AS_THE_VAE_HAS_THEM:
        return latents
    shape = (1, -1, 1, 1, 1)
    mean, std = (np.asarray(each, np.float32).reshape(shape) for each in (pipeline.latents_mean, pipeline.latents_std))
    return latents * std + mean


NODE_CLASS_MAPPINGS: Final[dict[str, type]] = {
    "FlowBlendingLoadBundle": LoadBundle,
    "FlowBlendingGenerate": Generate,
}
NODE_DISPLAY_NAME_MAPPINGS: Final = {
    "FlowBlendingLoadBundle": "FlowBlending Load Bundle",
    "FlowBlendingGenerate": "FlowBlending Generate",
}
