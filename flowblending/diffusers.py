"""A bundle in place of a pipeline of diffusers, for code that has one.

::

    from flowblending.diffusers import FlowBlendingPipeline

    pipe = FlowBlendingPipeline.from_bundle("wan")
    frames = pipe("A cat walks on the grass", generator=torch.Generator().manual_seed(7)).frames[0]

Neither diffusers nor torch is needed; torch is imported where its tensors are asked for or given.
"""

from flowblending.runtime.diffusers.frames import VideoOutput
from flowblending.runtime.diffusers.pipeline import FlowBlendingPipeline

__all__ = ["FlowBlendingPipeline", "VideoOutput"]
