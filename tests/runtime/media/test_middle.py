"""Pictures as CLIP's encoder is given them, against transformers' image processor."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flowblending.runtime.media.middle import middle


@pytest.mark.parametrize(("width", "height"), [(832, 480), (480, 832), (97, 61), (33, 32), (16, 9), (28, 28), (1, 3)])
@pytest.mark.parametrize("size", [28, 224])
def test_they_are_the_processors_to_the_bit(width: int, height: int, size: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=False,
        do_normalize=False,
    )
    expected = np.asarray(processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"][0])
    found = middle(picture, size)
    assert found.dtype == expected.dtype == np.uint8
    np.testing.assert_array_equal(found.transpose(2, 0, 1), expected)
