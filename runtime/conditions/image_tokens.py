"""Images as CLIP sees them: tokens that a transformer attends to beside those of the text.

Source: ``encode_image`` of diffusers' pipeline_wan_i2v.py. Of its image processor, resizing and cropping are
`flowblending.runtime.media.middle`; the encoder's graph begins with what it does to colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import IMAGE_TOKENS, Condition
from flowblending.engine.backends.protocol import Engine
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.media.middle import middle

PIXELS = "pixels"
TOKENS = "tokens"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """CLIP's vision encoder.

    Attributes:
        engine: ``image_encoder``.
        device: where it is.
    """

    engine: Engine
    device: Device

    def tokens(self, images: Sequence[GivenClip]) -> Floats:
        """The tokens of images in the order of their places, fp32 [1, N, W]: those of one behind those of the other.

        Args:
            images: uint8 [1, H, W, 3] each, of any size.

        Raises:
            FlowBlendingError: a number that is not finite, or the engine failed.
        """
        inorder = sorted(images, key=lambda each: each.frame)
        return np.concatenate([self._seen(each.frames[0]) for each in inorder], axis=1)

    def _seen(self, picture: npt.NDArray[np.uint8]) -> Floats:
        (taken,), (given,) = self.engine.spec.inputs, self.engine.spec.outputs
        *_, size = taken.resolve({"batch": 1})
        values = np.ascontiguousarray(middle(picture, size).transpose(2, 0, 1)[None], np.float32)
        output = self.device.empty(given.resolve({"batch": 1}), np.dtype(given.dtype))
        with self.device.current():
            self.engine.run({PIXELS: self.device.upload(values), TOKENS: output}, self.device.stream)
        tokens: Floats = self.device.download(output)
        if not np.isfinite(tokens).all():
            raise FlowBlendingError(
                "The image encoder gave a number that is not finite; build the bundle with --precision "
                "image_encoder=fp32."
            )
        return tokens


def plain_tokens(conditions: Iterable[Condition]) -> dict[str, Floats]:
    """Tokens of images of which nothing is to be seen, where there is no encoder, by input; none where none are taken.

    They are of the size of CLIP's, and no two alike, since the norms of a transformer divide by what they differ by.
    """
    shapes = {each.name: (1, *map(int, each.shape[1:])) for each in conditions if each.recipe == IMAGE_TOKENS}
    return {
        name: np.cos(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape) for name, shape in shapes.items()
    }
