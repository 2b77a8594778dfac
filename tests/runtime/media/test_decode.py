"""The decoder with closed-form engines: hand-over of caches from frame to frame, and inputs drawn in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import VAE, VAE_FIRST, VAE_NEXT, Dim, GraphSpec, Precision, TensorSpec
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.devices.pictures import to_uint8
from flowblending.runtime.media.decode import Decoder
from flowblending.runtime.media.noise import TorchNormal

Floats = npt.NDArray[np.float32]
Seen = list[Mapping[str, Tensor]]
"""The tensors of each call, kept, so that no memory comes back at the same address by chance."""

LATENTS = np.random.default_rng(0).standard_normal((1, 3, 4, 2, 5)).astype(np.float32)
CLIP: tuple[Dim, ...] = (1, 3, "frames", "height", "width")
FRAME: tuple[Dim, ...] = (1, 3, 1, "height", "width")
PIXELS: tuple[Dim, ...] = (1, 3, "2*height", "2*width")


def graph(name: str, inputs: Mapping[str, tuple[Dim, ...]], outputs: Mapping[str, tuple[Dim, ...]]) -> GraphSpec:
    given, made = (
        tuple(TensorSpec(name=each, dtype="float32", shape=shape) for each, shape in tensors.items())
        for tensors in (inputs, outputs)
    )
    return GraphSpec(name=name, precision=Precision.FP32, inputs=given, outputs=made)


class Scribbler(FunctionEngine):
    """Spoils its outputs before it reads its inputs, as an engine may, and adds what it was given to ``seen``."""

    def __init__(self, spec: GraphSpec, function: Callable[[Arrays], Arrays], seen: Seen) -> None:
        super().__init__(spec, function)
        self._seen = seen

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        for output in self.spec.outputs:
            tensors[output.name].numpy().fill(np.nan)
        self._seen.append(tensors)
        super().run(tensors, stream)


def enlarge(latents: Floats) -> Floats:
    return latents[:, :, 0].repeat(2, axis=-2).repeat(2, axis=-1)


def step(arrays: Arrays) -> Arrays:
    """y[k] = x[k] + y[k-1]/2 is remembered small, z[k] = x[k] - z[k-1]/4 large; frames are both and twice z."""
    latents = arrays["latents"]
    first = "cache_00" not in arrays
    small = latents if first else latents + np.float32(0.5) * arrays["cache_00"]
    large = enlarge(latents) if first else enlarge(latents) - np.float32(0.25) * arrays["cache_01"]
    frames = np.stack([enlarge(small) + large] + ([] if first else [2 * large]), axis=2)
    return {"frames": frames, "cache_00_next": small, "cache_01_next": large}


def stepwise(seen: Seen) -> Decoder:
    caches = {"cache_00": FRAME, "cache_01": PIXELS}
    after = {f"{name}_next": shape for name, shape in caches.items()}
    engines = {
        name: Scribbler(graph(name, inputs, {"frames": (1, 3, count, *PIXELS[2:]), **after}), step, seen)
        for name, inputs, count in ((VAE_FIRST, {"latents": FRAME}, 1), (VAE_NEXT, {"latents": FRAME, **caches}, 2))
    }
    return Decoder(engines=engines, device=HostDevice(), conditioning=DecodeConditioning())


@pytest.mark.parametrize(("frame", "first"), [(0, 1), (1, 2), (3, 6)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_ends_the_video_before_its_frames(frame: int, first: int, value: float) -> None:
    latents = LATENTS.copy()
    latents[0, 0, frame, 0, 0] = value
    chunks = []
    with np.errstate(invalid="ignore"), pytest.raises(FlowBlendingError) as found:
        for chunk in stepwise([]).decode(Tensor.of(latents), TorchNormal(0)):
            chunks.append(chunk)
    assert str(found.value) == (
        f"The VAE decoder gave a non-finite pixel from frame {first} on; "
        "it was built in fp32: check its checkpoint and the latents."
    )
    assert sum(len(chunk.images) for chunk in chunks) == first - 1


def test_caches_are_handed_from_frame_to_frame() -> None:
    told = list(stepwise([]).decode(Tensor.of(LATENTS), TorchNormal(0), floats=True))
    chunks = [chunk.frames for chunk in told]
    assert [chunk.shape for chunk in chunks] == [(3, 1, 4, 10), *[(3, 2, 4, 10)] * 3]
    for each in (told, list(stepwise([]).decode(Tensor.of(LATENTS), TorchNormal(0)))):
        for images, frames in zip(each, chunks, strict=True):
            np.testing.assert_array_equal(images.images, to_uint8(frames))
    for index, chunk in enumerate(chunks):
        past = [enlarge(LATENTS[:, :, each : each + 1])[0] for each in range(index + 1)]
        y = sum(0.5 ** (index - each) * x for each, x in enumerate(past))
        z = sum((-0.25) ** (index - each) * x for each, x in enumerate(past))
        np.testing.assert_allclose(chunk[:, 0], y + z, rtol=1e-5, atol=1e-6)
        if index:
            np.testing.assert_allclose(chunk[:, 1], 2 * z, rtol=1e-5, atol=1e-6)


def test_two_sets_of_caches_take_turns() -> None:
    seen: Seen = []
    list(stepwise(seen).decode(Tensor.of(LATENTS), TorchNormal(0)))
    for cache in ("cache_00", "cache_01"):
        written = [tensors[f"{cache}_next"].address for tensors in seen]
        read = [tensors[cache].address for tensors in seen[1:]]
        assert read == written[:-1]
        assert written == [*written[:2], *written[:2]]
        assert len(set(written)) == 2


def test_frames_leave_as_soon_as_they_are_decoded() -> None:
    seen: Seen = []
    chunks = stepwise(seen).decode(Tensor.of(LATENTS), TorchNormal(0))
    for count in range(1, 5):
        next(chunks)
        assert len(seen) == count


def whole(
    inputs: Mapping[str, tuple[Dim, ...]], arrays: dict[str, Floats], conditioning: DecodeConditioning
) -> Decoder:
    """A decoder of the whole clip that brightens it, and copies its inputs into ``arrays``."""

    def function(given: Arrays) -> Arrays:
        arrays.update({name: array.copy() for name, array in given.items()})
        return {"frames": given["latents"] + np.float32(0.5)}

    engine = FunctionEngine(graph(VAE, {"latents": CLIP, **inputs}, {"frames": CLIP}), function)
    return Decoder(engines={VAE: engine}, device=HostDevice(), conditioning=conditioning)


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("bad", [None, 0, 18])
def test_a_whole_clip_leaves_in_pieces_once_all_of_it_is_known_to_be_finite(floats: bool, bad: int | None) -> None:
    latents = np.random.default_rng(1).uniform(-2, 1, (1, 3, 19, 2, 5)).astype(np.float32)
    if bad is not None:
        latents[0, 2, bad, 1, 4] = np.nan
    chunks = whole({}, {}, DecodeConditioning()).decode(Tensor.of(latents), TorchNormal(0), floats=floats)
    if bad is not None:
        with pytest.raises(FlowBlendingError, match="non-finite pixel from frame 1 on"):
            next(chunks)
        return
    told = list(chunks)
    expected = latents[0] + np.float32(0.5)
    assert [len(each.images) for each in told] == ([19] if floats else [8, 8, 3])
    np.testing.assert_array_equal(np.concatenate([each.images for each in told]), to_uint8(expected))
    if floats:
        np.testing.assert_array_equal(told[0].frames, expected)


def test_noise_continues_the_stream_of_the_initial_latents() -> None:
    inputs: dict[str, tuple[Dim, ...]] = {
        "timestep": (1,),
        "noise_scale": (1,),
        "noise": CLIP,
        "spatial_noise_00": ("height", "width"),
        "spatial_noise_01": ("2*height", "2*width"),
    }
    given: dict[str, Floats] = {}
    ours, reference = TorchNormal(7), TorchNormal(7)
    ours.normal(LATENTS.shape)
    (chunk,) = whole(inputs, given, DecodeConditioning(timestep=0.05, noise_scale=0.025)).decode(
        Tensor.of(LATENTS), ours, floats=True
    )
    np.testing.assert_array_equal(chunk.frames, LATENTS[0] + np.float32(0.5))

    reference.normal(LATENTS.shape)
    for name, shape in (("noise", LATENTS.shape), ("spatial_noise_00", (2, 5)), ("spatial_noise_01", (4, 10))):
        np.testing.assert_array_equal(given[name], reference.normal(shape), err_msg=name)
    np.testing.assert_array_equal(given["timestep"], np.array([0.05], np.float32))
    np.testing.assert_array_equal(given["noise_scale"], np.array([0.025], np.float32))
    np.testing.assert_array_equal(ours.normal((3,)), reference.normal((3,)))
